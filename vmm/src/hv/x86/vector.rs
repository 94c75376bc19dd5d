//! The few SSE and x87 instructions that kernels use outside of cryptography: copies, clearing, MXCSR, x87 status.
//!
//! They work on the extended state that the hypervisor holds for the vCPU.

use iced_x86::{Mnemonic, Register};

use super::exec::{Exec, Stop};
use super::paging::Kind;
use super::regs::{Event, cr0, cr4, vector};
use super::xstate::{FSW, Image, MXCSR, SSE, TAGS, X87, XMM};

/// FSW: the summary of unmasked exceptions.
const ES: u16 = 1 << 7;
/// FSW: the bits that FNCLEX leaves.
const KEPT: u16 = 0x7f00;

/// The conditions of every SSE instruction (SDM vol. 3, 2.6).
fn check(exec: &Exec<'_>) -> Result<(), Stop> {
    if exec.sregs.cr0 & cr0::EM != 0 || exec.sregs.cr4 & cr4::OSFXSR == 0 {
        return Err(Stop::undefined());
    }
    if exec.sregs.cr0 & cr0::TS != 0 {
        return Err(Stop::not_available());
    }
    Ok(())
}

fn image(exec: &mut Exec<'_>) -> Result<Image, Stop> {
    let layout = exec.cpu.xstate_layout();
    Image::load(exec.cpu, &layout)
}

/// LDMXCSR and STMXCSR.
pub(super) fn control_status(exec: &mut Exec<'_>) -> Result<(), Stop> {
    check(exec)?;
    let mut image = image(exec)?;
    if exec.insn.mnemonic() == Mnemonic::Stmxcsr {
        return exec.write_memory(0, &image.u32(MXCSR).to_le_bytes());
    }
    let value = exec.read(0)? as u32;
    if value & !image.mxcsr_mask() != 0 {
        return Err(Stop::protection(0));
    }
    image.set_mxcsr(value);
    image.store(exec.cpu)
}

/// The place of an XMM register in the image. The upper halves of the wider registers stay as they are.
fn place(register: Register) -> Option<usize> {
    (register.is_xmm() && register.number() < 16).then(|| XMM + 16 * register.number())
}

/// Reads an operand of up to 16 bytes: XMM, general register or memory, zero-extended.
fn read(exec: &mut Exec<'_>, image: &Image, operand: u32, aligned: bool) -> Result<u128, Stop> {
    let mut bytes = [0; 16];
    if exec.is_memory(operand) {
        let size = exec.size(operand).min(16);
        if aligned && exec.address(operand, size as u64, Kind::Read)? % 16 != 0 {
            return Err(Stop::protection(0));
        }
        exec.read_memory(operand, bytes.get_mut(..size).unwrap_or_default())?;
        return Ok(u128::from_le_bytes(bytes));
    }
    let register = exec.insn.op_register(operand);
    if let Some(at) = place(register) {
        if let Some(found) = image.get(at..at + 16).first_chunk() {
            bytes = *found;
        }
        return Ok(u128::from_le_bytes(bytes));
    }
    if register.is_gpr() { Ok(exec.gpr(register).into()) } else { Err(exec.unsupported().into()) }
}

/// MOVD, MOVQ, MOVNTDQA, LDDQU, not the MMX forms.
pub(super) fn copy(exec: &mut Exec<'_>) -> Result<(), Stop> {
    check(exec)?;
    let mut image = image(exec)?;
    let mnemonic = exec.insn.mnemonic();
    let value = read(exec, &image, 1, mnemonic == Mnemonic::Movntdqa)?;
    let value = match mnemonic {
        Mnemonic::Movd => value & 0xffff_ffff,
        Mnemonic::Movq => value & u128::from(u64::MAX),
        _ => value,
    };
    if exec.is_memory(0) {
        let size = exec.size(0).min(8);
        return exec.write_memory(0, value.to_le_bytes().get(..size).unwrap_or_default());
    }
    let register = exec.insn.op0_register();
    if let Some(at) = place(register) {
        image.put(at, &value.to_le_bytes());
        image.set_in_use(image.in_use() | SSE);
        return image.store(exec.cpu);
    }
    if !register.is_gpr() {
        return Err(exec.unsupported().into());
    }
    exec.set_gpr(register, value as u64);
    Ok(())
}

/// PXOR, XORPS, XORPD: how code clears a register.
pub(super) fn xor(exec: &mut Exec<'_>) -> Result<(), Stop> {
    check(exec)?;
    let mut image = image(exec)?;
    let Some(at) = place(exec.insn.op0_register()) else {
        return Err(exec.unsupported().into());
    };
    let value = read(exec, &image, 0, false)? ^ read(exec, &image, 1, true)?;
    image.put(at, &value.to_le_bytes());
    image.set_in_use(image.in_use() | SSE);
    image.store(exec.cpu)
}

/// EMMS, FNCLEX, FWAIT, FNSTSW.
pub(super) fn x87(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let mnemonic = exec.insn.mnemonic();
    let monitored = exec.sregs.cr0 & cr0::MP != 0;
    let absent = exec.sregs.cr0 & cr0::EM != 0 && mnemonic != Mnemonic::Wait;
    if absent && mnemonic == Mnemonic::Emms {
        return Err(Stop::undefined());
    }
    if absent || (exec.sregs.cr0 & cr0::TS != 0 && (monitored || mnemonic != Mnemonic::Wait)) {
        return Err(Stop::not_available());
    }
    let mut image = image(exec)?;
    let status = image.u16(FSW);
    if matches!(mnemonic, Mnemonic::Wait | Mnemonic::Emms) && status & ES != 0 {
        return Err(Stop::Fault(Event::Exception { vector: vector::MF, error_code: None }));
    }
    match mnemonic {
        Mnemonic::Wait => return Ok(()),
        Mnemonic::Fnstsw if exec.is_memory(0) => return exec.write_memory(0, &status.to_le_bytes()),
        Mnemonic::Fnstsw => {
            exec.set_gpr(Register::AX, status.into());
            return Ok(());
        }
        Mnemonic::Fnclex => image.put(FSW, &(status & KEPT).to_le_bytes()),
        // Emms: all tags empty. In the image's short form a bit is set for a register that is not.
        _ => image.put(TAGS, &[0]),
    }
    image.set_in_use(image.in_use() | X87);
    image.store(exec.cpu)
}
