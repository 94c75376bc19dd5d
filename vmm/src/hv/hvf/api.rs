//! The raw calls of Hypervisor.framework on Apple silicon, as one trait: `ffi` makes them, a script plays them in the tests.
//!
//! Numbers are those of the framework's headers; a virtual CPU is called on the thread that made it, but for [`Api::exit`].

use std::fmt;
use std::io;

use vm_memory::GuestRegionMmap;

/// A region of guest memory.
pub type Region = GuestRegionMmap<servin_devices::mem::Written>;

/// A `hv_return_t` that says what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct HvError(pub i32);

/// `HV_BUSY`.
pub const BUSY: HvError = HvError(0xfae9_4002_u32.cast_signed());
/// `HV_DENIED`: the program is not signed with the hypervisor entitlement.
pub const DENIED: HvError = HvError(0xfae9_4007_u32.cast_signed());
/// `HV_UNSUPPORTED`, also for a call that this macOS does not have.
pub const UNSUPPORTED: HvError = HvError(0xfae9_400f_u32.cast_signed());

impl fmt::Display for HvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = match self.0.cast_unsigned() {
            0xfae9_4001 => "the operation failed",
            0xfae9_4002 => "busy",
            0xfae9_4003 => "bad argument",
            0xfae9_4004 => "the guest is in an illegal state",
            0xfae9_4005 => "no resources",
            0xfae9_4006 => "no such machine or virtual CPU",
            0xfae9_4007 => "denied",
            0xfae9_400f => "not supported by this macOS or processor",
            _ => return write!(f, "hv_return_t {:#010x}", self.0.cast_unsigned()),
        };
        write!(f, "{known} (hv_return_t {:#010x})", self.0.cast_unsigned())
    }
}

impl From<HvError> for io::Error {
    fn from(error: HvError) -> Self {
        Self::other(error)
    }
}

/// Answer of a raw call.
pub type Raw<T> = Result<T, HvError>;

/// A virtual CPU.
pub type VcpuId = u64;

/// `hv_vcpu_exit_t`, as it was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawExit {
    /// `hv_exit_reason_t`.
    pub reason: u32,
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2.
    pub virtual_address: u64,
    /// The intermediate physical address.
    pub physical_address: u64,
}

/// `hv_exit_reason_t`.
pub mod reason {
    /// `hv_vcpus_exit`.
    pub const CANCELED: u32 = 0;
    /// A trap.
    pub const EXCEPTION: u32 = 1;
    /// The virtual timer fired; it is masked until it is unmasked.
    pub const VTIMER_ACTIVATED: u32 = 2;
}

/// `hv_memory_flags_t`.
pub mod memory {
    /// The guest reads.
    pub const READ: u64 = 1;
    /// The guest writes.
    pub const WRITE: u64 = 2;
    /// The guest executes.
    pub const EXEC: u64 = 4;
}

/// `hv_reg_t`: X0 to X30 are 0 to 30.
#[allow(missing_docs)]
pub mod reg {
    pub const X0: u32 = 0;
    pub const PC: u32 = 31;
    pub const FPCR: u32 = 32;
    pub const FPSR: u32 = 33;
    pub const CPSR: u32 = 34;
}

/// `hv_sys_reg_t`: the encoding of each register, op0 to op2.
#[allow(missing_docs)]
pub mod sys {
    pub const MPIDR_EL1: u16 = 0xc005;
    pub const SCTLR_EL1: u16 = 0xc080;
    pub const CPACR_EL1: u16 = 0xc082;
    pub const TTBR0_EL1: u16 = 0xc100;
    pub const TTBR1_EL1: u16 = 0xc101;
    pub const TCR_EL1: u16 = 0xc102;
    pub const APIAKEYLO_EL1: u16 = 0xc108;
    pub const APIAKEYHI_EL1: u16 = 0xc109;
    pub const APIBKEYLO_EL1: u16 = 0xc10a;
    pub const APIBKEYHI_EL1: u16 = 0xc10b;
    pub const APDAKEYLO_EL1: u16 = 0xc110;
    pub const APDAKEYHI_EL1: u16 = 0xc111;
    pub const APDBKEYLO_EL1: u16 = 0xc112;
    pub const APDBKEYHI_EL1: u16 = 0xc113;
    pub const APGAKEYLO_EL1: u16 = 0xc118;
    pub const APGAKEYHI_EL1: u16 = 0xc119;
    pub const SPSR_EL1: u16 = 0xc200;
    pub const ELR_EL1: u16 = 0xc201;
    pub const SP_EL0: u16 = 0xc208;
    pub const AFSR0_EL1: u16 = 0xc288;
    pub const AFSR1_EL1: u16 = 0xc289;
    pub const ESR_EL1: u16 = 0xc290;
    pub const FAR_EL1: u16 = 0xc300;
    pub const PAR_EL1: u16 = 0xc3a0;
    pub const MAIR_EL1: u16 = 0xc510;
    pub const AMAIR_EL1: u16 = 0xc518;
    pub const VBAR_EL1: u16 = 0xc600;
    pub const CONTEXTIDR_EL1: u16 = 0xc681;
    pub const TPIDR_EL1: u16 = 0xc684;
    pub const CNTKCTL_EL1: u16 = 0xc708;
    pub const CSSELR_EL1: u16 = 0xd000;
    pub const MDSCR_EL1: u16 = 0x8012;
    pub const TPIDR_EL0: u16 = 0xde82;
    pub const TPIDRRO_EL0: u16 = 0xde83;
    pub const CNTV_CTL_EL0: u16 = 0xdf19;
    pub const CNTV_CVAL_EL0: u16 = 0xdf1a;
    pub const SP_EL1: u16 = 0xe208;
}

/// The system registers that are state, in the order in which they are set: the timer is enabled last.
pub const STATE: [u16; 36] = [
    sys::SCTLR_EL1,
    sys::CPACR_EL1,
    sys::TTBR0_EL1,
    sys::TTBR1_EL1,
    sys::TCR_EL1,
    sys::APIAKEYLO_EL1,
    sys::APIAKEYHI_EL1,
    sys::APIBKEYLO_EL1,
    sys::APIBKEYHI_EL1,
    sys::APDAKEYLO_EL1,
    sys::APDAKEYHI_EL1,
    sys::APDBKEYLO_EL1,
    sys::APDBKEYHI_EL1,
    sys::APGAKEYLO_EL1,
    sys::APGAKEYHI_EL1,
    sys::SPSR_EL1,
    sys::ELR_EL1,
    sys::SP_EL0,
    sys::AFSR0_EL1,
    sys::AFSR1_EL1,
    sys::ESR_EL1,
    sys::FAR_EL1,
    sys::PAR_EL1,
    sys::MAIR_EL1,
    sys::AMAIR_EL1,
    sys::VBAR_EL1,
    sys::CONTEXTIDR_EL1,
    sys::TPIDR_EL1,
    sys::CNTKCTL_EL1,
    sys::CSSELR_EL1,
    sys::MDSCR_EL1,
    sys::TPIDR_EL0,
    sys::TPIDRRO_EL0,
    sys::SP_EL1,
    sys::CNTV_CVAL_EL0,
    sys::CNTV_CTL_EL0,
];

/// `hv_gic_icc_reg_t`: what the framework's own GIC keeps for each vCPU beside [`Api::gic_state`].
pub const ICC_STATE: [u16; 9] = [0xc230, 0xc643, 0xc644, 0xc648, 0xc663, 0xc664, 0xc665, 0xc666, 0xc667];

/// What the framework's own GIC wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GicSizes {
    /// Bytes of the distributor.
    pub distributor: u64,
    /// Bytes that it claims for all redistributors.
    pub redistributors: u64,
    /// What both base addresses must be a multiple of.
    pub alignment: u64,
    /// The first shared interrupt.
    pub first_spi: u32,
    /// How many there are.
    pub spis: u32,
}

/// The raw calls.
pub trait Api: Send + Sync + 'static {
    /// `hv_vm_create`: the process has one machine at a time.
    fn vm_create(&self) -> Raw<()>;
    /// `hv_vm_destroy`.
    fn vm_destroy(&self) -> Raw<()>;
    /// `hv_vm_get_max_vcpu_count`.
    fn max_vcpus(&self) -> Raw<u32>;
    /// `hv_vm_map` of a whole region. The caller keeps it mapped for as long as the machine exists.
    fn map(&self, region: &Region, flags: u64) -> Raw<()>;
    /// `hv_vcpu_create` for the calling thread.
    fn vcpu_create(&self) -> Raw<VcpuId>;
    /// `hv_vcpu_destroy`.
    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()>;
    /// `hv_vcpu_run`, and what it left in the exit structure.
    fn run(&self, vcpu: VcpuId) -> Raw<RawExit>;
    /// `hv_vcpus_exit` of one, from any thread.
    fn exit(&self, vcpu: VcpuId) -> Raw<()>;
    /// `hv_vcpu_get_reg`.
    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64>;
    /// `hv_vcpu_set_reg`.
    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()>;
    /// `hv_vcpu_get_simd_fp_reg` of Q0 to Q31.
    fn simd(&self, vcpu: VcpuId, reg: u32) -> Raw<u128>;
    /// `hv_vcpu_set_simd_fp_reg`.
    fn set_simd(&self, vcpu: VcpuId, reg: u32, value: u128) -> Raw<()>;
    /// `hv_vcpu_get_sys_reg`.
    fn sys_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64>;
    /// `hv_vcpu_set_sys_reg`.
    fn set_sys_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()>;
    /// `hv_vcpu_set_pending_interrupt` of both kinds; the framework forgets it with each exit.
    fn set_pending(&self, vcpu: VcpuId, irq: bool, fiq: bool) -> Raw<()>;
    /// `hv_vcpu_set_vtimer_mask`.
    fn set_vtimer_mask(&self, vcpu: VcpuId, masked: bool) -> Raw<()>;
    /// `hv_vcpu_set_vtimer_offset`: CNTVOFF.
    fn set_vtimer_offset(&self, vcpu: VcpuId, offset: u64) -> Raw<()>;
    /// `mach_absolute_time`: what the virtual counter counts, before its offset.
    fn counter(&self) -> u64;
    /// Its frequency in Hz.
    fn counter_hz(&self) -> u64;
    /// What the framework's own GIC wants; `None` where there is none (before macOS 15).
    fn gic_sizes(&self) -> Option<GicSizes>;
    /// `hv_gic_create` at these addresses, between machine and first vCPU.
    fn gic_create(&self, distributor: u64, redistributors: u64) -> Raw<()>;
    /// `hv_gic_set_spi`.
    fn gic_set_spi(&self, intid: u32, level: bool) -> Raw<()>;
    /// `hv_gic_state_get_data`.
    fn gic_state(&self) -> Raw<Vec<u8>>;
    /// `hv_gic_set_state`.
    fn gic_set_state(&self, state: &[u8]) -> Raw<()>;
    /// `hv_gic_get_icc_reg`.
    fn icc_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64>;
    /// `hv_gic_set_icc_reg`.
    fn set_icc_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()>;
}
