//! What a `WHV_RUN_VP_EXIT_CONTEXT` says. Offsets are those of the structure; a test holds them against its declaration.
//!
//! The bytes come from the host's hypervisor, yet nothing here trusts a count or a code of it: an older or newer Windows
//! may write what this version does not know.

use super::api::{CONTEXT_SIZE, Context};

/// The longest instruction that a context shows.
const SHOWN: usize = 16;

/// An exit, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The instruction that the vCPU stopped at.
    pub rip: u64,
    /// The bytes of it, where the platform knows them; else 0.
    pub length: u8,
    /// 64-bit code: RIP is not cut.
    pub long: bool,
    /// Why it stopped.
    pub reason: Reason,
}

/// Why a vCPU stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An access to memory that is not mapped, or not so.
    Memory {
        /// Guest physical address.
        gpa: u64,
        /// Its instruction, as far as shown.
        bytes: Shown,
        /// An instruction fetch: nothing can be executed there.
        fetch: bool,
    },
    /// A port.
    Port {
        /// Its number.
        port: u16,
        /// Out.
        write: bool,
        /// Bytes of the access as the platform says, 0 to 7.
        size: u8,
        /// `ins` or `outs`, repeated or not.
        string: bool,
        /// RAX before the access.
        rax: u64,
        /// Its instruction, as far as shown.
        bytes: Shown,
    },
    /// An MSR that the platform does not know.
    Msr {
        /// Its number.
        msr: u32,
        /// `wrmsr`.
        write: bool,
        /// EDX:EAX.
        value: u64,
    },
    /// A CPUID that is to be answered here; the answer that the platform would give.
    Cpuid {
        /// EAX, EBX, ECX, EDX.
        default: [u64; 4],
    },
    /// A level-triggered interrupt of this vector ended.
    ApicEoi {
        /// The vector.
        vector: u8,
    },
    /// Somebody cancelled the run.
    Canceled,
    /// The guest may take an interrupt now.
    InterruptWindow,
    /// The guest halted, and the platform does not wait for it.
    Halt,
    /// A triple fault.
    UnrecoverableException,
    /// The registers are not valid for a vCPU.
    InvalidRegister,
    /// The guest used what the platform does not support.
    UnsupportedFeature {
        /// `WHV_X64_UNSUPPORTED_FEATURE_CODE`.
        code: u32,
        /// Its parameter.
        parameter: u64,
    },
    /// A code that this program does not know.
    Other(u32),
}

/// Bytes of an instruction as the platform shows them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    count: u8,
    bytes: [u8; SHOWN],
}

impl Shown {
    /// At most 16.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.count)).unwrap_or(&self.bytes)
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.as_slice())
    }
}

/// Offsets into the context.
pub(super) mod at {
    pub(in super::super) const REASON: usize = 0;
    pub(in super::super) const LENGTH: usize = 10;
    pub(in super::super) const CS_ATTRIBUTES: usize = 30;
    pub(in super::super) const RIP: usize = 32;
    /// Where the part begins that depends on the reason.
    pub(in super::super) const BODY: usize = 48;
    pub(in super::super) const BYTES: usize = BODY + 4;
    pub(in super::super) const INFO: usize = BODY + 20;
    pub(in super::super) const GPA: usize = BODY + 24;
    pub(in super::super) const PORT: usize = BODY + 24;
    pub(in super::super) const PORT_RAX: usize = BODY + 32;
    pub(in super::super) const MSR: usize = BODY + 4;
    pub(in super::super) const MSR_RAX: usize = BODY + 8;
    pub(in super::super) const MSR_RDX: usize = BODY + 16;
    pub(in super::super) const CPUID_DEFAULT: usize = BODY + 32;
    pub(in super::super) const FEATURE_PARAMETER: usize = BODY + 8;
}

/// Segment attribute: 64-bit code.
const LONG: u16 = 1 << 13;

fn take<const N: usize>(bytes: &[u8; CONTEXT_SIZE], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8; CONTEXT_SIZE], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn u64_at(bytes: &[u8; CONTEXT_SIZE], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// Decodes an exit.
#[must_use]
pub fn decode(context: &Context) -> Exit {
    let bytes = &context.0;
    let [count] = take(bytes, at::BODY);
    let shown = Shown { count: count.min(SHOWN as u8), bytes: take(bytes, at::BYTES) };
    let info = u32_at(bytes, at::INFO);
    let reason = match u32_at(bytes, at::REASON) {
        0x1 => Reason::Memory { gpa: u64_at(bytes, at::GPA), bytes: shown, fetch: info & 3 == 2 },
        0x2 => Reason::Port {
            port: u16::from_le_bytes(take(bytes, at::PORT)),
            write: info & 1 != 0,
            size: (info >> 1 & 7) as u8,
            string: info >> 4 & 3 != 0,
            rax: u64_at(bytes, at::PORT_RAX),
            bytes: shown,
        },
        0x4 => Reason::UnrecoverableException,
        0x5 => Reason::InvalidRegister,
        0x6 => Reason::UnsupportedFeature {
            code: u32_at(bytes, at::BODY),
            parameter: u64_at(bytes, at::FEATURE_PARAMETER),
        },
        0x7 => Reason::InterruptWindow,
        0x8 => Reason::Halt,
        0x9 => Reason::ApicEoi { vector: u32_at(bytes, at::BODY) as u8 },
        0x1000 => Reason::Msr {
            msr: u32_at(bytes, at::MSR),
            write: u32_at(bytes, at::BODY) & 1 != 0,
            value: u64_at(bytes, at::MSR_RDX) << 32 | u64_at(bytes, at::MSR_RAX) & 0xffff_ffff,
        },
        0x1001 => {
            // Rax, Rcx, Rdx, Rbx in this order.
            let [a, c, d, b] = [0, 8, 16, 24].map(|offset| u64_at(bytes, at::CPUID_DEFAULT + offset));
            Reason::Cpuid { default: [a, b, c, d] }
        }
        0x2001 => Reason::Canceled,
        other => Reason::Other(other),
    };
    let [length] = take(bytes, at::LENGTH);
    Exit {
        rip: u64_at(bytes, at::RIP),
        length: length & 0xf,
        long: u16::from_le_bytes(take(bytes, at::CS_ATTRIBUTES)) & LONG != 0,
        reason,
    }
}
