//! `WinHvPlatform.dll`, loaded at run time, so that the program starts on a Windows without it.

// A leaf that may use unsafe: a library is loaded, and its functions are called through pointers.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::io;
use std::mem::transmute;
use std::ptr::null_mut;

use vm_memory::{Address, GuestMemoryRegion, MemoryRegionAddress};
use windows_sys::Win32::Foundation::HMODULE;
use windows_sys::Win32::System::Hypervisor::{
    WHV_PARTITION_HANDLE, WHV_REGISTER_NAME, WHV_REGISTER_VALUE, WHV_RUN_VP_EXIT_CONTEXT,
};
use windows_sys::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows_sys::core::HRESULT;

use super::api::{
    Api, Blob, CONTEXT_SIZE, Context, Hresult, INSUFFICIENT_BUFFER, NOT_SUPPORTED, Partition, Raw, Region,
};

// What the platform writes must fit what is given to it.
const _: () = assert!(size_of::<WHV_RUN_VP_EXIT_CONTEXT>() <= CONTEXT_SIZE);
const _: () = assert!(size_of::<WHV_REGISTER_VALUE>() == size_of::<u128>());
const _: () = assert!(align_of::<u128>() >= align_of::<WHV_REGISTER_VALUE>());

/// The most bytes of a state blob that are asked for.
const MOST_BLOB: u32 = 1 << 20;

type Handle = WHV_PARTITION_HANDLE;

/// Declares the functions that are looked up, and the structure that holds them.
macro_rules! functions {
    ($($field:ident: $symbol:literal = fn($($arg:ty),*);)*) => {
        struct Functions {
            $($field: unsafe extern "system" fn($($arg),*) -> HRESULT,)*
        }

        impl Functions {
            fn find(library: HMODULE) -> Result<Self, io::Error> {
                Ok(Self {
                    $($field: {
                        let found = symbol(library, $symbol)?;
                        // SAFETY: the symbol is the function that WinHvPlatform.h declares with these arguments.
                        unsafe {
                            transmute::<
                                unsafe extern "system" fn() -> isize,
                                unsafe extern "system" fn($($arg),*) -> HRESULT,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    capability: c"WHvGetCapability" = fn(i32, *mut c_void, u32, *mut u32);
    create_partition: c"WHvCreatePartition" = fn(*mut Handle);
    set_property: c"WHvSetPartitionProperty" = fn(Handle, i32, *const c_void, u32);
    setup_partition: c"WHvSetupPartition" = fn(Handle);
    delete_partition: c"WHvDeletePartition" = fn(Handle);
    map: c"WHvMapGpaRange" = fn(Handle, *const c_void, u64, u64, i32);
    query_dirty: c"WHvQueryGpaRangeDirtyBitmap" = fn(Handle, u64, u64, *mut u64, u32);
    request_interrupt: c"WHvRequestInterrupt" = fn(Handle, *const c_void, u32);
    create_vp: c"WHvCreateVirtualProcessor" = fn(Handle, u32, u32);
    delete_vp: c"WHvDeleteVirtualProcessor" = fn(Handle, u32);
    run_vp: c"WHvRunVirtualProcessor" = fn(Handle, u32, *mut c_void, u32);
    cancel_vp: c"WHvCancelRunVirtualProcessor" = fn(Handle, u32, u32);
    registers: c"WHvGetVirtualProcessorRegisters" = fn(Handle, u32, *const WHV_REGISTER_NAME, u32, *mut u128);
    set_registers: c"WHvSetVirtualProcessorRegisters" =
        fn(Handle, u32, *const WHV_REGISTER_NAME, u32, *const u128);
    apic: c"WHvGetVirtualProcessorInterruptControllerState2" = fn(Handle, u32, *mut c_void, u32, *mut u32);
    set_apic: c"WHvSetVirtualProcessorInterruptControllerState2" = fn(Handle, u32, *const c_void, u32);
    xsave: c"WHvGetVirtualProcessorXsaveState" = fn(Handle, u32, *mut c_void, u32, *mut u32);
    set_xsave: c"WHvSetVirtualProcessorXsaveState" = fn(Handle, u32, *const c_void, u32);
}

/// The library. Never unloaded: its functions may be running.
pub(super) struct Dll(Functions);

impl Dll {
    /// Loads it from the system's own directory, and nowhere else.
    pub(super) fn load() -> io::Result<Self> {
        let name: Vec<u16> = "WinHvPlatform.dll\0".encode_utf16().collect();
        // SAFETY: the name ends with a zero and outlives the call.
        let library = unsafe { LoadLibraryExW(name.as_ptr(), null_mut(), LOAD_LIBRARY_SEARCH_SYSTEM32) };
        if library.is_null() {
            return Err(io::Error::last_os_error());
        }
        Functions::find(library).map(Self)
    }
}

fn symbol(library: HMODULE, name: &CStr) -> io::Result<unsafe extern "system" fn() -> isize> {
    // SAFETY: the library is loaded, the name ends with a zero.
    let found = unsafe { GetProcAddress(library, name.as_ptr().cast()) };
    found.ok_or_else(|| {
        io::Error::other(format!("this Windows is too old: it has no {}", name.to_string_lossy()))
    })
}

fn check(result: HRESULT) -> Raw<()> {
    if result < 0 { Err(Hresult(result)) } else { Ok(()) }
}

/// A length for the platform; none of ours comes near the limit.
fn length<T>(of: &[T]) -> Raw<u32> {
    u32::try_from(size_of_val(of)).map_err(|_| NOT_SUPPORTED)
}

impl Api for Dll {
    fn capability(&self, code: u32, out: &mut [u8]) -> Raw<usize> {
        let mut written = 0;
        let room = length(out)?;
        // SAFETY: `out` has `room` bytes, and the count is written to a number of ours.
        check(unsafe {
            (self.0.capability)(code.cast_signed(), out.as_mut_ptr().cast(), room, &raw mut written)
        })?;
        Ok(written as usize)
    }

    fn create_partition(&self) -> Raw<Partition> {
        let mut handle: Handle = 0;
        // SAFETY: the handle is written to a variable of ours.
        check(unsafe { (self.0.create_partition)(&raw mut handle) })?;
        Ok(Partition(handle))
    }

    fn set_property(&self, partition: Partition, code: u32, value: &[u8]) -> Raw<()> {
        let count = length(value)?;
        // SAFETY: the platform reads `count` bytes of `value`.
        check(unsafe { (self.0.set_property)(partition.0, code.cast_signed(), value.as_ptr().cast(), count) })
    }

    fn setup_partition(&self, partition: Partition) -> Raw<()> {
        // SAFETY: numbers only; the platform refuses a handle that is not one of its own.
        check(unsafe { (self.0.setup_partition)(partition.0) })
    }

    fn delete_partition(&self, partition: Partition) -> Raw<()> {
        // SAFETY: as above.
        check(unsafe { (self.0.delete_partition)(partition.0) })
    }

    fn map(&self, partition: Partition, region: &Region, flags: u32) -> Raw<()> {
        let host = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| NOT_SUPPORTED)?;
        let (gpa, size) = (region.start_addr().raw_value(), region.len());
        // SAFETY: the region is a mapping of `size` bytes at `host`; the caller keeps it for as long as the partition (`Vm`
        // holds both), and the monitor reaches its pages by volatile accesses only.
        check(unsafe { (self.0.map)(partition.0, host.cast_const().cast(), gpa, size, flags.cast_signed()) })
    }

    fn query_dirty(&self, partition: Partition, gpa: u64, bytes: u64, bitmap: &mut [u64]) -> Raw<()> {
        let room = length(bitmap)?;
        // SAFETY: the bitmap has `room` bytes.
        check(unsafe { (self.0.query_dirty)(partition.0, gpa, bytes, bitmap.as_mut_ptr(), room) })
    }

    fn request_interrupt(&self, partition: Partition, control: [u8; 16]) -> Raw<()> {
        let control = u128::from_le_bytes(control);
        // SAFETY: WHV_INTERRUPT_CONTROL has 16 bytes, and these are aligned for it.
        check(unsafe { (self.0.request_interrupt)(partition.0, (&raw const control).cast(), 16) })
    }

    fn create_vp(&self, partition: Partition, index: u32) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { (self.0.create_vp)(partition.0, index, 0) })
    }

    fn delete_vp(&self, partition: Partition, index: u32) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { (self.0.delete_vp)(partition.0, index) })
    }

    fn run_vp(&self, partition: Partition, index: u32, context: &mut Context) -> Raw<()> {
        let to: *mut Context = context;
        // SAFETY: the context has CONTEXT_SIZE bytes, aligned, and is not looked at during the call.
        check(unsafe { (self.0.run_vp)(partition.0, index, to.cast(), CONTEXT_SIZE as u32) })
    }

    fn cancel_vp(&self, partition: Partition, index: u32) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { (self.0.cancel_vp)(partition.0, index, 0) })
    }

    fn registers(&self, partition: Partition, index: u32, names: &[u32], values: &mut [u128]) -> Raw<()> {
        let count = u32::try_from(names.len().min(values.len())).map_err(|_| NOT_SUPPORTED)?;
        // SAFETY: both have `count` items, of the sizes checked on top.
        check(unsafe {
            (self.0.registers)(partition.0, index, names.as_ptr().cast(), count, values.as_mut_ptr())
        })
    }

    fn set_registers(&self, partition: Partition, index: u32, values: &[(u32, u128)]) -> Raw<()> {
        let (names, values): (Vec<u32>, Vec<u128>) = values.iter().copied().unzip();
        let count = u32::try_from(names.len()).map_err(|_| NOT_SUPPORTED)?;
        // SAFETY: both have `count` items, of the sizes checked on top.
        check(unsafe {
            (self.0.set_registers)(partition.0, index, names.as_ptr().cast(), count, values.as_ptr())
        })
    }

    fn blob(&self, partition: Partition, index: u32, blob: Blob) -> Raw<Vec<u8>> {
        let call = match blob {
            Blob::Apic => self.0.apic,
            Blob::Xsave => self.0.xsave,
        };
        let mut bytes = vec![0_u8; 0x1000];
        loop {
            let room = length(&bytes)?;
            let mut written = 0;
            // SAFETY: there is room for `room` bytes, and the count is written to a number of ours.
            let result =
                unsafe { call(partition.0, index, bytes.as_mut_ptr().cast(), room, &raw mut written) };
            match check(result) {
                Ok(()) => {
                    bytes.truncate(written as usize);
                    return Ok(bytes);
                }
                Err(INSUFFICIENT_BUFFER) if room < MOST_BLOB => bytes.resize(bytes.len() * 2, 0),
                Err(error) => return Err(error),
            }
        }
    }

    fn set_blob(&self, partition: Partition, index: u32, blob: Blob, bytes: &[u8]) -> Raw<()> {
        let call = match blob {
            Blob::Apic => self.0.set_apic,
            Blob::Xsave => self.0.set_xsave,
        };
        let count = length(bytes)?;
        // SAFETY: the platform reads `count` bytes.
        check(unsafe { call(partition.0, index, bytes.as_ptr().cast(), count) })
    }
}
