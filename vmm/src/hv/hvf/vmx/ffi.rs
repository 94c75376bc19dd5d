//! Hypervisor.framework itself on Intel processors. applevisor-sys declares it for Apple silicon alone, so the declarations of
//! `hv.h`, `hv_vmx.h` and `hv_types.h` stand here.

// A leaf that may use unsafe: the framework is C.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid_count, _rdtsc};
use std::ffi::{CStr, c_char, c_int, c_void};

use vm_memory::{Address, GuestMemoryRegion, MemoryRegionAddress};

use super::api::{Api, FOREVER, FPSTATE, HvError, Raw, Region, UNSUPPORTED, VcpuId};

/// `HV_VM_DEFAULT`, `HV_VCPU_DEFAULT`.
const DEFAULT: u64 = 0;
/// `HV_CAP_VCPUMAX`.
const CAP_VCPUMAX: u32 = 0;

#[link(name = "Hypervisor", kind = "framework")]
unsafe extern "C" {
    safe fn hv_vm_create(flags: u64) -> i32;
    safe fn hv_vm_destroy() -> i32;
    fn hv_capability(capability: u32, value: *mut u64) -> i32;
    fn hv_vm_map(uva: *const c_void, gpa: u64, size: usize, flags: u64) -> i32;
    fn hv_vcpu_create(vcpu: *mut VcpuId, flags: u64) -> i32;
    safe fn hv_vcpu_destroy(vcpu: VcpuId) -> i32;
    safe fn hv_vcpu_run_until(vcpu: VcpuId, deadline: u64) -> i32;
    fn hv_vcpu_interrupt(vcpus: *mut VcpuId, count: u32) -> i32;
    fn hv_vcpu_read_register(vcpu: VcpuId, reg: u32, value: *mut u64) -> i32;
    safe fn hv_vcpu_write_register(vcpu: VcpuId, reg: u32, value: u64) -> i32;
    fn hv_vcpu_read_fpstate(vcpu: VcpuId, buffer: *mut c_void, size: usize) -> i32;
    fn hv_vcpu_write_fpstate(vcpu: VcpuId, buffer: *const c_void, size: usize) -> i32;
    safe fn hv_vcpu_enable_native_msr(vcpu: VcpuId, msr: u32, enable: bool) -> i32;
    fn hv_vcpu_read_msr(vcpu: VcpuId, msr: u32, value: *mut u64) -> i32;
    safe fn hv_vcpu_write_msr(vcpu: VcpuId, msr: u32, value: u64) -> i32;
    safe fn hv_vcpu_invalidate_tlb(vcpu: VcpuId) -> i32;
    fn hv_vmx_vcpu_read_vmcs(vcpu: VcpuId, field: u32, value: *mut u64) -> i32;
    safe fn hv_vmx_vcpu_write_vmcs(vcpu: VcpuId, field: u32, value: u64) -> i32;
    fn hv_vmx_read_capability(field: u32, value: *mut u64) -> i32;
}

unsafe extern "C" {
    safe fn mach_absolute_time() -> u64;
    fn mach_timebase_info(info: *mut [u32; 2]) -> i32;
    fn sysctlbyname(
        name: *const c_char,
        old: *mut c_void,
        old_len: *mut usize,
        new: *mut c_void,
        new_len: usize,
    ) -> c_int;
}

/// The extended state, on a page as the framework likes it.
#[repr(C, align(4096))]
struct Extended([u8; FPSTATE]);

/// The framework of this Mac.
pub(super) struct Framework {
    /// Nanoseconds are ticks times the first by the second.
    timebase: [u32; 2],
}

impl Framework {
    pub(super) fn new() -> Self {
        let mut timebase = [0_u32; 2];
        // SAFETY: mach_timebase_info_data_t is two numbers, which are written.
        let failed = unsafe { mach_timebase_info(&raw mut timebase) } != 0;
        Self { timebase: if failed || timebase.contains(&0) { [1, 1] } else { timebase } }
    }

    fn scale(value: u64, by: u32, under: u32) -> u64 {
        u64::try_from(u128::from(value) * u128::from(by) / u128::from(under)).unwrap_or(u64::MAX)
    }
}

fn check(result: i32) -> Raw<()> {
    if result == 0 { Ok(()) } else { Err(HvError(result)) }
}

/// Calls what writes a number.
fn number(ask: impl FnOnce(*mut u64) -> i32) -> Raw<u64> {
    let mut value = 0;
    check(ask(&raw mut value))?;
    Ok(value)
}

/// A number that the system tells.
fn sysctl(name: &CStr) -> Option<u64> {
    let (mut value, mut len) = (0_u64, size_of::<u64>());
    // SAFETY: the name ends with a zero; at most `len` bytes are written to a variable of that size, and nothing is set.
    let result = unsafe {
        sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut len, std::ptr::null_mut(), 0)
    };
    (result == 0 && len == size_of::<u64>()).then_some(value)
}

impl Api for Framework {
    fn vm_create(&self) -> Raw<()> {
        check(hv_vm_create(DEFAULT))
    }

    fn vm_destroy(&self) -> Raw<()> {
        check(hv_vm_destroy())
    }

    fn max_vcpus(&self) -> Raw<u64> {
        // SAFETY: the number is written to a variable of ours.
        number(|value| unsafe { hv_capability(CAP_VCPUMAX, value) })
    }

    fn capability(&self, field: u32) -> Raw<u64> {
        // SAFETY: the number is written to a variable of ours; a field that is not there is refused.
        number(|value| unsafe { hv_vmx_read_capability(field, value) })
    }

    fn map(&self, region: &Region, flags: u64) -> Raw<()> {
        let host = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| UNSUPPORTED)?;
        let size = usize::try_from(region.len()).map_err(|_| UNSUPPORTED)?;
        // SAFETY: the region is a mapping of `size` bytes at `host`; the caller keeps it for as long as the machine (`Vm`
        // holds both), and the monitor reaches its pages by volatile accesses only.
        check(unsafe { hv_vm_map(host.cast_const().cast(), region.start_addr().raw_value(), size, flags) })
    }

    fn vcpu_create(&self) -> Raw<VcpuId> {
        let mut id = 0;
        // SAFETY: the number is written to a variable of ours.
        check(unsafe { hv_vcpu_create(&raw mut id, DEFAULT) })?;
        Ok(id)
    }

    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()> {
        check(hv_vcpu_destroy(vcpu))
    }

    fn run(&self, vcpu: VcpuId, deadline: u64) -> Raw<()> {
        let [by, under] = self.timebase;
        let ticks = if deadline == FOREVER { FOREVER } else { Self::scale(deadline, under, by) };
        check(hv_vcpu_run_until(vcpu, ticks))
    }

    fn interrupt(&self, vcpu: VcpuId) -> Raw<()> {
        let mut one = vcpu;
        // SAFETY: one number is read.
        check(unsafe { hv_vcpu_interrupt(&raw mut one, 1) })
    }

    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64> {
        // SAFETY: the number is written to a variable of ours; a register that is not there is refused.
        number(|value| unsafe { hv_vcpu_read_register(vcpu, reg, value) })
    }

    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()> {
        check(hv_vcpu_write_register(vcpu, reg, value))
    }

    fn vmcs(&self, vcpu: VcpuId, field: u32) -> Raw<u64> {
        // SAFETY: the number is written to a variable of ours; a field that is not there is refused.
        number(|value| unsafe { hv_vmx_vcpu_read_vmcs(vcpu, field, value) })
    }

    fn set_vmcs(&self, vcpu: VcpuId, field: u32, value: u64) -> Raw<()> {
        check(hv_vmx_vcpu_write_vmcs(vcpu, field, value))
    }

    fn msr(&self, vcpu: VcpuId, msr: u32) -> Raw<u64> {
        // SAFETY: the number is written to a variable of ours; an MSR that is not there is refused.
        number(|value| unsafe { hv_vcpu_read_msr(vcpu, msr, value) })
    }

    fn set_msr(&self, vcpu: VcpuId, msr: u32, value: u64) -> Raw<()> {
        check(hv_vcpu_write_msr(vcpu, msr, value))
    }

    fn enable_native_msr(&self, vcpu: VcpuId, msr: u32) -> Raw<()> {
        check(hv_vcpu_enable_native_msr(vcpu, msr, true))
    }

    fn fpstate(&self, vcpu: VcpuId) -> Raw<Vec<u8>> {
        let mut state = Box::new(Extended([0; FPSTATE]));
        // SAFETY: at most as many bytes are written as there are.
        check(unsafe { hv_vcpu_read_fpstate(vcpu, (&raw mut *state).cast(), FPSTATE) })?;
        Ok(state.0.to_vec())
    }

    fn set_fpstate(&self, vcpu: VcpuId, state: &[u8]) -> Raw<()> {
        let mut aligned = Box::new(Extended([0; FPSTATE]));
        for (to, from) in aligned.0.iter_mut().zip(state) {
            *to = *from;
        }
        // SAFETY: at most as many bytes are read as there are.
        check(unsafe { hv_vcpu_write_fpstate(vcpu, (&raw const *aligned).cast(), FPSTATE) })
    }

    fn invalidate_tlb(&self, vcpu: VcpuId) -> Raw<()> {
        check(hv_vcpu_invalidate_tlb(vcpu))
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = __cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn now(&self) -> u64 {
        let [by, under] = self.timebase;
        Self::scale(mach_absolute_time(), by, under)
    }

    fn tsc(&self) -> u64 {
        // SAFETY: the instruction is there on every Mac.
        unsafe { _rdtsc() }
    }

    fn tsc_hz(&self) -> Raw<u64> {
        sysctl(c"machdep.tsc.frequency").ok_or(UNSUPPORTED)
    }
}
