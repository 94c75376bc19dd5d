//! A KVM vCPU: entering the guest, and turning the run page into calls of [`GuestIo`].

// A leaf that may use unsafe: the run page is a union of what each exit tells.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_MMIO, KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuFd;

use super::kick::{Binding, Kicks};
use super::{arch, failed, vm};
use crate::error::Error;
use crate::hv::{Entry, Exit, Fault, GuestIo, Kick, Vcpu, VcpuSlot, VcpuState};

/// A vCPU on its way to its thread.
pub(super) struct Slot {
    index: u8,
    fd: VcpuFd,
    vm: Arc<vm::Vm>,
    cpu: arch::Cpu,
    kicks: Arc<Kicks>,
}

impl Slot {
    pub(super) fn new(vm: &Arc<vm::Vm>, index: u8, fd: VcpuFd, cpu: arch::Cpu) -> Self {
        Self { index, fd, vm: Arc::clone(vm), cpu, kicks: Arc::default() }
    }
}

impl VcpuSlot for Slot {
    fn index(&self) -> u8 {
        self.index
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicks) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error> {
        let binding = Binding::new(&self.fd, Arc::clone(&self.kicks))
            .map_err(Error::hypervisor("binding a vCPU to its thread"))?;
        let Self { fd, vm, cpu, kicks, .. } = *self;
        Ok(Box::new(Bound { binding, fd, vm, cpu, kicks }))
    }
}

/// A vCPU on its thread.
pub(super) struct Bound {
    binding: Binding,
    pub(super) fd: VcpuFd,
    #[cfg_attr(
        target_arch = "aarch64",
        expect(dead_code, reason = "keeps the guest's memory; x86 reads it too")
    )]
    pub(super) vm: Arc<vm::Vm>,
    #[cfg_attr(
        target_arch = "aarch64",
        expect(dead_code, reason = "x86 keeps more about a vCPU than arm64 does")
    )]
    pub(super) cpu: arch::Cpu,
    kicks: Arc<Kicks>,
}

/// What an exit asks for.
pub(super) enum Step {
    /// Enter again.
    Again,
    /// Leave [`Vcpu::run`].
    Leave(Exit),
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        arch::set_entry(self, entry)
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        let mut kicked = self.kicks.take();
        self.fd.set_kvm_immediate_exit(u8::from(kicked));
        let exit = loop {
            let entered = self.fd.run().map(drop);
            match entered {
                Ok(()) => match self.step(io)? {
                    Step::Again => {}
                    Step::Leave(exit) => break exit,
                },
                Err(error) if error.errno() == libc::EINTR => {
                    self.binding.drain();
                    if kicked || self.kicks.take() {
                        break Exit::Kicked;
                    }
                }
                // An application processor was started: enter it.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => match arch::fault_of(error) {
                    Some(why) => break self.fault(why.to_owned()),
                    None => return Err(failed("running a vCPU", error)),
                },
            }
            if !kicked && self.kicks.take() {
                kicked = true;
                self.fd.set_kvm_immediate_exit(1);
            }
        };
        if kicked && exit != Exit::Kicked {
            self.kicks.put_back();
        }
        Ok(exit)
    }

    fn program_counter(&mut self) -> Result<u64, Error> {
        arch::program_counter(&self.fd).map_err(|e| failed("reading registers", e))
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        arch::state::save_vcpu(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        arch::state::restore_vcpu(self, state)
    }
}

impl Bound {
    /// Answers the exit that the run page tells.
    fn step(&mut self, io: &mut dyn GuestIo) -> Result<Step, Error> {
        let run = self.fd.get_kvm_run();
        Ok(match run.exit_reason {
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason names this member.
                let exit = unsafe { &mut run.__bindgen_anon_1.mmio };
                let len = (exit.len as usize).min(exit.data.len());
                let (data, _) = exit.data.split_at_mut(len);
                // A page crossing leaves odd widths; devices have registers of 1, 2, 4 and 8 bytes.
                let width = if len.is_power_of_two() { len } else { 1 };
                let mut addr = exit.phys_addr;
                for item in data.chunks_exact_mut(width) {
                    if exit.is_write != 0 {
                        io.mmio_write(addr, item);
                    } else {
                        io.mmio_read(addr, item);
                    }
                    addr = addr.wrapping_add(width as u64);
                }
                Step::Again
            }
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the exit reason names this member.
                let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
                Step::Leave(match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Off,
                    KVM_SYSTEM_EVENT_RESET => Exit::Reset,
                    kind => self.fault(format!("the hypervisor reported system event {kind}")),
                })
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason names this member.
                let exit = unsafe { run.__bindgen_anon_1.fail_entry };
                let reason = exit.hardware_entry_failure_reason;
                Step::Leave(self.fault(format!("the CPU refused to enter the guest (reason {reason:#x})")))
            }
            _ => return arch::step(self, io),
        })
    }

    pub(super) fn fault(&self, why: String) -> Exit {
        Exit::Fault(Fault { why, pc: arch::program_counter(&self.fd).ok(), bytes: Vec::new() })
    }

    /// An exit that nobody knows.
    pub(super) fn unknown(&self, reason: u32) -> Exit {
        self.fault(format!("the hypervisor stopped with exit reason {reason}"))
    }
}
