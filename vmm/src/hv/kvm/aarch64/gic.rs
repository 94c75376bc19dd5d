//! The interrupt controller in the kernel: a GICv3, or a GICv2 where the host's hardware gives no other.
//!
//! References: `Documentation/virt/kvm/devices/arm-vgic-v3.rst`, and IHI 0069 for the registers.

// A leaf that may use unsafe: the kernel writes attributes through pointers.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::hv::kvm::failed;
use crate::hv::{IrqChip, Plan};
use crate::layout::aarch64 as layout;

/// Interrupts of each vCPU, in front of the lines.
const PRIVATE: u32 = 32;

/// Registers of the distributor with one bit, two bits or a byte for each interrupt: offset and bits.
const DISTRIBUTOR: [(u32, u32); 6] = [
    (0x080, 1), // IGROUPR
    (0xc00, 2), // ICFGR
    (0x400, 8), // IPRIORITYR
    (0x200, 1), // ISPENDR
    (0x300, 1), // ISACTIVER
    (0x100, 1), // ISENABLER
];
/// GICD_IIDR, which chooses the behaviour of the others; GICD_CTLR.
const DISTRIBUTOR_IDENTITY: u32 = 0x008;
const DISTRIBUTOR_CONTROL: u32 = 0x000;
/// GICD_IROUTER: eight bytes for each line.
const ROUTES: u32 = 0x6000;

/// Registers of a redistributor (GICR_CTLR, WAKER, then as those of the distributor for private interrupts).
const REDISTRIBUTOR: [u32; 15] = [
    0x0000, 0x0014, 0x1_0080, 0x1_0c04, 0x1_0400, 0x1_0404, 0x1_0408, 0x1_040c, 0x1_0410, 0x1_0414, 0x1_0418,
    0x1_041c, 0x1_0200, 0x1_0300, 0x1_0100,
];

/// A system register as the attribute names it: op0 3, op1, CRn, CRm, op2.
const fn system_register(op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}
/// ICC_SRE_EL1 first, for it makes the others exist; then CTLR, PMR, BPR0, BPR1, IGRPEN0, IGRPEN1.
const CPU_INTERFACE: [u64; 7] = [
    system_register(0, 12, 12, 5),
    system_register(0, 12, 12, 4),
    system_register(0, 4, 6, 0),
    system_register(0, 12, 8, 3),
    system_register(0, 12, 12, 3),
    system_register(0, 12, 12, 6),
    system_register(0, 12, 12, 7),
];
const CONTROL: u64 = CPU_INTERFACE[1];
/// The first active-priorities register of group 0 and of group 1; more follow when priorities have more than 5 bits.
const ACTIVE_PRIORITIES: [u64; 2] = [system_register(0, 12, 8, 4), system_register(0, 12, 9, 0)];

/// The interrupt controller.
pub(in crate::hv::kvm) struct Chip {
    fd: DeviceFd,
    kind: IrqChip,
    cpus: u8,
    /// Interrupts with the private ones.
    interrupts: u32,
}

/// The saved registers of a GICv3, in the order in which they are written back.
#[derive(Serialize, Deserialize)]
pub(super) struct Registers {
    cpus: u8,
    interrupts: u32,
    values: Vec<u64>,
}

/// A register of the controller: its group, its attribute, and whether it has 64 bits.
type Register = (u32, u64, bool);

impl Chip {
    /// On arm64 it follows the vCPUs.
    pub(in crate::hv::kvm) fn before_vcpus(_: &VmFd) -> Result<(), Error> {
        Ok(())
    }

    /// Makes the controller of a VM whose vCPUs are there.
    pub(in crate::hv::kvm) fn new(vm: &VmFd, plan: &Plan) -> Result<Self, Error> {
        let interrupts = (PRIVATE + plan.gsis).next_multiple_of(32);
        let create = |kind| vm.create_device(&mut kvm_create_device { type_: kind, ..Default::default() });
        let (fd, kind) = match create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
            Ok(fd) => (fd, IrqChip::GicV3),
            Err(error) if error.errno() == libc::ENODEV => {
                let fd = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)
                    .map_err(|e| failed("creating the interrupt controller", e))?;
                (fd, IrqChip::GicV2)
            }
            Err(error) => return Err(failed("creating the interrupt controller", error)),
        };
        let chip = Self { fd, kind, cpus: plan.cpus, interrupts };
        let second = match kind {
            IrqChip::GicV3 => (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GIC_REDISTRIBUTORS),
            _ => (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GIC_CPU_INTERFACE),
        };
        let first =
            if kind == IrqChip::GicV3 { KVM_VGIC_V3_ADDR_TYPE_DIST } else { KVM_VGIC_V2_ADDR_TYPE_DIST };
        for (attribute, address) in [(first, layout::GIC_DISTRIBUTOR), second] {
            chip.set(KVM_DEV_ARM_VGIC_GRP_ADDR, attribute.into(), &address)?;
        }
        chip.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)?;
        chip.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), &0_u64)?;
        Ok(chip)
    }

    pub(in crate::hv::kvm) fn kind(&self) -> IrqChip {
        self.kind
    }

    /// Reads every register that is state.
    pub(super) fn save(&self) -> Result<Registers, Error> {
        self.must_be_v3()?;
        let mut values = Vec::new();
        for register in self.registers() {
            values.push(self.get(register)?);
        }
        for cpu in 0..self.cpus {
            for register in self.active_priorities(cpu)? {
                values.push(self.get(register)?);
            }
        }
        Ok(Registers { cpus: self.cpus, interrupts: self.interrupts, values })
    }

    /// Writes them back; false when they do not fit this controller.
    pub(super) fn restore(&self, saved: &Registers) -> Result<bool, Error> {
        self.must_be_v3()?;
        if (saved.cpus, saved.interrupts) != (self.cpus, self.interrupts) {
            return Ok(false);
        }
        let mut values = saved.values.iter();
        for register in self.registers() {
            let Some(value) = values.next() else { return Ok(false) };
            self.put(register, *value)?;
        }
        for cpu in 0..self.cpus {
            for register in self.active_priorities(cpu)? {
                let Some(value) = values.next() else { return Ok(false) };
                self.put(register, *value)?;
            }
        }
        Ok(values.next().is_none())
    }

    fn must_be_v3(&self) -> Result<(), Error> {
        match self.kind {
            IrqChip::GicV3 => Ok(()),
            _ => Err(Error::Unsupported {
                what: "saving a machine with a GICv2",
                why: "only the state of a GICv3 can be saved so far, and this host's hardware has none"
                    .to_owned(),
            }),
        }
    }

    /// The registers that are there in any case.
    fn registers(&self) -> Vec<Register> {
        let mut all = vec![(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, DISTRIBUTOR_IDENTITY.into(), false)];
        let mut distributor = |offset: u32| all.push((KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset.into(), false));
        for (base, bits) in DISTRIBUTOR {
            let per_word = 32 / bits;
            (PRIVATE / per_word..self.interrupts / per_word).for_each(|word| distributor(base + 4 * word));
        }
        (2 * PRIVATE..2 * self.interrupts).for_each(|word| distributor(ROUTES + 4 * word));
        for cpu in 0..self.cpus {
            let affinity = u64::from(cpu) << 32;
            for offset in REDISTRIBUTOR {
                all.push((KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity | u64::from(offset), false));
            }
            for register in CPU_INTERFACE {
                all.push((KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity | register, true));
            }
        }
        all.push((KVM_DEV_ARM_VGIC_GRP_DIST_REGS, DISTRIBUTOR_CONTROL.into(), false));
        all
    }

    /// The active priorities of a vCPU: how many there are stands in its control register.
    fn active_priorities(&self, cpu: u8) -> Result<Vec<Register>, Error> {
        let affinity = u64::from(cpu) << 32;
        let control = self.get((KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity | CONTROL, true))?;
        let count = match (control >> 8 & 7) + 1 {
            ..=5 => 1,
            6 => 2,
            _ => 4,
        };
        let each = |first: u64| {
            (first..first + count)
                .map(move |register| (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity | register, true))
        };
        Ok(ACTIVE_PRIORITIES.into_iter().flat_map(each).collect())
    }

    fn get(&self, (group, attr, wide): Register) -> Result<u64, Error> {
        let mut value = 0_u64;
        let mut attribute =
            kvm_device_attr { group, attr, addr: (&raw mut value).expose_provenance() as u64, flags: 0 };
        // SAFETY: the kernel writes four bytes, or eight for a system register, to `value`, which lives through the call.
        unsafe { self.fd.get_device_attr(&mut attribute) }
            .map_err(|e| failed("saving the interrupt controller", e))?;
        // The host is little-endian: four bytes are the lower half.
        Ok(if wide { value } else { value & 0xffff_ffff })
    }

    fn put(&self, (group, attr, _): Register, value: u64) -> Result<(), Error> {
        // The kernel reads four of its bytes, or all eight.
        let attribute =
            kvm_device_attr { group, attr, addr: (&raw const value).expose_provenance() as u64, flags: 0 };
        self.fd.set_device_attr(&attribute).map_err(|e| failed("restoring the interrupt controller", e))
    }

    fn set<T>(&self, group: u32, attr: u64, value: &T) -> Result<(), Error> {
        let addr = std::ptr::from_ref(value).expose_provenance() as u64;
        let attribute = kvm_device_attr { group, attr, addr, flags: 0 };
        self.fd.set_device_attr(&attribute).map_err(|e| failed("setting up the interrupt controller", e))
    }
}
