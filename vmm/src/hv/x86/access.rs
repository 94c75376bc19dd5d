//! Accesses to devices, for hypervisors that report them undecoded (WHP, Hypervisor.framework on x86_64).
//!
//! KVM decodes an access to memory that is not RAM by itself. The other two stop the vCPU in front of the instruction, and
//! [`access`] carries it out: the operand that is RAM goes to RAM, the one that is not to the [`GuestIo`]. String
//! operations come here too, port accesses among them. What a driver does to a register is known: moves, arithmetic on
//! memory, bit tests, exchanges, strings; vector moves and others are a typed error.

use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::cpu::Registers;
use super::exec::{Exec, Stop};
use super::paging::Kind;
use super::regs::rflags;
use super::{AssistError, Bytes, Outcome, decode};
use crate::hv::GuestIo;

/// RFLAGS.DF: strings go down.
const DF: u64 = 1 << 10;
/// The most items of a string between two looks at kicks and interrupts.
const ITEMS: usize = 4096;

/// Carries out the access that a vCPU stopped in front of: memory that is not RAM (or may not be written) and ports go to
/// `io`. `bytes` is what the hypervisor showed of the instruction; what is missing is fetched.
///
/// # Errors
///
/// [`AssistError`]: the instruction is none that accesses devices, its page tables are outside RAM, or the hypervisor
/// failed. The vCPU is then still in front of the instruction.
pub fn access<C: Registers + ?Sized>(
    cpu: &mut C,
    io: &mut dyn GuestIo,
    bytes: &[u8],
) -> Result<Outcome, AssistError> {
    let host = |doing| move |source| AssistError::Hypervisor { doing, source };
    let regs = cpu.regs().map_err(host("read the registers"))?;
    let sregs = cpu.sregs().map_err(host("read the system registers"))?;
    let mut exec = Exec::new(cpu, regs, sregs, Bytes::new(bytes));
    let mut bus = Bus { exec: &mut exec, io };
    match bus.run() {
        Ok(Progress::Through) => exec.retire().map(|()| Outcome::Done),
        Ok(Progress::Partly) => {
            let regs = exec.regs;
            exec.cpu.set_regs(&regs).map_err(host("set the registers"))?;
            Ok(Outcome::Partly)
        }
        Err(Stop::Fault(event)) => exec.inject(event).map(|()| Outcome::Injected(event)),
        Err(Stop::Trap(event)) => {
            exec.retire()?;
            exec.inject(event).map(|()| Outcome::Injected(event))
        }
        Err(Stop::Retry) => Ok(Outcome::Retry),
        Err(Stop::Error(error)) => Err(error),
    }
}

/// How far an instruction got.
enum Progress {
    Through,
    /// Registers stand where the rest begins.
    Partly,
}

/// One instruction, and where its accesses go.
struct Bus<'b, 'a, C: Registers + ?Sized> {
    exec: &'b mut Exec<'a, C>,
    io: &'b mut dyn GuestIo,
}

impl<C: Registers + ?Sized> Bus<'_, '_, C> {
    fn run(&mut self) -> Result<Progress, Stop> {
        decode(self.exec)?;
        match self.exec.insn.mnemonic() {
            Mnemonic::INVALID | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
                return Err(Stop::undefined());
            }
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movzx => self.copy(|value, _| value)?,
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                self.copy(|value, size| ((value << (64 - 8 * size)) as i64 >> (64 - 8 * size)) as u64)?;
            }
            Mnemonic::Movbe => self.copy(|value, size| value.swap_bytes() >> (64 - 8 * size))?,
            Mnemonic::Add | Mnemonic::Or | Mnemonic::Adc | Mnemonic::Sbb | Mnemonic::And => {
                self.arithmetic()?
            }
            Mnemonic::Sub | Mnemonic::Xor | Mnemonic::Cmp | Mnemonic::Test => self.arithmetic()?,
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => self.unary()?,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit()?,
            Mnemonic::Xchg | Mnemonic::Xadd => self.exchange()?,
            Mnemonic::Cmpxchg => self.compare_exchange()?,
            Mnemonic::In | Mnemonic::Out => self.port()?,
            _ => return self.string(),
        }
        Ok(Progress::Through)
    }

    // ---- operands -------------------------------------------------------------------------------------------------

    /// Bytes of the operand, 1 to 8.
    fn size(&self, operand: u32) -> Result<usize, Stop> {
        match self.exec.size(operand) {
            size @ (1 | 2 | 4 | 8) => Ok(size),
            _ => Err(self.exec.unsupported().into()),
        }
    }

    /// A general register of an operand; no other kind takes part in an access.
    fn register(&self, operand: u32) -> Result<Register, Stop> {
        match self.exec.insn.op_register(operand) {
            register if register.is_gpr() => Ok(register),
            _ => Err(self.exec.unsupported().into()),
        }
    }

    /// The value of an operand of any kind, cut to `size` bytes.
    fn read(&mut self, operand: u32, size: usize) -> Result<u64, Stop> {
        let value = match self.exec.insn.op_kind(operand) {
            OpKind::Memory => {
                let linear = self.exec.address(operand, size as u64, Kind::Read)?;
                self.load(linear, size, Kind::Read)?
            }
            OpKind::Register => self.exec.gpr(self.register(operand)?),
            _ => self.exec.insn.immediate(operand),
        };
        Ok(value & ones(size))
    }

    /// What stands in an operand that will be written: a store that would fault must not read first.
    fn read_to_change(&mut self, operand: u32, size: usize) -> Result<u64, Stop> {
        if !self.exec.is_memory(operand) {
            return self.read(operand, size);
        }
        let linear = self.exec.address(operand, size as u64, Kind::Write)?;
        self.load(linear, size, Kind::Write)
    }

    fn write(&mut self, operand: u32, size: usize, value: u64) -> Result<(), Stop> {
        if !self.exec.is_memory(operand) {
            let register = self.register(operand)?;
            self.exec.set_gpr(register, value);
            return Ok(());
        }
        let linear = self.exec.address(operand, size as u64, Kind::Write)?;
        self.store(linear, size, value)
    }

    fn load(&mut self, linear: u64, size: usize, kind: Kind) -> Result<u64, Stop> {
        let span = self.exec.translate(linear, size, kind)?;
        let mut bytes = [0; 8];
        let mut rest = bytes.get_mut(..size).unwrap_or_default();
        for (gpa, len) in span.pieces {
            let (piece, after) = rest.split_at_mut(len.min(rest.len()));
            if self.exec.cpu.read_physical(gpa, piece).is_err() {
                let width = width(piece.len());
                for (at, item) in (gpa..).step_by(width).zip(piece.chunks_mut(width)) {
                    self.io.mmio_read(at, item);
                }
            }
            rest = after;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&mut self, linear: u64, size: usize, value: u64) -> Result<(), Stop> {
        let span = self.exec.translate(linear, size, Kind::Write)?;
        let bytes = value.to_le_bytes();
        let mut rest = bytes.get(..size).unwrap_or_default();
        for (gpa, len) in span.pieces {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            if self.exec.cpu.write_physical(gpa, piece).is_err() {
                let width = width(piece.len());
                for (at, item) in (gpa..).step_by(width).zip(piece.chunks(width)) {
                    self.io.mmio_write(at, item);
                }
            }
            rest = after;
        }
        Ok(())
    }

    // ---- instructions ---------------------------------------------------------------------------------------------

    /// Operand 1 to operand 0, changed by `with(value, bytes of operand 1)`.
    fn copy(&mut self, with: impl Fn(u64, usize) -> u64) -> Result<(), Stop> {
        let to = self.size(0)?;
        let from = if self.exec.insn.op_kind(1) == OpKind::Register || self.exec.is_memory(1) {
            self.size(1)?
        } else {
            to
        };
        if self.exec.is_memory(0) {
            // The source is a register or an immediate.
            let value = with(self.read(1, from)?, from);
            return self.write(0, to, value);
        }
        self.register(0)?;
        let value = with(self.read(1, from)?, from);
        self.write(0, to, value & ones(to))
    }

    fn arithmetic(&mut self) -> Result<(), Stop> {
        let size = self.size(0)?;
        let mnemonic = self.exec.insn.mnemonic();
        let kept = !matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test);
        let a = if kept { self.read_to_change(0, size)? } else { self.read(0, size)? };
        let b = self.read(1, size)?;
        let carry = u64::from(self.exec.regs.rflags & rflags::CF != 0);
        let (result, flags) = match mnemonic {
            Mnemonic::Add => sum(a, b, 0, size),
            Mnemonic::Adc => sum(a, b, carry, size),
            Mnemonic::Sub | Mnemonic::Cmp => difference(a, b, 0, size),
            Mnemonic::Sbb => difference(a, b, carry, size),
            Mnemonic::Or => logic(a | b, size),
            Mnemonic::Xor => logic(a ^ b, size),
            _ => logic(a & b, size),
        };
        if kept {
            self.write(0, size, result)?;
        }
        self.exec.set_flags(rflags::STATUS, flags);
        Ok(())
    }

    fn unary(&mut self) -> Result<(), Stop> {
        let size = self.size(0)?;
        let value = self.read_to_change(0, size)?;
        let without_carry = rflags::STATUS & !rflags::CF;
        let (result, flags, mask) = match self.exec.insn.mnemonic() {
            Mnemonic::Inc => with_mask(sum(value, 1, 0, size), without_carry),
            Mnemonic::Dec => with_mask(difference(value, 1, 0, size), without_carry),
            Mnemonic::Neg => with_mask(difference(0, value, 0, size), rflags::STATUS),
            _ => (!value & ones(size), 0, 0),
        };
        self.write(0, size, result)?;
        self.exec.set_flags(mask, flags);
        Ok(())
    }

    fn bit(&mut self) -> Result<(), Stop> {
        let size = self.size(0)?;
        if self.exec.is_memory(0) && self.exec.insn.op_kind(1) == OpKind::Register {
            // The register reaches beyond the operand; no driver does that to a device.
            return Err(self.exec.unsupported().into());
        }
        let mnemonic = self.exec.insn.mnemonic();
        let kept = mnemonic != Mnemonic::Bt;
        let bit = 1 << (self.read(1, 1)? & (8 * size as u64 - 1));
        let value = if kept { self.read_to_change(0, size)? } else { self.read(0, size)? };
        if kept {
            let result = match mnemonic {
                Mnemonic::Bts => value | bit,
                Mnemonic::Btr => value & !bit,
                _ => value ^ bit,
            };
            self.write(0, size, result)?;
        }
        self.exec.set_flags(rflags::CF, if value & bit != 0 { rflags::CF } else { 0 });
        Ok(())
    }

    /// Not atomic against other vCPUs where both are RAM; a hypervisor does not report such a one.
    fn exchange(&mut self) -> Result<(), Stop> {
        let size = self.size(0)?;
        let (a, b) = (self.read_to_change(0, size)?, self.read_to_change(1, size)?);
        let (first, flags) = match self.exec.insn.mnemonic() {
            Mnemonic::Xadd => sum(a, b, 0, size),
            _ => (b, self.exec.regs.rflags & rflags::STATUS),
        };
        // Memory first: it may fault, a register cannot.
        let (memory, register) =
            if self.exec.is_memory(1) { ((1, a), (0, first)) } else { ((0, first), (1, a)) };
        self.write(memory.0, size, memory.1)?;
        self.write(register.0, size, register.1)?;
        self.exec.set_flags(rflags::STATUS, flags);
        Ok(())
    }

    fn compare_exchange(&mut self) -> Result<(), Stop> {
        let size = self.size(0)?;
        let accumulator = accumulator(size);
        let found = self.read_to_change(0, size)?;
        let (_, flags) = difference(self.exec.gpr(accumulator), found, 0, size);
        let equal = flags & rflags::ZF != 0;
        let new = if equal { self.read(1, size)? } else { found };
        self.write(0, size, new)?;
        if !equal {
            self.exec.set_gpr(accumulator, found);
        }
        self.exec.set_flags(rflags::STATUS, flags);
        Ok(())
    }

    fn port(&mut self) -> Result<(), Stop> {
        let input = self.exec.insn.mnemonic() == Mnemonic::In;
        let (data, port) = if input { (0, 1) } else { (1, 0) };
        let register = self.register(data)?;
        let port = self.read(port, 2)? as u16;
        let size = register.size();
        if input {
            let value = self.pio_in(port, size);
            self.exec.set_gpr(register, value);
        } else {
            let value = self.exec.gpr(register);
            self.pio_out(port, size, value);
        }
        Ok(())
    }

    fn pio_in(&mut self, port: u16, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.io.pio_in(port, bytes.get_mut(..size).unwrap_or_default());
        u64::from_le_bytes(bytes)
    }

    fn pio_out(&mut self, port: u16, size: usize, value: u64) {
        self.io.pio_out(port, value.to_le_bytes().get(..size).unwrap_or_default());
    }

    // ---- strings --------------------------------------------------------------------------------------------------

    fn string(&mut self) -> Result<Progress, Stop> {
        let Some((action, size)) = string(self.exec.insn.code()) else {
            return Err(self.exec.unsupported().into());
        };
        let address = self.address_register()?;
        let counter = sized(Register::RCX, address);
        let repeated = self.exec.insn.has_rep_prefix() || self.exec.insn.has_repne_prefix();
        for item in 0..ITEMS {
            if repeated && self.exec.gpr(counter) == 0 {
                return Ok(Progress::Through);
            }
            match self.item(action, size, address) {
                Ok(()) => {}
                // What was done stays done; the guest meets the fault at the item that raises it.
                Err(Stop::Fault(_) | Stop::Retry) if item > 0 => return Ok(Progress::Partly),
                Err(stop) => return Err(stop),
            }
            if !repeated {
                return Ok(Progress::Through);
            }
            let left = self.exec.gpr(counter).wrapping_sub(1);
            self.exec.set_gpr(counter, left);
        }
        Ok(if self.exec.gpr(counter) == 0 { Progress::Through } else { Progress::Partly })
    }

    fn item(&mut self, action: Action, size: usize, address: usize) -> Result<(), Stop> {
        let (source, target) = (sized(Register::RSI, address), sized(Register::RDI, address));
        let from_memory = matches!(action, Action::Move | Action::Load | Action::Out);
        let to_memory = matches!(action, Action::Move | Action::Store | Action::In);
        // Where it goes must be writable before anything is taken from a device.
        let to = if to_memory {
            let linear = self.exec.linear(Register::ES, self.exec.gpr(target), size as u64, Kind::Write)?;
            self.exec.translate(linear, size, Kind::Write)?;
            linear
        } else {
            0
        };
        let port = self.exec.gpr(Register::DX) as u16;
        let value = match action {
            Action::Store => self.exec.gpr(accumulator(size)),
            Action::In => self.pio_in(port, size),
            _ => {
                let segment = self.exec.insn.memory_segment();
                let linear = self.exec.linear(segment, self.exec.gpr(source), size as u64, Kind::Read)?;
                self.load(linear, size, Kind::Read)?
            }
        };
        match action {
            Action::Load => self.exec.set_gpr(accumulator(size), value),
            Action::Out => self.pio_out(port, size, value),
            _ => self.store(to, size, value)?,
        }
        let step = if self.exec.regs.rflags & DF != 0 { (size as u64).wrapping_neg() } else { size as u64 };
        for (register, used) in [(source, from_memory), (target, to_memory)] {
            if used {
                let next = self.exec.gpr(register).wrapping_add(step);
                self.exec.set_gpr(register, next);
            }
        }
        Ok(())
    }

    /// Bytes of the index registers of a string.
    fn address_register(&self) -> Result<usize, Stop> {
        for operand in 0..self.exec.insn.op_count() {
            match self.exec.insn.op_kind(operand) {
                OpKind::MemorySegRSI | OpKind::MemoryESRDI => return Ok(8),
                OpKind::MemorySegESI | OpKind::MemoryESEDI => return Ok(4),
                OpKind::MemorySegSI | OpKind::MemoryESDI => return Ok(2),
                _ => {}
            }
        }
        Err(self.exec.unsupported().into())
    }
}

/// What a string operation does with an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Move,
    Store,
    Load,
    In,
    Out,
}

/// A string operation and the bytes of its items. By its code: `movsd` is a vector move as well.
fn string(code: Code) -> Option<(Action, usize)> {
    Some(match code {
        Code::Movsb_m8_m8 => (Action::Move, 1),
        Code::Movsw_m16_m16 => (Action::Move, 2),
        Code::Movsd_m32_m32 => (Action::Move, 4),
        Code::Movsq_m64_m64 => (Action::Move, 8),
        Code::Stosb_m8_AL => (Action::Store, 1),
        Code::Stosw_m16_AX => (Action::Store, 2),
        Code::Stosd_m32_EAX => (Action::Store, 4),
        Code::Stosq_m64_RAX => (Action::Store, 8),
        Code::Lodsb_AL_m8 => (Action::Load, 1),
        Code::Lodsw_AX_m16 => (Action::Load, 2),
        Code::Lodsd_EAX_m32 => (Action::Load, 4),
        Code::Lodsq_RAX_m64 => (Action::Load, 8),
        Code::Insb_m8_DX => (Action::In, 1),
        Code::Insw_m16_DX => (Action::In, 2),
        Code::Insd_m32_DX => (Action::In, 4),
        Code::Outsb_DX_m8 => (Action::Out, 1),
        Code::Outsw_DX_m16 => (Action::Out, 2),
        Code::Outsd_DX_m32 => (Action::Out, 4),
        _ => return None,
    })
}

fn accumulator(size: usize) -> Register {
    sized(Register::RAX, size)
}

/// The low `size` bytes of one of these four registers.
fn sized(register: Register, size: usize) -> Register {
    match (register, size) {
        (Register::RAX, 1) => Register::AL,
        (Register::RAX, 2) => Register::AX,
        (Register::RAX, 4) => Register::EAX,
        (Register::RCX, 2) => Register::CX,
        (Register::RCX, 4) => Register::ECX,
        (Register::RSI, 2) => Register::SI,
        (Register::RSI, 4) => Register::ESI,
        (Register::RDI, 2) => Register::DI,
        (Register::RDI, 4) => Register::EDI,
        _ => register,
    }
}

/// Accesses have 1, 2, 4 or 8 bytes; what a page boundary leaves over goes byte by byte.
fn width(len: usize) -> usize {
    if len.is_power_of_two() { len } else { 1 }
}

fn ones(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size.clamp(1, 8))
}

fn with_mask((result, flags): (u64, u64), mask: u64) -> (u64, u64, u64) {
    (result, flags & mask, mask)
}

/// ZF, SF and PF of a result.
fn of_result(result: u64, size: usize) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= rflags::ZF;
    }
    if result >> (8 * size - 1) & 1 != 0 {
        flags |= rflags::SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= rflags::PF;
    }
    flags
}

fn sum(a: u64, b: u64, carry: u64, size: usize) -> (u64, u64) {
    let wide = u128::from(a & ones(size)) + u128::from(b & ones(size)) + u128::from(carry);
    let result = wide as u64 & ones(size);
    let mut flags = of_result(result, size);
    if wide > u128::from(ones(size)) {
        flags |= rflags::CF;
    }
    if (a ^ result) & (b ^ result) & (1 << (8 * size - 1)) != 0 {
        flags |= rflags::OF;
    }
    if (a ^ b ^ result) & 0x10 != 0 {
        flags |= rflags::AF;
    }
    (result, flags)
}

fn difference(a: u64, b: u64, borrow: u64, size: usize) -> (u64, u64) {
    let (a, b) = (a & ones(size), b & ones(size));
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & ones(size);
    let mut flags = of_result(result, size);
    if u128::from(b) + u128::from(borrow) > u128::from(a) {
        flags |= rflags::CF;
    }
    if (a ^ b) & (a ^ result) & (1 << (8 * size - 1)) != 0 {
        flags |= rflags::OF;
    }
    if (a ^ b ^ result) & 0x10 != 0 {
        flags |= rflags::AF;
    }
    (result, flags)
}

fn logic(result: u64, size: usize) -> (u64, u64) {
    (result & ones(size), of_result(result & ones(size), size))
}

/// Whether the event is one that an access may end in; for the fuzzer.
#[cfg(any(test, feature = "testing"))]
pub(super) fn is_possible(event: &super::Event) -> bool {
    matches!(event, super::Event::PageFault { .. } | super::Event::Exception { vector: 6 | 12 | 13, .. })
}
