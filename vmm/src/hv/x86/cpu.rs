//! What the assist may touch of a stopped vCPU. A backend implements it, and so does the test CPU.

use std::io;

use thiserror::Error;

use super::regs::{Event, Regs, Sregs};
use super::xstate::XstateLayout;

/// A guest-physical address that is not RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("guest-physical {gpa:#x} is not RAM")]
pub struct OutOfRam {
    /// The first address that is not.
    pub gpa: u64,
}

/// Guest-physical memory. No access here crosses a 4 KiB page.
pub trait Physical {
    /// Reads `buf.len()` bytes.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`]: the range is not all RAM.
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam>;

    /// Writes `data`.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`]: the range is not all RAM, or the guest may not write it.
    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam>;

    /// Atomically, against all other vCPUs and devices: if the 8 bytes at `gpa` (aligned) hold `current`, stores `new`.
    /// Returns what was there before.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`], as for a write.
    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam>;
}

/// A stopped vCPU, as far as an access to memory or a port needs it. Errors are the hypervisor's, and end the virtual
/// machine.
#[allow(clippy::missing_errors_doc)]
pub trait Registers: Physical {
    /// General registers, RIP and RFLAGS.
    fn regs(&mut self) -> io::Result<Regs>;

    /// Replaces them.
    fn set_regs(&mut self, regs: &Regs) -> io::Result<()>;

    /// Segments, control registers and descriptor tables. The assist never changes these.
    fn sregs(&mut self) -> io::Result<Sregs>;

    /// Makes `event` the first thing that the vCPU does when it runs again, in place of any exception that the hypervisor
    /// queued for the failed instruction. RIP is already where the handler shall return to: at the instruction for a fault,
    /// behind it for a trap or a software interrupt. For a page fault CR2 is set here too.
    fn inject(&mut self, event: &Event) -> io::Result<()>;
}

/// A stopped vCPU with all that the assist may touch. Errors as for [`Registers`].
#[allow(clippy::missing_errors_doc)]
pub trait Cpu: Registers {
    /// As [`Physical::compare_exchange_8`], for 16 bytes (aligned): `cmpxchg16b`.
    ///
    /// Other vCPUs execute user code natively and have their kernel code carried out by the hypervisor, both on the same
    /// host memory. So this must be the host's own `lock cmpxchg16b` on that memory; a lock that only the monitor takes is
    /// right only where the monitor alone touches guest memory.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`], as for a write.
    fn compare_exchange_16(&mut self, gpa: u64, current: u128, new: u128) -> Result<u128, OutOfRam>;

    /// The extended state in the standard (not compacted) format of SDM vol. 1, 13.4, as KVM_GET_XSAVE2 gives it: the
    /// legacy region with 64-bit pointers, the header with a true XSTATE_BV, then the components at their places in the
    /// layout.
    fn xstate(&mut self) -> io::Result<Vec<u8>>;

    /// Replaces the extended state, same format and length. A component whose XSTATE_BV bit is clear gets its initial
    /// value; MXCSR counts only where bit 1 or 2 is set.
    fn set_xstate(&mut self, image: &[u8]) -> io::Result<()>;

    /// Where the components stand in that image.
    fn xstate_layout(&self) -> XstateLayout;

    /// The guest's XCR0.
    fn xcr0(&mut self) -> io::Result<u64>;

    /// A model-specific register, or `None` where the vCPU has no such register.
    fn msr(&mut self, index: u32) -> io::Result<Option<u64>>;

    /// Drops every cached translation of this vCPU, global ones too. On shadow paging this must reach the shadow (for KVM:
    /// set CR3 to something else and back).
    fn flush_tlb(&mut self) -> io::Result<()>;
}
