//! What stopped a vCPU, and the answer to it (SDM vol. 3, 27.2 and appendix C).

use super::api::reg;
use super::cpuid::{self, Cpuid};
use super::failed;
use super::fields::{self, blocked, reason};
use super::registers::Event;
use super::vcpu::{Bound, LME};
use super::vm::Vm;
use crate::error::Error;
use crate::hv::x86::lapic::{self, Effect};
use crate::hv::x86::pic::Pics;
use crate::hv::x86::{self, AssistError, cr0, cr4, efer, exception, ioapic};
use crate::hv::{Exit, Fault, GuestIo};

/// CR0: what is not reserved.
const CR0_KNOWN: u64 = 0xe005_003f;
/// Rights of CS: 64-bit code.
const CS_LONG: u64 = 1 << 13;
/// EPT violation: an instruction fetch.
const FETCH: u64 = 1 << 2;
/// EPT violation: a write.
const WRITE: u64 = 1 << 1;

/// An access to a port (SDM vol. 3, table 27-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) size: usize,
    pub(super) input: bool,
    /// `ins` or `outs`.
    pub(super) string: bool,
}

impl Port {
    pub(super) fn from_qualification(value: u64) -> Self {
        Self {
            port: (value >> 16) as u16,
            // 1, 2 or 4; the others are reserved.
            size: match value & 7 {
                0 => 1,
                1 => 2,
                _ => 4,
            },
            input: value & 1 << 3 != 0,
            string: value & 1 << 4 != 0,
        }
    }
}

/// What an access to a control register does (SDM vol. 3, table 27-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlAccess {
    /// `mov` from a general register.
    Write { register: u8, from: u8 },
    /// `mov` to a general register.
    Read { register: u8, to: u8 },
    /// `clts`.
    ClearTaskSwitched,
    /// `lmsw` of this value.
    LoadStatus(u16),
}

impl ControlAccess {
    pub(super) fn from_qualification(value: u64) -> Self {
        let (register, general) = ((value & 0xf) as u8, (value >> 8 & 0xf) as u8);
        match value >> 4 & 3 {
            0 => Self::Write { register, from: general },
            1 => Self::Read { register, to: general },
            2 => Self::ClearTaskSwitched,
            _ => Self::LoadStatus((value >> 16) as u16),
        }
    }
}

impl Bound {
    /// Answers an exit; `Some` leaves the run.
    pub(super) fn step(&mut self, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        let why = self.field(fields::REASON)? as u32;
        if why & reason::FAILED != 0 {
            return self.fault(format!("the processor refused the registers (reason {:#x})", why & 0xffff));
        }
        match why & 0xffff {
            // The host's own, and deadlines and windows: the next round looks at what there is.
            reason::EXTERNAL_INTERRUPT | reason::INTERRUPT_WINDOW | reason::NMI_WINDOW | reason::TIMER => {}
            reason::EXCEPTION_OR_NMI => {
                let info = self.field(fields::EXIT_EVENT)? as u32;
                if info & fields::event::KIND != fields::event::NMI {
                    return self.fault(format!("an exception that was not asked for ({info:#x})"));
                }
            }
            reason::TRIPLE_FAULT => return Ok(Some(Exit::Reset)),
            reason::HLT => {
                self.advance()?;
                self.halted = true;
            }
            reason::CPUID => self.cpuid()?,
            reason::RDMSR => {
                let msr = self.reg(reg::RCX)? as u32;
                match self.read_msr(msr)? {
                    Some(value) => {
                        self.set_reg(reg::RAX, value & 0xffff_ffff)?;
                        self.set_reg(reg::RDX, value >> 32)?;
                        self.advance()?;
                    }
                    None => self.protection(),
                }
            }
            reason::WRMSR => {
                let msr = self.reg(reg::RCX)? as u32;
                let value = self.pair()?;
                if self.write_msr(msr, value)? { self.advance()? } else { self.protection() }
            }
            reason::CR => self.control()?,
            reason::XSETBV => self.set_xcr0()?,
            reason::PORT => {
                let port = Port::from_qualification(self.field(fields::QUALIFICATION)?);
                if port.string {
                    return self.access(io);
                }
                self.port(port, io)?;
            }
            reason::EPT_VIOLATION => return self.violation(io),
            // Memory is coherent, and hints are hints.
            reason::INVD | reason::WBINVD | reason::PAUSE => self.advance()?,
            reason::RDPMC => self.protection(),
            reason::GETSEC
            | reason::VMCALL..=reason::VMXON
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID => self.pending = Some(Event::exception(exception::UD, None)),
            other => return self.fault(format!("the framework stopped with exit reason {other}")),
        }
        Ok(None)
    }

    /// Behind the instruction that stopped it; STI and MOV SS hold interrupts back no longer.
    pub(super) fn advance(&self) -> Result<(), Error> {
        let length = self.field(fields::INSTRUCTION_LENGTH)? & 0xf;
        let rip = self.reg(reg::RIP)?.wrapping_add(length);
        let long = self.field(fields::EFER)? & efer::LMA != 0
            && self.field(fields::RIGHTS + 2 * fields::CS)? & CS_LONG != 0;
        self.set_reg(reg::RIP, if long { rip } else { rip & 0xffff_ffff })?;
        let held = self.field(fields::INTERRUPTIBILITY)?;
        let shadow = blocked::STI | blocked::MOV_SS;
        if held & shadow != 0 { self.set_field(fields::INTERRUPTIBILITY, held & !shadow) } else { Ok(()) }
    }

    /// #GP(0).
    fn protection(&mut self) {
        self.pending = Some(Event::exception(exception::GP, Some(0)));
    }

    /// EDX:EAX.
    fn pair(&self) -> Result<u64, Error> {
        Ok(self.reg(reg::RDX)? << 32 | self.reg(reg::RAX)? & 0xffff_ffff)
    }

    fn fault(&self, why: String) -> Result<Option<Exit>, Error> {
        Ok(Some(Exit::Fault(Fault { why, pc: Some(self.reg(reg::RIP)?), bytes: Vec::new() })))
    }

    fn cpuid(&self) -> Result<(), Error> {
        let (leaf, subleaf) = (self.reg(reg::RAX)? as u32, self.reg(reg::RCX)? as u32);
        let vm = &self.vm;
        let answers = Cpuid { api: &*vm.api, controls: vm.host.controls, index: self.index, cpus: vm.cpus() };
        let [a, b, c, d] = answers.answer(leaf, subleaf, self.field(fields::CR4)?, self.reg(reg::XCR0)?);
        for (name, value) in [(reg::RAX, a), (reg::RBX, b), (reg::RCX, c), (reg::RDX, d)] {
            self.set_reg(name, value.into())?;
        }
        self.advance()
    }

    /// XSETBV (SDM vol. 2): the x87 bit is set, AVX needs SSE, AVX-512 comes whole and needs AVX.
    fn set_xcr0(&mut self) -> Result<(), Error> {
        let (index, value) = (self.reg(reg::RCX)? as u32, self.pair()?);
        let level = self.field(fields::RIGHTS + 2 * fields::SS)? >> 5 & 3;
        let whole = |bits: u64, below: u64| value & bits == 0 || value & (bits | below) == bits | below;
        let valid = index == 0
            && level == 0
            && value & 1 != 0
            && value & !cpuid::xcr0(&*self.vm.api) == 0
            && whole(0x4, 0x2)
            && whole(0xe0, 0x6);
        if valid {
            self.set_reg(reg::XCR0, value)?;
            self.advance()
        } else {
            self.protection();
            Ok(())
        }
    }

    fn general(number: u8) -> u32 {
        reg::GENERAL.get(usize::from(number)).copied().unwrap_or(reg::RAX)
    }

    fn control(&mut self) -> Result<(), Error> {
        match ControlAccess::from_qualification(self.field(fields::QUALIFICATION)?) {
            ControlAccess::Write { register: 0, from } => {
                let value = self.reg(Self::general(from))?;
                self.write_cr0(value)
            }
            ControlAccess::Write { register: 3, from } => {
                // Bit 63 keeps translations; it is not a part of the register.
                let value = self.reg(Self::general(from))? & !(1 << 63);
                self.set_field(fields::CR3, value)?;
                self.vm.api.invalidate_tlb(self.id).map_err(failed("dropping translations"))?;
                self.advance()
            }
            ControlAccess::Write { register: 4, from } => {
                let value = self.reg(Self::general(from))?;
                // Other bits that may not be set are the processor's to refuse; VMX is not offered.
                if value & super::vcpu::VMXE != 0 || value >> 32 != 0 {
                    self.protection();
                    return Ok(());
                }
                self.set_cr4(value)?;
                self.advance()
            }
            ControlAccess::Write { register: 8, from } => {
                let value = self.reg(Self::general(from))?;
                if value > 0xf {
                    self.protection();
                    return Ok(());
                }
                self.vm.with_lapic(self.index, |chip| chip.set_task_priority(value as u8));
                self.advance()
            }
            ControlAccess::Read { register: 8, to } => {
                let class = self.vm.with_lapic(self.index, |chip| chip.task_priority());
                self.set_reg(Self::general(to), class.into())?;
                self.advance()
            }
            ControlAccess::Read { register: 3, to } => {
                let value = self.field(fields::CR3)?;
                self.set_reg(Self::general(to), value)?;
                self.advance()
            }
            ControlAccess::ClearTaskSwitched => {
                let value = self.cr0()? & !cr0::TS;
                self.write_cr0(value)
            }
            ControlAccess::LoadStatus(value) => {
                let old = self.cr0()?;
                // PE can be set and not cleared so.
                self.write_cr0(old & !0xe | u64::from(value) & 0xf)
            }
            ControlAccess::Write { .. } | ControlAccess::Read { .. } => {
                self.pending = Some(Event::exception(exception::UD, None));
                Ok(())
            }
        }
    }

    /// A write of CR0 with the checks of the processor (SDM vol. 3, 2.5 and 9.8.5).
    fn write_cr0(&mut self, value: u64) -> Result<(), Error> {
        use super::vcpu::{CD, NW};
        let (old, extended) = (self.cr0()?, self.field(fields::EFER)?);
        let long_code = self.field(fields::RIGHTS + 2 * fields::CS)? & CS_LONG != 0;
        let paging = |value: u64| value & cr0::PG != 0;
        let enters = paging(value) && !paging(old) && extended & LME != 0;
        let wrong = value >> 32 != 0
            || paging(value) && value & cr0::PE == 0
            || value & NW != 0 && value & CD == 0
            || enters && (self.field(fields::CR4)? & cr4::PAE == 0 || long_code)
            || !paging(value) && paging(old) && extended & efer::LMA != 0 && long_code;
        if wrong {
            self.protection();
            return Ok(());
        }
        // Reserved bits below 32 are ignored.
        self.set_cr0(value & CR0_KNOWN)?;
        self.advance()
    }

    fn port(&mut self, port: Port, io: &mut dyn GuestIo) -> Result<(), Error> {
        let old = self.reg(reg::RAX)?;
        let mut bytes = old.to_le_bytes();
        let mut chips = Chips { vm: &self.vm, index: self.index, io };
        let (data, _) = bytes.split_at_mut(port.size);
        if !port.input {
            chips.pio_out(port.port, data);
            return self.advance();
        }
        chips.pio_in(port.port, data);
        let new = u64::from_le_bytes(bytes);
        // One of 32 bits clears the rest.
        self.set_reg(reg::RAX, if port.size == 4 { new & 0xffff_ffff } else { new })?;
        self.advance()
    }

    fn violation(&mut self, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        let how = self.field(fields::QUALIFICATION)?;
        let gpa = self.field(fields::PHYSICAL_ADDRESS)?;
        match self.vm.ram_at(gpa) {
            // A page that the framework had not given the guest yet: it has by now.
            Some(writable) if writable || how & WRITE == 0 => Ok(None),
            None if how & FETCH != 0 => {
                self.fault(format!("the guest executes at {gpa:#x}, where there is no memory"))
            }
            _ => self.access(io),
        }
    }

    /// Carries out the access that the vCPU stands in front of.
    fn access(&mut self, io: &mut dyn GuestIo) -> Result<Option<Exit>, Error> {
        let vm = std::sync::Arc::clone(&self.vm);
        let mut chips = Chips { vm: &vm, index: self.index, io };
        match x86::access(&mut self.stopped(), &mut chips, &[]) {
            Ok(_) => Ok(None),
            Err(AssistError::Hypervisor { doing, source }) => Err(Error::Hypervisor { doing, source }),
            Err(AssistError::Unsupported { rip, bytes }) => Ok(Some(Exit::Fault(Fault {
                why: "the monitor knows no access to a device by this instruction".into(),
                pc: Some(rip),
                bytes: bytes.as_slice().to_vec(),
            }))),
            Err(error) => self.fault(error.to_string()),
        }
    }
}

/// The interrupt controllers in front of the monitor's devices.
struct Chips<'a> {
    vm: &'a Vm,
    index: u8,
    io: &'a mut dyn GuestIo,
}

/// Offset into a range of an address within it.
fn offset(addr: u64, base: u64, size: u64) -> Option<u64> {
    addr.checked_sub(base).filter(|offset| *offset < size)
}

impl GuestIo for Chips<'_> {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        if let Some(at) = offset(addr, lapic::BASE, lapic::SIZE) {
            let now = self.vm.api.now();
            self.vm.with_lapic(self.index, |chip| chip.read(at, data, now));
        } else if let Some(at) = offset(addr, ioapic::BASE, ioapic::SIZE) {
            self.vm.ioapic().read(at, data);
        } else {
            self.io.mmio_read(addr, data);
        }
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        if let Some(at) = offset(addr, lapic::BASE, lapic::SIZE) {
            let now = self.vm.api.now();
            let effect: Effect = self.vm.with_lapic(self.index, |chip| chip.write(at, data, now));
            self.vm.perform(self.index, effect);
        } else if let Some(at) = offset(addr, ioapic::BASE, ioapic::SIZE) {
            let message = self.vm.ioapic().write(at, data);
            if let Some(message) = message {
                self.vm.deliver(Some(self.index), message);
            }
        } else {
            self.io.mmio_write(addr, data);
        }
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        match data {
            [byte] if Pics::has(port) => *byte = self.vm.pics().read(port),
            _ => self.io.pio_in(port, data),
        }
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        match *data {
            [byte] if Pics::has(port) => self.vm.pics().write(port, byte),
            _ => self.io.pio_out(port, data),
        }
    }
}
