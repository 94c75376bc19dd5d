//! Saving and restoring a partition and its virtual processors.
//!
//! On the way back system registers come first (they place the local APIC and open the extended state), then the extended
//! state, then the local APIC, whose timer and pending interrupts act at once.

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

use super::api::{Blob, name};
use super::vcpu::Bound;
use super::vm::Vm;
use super::{BACKEND, failed};
use crate::error::Error;
use crate::hv::x86::hyperv;
use crate::hv::x86::ioapic::IoApicState;
use crate::hv::x86::pic::Pics;
use crate::hv::{MachineState, VcpuState};

/// More than any blob of the platform has; a longer one is damaged.
const MOST_BLOB: usize = 1 << 20;

/// The registers that are saved: ranges of names, both ends included.
const SAVED: [(u32, u32); 8] = [
    // General, RIP, RFLAGS, segments, tables, CR0 to CR8, DR0 to DR7, XCR0: names without a gap.
    (name::RAX, name::XCR0),
    // TSC, EFER, kernel GS, APIC base, PAT, SYSENTER, STAR, LSTAR, CSTAR, SFMASK.
    (name::TSC, name::SFMASK),
    (name::MTRR_DEF_TYPE, name::MTRR_DEF_TYPE),
    (name::TSC_AUX, name::TSC_AUX),
    (name::PENDING_INTERRUPTION, name::PENDING_INTERRUPTION),
    (name::INTERRUPT_STATE, name::INTERRUPT_STATE),
    (name::PENDING_EVENT, name::PENDING_EVENT),
    (name::INTERNAL_ACTIVITY_STATE, name::INTERNAL_ACTIVITY_STATE),
];

fn saved_names() -> Vec<u32> {
    SAVED.into_iter().flat_map(|(first, last)| first..=last).collect()
}

#[derive(Serialize, Deserialize)]
struct WhpMachine {
    ioapic: IoApicState,
    pics: Pics,
    /// Bits of the processor and of its extended state.
    features: [u64; 2],
    /// The TSC's frequency in Hz.
    tsc_hz: u64,
}

impl State for WhpMachine {
    const NAME: &'static str = "the WHP machine";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct WhpVcpu {
    /// Name, low half, high half.
    registers: Vec<(u32, u64, u64)>,
    xsave: Vec<u8>,
    apic: Vec<u8>,
    hyperv: hyperv::Registers,
}

impl State for WhpVcpu {
    const NAME: &'static str = "the WHP vCPU";
    const VERSION: u16 = 1;
}

fn misfit(what: &'static str, why: String) -> Error {
    StateError::Mismatch { what, why }.into()
}

pub(super) fn save_machine(vm: &Vm) -> Result<MachineState, Error> {
    let state = WhpMachine {
        ioapic: vm.ioapic().save(),
        pics: *vm.pics(),
        features: vm.host.features,
        tsc_hz: vm.host.clocks.tsc_hz,
    };
    Ok(MachineState::new(BACKEND, &state)?)
}

pub(super) fn restore_machine(vm: &Vm, state: &MachineState) -> Result<(), Error> {
    let state: WhpMachine = state.open(BACKEND)?;
    let missing = [0, 1].map(|index: usize| {
        let bits = |of: &[u64; 2]| of.get(index).copied().unwrap_or(0);
        bits(&state.features) & !bits(&vm.host.features)
    });
    if missing != [0; 2] {
        let why = format!("this processor lacks features that it had: {:#x}, {:#x}", missing[0], missing[1]);
        return Err(misfit(WhpMachine::NAME, why));
    }
    if state.tsc_hz != vm.host.clocks.tsc_hz {
        let (had, has) = (state.tsc_hz, vm.host.clocks.tsc_hz);
        return Err(misfit(WhpMachine::NAME, format!("its clock ran at {had} Hz, this host's at {has} Hz")));
    }
    *vm.pics() = state.pics;
    Ok(vm.ioapic().restore(&state.ioapic)?)
}

pub(super) fn save_vcpu(vcpu: &Bound) -> Result<VcpuState, Error> {
    let names = saved_names();
    let mut values = vec![0; names.len()];
    let stopped = vcpu.stopped();
    let (api, partition, index) = (stopped.api, stopped.partition, stopped.index);
    api.registers(partition, index, &names, &mut values).map_err(failed("saving the registers"))?;
    let state = WhpVcpu {
        registers: names.iter().zip(&values).map(|(name, v)| (*name, *v as u64, (*v >> 64) as u64)).collect(),
        xsave: api.blob(partition, index, Blob::Xsave).map_err(failed("saving the extended state"))?,
        apic: api.blob(partition, index, Blob::Apic).map_err(failed("saving the local APIC"))?,
        hyperv: vcpu.hyperv,
    };
    Ok(VcpuState::new(BACKEND, &state)?)
}

pub(super) fn restore_vcpu(vcpu: &mut Bound, state: &VcpuState) -> Result<(), Error> {
    let state: WhpVcpu = state.open(BACKEND)?;
    if !state.registers.iter().map(|(name, ..)| *name).eq(saved_names()) {
        return Err(misfit(WhpVcpu::NAME, "it has other registers than this version saves".to_owned()));
    }
    if state.xsave.len() > MOST_BLOB || state.apic.len() > MOST_BLOB {
        return Err(misfit(WhpVcpu::NAME, "its extended state or APIC is longer than any".to_owned()));
    }
    let values: Vec<_> = state
        .registers
        .iter()
        .map(|(name, low, high)| (*name, u128::from(*high) << 64 | u128::from(*low)))
        .collect();
    {
        let stopped = vcpu.stopped();
        let (api, partition, index) = (stopped.api, stopped.partition, stopped.index);
        api.set_registers(partition, index, &values).map_err(failed("restoring the registers"))?;
        api.set_blob(partition, index, Blob::Xsave, &state.xsave)
            .map_err(failed("restoring the extended state"))?;
        api.set_blob(partition, index, Blob::Apic, &state.apic)
            .map_err(failed("restoring the local APIC"))?;
    }
    vcpu.hyperv = state.hyperv;
    Ok(())
}
