//! A KVM vCPU: entering the guest, and turning the run page into calls of [`GuestIo`].

// A leaf that may use unsafe: the run page is a union of what each exit tells.
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::VcpuFd;

use super::kick::{Binding, Kicks};
use super::{failed, vm};
use crate::error::Error;
use crate::hv::x86::XstateLayout;
use crate::hv::{Entry, Exit, Fault, GuestIo, Kick, Vcpu, VcpuSlot, VcpuState, X86Entry, X86Mode};

/// IA32_MTRR_DEF_TYPE: enabled, write-back. Without it the kernel maps nothing cacheable by PAT.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// IA32_MISC_ENABLE: fast strings.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// CR0: protection, extension type (reads as one).
const CR0_PE_ET: u64 = 0x11;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// A vCPU on its way to its thread.
pub(super) struct Slot {
    index: u8,
    fd: VcpuFd,
    vm: Arc<vm::Vm>,
    cpuid: CpuId,
    kicks: Arc<Kicks>,
}

impl Slot {
    pub(super) fn new(vm: &Arc<vm::Vm>, index: u8, cpuid: CpuId) -> Result<Self, Error> {
        let fd = vm.fd.create_vcpu(u64::from(index)).map_err(|e| failed("creating a vCPU", e))?;
        fd.set_cpuid2(&cpuid).map_err(|e| failed("setting the CPUID of a vCPU", e))?;
        Ok(Self { index, fd, vm: Arc::clone(vm), cpuid, kicks: Arc::default() })
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
        let layout = super::assist::layout(&self.cpuid)?;
        let Self { fd, vm, cpuid, kicks, .. } = *self;
        Ok(Box::new(Bound { binding, fd, vm, cpuid, layout, kicks }))
    }
}

/// A vCPU on its thread.
pub(super) struct Bound {
    binding: Binding,
    pub(super) fd: VcpuFd,
    pub(super) vm: Arc<vm::Vm>,
    pub(super) cpuid: CpuId,
    /// Where the components of the extended state stand.
    pub(super) layout: XstateLayout,
    kicks: Arc<Kicks>,
}

/// What an exit asks for.
enum Step {
    /// Enter again.
    Again,
    /// Leave [`Vcpu::run`].
    Leave(Exit),
    /// KVM could not emulate this instruction.
    Emulate(Vec<u8>),
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        let Entry::X86(entry) = entry else {
            return Err(Error::Unsupported {
                what: "an arm64 entry",
                why: "this vCPU is x86_64; take a kernel for x86_64".to_owned(),
            });
        };
        let mut sregs = self.fd.get_sregs().map_err(|e| failed("reading system registers", e))?;
        let long = matches!(entry.mode, X86Mode::Long { .. });
        sregs.cs = segment(X86Entry::CODE, 0xb, long);
        let data = segment(X86Entry::DATA, 0x3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            limit: 0x67,
            selector: X86Entry::TASK,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt.base = entry.gdt;
        sregs.gdt.limit = u16::try_from(size_of_val(&X86Entry::gdt(entry.mode)) - 1).unwrap_or(0);
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE_ET;
        sregs.cr4 = 0;
        sregs.efer = 0;
        if let X86Mode::Long { page_table } = entry.mode {
            sregs.cr3 = page_table;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer = EFER_LME_LMA;
        }
        self.fd.set_sregs(&sregs).map_err(|e| failed("setting system registers", e))?;
        let regs = kvm_regs {
            rip: entry.rip,
            rsp: entry.rsp,
            rbx: entry.rbx,
            rsi: entry.rsi,
            rflags: 2,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(|e| failed("setting registers", e))?;
        let msrs = [MTRR_DEF_TYPE, MISC_ENABLE].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
        let msrs = Msrs::from_entries(&msrs).map_err(|_| Error::Config("too many MSRs".to_owned()))?;
        // A CPU without one of them keeps its default.
        self.fd.set_msrs(&msrs).map_err(|e| failed("setting MSRs", e))?;
        Ok(())
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        let mut kicked = self.kicks.take();
        self.fd.set_kvm_immediate_exit(u8::from(kicked));
        let exit = loop {
            let entered = self.fd.run().map(drop);
            match entered {
                Ok(()) => match self.step(io) {
                    Step::Again => {}
                    Step::Leave(exit) => break exit,
                    Step::Emulate(bytes) => {
                        if let Some(fault) = super::assist::emulate(self, &bytes)? {
                            break Exit::Fault(fault);
                        }
                    }
                },
                Err(error) if error.errno() == libc::EINTR => {
                    self.binding.drain();
                    if kicked || self.kicks.take() {
                        break Exit::Kicked;
                    }
                }
                // An application processor was started: enter it.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Err(failed("running a vCPU", error)),
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
        self.fd.get_regs().map(|regs| regs.rip).map_err(|e| failed("reading registers", e))
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        super::state::save_vcpu(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        super::state::restore_vcpu(self, state)
    }
}

impl Bound {
    /// Answers the exit that the run page tells.
    fn step(&mut self, io: &mut dyn GuestIo) -> Step {
        let run = self.fd.get_kvm_run();
        let page = std::ptr::from_mut(run).cast::<u8>();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason names this member.
                let exit = unsafe { run.__bindgen_anon_1.io };
                let size = usize::from(exit.size).max(1);
                // SAFETY: KVM puts `count` items of `size` bytes at this offset of the run mapping, which the vCPU keeps; no
                // other reference to them exists while `run` is not used.
                let data = unsafe {
                    slice::from_raw_parts_mut(
                        page.wrapping_add(usize::try_from(exit.data_offset).unwrap_or(0)),
                        size * exit.count as usize,
                    )
                };
                let is_in = u32::from(exit.direction) == KVM_EXIT_IO_IN;
                for item in data.chunks_exact_mut(size) {
                    if is_in {
                        io.pio_in(exit.port, item);
                    } else {
                        io.pio_out(exit.port, item);
                    }
                }
                Step::Again
            }
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
            KVM_EXIT_SHUTDOWN => Step::Leave(Exit::Reset),
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the exit reason names this member.
                let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
                Step::Leave(match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Off,
                    KVM_SYSTEM_EVENT_RESET => Exit::Reset,
                    kind => self.fault(format!("the hypervisor reported system event {kind}")),
                })
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason names this member, and both forms begin alike.
                let exit = unsafe { run.__bindgen_anon_1.emulation_failure };
                if exit.suberror != KVM_INTERNAL_ERROR_EMULATION {
                    return Step::Leave(
                        self.fault(format!("the hypervisor failed inside (suberror {})", exit.suberror)),
                    );
                }
                // Three words follow the count when KVM shows the bytes: flags, and the bytes with their number.
                let shown = exit.ndata >= 3 && exit.flags & 1 != 0;
                // SAFETY: the only member of this union.
                let insn = unsafe { exit.__bindgen_anon_1.__bindgen_anon_1 };
                let count = if shown { usize::from(insn.insn_size).min(insn.insn_bytes.len()) } else { 0 };
                Step::Emulate(insn.insn_bytes.get(..count).unwrap_or_default().to_vec())
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason names this member.
                let exit = unsafe { run.__bindgen_anon_1.fail_entry };
                let reason = exit.hardware_entry_failure_reason;
                Step::Leave(self.fault(format!("the CPU refused to enter the guest (reason {reason:#x})")))
            }
            reason => Step::Leave(self.fault(format!("the hypervisor stopped with exit reason {reason}"))),
        }
    }

    fn fault(&self, why: String) -> Exit {
        Exit::Fault(Fault { why, pc: self.fd.get_regs().ok().map(|regs| regs.rip), bytes: Vec::new() })
    }
}

/// A flat segment of 4 GiB.
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}
