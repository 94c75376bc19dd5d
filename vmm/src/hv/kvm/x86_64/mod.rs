//! KVM on x86_64: a PC's interrupt controllers, CPUID, and an instruction assist.
//!
//! Also runs on `kvm_pvm`, a KVM for machines whose CPU offers no virtualization: guest kernel code is emulated
//! there, slowly and incompletely. [`Host::ask`] notices it, and the backend says so in its `Caps`.

// A leaf that may use unsafe: the run page is a union of what each exit tells.
#![allow(unsafe_code)]

mod assist;
mod cpuid;
pub(super) mod state;

use std::path::Path;
use std::slice;

use kvm_bindings::{
    CpuId, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION, Msrs, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::failed;
use super::vcpu::{Bound, Step};
use crate::error::Error;
use crate::hv::x86::XstateLayout;
use crate::hv::{Entry, Exit, GuestIo, IrqChip, Plan, X86Entry, X86Mode};

/// What to do when there is no KVM.
pub(super) const WHERE_IS_KVM: &str = "load the module kvm-intel or kvm-amd, and enable virtualization in the firmware or \
     nested virtualization in the hypervisor around this machine";

/// Where Intel CPUs without "unrestricted guest" keep three pages for real mode: in the hole below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;

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

/// What KVM offers on this host.
#[derive(Debug)]
pub(super) struct Host {
    cpuid: CpuId,
    pvm: bool,
}

impl Host {
    pub(super) fn ask(kvm: &Kvm) -> Result<Self, Error> {
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| failed("asking for the supported CPUID", e))?;
        // Only one vendor module can be loaded at a time, so its presence is proof.
        Ok(Self { cpuid, pvm: Path::new("/sys/module/kvm_pvm").exists() })
    }

    /// Guest kernel code is emulated.
    pub(super) fn is_pvm(&self) -> bool {
        self.pvm
    }

    /// The kind of VM to be asked for.
    pub(super) fn vm_type(&self, _: &Plan) -> Result<u64, Error> {
        Ok(0)
    }
}

/// The interrupt controllers, which KVM keeps.
pub(super) struct Chip;

impl Chip {
    /// They must be there before the first vCPU.
    pub(super) fn before_vcpus(vm: &VmFd) -> Result<(), Error> {
        vm.set_tss_address(TSS_ADDRESS).map_err(|e| failed("setting the TSS address", e))?;
        vm.create_irq_chip().map_err(|e| failed("creating the interrupt controllers", e))
    }

    pub(super) fn new(_: &VmFd, _: &Plan) -> Result<Self, Error> {
        Ok(Self)
    }

    pub(super) fn kind(&self) -> IrqChip {
        IrqChip::Pc
    }
}

/// What a vCPU has beside its descriptor.
pub(super) struct Cpu {
    cpuid: CpuId,
    /// Where the components of the extended state stand.
    layout: XstateLayout,
}

impl Cpu {
    pub(super) fn new(host: &Host, _: &VmFd, vcpu: &VcpuFd, index: u8, cpus: u8) -> Result<Self, Error> {
        let cpuid = cpuid::for_vcpu(&host.cpuid, index, cpus, host.pvm);
        vcpu.set_cpuid2(&cpuid).map_err(|e| failed("setting the CPUID of a vCPU", e))?;
        let layout = assist::layout(&cpuid)?;
        Ok(Self { cpuid, layout })
    }
}

pub(super) fn program_counter(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    vcpu.get_regs().map(|regs| regs.rip)
}

/// What the guest did when `KVM_RUN` failed for it.
pub(super) fn fault_of(_: kvm_ioctls::Error) -> Option<&'static str> {
    None
}

pub(super) fn set_entry(vcpu: &mut Bound, entry: &Entry) -> Result<(), Error> {
    let Entry::X86(entry) = entry else {
        return Err(Error::Unsupported {
            what: "an arm64 entry",
            why: "this vCPU is x86_64; take a kernel for x86_64".to_owned(),
        });
    };
    let mut sregs = vcpu.fd.get_sregs().map_err(|e| failed("reading system registers", e))?;
    let long = matches!(entry.mode, X86Mode::Long { .. });
    sregs.cs = segment(X86Entry::CODE, 0xb, long);
    let data = segment(X86Entry::DATA, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr =
        kvm_segment { limit: 0x67, selector: X86Entry::TASK, type_: 0xb, present: 1, ..Default::default() };
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
    vcpu.fd.set_sregs(&sregs).map_err(|e| failed("setting system registers", e))?;
    let regs = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rbx: entry.rbx,
        rsi: entry.rsi,
        rflags: 2,
        ..Default::default()
    };
    vcpu.fd.set_regs(&regs).map_err(|e| failed("setting registers", e))?;
    let msrs =
        [MTRR_DEF_TYPE, MISC_ENABLE].map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&msrs).map_err(|_| Error::Config("too many MSRs".to_owned()))?;
    // A CPU without one of them keeps its default.
    vcpu.fd.set_msrs(&msrs).map_err(|e| failed("setting MSRs", e))?;
    Ok(())
}

/// Answers the exits that only x86 has.
pub(super) fn step(vcpu: &mut Bound, io: &mut dyn GuestIo) -> Result<Step, Error> {
    let run = vcpu.fd.get_kvm_run();
    let page = std::ptr::from_mut(run).cast::<u8>();
    Ok(match run.exit_reason {
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
        KVM_EXIT_SHUTDOWN => Step::Leave(Exit::Reset),
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason names this member, and both forms begin alike.
            let exit = unsafe { run.__bindgen_anon_1.emulation_failure };
            if exit.suberror != KVM_INTERNAL_ERROR_EMULATION {
                let why = format!("the hypervisor failed inside (suberror {})", exit.suberror);
                return Ok(Step::Leave(vcpu.fault(why)));
            }
            // Three words follow the count when KVM shows the bytes: flags, and the bytes with their number.
            let shown = exit.ndata >= 3 && exit.flags & 1 != 0;
            // SAFETY: the only member of this union.
            let insn = unsafe { exit.__bindgen_anon_1.__bindgen_anon_1 };
            let count = if shown { usize::from(insn.insn_size).min(insn.insn_bytes.len()) } else { 0 };
            let bytes = insn.insn_bytes;
            match assist::emulate(vcpu, bytes.get(..count).unwrap_or_default())? {
                Some(fault) => Step::Leave(Exit::Fault(fault)),
                None => Step::Again,
            }
        }
        reason => Step::Leave(vcpu.unknown(reason)),
    })
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
