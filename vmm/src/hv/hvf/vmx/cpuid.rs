//! What the guest's CPUID says: this processor, without what a guest here does not have.

use super::api::Api;
use super::controls::Controls;
use super::fields::secondary;
use crate::hv::x86::hyperv;

/// The user state that a guest may have: x87, SSE, AVX, AVX-512.
const XCR0: u64 = 0xe7;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;

/// Leaf 1 ECX without DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, xTPR, PDCM, DCA, x2APIC, TSC deadline, OSXSAVE.
const LEAF_1_ECX: u32 = !(1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 14
    | 1 << 15
    | 1 << 18
    | 1 << 21
    | 1 << 24
    | 1 << 27);
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX without MCE, MCA, DS, ACPI, HTT, TM, PBE.
const LEAF_1_EDX: u32 = !(1 << 7 | 1 << 14 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31);
const HTT: u32 = 1 << 28;
/// Leaf 7 EBX without TSC_ADJUST, SGX, HLE, RTM, PQM, MPX, PQE, PT.
const LEAF_7_EBX: u32 = !(1 << 1 | 1 << 2 | 1 << 4 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 25);
const INVPCID: u32 = 1 << 10;
/// Leaf 7 ECX: VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID.
const LEAF_7_ECX: u32 =
    1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | RDPID;
const RDPID: u32 = 1 << 22;
/// Leaf 7 EDX: 4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, MD_CLEAR, SERIALIZE. Nothing that needs an MSR of its own.
const LEAF_7_EDX: u32 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 10 | 1 << 14;
/// Leaf 0dh, 1 EAX: XSAVEOPT, and XGETBV with 1. Not XSAVEC and XSAVES: supervisor state is not offered.
const LEAF_D_1_EAX: u32 = 1 | 1 << 2;
/// Leaf 6 EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;
/// Leaf 8000_0001h EDX.
const RDTSCP: u32 = 1 << 27;

/// The CPUID of a vCPU.
pub(super) struct Cpuid<'a> {
    pub(super) api: &'a dyn Api,
    pub(super) controls: Controls,
    pub(super) index: u8,
    pub(super) cpus: u8,
}

/// What XCR0 may hold on this processor.
pub(super) fn xcr0(api: &dyn Api) -> u64 {
    let [low, _, _, high] = api.cpuid(0xd, 0);
    (u64::from(high) << 32 | u64::from(low)) & XCR0
}

impl Cpuid<'_> {
    /// EAX, EBX, ECX, EDX of a leaf, where the vCPU has these registers.
    pub(super) fn answer(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> [u32; 4] {
        if leaf >> 16 == 0x4000 {
            let leaves = hyperv::leaves();
            return leaves.iter().find(|known| known.function == leaf).map_or([0; 4], |known| known.result);
        }
        let [a, b, c, d] = self.api.cpuid(leaf, subleaf);
        let count = u32::from(self.cpus);
        let rdtscp = self.controls.has(secondary::RDTSCP);
        match leaf {
            1 => {
                let identity = u32::from(self.index) << 24 | count << 16;
                let saves = if cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
                let many = if count > 1 { HTT } else { 0 };
                [a, b & 0xffff | identity, c & LEAF_1_ECX | HYPERVISOR | saves, d & LEAF_1_EDX | many]
            }
            // Caches: the last one is everybody's.
            4 => {
                let sharers = if a >> 5 & 7 >= 3 { (count - 1) << 14 } else { 0 };
                let cores = if a & 0x1f == 0 { 0 } else { (count - 1) << 26 };
                [a & 0x3fff | sharers | cores, b, c, d]
            }
            6 => [ARAT, 0, 0, 0],
            7 if subleaf == 0 => {
                let pcid = if self.controls.has(secondary::INVPCID) { u32::MAX } else { !INVPCID };
                let pid = if rdtscp { u32::MAX } else { !RDPID };
                [0, b & LEAF_7_EBX & pcid, c & LEAF_7_ECX & pid, d & LEAF_7_EDX]
            }
            // MONITOR, performance counters, resource control, SGX, tracing.
            5 | 7 | 0xa | 0xf | 0x10 | 0x12 | 0x14 => [0; 4],
            0xb | 0x1f => self.topology(leaf, subleaf),
            0xd => self.extended(subleaf, [a, b, c, d], xcr0),
            0x8000_0001 => [a, b, c, if rdtscp { d } else { d & !RDTSCP }],
            _ => [a, b, c, d],
        }
    }

    /// A thread level of one, then a core level of all.
    fn topology(&self, leaf: u32, level: u32) -> [u32; 4] {
        let own = u32::from(self.index);
        let count = u32::from(self.cpus);
        match level {
            _ if leaf == 0x1f => [0; 4],
            0 => [0, 1, 1 << 8, own],
            1 => [count.next_power_of_two().trailing_zeros(), count, 1 | 2 << 8, own],
            _ => [0, 0, level, own],
        }
    }

    fn extended(&self, subleaf: u32, [a, b, c, d]: [u32; 4], enabled: u64) -> [u32; 4] {
        /// The legacy region and the header.
        const LEAST: u32 = 576;
        let offered = xcr0(self.api);
        let end = |set: u64| {
            (2..63)
                .filter(|component| set >> component & 1 != 0)
                .map(|component| {
                    let [size, offset, ..] = self.api.cpuid(0xd, component);
                    offset.saturating_add(size)
                })
                .fold(LEAST, u32::max)
        };
        match subleaf {
            0 => [offered as u32, end(enabled & offered), end(offered), (offered >> 32) as u32],
            1 => [a & LEAF_D_1_EAX, 0, 0, 0],
            2..63 if offered >> subleaf & 1 != 0 => [a, b, c, d],
            _ => [0; 4],
        }
    }
}

/// Bits that a saved guest may depend on: features of leaves 1, 7 and 8000_0001h, and XCR0.
pub(super) fn features(api: &dyn Api, controls: Controls) -> [u64; 4] {
    let cpuid = Cpuid { api, controls, index: 0, cpus: 1 };
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let [_, _, c1, d1] = cpuid.answer(1, 0, 0, 0);
    let [_, b7, c7, _] = cpuid.answer(7, 0, 0, 0);
    let [_, _, c8, d8] = cpuid.answer(0x8000_0001, 0, 0, 0);
    [pair(c1, d1), pair(b7, c7), pair(c8, d8), xcr0(api)]
}
