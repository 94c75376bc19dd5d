//! Encodings of the VMCS (SDM vol. 3, appendix B) and of what stands in it.

/// Selectors of ES, CS, SS, DS, FS, GS, LDTR and TR stand on even numbers from here; so do their limits, rights and bases.
pub(super) const SELECTOR: u32 = 0x0800;
pub(super) const LIMIT: u32 = 0x4800;
pub(super) const RIGHTS: u32 = 0x4814;
pub(super) const BASE: u32 = 0x6806;
/// How many segments there are.
pub(super) const SEGMENTS: u32 = 8;

pub(super) const ES: u32 = 0;
pub(super) const CS: u32 = 1;
pub(super) const SS: u32 = 2;
pub(super) const DS: u32 = 3;
pub(super) const FS: u32 = 4;
pub(super) const GS: u32 = 5;
pub(super) const LDTR: u32 = 6;
pub(super) const TR: u32 = 7;

pub(super) const TSC_OFFSET: u32 = 0x2010;
pub(super) const PHYSICAL_ADDRESS: u32 = 0x2400;
pub(super) const EFER: u32 = 0x2806;
/// The first of four, on even numbers.
pub(super) const PDPTE: u32 = 0x280a;
pub(super) const PIN_CONTROLS: u32 = 0x4000;
pub(super) const CONTROLS: u32 = 0x4002;
pub(super) const EXCEPTIONS: u32 = 0x4004;
pub(super) const EXIT_CONTROLS: u32 = 0x400c;
pub(super) const ENTRY_CONTROLS: u32 = 0x4012;
pub(super) const ENTRY_EVENT: u32 = 0x4016;
pub(super) const ENTRY_ERROR: u32 = 0x4018;
pub(super) const ENTRY_LENGTH: u32 = 0x401a;
pub(super) const SECONDARY_CONTROLS: u32 = 0x401e;
pub(super) const REASON: u32 = 0x4402;
pub(super) const EXIT_EVENT: u32 = 0x4404;
pub(super) const VECTORING_EVENT: u32 = 0x4408;
pub(super) const VECTORING_ERROR: u32 = 0x440a;
pub(super) const INSTRUCTION_LENGTH: u32 = 0x440c;
pub(super) const GDTR_LIMIT: u32 = 0x4810;
pub(super) const IDTR_LIMIT: u32 = 0x4812;
pub(super) const INTERRUPTIBILITY: u32 = 0x4824;
pub(super) const ACTIVITY: u32 = 0x4826;
pub(super) const CR0_MASK: u32 = 0x6000;
pub(super) const CR4_MASK: u32 = 0x6002;
pub(super) const CR0_SHADOW: u32 = 0x6004;
pub(super) const CR4_SHADOW: u32 = 0x6006;
pub(super) const QUALIFICATION: u32 = 0x6400;
pub(super) const CR0: u32 = 0x6800;
pub(super) const CR3: u32 = 0x6802;
pub(super) const CR4: u32 = 0x6804;
pub(super) const GDTR_BASE: u32 = 0x6816;
pub(super) const IDTR_BASE: u32 = 0x6818;
pub(super) const PENDING_DEBUG: u32 = 0x6822;

/// Pin-based controls (SDM vol. 3, 24.6.1).
pub(super) mod pin {
    pub(in super::super) const INTERRUPTS: u32 = 1;
    pub(in super::super) const NMI: u32 = 1 << 3;
    pub(in super::super) const VIRTUAL_NMI: u32 = 1 << 5;
}

/// Primary processor-based controls (SDM vol. 3, 24.6.2).
pub(super) mod primary {
    pub(in super::super) const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub(in super::super) const TSC_OFFSET: u32 = 1 << 3;
    pub(in super::super) const HLT: u32 = 1 << 7;
    pub(in super::super) const CR8_LOAD: u32 = 1 << 19;
    pub(in super::super) const CR8_STORE: u32 = 1 << 20;
    pub(in super::super) const NMI_WINDOW: u32 = 1 << 22;
    pub(in super::super) const PORTS: u32 = 1 << 24;
    pub(in super::super) const SECONDARY: u32 = 1 << 31;
}

/// Secondary ones.
pub(super) mod secondary {
    pub(in super::super) const EPT: u32 = 1 << 1;
    pub(in super::super) const RDTSCP: u32 = 1 << 3;
    pub(in super::super) const UNRESTRICTED: u32 = 1 << 7;
    pub(in super::super) const INVPCID: u32 = 1 << 12;
}

/// Controls of entries (SDM vol. 3, 24.8.1).
pub(super) mod entry {
    pub(in super::super) const LONG: u32 = 1 << 9;
    pub(in super::super) const LOAD_EFER: u32 = 1 << 15;
}

/// Controls of exits (SDM vol. 3, 24.7.1).
pub(super) mod exit {
    pub(in super::super) const HOST_LONG: u32 = 1 << 9;
    pub(in super::super) const SAVE_EFER: u32 = 1 << 20;
    pub(in super::super) const LOAD_EFER: u32 = 1 << 21;
}

/// Interruption information (SDM vol. 3, 24.8.3).
pub(super) mod event {
    pub(in super::super) const INTERRUPT: u32 = 0;
    pub(in super::super) const NMI: u32 = 2 << 8;
    pub(in super::super) const EXCEPTION: u32 = 3 << 8;
    pub(in super::super) const KIND: u32 = 7 << 8;
    pub(in super::super) const ERROR: u32 = 1 << 11;
    pub(in super::super) const VALID: u32 = 1 << 31;
    /// What is not reserved.
    pub(in super::super) const KNOWN: u32 = 0xfff | VALID;
}

/// Interruptibility (SDM vol. 3, 24.4.2).
pub(super) mod blocked {
    pub(in super::super) const STI: u64 = 1;
    pub(in super::super) const MOV_SS: u64 = 1 << 1;
    pub(in super::super) const NMI: u64 = 1 << 3;
}

/// Reasons of exits (SDM vol. 3, appendix C).
pub(super) mod reason {
    pub(in super::super) const EXCEPTION_OR_NMI: u32 = 0;
    pub(in super::super) const EXTERNAL_INTERRUPT: u32 = 1;
    pub(in super::super) const TRIPLE_FAULT: u32 = 2;
    pub(in super::super) const INTERRUPT_WINDOW: u32 = 7;
    pub(in super::super) const NMI_WINDOW: u32 = 8;
    pub(in super::super) const CPUID: u32 = 10;
    pub(in super::super) const GETSEC: u32 = 11;
    pub(in super::super) const HLT: u32 = 12;
    pub(in super::super) const INVD: u32 = 13;
    pub(in super::super) const RDPMC: u32 = 15;
    pub(in super::super) const VMCALL: u32 = 18;
    pub(in super::super) const VMXON: u32 = 27;
    pub(in super::super) const CR: u32 = 28;
    pub(in super::super) const PORT: u32 = 30;
    pub(in super::super) const RDMSR: u32 = 31;
    pub(in super::super) const WRMSR: u32 = 32;
    pub(in super::super) const MWAIT: u32 = 36;
    pub(in super::super) const MONITOR: u32 = 39;
    pub(in super::super) const PAUSE: u32 = 40;
    pub(in super::super) const EPT_VIOLATION: u32 = 48;
    pub(in super::super) const INVEPT: u32 = 50;
    pub(in super::super) const TIMER: u32 = 52;
    pub(in super::super) const INVVPID: u32 = 53;
    pub(in super::super) const WBINVD: u32 = 54;
    pub(in super::super) const XSETBV: u32 = 55;
    /// The entry failed.
    pub(in super::super) const FAILED: u32 = 1 << 31;
}
