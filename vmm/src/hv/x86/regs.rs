//! The registers of an x86 vCPU as the assist sees them: plain data, no hypervisor's types.

/// RFLAGS bits (SDM vol. 1, 3.4.3).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// Resume: no instruction breakpoint at the next instruction.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; with CR4.SMAP, permission for supervisor access to user pages.
    pub const AC: u64 = 1 << 18;
    /// The six status flags that arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0 bits (SDM vol. 3, 2.5).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Wait and FWAIT honour TS.
    pub const MP: u64 = 1 << 1;
    /// No floating-point unit: #NM.
    pub const EM: u64 = 1 << 2;
    /// Task switched: the next floating-point instruction is #NM.
    pub const TS: u64 = 1 << 3;
    /// Supervisor writes obey read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (SDM vol. 3, 2.5).
pub mod cr4 {
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// The system saves SSE state.
    pub const OSFXSR: u64 = 1 << 9;
    /// 5-level paging.
    pub const LA57: u64 = 1 << 12;
    /// The system uses XSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// No supervisor execution of user pages.
    pub const SMEP: u64 = 1 << 20;
    /// No supervisor access to user pages without RFLAGS.AC.
    pub const SMAP: u64 = 1 << 21;
    /// Control-flow enforcement.
    pub const CET: u64 = 1 << 23;
}

/// EFER bits (SDM vol. 3, 2.2.1).
pub mod efer {
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute pages.
    pub const NXE: u64 = 1 << 11;
}

/// Exception vectors (SDM vol. 3, 6.15).
pub mod vector {
    /// Debug.
    pub const DB: u8 = 1;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Stack segment fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 floating-point error.
    pub const MF: u8 = 16;
}

/// General registers, RIP and RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// A segment register with its cached descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Type field of the descriptor, bits 0 to 3.
    pub kind: u8,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit code, or a big stack.
    pub big: bool,
    /// Not loaded.
    pub unusable: bool,
}

/// A descriptor table: GDT, or the LDT behind its selector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte; 0 for a table that is not loaded.
    pub limit: u32,
}

/// Segments, control registers and descriptor tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sregs {
    /// Code segment.
    pub cs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Extra segment.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Global descriptor table.
    pub gdt: Table,
    /// Local descriptor table.
    pub ldt: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
    /// Current privilege level, 0 to 3 (the DPL of SS).
    pub cpl: u8,
    /// Physical address bits of the guest (CPUID 8000_0008h), 32 to 52.
    pub physical_bits: u8,
}

impl Sregs {
    /// Whether the CPU executes 64-bit code.
    pub fn is_64(&self) -> bool {
        self.efer & efer::LMA != 0 && self.cs.long
    }

    /// The code size for the decoder: 16, 32 or 64.
    pub fn bitness(&self) -> u32 {
        if self.is_64() {
            64
        } else if self.cr0 & cr0::PE != 0 && self.cs.big {
            32
        } else {
            16
        }
    }
}

/// What the vCPU shall take when it runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception.
    Exception {
        /// Its vector, 0 to 31.
        vector: u8,
        /// Its error code, where the vector has one.
        error_code: Option<u32>,
    },
    /// A page fault: an exception that also sets CR2.
    PageFault {
        /// The linear address, for CR2.
        address: u64,
        /// The error code (SDM vol. 3, 4.7).
        error_code: u32,
    },
    /// A software interrupt (`int n`): delivered whatever RFLAGS.IF says, without end of interrupt.
    Interrupt {
        /// Its vector.
        vector: u8,
    },
}
