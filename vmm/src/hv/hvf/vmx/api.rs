//! The raw calls of Hypervisor.framework on Macs with Intel processors, as one trait: `ffi` makes them, a script plays them
//! in the tests.
//!
//! Numbers are those of the framework's headers and of the Intel SDM; a virtual CPU is called on the thread that made it, but
//! for [`Api::interrupt`].

pub use crate::hv::hvf::api::{BUSY, DENIED, HvError, Raw, Region, UNSUPPORTED, memory};

/// A virtual CPU.
pub type VcpuId = u32;

/// No deadline ([`Api::run`]).
pub const FOREVER: u64 = u64::MAX;

/// Bytes of the extended state that the framework gives and takes.
pub const FPSTATE: usize = 4096;

/// `hv_vmx_capability_t`: in each the lower half must be set, the upper half may be.
pub mod capability {
    /// Pin-based controls.
    pub const PIN: u32 = 0;
    /// Primary processor-based controls.
    pub const PROCESSOR: u32 = 1;
    /// Secondary ones.
    pub const SECONDARY: u32 = 2;
    /// Controls of entries.
    pub const ENTRY: u32 = 3;
    /// Controls of exits.
    pub const EXIT: u32 = 4;
}

/// `hv_x86_reg_t`.
#[allow(missing_docs)]
pub mod reg {
    pub const RIP: u32 = 0;
    pub const RFLAGS: u32 = 1;
    pub const RAX: u32 = 2;
    pub const RCX: u32 = 3;
    pub const RDX: u32 = 4;
    pub const RBX: u32 = 5;
    pub const CR2: u32 = 38;
    pub const DR0: u32 = 41;
    pub const DR6: u32 = 47;
    pub const DR7: u32 = 48;
    pub const XCR0: u32 = 50;

    /// General registers in the order of their encoding.
    pub const GENERAL: [u32; 16] = [RAX, RCX, RDX, RBX, 8, 9, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17];
}

/// The raw calls.
pub trait Api: Send + Sync + 'static {
    /// `hv_vm_create`: the process has one machine at a time.
    fn vm_create(&self) -> Raw<()>;
    /// `hv_vm_destroy`.
    fn vm_destroy(&self) -> Raw<()>;
    /// `hv_capability` of the number of virtual CPUs.
    fn max_vcpus(&self) -> Raw<u64>;
    /// `hv_vmx_read_capability`.
    fn capability(&self, field: u32) -> Raw<u64>;
    /// `hv_vm_map` of a whole region. The caller keeps it mapped for as long as the machine exists.
    fn map(&self, region: &Region, flags: u64) -> Raw<()>;
    /// `hv_vcpu_create` for the calling thread.
    fn vcpu_create(&self) -> Raw<VcpuId>;
    /// `hv_vcpu_destroy`.
    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()>;
    /// `hv_vcpu_run_until`; the deadline is one of [`Self::now`].
    fn run(&self, vcpu: VcpuId, deadline: u64) -> Raw<()>;
    /// `hv_vcpu_interrupt` of one, from any thread.
    fn interrupt(&self, vcpu: VcpuId) -> Raw<()>;
    /// `hv_vcpu_read_register`.
    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64>;
    /// `hv_vcpu_write_register`.
    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()>;
    /// `hv_vmx_vcpu_read_vmcs`.
    fn vmcs(&self, vcpu: VcpuId, field: u32) -> Raw<u64>;
    /// `hv_vmx_vcpu_write_vmcs`.
    fn set_vmcs(&self, vcpu: VcpuId, field: u32, value: u64) -> Raw<()>;
    /// `hv_vcpu_read_msr`.
    fn msr(&self, vcpu: VcpuId, msr: u32) -> Raw<u64>;
    /// `hv_vcpu_write_msr`.
    fn set_msr(&self, vcpu: VcpuId, msr: u32, value: u64) -> Raw<()>;
    /// `hv_vcpu_enable_native_msr`: the guest reaches it without an exit.
    fn enable_native_msr(&self, vcpu: VcpuId, msr: u32) -> Raw<()>;
    /// `hv_vcpu_read_fpstate` of [`FPSTATE`] bytes.
    fn fpstate(&self, vcpu: VcpuId) -> Raw<Vec<u8>>;
    /// `hv_vcpu_write_fpstate`, of as many.
    fn set_fpstate(&self, vcpu: VcpuId, state: &[u8]) -> Raw<()>;
    /// `hv_vcpu_invalidate_tlb`.
    fn invalidate_tlb(&self, vcpu: VcpuId) -> Raw<()>;
    /// CPUID of this processor: EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// `mach_absolute_time`, in nanoseconds.
    fn now(&self) -> u64;
    /// The time-stamp counter of this processor.
    fn tsc(&self) -> u64;
    /// Its frequency in Hz, where the system tells it.
    fn tsc_hz(&self) -> Raw<u64>;
}
