//! Saving and restoring what KVM holds of a machine and of a vCPU.
//!
//! Order matters on the way back (`Documentation/virt/kvm/api.rst`): CPUID, then system registers (they place the
//! local APIC), extended state, the local APIC, MSRs with the TSC deadline last of them, then pending events.

// A leaf that may use unsafe: the extended state has a size that the kernel tells.
#![allow(unsafe_code)]

use kvm_bindings::{
    CpuId, KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

use super::cpuid;
use crate::error::Error;
use crate::hv::kvm::failed;
use crate::hv::kvm::vcpu::Bound;
use crate::hv::kvm::vm::Vm;
use crate::hv::{MachineState, VcpuState};

const BACKEND: &str = "kvm";

/// IA32_TSC_DEADLINE: arms a timer, so it comes after the TSC and the local APIC.
const TSC_DEADLINE: u32 = 0x6e0;
/// The most MSRs of one call.
const MSRS_PER_CALL: usize = 200;

#[derive(Serialize, Deserialize)]
struct KvmMachine {
    irqchips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl State for KvmMachine {
    const NAME: &'static str = "the KVM machine";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct KvmVcpu {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// In the standard format, as many bytes as the host needs.
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl State for KvmVcpu {
    const NAME: &'static str = "the KVM vCPU";
    const VERSION: u16 = 1;
}

pub(in crate::hv::kvm) fn save_machine(vm: &Vm) -> Result<MachineState, Error> {
    let mut irqchips = Vec::new();
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.fd.get_irqchip(&mut chip).map_err(|e| failed("saving an interrupt controller", e))?;
        irqchips.push(chip);
    }
    let mut clock = vm.fd.get_clock().map_err(|e| failed("saving the clock", e))?;
    // Setting it back knows no flags.
    clock.flags &= !KVM_CLOCK_TSC_STABLE;
    Ok(MachineState::new(BACKEND, &KvmMachine { irqchips, clock })?)
}

pub(in crate::hv::kvm) fn restore_machine(vm: &Vm, state: &MachineState) -> Result<(), Error> {
    let state: KvmMachine = state.open(BACKEND)?;
    for chip in &state.irqchips {
        vm.fd.set_irqchip(chip).map_err(|e| failed("restoring an interrupt controller", e))?;
    }
    let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
    vm.fd.set_clock(&clock).map_err(|e| failed("restoring the clock", e))
}

pub(in crate::hv::kvm) fn save_vcpu(vcpu: &mut Bound) -> Result<VcpuState, Error> {
    let fd = &vcpu.fd;
    // First: it lets pending INIT and SIPI events take effect.
    let mp_state = fd.get_mp_state().map_err(|e| failed("saving the run state", e))?;
    let state = KvmVcpu {
        cpuid: vcpu.cpu.cpuid.as_slice().to_vec(),
        mp_state,
        regs: fd.get_regs().map_err(|e| failed("saving registers", e))?,
        sregs: fd.get_sregs().map_err(|e| failed("saving system registers", e))?,
        xsave: read_xsave(vcpu)?,
        xcrs: fd.get_xcrs().map_err(|e| failed("saving extended control registers", e))?,
        debug: fd.get_debug_regs().map_err(|e| failed("saving debug registers", e))?,
        lapic: fd.get_lapic().map_err(|e| failed("saving the local APIC", e))?,
        msrs: read_msrs(vcpu)?,
        events: fd.get_vcpu_events().map_err(|e| failed("saving pending events", e))?,
    };
    Ok(VcpuState::new(BACKEND, &state)?)
}

pub(in crate::hv::kvm) fn restore_vcpu(vcpu: &mut Bound, state: &VcpuState) -> Result<(), Error> {
    let state: KvmVcpu = state.open(BACKEND)?;
    let misfit = |why: &str| StateError::Mismatch { what: KvmVcpu::NAME, why: why.to_owned() };
    if state.cpuid != vcpu.cpu.cpuid.as_slice() {
        if state.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(misfit("it has too many CPUID leaves").into());
        }
        if let Some(why) = cpuid::misfit(&state.cpuid, vcpu.cpu.cpuid.as_slice()) {
            return Err(misfit(&why).into());
        }
        let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| misfit("its CPUID is malformed"))?;
        vcpu.fd.set_cpuid2(&cpuid).map_err(|e| failed("restoring the CPUID", e))?;
        vcpu.cpu.cpuid = cpuid;
    }
    let fd = &vcpu.fd;
    fd.set_mp_state(state.mp_state).map_err(|e| failed("restoring the run state", e))?;
    fd.set_regs(&state.regs).map_err(|e| failed("restoring registers", e))?;
    fd.set_sregs(&state.sregs).map_err(|e| failed("restoring system registers", e))?;
    fd.set_xcrs(&state.xcrs).map_err(|e| failed("restoring extended control registers", e))?;
    write_xsave(vcpu, &state.xsave)?;
    fd.set_debug_regs(&state.debug).map_err(|e| failed("restoring debug registers", e))?;
    fd.set_lapic(&state.lapic).map_err(|e| failed("restoring the local APIC", e))?;
    let (last, first): (Vec<_>, Vec<_>) = state.msrs.iter().partition(|msr| msr.index == TSC_DEADLINE);
    write_msrs(vcpu, &first)?;
    write_msrs(vcpu, &last)?;
    fd.set_vcpu_events(&state.events).map_err(|e| failed("restoring pending events", e))?;
    // The guest may not take the time that it was away for a hang. Only a guest with kvmclock can be told.
    let _ = fd.kvmclock_ctrl();
    Ok(())
}

/// The extended state, in words.
pub(super) fn read_xsave(vcpu: &Bound) -> Result<Vec<u32>, Error> {
    let size = xsave_size(&vcpu.vm.fd);
    let mut xsave = blank_xsave(size)?;
    if size <= size_of::<kvm_xsave>() {
        return match vcpu.fd.get_xsave() {
            Ok(xsave) => Ok(xsave.region.to_vec()),
            Err(e) => Err(failed("saving the extended state", e)),
        };
    }
    // SAFETY: the structure has room for as much as this VM's KVM_CAP_XSAVE2 tells.
    unsafe { vcpu.fd.get_xsave2(&mut xsave) }.map_err(|e| failed("saving the extended state", e))?;
    let mut words = xsave.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    words.truncate(size.div_ceil(4));
    Ok(words)
}

/// Sets the extended state from words.
pub(super) fn write_xsave(vcpu: &Bound, words: &[u32]) -> Result<(), Error> {
    let size = xsave_size(&vcpu.vm.fd);
    if words.len() != size.div_ceil(4) {
        return Err(StateError::Mismatch {
            what: KvmVcpu::NAME,
            why: format!("its extended state has {} bytes, this host's has {size}", words.len() * 4),
        }
        .into());
    }
    let mut xsave = blank_xsave(size)?;
    let (region, rest) = words.split_at(words.len().min(size_of::<kvm_xsave>() / 4));
    // SAFETY: only the array of plain words is written.
    let into = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    for (word, from) in into.iter_mut().zip(region) {
        *word = *from;
    }
    for (word, from) in xsave.as_mut_slice().iter_mut().zip(rest) {
        *word = *from;
    }
    // SAFETY: the structure is as long as KVM_CAP_XSAVE2 tells (or 4096 bytes), which is what KVM reads.
    unsafe { vcpu.fd.set_xsave2(&xsave) }.map_err(|e| failed("restoring the extended state", e))
}

fn blank_xsave(size: usize) -> Result<Xsave, Error> {
    let words = size.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(words).map_err(|_| Error::Config(format!("an extended state of {size} bytes")))
}

/// Every MSR that KVM says is state, as far as this vCPU has it.
fn read_msrs(vcpu: &Bound) -> Result<Vec<kvm_msr_entry>, Error> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|e| failed("opening KVM for its MSR list", e))?;
    let list = kvm.get_msr_index_list().map_err(|e| failed("listing MSRs", e))?;
    let mut left: Vec<kvm_msr_entry> =
        list.as_slice().iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut found = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let part = left.get(..left.len().min(MSRS_PER_CALL)).unwrap_or(&left);
        let mut msrs = Msrs::from_entries(part).map_err(|_| Error::Config("too many MSRs".to_owned()))?;
        let done = vcpu.fd.get_msrs(&mut msrs).map_err(|e| failed("reading MSRs", e))?.min(part.len());
        found.extend_from_slice(msrs.as_slice().get(..done).unwrap_or_default());
        // KVM stops at one that this vCPU does not have.
        let skip = usize::from(done < part.len());
        left.drain(..done + skip);
    }
    Ok(found)
}

fn write_msrs(vcpu: &Bound, msrs: &[&kvm_msr_entry]) -> Result<(), Error> {
    let mut left: Vec<kvm_msr_entry> = msrs.iter().map(|&&msr| msr).collect();
    while !left.is_empty() {
        let part = left.get(..left.len().min(MSRS_PER_CALL)).unwrap_or(&left);
        let set = Msrs::from_entries(part).map_err(|_| Error::Config("too many MSRs".to_owned()))?;
        let done = vcpu.fd.set_msrs(&set).map_err(|e| failed("restoring MSRs", e))?.min(part.len());
        if let Some(refused) = part.get(done) {
            // Read-only here, or at its default on a CPU without the feature. A value that matters fails loudly.
            if refused.data != 0 {
                log::debug!("MSR {:#x} does not take {:#x} back", refused.index, refused.data);
            }
        }
        let skip = usize::from(done < part.len());
        left.drain(..done + skip);
    }
    Ok(())
}

/// Whether the size of the extended state is told by the VM (`KVM_CAP_XSAVE2`), and how much it is.
fn xsave_size(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(4096)
}
