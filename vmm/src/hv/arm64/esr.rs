//! Exception syndromes (DDI 0487, ESR_EL2) of what a hypervisor traps, decoded.
//!
//! Register number 31 in a syndrome is the zero register: it reads as zero, and what is loaded into it is dropped.

/// Number of the zero register.
pub const XZR: u8 = 31;

/// Why a guest was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syndrome {
    /// `WFI`, `WFE` or one of them with a timeout (WFIT, WFET).
    Wait {
        /// For an event, not an interrupt: a spin loop that may go on.
        event: bool,
    },
    /// `HVC` of this number. The guest continues behind it by itself.
    Hvc(u16),
    /// `SMC` of this number. The guest is still in front of it.
    Smc(u16),
    /// `MSR`, `MRS`: a system register.
    Register(Access),
    /// A load or store to memory that is not there, or not writable.
    Data(Data),
    /// Execution of memory that is not there.
    Instruction,
    /// A breakpoint, watchpoint or `BRK`, when the monitor debugs.
    Debug,
    /// Anything else, by its exception class.
    Other(u8),
}

/// A system register by its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register {
    /// op0, 2 or 3.
    pub op0: u8,
    /// op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// op2.
    pub op2: u8,
}

impl Register {
    /// The register `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0, op1, crn, crm, op2 }
    }
}

impl std::fmt::Display for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0, self.op1, self.crn, self.crm, self.op2)
    }
}

/// A trapped access to a system register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Which.
    pub register: Register,
    /// `MSR`: the guest writes it.
    pub write: bool,
    /// The general register that is read or written; [`XZR`] is the zero register.
    pub rt: u8,
}

/// A trapped load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// A store.
    pub write: bool,
    /// What the instruction was; `None`: the processor does not say (pairs, write-back, vectors).
    pub transfer: Option<Transfer>,
    /// Cache maintenance by address: nothing is transferred.
    pub cache: bool,
    /// The fault was met on a walk of the guest's own page tables.
    pub walk: bool,
}

/// The register and width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The value is extended by its sign.
    pub signed: bool,
    /// The register has 64 bits; else 32, and its upper half is cleared.
    pub wide: bool,
    /// The register; [`XZR`] is the zero register.
    pub rt: u8,
}

impl Transfer {
    /// What arrives in the register when the device answered with these bytes (little-endian).
    #[must_use]
    pub fn extend(&self, bytes: u64) -> u64 {
        let unused = 64 - 8 * u32::from(self.size.clamp(1, 8));
        let value = if self.signed {
            ((bytes << unused).cast_signed() >> unused).cast_unsigned()
        } else {
            bytes << unused >> unused
        };
        if self.wide { value } else { value & 0xffff_ffff }
    }
}

/// Decodes a syndrome.
#[must_use]
pub fn decode(esr: u64) -> Syndrome {
    let bits = |low: u32, count: u32| (esr >> low & ((1 << count) - 1)) as u8;
    let bit = |at: u32| esr >> at & 1 != 0;
    match bits(26, 6) {
        0x01 => Syndrome::Wait { event: bit(0) },
        0x16 => Syndrome::Hvc(esr as u16),
        0x17 => Syndrome::Smc(esr as u16),
        0x18 => Syndrome::Register(Access {
            register: Register {
                op0: bits(20, 2),
                op2: bits(17, 3),
                op1: bits(14, 3),
                crn: bits(10, 4),
                crm: bits(1, 4),
            },
            rt: bits(5, 5),
            write: !bit(0),
        }),
        0x20 | 0x21 => Syndrome::Instruction,
        0x24 | 0x25 => Syndrome::Data(Data {
            write: bit(6),
            transfer: bit(24).then(|| Transfer {
                size: 1 << bits(22, 2),
                signed: bit(21),
                wide: bit(15),
                rt: bits(16, 5),
            }),
            cache: bit(8),
            walk: bit(7),
        }),
        0x30..=0x35 | 0x3c => Syndrome::Debug,
        other => Syndrome::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_calls_are_told_apart() {
        assert_eq!(decode(0x0600_0000), Syndrome::Wait { event: false });
        assert_eq!(decode(0x0600_0001), Syndrome::Wait { event: true });
        assert_eq!(decode(0x5a00_0000), Syndrome::Hvc(0));
        assert_eq!(decode(0x5e00_1234), Syndrome::Smc(0x1234));
    }

    #[test]
    fn a_system_register_is_found_by_its_encoding() {
        // As recorded for `mrs x5, ICC_IAR1_EL1` (S3_0_C12_C12_0) and `msr ICC_EOIR1_EL1, xzr`.
        let read = (0x18_u64 << 26) | 1 << 25 | 3 << 20 | 12 << 10 | 5 << 5 | 12 << 1 | 1;
        let access = |register, write, rt| Syndrome::Register(Access { register, write, rt });
        assert_eq!(decode(read), access(Register::new(3, 0, 12, 12, 0), false, 5));
        let write = (0x18_u64 << 26) | 1 << 25 | 3 << 20 | 1 << 17 | 12 << 10 | 31 << 5 | 12 << 1;
        assert_eq!(decode(write), access(Register::new(3, 0, 12, 12, 1), true, XZR));
        assert_eq!(Register::new(3, 0, 12, 12, 1).to_string(), "S3_0_C12_C12_1");
    }

    #[test]
    fn a_store_of_the_zero_register_is_one_of_register_31() {
        // `str wzr, [x1]`: a store of 4 bytes, register 31.
        let Syndrome::Data(data) = decode(0x939f_0046) else { panic!("not a data abort") };
        assert!(data.write && !data.cache && !data.walk);
        assert_eq!(data.transfer, Some(Transfer { size: 4, signed: false, wide: false, rt: XZR }));
        // A pair is not described.
        let Syndrome::Data(data) = decode(0x9200_0046) else { panic!("not a data abort") };
        assert_eq!(data.transfer, None);
    }

    #[test]
    fn loads_extend_as_their_instruction_says() {
        let transfer = |size, signed, wide| Transfer { size, signed, wide, rt: 0 };
        for (load, bytes, expected) in [
            (transfer(1, false, false), 0xff80, 0x80),
            (transfer(1, true, false), 0x80, 0xffff_ff80),
            (transfer(2, true, true), 0x8000, 0xffff_ffff_ffff_8000),
            (transfer(4, true, true), 0x8000_0000, 0xffff_ffff_8000_0000),
            (transfer(4, false, false), u64::MAX, 0xffff_ffff),
            (transfer(8, false, true), u64::MAX, u64::MAX),
        ] {
            assert_eq!(load.extend(bytes), expected, "{load:?}");
        }
    }

    #[test]
    fn every_syndrome_decodes() {
        for class in 0..64_u64 {
            for iss in [0, 0x01ff_ffff, 0x0155_5555] {
                let _ = decode(class << 26 | iss);
                let _ = decode(class << 26 | iss | 0xffff_ffff_0000_0000);
            }
        }
        assert_eq!(decode(0x3f << 26), Syndrome::Other(0x3f));
        assert_eq!(decode(0x20 << 26), Syndrome::Instruction);
    }
}
