//! Hypervisor.framework on Macs with Intel processors: VMX by the framework, the interrupt controllers here.
//!
//! ```text
//! device ── IrqLine ──> x86::ioapic ──> x86::lapic ── nudge the vCPU ──> entry event of its VMCS ──> guest
//! guest ── hv_vcpu_run_until returns ──> exit reason ──> x86::access, ports, MSRs, CPUID ──> GuestIo
//! ```
//! - A virtual CPU belongs to the thread that made it: `bind` makes it, and nothing but `hv_vcpu_interrupt` reaches it from
//!   elsewhere. What that call does to one that is not inside is not promised, so it is sent again until the vCPU is back
//!   ([`crate::hv::kick`]), for interrupts as for kicks.
//! - An access to a device is an EPT violation; our decoder ([`crate::hv::x86::access()`]) carries it out. One in RAM is the
//!   framework's to populate: the guest runs again.
//! - Local APICs are ours, too ([`crate::hv::x86::lapic`]). The deadline of `hv_vcpu_run_until` is that of the APIC's timer.
//! - There is no PIT, so the guest is told its clocks by Hyper-V's registers ([`crate::hv::x86::hyperv`]). The time-stamp
//!   counter is the processor's own, the same on every vCPU; after a restore it goes on from the saved value.
//! - A halted guest parks on a condition variable until its timer is due, an interrupt is there or a kick comes. Other vCPUs
//!   wait there for INIT and SIPI, which our APICs carry.
//! - The guest's PAT is kept, not loaded: no device's memory is the guest's, so its memory types decide about nothing.
//! - A process has one machine at a time; a second one is refused with the reason.
//!
//! Nothing of this has run on a Mac yet: see docs/backends.md.

pub mod api;
mod controls;
mod cpuid;
mod exit;
#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
mod ffi;
mod fields;
mod msr;
mod registers;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

use std::fmt;
use std::sync::Arc;

use self::api::Api;
use self::controls::Controls;
use super::failed;
use crate::error::Error;
use crate::hv::x86::hyperv::Clocks;
use crate::hv::x86::lapic;
use crate::hv::{Caps, Hypervisor, IrqChip, MAX_CPUS, Machine, Plan, VcpuSlot};

/// The name in saved state; a user is told `hvf`.
const BACKEND: &str = "hvf-vmx";

/// The framework.
pub struct Vmx {
    api: Arc<dyn Api>,
    caps: Caps,
    host: Host,
}

/// What of the host a machine depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Host {
    clocks: Clocks,
    controls: Controls,
    /// Bits of the processor.
    features: [u64; 4],
}

impl fmt::Debug for Vmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmx").field("caps", &self.caps).finish_non_exhaustive()
    }
}

impl Vmx {
    /// Asks this Mac's framework for what it can do.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when the processor does not virtualize.
    #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
    pub fn open() -> Result<Self, Error> {
        Self::with(Arc::new(ffi::Framework::new()))
    }

    /// The framework behind these raw calls.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when the processor does not virtualize, or not as needed here.
    pub fn with(api: Arc<dyn Api>) -> Result<Self, Error> {
        let most = api.max_vcpus().map_err(|error| Error::NoHypervisor {
            why: format!(
                "Hypervisor.framework: {error}; `sysctl kern.hv_support` says whether this Mac's processor virtualizes, and \
                 inside a virtual machine nested virtualization must be on"
            ),
        })?;
        let controls = Controls::ask(&*api)?;
        let tsc_hz = api.tsc_hz().ok().filter(|hz| *hz > 0).ok_or_else(|| Error::NoHypervisor {
            why: "this Mac does not tell the frequency of its time-stamp counter (sysctl machdep.tsc.frequency)".to_owned(),
        })?;
        let host = Host {
            clocks: Clocks { tsc_hz, apic_hz: lapic::TIMER_HZ },
            controls,
            features: cpuid::features(&*api, controls),
        };
        let caps = Caps {
            name: super::BACKEND,
            variant: None,
            max_cpus: u8::try_from(most).unwrap_or(MAX_CPUS).min(MAX_CPUS),
            emulates_kernel: false,
            triple_fault: true,
            doorbells: false,
            read_only: true,
            executes_code: true,
            starts_cpus: true,
            page_size: vm::PAGE,
        };
        Ok(Self { api, caps, host })
    }
}

impl Hypervisor for Vmx {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn create(&self, plan: &Plan) -> Result<Machine, Error> {
        if plan.cpus == 0 || plan.cpus > self.caps.max_cpus {
            return Err(Error::Config(format!(
                "{} vCPUs; 1 to {} are possible",
                plan.cpus, self.caps.max_cpus
            )));
        }
        let vm = Arc::new(vm::Vm::new(Arc::clone(&self.api), self.host, plan)?);
        let slots =
            (0..plan.cpus).map(|index| Box::new(vcpu::Slot::new(&vm, index)) as Box<dyn VcpuSlot>).collect();
        Ok(Machine { vm: Arc::new(vm::Shared(vm)), slots, irqchip: IrqChip::Pc })
    }
}
