//! A vCPU of plain memory for the tests and the fuzzer of the assist.

// Not product code: a rule that is broken here shall panic.
#![allow(clippy::indexing_slicing, clippy::panic)]

use std::io;

use super::cpu::{Cpu, OutOfRam, Physical, Registers};
use super::regs::{Event, Regs, Segment, Sregs, cr0, cr4, efer};
use super::xstate::XstateLayout;
use super::{Outcome, access, assist};
use crate::hv::GuestIo;

/// Bytes of RAM, from guest-physical 0.
pub const RAM: usize = 256 * 1024;
/// Guest-physical address of the root page table; the others follow.
const TABLES: u64 = 0x1000;

/// Page table entry bits, for [`FakeCpu::map`].
pub mod entry {
    /// Present.
    pub const PRESENT: u64 = 1;
    /// Writable.
    pub const WRITABLE: u64 = 2;
    /// User.
    pub const USER: u64 = 4;
    /// Accessed.
    pub const ACCESSED: u64 = 1 << 5;
    /// Dirty.
    pub const DIRTY: u64 = 1 << 6;
    /// A large page.
    pub const LARGE: u64 = 1 << 7;
    /// No execution.
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// A vCPU in memory.
pub struct FakeCpu {
    /// General registers.
    pub regs: Regs,
    /// System registers.
    pub sregs: Sregs,
    /// RAM.
    pub ram: Vec<u8>,
    /// The extended state image.
    pub xstate: Vec<u8>,
    /// Its layout.
    pub layout: XstateLayout,
    /// XCR0.
    pub xcr0: u64,
    /// Model-specific registers that exist.
    pub msrs: Vec<(u32, u64)>,
    /// What was injected.
    pub injected: Vec<Event>,
    /// How often translations were flushed.
    pub flushes: usize,
    /// The next page table that [`FakeCpu::map`] takes.
    next_table: u64,
}

/// The state components of a processor with AVX-512, as its CPUID leaf 0Dh says.
pub fn layout_with_avx512() -> XstateLayout {
    let layout = XstateLayout::from_cpuid(0xe7, |index| match index {
        2 => [0x100, 0x240, 0],
        5 => [0x40, 0x340, 0],
        6 => [0x200, 0x380, 0],
        _ => [0x400, 0x580, 0],
    });
    // The values are constants and valid.
    layout.unwrap_or_else(|error| unreachable!("{error}"))
}

impl FakeCpu {
    /// A kernel in 64-bit mode with nothing mapped: RIP at 0x10_000.
    pub fn long_mode() -> Self {
        let code = Segment { limit: u32::MAX, kind: 11, long: true, ..Segment::default() };
        let data = Segment { limit: u32::MAX, kind: 3, big: true, ..Segment::default() };
        let layout = layout_with_avx512();
        let mut xstate = vec![0; layout.len()];
        xstate[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        xstate[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        xstate[28..32].copy_from_slice(&0x2_ffff_u32.to_le_bytes());
        Self {
            regs: Regs { rip: 0x10_000, rflags: 2, ..Regs::default() },
            sregs: Sregs {
                cs: code,
                ss: data,
                ds: data,
                es: data,
                fs: data,
                gs: data,
                cr0: cr0::PE | cr0::PG | cr0::WP,
                cr3: TABLES,
                cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXSAVE,
                efer: efer::LMA | efer::NXE,
                physical_bits: 48,
                ..Sregs::default()
            },
            ram: vec![0; RAM],
            xstate,
            layout,
            xcr0: 0xe7,
            msrs: Vec::new(),
            injected: Vec::new(),
            flushes: 0,
            next_table: TABLES + 0x1000,
        }
    }

    /// The same, with all RAM mapped at its own address, writable, for the supervisor.
    pub fn mapped() -> Self {
        let mut cpu = Self::long_mode();
        for page in 0..RAM as u64 / 4096 {
            cpu.map(page * 4096, (page * 4096) | entry::PRESENT | entry::WRITABLE);
        }
        cpu
    }

    /// A kernel in 32-bit protected mode without paging.
    pub fn protected_mode() -> Self {
        let mut cpu = Self::long_mode();
        cpu.sregs.cr0 = cr0::PE;
        cpu.sregs.efer = 0;
        cpu.sregs.cs.long = false;
        cpu.sregs.cs.big = true;
        cpu
    }

    /// Maps the 4 KiB page at `linear` by this last-level entry; tables above it allow everything.
    pub fn map(&mut self, linear: u64, leaf: u64) {
        self.map_at(linear, leaf, 1);
    }

    /// Maps by an entry at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB).
    pub fn map_at(&mut self, linear: u64, leaf: u64, level: u32) {
        let at = self.slot(linear, level);
        self.put(at, &leaf.to_le_bytes());
    }

    /// Where the entry for `linear` at `level` stands; tables on the way are made.
    pub fn slot(&mut self, linear: u64, level: u32) -> u64 {
        let levels = if self.sregs.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
        let mut table = self.sregs.cr3 & !0xfff;
        for above in (level + 1..=levels).rev() {
            let at = table + (linear >> (12 + 9 * (above - 1)) & 0x1ff) * 8;
            if self.u64(at) & entry::PRESENT == 0 {
                let new = self.next_table | entry::PRESENT | entry::WRITABLE | entry::USER;
                self.next_table += 0x1000;
                self.put(at, &new.to_le_bytes());
            }
            table = self.u64(at) & 0x000f_ffff_ffff_f000;
        }
        table + (linear >> (12 + 9 * (level - 1)) & 0x1ff) * 8
    }

    /// Writes RAM; what lies outside is dropped.
    pub fn put(&mut self, gpa: u64, data: &[u8]) {
        if let Some(place) = self.ram.get_mut(gpa as usize..).and_then(|rest| rest.get_mut(..data.len())) {
            place.copy_from_slice(data);
        }
    }

    /// Eight bytes of RAM.
    pub fn u64(&mut self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        let _ = self.read_physical(gpa, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn range(&self, gpa: u64, len: usize) -> Result<std::ops::Range<usize>, OutOfRam> {
        assert!(gpa % 4096 + len as u64 <= 4096, "access at {gpa:#x} of {len} bytes crosses a page");
        let start = usize::try_from(gpa).map_err(|_| OutOfRam { gpa })?;
        match start.checked_add(len) {
            Some(end) if end <= self.ram.len() => Ok(start..end),
            _ => Err(OutOfRam { gpa }),
        }
    }
}

impl Physical for FakeCpu {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        buf.copy_from_slice(&self.ram[self.range(gpa, buf.len())?]);
        Ok(())
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        let range = self.range(gpa, data.len())?;
        self.ram[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        assert_eq!(gpa % 8, 0, "unaligned exchange at {gpa:#x}");
        let found = {
            let mut bytes = [0; 8];
            self.read_physical(gpa, &mut bytes)?;
            u64::from_le_bytes(bytes)
        };
        if found == current {
            self.write_physical(gpa, &new.to_le_bytes())?;
        }
        Ok(found)
    }
}

impl Registers for FakeCpu {
    fn regs(&mut self) -> io::Result<Regs> {
        Ok(self.regs)
    }

    fn set_regs(&mut self, regs: &Regs) -> io::Result<()> {
        self.regs = *regs;
        Ok(())
    }

    fn sregs(&mut self) -> io::Result<Sregs> {
        Ok(self.sregs)
    }

    fn inject(&mut self, event: &Event) -> io::Result<()> {
        self.injected.push(*event);
        Ok(())
    }
}

impl Cpu for FakeCpu {
    fn compare_exchange_16(&mut self, gpa: u64, current: u128, new: u128) -> Result<u128, OutOfRam> {
        assert_eq!(gpa % 16, 0, "unaligned exchange at {gpa:#x}");
        let mut bytes = [0; 16];
        self.read_physical(gpa, &mut bytes)?;
        let found = u128::from_le_bytes(bytes);
        if found == current {
            self.write_physical(gpa, &new.to_le_bytes())?;
        }
        Ok(found)
    }

    fn xstate(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.xstate.clone())
    }

    /// Refuses what KVM_SET_XSAVE refuses, and forgets components whose bit is clear, as it does.
    fn set_xstate(&mut self, image: &[u8]) -> io::Result<()> {
        let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap_or_default());
        let mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap_or_default());
        let in_use = word(512);
        if image.len() != self.xstate.len() || in_use & !0xe7 != 0 || mxcsr & !0x2_ffff != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if image[520..576].iter().any(|&byte| byte != 0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let initial = Self::long_mode().xstate;
        self.xstate.copy_from_slice(image);
        self.xstate[28..32].copy_from_slice(&initial[28..32]);
        if in_use & 6 == 0 {
            self.xstate[24..28].copy_from_slice(&initial[24..28]);
        }
        for index in (0..8).filter(|index| in_use >> index & 1 == 0) {
            for range in self.layout.ranges(index, true) {
                self.xstate[range.clone()].copy_from_slice(&initial[range]);
            }
        }
        Ok(())
    }

    fn xstate_layout(&self) -> XstateLayout {
        self.layout
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        Ok(self.xcr0)
    }

    fn msr(&mut self, index: u32) -> io::Result<Option<u64>> {
        Ok(self.msrs.iter().find(|(known, _)| *known == index).map(|(_, value)| *value))
    }

    fn flush_tlb(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
}

/// Devices that answer reads with the bytes of a stream, and write down what reaches them.
#[derive(Default)]
pub struct Devices {
    /// What the next reads answer; then all ones.
    pub answers: Vec<u8>,
    /// Reads of memory: address and width.
    pub reads: Vec<(u64, usize)>,
    /// Writes to memory.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Reads of ports: port and width.
    pub ins: Vec<(u16, usize)>,
    /// Writes to ports.
    pub outs: Vec<(u16, Vec<u8>)>,
}

impl Devices {
    fn answer(&mut self, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4 | 8), "an access of {} bytes", data.len());
        for byte in data {
            *byte = if self.answers.is_empty() { 0xff } else { self.answers.remove(0) };
        }
    }
}

impl GuestIo for Devices {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.reads.push((addr, data.len()));
        self.answer(data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4 | 8), "an access of {} bytes", data.len());
        self.writes.push((addr, data.to_vec()));
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        self.ins.push((port, data.len()));
        self.answer(data);
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4), "an access of {} bytes", data.len());
        self.outs.push((port, data.to_vec()));
    }
}

/// One fuzz input for [`access`]. Panics where a rule is broken.
pub fn fuzz_access(data: &[u8]) {
    let Some((mut cpu, code, shown)) = fuzz_cpu(data) else { return };
    let before = cpu.regs;
    let mut devices = Devices { answers: data.to_vec(), ..Devices::default() };
    let known = code.get(..usize::from(shown) % 16).unwrap_or(code);
    let result = access(&mut cpu, &mut devices, known);
    let moved = cpu.regs.rip.wrapping_sub(before.rip);
    match result {
        Ok(Outcome::Done) => {
            let limit = if cpu.sregs.bitness() == 64 { u64::MAX } else { 0xffff_ffff };
            assert!((1..=15).contains(&(moved & limit)), "RIP moved by {moved}");
            assert!(cpu.injected.is_empty(), "done, yet {:?}", cpu.injected);
        }
        Ok(Outcome::Partly) => assert_eq!(moved, 0, "in the middle of a string"),
        Ok(Outcome::Injected(event)) => {
            assert_eq!(cpu.injected, [event]);
            assert!(super::access::is_possible(&event), "{event:?}");
            assert_eq!(cpu.regs, before, "{event:?} changed registers");
        }
        Ok(Outcome::Retry) | Err(_) => assert_eq!(cpu.regs, before, "{result:?} changed registers"),
    }
}

/// A vCPU made of `data`, the bytes of the instruction at its RIP, and how many of them the hypervisor shows.
fn fuzz_cpu(data: &[u8]) -> Option<(FakeCpu, &[u8], u8)> {
    let (&[mode, shown], rest) = data.split_first_chunk::<2>()?;
    let mut cpu = match mode % 4 {
        0 => FakeCpu::protected_mode(),
        1 => FakeCpu::long_mode(),
        _ => FakeCpu::mapped(),
    };
    let (code, rest) = rest.split_at(rest.len().min(15));
    let (control, rest) = rest.split_at(rest.len().min(8));
    let mut words = control.iter().copied().chain(std::iter::repeat(0));
    let mut next = || words.next().unwrap_or_default();
    // Flip what instructions and walks look at; long mode itself stays.
    cpu.sregs.cr4 ^= u64::from(next()) << 16;
    cpu.sregs.cr0 ^= u64::from(next() & 0x0e);
    cpu.sregs.cr0 ^= u64::from(next() & 1) << 16;
    cpu.xcr0 = u64::from(next()) & 0xe7 | 1;
    cpu.sregs.gdt.limit = next().into();
    cpu.sregs.gdt.base = 0x3_0000;
    cpu.sregs.cpl = if next() == 0xff { 3 } else { 0 };
    cpu.regs.rflags ^= u64::from(next()) << 11;
    let (registers, memory) = rest.split_at(rest.len().min(32));
    for (slot, bytes) in cpu.regs.gpr.iter_mut().zip(registers.chunks(2)) {
        *slot = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)) << (mode >> 4 & 7);
    }
    // What the registers can reach most easily, page tables included where the input is long enough.
    for (at, bytes) in (0x3_0000_u64..).step_by(256).zip(memory.chunks(256)) {
        cpu.put(at, bytes);
    }
    cpu.put(cpu.regs.rip, code);
    Some((cpu, code, shown))
}

/// One fuzz input: mode, registers, the instruction and memory are all taken from `data`. Panics where a rule is broken.
pub fn fuzz_assist(data: &[u8]) {
    let Some((mut cpu, code, shown)) = fuzz_cpu(data) else { return };
    let before = cpu.regs;
    let known = &code[..code.len().min(shown as usize % 16)];
    let result = assist(&mut cpu, known);
    let moved = cpu.regs.rip.wrapping_sub(before.rip);
    match result {
        Ok(Outcome::Done) => {
            assert!((1..=15).contains(&moved), "RIP moved by {moved}");
            assert!(cpu.injected.is_empty(), "done, yet {:?}", cpu.injected);
        }
        Ok(Outcome::Injected(event)) => {
            assert_eq!(cpu.injected, [event]);
            let trap = matches!(event, Event::Interrupt { .. } | Event::Exception { vector: 1 | 3, .. });
            assert_eq!(moved != 0, trap, "{event:?} moved RIP by {moved}");
            assert_eq!(cpu.regs.gpr, before.gpr, "{event:?} changed registers");
        }
        Ok(Outcome::Partly) => panic!("the assist knows no strings"),
        Ok(Outcome::Retry) | Err(_) => assert_eq!(cpu.regs, before, "{result:?} changed registers"),
    }
}
