//! The few Hyper-V enlightenments that spare Linux the calibration of its clocks against a timer (PIT) that is not there.
//!
//! References are to the Hypervisor Top-Level Functional Specification (TLFS). Linux (`arch/x86/kernel/cpu/mshyperv.c`)
//! believes in a Hyper-V that has hypercall and VP index registers, reads the frequencies of TSC and local APIC timer from
//! their registers, and takes the TSC for its clock only where its invariance is offered. Nothing else is offered: no
//! synthetic interrupts or timers, no reference page, no hypercall but the refusal of all of them.

/// A leaf of CPUID and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// EAX on the way in.
    pub function: u32,
    /// EAX, EBX, ECX, EDX on the way out.
    pub result: [u32; 4],
}

/// TLFS 2.4.3: access to the hypercall registers, to the VP index, to the frequencies, to the invariance control.
const FEATURES_EAX: u32 = 1 << 5 | 1 << 6 | 1 << 11 | 1 << 15;
/// TLFS 2.4.3: the frequency registers are there.
const FEATURES_EDX: u32 = 1 << 8;

/// The leaves that a guest finds the enlightenments by.
#[must_use]
pub fn leaves() -> [Leaf; 6] {
    let leaf = |function, result| Leaf { function, result };
    [
        // "Microsoft Hv", and the last leaf.
        leaf(0x4000_0000, [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
        // "Hv#1".
        leaf(0x4000_0001, [0x3123_7648, 0, 0, 0]),
        // The version, of Windows Server 2019; nothing depends on it.
        leaf(0x4000_0002, [17763, 10 << 16, 0, 0]),
        leaf(0x4000_0003, [FEATURES_EAX, 0, 0, FEATURES_EDX]),
        // Recommendations: none; a spinlock is never reported.
        leaf(0x4000_0004, [0, u32::MAX, 0, 0]),
        leaf(0x4000_0005, [super::super::MAX_CPUS as u32, super::super::MAX_CPUS as u32, 0, 0]),
    ]
}

/// Identity of the guest system (TLFS 2.6).
pub const GUEST_OS_ID: u32 = 0x4000_0000;
/// Where the hypercall page is (TLFS 3.13).
pub const HYPERCALL: u32 = 0x4000_0001;
/// Index of the virtual processor (TLFS 7.8.1).
pub const VP_INDEX: u32 = 0x4000_0002;
/// Frequency of the TSC in Hz (TLFS 12.4).
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
/// Frequency of the local APIC's timer in Hz.
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
/// Bit 0 shows the invariance of the TSC in CPUID.
pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// The frequencies of the host's clocks in Hz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Of the time-stamp counter.
    pub tsc_hz: u64,
    /// Of the local APIC's timer, before its divider.
    pub apic_hz: u64,
}

/// The registers of one vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Registers {
    guest_os_id: u64,
    hypercall: u64,
    invariant: u64,
}

impl Registers {
    /// The value of a register; `None`: there is none of this number, the guest gets #GP.
    #[must_use]
    pub fn read(&self, msr: u32, clocks: Clocks, vp_index: u8) -> Option<u64> {
        Some(match msr {
            GUEST_OS_ID => self.guest_os_id,
            HYPERCALL => self.hypercall,
            VP_INDEX => vp_index.into(),
            TSC_FREQUENCY => clocks.tsc_hz,
            APIC_FREQUENCY => clocks.apic_hz,
            TSC_INVARIANT_CONTROL => self.invariant,
            _ => return None,
        })
    }

    /// Sets a register; false: it is not there or may not be written so, the guest gets #GP. There is no hypercall page:
    /// its enable bit stays clear, which guests check.
    #[must_use]
    pub fn write(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            GUEST_OS_ID => self.guest_os_id = value,
            HYPERCALL => self.hypercall = value & !1,
            TSC_INVARIANT_CONTROL if value & !1 == 0 => self.invariant = value,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: Clocks = Clocks { tsc_hz: 3_000_000_000, apic_hz: 200_000_000 };

    #[test]
    fn the_leaves_are_those_that_linux_asks_for() {
        let leaves = leaves();
        let signature: Vec<u8> = leaves[0].result[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(signature, b"Microsoft Hv");
        assert!((0x4000_0005..=0x4000_ffff).contains(&leaves[0].result[0]));
        assert_eq!(leaves[1].result[0].to_le_bytes(), *b"Hv#1");
        let features = leaves.iter().find(|leaf| leaf.function == 0x4000_0003).unwrap().result;
        // HV_MSR_HYPERCALL_AVAILABLE, HV_MSR_VP_INDEX_AVAILABLE, HV_ACCESS_FREQUENCY_MSRS, HV_ACCESS_TSC_INVARIANT.
        assert_eq!(features[0], 0x20 | 0x40 | 0x800 | 0x8000);
        assert_eq!(features[3], 0x100);
        assert!(leaves.windows(2).all(|two| two[0].function + 1 == two[1].function));
    }

    #[test]
    fn clocks_are_told_and_cannot_be_set() {
        let mut registers = Registers::default();
        assert_eq!(registers.read(TSC_FREQUENCY, CLOCKS, 0), Some(3_000_000_000));
        assert_eq!(registers.read(APIC_FREQUENCY, CLOCKS, 0), Some(200_000_000));
        assert_eq!(registers.read(VP_INDEX, CLOCKS, 5), Some(5));
        for msr in [TSC_FREQUENCY, APIC_FREQUENCY, VP_INDEX, 0x4000_0003, 0x10, 0] {
            assert!(!registers.write(msr, 1), "{msr:#x}");
        }
        assert_eq!(registers, Registers::default());
    }

    #[test]
    fn the_hypercall_page_cannot_be_enabled() {
        let mut registers = Registers::default();
        assert!(registers.write(GUEST_OS_ID, 0x8100_0000_0000_0000));
        assert!(registers.write(HYPERCALL, 0x1234_5001));
        assert_eq!(registers.read(HYPERCALL, CLOCKS, 0), Some(0x1234_5000));
        assert!(registers.write(TSC_INVARIANT_CONTROL, 1));
        assert!(!registers.write(TSC_INVARIANT_CONTROL, 2));
        assert_eq!(registers.read(TSC_INVARIANT_CONTROL, CLOCKS, 0), Some(1));
    }
}
