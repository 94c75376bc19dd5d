//! Saving and restoring what KVM holds of a machine and of a vCPU: the interrupt controller, and every register that KVM
//! lists, the timers' among them.

// A leaf that may use unsafe: the list has a length that the kernel tells.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_mp_state;
use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

use super::gic::Registers;
use crate::error::Error;
use crate::hv::kvm::failed;
use crate::hv::kvm::vcpu::Bound;
use crate::hv::kvm::vm::Vm;
use crate::hv::{MachineState, VcpuState};

const BACKEND: &str = "kvm-arm64";

/// `KVM_GET_REG_LIST`: `_IOWR(KVMIO, 0xb0, struct kvm_reg_list)`.
const KVM_GET_REG_LIST: libc::c_ulong = 0xc008_aeb0;
/// The most registers that are believed. KVM has some hundred, thousands with wide vectors.
const MOST_REGISTERS: u64 = 1 << 16;

#[derive(Serialize, Deserialize)]
struct KvmMachine {
    gic: Registers,
}

impl State for KvmMachine {
    const NAME: &'static str = "the KVM machine";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct KvmVcpu {
    running: u32,
    /// Each register with its bytes.
    registers: Vec<(u64, Vec<u8>)>,
}

impl State for KvmVcpu {
    const NAME: &'static str = "the KVM vCPU";
    const VERSION: u16 = 1;
}

pub(in crate::hv::kvm) fn save_machine(vm: &Vm) -> Result<MachineState, Error> {
    Ok(MachineState::new(BACKEND, &KvmMachine { gic: vm.chip.save()? })?)
}

pub(in crate::hv::kvm) fn restore_machine(vm: &Vm, state: &MachineState) -> Result<(), Error> {
    let state: KvmMachine = state.open(BACKEND)?;
    if !vm.chip.restore(&state.gic)? {
        let why = "its interrupt controller has other registers".to_owned();
        return Err(StateError::Mismatch { what: KvmMachine::NAME, why }.into());
    }
    Ok(())
}

pub(in crate::hv::kvm) fn save_vcpu(vcpu: &mut Bound) -> Result<VcpuState, Error> {
    let running = vcpu.fd.get_mp_state().map_err(|e| failed("saving the run state", e))?.mp_state;
    let mut registers = Vec::new();
    for id in list(vcpu)? {
        let mut bytes = vec![0; size(id)];
        vcpu.fd.get_one_reg(id, &mut bytes).map_err(|e| failed("saving registers", e))?;
        registers.push((id, bytes));
    }
    Ok(VcpuState::new(BACKEND, &KvmVcpu { running, registers })?)
}

pub(in crate::hv::kvm) fn restore_vcpu(vcpu: &mut Bound, state: &VcpuState) -> Result<(), Error> {
    let state: KvmVcpu = state.open(BACKEND)?;
    let misfit = |why: String| Error::from(StateError::Mismatch { what: KvmVcpu::NAME, why });
    for (id, bytes) in &state.registers {
        if bytes.len() != size(*id) {
            return Err(misfit(format!("register {id:#x} has {} bytes", bytes.len())));
        }
        // Those that tell what the processor is can only be set to what they are.
        vcpu.fd.set_one_reg(*id, bytes).map_err(|e| {
            misfit(format!(
                "this host does not take its register {id:#x}, so it ran on another processor: {e}"
            ))
        })?;
    }
    let running = kvm_mp_state { mp_state: state.running };
    vcpu.fd.set_mp_state(running).map_err(|e| failed("restoring the run state", e))
}

/// The registers that KVM has.
fn list(vcpu: &Bound) -> Result<Vec<u64>, Error> {
    // `struct kvm_reg_list`: how many, then each number. With too little room KVM says how many there are.
    let mut list = vec![0_u64];
    loop {
        // SAFETY: the kernel writes at most as many numbers behind the first word as that says.
        let result = unsafe { libc::ioctl(vcpu.fd.as_raw_fd(), KVM_GET_REG_LIST, list.as_mut_ptr()) };
        let count = list.first().copied().unwrap_or(0);
        if result == 0 {
            list.truncate(usize::try_from(count).unwrap_or(0) + 1);
            list.remove(0);
            return Ok(list);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::E2BIG) || count < list.len() as u64 || count > MOST_REGISTERS {
            return Err(Error::Hypervisor { doing: "listing registers", source: error });
        }
        list = vec![0; usize::try_from(count).unwrap_or(0) + 1];
        if let Some(room) = list.first_mut() {
            *room = count;
        }
    }
}

/// Bytes of a register: their logarithm stands in bits 52 to 55 of its number.
fn size(id: u64) -> usize {
    1 << (id >> 52 & 0xf)
}
