//! PSCI 1.1 (DEN 0022) and as much of the SMC calling convention (DEN 0028) as tells of it.

use serde::{Deserialize, Serialize};

/// PSCI return codes (DEN 0022, 5.2.2).
mod code {
    pub(super) const SUCCESS: u64 = 0;
    pub(super) const NOT_SUPPORTED: u64 = -1_i64 as u64;
    pub(super) const INVALID_PARAMETERS: u64 = -2_i64 as u64;
    pub(super) const ALREADY_ON: u64 = -4_i64 as u64;
}

const VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// Of a function number: its arguments have 64 bits.
const WIDE: u32 = 1 << 30;

/// PSCI 1.1, and version 1.1 of the calling convention: the same number.
const ONE_ONE: u64 = 0x1_0001;
/// The fields of an MPIDR that name a CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Which vCPUs are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    on: Vec<bool>,
}

/// What a call asks the backend to do. The value goes to X0 first, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Go on with this value in X0.
    Return(u64),
    /// X0 := 0, and wait for an interrupt.
    Suspend,
    /// X0 := 0, and start another vCPU.
    CpuOn {
        /// Its index.
        cpu: u8,
        /// Where it begins.
        entry: u64,
        /// Its X0.
        context: u64,
    },
    /// The calling vCPU is off.
    CpuOff,
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

impl Power {
    /// `cpus` vCPUs, the first of them on.
    #[must_use]
    pub fn new(cpus: u8) -> Self {
        Self { on: (0..cpus).map(|index| index == 0).collect() }
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.on.len()
    }

    /// Whether there is none, which no machine has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.on.is_empty()
    }

    /// The vCPU that an MPIDR names: its index is the lowest affinity field.
    fn find(&mut self, mpidr: u64) -> Option<(u8, &mut bool)> {
        let index = u8::try_from(mpidr & AFFINITY).ok()?;
        Some((index, self.on.get_mut(usize::from(index))?))
    }

    /// A call of vCPU `caller` with X0 to X3.
    pub fn call(&mut self, caller: u8, [function, a, b, c]: [u64; 4]) -> Call {
        // The function number has 32 bits, whatever stands above.
        let function = function as u32;
        let wide = function & WIDE != 0;
        let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
        let (a, b, c) = (cut(a), cut(b), cut(c));
        Call::Return(match function {
            VERSION | SMCCC_VERSION => ONE_ONE,
            SMCCC_ARCH_FEATURES => match a as u32 {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => code::SUCCESS,
                _ => code::NOT_SUPPORTED,
            },
            FEATURES => match a as u32 {
                VERSION | CPU_OFF | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET | FEATURES
                | SMCCC_VERSION => code::SUCCESS,
                other if matches!(other & !WIDE, CPU_SUSPEND | CPU_ON | AFFINITY_INFO) => code::SUCCESS,
                _ => code::NOT_SUPPORTED,
            },
            // No trusted system that would have to migrate.
            MIGRATE_INFO_TYPE => 2,
            SYSTEM_OFF => return Call::Off,
            SYSTEM_RESET => return Call::Reset,
            CPU_OFF => {
                if let Some(on) = self.on.get_mut(usize::from(caller)) {
                    *on = false;
                }
                return Call::CpuOff;
            }
            other => match other & !WIDE {
                CPU_SUSPEND => return Call::Suspend,
                CPU_ON => match self.find(a) {
                    None => code::INVALID_PARAMETERS,
                    Some((_, true)) => code::ALREADY_ON,
                    Some((cpu, on)) => {
                        *on = true;
                        return Call::CpuOn { cpu, entry: b, context: c };
                    }
                },
                AFFINITY_INFO => match self.find(a) {
                    // Levels above the CPU itself are not kept.
                    Some((_, on)) if b == 0 => u64::from(!*on),
                    _ => code::INVALID_PARAMETERS,
                },
                _ => code::NOT_SUPPORTED,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: u64 = (CPU_ON | WIDE) as u64;
    const INFO: u64 = (AFFINITY_INFO | WIDE) as u64;

    #[test]
    fn a_cpu_is_started_once_and_again_after_it_went_off() {
        let mut power = Power::new(2);
        assert_eq!(power.call(0, [INFO, 1, 0, 0]), Call::Return(1));
        let on = Call::CpuOn { cpu: 1, entry: 0x4008_0000, context: 7 };
        assert_eq!(power.call(0, [ON, 0x8000_0001, 0x4008_0000, 7]), on);
        assert_eq!(power.call(0, [INFO, 1, 0, 0]), Call::Return(0));
        assert_eq!(power.call(0, [ON, 1, 0x4008_0000, 7]), Call::Return(code::ALREADY_ON));
        assert_eq!(power.call(1, [CPU_OFF.into(), 0, 0, 0]), Call::CpuOff);
        assert_eq!(power.call(0, [ON, 1, 0x4008_0000, 7]), on);
    }

    #[test]
    fn what_is_not_there_is_invalid() {
        let mut power = Power::new(2);
        for target in [2, 0xff, 0x100, 0x1_0000_0000, u64::MAX] {
            assert_eq!(power.call(0, [ON, target, 0, 0]), Call::Return(code::INVALID_PARAMETERS));
            assert_eq!(power.call(0, [INFO, target, 0, 0]), Call::Return(code::INVALID_PARAMETERS));
        }
        assert_eq!(power.call(0, [INFO, 1, 1, 0]), Call::Return(code::INVALID_PARAMETERS));
        for function in [0x8400_0005, 0xc400_0012, 0, u64::MAX, 0x8600_0000] {
            assert_eq!(power.call(0, [function, 0, 0, 0]), Call::Return(code::NOT_SUPPORTED));
        }
    }

    #[test]
    fn narrow_calls_have_narrow_arguments() {
        let mut power = Power::new(2);
        let call =
            power.call(0, [0xffff_ffff_0000_0000 | u64::from(CPU_ON), 1, 0xdead_0000_4008_0000, 1 << 40]);
        assert_eq!(call, Call::CpuOn { cpu: 1, entry: 0x4008_0000, context: 0 });
    }

    #[test]
    fn versions_and_features_are_told() {
        let mut power = Power::new(1);
        assert_eq!(power.call(0, [VERSION.into(), 0, 0, 0]), Call::Return(0x1_0001));
        assert_eq!(power.call(0, [FEATURES.into(), ON, 0, 0]), Call::Return(0));
        assert_eq!(power.call(0, [FEATURES.into(), 0x8400_000e, 0, 0]), Call::Return(code::NOT_SUPPORTED));
        assert_eq!(power.call(0, [SYSTEM_OFF.into(), 0, 0, 0]), Call::Off);
        assert_eq!(power.call(0, [SYSTEM_RESET.into(), 0, 0, 0]), Call::Reset);
        assert_eq!(power.call(0, [0xc400_0001, 0, 0, 0]), Call::Suspend);
    }
}
