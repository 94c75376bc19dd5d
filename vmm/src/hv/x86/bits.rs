//! Bit counting, BMI1, BMI2, ADX and CRC32: general registers and memory in, a general register out.

use iced_x86::{Mnemonic, Register};

use super::exec::{Exec, Stop};
use super::regs::rflags::{CF, OF, SF, STATUS, ZF};

/// The reflected polynomial of CRC-32C (SDM vol. 2, CRC32).
const CASTAGNOLI: u64 = 0x82f6_3b78;

/// Bits of an operand.
fn width(exec: &Exec<'_>, operand: u32) -> u32 {
    8 * exec.size(operand).clamp(1, 8) as u32
}

/// All ones in `bits` bits, 1 to 64.
fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits.clamp(1, 64))
}

fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

/// Instructions that define status flags.
pub(super) fn with_flags(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let bits = width(exec, 0);
    let sign = |value: u64| flag(value >> (bits - 1) & 1 != 0, SF);
    let zero = |value: u64| flag(value == 0, ZF);
    let (result, mask, flags) = match exec.insn.mnemonic() {
        Mnemonic::Popcnt => {
            let source = exec.read(1)?;
            (u64::from(source.count_ones()), STATUS, zero(source))
        }
        Mnemonic::Andn => {
            let result = !exec.read(1)? & exec.read(2)? & ones(bits);
            (result, CF | ZF | SF | OF, zero(result) | sign(result))
        }
        Mnemonic::Bextr => {
            let (source, control) = (exec.read(1)?, exec.read(2)?);
            let (start, length) = ((control & 0xff) as u32, (control >> 8 & 0xff) as u32);
            let shifted = source.checked_shr(start).unwrap_or(0);
            let result = if length == 0 { 0 } else { shifted & ones(length) };
            (result, CF | ZF | OF, zero(result))
        }
        Mnemonic::Blsi => {
            let source = exec.read(1)?;
            let result = source & source.wrapping_neg() & ones(bits);
            (result, CF | ZF | SF | OF, zero(result) | sign(result) | flag(source != 0, CF))
        }
        Mnemonic::Blsmsk => {
            let source = exec.read(1)?;
            let result = (source ^ source.wrapping_sub(1)) & ones(bits);
            (result, CF | ZF | SF | OF, sign(result) | flag(source == 0, CF))
        }
        Mnemonic::Blsr => {
            let source = exec.read(1)?;
            let result = source & source.wrapping_sub(1) & ones(bits);
            (result, CF | ZF | SF | OF, zero(result) | sign(result) | flag(source == 0, CF))
        }
        // Bzhi.
        _ => {
            let (source, index) = (exec.read(1)?, (exec.read(2)? & 0xff) as u32);
            let result = match index {
                0 => 0,
                _ if index < bits => source & ones(index),
                _ => source,
            };
            (result, CF | ZF | SF | OF, zero(result) | sign(result) | flag(index > bits - 1, CF))
        }
    };
    exec.set_gpr(exec.insn.op0_register(), result);
    exec.set_flags(mask, flags);
    Ok(())
}

/// Instructions that leave the flags alone.
pub(super) fn without_flags(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let bits = width(exec, 0);
    let result = match exec.insn.mnemonic() {
        Mnemonic::Crc32 => crc32(exec.read(0)?, exec.read(1)?, width(exec, 1)),
        Mnemonic::Pdep => deposit(exec.read(1)?, exec.read(2)?),
        Mnemonic::Pext => extract(exec.read(1)?, exec.read(2)?),
        Mnemonic::Rorx => {
            let (source, count) = (exec.read(1)?, exec.insn.immediate8().into());
            if bits == 64 { source.rotate_right(count) } else { (source as u32).rotate_right(count).into() }
        }
        shift => {
            let source = exec.read(1)?;
            let count = exec.read(2)? as u32 & (bits - 1);
            match shift {
                Mnemonic::Shlx => source << count,
                Mnemonic::Shrx => source >> count,
                _ if bits == 64 => ((source as i64) >> count) as u64,
                _ => u64::from(((source as i32) >> count) as u32),
            }
        }
    };
    exec.set_gpr(exec.insn.op0_register(), result);
    Ok(())
}

/// Accumulates `bits` bits, least significant first. The accumulator is 32 bits, whatever the register.
fn crc32(accumulator: u64, data: u64, bits: u32) -> u64 {
    let mut crc = (accumulator & 0xffff_ffff) ^ data;
    // 64 bits of data: the upper half waits above the accumulator and moves down as the lower is consumed.
    for _ in 0..bits {
        let carry = crc & 1 != 0;
        crc >>= 1;
        if carry {
            crc ^= CASTAGNOLI;
        }
    }
    crc & 0xffff_ffff
}

fn deposit(source: u64, mask: u64) -> u64 {
    let (mut result, mut next) = (0, 0);
    for bit in (0..64).filter(|bit| mask >> bit & 1 != 0) {
        result |= (source >> next & 1) << bit;
        next += 1;
    }
    result
}

fn extract(source: u64, mask: u64) -> u64 {
    let (mut result, mut next) = (0, 0);
    for bit in (0..64).filter(|bit| mask >> bit & 1 != 0) {
        result |= (source >> bit & 1) << next;
        next += 1;
    }
    result
}

/// MULX: the implicit factor is EDX or RDX; where both destinations are one register it gets the upper half.
pub(super) fn mulx(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let bits = width(exec, 0);
    let implicit = exec.gpr(if bits == 64 { Register::RDX } else { Register::EDX });
    let product = u128::from(implicit) * u128::from(exec.read(2)?);
    exec.set_gpr(exec.insn.op1_register(), product as u64 & ones(bits));
    exec.set_gpr(exec.insn.op0_register(), (product >> bits) as u64);
    Ok(())
}

/// ADCX and ADOX: add with CF, or with OF, as carry in and out.
pub(super) fn add_with_flag(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let carry = if exec.insn.mnemonic() == Mnemonic::Adcx { CF } else { OF };
    let bits = width(exec, 0);
    let carried = u128::from(exec.regs.rflags & carry != 0);
    let sum = u128::from(exec.read(0)?) + u128::from(exec.read(1)?) + carried;
    exec.set_gpr(exec.insn.op0_register(), sum as u64 & ones(bits));
    exec.set_flags(carry, flag(sum >> bits != 0, carry));
    Ok(())
}
