//! A virtual CPU: entering it, and answering what it traps.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::api::{HvError, Raw, RawExit, VcpuId, reason, reg, sys};
use super::vm::{Chip, Seat, Vm};
use super::{failed, state};
use crate::error::Error;
use crate::hv::arm64::esr::{self, Access, Data, Register, Syndrome, XZR};
use crate::hv::arm64::gic::FIRST_SPI;
use crate::hv::arm64::psci::Call;
use crate::hv::{Entry, Exit, Fault, GuestIo, Kick, Vcpu, VcpuSlot, VcpuState};
use crate::layout::aarch64::VIRTUAL_TIMER_PPI;

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;
/// PSTATE at the first instruction: EL1 with its own stack, all interrupts masked.
const EL1H_MASKED: u64 = 0x3c5;
/// MPIDR_EL1: bit 31 reads as one.
const MPIDR: u64 = 1 << 31;
/// CNTV_CTL_EL0: enabled.
const TIMER_ENABLE: u64 = 1;
/// CNTV_CTL_EL0: masked.
const TIMER_MASK: u64 = 1 << 1;
/// CNTV_CTL_EL0: the condition is met.
const TIMER_STATUS: u64 = 1 << 2;
/// The virtual timer's interrupt.
const TIMER_INTID: u32 = FIRST_SPI / 2 + VIRTUAL_TIMER_PPI;
/// PSCI: no such function.
const NOT_SUPPORTED: u64 = u64::MAX;
/// With the framework's GIC an interrupt from another vCPU is not seen from outside: a parked one looks again after this.
const NAP: Duration = Duration::from_millis(4);

/// Registers of the debug architecture that guests lock and unlock at boot: OSLAR_EL1, OSDLR_EL1.
const LOCKS: [Register; 2] = [Register::new(2, 0, 1, 0, 4), Register::new(2, 0, 1, 3, 4)];

/// A vCPU on its way to its thread, which will make it.
pub(super) struct Slot {
    vm: Arc<Vm>,
    index: u8,
    seat: Arc<Seat>,
}

impl Slot {
    pub(super) fn new(vm: &Arc<Vm>, index: u8) -> Self {
        let seat = vm.seats.get(usize::from(index)).cloned().unwrap_or_default();
        Self { vm: Arc::clone(vm), index, seat }
    }
}

impl VcpuSlot for Slot {
    fn index(&self) -> u8 {
        self.index
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.seat.kicks) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error> {
        let Self { vm, index, seat } = *self;
        let id = vm.api.vcpu_create().map_err(failed("creating a virtual CPU"))?;
        let mut vcpu = Bound {
            vm: Arc::clone(&vm),
            index,
            seat: Arc::clone(&seat),
            id,
            reset_control: 0,
            timer_masked: false,
            pending: false,
            not_send: PhantomData,
        };
        // From here on the drop destroys it.
        for kicks in [&*seat.kicks, &seat.nudges] {
            let (api, seat) = (Arc::clone(&vm.api), Arc::downgrade(&seat));
            kicks.bind(move || {
                if let Some(seat) = seat.upgrade() {
                    seat.wake();
                }
                if let Err(error) = api.exit(id) {
                    log::error!("cancelling a virtual CPU: {error}");
                }
            });
        }
        vcpu.reset_control = vcpu.sys(sys::SCTLR_EL1)?;
        vcpu.set_sys(sys::MPIDR_EL1, MPIDR | u64::from(index))?;
        vcpu.set_offset()?;
        Ok(Box::new(vcpu))
    }
}

/// A vCPU on its thread.
pub(super) struct Bound {
    pub(super) vm: Arc<Vm>,
    index: u8,
    seat: Arc<Seat>,
    pub(super) id: VcpuId,
    /// SCTLR_EL1 as the framework made it: the MMU is off.
    reset_control: u64,
    /// The framework masked the virtual timer when it fired.
    pub(super) timer_masked: bool,
    /// The last entry had an interrupt pending.
    pending: bool,
    /// The framework's rule.
    not_send: PhantomData<*mut ()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.seat.kicks.unbind();
        self.seat.nudges.unbind();
        if let Err(error) = self.vm.api.vcpu_destroy(self.id) {
            log::error!("destroying a virtual CPU: {error}");
        }
    }
}

impl Bound {
    fn reg(&self, number: u32) -> Result<u64, Error> {
        self.vm.api.reg(self.id, number).map_err(failed("reading a register"))
    }

    fn set_reg(&self, number: u32, value: u64) -> Result<(), Error> {
        self.vm.api.set_reg(self.id, number, value).map_err(failed("setting a register"))
    }

    fn sys(&self, register: u16) -> Result<u64, Error> {
        self.vm.api.sys_reg(self.id, register).map_err(failed("reading a system register"))
    }

    fn set_sys(&self, register: u16, value: u64) -> Result<(), Error> {
        self.vm.api.set_sys_reg(self.id, register, value).map_err(failed("setting a system register"))
    }

    /// A general register by its number in an instruction.
    fn x(&self, number: u8) -> Result<u64, Error> {
        if number == XZR { Ok(0) } else { self.reg(number.into()) }
    }

    fn set_x(&self, number: u8, value: u64) -> Result<(), Error> {
        if number == XZR { Ok(()) } else { self.set_reg(number.into(), value) }
    }

    fn advance(&self) -> Result<(), Error> {
        let pc = self.reg(reg::PC)?;
        self.set_reg(reg::PC, pc.wrapping_add(INSTRUCTION))
    }

    pub(super) fn set_offset(&self) -> Result<(), Error> {
        let offset = self.vm.offset.load(Ordering::Acquire);
        self.vm.api.set_vtimer_offset(self.id, offset).map_err(failed("setting the virtual clock"))
    }

    /// Takes the timer's line down when the guest has dealt with it, and lets it fire again.
    fn sync_timer(&mut self) -> Result<(), Error> {
        if !self.timer_masked {
            return Ok(());
        }
        let control = self.sys(sys::CNTV_CTL_EL0)?;
        let fires = control & (TIMER_ENABLE | TIMER_MASK | TIMER_STATUS) == TIMER_ENABLE | TIMER_STATUS;
        let index = self.index;
        self.vm.with_gic(Some(index), |gic| gic.set_level(index, TIMER_INTID, fires));
        if !fires {
            self.vm.api.set_vtimer_mask(self.id, false).map_err(failed("unmasking the timer"))?;
            self.timer_masked = false;
        }
        Ok(())
    }

    /// Shows the vCPU the interrupt that it has to take, if any.
    fn show_interrupts(&mut self) -> Result<(), Error> {
        let index = self.index;
        let Some(signal) = self.vm.with_gic(Some(index), |gic| gic.signal(index)) else { return Ok(()) };
        if signal.any() || self.pending {
            let result = self.vm.api.set_pending(self.id, signal.irq, signal.fiq);
            result.map_err(failed("raising an interrupt"))?;
        }
        self.pending = signal.any();
        Ok(())
    }

    /// Calls `enter`, which kicks and nudges end; `None`: there is one already.
    fn enter<T>(&self, enter: impl FnOnce() -> T) -> Option<T> {
        self.seat.kicks.enter(|| self.seat.nudges.enter(enter)).flatten()
    }

    /// Waits for an interrupt.
    fn park(&mut self) -> Result<(), Error> {
        self.sync_timer()?;
        let index = self.index;
        if self.vm.with_gic(Some(index), |gic| gic.signal(index).any()) == Some(true) {
            return Ok(());
        }
        let control = self.sys(sys::CNTV_CTL_EL0)?;
        let mut limit = None;
        if control & (TIMER_ENABLE | TIMER_MASK) == TIMER_ENABLE {
            let due = self.sys(sys::CNTV_CVAL_EL0)?;
            let api = &self.vm.api;
            let now = api.counter().wrapping_sub(self.vm.offset.load(Ordering::Acquire));
            let Some(ticks) = due.checked_sub(now).filter(|ticks| *ticks > 0) else { return Ok(()) };
            let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(api.counter_hz().max(1));
            limit = Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        }
        if matches!(self.vm.chip, Chip::Host) && self.vm.seats.len() > 1 {
            limit = Some(limit.map_or(NAP, |limit| limit.min(NAP)));
        }
        self.enter(|| self.seat.park(limit));
        Ok(())
    }

    /// Answers an exit; `Some` leaves the run.
    fn step(&mut self, exit: RawExit, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        match exit.reason {
            reason::CANCELED => Ok(None),
            reason::EXCEPTION => self.exception(exit, io),
            reason::VTIMER_ACTIVATED => {
                self.timer_masked = true;
                let index = self.index;
                self.vm.with_gic(Some(index), |gic| gic.set_level(index, TIMER_INTID, true));
                Ok(None)
            }
            other => self.fault(format!("the framework stopped with exit reason {other}")),
        }
    }

    fn exception(&mut self, exit: RawExit, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        match esr::decode(exit.syndrome) {
            Syndrome::Wait { event } => {
                self.advance()?;
                if event {
                    std::thread::yield_now();
                } else {
                    self.park()?;
                }
                Ok(None)
            }
            Syndrome::Hvc(number) => self.call(number),
            Syndrome::Smc(number) => {
                self.advance()?;
                self.call(number)
            }
            Syndrome::Register(access) => self.register(access).map(|()| None),
            Syndrome::Data(data) => self.data(exit, data, io),
            Syndrome::Instruction => {
                let at = exit.physical_address;
                self.fault(format!("the guest executes at {at:#x}, where there is no memory"))
            }
            Syndrome::Debug => self.fault("the guest raised a debug exception of the host's".to_owned()),
            Syndrome::Other(class) => {
                let syndrome = exit.syndrome;
                self.fault(format!("an exception of class {class:#x} (syndrome {syndrome:#x})"))
            }
        }
    }

    /// PSCI, by either instruction.
    fn call(&mut self, number: u16) -> Result<Option<Exit>, Error> {
        let arguments = [self.reg(0)?, self.reg(1)?, self.reg(2)?, self.reg(3)?];
        let call = if number == 0 {
            self.vm.power().call(self.index, arguments)
        } else {
            Call::Return(NOT_SUPPORTED)
        };
        match call {
            Call::Return(value) => self.set_reg(reg::X0, value)?,
            Call::Suspend => {
                self.set_reg(reg::X0, 0)?;
                self.park()?;
            }
            Call::CpuOn { cpu, entry, context } => {
                self.set_reg(reg::X0, 0)?;
                return Ok(Some(Exit::CpuOn { cpu, entry, context }));
            }
            Call::CpuOff => return Ok(Some(Exit::CpuOff)),
            Call::Off => return Ok(Some(Exit::Off)),
            Call::Reset => return Ok(Some(Exit::Reset)),
        }
        Ok(None)
    }

    fn register(&mut self, access: Access) -> Result<(), Error> {
        let (index, register) = (self.index, access.register);
        let known = if access.write {
            let value = self.x(access.rt)?;
            LOCKS.contains(&register)
                || self.vm.with_gic(Some(index), |gic| gic.write_register(index, register, value))
                    == Some(true)
        } else {
            match self.vm.with_gic(Some(index), |gic| gic.read_register(index, register)).flatten() {
                Some(value) => {
                    self.set_x(access.rt, value)?;
                    true
                }
                None => false,
            }
        };
        if known {
            return self.advance();
        }
        log::debug!("the guest has no system register {register}");
        self.undefined()
    }

    /// Raises an undefined-instruction exception in the guest (DDI 0487, D1.3).
    fn undefined(&self) -> Result<(), Error> {
        /// ESR_EL1: unknown reason, an instruction of 32 bits.
        const UNKNOWN: u64 = 1 << 25;
        let state = self.reg(reg::CPSR)?;
        let pc = self.reg(reg::PC)?;
        // From EL1 with its own stack, with that of EL0, or from EL0.
        let vector = match state & 0xf {
            0x5 => 0x200,
            0x4 => 0,
            _ => 0x400,
        };
        self.set_sys(sys::SPSR_EL1, state)?;
        self.set_sys(sys::ELR_EL1, pc)?;
        self.set_sys(sys::ESR_EL1, UNKNOWN)?;
        self.set_reg(reg::CPSR, EL1H_MASKED)?;
        let base = self.sys(sys::VBAR_EL1)?;
        self.set_reg(reg::PC, base.wrapping_add(vector))
    }

    /// A load or store that is not of RAM, or a store to RAM that may only be read.
    fn data(&mut self, exit: RawExit, data: Data, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        let addr = exit.physical_address;
        if data.walk {
            return self.fault(format!("the guest's page tables are at {addr:#x}, where there is no memory"));
        }
        if data.cache {
            self.advance()?;
            return Ok(None);
        }
        let Some(transfer) = data.transfer else {
            return self.fault(format!(
                "the guest reaches the device at {addr:#x} by an instruction that the processor does not describe"
            ));
        };
        let size = usize::from(transfer.size);
        let mut bytes = [0; 8];
        if data.write {
            bytes = self.x(transfer.rt)?.to_le_bytes();
        }
        let (part, _) = bytes.split_at_mut(size.min(8));
        let index = self.index;
        match (self.vm.gic_frame(addr), data.write) {
            (Some((frame, offset)), true) => {
                self.vm.with_gic(Some(index), |gic| gic.write(frame, offset, part));
            }
            (Some((frame, offset)), false) => {
                self.vm.with_gic(Some(index), |gic| gic.read(frame, offset, part));
            }
            (None, true) => io.mmio_write(addr, part),
            (None, false) => io.mmio_read(addr, part),
        }
        if !data.write {
            self.set_x(transfer.rt, transfer.extend(u64::from_le_bytes(bytes)))?;
        }
        self.advance()?;
        Ok(None)
    }

    fn fault(&self, why: String) -> Result<Option<Exit>, Error> {
        Ok(Some(Exit::Fault(Fault { why, pc: Some(self.reg(reg::PC)?), bytes: Vec::new() })))
    }
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        let Entry::Arm64(entry) = entry else {
            return Err(Error::Unsupported {
                what: "an x86_64 entry",
                why: "this vCPU is arm64; take a kernel for arm64".to_owned(),
            });
        };
        // A vCPU that was off may have had the MMU on.
        self.set_sys(sys::SCTLR_EL1, self.reset_control)?;
        for number in reg::X0..reg::PC {
            self.set_reg(number, 0)?;
        }
        self.set_reg(reg::X0, entry.x0)?;
        self.set_reg(reg::PC, entry.pc)?;
        self.set_reg(reg::CPSR, EL1H_MASKED)
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        loop {
            if self.seat.kicks.take() {
                return Ok(Exit::Kicked);
            }
            self.seat.nudges.take();
            self.sync_timer()?;
            self.show_interrupts()?;
            let entered: Option<Raw<RawExit>> = self.enter(|| self.vm.api.run(self.id));
            let Some(exit) = entered else { continue };
            let exit = exit.map_err(|error: HvError| failed("running a vCPU")(error))?;
            if let Some(exit) = self.step(exit, io)? {
                return Ok(exit);
            }
        }
    }

    fn program_counter(&mut self) -> Result<u64, Error> {
        self.reg(reg::PC)
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        state::save_vcpu(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        state::restore_vcpu(self, state)
    }
}
