//! One instruction on its way: the registers it works on, its operands, and how it may end.
//!
//! Everything is done on copies; [`Exec::retire`] commits them when the instruction is through.

use std::io;

use iced_x86::{Instruction, OpKind, Register};

use super::cpu::{Cpu, OutOfRam, Registers};
use super::paging::{self, Access, Kind, Miss};
use super::regs::{Event, Regs, Segment, Sregs, cr0, rflags, vector};
use super::{AssistError, Bytes, LONGEST_INSTRUCTION};

/// Bytes of a page, the unit in which linear ranges are translated.
const PAGE: u64 = 4096;

/// How an instruction ends when it does not simply end.
#[derive(Debug)]
pub(super) enum Stop {
    /// In an exception that returns to it.
    Fault(Event),
    /// In an exception or interrupt that returns behind it.
    Trap(Event),
    /// Not now.
    Retry,
    /// Not at all.
    Error(AssistError),
}

impl Stop {
    /// #UD.
    pub(super) fn undefined() -> Self {
        Self::Fault(Event::Exception { vector: vector::UD, error_code: None })
    }

    /// #NM.
    pub(super) fn not_available() -> Self {
        Self::Fault(Event::Exception { vector: vector::NM, error_code: None })
    }

    /// #GP.
    pub(super) fn protection(code: u32) -> Self {
        Self::Fault(Event::Exception { vector: vector::GP, error_code: Some(code) })
    }
}

impl From<AssistError> for Stop {
    fn from(error: AssistError) -> Self {
        Self::Error(error)
    }
}

/// Whether the register is the second byte of a general one.
fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// A linear range whose pages were translated and checked.
pub(super) struct Span {
    /// (guest-physical address, length) of each piece within one page, in order.
    pub(super) pieces: Vec<(u64, usize)>,
}

/// One instruction on its way.
pub(super) struct Exec<'a, C: Registers + ?Sized = dyn Cpu + 'a> {
    pub(super) cpu: &'a mut C,
    pub(super) regs: Regs,
    pub(super) sregs: Sregs,
    pub(super) insn: Instruction,
    pub(super) bytes: Bytes,
}

impl Exec<'_> {
    /// Names the hypervisor's error.
    pub(super) fn host<T>(doing: &'static str, result: io::Result<T>) -> Result<T, Stop> {
        result.map_err(|source| AssistError::Hypervisor { doing, source }.into())
    }
}

impl<'a, C: Registers + ?Sized> Exec<'a, C> {
    pub(super) fn new(cpu: &'a mut C, regs: Regs, sregs: Sregs, bytes: Bytes) -> Self {
        Self { cpu, regs, sregs, insn: Instruction::default(), bytes }
    }

    /// The instruction is known to the decoder only.
    pub(super) fn unsupported(&self) -> AssistError {
        AssistError::Unsupported { rip: self.regs.rip, bytes: self.bytes }
    }

    /// Commits the registers, RIP behind the instruction.
    pub(super) fn retire(&mut self) -> Result<(), AssistError> {
        self.regs.rip = match self.sregs.bitness() {
            64 => self.insn.next_ip(),
            32 => u64::from(self.insn.next_ip() as u32),
            _ => u64::from(self.insn.next_ip() as u16),
        };
        self.regs.rflags &= !rflags::RF;
        let result = self.cpu.set_regs(&self.regs);
        result.map_err(|source| AssistError::Hypervisor { doing: "set the registers", source })
    }

    pub(super) fn inject(&mut self, event: Event) -> Result<(), AssistError> {
        let result = self.cpu.inject(&event);
        result.map_err(|source| AssistError::Hypervisor { doing: "inject an exception", source })
    }

    /// Fetches one more byte of the instruction.
    pub(super) fn fetch_one(&mut self) -> Result<(), Stop> {
        let known = self.bytes.as_slice().len().min(LONGEST_INSTRUCTION) as u64;
        let offset = self.regs.rip.wrapping_add(known);
        let linear =
            if self.sregs.is_64() { offset } else { self.sregs.cs.base.wrapping_add(offset) & 0xffff_ffff };
        let span = self.translate(linear, 1, Kind::Execute)?;
        let mut byte = [0];
        self.read_span(&span, &mut byte)?;
        self.bytes.append(&byte);
        Ok(())
    }

    /// Whether the operand is in memory.
    pub(super) fn is_memory(&self, operand: u32) -> bool {
        self.insn.op_count() > operand && self.insn.op_kind(operand) == OpKind::Memory
    }

    /// Bytes of the operand: its register, or what the instruction says of its memory.
    pub(super) fn size(&self, operand: u32) -> usize {
        if self.is_memory(operand) {
            self.insn.memory_size().size()
        } else {
            self.insn.op_register(operand).size()
        }
    }

    /// A general register or part of one, zero-extended.
    pub(super) fn gpr(&self, register: Register) -> u64 {
        let full = register.full_register();
        if !full.is_gpr64() {
            return 0;
        }
        let value = self.regs.gpr.get(full.number()).copied().unwrap_or_default();
        match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => value & 0xffff,
            _ if is_high(register) => value >> 8 & 0xff,
            _ => value & 0xff,
        }
    }

    /// Sets a general register, or a part of one; 4 bytes clear the upper half.
    pub(super) fn set_gpr(&mut self, register: Register, value: u64) {
        let full = register.full_register();
        if !full.is_gpr64() {
            return;
        }
        if let Some(slot) = self.regs.gpr.get_mut(full.number()) {
            *slot = match register.size() {
                8 => value,
                4 => value & 0xffff_ffff,
                2 => (*slot & !0xffff) | (value & 0xffff),
                _ if is_high(register) => (*slot & !0xff00) | (value & 0xff) << 8,
                _ => (*slot & !0xff) | (value & 0xff),
            };
        }
    }

    /// The value of a register or memory operand of at most 8 bytes, zero-extended.
    pub(super) fn read(&mut self, operand: u32) -> Result<u64, Stop> {
        if !self.is_memory(operand) {
            return Ok(self.gpr(self.insn.op_register(operand)));
        }
        let mut bytes = [0; 8];
        let size = self.size(operand).min(8);
        if let Some(buf) = bytes.get_mut(..size) {
            self.read_memory(operand, buf)?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// The bytes of a memory operand, from its beginning.
    pub(super) fn read_memory(&mut self, operand: u32, buf: &mut [u8]) -> Result<(), Stop> {
        let linear = self.address(operand, buf.len() as u64, Kind::Read)?;
        let span = self.translate(linear, buf.len(), Kind::Read)?;
        self.read_span(&span, buf)
    }

    /// Stores to a memory operand, from its beginning.
    pub(super) fn write_memory(&mut self, operand: u32, data: &[u8]) -> Result<(), Stop> {
        let linear = self.address(operand, data.len() as u64, Kind::Write)?;
        let span = self.translate(linear, data.len(), Kind::Write)?;
        self.write_span(&span, data)
    }

    /// The linear address of a memory operand whose first `len` bytes will be accessed. Segment checks are made here, that
    /// the address is canonical is checked with the translation.
    pub(super) fn address(&self, operand: u32, len: u64, kind: Kind) -> Result<u64, Stop> {
        let offset = self.insn.virtual_address(operand, 0, |register, _, _| {
            // The base is added below: limits are checked on the offset.
            Some(if register.is_segment_register() { 0 } else { self.gpr(register) })
        });
        let Some(offset) = offset else {
            return Err(self.unsupported().into());
        };
        self.linear(self.insn.memory_segment(), offset, len, kind)
    }

    /// The linear address of `len` bytes at `offset` of a segment.
    pub(super) fn linear(&self, register: Register, offset: u64, len: u64, kind: Kind) -> Result<u64, Stop> {
        if self.sregs.is_64() {
            let base = match register {
                Register::FS => self.sregs.fs.base,
                Register::GS => self.sregs.gs.base,
                _ => 0,
            };
            return Ok(base.wrapping_add(offset));
        }
        let segment = match register {
            Register::CS => &self.sregs.cs,
            Register::SS => &self.sregs.ss,
            Register::ES => &self.sregs.es,
            Register::FS => &self.sregs.fs,
            Register::GS => &self.sregs.gs,
            _ => &self.sregs.ds,
        };
        if !self.within(segment, offset, len, kind) {
            let vector = if register == Register::SS { vector::SS } else { vector::GP };
            return Err(Stop::Fault(Event::Exception { vector, error_code: Some(0) }));
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Type and limit of a segment outside 64-bit mode (SDM vol. 3, 5.3 and 5.5).
    fn within(&self, segment: &Segment, offset: u64, len: u64, kind: Kind) -> bool {
        let last = offset.saturating_add(len.saturating_sub(1));
        let limit = u64::from(segment.limit);
        if self.sregs.cr0 & cr0::PE == 0 {
            return last <= limit;
        }
        let code = segment.kind & 8 != 0;
        let writable = !code && segment.kind & 2 != 0;
        let readable = !code || segment.kind & 2 != 0;
        let allowed = match kind {
            Kind::Write => writable,
            Kind::Read => readable,
            Kind::Execute => code,
        };
        let expands_down = !code && segment.kind & 4 != 0;
        let inside = if expands_down {
            let top = if segment.big { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        allowed && inside && !segment.unusable
    }

    /// Translates a linear range, every page of it, for one kind of access.
    pub(super) fn translate(&mut self, linear: u64, len: usize, kind: Kind) -> Result<Span, Stop> {
        let access = Access { kind, user: self.sregs.cpl == 3 };
        let state = paging::State {
            cr0: self.sregs.cr0,
            cr3: self.sregs.cr3,
            cr4: self.sregs.cr4,
            efer: self.sregs.efer,
            rflags: self.regs.rflags,
            physical_bits: self.sregs.physical_bits,
        };
        let mut pieces = Vec::with_capacity(2);
        let mut done = 0;
        while done < len {
            let mut at = linear.wrapping_add(done as u64);
            if !self.sregs.is_64() {
                at &= 0xffff_ffff;
            }
            let room = (PAGE - at % PAGE) as usize;
            let piece = room.min(len - done);
            let gpa = match paging::translate(self.cpu, &state, at, access) {
                Ok(gpa) => gpa,
                Err(miss) => return Err(self.missed(miss)),
            };
            pieces.push((gpa, piece));
            done += piece;
        }
        Ok(Span { pieces })
    }

    fn missed(&self, miss: Miss) -> Stop {
        let rip = self.regs.rip;
        match miss {
            Miss::Fault { address, error_code } => Stop::Fault(Event::PageFault { address, error_code }),
            Miss::NotCanonical
                if self.insn.memory_segment() == Register::SS
                    && self.insn.segment_prefix() == Register::None =>
            {
                Stop::Fault(Event::Exception { vector: vector::SS, error_code: Some(0) })
            }
            Miss::NotCanonical => Stop::protection(0),
            Miss::OutOfRam(OutOfRam { gpa }) => AssistError::NotRam { rip, gpa }.into(),
            Miss::LegacyPaging => AssistError::LegacyPaging { rip }.into(),
            Miss::Raced => Stop::Retry,
        }
    }

    /// The one guest-physical address of a range that lies within a page.
    pub(super) fn single(&self, span: &Span) -> Option<u64> {
        match span.pieces.as_slice() {
            [(gpa, _)] => Some(*gpa),
            _ => None,
        }
    }

    pub(super) fn not_ram(&self, error: OutOfRam) -> Stop {
        AssistError::NotRam { rip: self.regs.rip, gpa: error.gpa }.into()
    }

    /// Reads a translated range.
    pub(super) fn read_span(&mut self, span: &Span, buf: &mut [u8]) -> Result<(), Stop> {
        let mut rest = buf;
        for &(gpa, len) in &span.pieces {
            let (piece, after) = rest.split_at_mut(len.min(rest.len()));
            self.cpu.read_physical(gpa, piece).map_err(|error| self.not_ram(error))?;
            rest = after;
        }
        Ok(())
    }

    /// Writes a translated range.
    pub(super) fn write_span(&mut self, span: &Span, data: &[u8]) -> Result<(), Stop> {
        let mut rest = data;
        for &(gpa, len) in &span.pieces {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            self.cpu.write_physical(gpa, piece).map_err(|error| self.not_ram(error))?;
            rest = after;
        }
        Ok(())
    }

    /// Sets those status flags of `mask` that are in `to`, and clears the others of it.
    pub(super) fn set_flags(&mut self, mask: u64, to: u64) {
        self.regs.rflags = (self.regs.rflags & !mask) | (to & mask);
    }
}
