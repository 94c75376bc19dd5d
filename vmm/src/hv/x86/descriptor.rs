//! LAR, LSL, VERR, VERW: looks at segment descriptors. A kernel finds its CPU number with LSL and clears buffers with VERW.

use iced_x86::Mnemonic;

use super::exec::{Exec, Stop};
use super::paging::Kind;
use super::regs::{cr0, rflags::ZF};

/// A segment descriptor, 8 bytes (SDM vol. 3, 3.4.5).
#[derive(Clone, Copy)]
struct Descriptor(u64);

impl Descriptor {
    fn kind(self) -> u32 {
        (self.0 >> 40) as u32 & 0xf
    }

    /// Code or data, not a system descriptor.
    fn is_memory(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    fn dpl(self) -> u64 {
        self.0 >> 45 & 3
    }

    fn is_code(self) -> bool {
        self.is_memory() && self.kind() & 8 != 0
    }

    fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// In bytes, granularity applied.
    fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// The access rights as LAR gives them.
    fn rights(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ff00
    }
}

/// The descriptor that a selector names, if it names one that this privilege level may see.
fn find(exec: &mut Exec<'_>, selector: u64) -> Result<Option<Descriptor>, Stop> {
    let index = selector & 0xfff8;
    let local = selector & 4 != 0;
    if index == 0 && !local {
        return Ok(None);
    }
    let table = if local { exec.sregs.ldt } else { exec.sregs.gdt };
    if index + 7 > u64::from(table.limit) {
        return Ok(None);
    }
    let span = exec.translate(table.base.wrapping_add(index), 8, Kind::Read)?;
    let mut bytes = [0; 8];
    exec.read_span(&span, &mut bytes)?;
    let found = Descriptor(u64::from_le_bytes(bytes));
    let visible = found.is_conforming() || found.dpl() >= (selector & 3).max(exec.sregs.cpl.into());
    Ok(visible.then_some(found))
}

fn selector(exec: &mut Exec<'_>, operand: u32) -> Result<u64, Stop> {
    if exec.sregs.cr0 & cr0::PE == 0 {
        return Err(Stop::undefined());
    }
    if exec.is_memory(operand) {
        let mut bytes = [0; 2];
        exec.read_memory(operand, &mut bytes)?;
        return Ok(u16::from_le_bytes(bytes).into());
    }
    Ok(exec.read(operand)? & 0xffff)
}

/// LAR and LSL.
pub(super) fn load(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let selector = selector(exec, 1)?;
    let found = find(exec, selector)?;
    let rights = exec.insn.mnemonic() == Mnemonic::Lar;
    let long = exec.sregs.efer & super::efer::LMA != 0;
    let value = found.and_then(|found| {
        // System types: SDM vol. 3, table 3-2.
        let known = found.is_memory()
            || match found.kind() {
                2 | 9 | 11 => true,
                1 | 3 => !long,
                4 | 5 => rights && !long,
                12 => rights,
                _ => false,
            };
        known.then(|| if rights { found.rights() } else { found.limit() })
    });
    if let Some(value) = value {
        exec.set_gpr(exec.insn.op0_register(), value.into());
    }
    exec.set_flags(ZF, if value.is_some() { ZF } else { 0 });
    Ok(())
}

/// VERR and VERW.
pub(super) fn verify(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let selector = selector(exec, 0)?;
    let found = find(exec, selector)?;
    let read = exec.insn.mnemonic() == Mnemonic::Verr;
    let good = found.is_some_and(|found| {
        let second = found.kind() & 2 != 0;
        found.is_memory() && if read { !found.is_code() || second } else { !found.is_code() && second }
    });
    exec.set_flags(ZF, if good { ZF } else { 0 });
    Ok(())
}
