//! The Windows Hypervisor Platform on x86_64: local APICs in the platform, the I/O APIC here ([`super::x86::ioapic`]).
//!
//! ```text
//! device ── IrqLine ──> IoApic ── WHvRequestInterrupt ──> local APIC (in the platform) ──> guest
//! guest ── WHvRunVirtualProcessor returns ──> exit ──> x86::access ──> GuestIo
//! ```
//! - An access to a device stops the vCPU in front of its instruction; our own decoder ([`super::x86::access()`]) carries it
//!   out. The platform's emulator (`WinHvEmulation.dll`) is not used: it would be a second one to trust, it calls back
//!   through C in the middle of an instruction, and Hypervisor.framework on x86_64 needs ours in any case.
//! - There is no PIT, so the guest is told its clocks by Hyper-V's registers ([`super::x86::hyperv`]).
//! - HLT waits inside the platform, as its APIC knows what is pending. Other vCPUs wait there for INIT and SIPI.
//! - Of the two 8259s there is what a kernel looks for ([`super::x86::pic`]); no interrupt comes from them.
//! - Doorbells take an exit ([`super::Vm::offload`] answers `None`).
//!
//! Nothing of this has run on Windows yet: see docs/backends.md.

pub mod api;
pub mod exit;
#[cfg(all(target_os = "windows", target_arch = "x86_64"))]
mod ffi;
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

use self::api::{Api, Hresult, capability};
use crate::error::Error;
use crate::hv::x86::hyperv::Clocks;
use crate::hv::{Caps, Hypervisor, IrqChip, MAX_CPUS, Machine, Plan, VcpuSlot};

/// The name in [`Caps`] and in saved state.
const BACKEND: &str = "whp";

/// What to do where the platform is off.
const ENABLE: &str = "turn on \"Windows Hypervisor Platform\" in Windows Features, or run `dism /online /enable-feature \
                      /featurename:HypervisorPlatform` as administrator, and restart; virtualization must be enabled in \
                      the firmware";

/// The host's platform.
pub struct Whp {
    api: Arc<dyn Api>,
    caps: Caps,
    host: Host,
}

/// What of the host a machine depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Host {
    clocks: Clocks,
    /// Bits of the processor, and of its extended state.
    features: [u64; 2],
    tracks_dirty: bool,
}

impl fmt::Debug for Whp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Whp").field("caps", &self.caps).finish_non_exhaustive()
    }
}

impl Whp {
    /// Loads `WinHvPlatform.dll` and asks it for what it can do.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when it is absent, off or too old.
    #[cfg(all(target_os = "windows", target_arch = "x86_64"))]
    pub fn open() -> Result<Self, Error> {
        let api = ffi::Dll::load().map_err(|why| Error::NoHypervisor {
            why: format!("the Windows Hypervisor Platform is not there ({why}); {ENABLE}"),
        })?;
        Self::with(Arc::new(api))
    }

    /// The platform behind these raw calls.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when it is off or too old.
    pub fn with(api: Arc<dyn Api>) -> Result<Self, Error> {
        if word(&*api, capability::HYPERVISOR_PRESENT).unwrap_or(0) as u32 == 0 {
            return Err(Error::NoHypervisor {
                why: format!("the Windows Hypervisor Platform is off; {ENABLE}"),
            });
        }
        let too_old = |what: &str| Error::NoHypervisor {
            why: format!(
                "the Windows Hypervisor Platform here {what}; Windows 10 of 2019 (1903) or newer has it"
            ),
        };
        let ask = |code, what: &'static str| word(&*api, code).map_err(|_| too_old(what));
        let features = ask(capability::FEATURES, "does not tell its features")?;
        if features & capability::LOCAL_APIC_EMULATION == 0 {
            return Err(too_old("does not emulate local APICs"));
        }
        let clocks = Clocks {
            tsc_hz: ask(capability::PROCESSOR_CLOCK_FREQUENCY, "does not tell the frequency of the TSC")?,
            apic_hz: ask(
                capability::INTERRUPT_CLOCK_FREQUENCY,
                "does not tell the frequency of APIC timers",
            )?,
        };
        if clocks.tsc_hz == 0 || clocks.apic_hz == 0 {
            return Err(too_old("tells no frequency of its clocks"));
        }
        let host = Host {
            clocks,
            features: [
                ask(capability::PROCESSOR_FEATURES, "does not tell the processor's features")?,
                ask(capability::XSAVE_FEATURES, "does not tell the extended state's features")?,
            ],
            tracks_dirty: features & capability::DIRTY_PAGE_TRACKING != 0,
        };
        let caps = Caps {
            name: BACKEND,
            variant: None,
            max_cpus: MAX_CPUS,
            emulates_kernel: false,
            triple_fault: true,
            doorbells: false,
            read_only: true,
            executes_code: true,
            starts_cpus: true,
            page_size: 0x1000,
        };
        Ok(Self { api, caps, host })
    }
}

/// A capability of at most 8 bytes.
fn word(api: &dyn Api, code: u32) -> Result<u64, Hresult> {
    let mut bytes = [0; 8];
    api.capability(code, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Hypervisor for Whp {
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
        let mut slots = Vec::<Box<dyn VcpuSlot>>::new();
        for index in 0..plan.cpus {
            slots.push(Box::new(vcpu::Slot::new(&vm, index)?));
        }
        Ok(Machine { vm: Arc::new(vm::Shared(vm)), slots, irqchip: IrqChip::Pc })
    }
}

/// Wraps an error of a raw call.
fn failed(doing: &'static str) -> impl FnOnce(Hresult) -> Error {
    move |error| Error::Hypervisor { doing, source: error.into() }
}
