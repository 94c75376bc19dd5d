//! A machine: memory, the interrupt controller, which vCPUs are on, and how to reach them.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use servin_devices::event::Event;
use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::api::{Api, memory};
use super::{PAGE, failed, state};
use crate::error::Error;
use crate::hv::arm64::gic::{FIRST_SPI, Frame, Gic, MOST_SPIS, REDISTRIBUTOR_SIZE};
use crate::hv::arm64::psci::Power;
use crate::hv::kick::Kicks;
use crate::hv::{self, Doorbell, MachineState, Offload, Plan};
use crate::layout::aarch64 as layout;

/// What is being done when the process may have a machine already.
pub(super) const CREATING: &str = "creating a virtual machine";

/// Who takes the interrupts.
pub(super) enum Chip {
    /// The framework's own GIC.
    Host,
    /// Ours.
    Own(Mutex<Gic>),
}

/// How to reach a vCPU, on its thread or not.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) kicks: Arc<Kicks>,
    /// Like a kick, but the run goes on: there may be an interrupt to take.
    pub(super) nudges: Kicks,
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Seat {
    /// Wakes a parked vCPU.
    pub(super) fn wake(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Parks until [`Self::wake`], or for as long as `limit`. Does not park where a kick or a nudge is there already: its
    /// wake may have come before.
    pub(super) fn park(&self, limit: Option<Duration>) {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        *woken = self.kicks.is_pending() || self.nudges.is_pending();
        while !*woken {
            woken = match deadline {
                None => self.wake.wait(woken).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.wake.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The machine, shared by vCPUs and lines: whoever is dropped last destroys it.
pub(super) struct Vm {
    pub(super) api: Arc<dyn Api>,
    /// The guest reaches this memory for as long as the machine exists.
    mem: Mem,
    pub(super) chip: Chip,
    power: Mutex<Power>,
    pub(super) seats: Vec<Arc<Seat>>,
    /// CNTVOFF of every vCPU.
    pub(super) offset: AtomicU64,
    gsis: u32,
}

impl Vm {
    pub(super) fn new(api: Arc<dyn Api>, plan: &Plan) -> Result<Self, Error> {
        if plan.gsis > MOST_SPIS {
            return Err(Error::Config(format!("{} interrupt lines; {MOST_SPIS} are possible", plan.gsis)));
        }
        for region in plan.mem.iter() {
            if !region.start_addr().raw_value().is_multiple_of(PAGE) || !region.len().is_multiple_of(PAGE) {
                return Err(Error::Config(format!(
                    "guest memory at {:#x} of {} bytes; here it begins and ends on pages of 16 KiB",
                    region.start_addr().raw_value(),
                    region.len()
                )));
            }
        }
        api.vm_create().map_err(failed(CREATING))?;
        // From here on the drop destroys it.
        let mut vm = Self {
            mem: Arc::clone(&plan.mem),
            chip: Chip::Own(Mutex::new(Gic::new(plan.cpus, plan.gsis))),
            power: Mutex::new(Power::new(plan.cpus)),
            seats: (0..plan.cpus).map(|_| Arc::default()).collect(),
            offset: AtomicU64::new(api.counter()),
            gsis: plan.gsis,
            api,
        };
        if vm.api.gic_sizes().is_some_and(|sizes| fits(sizes, plan.gsis)) {
            vm.api
                .gic_create(layout::GIC_DISTRIBUTOR, layout::GIC_REDISTRIBUTORS)
                .map_err(failed("creating the interrupt controller"))?;
            vm.chip = Chip::Host;
        }
        for region in vm.mem.iter() {
            let read_only = plan.read_only.contains(&region.start_addr());
            let flags = memory::READ | memory::EXEC | if read_only { 0 } else { memory::WRITE };
            vm.api.map(region, flags).map_err(failed("mapping guest memory"))?;
        }
        Ok(vm)
    }

    pub(super) fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes our own GIC, and tells the other vCPUs that have an interrupt to take now. `None`: it is the framework's.
    pub(super) fn with_gic<T>(&self, by: Option<u8>, change: impl FnOnce(&mut Gic) -> T) -> Option<T> {
        let Chip::Own(gic) = &self.chip else { return None };
        let mut gic = gic.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut gic);
        let waiting: Vec<_> = (0_u8..)
            .zip(&self.seats)
            .filter(|(index, _)| Some(*index) != by && gic.signal(*index).any())
            .map(|(_, seat)| seat)
            .collect();
        drop(gic);
        for seat in waiting {
            seat.nudges.nudge();
        }
        Some(result)
    }

    /// The frame of our own GIC at an address, and the offset into it.
    pub(super) fn gic_frame(&self, addr: u64) -> Option<(Frame, u64)> {
        if matches!(self.chip, Chip::Host) {
            return None;
        }
        if let Some(offset) = addr.checked_sub(layout::GIC_REDISTRIBUTORS) {
            let cpu = u8::try_from(offset / REDISTRIBUTOR_SIZE).ok()?;
            return (usize::from(cpu) < self.seats.len())
                .then_some((Frame::Redistributor(cpu), offset % REDISTRIBUTOR_SIZE));
        }
        let offset = addr.checked_sub(layout::GIC_DISTRIBUTOR)?;
        (offset < layout::GIC_DISTRIBUTOR_LEN).then_some((Frame::Distributor, offset))
    }
}

/// Whether the framework's GIC fits into the machine's layout. Where it claims more than there is room for, ours is used.
fn fits(sizes: super::api::GicSizes, gsis: u32) -> bool {
    let aligned = |base: u64| sizes.alignment != 0 && base.is_multiple_of(sizes.alignment);
    sizes.distributor <= layout::GIC_DISTRIBUTOR_LEN
        && sizes.redistributors <= layout::SERIAL - layout::GIC_REDISTRIBUTORS
        && aligned(layout::GIC_DISTRIBUTOR)
        && aligned(layout::GIC_REDISTRIBUTORS)
        && sizes.first_spi <= FIRST_SPI
        && u64::from(sizes.first_spi) + u64::from(sizes.spis) >= u64::from(FIRST_SPI) + u64::from(gsis)
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

/// A line into the interrupt controller.
struct Line {
    vm: Arc<Vm>,
    gsi: u32,
}

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        let vm = &self.vm;
        if vm.with_gic(None, |gic| gic.trigger(self.gsi)).is_some() {
            return Ok(());
        }
        let intid = FIRST_SPI + self.gsi;
        vm.api.gic_set_spi(intid, true)?;
        vm.api.gic_set_spi(intid, false)?;
        // The framework knows who gets it. One that is parked, or about to, must look; whether one is cannot be told from
        // here without a race, so all are asked.
        for seat in &vm.seats {
            seat.nudges.nudge();
        }
        Ok(())
    }
}
