//! KVM on Linux, x86_64 and arm64: interrupt controllers in the kernel, irqfd lines, ioeventfd doorbells.
//!
//! What differs between the architectures is in a module for each, with the same names in both: `Host` (what is asked
//! once), `Cpu` (what a vCPU has beside its descriptor), `Chip` (the interrupt controller), and how a vCPU begins, exits and
//! is saved.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod kick;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io;
use std::sync::Arc;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
use kvm_ioctls::{Cap, VmFd};
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

use crate::error::Error;
use crate::hv::{Caps, Hypervisor, MAX_CPUS, Machine, Plan, VcpuSlot};

/// The device that KVM answers at.
const DEVICE: &str = "/dev/kvm";

/// The host's KVM.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    caps: Caps,
    host: arch::Host,
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
        let host = arch::Host::ask(&fd)?;
        let caps = Caps {
            name: "kvm",
            variant: host.is_pvm().then_some("kvm_pvm"),
            max_cpus: MAX_CPUS,
            emulates_kernel: host.is_pvm(),
            triple_fault: !host.is_pvm(),
            doorbells: true,
            read_only: fd.check_extension(Cap::ReadonlyMem),
            executes_code: true,
            starts_cpus: true,
            page_size: 0x1000,
        };
        Ok(Self { fd, caps, host })
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
        let fd = self.create_vm(plan)?;
        arch::Chip::before_vcpus(&fd)?;
        vm::map_memory(&fd, plan)?;
        let mut cpus = Vec::new();
        for index in 0..plan.cpus {
            let vcpu = fd.create_vcpu(u64::from(index)).map_err(|e| failed("creating a vCPU", e))?;
            let cpu = arch::Cpu::new(&self.host, &fd, &vcpu, index, plan.cpus)?;
            cpus.push((vcpu, cpu));
        }
        let chip = arch::Chip::new(&fd, plan)?;
        let irqchip = chip.kind();
        let vm = Arc::new(vm::Vm::new(fd, plan, chip));
        let slots = (0..).zip(cpus).map(|(index, (vcpu, cpu))| {
            Box::new(vcpu::Slot::new(&vm, index, vcpu, cpu)) as Box<dyn VcpuSlot>
        });
        Ok(Machine { slots: slots.collect(), vm, irqchip })
    }
}

impl Kvm {
    fn create_vm(&self, plan: &Plan) -> Result<VmFd, Error> {
        let kind = self.host.vm_type(plan)?;
        loop {
            match self.fd.create_vm_with_type(kind) {
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
        io::ErrorKind::NotFound => format!("{DEVICE} does not exist; {}", arch::WHERE_IS_KVM),
        io::ErrorKind::PermissionDenied => {
            format!("{DEVICE} may not be opened by this user; add the user to the group kvm and log in again")
        }
        _ => format!("opening {DEVICE}: {error}"),
    };
    Error::NoHypervisor { why }
}
