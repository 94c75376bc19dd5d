//! A partition: memory, the I/O APIC, interrupts.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use servin_devices::event::Event;
use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::api::{Api, Partition, Raw, map, property};
use super::{Host, failed, state};
use crate::error::Error;
use crate::hv::x86::hyperv;
use crate::hv::x86::ioapic::{Delivery, IoApic, Message, PINS};
use crate::hv::x86::pic::Pics;
use crate::hv::x86::ram::Ram;
use crate::hv::{self, Doorbell, MachineState, Offload, Plan};

/// The platform's pages.
const PAGE: u64 = 0x1000;

/// The machine, shared by vCPUs and lines: whoever is dropped last deletes the partition.
pub(super) struct Vm {
    pub(super) api: Arc<dyn Api>,
    pub(super) partition: Partition,
    /// The guest reaches this memory for as long as the partition exists.
    pub(super) mem: Mem,
    pub(super) read_only: Vec<GuestAddress>,
    pub(super) host: Host,
    ioapic: Mutex<IoApic>,
    pics: Mutex<Pics>,
    gsis: u32,
    track_dirty: bool,
}

impl Vm {
    pub(super) fn new(api: Arc<dyn Api>, host: Host, plan: &Plan) -> Result<Self, Error> {
        if plan.gsis as usize > PINS {
            return Err(Error::Config(format!("{} interrupt lines; {PINS} are possible", plan.gsis)));
        }
        let partition = api.create_partition().map_err(failed("creating a partition"))?;
        // From here on the drop deletes it.
        let vm = Self {
            api,
            partition,
            mem: Arc::clone(&plan.mem),
            read_only: plan.read_only.clone(),
            host,
            ioapic: Mutex::default(),
            pics: Mutex::default(),
            gsis: plan.gsis,
            track_dirty: plan.track_dirty && host.tracks_dirty,
        };
        vm.set_properties(plan.cpus)?;
        vm.api.setup_partition(partition).map_err(failed("setting the partition up"))?;
        for region in vm.mem.iter() {
            let mut flags = map::READ | map::EXECUTE;
            if !vm.read_only.contains(&region.start_addr()) {
                flags |= map::WRITE | if vm.track_dirty { map::TRACK_DIRTY } else { 0 };
            }
            vm.api.map(partition, region, flags).map_err(failed("mapping guest memory"))?;
        }
        Ok(vm)
    }

    fn set_properties(&self, cpus: u8) -> Result<(), Error> {
        let set = |code, value: &[u8]| self.api.set_property(self.partition, code, value);
        set(property::PROCESSOR_COUNT, &u32::from(cpus).to_le_bytes())
            .map_err(failed("setting the number of processors"))?;
        set(property::LOCAL_APIC_EMULATION_MODE, &property::XAPIC.to_le_bytes())
            .map_err(failed("asking for local APICs"))?;
        set(property::EXTENDED_VM_EXITS, &property::X64_MSR_EXIT.to_le_bytes())
            .map_err(failed("asking for exits of MSRs"))?;
        // Older versions know no bitmap and exit for unknown ones only.
        let _ = set(property::X64_MSR_EXIT_BITMAP, &property::UNHANDLED_MSRS.to_le_bytes());
        let mut list = Vec::new();
        for leaf in hyperv::leaves() {
            let words = [leaf.function, 0, 0, 0].into_iter().chain(leaf.result);
            list.extend(words.flat_map(u32::to_le_bytes));
        }
        set(property::CPUID_RESULT_LIST, &list).map_err(failed("setting the guest's CPUID"))
    }

    pub(super) fn ioapic(&self) -> MutexGuard<'_, IoApic> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pics(&self) -> MutexGuard<'_, Pics> {
        self.pics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message to the local APICs.
    pub(super) fn send(&self, message: Message) -> Raw<()> {
        let kind: u64 = match message.delivery {
            Delivery::Fixed => 0,
            Delivery::LowestPriority => 1,
            Delivery::Nmi => 4,
            Delivery::Init => 5,
        };
        // WHV_INTERRUPT_CONTROL: type 8 bits, destination mode 4, trigger mode 4; destination; vector.
        let bits = kind | u64::from(message.logical) << 8 | u64::from(message.level) << 12;
        let mut control = [0; 16];
        let words = [bits as u32, (bits >> 32) as u32, message.destination.into(), message.vector.into()];
        for (to, word) in control.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.api.request_interrupt(self.partition, control)
    }

    /// RAM for the decoder.
    pub(super) fn ram(&self) -> Ram<'_> {
        Ram { mem: &self.mem, read_only: &self.read_only }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Err(error) = self.api.delete_partition(self.partition) {
            log::error!("deleting a partition: {error}");
        }
    }
}

/// The machine as the monitor holds it.
pub(super) struct Shared(pub(super) Arc<Vm>);

impl hv::Vm for Shared {
    fn irq_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        let lines = self.0.gsis;
        if gsi >= lines {
            return Err(Error::Config(format!("interrupt line {gsi}; there are {lines} lines")));
        }
        Ok(Arc::new(Line { vm: Arc::clone(&self.0), gsi }))
    }

    fn offload(&self, _: Doorbell, _: &Event) -> Option<Offload> {
        None
    }

    fn track_dirty(&self) -> Option<Result<(), Error>> {
        self.0.track_dirty.then_some(Ok(()))
    }

    fn take_dirty(&self, region: usize) -> Option<Result<Vec<u64>, Error>> {
        let vm = &self.0;
        let region = vm.mem.iter().nth(region).filter(|r| !vm.read_only.contains(&r.start_addr()));
        let region = region.filter(|_| vm.track_dirty)?;
        let mut bitmap = vec![0; usize::try_from(region.len().div_ceil(64 * PAGE)).ok()?];
        let gpa = region.start_addr().raw_value();
        let result = vm.api.query_dirty(vm.partition, gpa, region.len(), &mut bitmap);
        Some(result.map(|()| bitmap).map_err(failed("reading the dirty log")))
    }

    fn save(&self) -> Result<MachineState, Error> {
        state::save_machine(&self.0)
    }

    fn restore(&self, state: &MachineState) -> Result<(), Error> {
        state::restore_machine(&self.0, state)
    }
}

/// A line into a pin of the I/O APIC.
struct Line {
    vm: Arc<Vm>,
    gsi: u32,
}

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        // Sent under the lock, so that messages of a pin keep their order.
        let mut chip = self.vm.ioapic();
        match chip.trigger(self.gsi) {
            Some(message) => Ok(self.vm.send(message)?),
            None => Ok(()),
        }
    }
}
