//! A KVM virtual machine: memory slots, interrupt lines, doorbells.

// A leaf that may use unsafe: KVM maps our memory into the guest, and takes event descriptors by number.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use servin_devices::event::Event;
use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{arch, failed};
use crate::error::Error;
use crate::hv::{self, Doorbell, MachineState, Offload, Plan};

/// The machine, shared by vCPUs, lines and offloads: whoever is dropped last closes it.
pub(super) struct Vm {
    pub(super) fd: Arc<VmFd>,
    /// The guest reaches this memory for as long as the VM exists.
    pub(super) mem: Mem,
    /// Start addresses of the regions that the guest may only read.
    pub(super) read_only: Vec<GuestAddress>,
    #[cfg_attr(
        target_arch = "x86_64",
        expect(dead_code, reason = "KVM keeps it; on arm64 it has a descriptor")
    )]
    pub(super) chip: arch::Chip,
    gsis: u32,
    track_dirty: AtomicBool,
}

/// What the dirty log counts; hosts with larger pages have none that we could read.
const PAGE: libc::c_long = 0x1000;

/// Maps the memory of `plan`, which must live as long as the VM: see [`Vm::mem`].
pub(super) fn map_memory(fd: &VmFd, plan: &Plan) -> Result<(), Error> {
    map(fd, &plan.mem, &plan.read_only, plan.track_dirty)
}

/// Maps memory, or changes whether written pages of mapped memory are tracked.
fn map(fd: &VmFd, mem: &Mem, read_only: &[GuestAddress], track_dirty: bool) -> Result<(), Error> {
    for (slot, region) in (0_u32..).zip(mem.iter()) {
        let read_only = read_only.contains(&region.start_addr());
        let mut flags = if read_only { KVM_MEM_READONLY } else { 0 };
        if track_dirty && !read_only {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(io::Error::other)
            .map_err(Error::hypervisor("mapping guest memory"))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host.expose_provenance() as u64,
        };
        // SAFETY: the region is a mapping of this length. Nothing runs before `Vm` keeps it alive, or the VM is closed; its
        // pages are reached by the monitor through volatile accessors only.
        unsafe { fd.set_user_memory_region(region) }.map_err(|e| failed("mapping guest memory", e))?;
    }
    Ok(())
}

impl Vm {
    /// The machine behind `fd`, into which the memory of `plan` was mapped.
    pub(super) fn new(fd: VmFd, plan: &Plan, chip: arch::Chip) -> Self {
        Self {
            fd: Arc::new(fd),
            mem: Arc::clone(&plan.mem),
            read_only: plan.read_only.clone(),
            chip,
            gsis: plan.gsis,
            track_dirty: AtomicBool::new(plan.track_dirty),
        }
    }
}

impl hv::Vm for Vm {
    fn irq_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        if gsi >= self.gsis {
            return Err(Error::Config(format!("interrupt line {gsi}; lines 0 to {} exist", self.gsis - 1)));
        }
        let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
            .map_err(Error::host("creating an interrupt event"))?;
        self.fd.register_irqfd(&event, gsi).map_err(|e| failed("registering an interrupt event", e))?;
        Ok(Arc::new(Line(event)))
    }

    fn offload(&self, doorbell: Doorbell, event: &Event) -> Option<Offload> {
        ioeventfd(&self.fd, doorbell, event, true).ok()?;
        // The doorbell is gone with the VM anyway, and giving it back before costs a grace period in the kernel.
        let (vm, event) = (Arc::downgrade(&self.fd), event.clone());
        Some(Offload::new(move || {
            if let Some(vm) = vm.upgrade()
                && let Err(error) = ioeventfd(&vm, doorbell, &event, false)
            {
                log::warn!("taking a doorbell back: {error}");
            }
        }))
    }

    fn track_dirty(&self) -> Option<Result<(), Error>> {
        // SAFETY: the call reads a constant of the system.
        if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != PAGE {
            return None;
        }
        if self.track_dirty.load(Ordering::Acquire) {
            return Some(Ok(()));
        }
        let tracked = map(&self.fd, &self.mem, &self.read_only, true);
        self.track_dirty.store(tracked.is_ok(), Ordering::Release);
        Some(tracked)
    }

    fn take_dirty(&self, region: usize) -> Option<Result<Vec<u64>, Error>> {
        let tracked = self.mem.iter().nth(region).filter(|r| !self.read_only.contains(&r.start_addr()));
        let length =
            tracked.map(GuestMemoryRegion::len).filter(|_| self.track_dirty.load(Ordering::Acquire))?;
        let log = u32::try_from(region)
            .map_err(io::Error::other)
            .and_then(|slot| Ok((slot, usize::try_from(length).map_err(io::Error::other)?)))
            .and_then(|(slot, length)| self.fd.get_dirty_log(slot, length).map_err(Into::into));
        Some(log.map_err(Error::hypervisor("reading the dirty log")))
    }

    fn save(&self) -> Result<MachineState, Error> {
        arch::state::save_machine(self)
    }

    fn restore(&self, state: &MachineState) -> Result<(), Error> {
        arch::state::restore_machine(self, state)
    }
}

/// Registers or unregisters a doorbell.
fn ioeventfd(vm: &VmFd, doorbell: Doorbell, event: &Event, on: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open during the call and is not closed by this wrapper.
    let fd = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event.as_fd().as_raw_fd()) });
    let at = IoEventAddress::Mmio(doorbell.addr);
    macro_rules! call {
        ($type:ty) => {{
            let value = <$type>::try_from(doorbell.value).map_err(io::Error::other)?;
            if on { vm.register_ioevent(&fd, &at, value) } else { vm.unregister_ioevent(&fd, &at, value) }
        }};
    }
    match doorbell.len {
        1 => call!(u8),
        2 => call!(u16),
        4 => call!(u32),
        8 => call!(u64),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    .map_err(Into::into)
}

/// An interrupt line over irqfd. KVM gives the line back by itself when the event is closed.
struct Line(EventFd);

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full of interrupts that the guest has not seen: one more makes no difference.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}
