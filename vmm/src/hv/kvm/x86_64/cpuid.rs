//! What the guest's CPUID says: what KVM supports, and the identity and neighbours of each vCPU.
//!
//! Without the hypervisor bit and the TSC deadline timer the kernel finds no kvmclock and stalls in calibration.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: the local APIC timer has a TSC deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX tells the number of logical processors of the package.
const HTT: u32 = 1 << 28;

/// Extended topology: which bits of an APIC number tell threads and cores apart.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// The paravirtual features of KVM (`KVM_CPUID_FEATURES`).
const KVM_FEATURES: u32 = 0x4000_0001;
/// What tells the guest that a page of it is not there yet, and later that it is. A machine that is saved in between would
/// wait for the second word for ever in whatever continues it; and each costs the boot exits.
const ASYNC_PAGE_FAULTS: u32 = (1 << 4) | (1 << 10) | (1 << 14);
/// What needs hypercalls: hangs on `kvm_pvm`.
const HYPERCALL_FEATURES: u32 = (1 << 7)    // PV unhalt: kicks a CPU by hypercall
    | (1 << 9)    // PV TLB flush
    | (1 << 11)   // PV IPI
    | (1 << 13)   // scheduler yield
    | (1 << 16); // GPA range hypercall

/// CPUID of vCPU `index` of `cpus`.
pub(super) fn for_vcpu(supported: &CpuId, index: u8, cpus: u8, emulates_kernel: bool) -> CpuId {
    let mut cpuid = supported.clone();
    for leaf in TOPOLOGY {
        complete_topology(&mut cpuid, leaf);
    }
    let apic_id = u32::from(index);
    let count = u32::from(cpus);
    // APIC numbers are contiguous; this many bits of one tell the vCPUs of the package apart.
    let bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (apic_id << 24) | (count << 16);
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Deterministic caches (Intel): one thread shares L1 and L2, the package shares L3.
            4 => share_cache(entry, 26, count),
            // Extended topology: a thread level, then a core level.
            leaf if TOPOLOGY.contains(&leaf) => topology(entry, apic_id, count, bits),
            KVM_FEATURES => {
                let withheld = if emulates_kernel { HYPERCALL_FEATURES } else { 0 };
                entry.eax &= !(withheld | ASYNC_PAGE_FAULTS);
            }
            // AMD: number of threads, and the width of the APIC number.
            0x8000_0008 => entry.ecx = (bits << 12) | (count - 1),
            // AMD caches, as leaf 4.
            0x8000_001d => share_cache(entry, 32, count),
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

/// Why a vCPU that was made with the CPUID `saved` cannot go on where `here` is what there is: another vendor, or a feature
/// less. A feature more is hidden, because the guest keeps the CPUID it was saved with.
pub(super) fn misfit(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Option<String> {
    /// Leaf, index, and which of EAX to EDX hold a bit for each feature.
    const FEATURES: [(u32, u32, [bool; 4]); 6] = [
        (1, 0, [false, false, true, true]),
        (7, 0, [false, true, true, true]),
        (0xd, 0, [true, false, false, false]),
        (0xd, 1, [true, false, false, false]),
        (KVM_FEATURES, 0, [true, false, false, false]),
        (0x8000_0001, 0, [false, false, true, true]),
    ];
    let registers = |of: &[kvm_cpuid_entry2], leaf: u32, index: u32| {
        let found = of.iter().find(|entry| (entry.function, entry.index) == (leaf, index));
        found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    let ([_, vendor @ ..], [_, own @ ..]) = (registers(saved, 0, 0), registers(here, 0, 0));
    if vendor != own {
        return Some("it ran on a processor of another vendor".to_owned());
    }
    FEATURES.iter().find_map(|&(leaf, index, which)| {
        let both = registers(saved, leaf, index).into_iter().zip(registers(here, leaf, index));
        let mut missing =
            both.zip(which).map(|((wanted, has), counts)| if counts { wanted & !has } else { 0 });
        let bits = missing.find(|bits| *bits != 0)?;
        Some(format!("this processor lacks features that it had: {bits:#x} of CPUID leaf {leaf:#x}, {index}"))
    })
}

/// Sets how many vCPUs share this cache and, from `cores_at` up, how many cores the package has.
fn share_cache(entry: &mut kvm_cpuid_entry2, cores_at: u32, count: u32) {
    let level = (entry.eax >> 5) & 7;
    entry.eax &= !(0xfff << 14);
    if level >= 3 {
        entry.eax |= (count - 1) << 14;
    }
    if let Some(shifted) = (count - 1).checked_shl(cores_at) {
        entry.eax = (entry.eax & 0x03ff_ffff) | shifted;
    }
}

/// KVM of Linux 6.2 and later leaves the levels to the monitor and gives the first one only.
fn complete_topology(cpuid: &mut CpuId, leaf: u32) {
    let has = |index| cpuid.as_slice().iter().any(|e| e.function == leaf && e.index == index);
    if has(0) && !has(1) {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let level = kvm_cpuid_entry2 { function: leaf, index: 1, flags, ..Default::default() };
        // Without room the guest sees one package per vCPU.
        let _ = cpuid.push(level);
        for entry in cpuid.as_mut_slice().iter_mut().filter(|e| e.function == leaf) {
            entry.flags |= flags;
        }
    }
}

/// Leaves 0xb and 0x1f: one thread a core, all cores in one package (Intel SDM 2A, CPUID).
fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32, bits: u32) {
    let (kind, shift, logical) = match entry.index {
        0 => (1, 0, 1),
        1 => (2, bits, count),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = entry.index | (kind << 8);
    entry.edx = apic_id;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: 0, edx: !0, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_number_in_every_leaf_that_tells_one() {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_001e, 0)]);
        let cpuid = for_vcpu(&supported.unwrap(), 2, 3, false);
        assert_eq!(find(&cpuid, 1, 0).ebx >> 16, 0x0203);
        assert_eq!(find(&cpuid, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(find(&cpuid, 0xb, 1).edx, 2);
        assert_eq!((find(&cpuid, 0xb, 1).eax, find(&cpuid, 0xb, 1).ebx), (2, 3));
        assert_eq!((find(&cpuid, 0xb, 0).eax, find(&cpuid, 0xb, 0).ebx), (0, 1));
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
    }

    #[test]
    fn another_vendor_and_a_feature_less_do_not_fit_and_a_feature_more_does() {
        let of = |vendor, features| {
            let vendor = kvm_cpuid_entry2 { ebx: vendor, ..entry(0, 0) };
            [vendor, kvm_cpuid_entry2 { ecx: features, edx: 1, eax: 0, ..entry(1, 0) }]
        };
        assert_eq!(misfit(&of(1, 0b01), &of(1, 0b11)), None);
        assert!(misfit(&of(1, 0b11), &of(1, 0b01)).unwrap().contains("0x2 of CPUID leaf 0x1"));
        assert!(misfit(&of(1, 1), &of(2, 1)).unwrap().contains("vendor"));
        assert!(misfit(&of(1, 1), &[]).is_some());
    }

    #[test]
    fn a_missing_core_level_is_added() {
        let supported = CpuId::from_entries(&[entry(0xb, 0)]).unwrap();
        let cpuid = for_vcpu(&supported, 3, 4, false);
        assert_eq!((find(&cpuid, 0xb, 1).eax, find(&cpuid, 0xb, 1).ebx), (2, 4));
        assert_eq!((find(&cpuid, 0xb, 1).ecx, find(&cpuid, 0xb, 1).edx), (0x201, 3));
        assert_eq!(cpuid.as_slice().iter().filter(|e| e.function == 0x1f).count(), 0);
    }

    #[test]
    fn features_that_a_saved_machine_cannot_keep_or_an_emulated_kernel_cannot_use_are_withheld() {
        let supported = CpuId::from_entries(&[entry(KVM_FEATURES, 0)]).unwrap();
        let emulated = find(&for_vcpu(&supported, 0, 1, true), KVM_FEATURES, 0).eax;
        assert_eq!(emulated & (1 << 7 | 1 << 11 | 1 << 14), 0);
        let real = find(&for_vcpu(&supported, 0, 1, false), KVM_FEATURES, 0).eax;
        assert_eq!(!real, 1 << 4 | 1 << 10 | 1 << 14);
    }
}
