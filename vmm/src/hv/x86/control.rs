//! Software interrupts, CMPXCHG16B, and instructions about the processor itself.

use iced_x86::{Code, Mnemonic, Register};

use super::exec::{Exec, Stop};
use super::paging::Kind;
use super::regs::{Event, cr4, rflags, vector};
use super::xstate::Image;

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_AUX.
const TSC_AUX: u32 = 0xc000_0103;
/// Bytes that CLZERO clears.
const LINE: usize = 64;

/// INT3, INT1 and INT n: they return behind themselves.
pub(super) fn interrupt(exec: &mut Exec<'_>) -> Result<(), Stop> {
    Err(Stop::Trap(match exec.insn.mnemonic() {
        Mnemonic::Int3 => Event::Exception { vector: vector::BP, error_code: None },
        Mnemonic::Int1 => Event::Exception { vector: vector::DB, error_code: None },
        _ => Event::Interrupt { vector: exec.insn.immediate8() },
    }))
}

/// EDX:EAX := value.
fn set_pair(exec: &mut Exec<'_>, value: u64) {
    exec.set_gpr(Register::EAX, value);
    exec.set_gpr(Register::EDX, value >> 32);
}

/// XGETBV: XCR0, or with ECX = 1 what of it is in use.
pub(super) fn xgetbv(exec: &mut Exec<'_>) -> Result<(), Stop> {
    if exec.sregs.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::undefined());
    }
    let xcr0 = Exec::host("read XCR0", exec.cpu.xcr0())?;
    let value = match exec.gpr(Register::ECX) {
        0 => xcr0,
        1 => {
            let layout = exec.cpu.xstate_layout();
            xcr0 & Image::load(exec.cpu, &layout)?.in_use()
        }
        _ => return Err(Stop::protection(0)),
    };
    set_pair(exec, value);
    Ok(())
}

/// RDTSCP; without IA32_TSC_AUX the processor does not have it.
pub(super) fn rdtscp(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let aux = Exec::host("read IA32_TSC_AUX", exec.cpu.msr(TSC_AUX))?;
    let tsc = Exec::host("read the time stamp counter", exec.cpu.msr(TSC))?;
    let (Some(aux), Some(tsc)) = (aux, tsc) else {
        return Err(Stop::undefined());
    };
    set_pair(exec, tsc);
    exec.set_gpr(Register::ECX, aux);
    Ok(())
}

/// CLAC and STAC.
pub(super) fn access_check(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let to = if exec.insn.mnemonic() == Mnemonic::Stac { rflags::AC } else { 0 };
    exec.set_flags(rflags::AC, to);
    Ok(())
}

/// INVPCID, all types by the widest: a flush of everything (SDM vol. 3, 4.10.4.1 permits to drop more).
pub(super) fn invpcid(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let kind = exec.read(0)?;
    let mut descriptor = [0; 16];
    exec.read_memory(1, &mut descriptor)?;
    let first = u128::from_le_bytes(descriptor) as u64;
    let individual = kind <= 1;
    if kind > 3 || (individual && first >> 12 != 0) {
        return Err(Stop::protection(0));
    }
    Exec::host("flush the address translations", exec.cpu.flush_tlb())
}

/// CLWB: memory is coherent, so only the address is checked.
pub(super) fn write_back(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let linear = exec.address(0, 1, Kind::Read)?;
    exec.translate(linear, 1, Kind::Read).map(|_| ())
}

/// CLZERO: clears the cache line at rAX (AMD APM vol. 3).
pub(super) fn clzero(exec: &mut Exec<'_>) -> Result<(), Stop> {
    if !exec.sregs.is_64() {
        return Err(exec.unsupported().into());
    }
    let base = match exec.insn.segment_prefix() {
        Register::FS => exec.sregs.fs.base,
        Register::GS => exec.sregs.gs.base,
        _ => 0,
    };
    let offset = exec.gpr(if exec.insn.code() == Code::Clzeroq { Register::RAX } else { Register::EAX });
    let linear = base.wrapping_add(offset) & !(LINE as u64 - 1);
    let span = exec.translate(linear, LINE, Kind::Write)?;
    exec.write_span(&span, &[0; LINE])
}

/// RDSSP: does nothing while shadow stacks are off.
pub(super) fn read_shadow_stack(exec: &mut Exec<'_>) -> Result<(), Stop> {
    if exec.sregs.cr4 & cr4::CET != 0 {
        return Err(exec.unsupported().into());
    }
    Ok(())
}

/// CMPXCHG16B, with or without a lock prefix: atomic either way. Needs a writable page even where nothing is stored.
pub(super) fn compare_exchange_16(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let linear = exec.address(0, 16, Kind::Write)?;
    if linear % 16 != 0 {
        return Err(Stop::protection(0));
    }
    let pair = |exec: &Exec<'_>, high, low| u128::from(exec.gpr(high)) << 64 | u128::from(exec.gpr(low));
    let current = pair(exec, Register::RDX, Register::RAX);
    let new = pair(exec, Register::RCX, Register::RBX);
    let span = exec.translate(linear, 16, Kind::Write)?;
    let Some(gpa) = exec.single(&span) else {
        return Err(Stop::protection(0));
    };
    let found = exec.cpu.compare_exchange_16(gpa, current, new).map_err(|error| exec.not_ram(error))?;
    let equal = found == current;
    if !equal {
        exec.set_gpr(Register::RAX, found as u64);
        exec.set_gpr(Register::RDX, (found >> 64) as u64);
    }
    exec.set_flags(rflags::ZF, if equal { rflags::ZF } else { 0 });
    Ok(())
}
