//! KVM on arm64: interrupt controller, timers and PSCI in the kernel.

mod gic;
pub(super) mod state;

pub(super) use gic::Chip;
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64,
    kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::failed;
use super::vcpu::{Bound, Step};
use crate::error::Error;
use crate::hv::{Entry, GuestIo, Plan};

/// What to do when there is no KVM.
pub(super) const WHERE_IS_KVM: &str = "it is built into most kernels for arm64, and needs one that was entered at EL2: a \
     machine of its own, or nested virtualization in the hypervisor around this machine";

/// The guest's physical addresses when nothing else is asked for.
const DEFAULT_ADDRESS_BITS: u32 = 40;

/// A register of `struct kvm_regs` by its offset in words of four bytes (`Documentation/virt/kvm/api.rst`,
/// `KVM_SET_ONE_REG`).
const fn core_register(word: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | word
}
const X0: u64 = core_register(0);
const PC: u64 = core_register(2 * 32);
const PSTATE: u64 = core_register(2 * 33);

/// EL1 with its own stack, all exceptions masked.
const PSTATE_AT_ENTRY: u64 = 0x3c5;

/// What KVM offers on this host.
#[derive(Debug)]
pub(super) struct Host {
    /// Bits of a guest's physical addresses.
    address_bits: u32,
}

impl Host {
    pub(super) fn ask(kvm: &Kvm) -> Result<Self, Error> {
        // 0 where KVM does not tell: it has the default then.
        let limit = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
        let address_bits = if limit == 0 { DEFAULT_ADDRESS_BITS } else { limit.min(DEFAULT_ADDRESS_BITS) };
        Ok(Self { address_bits })
    }

    /// Guest kernel code is emulated: never on arm64.
    pub(super) fn is_pvm(&self) -> bool {
        false
    }

    /// The kind of VM to be asked for: it says how many bits addresses have.
    pub(super) fn vm_type(&self, plan: &Plan) -> Result<u64, Error> {
        let end = plan.mem.iter().map(|region| region.start_addr().raw_value() + region.len()).max();
        if end.unwrap_or(0) > 1 << self.address_bits {
            return Err(Error::Config(format!(
                "more memory than {} address bits reach, which is what this host gives to guests",
                self.address_bits
            )));
        }
        Ok(if self.address_bits == DEFAULT_ADDRESS_BITS { 0 } else { self.address_bits.into() })
    }
}

/// What a vCPU has beside its descriptor: nothing.
pub(super) struct Cpu;

impl Cpu {
    pub(super) fn new(_: &Host, vm: &VmFd, vcpu: &VcpuFd, index: u8, _: u8) -> Result<Self, Error> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(|e| failed("asking for the kind of vCPU", e))?;
        let mut features = 1 << KVM_ARM_VCPU_PSCI_0_2;
        if index > 0 {
            // Until the guest starts it.
            features |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        init.features = [features, 0, 0, 0, 0, 0, 0];
        vcpu.vcpu_init(&init).map_err(|e| failed("initialising a vCPU", e))?;
        Ok(Self)
    }
}

pub(super) fn set_entry(vcpu: &mut Bound, entry: &Entry) -> Result<(), Error> {
    let Entry::Arm64(entry) = entry else {
        return Err(Error::Unsupported {
            what: "an x86 entry",
            why: "this vCPU is arm64; take a kernel for arm64".to_owned(),
        });
    };
    for (register, value) in [(PSTATE, PSTATE_AT_ENTRY), (X0, entry.x0), (PC, entry.pc)] {
        vcpu.fd
            .set_one_reg(register, &value.to_le_bytes())
            .map_err(|e| failed("setting the registers of a vCPU", e))?;
    }
    Ok(())
}

pub(super) fn program_counter(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(PC, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// What the guest did when `KVM_RUN` failed for it.
pub(super) fn fault_of(error: kvm_ioctls::Error) -> Option<&'static str> {
    // arch/arm64/kvm/mmio.c: loads and stores of pairs, with write-back or of vectors.
    (error.errno() == libc::ENOSYS)
        .then_some("it reached for a device by an instruction that does not tell what it accesses")
}

/// Answers the exits that only this architecture has: none.
pub(super) fn step(vcpu: &mut Bound, _: &mut dyn GuestIo) -> Result<Step, Error> {
    let reason = vcpu.fd.get_kvm_run().exit_reason;
    Ok(Step::Leave(vcpu.unknown(reason)))
}
