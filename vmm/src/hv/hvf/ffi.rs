//! Hypervisor.framework itself, by the declarations of applevisor-sys. Its GIC (macOS 15) is looked up at run time, so that
//! the program starts on an older macOS.

// A leaf that may use unsafe: the framework is C.
#![allow(unsafe_code)]

use std::arch::aarch64::{uint8x16_t, vld1q_u8};
use std::arch::asm;
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::mem::transmute;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use applevisor_sys::{
    hv_interrupt_type_t, hv_reg_t, hv_simd_fp_reg_t, hv_sys_reg_t, hv_vcpu_create, hv_vcpu_destroy,
    hv_vcpu_exit_t, hv_vcpu_get_reg, hv_vcpu_get_simd_fp_reg, hv_vcpu_get_sys_reg, hv_vcpu_run,
    hv_vcpu_set_pending_interrupt, hv_vcpu_set_reg, hv_vcpu_set_simd_fp_reg, hv_vcpu_set_sys_reg,
    hv_vcpu_set_vtimer_mask, hv_vcpu_set_vtimer_offset, hv_vcpus_exit, hv_vm_create, hv_vm_destroy,
    hv_vm_get_max_vcpu_count, hv_vm_map, os_release,
};
use vm_memory::{Address, GuestMemoryRegion, MemoryRegionAddress};

use super::api::{Api, GicSizes, HvError, Raw, RawExit, Region, UNSUPPORTED, VcpuId};

unsafe extern "C" {
    safe fn mach_absolute_time() -> u64;
    fn mach_timebase_info(info: *mut [u32; 2]) -> i32;
}

thread_local! {
    /// Where the framework writes the exits of this thread's vCPU.
    static EXIT: Cell<*const hv_vcpu_exit_t> = const { Cell::new(null()) };
}

/// The framework of this Mac.
pub(super) struct Framework {
    counter_hz: u64,
}

impl Framework {
    pub(super) fn new() -> Self {
        let mut base = [0_u32; 2];
        // SAFETY: mach_timebase_info_data_t is two numbers, which are written.
        let failed = unsafe { mach_timebase_info(&raw mut base) } != 0;
        // Nanoseconds are ticks times the first by the second.
        let counter_hz = match base {
            [numerator, denominator] if !failed && numerator > 0 => {
                1_000_000_000 * u64::from(denominator) / u64::from(numerator)
            }
            _ => 24_000_000,
        };
        Self { counter_hz }
    }
}

fn check(result: i32) -> Raw<()> {
    if result == 0 { Ok(()) } else { Err(HvError(result)) }
}

macro_rules! table {
    ($name:ident: $type:ident = $($variant:ident)*) => {
        const $name: &[$type] = &[$($type::$variant),*];
    };
}

table!(REGISTERS: hv_reg_t =
    X0 X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 X12 X13 X14 X15 X16 X17 X18 X19 X20 X21 X22 X23 X24 X25 X26 X27 X28 X29 X30
    PC FPCR FPSR CPSR);
table!(VECTORS: hv_simd_fp_reg_t =
    Q0 Q1 Q2 Q3 Q4 Q5 Q6 Q7 Q8 Q9 Q10 Q11 Q12 Q13 Q14 Q15 Q16 Q17 Q18 Q19 Q20 Q21 Q22 Q23 Q24 Q25 Q26 Q27 Q28 Q29 Q30
    Q31);
table!(SYSTEM: hv_sys_reg_t =
    MPIDR_EL1 SCTLR_EL1 CPACR_EL1 TTBR0_EL1 TTBR1_EL1 TCR_EL1 APIAKEYLO_EL1 APIAKEYHI_EL1 APIBKEYLO_EL1 APIBKEYHI_EL1
    APDAKEYLO_EL1 APDAKEYHI_EL1 APDBKEYLO_EL1 APDBKEYHI_EL1 APGAKEYLO_EL1 APGAKEYHI_EL1 SPSR_EL1 ELR_EL1 SP_EL0 AFSR0_EL1
    AFSR1_EL1 ESR_EL1 FAR_EL1 PAR_EL1 MAIR_EL1 AMAIR_EL1 VBAR_EL1 CONTEXTIDR_EL1 TPIDR_EL1 CNTKCTL_EL1 CSSELR_EL1
    MDSCR_EL1 TPIDR_EL0 TPIDRRO_EL0 SP_EL1 CNTV_CVAL_EL0 CNTV_CTL_EL0);

fn register(number: u32) -> Raw<hv_reg_t> {
    REGISTERS.get(number as usize).copied().ok_or(UNSUPPORTED)
}

fn vector(number: u32) -> Raw<hv_simd_fp_reg_t> {
    VECTORS.get(number as usize).copied().ok_or(UNSUPPORTED)
}

fn system(encoding: u16) -> Raw<hv_sys_reg_t> {
    let found = SYSTEM.iter().find(|register| **register as u32 == u32::from(encoding));
    found.copied().ok_or(UNSUPPORTED)
}

impl Api for Framework {
    fn vm_create(&self) -> Raw<()> {
        // SAFETY: no configuration is the default one.
        check(unsafe { hv_vm_create(null_mut()) })
    }

    fn vm_destroy(&self) -> Raw<()> {
        // SAFETY: no arguments; it is refused where there is no machine.
        check(unsafe { hv_vm_destroy() })
    }

    fn max_vcpus(&self) -> Raw<u32> {
        let mut count = 0;
        // SAFETY: the count is written to a variable of ours.
        check(unsafe { hv_vm_get_max_vcpu_count(&raw mut count) })?;
        Ok(count)
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
        let mut exit: *const hv_vcpu_exit_t = null();
        // SAFETY: both are written to variables of ours; no configuration is the default one. The framework keeps the exit
        // structure until the vCPU is destroyed, on this thread.
        check(unsafe { hv_vcpu_create(&raw mut id, &raw mut exit, null_mut()) })?;
        EXIT.set(exit);
        Ok(id)
    }

    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()> {
        EXIT.set(null());
        // SAFETY: numbers only; one that is not this thread's is refused.
        check(unsafe { hv_vcpu_destroy(vcpu) })
    }

    fn run(&self, vcpu: VcpuId) -> Raw<RawExit> {
        let exit = EXIT.get();
        if exit.is_null() {
            return Err(UNSUPPORTED);
        }
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_run(vcpu) })?;
        // SAFETY: the structure is the framework's for this thread's vCPU (see `vcpu_create`), written before the call
        // returned. The reason is read as a number, for it may be one that the declaration does not know.
        unsafe {
            let exception = &raw const (*exit).exception;
            Ok(RawExit {
                reason: exit.cast::<u32>().read_volatile(),
                syndrome: (&raw const (*exception).syndrome).read_volatile(),
                virtual_address: (&raw const (*exception).virtual_address).read_volatile(),
                physical_address: (&raw const (*exception).physical_address).read_volatile(),
            })
        }
    }

    fn exit(&self, vcpu: VcpuId) -> Raw<()> {
        // SAFETY: one number is read.
        check(unsafe { hv_vcpus_exit((&raw const vcpu).cast_mut(), 1) })
    }

    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64> {
        let mut value = 0;
        // SAFETY: the value is written to a variable of ours.
        check(unsafe { hv_vcpu_get_reg(vcpu, register(reg)?, &raw mut value) })?;
        Ok(value)
    }

    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_reg(vcpu, register(reg)?, value) })
    }

    fn simd(&self, vcpu: VcpuId, reg: u32) -> Raw<u128> {
        let mut value = 0_u128;
        // SAFETY: 16 bytes are written to a variable of ours, which is aligned for them.
        check(unsafe { hv_vcpu_get_simd_fp_reg(vcpu, vector(reg)?, &raw mut value) })?;
        Ok(value)
    }

    fn set_simd(&self, vcpu: VcpuId, reg: u32, value: u128) -> Raw<()> {
        let number = vector(reg)? as u32;
        let bytes = value.to_le_bytes();
        let result: u64;
        // SAFETY: the function takes the vCPU, the register and, in V0, a vector by value: a type that cannot be declared for
        // C functions yet, hence the call by hand. It follows the platform's convention.
        unsafe {
            let lanes: uint8x16_t = vld1q_u8(bytes.as_ptr());
            asm!(
                "blr {call}",
                call = in(reg) hv_vcpu_set_simd_fp_reg as *const c_void,
                inlateout("x0") vcpu => result,
                in("x1") u64::from(number),
                in("v0") lanes,
                clobber_abi("C"),
            );
        }
        check(result as i32)
    }

    fn sys_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64> {
        let mut value = 0;
        // SAFETY: the value is written to a variable of ours.
        check(unsafe { hv_vcpu_get_sys_reg(vcpu, system(reg)?, &raw mut value) })?;
        Ok(value)
    }

    fn set_sys_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_sys_reg(vcpu, system(reg)?, value) })
    }

    fn set_pending(&self, vcpu: VcpuId, irq: bool, fiq: bool) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_pending_interrupt(vcpu, hv_interrupt_type_t::IRQ, irq) })?;
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_pending_interrupt(vcpu, hv_interrupt_type_t::FIQ, fiq) })
    }

    fn set_vtimer_mask(&self, vcpu: VcpuId, masked: bool) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_vtimer_mask(vcpu, masked) })
    }

    fn set_vtimer_offset(&self, vcpu: VcpuId, offset: u64) -> Raw<()> {
        // SAFETY: numbers only.
        check(unsafe { hv_vcpu_set_vtimer_offset(vcpu, offset) })
    }

    fn counter(&self) -> u64 {
        mach_absolute_time()
    }

    fn counter_hz(&self) -> u64 {
        self.counter_hz
    }

    fn gic_sizes(&self) -> Option<GicSizes> {
        let gic = gic()?;
        let ask = |call: unsafe extern "C" fn(*mut usize) -> i32| {
            let mut value = 0_usize;
            // SAFETY: the value is written to a variable of ours.
            check(unsafe { call(&raw mut value) }).ok().map(|()| value as u64)
        };
        let (mut first_spi, mut spis) = (0, 0);
        // SAFETY: both are written to variables of ours.
        check(unsafe { (gic.spi_range)(&raw mut first_spi, &raw mut spis) }).ok()?;
        Some(GicSizes {
            distributor: ask(gic.distributor_size)?,
            redistributors: ask(gic.redistributor_region_size)?,
            alignment: ask(gic.distributor_alignment)?.max(ask(gic.redistributor_alignment)?),
            first_spi,
            spis,
        })
    }

    fn gic_create(&self, distributor: u64, redistributors: u64) -> Raw<()> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        // SAFETY: no arguments.
        let config = Object(unsafe { (gic.config_create)() });
        if config.0.is_null() {
            return Err(UNSUPPORTED);
        }
        // SAFETY: the configuration is alive until `config` is dropped.
        unsafe {
            check((gic.set_distributor_base)(config.0, distributor))?;
            check((gic.set_redistributor_base)(config.0, redistributors))?;
            check((gic.create)(config.0))
        }
    }

    fn gic_set_spi(&self, intid: u32, level: bool) -> Raw<()> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        // SAFETY: numbers only.
        check(unsafe { (gic.set_spi)(intid, level) })
    }

    fn gic_state(&self) -> Raw<Vec<u8>> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        // SAFETY: no arguments.
        let state = Object(unsafe { (gic.state_create)() });
        if state.0.is_null() {
            return Err(UNSUPPORTED);
        }
        let mut size = 0_usize;
        // SAFETY: the state is alive until it is dropped, and the size is written to a variable of ours.
        check(unsafe { (gic.state_size)(state.0, &raw mut size) })?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as the framework told.
        check(unsafe { (gic.state_data)(state.0, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn gic_set_state(&self, state: &[u8]) -> Raw<()> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        // SAFETY: as many bytes are read as are there.
        check(unsafe { (gic.set_state)(state.as_ptr().cast(), state.len()) })
    }

    fn icc_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        let mut value = 0;
        // SAFETY: the value is written to a variable of ours; a register that is not there is refused.
        check(unsafe { (gic.icc_reg)(vcpu, reg.into(), &raw mut value) })?;
        Ok(value)
    }

    fn set_icc_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()> {
        let gic = gic().ok_or(UNSUPPORTED)?;
        // SAFETY: numbers only.
        check(unsafe { (gic.set_icc_reg)(vcpu, reg.into(), value) })
    }
}

/// An object of the framework, released on drop.
struct Object(*mut c_void);

impl Drop for Object {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it was created for us and is released once.
            unsafe { os_release(self.0) };
        }
    }
}

/// Declares the functions of the GIC, and the structure that holds them.
macro_rules! functions {
    ($($field:ident: $symbol:literal = fn($($arg:ty),*) -> $result:ty;)*) => {
        struct Gic {
            $($field: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl Gic {
            fn find() -> Option<Self> {
                Some(Self {
                    $($field: {
                        let found = symbol($symbol)?;
                        // SAFETY: the symbol is the function that hv_gic.h declares with these arguments.
                        unsafe { transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $result>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    config_create: c"hv_gic_config_create" = fn() -> *mut c_void;
    set_distributor_base: c"hv_gic_config_set_distributor_base" = fn(*mut c_void, u64) -> i32;
    set_redistributor_base: c"hv_gic_config_set_redistributor_base" = fn(*mut c_void, u64) -> i32;
    create: c"hv_gic_create" = fn(*mut c_void) -> i32;
    set_spi: c"hv_gic_set_spi" = fn(u32, bool) -> i32;
    distributor_size: c"hv_gic_get_distributor_size" = fn(*mut usize) -> i32;
    distributor_alignment: c"hv_gic_get_distributor_base_alignment" = fn(*mut usize) -> i32;
    redistributor_region_size: c"hv_gic_get_redistributor_region_size" = fn(*mut usize) -> i32;
    redistributor_alignment: c"hv_gic_get_redistributor_base_alignment" = fn(*mut usize) -> i32;
    spi_range: c"hv_gic_get_spi_interrupt_range" = fn(*mut u32, *mut u32) -> i32;
    state_create: c"hv_gic_state_create" = fn() -> *mut c_void;
    state_size: c"hv_gic_state_get_size" = fn(*mut c_void, *mut usize) -> i32;
    state_data: c"hv_gic_state_get_data" = fn(*mut c_void, *mut c_void) -> i32;
    set_state: c"hv_gic_set_state" = fn(*const c_void, usize) -> i32;
    icc_reg: c"hv_gic_get_icc_reg" = fn(u64, u32, *mut u64) -> i32;
    set_icc_reg: c"hv_gic_set_icc_reg" = fn(u64, u32, u64) -> i32;
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The framework's GIC, where this macOS has one.
fn gic() -> Option<&'static Gic> {
    static GIC: OnceLock<Option<Gic>> = OnceLock::new();
    GIC.get_or_init(Gic::find).as_ref()
}
