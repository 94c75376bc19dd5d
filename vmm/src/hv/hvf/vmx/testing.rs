//! The framework played by a script, for tests and the fuzzer: registers and a VMCS that remember, exits as they were written
//! down.

// Not product code: a rule that is broken here shall panic.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use servin_devices::mem::{GuestRam, Mem};
use vm_memory::{Address, GuestAddress, GuestMemoryRegion, GuestRegionMmap};

use super::Vmx;
use super::api::{Api, FPSTATE, HvError, Raw, Region, VcpuId, capability};
use super::fields::{self, event, reason};
use crate::hv::x86::testing::Devices;
use crate::hv::{Entry, Exit, Hypervisor, Kick, Machine, Plan, X86Entry, X86Mode};

/// Bytes of RAM of [`machine`].
pub const RAM: usize = 256 * 1024;
/// Where guests begin.
pub const RIP: u64 = 0x1_0000;
/// A frequency.
pub const TSC_HZ: u64 = 2_400_000_000;

/// What a run of a virtual CPU does.
#[derive(Debug, Clone)]
pub enum Run {
    /// Sets these fields of the VMCS and these registers, and ends.
    Exit(Vec<(u32, u64)>, Vec<(u32, u64)>),
    /// Comes back before the guest was entered: the event is still to be delivered.
    Early,
    /// Stays in the guest until it is interrupted.
    Stay,
    /// Fails.
    Fail(HvError),
}

#[derive(Default)]
struct Inner {
    /// What was called, as text.
    calls: Vec<String>,
    runs: VecDeque<Run>,
    kick: Option<Arc<dyn Kick>>,
    kickers: Vec<JoinHandle<()>>,
    registers: HashMap<(VcpuId, u32), u64>,
    vmcs: HashMap<(VcpuId, u32), u64>,
    msrs: HashMap<(VcpuId, u32), u64>,
    extended: HashMap<VcpuId, Vec<u8>>,
    capabilities: HashMap<u32, u64>,
    cpuid: HashMap<(u32, u32), [u32; 4]>,
    failing: HashMap<&'static str, HvError>,
    cancelled: bool,
    /// A guest that halted is kicked instead of waiting.
    kick_halted: bool,
    vcpus: VcpuId,
    now: u64,
    tsc: u64,
    /// Event, primary controls and deadline of each entry.
    entries: Vec<(u64, u64, u64)>,
}

/// A framework by script. Clones are the same one.
#[derive(Clone, Default)]
pub struct Script(Arc<(Mutex<Inner>, Condvar)>);

impl Script {
    /// A Mac with everything, and nothing to run.
    #[must_use]
    pub fn new() -> Self {
        let script = Self::default();
        let everything = 0xffff_ffff << 32;
        script.lock().capabilities = (0..5).map(|field| (field, everything)).collect();
        script.lock().capabilities.insert(capability::PIN, everything | 0x16);
        script.lock().cpuid = HashMap::from([
            ((0, 0), [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            ((1, 0), [0x906ea, 0xff10_0800, u32::MAX, u32::MAX]),
            ((4, 2), [0x1c00_4163, 0, 0, 0]),
            ((7, 0), [0, u32::MAX, u32::MAX, u32::MAX]),
            ((0xd, 0), [0x2e7, 0x440, 0xa88, 0]),
            ((0xd, 1), [0xf, 0x440, 0x100, 0]),
            ((0xd, 2), [0x100, 0x240, 0, 0]),
            ((0xd, 5), [0x40, 0x440, 0, 0]),
            ((0xd, 6), [0x200, 0x480, 0, 0]),
            ((0xd, 7), [0x400, 0x680, 0, 0]),
            ((0x8000_0001, 0), [0, 0, 0x121, 0x2c10_0800]),
        ]);
        script
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a capability, or takes it away.
    pub fn set_capability(&self, field: u32, value: Option<u64>) {
        match value {
            Some(value) => self.lock().capabilities.insert(field, value),
            None => self.lock().capabilities.remove(&field),
        };
    }

    /// Makes the call `name` fail from now on.
    pub fn fail(&self, name: &'static str, error: HvError) {
        self.lock().failing.insert(name, error);
    }

    /// The next run does this.
    pub fn push(&self, run: Run) {
        self.lock().runs.push_back(run);
    }

    /// The next run ends for this reason, with these fields and registers.
    pub fn exit(&self, reason: u32, fields: &[(u32, u64)], registers: &[(u32, u64)]) {
        let mut all = vec![(fields::REASON, u64::from(reason)), (fields::VECTORING_EVENT, 0)];
        all.extend_from_slice(fields);
        self.push(Run::Exit(all, registers.to_vec()));
    }

    /// Kicked when there is no run left.
    pub fn kick_at_end(&self, kick: Arc<dyn Kick>) {
        self.lock().kick = Some(kick);
    }

    /// Waits for the threads that kicked, between runs.
    fn join_kickers(&self) {
        let kickers = std::mem::take(&mut self.lock().kickers);
        kickers.into_iter().for_each(|kicker| kicker.join().expect("a kick does not panic"));
    }

    /// Runs that are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.lock().runs.len()
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Event, primary controls and deadline of each entry so far.
    #[must_use]
    pub fn entries(&self) -> Vec<(u64, u64, u64)> {
        self.lock().entries.clone()
    }

    /// A register of virtual CPU 0.
    #[must_use]
    pub fn register(&self, name: u32) -> u64 {
        self.lock().registers.get(&(0, name)).copied().unwrap_or(0)
    }

    /// Sets a register of virtual CPU 0.
    pub fn put_register(&self, name: u32, value: u64) {
        self.lock().registers.insert((0, name), value);
    }

    /// A field of a virtual CPU.
    #[must_use]
    pub fn field(&self, vcpu: VcpuId, field: u32) -> u64 {
        self.lock().vmcs.get(&(vcpu, field)).copied().unwrap_or(0)
    }

    /// Sets a field of virtual CPU 0.
    pub fn put_field(&self, field: u32, value: u64) {
        self.lock().vmcs.insert((0, field), value);
    }

    /// Sets the clocks: nanoseconds, and the time-stamp counter.
    pub fn put_clocks(&self, now: u64, tsc: u64) {
        let mut inner = self.lock();
        (inner.now, inner.tsc) = (now, tsc);
    }

    fn call(&self, name: &'static str, what: String) -> Raw<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        inner.calls.push(what);
        match inner.failing.get(name) {
            Some(error) => Err(*error),
            None => Ok(inner),
        }
    }

    fn ask(&self, name: &'static str) -> Raw<MutexGuard<'_, Inner>> {
        let inner = self.lock();
        match inner.failing.get(name) {
            Some(error) => Err(*error),
            None => Ok(inner),
        }
    }
}

impl Api for Script {
    fn vm_create(&self) -> Raw<()> {
        self.call("vm_create", "create".to_owned()).map(drop)
    }

    fn vm_destroy(&self) -> Raw<()> {
        self.call("vm_destroy", "destroy".to_owned()).map(drop)
    }

    fn max_vcpus(&self) -> Raw<u64> {
        self.ask("max_vcpus").map(|_| 32)
    }

    fn capability(&self, field: u32) -> Raw<u64> {
        let inner = self.ask("capability")?;
        inner.capabilities.get(&field).copied().ok_or(super::api::UNSUPPORTED)
    }

    fn map(&self, region: &Region, flags: u64) -> Raw<()> {
        let what = format!("map {:#x} {:#x} {flags}", region.start_addr().raw_value(), region.len());
        self.call("map", what).map(drop)
    }

    fn vcpu_create(&self) -> Raw<VcpuId> {
        let mut inner = self.call("vcpu_create", "create vcpu".to_owned())?;
        inner.vcpus += 1;
        Ok(inner.vcpus - 1)
    }

    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()> {
        self.call("vcpu_destroy", format!("destroy vcpu {vcpu}")).map(drop)
    }

    fn run(&self, vcpu: VcpuId, deadline: u64) -> Raw<()> {
        let mut inner = self.lock();
        let told = |inner: &Inner, field| inner.vmcs.get(&(vcpu, field)).copied().unwrap_or(0);
        let entry = (told(&inner, fields::ENTRY_EVENT), told(&inner, fields::CONTROLS), deadline);
        inner.entries.push(entry);
        let run = inner.runs.pop_front();
        if !matches!(run, Some(Run::Early)) {
            // The processor delivers what is to be delivered.
            inner.vmcs.insert((vcpu, fields::ENTRY_EVENT), entry.0 & !u64::from(event::VALID));
        }
        match run {
            Some(Run::Exit(fields, registers)) => {
                inner.vmcs.extend(fields.into_iter().map(|(field, value)| ((vcpu, field), value)));
                inner.registers.extend(registers.into_iter().map(|(name, value)| ((vcpu, name), value)));
                return Ok(());
            }
            Some(Run::Fail(error)) => return Err(error),
            Some(Run::Early | Run::Stay) | None => {}
        }
        inner.vmcs.insert((vcpu, fields::REASON), reason::EXTERNAL_INTERRUPT.into());
        inner.vmcs.insert((vcpu, fields::VECTORING_EVENT), 0);
        if matches!(run, Some(Run::Early)) {
            return Ok(());
        }
        if run.is_none() {
            // As if another thread had kicked meanwhile. There must be a way out.
            let kick = inner.kick.clone().expect("a script that ends is kicked");
            inner.kickers.push(std::thread::spawn(move || kick.kick()));
        }
        let mut inner =
            self.0.1.wait_while(inner, |inner| !inner.cancelled).unwrap_or_else(PoisonError::into_inner);
        inner.cancelled = false;
        Ok(())
    }

    fn interrupt(&self, vcpu: VcpuId) -> Raw<()> {
        let mut inner = self.call("interrupt", format!("interrupt {vcpu}"))?;
        inner.cancelled = true;
        self.0.1.notify_all();
        Ok(())
    }

    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64> {
        Ok(self.ask("reg")?.registers.get(&(vcpu, reg)).copied().unwrap_or(0))
    }

    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()> {
        self.ask("set_reg")?.registers.insert((vcpu, reg), value);
        Ok(())
    }

    fn vmcs(&self, vcpu: VcpuId, field: u32) -> Raw<u64> {
        Ok(self.ask("vmcs")?.vmcs.get(&(vcpu, field)).copied().unwrap_or(0))
    }

    fn set_vmcs(&self, vcpu: VcpuId, field: u32, value: u64) -> Raw<()> {
        self.ask("set_vmcs")?.vmcs.insert((vcpu, field), value);
        Ok(())
    }

    fn msr(&self, vcpu: VcpuId, msr: u32) -> Raw<u64> {
        Ok(self.ask("msr")?.msrs.get(&(vcpu, msr)).copied().unwrap_or(0))
    }

    fn set_msr(&self, vcpu: VcpuId, msr: u32, value: u64) -> Raw<()> {
        self.ask("set_msr")?.msrs.insert((vcpu, msr), value);
        Ok(())
    }

    fn enable_native_msr(&self, _: VcpuId, msr: u32) -> Raw<()> {
        self.call("enable_native_msr", format!("native {msr:#x}")).map(drop)
    }

    fn fpstate(&self, vcpu: VcpuId) -> Raw<Vec<u8>> {
        Ok(self.ask("fpstate")?.extended.get(&vcpu).cloned().unwrap_or_else(|| vec![0; FPSTATE]))
    }

    fn set_fpstate(&self, vcpu: VcpuId, state: &[u8]) -> Raw<()> {
        self.ask("set_fpstate")?.extended.insert(vcpu, state.to_vec());
        Ok(())
    }

    fn invalidate_tlb(&self, _: VcpuId) -> Raw<()> {
        self.ask("invalidate_tlb").map(drop)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.lock().cpuid.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    fn now(&self) -> u64 {
        let inner = self.lock();
        let now = inner.now;
        let halted = inner.vmcs.get(&(0, fields::REASON)) == Some(&u64::from(reason::HLT));
        let kick = if inner.kick_halted && halted { inner.kick.clone() } else { None };
        drop(inner);
        if let Some(kick) = kick {
            kick.kick();
        }
        now
    }

    fn tsc(&self) -> u64 {
        self.lock().tsc
    }

    fn tsc_hz(&self) -> Raw<u64> {
        self.ask("tsc_hz").map(|_| TSC_HZ)
    }
}

/// RAM of [`RAM`] bytes, and 16 KiB more that the guest may only read.
#[must_use]
pub fn mem() -> (Mem, GuestAddress) {
    let rom = GuestAddress(0x10_0000);
    let region = |at, size| GuestRegionMmap::new(servin_devices::testing::region(size, false), at).unwrap();
    let regions = vec![region(GuestAddress(0), RAM), region(rom, 0x4000)];
    (Arc::new(GuestRam::from_regions(regions).unwrap()), rom)
}

/// A machine of `cpus` on the script, and its RAM.
///
/// # Errors
/// As [`Vmx::with`] and [`Hypervisor::create`].
pub fn machine(script: &Script, cpus: u8) -> Result<(Machine, Mem), crate::Error> {
    let (mem, rom) = mem();
    let plan = Plan { read_only: vec![rom], ..Plan::new(Arc::clone(&mem), cpus, 24) };
    Ok((Vmx::with(Arc::new(script.clone()))?.create(&plan)?, mem))
}

/// One fuzz input: registers, a bit of code, then exits of any reason and qualification, run to their end. Everything behind
/// them must come back with an exit or a typed error, and what the next entry is given must be one that a processor takes.
pub fn fuzz_exits(data: &[u8]) {
    use vm_memory::Bytes;

    /// Bytes of an exit.
    const LEN: usize = 32;
    let script = Script::new();
    let (machine, mem) = machine(&script, 2).unwrap();
    let (registers, rest) = data.split_at(data.len().min(16 * 4));
    let (code, rest) = rest.split_at(rest.len().min(16));
    let mut slots = machine.slots.into_iter();
    let slot = slots.next().unwrap();
    script.kick_at_end(slot.kick());
    let mut vcpu = slot.bind().unwrap();
    let entry = X86Entry { mode: X86Mode::Protected, rip: RIP, rsp: 0x8000, rbx: 0, rsi: 0, gdt: 0x5000 };
    vcpu.set_entry(&Entry::X86(entry)).unwrap();
    mem.write_slice(code, GuestAddress(RIP)).unwrap();
    for (name, bytes) in super::api::reg::GENERAL.into_iter().zip(registers.chunks(4)) {
        script.put_register(name, bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    }
    for bytes in rest.chunks(LEN).take(32) {
        let mut exit = [0; LEN];
        exit[..bytes.len()].copy_from_slice(bytes);
        let word = |at: usize| u64::from(u32::from_le_bytes(exit[at..at + 4].try_into().unwrap()));
        if exit[31] & 1 != 0 {
            machine.vm.irq_line(u32::from(exit[31] >> 1) % 24).unwrap().trigger().unwrap();
        }
        script.exit(
            u32::from(exit[0] & 0x3f) | u32::from(exit[1] & 1) << 31,
            &[
                (fields::QUALIFICATION, word(4)),
                (fields::PHYSICAL_ADDRESS, word(8) | u64::from(exit[2]) << 32),
                (fields::INSTRUCTION_LENGTH, word(12)),
                (fields::VECTORING_EVENT, word(16)),
                (fields::VECTORING_ERROR, word(20)),
                (fields::EXIT_EVENT, word(24)),
                (fields::INTERRUPTIBILITY, u64::from(exit[3] & 0xf)),
            ],
            &[(super::api::reg::RIP, RIP), (super::api::reg::RFLAGS, word(28) & 0xffff)],
        );
    }
    script.lock().kick_halted = true;
    let mut devices = Devices::default();
    // A fault of one exit does not keep the others from being looked at.
    for _ in 0..64 {
        script.lock().now += 1 << 20;
        match vcpu.run(&mut devices) {
            Ok(Exit::Kicked) if script.left() == 0 => break,
            Ok(Exit::Kicked | Exit::Fault(_)) | Err(_) => {}
            Ok(Exit::Reset) => break,
            Ok(other) => panic!("{other:?} from VMX"),
        }
    }
    for (event, ..) in script.entries() {
        assert_eq!(event as u32 & !event::KNOWN, 0, "reserved bits in {event:#x}");
    }
    script.join_kickers();
    let state = vcpu.save().unwrap();
    vcpu.restore(&state).unwrap();
}
