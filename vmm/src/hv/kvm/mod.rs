//! KVM on x86_64 Linux: interrupt controllers in the kernel, irqfd lines, ioeventfd doorbells.
//!
//! Also runs on `kvm_pvm`, a KVM for machines whose CPU offers no virtualization: guest kernel code is emulated
//! there, slowly and incompletely. [`Kvm::open`] notices it and says so in its [`Caps`].

mod assist;
mod cpuid;
mod kick;
mod state;
mod vcpu;
mod vm;

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, VmFd};

use crate::error::Error;
use crate::hv::{Caps, Hypervisor, MAX_CPUS, Machine, Plan, VcpuSlot};

/// The device that KVM answers at.
const DEVICE: &str = "/dev/kvm";

/// The host's KVM.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    caps: Caps,
    cpuid: CpuId,
}

impl Kvm {
    /// Opens `/dev/kvm` and asks for what it can do.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`] when it is absent, forbidden or too old.
    pub fn open() -> Result<Self, Error> {
        let fd = kvm_ioctls::Kvm::new().map_err(|e| no_kvm(&e.into()))?;
        let version = fd.get_api_version();
        if version != 12 {
            return Err(Error::NoHypervisor {
                why: format!("{DEVICE} speaks API version {version}, servin needs 12"),
            });
        }
        let cpuid = fd
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| Error::Hypervisor { doing: "asking for the supported CPUID", source: e.into() })?;
        // Only one vendor module can be loaded at a time, so its presence is proof.
        let pvm = Path::new("/sys/module/kvm_pvm").exists();
        let caps = Caps {
            name: "kvm",
            variant: pvm.then_some("kvm_pvm"),
            max_cpus: MAX_CPUS,
            emulates_kernel: pvm,
            triple_fault: !pvm,
            doorbells: true,
            read_only: fd.check_extension(Cap::ReadonlyMem),
            executes_code: true,
            starts_cpus: true,
            page_size: 0x1000,
        };
        Ok(Self { fd, caps, cpuid })
    }
}

impl Hypervisor for Kvm {
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
        let vm = Arc::new(vm::Vm::new(self.create_vm()?, plan)?);
        let mut slots = Vec::<Box<dyn VcpuSlot>>::new();
        for index in 0..plan.cpus {
            let cpuid = cpuid::for_vcpu(&self.cpuid, index, plan.cpus, self.caps.emulates_kernel);
            slots.push(Box::new(vcpu::Slot::new(&vm, index, cpuid)?));
        }
        Ok(Machine { vm, slots })
    }
}

impl Kvm {
    fn create_vm(&self) -> Result<VmFd, Error> {
        loop {
            match self.fd.create_vm() {
                Ok(vm) => return Ok(vm),
                // A signal to this thread; the kernel wants the call again.
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(failed("creating a VM", e)),
            }
        }
    }
}

/// Wraps an error of a KVM call.
fn failed(doing: &'static str, error: kvm_ioctls::Error) -> Error {
    Error::Hypervisor { doing, source: error.into() }
}

fn no_kvm(error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{DEVICE} does not exist; load the module kvm-intel or kvm-amd, and enable virtualization in the firmware or \
             nested virtualization in the hypervisor around this machine"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{DEVICE} may not be opened by this user; add the user to the group kvm and log in again")
        }
        _ => format!("opening {DEVICE}: {error}"),
    };
    Error::NoHypervisor { why }
}
