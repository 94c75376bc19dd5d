//! The state in which a vCPU executes its first instruction, said once for all backends of an architecture.

use servin_devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// The first state of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// An x86 vCPU with flat segments.
    X86(X86Entry),
    /// An arm64 vCPU at EL1 with the MMU off (`Documentation/arch/arm64/booting.rst`).
    Arm64(Arm64Entry),
}

/// How an x86 vCPU begins. Interrupts are off; segments are flat, code at [`X86Entry::CODE`], data at
/// [`X86Entry::DATA`], descriptors as in [`X86Entry::gdt()`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct X86Entry {
    /// The mode of the first instruction.
    pub mode: X86Mode,
    /// Address of the first instruction.
    pub rip: u64,
    /// First value of RSP.
    pub rsp: u64,
    /// First value of RBX (PVH: address of the start info).
    pub rbx: u64,
    /// First value of RSI (Linux: address of the boot parameters).
    pub rsi: u64,
    /// Guest physical address of the descriptor table that the loader put into RAM.
    pub gdt: u64,
}

/// The mode of the first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum X86Mode {
    /// 32-bit protected mode without paging (PVH).
    Protected,
    /// 64-bit mode with these page tables (CR3).
    Long {
        /// Guest physical address of the top-level table.
        page_table: u64,
    },
}

impl X86Entry {
    /// Selector of the code segment (`__BOOT_CS` of the Linux boot protocol).
    pub const CODE: u16 = 0x10;
    /// Selector of the data segments (`__BOOT_DS`).
    pub const DATA: u16 = 0x18;
    /// Selector of the task segment.
    pub const TASK: u16 = 0x20;

    /// The descriptor table for `mode`: null, null, flat code, flat data, a task segment (Intel SDM 3A, 3.4.5).
    #[must_use]
    pub fn gdt(mode: X86Mode) -> [u64; 5] {
        let code = match mode {
            X86Mode::Protected => 0x00cf_9b00_0000_ffff,
            X86Mode::Long { .. } => 0x00af_9b00_0000_ffff,
        };
        [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
    }
}

/// How an arm64 vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm64Entry {
    /// Address of the first instruction.
    pub pc: u64,
    /// First value of X0 (the boot CPU: address of the device tree; others: PSCI context).
    pub x0: u64,
}

impl X86Entry {
    /// Writes page tables at `at` that map the first `gib` (at most 512) GiB of linear addresses to the same physical
    /// ones, in pages of 2 MiB. They take `2 + gib` pages.
    ///
    /// # Errors
    /// The place is not in RAM.
    pub fn write_identity_map(ram: &GuestRam, at: u64, gib: u16) -> Result<(), GuestMemoryError> {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        const PAGE: u64 = 0x1000;
        let gib = u64::from(gib.min(512));
        ram.write_obj((at + PAGE) | PRESENT_WRITABLE, GuestAddress(at))?;
        for table in 0..gib {
            let directory = at + (2 + table) * PAGE;
            ram.write_obj(directory | PRESENT_WRITABLE, GuestAddress(at + PAGE + table * 8))?;
            let mut entries = [0; PAGE as usize];
            for (index, entry) in (table * 512..).zip(entries.chunks_exact_mut(8)) {
                entry.copy_from_slice(&(index << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
            }
            ram.write_slice(&entries, GuestAddress(directory))?;
        }
        Ok(())
    }

    /// Writes the descriptor table for `mode` at `at`.
    ///
    /// # Errors
    /// The place is not in RAM.
    pub fn write_gdt(ram: &GuestRam, at: u64, mode: X86Mode) -> Result<(), GuestMemoryError> {
        let bytes: Vec<u8> = Self::gdt(mode).iter().flat_map(|entry| entry.to_le_bytes()).collect();
        ram.write_slice(&bytes, GuestAddress(at))
    }
}
