//! The instruction assist: what a hypervisor's own instruction emulator lacks.
//!
//! A hypervisor without nested virtualization under it (`kvm_pvm`) interprets the guest's kernel instruction by
//! instruction, and stops with "emulation failure" where its interpreter knows no answer. A backend then calls [`assist`]
//! with the bytes it was shown. The assist decodes them (iced-x86), carries the instruction out on the stopped vCPU
//! through the [`Cpu`] trait, advances RIP, and the backend runs the vCPU again.
//!
//! ```text
//!   KVM_RUN ── emulation failure, bytes ──> assist ──> decode ──> operands (paging) ──> effect
//!      ^                                                 │ #UD          │ #PF #GP          │
//!      └──── registers set, event injected, run again <──┴──────────────┴─────────────────┘
//! ```
//!
//! What holds for every instruction:
//! - registers are committed once, at the end: an instruction that faults has changed nothing but accessed and dirty
//!   bits in the page tables (and, as on hardware, memory before the fault of a store that spans pages is untouched,
//!   because every page of it is checked first);
//! - memory operands go through a walk of the guest's page tables ([`paging`]) with the processor's permission checks,
//!   and end in the page fault that the processor would raise;
//! - nothing here trusts a value from the guest: no panic, no unchecked index, no unbounded loop.
//!
//! Only CPL 0 is emulated. User code runs natively on such a host, and the hypervisor itself answers #UD for the rare
//! user instruction that it has to interpret and cannot: so does the assist.
//!
//! Not modelled: the debug trap after an assisted instruction that is single-stepped (RFLAGS.TF), and data breakpoints.
//!
//! References are to the Intel SDM, volumes 1 (registers, XSAVE), 2 (instructions) and 3 (paging, descriptors).

mod access;
mod bits;
mod control;
mod cpu;
mod descriptor;
mod exec;
pub mod hyperv;
pub mod ioapic;
pub mod lapic;
pub mod paging;
pub mod pic;
pub mod ram;
mod regs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vector;
mod xsave;
mod xstate;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Mnemonic};
use thiserror::Error;

use self::exec::{Exec, Stop};

pub use self::access::access;
pub use self::cpu::{Cpu, OutOfRam, Physical, Registers};
pub use self::regs::{Event, Regs, Segment, Sregs, Table, cr0, cr4, efer, rflags, vector as exception};
pub use self::xstate::{Component, LayoutError, XstateLayout};

/// The longest x86 instruction, in bytes (SDM vol. 2, 2.3.11).
pub const LONGEST_INSTRUCTION: usize = 15;

/// What became of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, and RIP stands behind it.
    Done,
    /// It ended in this exception or software interrupt, which was handed to [`Cpu::inject`].
    Injected(Event),
    /// Another vCPU changed a page table under the walk; nothing happened, and running the guest again tries anew.
    Retry,
    /// A part of a long string operation was carried out; running the guest again does the rest ([`access()`] only).
    Partly,
}

/// The bytes of an instruction, for messages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    bytes: [u8; LONGEST_INSTRUCTION],
    len: usize,
}

impl Bytes {
    fn new(from: &[u8]) -> Self {
        let mut bytes = Self::default();
        bytes.append(from);
        bytes
    }

    fn append(&mut self, more: &[u8]) {
        for &byte in more {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
    }

    /// The bytes themselves, at most 15.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.as_slice().iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// Why an instruction could not be assisted. Each of these ends the virtual machine; what the guest itself did wrong is an
/// exception inside the guest ([`Outcome::Injected`]) instead.
#[derive(Debug, Error)]
pub enum AssistError {
    /// The instruction is valid, but nobody here emulates it.
    #[error(
        "the guest kernel executed the instruction {bytes} at {rip:#x}, which neither the hypervisor nor the assist emulates"
    )]
    Unsupported {
        /// Where it stands.
        rip: u64,
        /// Its bytes. Their name is not here: the decoder's names are 79 KiB of pointers, relocated at every start.
        bytes: Bytes,
    },
    /// An instruction that is assisted only for RAM had an operand, or a page table, elsewhere.
    #[error("an assisted instruction at {rip:#x} needs guest-physical {gpa:#x}, which is not RAM")]
    NotRam {
        /// Where the instruction stands.
        rip: u64,
        /// The guest-physical address.
        gpa: u64,
    },
    /// The guest uses a paging mode that the walk does not know: 32-bit or PAE paging.
    #[error(
        "an assisted instruction at {rip:#x} has a memory operand under 32-bit paging, which is not supported"
    )]
    LegacyPaging {
        /// Where the instruction stands.
        rip: u64,
    },
    /// The hypervisor's image of the extended state is shorter than its components need.
    #[error("the hypervisor's extended state image has {have} bytes where {need} are needed")]
    StateImage {
        /// Bytes that the components need.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The hypervisor refused to give or take vCPU state.
    #[error("cannot {doing} of a vCPU to assist an instruction")]
    Hypervisor {
        /// What was tried.
        doing: &'static str,
        /// The hypervisor's answer.
        source: io::Error,
    },
}

/// Carries out the instruction at RIP of a stopped vCPU and advances RIP, or injects the exception that it ends in.
///
/// `bytes` is what the hypervisor showed of it, from RIP on; bytes of following instructions behind it do no harm, and bytes
/// that are missing are fetched from guest memory.
///
/// # Errors
///
/// [`AssistError`]: the instruction is unknown, touches something other than RAM, or the hypervisor failed. The vCPU is then
/// still in front of the instruction.
pub fn assist(cpu: &mut dyn Cpu, bytes: &[u8]) -> Result<Outcome, AssistError> {
    let regs =
        cpu.regs().map_err(|source| AssistError::Hypervisor { doing: "read the registers", source })?;
    let sregs = cpu
        .sregs()
        .map_err(|source| AssistError::Hypervisor { doing: "read the system registers", source })?;
    let mut exec = Exec::new(cpu, regs, sregs, Bytes::new(bytes));
    match run(&mut exec) {
        Ok(()) => exec.retire().map(|()| Outcome::Done),
        // A fault leaves the registers as they were.
        Err(Stop::Fault(event)) => exec.inject(event).map(|()| Outcome::Injected(event)),
        // A trap or software interrupt returns behind its instruction.
        Err(Stop::Trap(event)) => {
            exec.retire()?;
            exec.inject(event).map(|()| Outcome::Injected(event))
        }
        Err(Stop::Retry) => Ok(Outcome::Retry),
        Err(Stop::Error(error)) => Err(error),
    }
}

/// Decodes the instruction and hands it to the file that knows it.
fn run(exec: &mut Exec<'_>) -> Result<(), Stop> {
    if exec.sregs.cpl != 0 {
        return Err(Stop::undefined());
    }
    decode(exec)?;
    match exec.insn.mnemonic() {
        Mnemonic::INVALID | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Err(Stop::undefined()),

        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 => control::interrupt(exec),
        Mnemonic::Xgetbv => control::xgetbv(exec),
        Mnemonic::Rdtscp => control::rdtscp(exec),
        Mnemonic::Clac | Mnemonic::Stac => control::access_check(exec),
        Mnemonic::Invpcid => control::invpcid(exec),
        Mnemonic::Clwb => control::write_back(exec),
        Mnemonic::Clzero => control::clzero(exec),
        Mnemonic::Rdsspd | Mnemonic::Rdsspq => control::read_shadow_stack(exec),
        Mnemonic::Cmpxchg16b => control::compare_exchange_16(exec),

        Mnemonic::Lar | Mnemonic::Lsl => descriptor::load(exec),
        Mnemonic::Verr | Mnemonic::Verw => descriptor::verify(exec),

        Mnemonic::Popcnt
        | Mnemonic::Andn
        | Mnemonic::Bextr
        | Mnemonic::Blsi
        | Mnemonic::Blsmsk
        | Mnemonic::Blsr
        | Mnemonic::Bzhi => bits::with_flags(exec),
        Mnemonic::Crc32
        | Mnemonic::Pdep
        | Mnemonic::Pext
        | Mnemonic::Rorx
        | Mnemonic::Sarx
        | Mnemonic::Shlx
        | Mnemonic::Shrx => bits::without_flags(exec),
        Mnemonic::Mulx => bits::mulx(exec),
        Mnemonic::Adcx | Mnemonic::Adox => bits::add_with_flag(exec),

        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::save(exec),
        Mnemonic::Xsavec | Mnemonic::Xsavec64 | Mnemonic::Xsaves | Mnemonic::Xsaves64 => xsave::save(exec),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 | Mnemonic::Xrstors | Mnemonic::Xrstors64 => {
            xsave::restore(exec)
        }

        Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr => vector::control_status(exec),
        Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movntdqa | Mnemonic::Lddqu => vector::copy(exec),
        Mnemonic::Pxor | Mnemonic::Xorps | Mnemonic::Xorpd => vector::xor(exec),
        Mnemonic::Emms | Mnemonic::Fnclex | Mnemonic::Wait | Mnemonic::Fnstsw => vector::x87(exec),

        _ => Err(exec.unsupported().into()),
    }
}

/// Decodes at RIP, fetching from guest memory what the hypervisor did not show.
fn decode<C: Registers + ?Sized>(exec: &mut Exec<'_, C>) -> Result<(), Stop> {
    let bitness = exec.sregs.bitness();
    let rip = exec.regs.rip;
    loop {
        let mut decoder = Decoder::with_ip(bitness, exec.bytes.as_slice(), rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        if insn.is_invalid() && decoder.position() >= LONGEST_INSTRUCTION {
            // Longer than an instruction may be: #GP(0), SDM vol. 3, 6.15.
            return Err(Stop::protection(0));
        }
        if !insn.is_invalid() || decoder.last_error() != DecoderError::NoMoreBytes {
            exec.insn = insn;
            if !insn.is_invalid() {
                exec.bytes.len = exec.bytes.len.min(insn.len());
            }
            return Ok(());
        }
        exec.fetch_one()?;
    }
}
