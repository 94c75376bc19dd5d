//! Model-specific registers: which the guest reaches by itself, and the few that are answered here. All others raise #GP, as
//! they do on a processor without them.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::failed;
use super::fields;
use super::vcpu::{Bound, LME};
use crate::error::Error;
use crate::hv::x86::{cr0, efer, lapic};

/// STAR, LSTAR, CSTAR, FMASK, bases of FS and GS, TSC_AUX, SYSENTER: the guest's own, without exits.
pub(super) const NATIVE: [u32; 11] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0x174,
    0x175,
    0x176,
];

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const FEATURE_CONTROL: u32 = 0x3a;
const MICROCODE: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CONTROL: u32 = 0x1d9;
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const EFER: u32 = 0xc000_0080;

/// EFER: system calls.
const SCE: u64 = 1;
/// APIC_BASE: enabled, and the first vCPU.
const APIC_ENABLED: u64 = 1 << 11;
const FIRST: u64 = 1 << 8;
/// MTRR_DEF_TYPE: enabled, write-back. Without it the kernel maps nothing cacheable by PAT.
const WRITE_BACK: u64 = 1 << 11 | 6;
/// MTRR_DEF_TYPE: what may be set.
const DEF_TYPE: u64 = 0xcff;
/// PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Registers that are kept and have no effect of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pat: u64,
    mtrr_def_type: u64,
}

impl Default for Kept {
    fn default() -> Self {
        Self { pat: PAT_RESET, mtrr_def_type: WRITE_BACK }
    }
}

/// Memory types that a PAT entry may name: all but 2, 3 and those above 7.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

impl Bound {
    /// The value of a register; `None`: there is none of this number.
    pub(super) fn read_msr(&self, msr: u32) -> Result<Option<u64>, Error> {
        let vm = &self.vm;
        Ok(Some(match msr {
            TSC => vm.api.tsc().wrapping_add(vm.tsc_offset.load(Ordering::Acquire)),
            PLATFORM_ID | MICROCODE | MTRR_CAP | DEBUG_CONTROL => 0,
            // Locked, nothing enabled.
            FEATURE_CONTROL => 1,
            // Fast strings.
            MISC_ENABLE => 1,
            APIC_BASE => lapic::BASE | APIC_ENABLED | if self.index == 0 { FIRST } else { 0 },
            PAT => self.kept.pat,
            MTRR_DEF_TYPE => self.kept.mtrr_def_type,
            EFER => self.field(fields::EFER)?,
            native if NATIVE.contains(&native) => {
                vm.api.msr(self.id, native).map_err(failed("reading an MSR"))?
            }
            other => return Ok(self.hyperv.read(other, vm.host.clocks, self.index)),
        }))
    }

    /// Sets a register; false: it is not there or may not be written so.
    pub(super) fn write_msr(&mut self, msr: u32, value: u64) -> Result<bool, Error> {
        match msr {
            // Loads an update where there is one: there is none.
            MICROCODE => {}
            DEBUG_CONTROL if value == 0 => {}
            MISC_ENABLE if value & !1 == 0 => {}
            // It neither moves nor goes away.
            APIC_BASE if Some(value) == self.read_msr(APIC_BASE)? => {}
            PAT if is_pat(value) => self.kept.pat = value,
            MTRR_DEF_TYPE if value & !DEF_TYPE == 0 => self.kept.mtrr_def_type = value,
            EFER => return self.write_efer(value),
            native if NATIVE.contains(&native) => {
                self.vm.api.set_msr(self.id, native, value).map_err(failed("setting an MSR"))?;
            }
            other => return Ok(self.hyperv.write(other, value)),
        }
        Ok(true)
    }

    /// EFER (SDM vol. 3, 2.2.1): long mode is not enabled or disabled under paging, LMA follows paging.
    fn write_efer(&self, value: u64) -> Result<bool, Error> {
        let old = self.field(fields::EFER)?;
        let paging = self.cr0()? & cr0::PG != 0;
        if value & !(SCE | LME | efer::LMA | efer::NXE) != 0 || paging && (value ^ old) & LME != 0 {
            return Ok(false);
        }
        self.set_field(fields::EFER, value & !efer::LMA | old & efer::LMA)?;
        Ok(true)
    }
}
