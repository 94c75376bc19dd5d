//! A machine: memory, the interrupt controllers, and who gets what they send.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use servin_devices::event::Event;
use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::api::{Api, memory};
use super::{Host, failed, state};
use crate::error::Error;
use crate::hv::hvf::vm::{CREATING, Seat};
use crate::hv::x86::ioapic::{Delivery, IoApic, Message, PINS};
use crate::hv::x86::lapic::{Effect, Ipi, Lapic, Signal, To};
use crate::hv::x86::pic::Pics;
use crate::hv::x86::ram::Ram;
use crate::hv::{self, Doorbell, Kick, MachineState, Offload, Plan};

/// The page of the framework.
pub(super) const PAGE: u64 = 0x1000;

/// The machine, shared by vCPUs and lines: whoever is dropped last destroys it.
pub(super) struct Vm {
    pub(super) api: Arc<dyn Api>,
    /// The guest reaches this memory for as long as the machine exists.
    mem: Mem,
    read_only: Vec<GuestAddress>,
    pub(super) host: Host,
    ioapic: Mutex<IoApic>,
    pics: Mutex<Pics>,
    lapics: Vec<Mutex<Lapic>>,
    pub(super) seats: Vec<Arc<Seat>>,
    /// What the guest's time-stamp counter is ahead of the processor's.
    pub(super) tsc_offset: AtomicU64,
    gsis: u32,
}

impl Vm {
    pub(super) fn new(api: Arc<dyn Api>, host: Host, plan: &Plan) -> Result<Self, Error> {
        if plan.gsis as usize > PINS {
            return Err(Error::Config(format!("{} interrupt lines; {PINS} are possible", plan.gsis)));
        }
        for region in plan.mem.iter() {
            let (start, len) = (region.start_addr().raw_value(), region.len());
            if !start.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
                return Err(Error::Config(format!(
                    "guest memory at {start:#x} of {len} bytes; it begins and ends on pages of 4 KiB"
                )));
            }
        }
        api.vm_create().map_err(failed(CREATING))?;
        // From here on the drop destroys it.
        let vm = Self {
            api,
            mem: Arc::clone(&plan.mem),
            read_only: plan.read_only.clone(),
            host,
            ioapic: Mutex::default(),
            pics: Mutex::default(),
            lapics: (0..plan.cpus).map(|index| Mutex::new(Lapic::new(index))).collect(),
            seats: (0..plan.cpus).map(|_| Arc::default()).collect(),
            tsc_offset: AtomicU64::new(0),
            gsis: plan.gsis,
        };
        for region in vm.mem.iter() {
            let read_only = vm.read_only.contains(&region.start_addr());
            let flags = memory::READ | memory::EXEC | if read_only { 0 } else { memory::WRITE };
            vm.api.map(region, flags).map_err(failed("mapping guest memory"))?;
        }
        Ok(vm)
    }

    pub(super) fn ioapic(&self) -> MutexGuard<'_, IoApic> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pics(&self) -> MutexGuard<'_, Pics> {
        self.pics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the local APIC of a vCPU; one that is not there takes nothing and says nothing.
    pub(super) fn with_lapic<T>(&self, index: u8, with: impl FnOnce(&mut Lapic) -> T) -> T {
        match self.lapics.get(usize::from(index)) {
            Some(chip) => with(&mut chip.lock().unwrap_or_else(PoisonError::into_inner)),
            None => with(&mut Lapic::new(index)),
        }
    }

    pub(super) fn cpus(&self) -> u8 {
        u8::try_from(self.lapics.len()).unwrap_or(u8::MAX)
    }

    /// RAM for the decoder.
    pub(super) fn ram(&self) -> Ram<'_> {
        Ram { mem: &self.mem, read_only: &self.read_only }
    }

    /// Whether there is RAM, and whether the guest may write it.
    pub(super) fn ram_at(&self, gpa: u64) -> Option<bool> {
        let region = self.mem.find_region(GuestAddress(gpa))?;
        Some(!self.read_only.contains(&region.start_addr()))
    }

    /// Carries out what a write to a local APIC of vCPU `by` asks for.
    pub(super) fn perform(&self, by: u8, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(ipi) => self.send(Some(by), ipi),
            Effect::End(vector) => {
                let messages = self.ioapic().end(vector);
                for message in messages {
                    self.deliver(Some(by), message);
                }
            }
        }
    }

    /// Delivers a message of the I/O APIC.
    pub(super) fn deliver(&self, by: Option<u8>, message: Message) {
        let signal = match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                Signal::Fixed { vector: message.vector, level: message.level }
            }
            Delivery::Nmi => Signal::Nmi,
            Delivery::Init => Signal::Init,
        };
        let to = if message.logical {
            To::Logical(message.destination)
        } else {
            To::Physical(message.destination)
        };
        let lowest = message.delivery == Delivery::LowestPriority;
        self.send(by, Ipi { signal, lowest, to });
    }

    /// Hands a signal to its receivers, and makes those that run look. No lock is held while they are waited for.
    fn send(&self, by: Option<u8>, ipi: Ipi) {
        let mut receivers: Vec<(u8, u8)> = (0..self.cpus())
            .filter_map(|index| {
                self.with_lapic(index, |chip| chip.hears(ipi.to, by).then(|| (chip.priority(), index)))
            })
            .collect();
        if ipi.lowest {
            receivers.sort_unstable();
            receivers.truncate(1);
        }
        for (_, index) in receivers {
            let looks = self.with_lapic(index, |chip| chip.post(ipi.signal));
            if looks
                && by != Some(index)
                && let Some(seat) = self.seats.get(usize::from(index))
            {
                seat.nudges.kick();
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Err(error) = self.api.vm_destroy() {
            log::error!("destroying a virtual machine: {error}");
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
        None
    }

    fn take_dirty(&self, _: usize) -> Option<Result<Vec<u64>, Error>> {
        None
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
        let message = self.vm.ioapic().trigger(self.gsi);
        if let Some(message) = message {
            self.vm.deliver(None, message);
        }
        Ok(())
    }
}
