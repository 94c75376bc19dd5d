//! Saving and restoring a machine and its vCPUs.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

use super::api::{ICC_STATE, STATE, reg};
use super::vcpu::Bound;
use super::vm::{Chip, Vm};
use super::{BACKEND, failed};
use crate::error::Error;
use crate::hv::arm64::gic::Gic;
use crate::hv::arm64::psci::Power;
use crate::hv::{MachineState, VcpuState};

/// More than the framework's GIC has; a longer one is damaged.
const MOST_BLOB: usize = 16 << 20;
/// Vector registers.
const VECTORS: u32 = 32;

#[derive(Serialize, Deserialize)]
enum ChipState {
    Host(Vec<u8>),
    Own(Gic),
}

#[derive(Serialize, Deserialize)]
struct HvfMachine {
    chip: ChipState,
    power: Power,
    /// CNTVCT of the guest.
    counter: u64,
    /// Its frequency in Hz.
    counter_hz: u64,
}

impl State for HvfMachine {
    const NAME: &'static str = "the HVF machine";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct HvfVcpu {
    /// X0 to X30, PC, FPCR, FPSR, CPSR.
    registers: Vec<u64>,
    /// Low and high half.
    vectors: Vec<(u64, u64)>,
    system: Vec<(u16, u64)>,
    /// With the framework's GIC only.
    interface: Vec<(u16, u64)>,
    timer_masked: bool,
}

impl State for HvfVcpu {
    const NAME: &'static str = "the HVF vCPU";
    const VERSION: u16 = 1;
}

fn misfit(what: &'static str, why: &str) -> Error {
    StateError::Mismatch { what, why: why.to_owned() }.into()
}

pub(super) fn save_machine(vm: &Vm) -> Result<MachineState, Error> {
    let chip = match &vm.chip {
        Chip::Host => ChipState::Host(vm.api.gic_state().map_err(failed("saving the interrupt controller"))?),
        Chip::Own(gic) => ChipState::Own(gic.lock().unwrap_or_else(PoisonError::into_inner).clone()),
    };
    let state = HvfMachine {
        chip,
        power: vm.power().clone(),
        counter: vm.api.counter().wrapping_sub(vm.offset.load(Ordering::Acquire)),
        counter_hz: vm.api.counter_hz(),
    };
    Ok(MachineState::new(BACKEND, &state)?)
}

pub(super) fn restore_machine(vm: &Vm, state: &MachineState) -> Result<(), Error> {
    let state: HvfMachine = state.open(BACKEND)?;
    if state.counter_hz != vm.api.counter_hz() {
        return Err(misfit(HvfMachine::NAME, "its clock had another frequency"));
    }
    if state.power.len() != vm.seats.len() {
        return Err(misfit(HvfMachine::NAME, "it has another number of CPUs"));
    }
    match (&vm.chip, &state.chip) {
        (Chip::Host, ChipState::Host(bytes)) if bytes.len() <= MOST_BLOB => {
            vm.api.gic_set_state(bytes).map_err(failed("restoring the interrupt controller"))?;
        }
        (Chip::Own(gic), ChipState::Own(saved)) => {
            gic.lock().unwrap_or_else(PoisonError::into_inner).restore(saved)?;
        }
        _ => {
            let why = "it has another interrupt controller than this version of macOS gives";
            return Err(misfit(HvfMachine::NAME, why));
        }
    }
    *vm.power() = state.power;
    vm.offset.store(vm.api.counter().wrapping_sub(state.counter), Ordering::Release);
    Ok(())
}

pub(super) fn save_vcpu(vcpu: &Bound) -> Result<VcpuState, Error> {
    let (api, id) = (&vcpu.vm.api, vcpu.id);
    let registers: Result<_, _> = (reg::X0..=reg::CPSR).map(|number| api.reg(id, number)).collect();
    let vectors: Result<_, _> = (0..VECTORS)
        .map(|number| api.simd(id, number).map(|value| (value as u64, (value >> 64) as u64)))
        .collect();
    let system: Result<_, _> =
        STATE.into_iter().map(|register| Ok((register, api.sys_reg(id, register)?))).collect();
    let interface = match vcpu.vm.chip {
        Chip::Host => {
            ICC_STATE.into_iter().map(|register| Ok((register, api.icc_reg(id, register)?))).collect()
        }
        Chip::Own(_) => Ok(Vec::new()),
    };
    let state = HvfVcpu {
        registers: registers.map_err(failed("saving the registers"))?,
        vectors: vectors.map_err(failed("saving the vector registers"))?,
        system: system.map_err(failed("saving the system registers"))?,
        interface: interface.map_err(failed("saving the interrupt interface"))?,
        timer_masked: vcpu.timer_masked,
    };
    Ok(VcpuState::new(BACKEND, &state)?)
}

pub(super) fn restore_vcpu(vcpu: &mut Bound, state: &VcpuState) -> Result<(), Error> {
    let state: HvfVcpu = state.open(BACKEND)?;
    let names = |list: &[(u16, u64)]| list.iter().map(|(register, _)| *register).collect::<Vec<_>>();
    let interface: &[u16] = if matches!(vcpu.vm.chip, Chip::Host) { &ICC_STATE } else { &[] };
    if state.registers.len() != reg::CPSR as usize + 1
        || state.vectors.len() != VECTORS as usize
        || names(&state.system) != STATE
        || names(&state.interface) != interface
    {
        return Err(misfit(HvfVcpu::NAME, "it has other registers than this version saves"));
    }
    // The clock first: the timer compares with it.
    vcpu.set_offset()?;
    let (api, id) = (&vcpu.vm.api, vcpu.id);
    for (number, value) in (reg::X0..).zip(&state.registers) {
        api.set_reg(id, number, *value).map_err(failed("restoring the registers"))?;
    }
    for (number, (low, high)) in (0..).zip(&state.vectors) {
        let value = u128::from(*high) << 64 | u128::from(*low);
        api.set_simd(id, number, value).map_err(failed("restoring the vector registers"))?;
    }
    for (register, value) in &state.system {
        api.set_sys_reg(id, *register, *value).map_err(failed("restoring the system registers"))?;
    }
    for (register, value) in &state.interface {
        api.set_icc_reg(id, *register, *value).map_err(failed("restoring the interrupt interface"))?;
    }
    api.set_vtimer_mask(id, state.timer_masked).map_err(failed("restoring the timer"))?;
    vcpu.timer_masked = state.timer_masked;
    Ok(())
}
