//! The raw calls of the Windows Hypervisor Platform, as one trait: `ffi` makes them, a script plays them in the tests.
//!
//! Names and numbers are those of `WinHvPlatform.h`; structures are the bytes that the platform writes, so that what is
//! decoded is decoded above this line, on every host.

use std::fmt;
use std::io;

use vm_memory::GuestRegionMmap;

/// A region of guest memory.
pub type Region = GuestRegionMmap<servin_devices::mem::Written>;

/// A partition: the platform's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition(pub isize);

/// An HRESULT that says what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct Hresult(pub i32);

/// `WHV_E_UNKNOWN_CAPABILITY`: this Windows does not know what was asked for.
pub const UNKNOWN_CAPABILITY: Hresult = Hresult(0x8037_0300_u32.cast_signed());
/// `WHV_E_INSUFFICIENT_BUFFER`.
pub const INSUFFICIENT_BUFFER: Hresult = Hresult(0x8037_0301_u32.cast_signed());
/// `WHV_E_UNKNOWN_PROPERTY`.
pub const UNKNOWN_PROPERTY: Hresult = Hresult(0x8037_0302_u32.cast_signed());
/// `ERROR_NOT_SUPPORTED`, also for a function that this Windows does not have.
pub const NOT_SUPPORTED: Hresult = Hresult(0x8007_0032_u32.cast_signed());

impl fmt::Display for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = match *self {
            UNKNOWN_CAPABILITY => "unknown capability",
            INSUFFICIENT_BUFFER => "the buffer is too small",
            UNKNOWN_PROPERTY => "unknown property",
            NOT_SUPPORTED => "not supported by this version of Windows",
            Self(code) => match code.cast_unsigned() {
                0x8007_0005 => "access denied",
                0x8007_000e => "out of memory",
                0x8007_0057 => "invalid argument",
                0x8037_0303 => "invalid configuration of the partition",
                0x8037_0304 => "the guest's registers are not valid",
                0x8037_0308 => "the virtual processor is not there",
                0x8037_0309 => "the virtual processor is running or not in a state for this",
                _ => return write!(f, "HRESULT {:#010x}", code.cast_unsigned()),
            },
        };
        write!(f, "{known} (HRESULT {:#010x})", self.0.cast_unsigned())
    }
}

impl From<Hresult> for io::Error {
    fn from(error: Hresult) -> Self {
        Self::other(error)
    }
}

/// Answer of a raw call.
pub type Raw<T> = Result<T, Hresult>;

/// Bytes of an exit context, more than any version of Windows writes.
pub const CONTEXT_SIZE: usize = 512;

/// `WHV_RUN_VP_EXIT_CONTEXT`, as it was written.
#[derive(Clone)]
#[repr(C, align(16))]
pub struct Context(pub [u8; CONTEXT_SIZE]);

/// The raw calls. A `Partition` comes from [`Self::create_partition`]; one that was deleted is refused by the platform.
pub trait Api: Send + Sync + 'static {
    /// `WHvGetCapability`: fills `out`, returns the bytes written.
    fn capability(&self, code: u32, out: &mut [u8]) -> Raw<usize>;
    /// `WHvCreatePartition`.
    fn create_partition(&self) -> Raw<Partition>;
    /// `WHvSetPartitionProperty`.
    fn set_property(&self, partition: Partition, code: u32, value: &[u8]) -> Raw<()>;
    /// `WHvSetupPartition`.
    fn setup_partition(&self, partition: Partition) -> Raw<()>;
    /// `WHvDeletePartition`.
    fn delete_partition(&self, partition: Partition) -> Raw<()>;
    /// `WHvMapGpaRange` of a whole region. The caller keeps it mapped for as long as the partition exists.
    fn map(&self, partition: Partition, region: &Region, flags: u32) -> Raw<()>;
    /// `WHvQueryGpaRangeDirtyBitmap`: a bit per 4 KiB page, cleared by asking.
    fn query_dirty(&self, partition: Partition, gpa: u64, bytes: u64, bitmap: &mut [u64]) -> Raw<()>;
    /// `WHvRequestInterrupt` with this `WHV_INTERRUPT_CONTROL`.
    fn request_interrupt(&self, partition: Partition, control: [u8; 16]) -> Raw<()>;
    /// `WHvCreateVirtualProcessor`.
    fn create_vp(&self, partition: Partition, index: u32) -> Raw<()>;
    /// `WHvDeleteVirtualProcessor`.
    fn delete_vp(&self, partition: Partition, index: u32) -> Raw<()>;
    /// `WHvRunVirtualProcessor`.
    fn run_vp(&self, partition: Partition, index: u32, context: &mut Context) -> Raw<()>;
    /// `WHvCancelRunVirtualProcessor`.
    fn cancel_vp(&self, partition: Partition, index: u32) -> Raw<()>;
    /// `WHvGetVirtualProcessorRegisters`; `values` is as long as `names`.
    fn registers(&self, partition: Partition, index: u32, names: &[u32], values: &mut [u128]) -> Raw<()>;
    /// `WHvSetVirtualProcessorRegisters`.
    fn set_registers(&self, partition: Partition, index: u32, values: &[(u32, u128)]) -> Raw<()>;
    /// A state that is bytes to everybody.
    fn blob(&self, partition: Partition, index: u32, blob: Blob) -> Raw<Vec<u8>>;
    /// Takes it back.
    fn set_blob(&self, partition: Partition, index: u32, blob: Blob, bytes: &[u8]) -> Raw<()>;
}

/// A state that the platform gives as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// `WHvGetVirtualProcessorInterruptControllerState2`: the local APIC.
    Apic,
    /// `WHvGetVirtualProcessorXsaveState`: the extended state, compacted or not, as the platform has it.
    Xsave,
}

/// `WHV_CAPABILITY_CODE`.
pub mod capability {
    /// 4 bytes, a BOOL.
    pub const HYPERVISOR_PRESENT: u32 = 0;
    /// 8 bytes of bits.
    pub const FEATURES: u32 = 1;
    /// 8 bytes of bits: the processor's.
    pub const PROCESSOR_FEATURES: u32 = 0x1001;
    /// 8 bytes of bits: of the extended state.
    pub const XSAVE_FEATURES: u32 = 0x1003;
    /// 8 bytes: the TSC's frequency in Hz.
    pub const PROCESSOR_CLOCK_FREQUENCY: u32 = 0x1004;
    /// 8 bytes: the local APIC timer's frequency in Hz.
    pub const INTERRUPT_CLOCK_FREQUENCY: u32 = 0x1005;

    /// In [`FEATURES`]: the local APIC is emulated.
    pub const LOCAL_APIC_EMULATION: u64 = 1 << 1;
    /// In [`FEATURES`]: dirty pages are tracked.
    pub const DIRTY_PAGE_TRACKING: u64 = 1 << 3;
}

/// `WHV_PARTITION_PROPERTY_CODE`.
pub mod property {
    /// 8 bytes of bits.
    pub const EXTENDED_VM_EXITS: u32 = 1;
    /// 8 bytes of bits.
    pub const X64_MSR_EXIT_BITMAP: u32 = 5;
    /// An array of `WHV_X64_CPUID_RESULT`.
    pub const CPUID_RESULT_LIST: u32 = 0x1004;
    /// 4 bytes.
    pub const LOCAL_APIC_EMULATION_MODE: u32 = 0x1005;
    /// 4 bytes.
    pub const PROCESSOR_COUNT: u32 = 0x1fff;

    /// In [`EXTENDED_VM_EXITS`]: MSRs.
    pub const X64_MSR_EXIT: u64 = 1 << 1;
    /// In [`X64_MSR_EXIT_BITMAP`]: those only that the platform does not know.
    pub const UNHANDLED_MSRS: u64 = 1;
    /// For [`LOCAL_APIC_EMULATION_MODE`].
    pub const XAPIC: u32 = 1;
}

/// `WHV_MAP_GPA_RANGE_FLAGS`.
pub mod map {
    /// The guest reads.
    pub const READ: u32 = 1;
    /// The guest writes.
    pub const WRITE: u32 = 2;
    /// The guest executes.
    pub const EXECUTE: u32 = 4;
    /// Written pages are told.
    pub const TRACK_DIRTY: u32 = 8;
}

/// `WHV_REGISTER_NAME`. General registers are 0 to 15 in the order of their encoding.
#[allow(missing_docs)]
pub mod name {
    pub const RAX: u32 = 0;
    pub const RCX: u32 = 1;
    pub const RDX: u32 = 2;
    pub const RBX: u32 = 3;
    pub const RSP: u32 = 4;
    pub const RSI: u32 = 6;
    pub const R15: u32 = 15;
    pub const RIP: u32 = 16;
    pub const RFLAGS: u32 = 17;
    pub const ES: u32 = 18;
    pub const CS: u32 = 19;
    pub const SS: u32 = 20;
    pub const DS: u32 = 21;
    pub const FS: u32 = 22;
    pub const GS: u32 = 23;
    pub const LDTR: u32 = 24;
    pub const TR: u32 = 25;
    pub const IDTR: u32 = 26;
    pub const GDTR: u32 = 27;
    pub const CR0: u32 = 28;
    pub const CR2: u32 = 29;
    pub const CR3: u32 = 30;
    pub const CR4: u32 = 31;
    pub const CR8: u32 = 32;
    pub const DR0: u32 = 33;
    pub const DR7: u32 = 38;
    pub const XCR0: u32 = 39;
    pub const TSC: u32 = 0x2000;
    pub const EFER: u32 = 0x2001;
    pub const KERNEL_GS_BASE: u32 = 0x2002;
    pub const APIC_BASE: u32 = 0x2003;
    pub const PAT: u32 = 0x2004;
    pub const SYSENTER_CS: u32 = 0x2005;
    pub const SFMASK: u32 = 0x200b;
    pub const MTRR_DEF_TYPE: u32 = 0x200e;
    pub const TSC_AUX: u32 = 0x207b;
    pub const PENDING_INTERRUPTION: u32 = 0x8000_0000;
    pub const INTERRUPT_STATE: u32 = 0x8000_0001;
    pub const PENDING_EVENT: u32 = 0x8000_0002;
    pub const INTERNAL_ACTIVITY_STATE: u32 = 0x8000_0005;
}
