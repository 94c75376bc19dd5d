//! The state in which a vCPU executes its first instruction, said once for all backends of an architecture.

/// The first state of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// An x86 vCPU with flat segments.
    X86(X86Entry),
    /// An arm64 vCPU at EL1 with the MMU off (`Documentation/arch/arm64/booting.rst`).
    Arm64(Arm64Entry),
}

/// How an x86 vCPU begins. Interrupts are off; segments are flat, code at [`X86Entry::CODE`], data at
/// [`X86Entry::DATA`], descriptors as in [`X86Entry::GDT`].
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
