//! The stopped vCPU that the decoder works on, and the events that it takes.

use std::io;

use serde::{Deserialize, Serialize};

use super::api::{Api, VcpuId, reg};
use super::fields::{self, blocked, event};
use crate::hv::x86::ram::Ram;
use crate::hv::x86::{self, OutOfRam, Physical, Regs, Segment, Sregs, Table};

/// Rights of a segment: not loaded.
pub(super) const UNUSABLE: u32 = 1 << 16;

/// What the vCPU takes with its next entry (SDM vol. 3, 24.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) info: u32,
    pub(super) error: u32,
    /// Bytes of the instruction that raised it, for software interrupts.
    pub(super) length: u32,
}

impl Event {
    pub(super) fn interrupt(vector: u8) -> Self {
        Self { info: u32::from(vector) | event::INTERRUPT | event::VALID, error: 0, length: 0 }
    }

    pub(super) fn nmi() -> Self {
        Self { info: 2 | event::NMI | event::VALID, error: 0, length: 0 }
    }

    pub(super) fn exception(vector: u8, error_code: Option<u32>) -> Self {
        let error = if error_code.is_some() { event::ERROR } else { 0 };
        Self {
            info: u32::from(vector) | event::EXCEPTION | error | event::VALID,
            error: error_code.unwrap_or(0),
            length: 0,
        }
    }

    pub(super) fn is_nmi(self) -> bool {
        self.info & event::KIND == event::NMI
    }
}

/// A vCPU that is not running.
pub(super) struct Stopped<'a> {
    pub(super) api: &'a dyn Api,
    pub(super) id: VcpuId,
    pub(super) ram: Ram<'a>,
    pub(super) pending: &'a mut Option<Event>,
}

impl Stopped<'_> {
    fn field(&self, field: u32) -> io::Result<u64> {
        Ok(self.api.vmcs(self.id, field)?)
    }

    fn segment(&self, index: u32) -> io::Result<(Segment, u32)> {
        let rights = self.field(fields::RIGHTS + 2 * index)? as u32;
        let bit = |bit: u32| rights >> bit & 1 != 0;
        let segment = Segment {
            base: self.field(fields::BASE + 2 * index)?,
            limit: self.field(fields::LIMIT + 2 * index)? as u32,
            kind: (rights & 0xf) as u8,
            long: bit(13),
            big: bit(14),
            unusable: rights & UNUSABLE != 0 || !bit(7),
        };
        Ok((segment, rights))
    }

    /// A control register as the guest reads it: some bits of it are the shadow's.
    fn control(&self, value: u32, mask: u32, shadow: u32) -> io::Result<u64> {
        let mask = self.field(mask)?;
        Ok(self.field(value)? & !mask | self.field(shadow)? & mask)
    }
}

impl Physical for Stopped<'_> {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.ram.read_physical(gpa, buf)
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        self.ram.write_physical(gpa, data)
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        self.ram.compare_exchange_8(gpa, current, new)
    }
}

impl x86::Registers for Stopped<'_> {
    fn regs(&mut self) -> io::Result<Regs> {
        let mut regs = Regs {
            gpr: [0; 16],
            rip: self.api.reg(self.id, reg::RIP)?,
            rflags: self.api.reg(self.id, reg::RFLAGS)?,
        };
        for (value, name) in regs.gpr.iter_mut().zip(reg::GENERAL) {
            *value = self.api.reg(self.id, name)?;
        }
        Ok(regs)
    }

    fn set_regs(&mut self, regs: &Regs) -> io::Result<()> {
        for (value, name) in regs.gpr.into_iter().zip(reg::GENERAL) {
            self.api.set_reg(self.id, name, value)?;
        }
        self.api.set_reg(self.id, reg::RFLAGS, regs.rflags)?;
        self.api.set_reg(self.id, reg::RIP, regs.rip)?;
        // An instruction was carried out: STI and MOV SS hold interrupts back no longer.
        let blocking = self.field(fields::INTERRUPTIBILITY)?;
        if blocking & (blocked::STI | blocked::MOV_SS) != 0 {
            let rest = blocking & !(blocked::STI | blocked::MOV_SS);
            self.api.set_vmcs(self.id, fields::INTERRUPTIBILITY, rest)?;
        }
        Ok(())
    }

    fn sregs(&mut self) -> io::Result<Sregs> {
        let (ldtr, _) = self.segment(fields::LDTR)?;
        let (ss, rights) = self.segment(fields::SS)?;
        Ok(Sregs {
            cs: self.segment(fields::CS)?.0,
            ss,
            ds: self.segment(fields::DS)?.0,
            es: self.segment(fields::ES)?.0,
            fs: self.segment(fields::FS)?.0,
            gs: self.segment(fields::GS)?.0,
            gdt: Table {
                base: self.field(fields::GDTR_BASE)?,
                limit: self.field(fields::GDTR_LIMIT)? as u32 & 0xffff,
            },
            ldt: Table { base: ldtr.base, limit: if ldtr.unusable { 0 } else { ldtr.limit } },
            cr0: self.control(fields::CR0, fields::CR0_MASK, fields::CR0_SHADOW)?,
            cr3: self.field(fields::CR3)?,
            cr4: self.control(fields::CR4, fields::CR4_MASK, fields::CR4_SHADOW)?,
            efer: self.field(fields::EFER)?,
            cpl: (rights >> 5 & 3) as u8,
            // The processor has walked the tables already and found no reserved bit set.
            physical_bits: 52,
        })
    }

    fn inject(&mut self, event: &x86::Event) -> io::Result<()> {
        *self.pending = Some(match *event {
            x86::Event::Exception { vector, error_code } => Event::exception(vector, error_code),
            x86::Event::PageFault { address, error_code } => {
                self.api.set_reg(self.id, reg::CR2, address)?;
                Event::exception(x86::exception::PF, Some(error_code))
            }
            x86::Event::Interrupt { vector } => {
                return Err(io::Error::other(format!(
                    "an access does not end in software interrupt {vector}"
                )));
            }
        });
        Ok(())
    }
}
