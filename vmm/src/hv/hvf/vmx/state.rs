//! Saving and restoring a machine and its vCPUs.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

use super::api::{FPSTATE, reg};
use super::fields;
use super::registers::Event;
use super::vcpu::{Bound, VMXE};
use super::vm::Vm;
use super::{BACKEND, failed, msr};
use crate::error::Error;
use crate::hv::x86::ioapic::IoApicState;
use crate::hv::x86::lapic::Lapic;
use crate::hv::x86::pic::Pics;
use crate::hv::x86::{efer, hyperv};
use crate::hv::{MachineState, VcpuState};

/// Registers by their number in the framework: all up to R15, CR2, DR0 to DR3, DR6, DR7, XCR0.
fn registers() -> Vec<u32> {
    let mut list: Vec<u32> = (reg::RIP..=17).collect();
    list.extend([
        reg::CR2,
        reg::DR0,
        reg::DR0 + 1,
        reg::DR0 + 2,
        reg::DR0 + 3,
        reg::DR6,
        reg::DR7,
        reg::XCR0,
    ]);
    list
}

/// Fields of the VMCS that are the guest's, beside CR0, CR4 and what follows from them.
fn guest_fields() -> Vec<u32> {
    let mut list = Vec::new();
    for group in [fields::SELECTOR, fields::LIMIT, fields::RIGHTS, fields::BASE] {
        list.extend((0..fields::SEGMENTS).map(|segment| group + 2 * segment));
    }
    list.extend((0..4).map(|index| fields::PDPTE + 2 * index));
    list.extend([
        fields::GDTR_LIMIT,
        fields::GDTR_BASE,
        fields::IDTR_LIMIT,
        fields::IDTR_BASE,
        fields::EFER,
        fields::CR3,
        fields::INTERRUPTIBILITY,
        fields::PENDING_DEBUG,
    ]);
    list
}

#[derive(Serialize, Deserialize)]
struct VmxMachine {
    ioapic: IoApicState,
    pics: Pics,
    /// Bits of the processor.
    features: [u64; 4],
    /// The guest's time-stamp counter.
    tsc: u64,
    /// Its frequency in Hz.
    tsc_hz: u64,
}

impl State for VmxMachine {
    const NAME: &'static str = "the HVF machine (VMX)";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct VmxVcpu {
    registers: Vec<(u32, u64)>,
    fields: Vec<(u32, u64)>,
    msrs: Vec<(u32, u64)>,
    cr0: u64,
    cr4: u64,
    extended: Vec<u8>,
    lapic: Lapic,
    hyperv: hyperv::Registers,
    kept: msr::Kept,
    pending: Option<Event>,
    halted: bool,
}

impl State for VmxVcpu {
    const NAME: &'static str = "the HVF vCPU (VMX)";
    const VERSION: u16 = 1;
}

fn misfit(what: &'static str, why: String) -> Error {
    StateError::Mismatch { what, why }.into()
}

pub(super) fn save_machine(vm: &Vm) -> Result<MachineState, Error> {
    let state = VmxMachine {
        ioapic: vm.ioapic().save(),
        pics: *vm.pics(),
        features: vm.host.features,
        tsc: vm.api.tsc().wrapping_add(vm.tsc_offset.load(Ordering::Acquire)),
        tsc_hz: vm.host.clocks.tsc_hz,
    };
    Ok(MachineState::new(BACKEND, &state)?)
}

pub(super) fn restore_machine(vm: &Vm, state: &MachineState) -> Result<(), Error> {
    let state: VmxMachine = state.open(BACKEND)?;
    for (had, has) in state.features.iter().zip(vm.host.features) {
        if had & !has != 0 {
            let why = format!("this processor lacks features that it had: {:#x}", had & !has);
            return Err(misfit(VmxMachine::NAME, why));
        }
    }
    let (had, has) = (state.tsc_hz, vm.host.clocks.tsc_hz);
    if had != has {
        return Err(misfit(VmxMachine::NAME, format!("its clock ran at {had} Hz, this host's at {has} Hz")));
    }
    *vm.pics() = state.pics;
    vm.ioapic().restore(&state.ioapic)?;
    vm.tsc_offset.store(state.tsc.wrapping_sub(vm.api.tsc()), Ordering::Release);
    Ok(())
}

pub(super) fn save_vcpu(vcpu: &Bound) -> Result<VcpuState, Error> {
    let (api, id) = (&vcpu.vm.api, vcpu.id);
    let registers: Result<_, _> =
        registers().into_iter().map(|name| Ok((name, api.reg(id, name)?))).collect();
    let fields: Result<_, _> =
        guest_fields().into_iter().map(|name| Ok((name, api.vmcs(id, name)?))).collect();
    let msrs: Result<_, _> = msr::NATIVE.into_iter().map(|name| Ok((name, api.msr(id, name)?))).collect();
    let now = api.now();
    let state = VmxVcpu {
        registers: registers.map_err(failed("saving the registers"))?,
        fields: fields.map_err(failed("saving the VMCS"))?,
        msrs: msrs.map_err(failed("saving the MSRs"))?,
        cr0: vcpu.cr0()?,
        cr4: vcpu.field(fields::CR4)? & !VMXE,
        extended: api.fpstate(id).map_err(failed("saving the extended state"))?,
        lapic: vcpu.vm.with_lapic(vcpu.index, |chip| chip.save(now)),
        hyperv: vcpu.hyperv,
        kept: vcpu.kept,
        pending: vcpu.pending,
        halted: vcpu.halted,
    };
    Ok(VcpuState::new(BACKEND, &state)?)
}

pub(super) fn restore_vcpu(vcpu: &mut Bound, state: &VcpuState) -> Result<(), Error> {
    let state: VmxVcpu = state.open(BACKEND)?;
    let same = |list: &[(u32, u64)], names: &[u32]| list.iter().map(|(name, _)| name).eq(names);
    if !same(&state.registers, &registers())
        || !same(&state.fields, &guest_fields())
        || !same(&state.msrs, &msr::NATIVE)
        || state.extended.len() != FPSTATE
    {
        return Err(misfit(VmxVcpu::NAME, "it has other registers than this version saves".to_owned()));
    }
    {
        let (api, id) = (&vcpu.vm.api, vcpu.id);
        for (name, value) in &state.registers {
            api.set_reg(id, *name, *value).map_err(failed("restoring the registers"))?;
        }
        for (name, value) in &state.fields {
            api.set_vmcs(id, *name, *value).map_err(failed("restoring the VMCS"))?;
        }
        for (name, value) in &state.msrs {
            api.set_msr(id, *name, *value).map_err(failed("restoring the MSRs"))?;
        }
        api.set_fpstate(id, &state.extended).map_err(failed("restoring the extended state"))?;
        let now = api.now();
        vcpu.vm.with_lapic(vcpu.index, |chip| chip.restore(&state.lapic, now))?;
    }
    vcpu.set_tsc_offset()?;
    // Behind EFER, CR3 and the task register: from them follow long mode and what the processor sees of both.
    vcpu.set_field(fields::EFER, vcpu.field(fields::EFER)? & !efer::LMA)?;
    vcpu.set_cr4(state.cr4)?;
    vcpu.set_cr0(state.cr0)?;
    vcpu.hyperv = state.hyperv;
    vcpu.kept = state.kept;
    vcpu.pending = state.pending;
    vcpu.halted = state.halted;
    Ok(())
}
