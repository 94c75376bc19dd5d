//! The stopped vCPU as the instruction assist sees it: KVM's registers, events and state, and guest memory.

// A leaf that may use unsafe: a 16-byte exchange on guest memory.
#![allow(unsafe_code)]

use std::arch::asm;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use super::state::{read_xsave, write_xsave};
use crate::error::Error;
use crate::hv::Fault;
use crate::hv::kvm::vcpu::Bound;
use crate::hv::x86::{
    AssistError, Cpu, Event, OutOfRam, Physical, Registers, Regs, Segment, Sregs, Table, XstateLayout, assist,
};

/// CPUID leaf: processor extended state.
const EXTENDED_STATE: u32 = 0xd;
/// CPUID leaf: address sizes.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Any bit of CR3 that is part of the address.
const OTHER_ROOT: u64 = 1 << 12;

/// Carries out the instruction that KVM stopped at, or says why it cannot be.
pub(super) fn emulate(vcpu: &mut Bound, bytes: &[u8]) -> Result<Option<Fault>, Error> {
    match assist(&mut Stopped(vcpu), bytes) {
        Ok(_) => Ok(None),
        Err(AssistError::Hypervisor { doing, source }) => Err(Error::Hypervisor { doing, source }),
        Err(AssistError::Unsupported { rip, bytes }) => Ok(Some(Fault {
            why: "neither the hypervisor nor the monitor emulates this instruction".into(),
            pc: Some(rip),
            bytes: bytes.as_slice().to_vec(),
        })),
        Err(error) => Ok(Some(Fault { why: error.to_string(), pc: None, bytes: Vec::new() })),
    }
}

/// A vCPU that KVM stopped.
struct Stopped<'a>(&'a mut Bound);

impl Stopped<'_> {
    /// CPUID of this vCPU, all four registers.
    fn cpuid(&self, function: u32, index: u32) -> Option<[u32; 4]> {
        let entries = self.0.cpu.cpuid.as_slice();
        let found = entries.iter().find(|entry| entry.function == function && entry.index == index);
        found.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    /// Guest memory that a store may change.
    fn writable(&self, gpa: u64) -> Result<GuestAddress, OutOfRam> {
        let region = self.0.vm.mem.find_region(GuestAddress(gpa)).ok_or(OutOfRam { gpa })?;
        if self.0.vm.read_only.contains(&region.start_addr()) {
            return Err(OutOfRam { gpa });
        }
        Ok(GuestAddress(gpa))
    }
}

impl Physical for Stopped<'_> {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.0.vm.mem.read_slice(buf, GuestAddress(gpa)).map_err(|_| OutOfRam { gpa })
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        let at = self.writable(gpa)?;
        self.0.vm.mem.write_slice(data, at).map_err(|_| OutOfRam { gpa })
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        let at = self.writable(gpa)?;
        let slice = self.0.vm.mem.get_slice(at, 8).map_err(|_| OutOfRam { gpa })?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| OutOfRam { gpa })?;
        slice.bitmap().mark_dirty(0, 8);
        // x86 guests and hosts agree on the order of bytes.
        match word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(found) | Err(found) => Ok(found),
        }
    }
}

impl Registers for Stopped<'_> {
    fn regs(&mut self) -> io::Result<Regs> {
        let regs = self.0.fd.get_regs()?;
        Ok(Regs {
            gpr: [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
                regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            rip: regs.rip,
            rflags: regs.rflags,
        })
    }

    fn set_regs(&mut self, regs: &Regs) -> io::Result<()> {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = regs.gpr;
        let (rip, rflags) = (regs.rip, regs.rflags);
        self.0.fd.set_regs(&kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        })?;
        // Some KVMs queue #UD when they give up on an instruction. It is done now.
        let mut events = self.0.fd.get_vcpu_events()?;
        if events.exception.injected != 0 || events.exception.pending != 0 {
            events.exception.injected = 0;
            events.exception.pending = 0;
            self.0.fd.set_vcpu_events(&events)?;
        }
        Ok(())
    }

    fn sregs(&mut self) -> io::Result<Sregs> {
        let sregs = self.0.fd.get_sregs()?;
        let ldt = if sregs.ldt.unusable != 0 { 0 } else { sregs.ldt.limit };
        let [sizes, ..] = self.cpuid(ADDRESS_SIZES, 0).unwrap_or([36, 0, 0, 0]);
        Ok(Sregs {
            cs: segment(&sregs.cs),
            ss: segment(&sregs.ss),
            ds: segment(&sregs.ds),
            es: segment(&sregs.es),
            fs: segment(&sregs.fs),
            gs: segment(&sregs.gs),
            gdt: Table { base: sregs.gdt.base, limit: sregs.gdt.limit.into() },
            ldt: Table { base: sregs.ldt.base, limit: ldt },
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cpl: sregs.ss.dpl & 3,
            physical_bits: (sizes & 0xff) as u8,
        })
    }

    fn inject(&mut self, event: &Event) -> io::Result<()> {
        let mut events = self.0.fd.get_vcpu_events()?;
        events.exception.injected = 0;
        events.exception.pending = 0;
        events.interrupt.shadow = 0;
        let (nr, error_code) = match *event {
            Event::Exception { vector, error_code } => (vector, error_code),
            Event::PageFault { address, error_code } => {
                let mut sregs = self.0.fd.get_sregs()?;
                sregs.cr2 = address;
                self.0.fd.set_sregs(&sregs)?;
                (crate::hv::x86::exception::PF, Some(error_code))
            }
            Event::Interrupt { vector } => {
                events.interrupt.injected = 1;
                events.interrupt.soft = 1;
                events.interrupt.nr = vector;
                return Ok(self.0.fd.set_vcpu_events(&events)?);
            }
        };
        events.exception.injected = 1;
        events.exception.nr = nr;
        events.exception.has_error_code = error_code.is_some().into();
        events.exception.error_code = error_code.unwrap_or(0);
        Ok(self.0.fd.set_vcpu_events(&events)?)
    }
}

impl Cpu for Stopped<'_> {
    fn compare_exchange_16(&mut self, gpa: u64, current: u128, new: u128) -> Result<u128, OutOfRam> {
        let at = self.writable(gpa)?;
        let slice = self.0.vm.mem.get_slice(at, 16).map_err(|_| OutOfRam { gpa })?;
        let guard = slice.ptr_guard_mut();
        let place = guard.as_ptr();
        if !place.cast::<u128>().is_aligned() || !is_x86_feature_detected!("cmpxchg16b") {
            // The assist aligns, and every CPU with virtualization has the instruction.
            return Err(OutOfRam { gpa });
        }
        slice.bitmap().mark_dirty(0, 16);
        let (mut low, mut high) = (current as u64, (current >> 64) as u64);
        // SAFETY: the slice covers 16 bytes of guest memory at this aligned address, which stays mapped while `guard` lives
        // and is only ever accessed by raw or atomic means; the CPU has the instruction. RBX, which may not be named, is
        // put back.
        unsafe {
            asm!(
                "xchg {new}, rbx",
                "lock cmpxchg16b [rdi]",
                "mov rbx, {new}",
                new = inout(reg) new as u64 => _,
                in("rcx") (new >> 64) as u64,
                in("rdi") place,
                inout("rax") low,
                inout("rdx") high,
            );
        }
        Ok((u128::from(high) << 64) | u128::from(low))
    }

    fn xstate(&mut self) -> io::Result<Vec<u8>> {
        let words = read_xsave(self.0).map_err(io::Error::other)?;
        Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    fn set_xstate(&mut self, image: &[u8]) -> io::Result<()> {
        let (words, _) = image.as_chunks();
        let words: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
        write_xsave(self.0, &words).map_err(io::Error::other)
    }

    fn xstate_layout(&self) -> XstateLayout {
        self.0.cpu.layout
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        let xcrs = self.0.fd.get_xcrs()?;
        Ok(xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value))
    }

    fn msr(&mut self, index: u32) -> io::Result<Option<u64>> {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(io::Error::other)?;
        let found = self.0.fd.get_msrs(&mut msrs)?;
        Ok(msrs.as_slice().iter().take(found).map(|entry| entry.data).next())
    }

    fn flush_tlb(&mut self) -> io::Result<()> {
        // KVM drops its shadow of the page tables when the root changes this way.
        let sregs = self.0.fd.get_sregs()?;
        let mut other = sregs;
        other.cr3 ^= OTHER_ROOT;
        self.0.fd.set_sregs(&other)?;
        Ok(self.0.fd.set_sregs(&sregs)?)
    }
}

/// Where KVM's image of the extended state has its components: KVM gives the host's layout.
pub(super) fn layout(cpuid: &kvm_bindings::CpuId) -> Result<XstateLayout, Error> {
    let leaf = |index| {
        let entries = cpuid.as_slice();
        entries.iter().find(|entry| entry.function == EXTENDED_STATE && entry.index == index)
    };
    let supported = leaf(0).map_or(3, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax));
    let layout = XstateLayout::from_cpuid(supported, |index| {
        leaf(index).map_or([0; 3], |entry| [entry.eax, entry.ebx, entry.ecx])
    });
    layout.map_err(io::Error::other).map_err(Error::hypervisor("reading the layout of the extended state"))
}

fn segment(from: &kvm_segment) -> Segment {
    Segment {
        base: from.base,
        limit: from.limit,
        kind: from.type_,
        long: from.l != 0,
        big: from.db != 0,
        unusable: from.unusable != 0,
    }
}
