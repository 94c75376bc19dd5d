//! Hypervisor.framework on Apple silicon; on Intel processors it is another one, [`vmx`].
//!
//! ```text
//! device ── IrqLine ──> hv_gic_set_spi (macOS 15 and later)
//!                  └──> arm64::gic ── nudge the vCPU ──> hv_vcpu_set_pending_interrupt ──> guest   (before)
//! guest ── hv_vcpu_run returns ──> syndrome ──> arm64::esr ──> GuestIo, arm64::gic, arm64::psci
//! ```
//! - A virtual CPU belongs to the thread that made it: `bind` makes it, and nothing but `hv_vcpus_exit` reaches it from
//!   elsewhere.
//! - A waiting guest (WFI) parks on a condition variable until its timer is due, an interrupt is there or a kick comes.
//! - The virtual timer's offset is one for the machine, so that all its CPUs read one clock; it is saved as the guest's
//!   counter, which goes on from there after a restore.
//! - Pages have 16 KiB: regions that are not a multiple of that are refused.
//! - A process has one machine at a time; a second one is refused with the reason.
//!
//! Nothing of this has run on a Mac yet: see docs/backends.md.

pub mod api;
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod ffi;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
pub mod vmx;

use std::fmt;
use std::sync::Arc;

use self::api::{Api, BUSY, DENIED, HvError};
use crate::error::Error;
use crate::hv::{Caps, Hypervisor, IrqChip, MAX_CPUS, Machine, Plan, VcpuSlot};

/// The name in [`Caps`] and in saved state.
const BACKEND: &str = "hvf";
/// The page of the framework.
const PAGE: u64 = 0x4000;

/// The framework.
pub struct Hvf {
    api: Arc<dyn Api>,
    caps: Caps,
}

impl fmt::Debug for Hvf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hvf").field("caps", &self.caps).finish_non_exhaustive()
    }
}

impl Hvf {
    /// Asks this Mac's framework for what it can do.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when the processor does not virtualize.
    #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
    pub fn open() -> Result<Self, Error> {
        Self::with(Arc::new(ffi::Framework::new()))
    }

    /// The framework behind these raw calls.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when the processor does not virtualize.
    pub fn with(api: Arc<dyn Api>) -> Result<Self, Error> {
        let most = api.max_vcpus().map_err(|error| Error::NoHypervisor {
            why: format!(
                "Hypervisor.framework: {error}; inside a virtual machine, turn nested virtualization on (Apple M3 and later)"
            ),
        })?;
        let caps = Caps {
            name: BACKEND,
            variant: None,
            max_cpus: u8::try_from(most).unwrap_or(MAX_CPUS).min(MAX_CPUS),
            emulates_kernel: false,
            triple_fault: true,
            doorbells: false,
            read_only: true,
            executes_code: true,
            starts_cpus: false,
            page_size: PAGE,
        };
        Ok(Self { api, caps })
    }
}

impl Hypervisor for Hvf {
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
        let vm = Arc::new(vm::Vm::new(Arc::clone(&self.api), plan)?);
        let slots =
            (0..plan.cpus).map(|index| Box::new(vcpu::Slot::new(&vm, index)) as Box<dyn VcpuSlot>).collect();
        Ok(Machine { vm: Arc::new(vm::Shared(vm)), slots, irqchip: IrqChip::GicV3 })
    }
}

/// Wraps an error of a raw call.
fn failed(doing: &'static str) -> impl FnOnce(HvError) -> Error {
    move |error| match error {
        BUSY if doing == vm::CREATING => Error::Unsupported {
            what: "a second virtual machine in this process",
            why: "Hypervisor.framework has one for each process; start another process for it".to_owned(),
        },
        DENIED => Error::NoHypervisor {
            why: "Hypervisor.framework denies this program: it must be signed with the entitlement \
                  com.apple.security.hypervisor (packaging/macos/sign.sh does it)"
                .to_owned(),
        },
        error => Error::Hypervisor { doing, source: error.into() },
    }
}
