//! The framework played by a script, for tests and the fuzzer: registers that remember, exits as they were written down.

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

use super::Hvf;
use super::api::{Api, GicSizes, HvError, Raw, RawExit, Region, UNSUPPORTED, VcpuId, reason};
use crate::hv::arm64::esr::{self, Syndrome};
use crate::hv::x86::testing::Devices;
use crate::hv::{Arm64Entry, Entry, Hypervisor, Kick, Machine, Plan};
use crate::layout::aarch64::RAM;

/// A frequency: that of Apple's counters.
pub const COUNTER_HZ: u64 = 24_000_000;

/// What a run of a virtual CPU does.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// Ends with this exit.
    Exit(RawExit),
    /// Stays in the guest until it is cancelled.
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
    system: HashMap<(VcpuId, u16), u64>,
    vectors: HashMap<(VcpuId, u32), u128>,
    failing: HashMap<&'static str, HvError>,
    cancelled: bool,
    vcpus: u64,
    counter: u64,
    gic: Option<GicSizes>,
    gic_state: Vec<u8>,
    /// The interrupts that were shown at each entry.
    shown: Vec<(bool, bool)>,
    pending: (bool, bool),
}

/// A framework by script. Clones are the same one.
#[derive(Clone, Default)]
pub struct Script(Arc<(Mutex<Inner>, Condvar)>);

impl Script {
    /// A framework of macOS 11: without a GIC of its own.
    #[must_use]
    pub fn new() -> Self {
        let script = Self::default();
        script.lock().counter = 1_000_000;
        script
    }

    /// A framework of macOS 15.
    #[must_use]
    pub fn with_gic() -> Self {
        let script = Self::new();
        script.set_gic(GicSizes {
            distributor: 0x1_0000,
            redistributors: 0x2_0000 * 8,
            alignment: 0x1_0000,
            first_spi: 32,
            spis: 988,
        });
        script
    }

    /// Gives the framework a GIC that wants this.
    pub fn set_gic(&self, sizes: GicSizes) {
        self.lock().gic = Some(sizes);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the call `name` fail from now on.
    pub fn fail(&self, name: &'static str, error: HvError) {
        self.lock().failing.insert(name, error);
    }

    /// The next run does this.
    pub fn push(&self, run: Run) {
        self.lock().runs.push_back(run);
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

    /// Takes the next run away; false when there is none.
    pub fn take_run(&self) -> bool {
        self.lock().runs.pop_front().is_some()
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The interrupts (IRQ, FIQ) that were pending at each entry so far.
    #[must_use]
    pub fn shown(&self) -> Vec<(bool, bool)> {
        self.lock().shown.clone()
    }

    /// A general register of the first vCPU.
    #[must_use]
    pub fn x(&self, number: u32) -> u64 {
        self.lock().registers.get(&(0, number)).copied().unwrap_or(0)
    }

    /// Sets it.
    pub fn put_x(&self, number: u32, value: u64) {
        self.lock().registers.insert((0, number), value);
    }

    /// A system register of the first vCPU.
    #[must_use]
    pub fn system(&self, register: u16) -> u64 {
        self.lock().system.get(&(0, register)).copied().unwrap_or(0)
    }

    /// Sets it.
    pub fn put_system(&self, register: u16, value: u64) {
        self.lock().system.insert((0, register), value);
    }

    /// Moves the host's counter.
    pub fn set_counter(&self, counter: u64) {
        self.lock().counter = counter;
    }

    fn call(&self, name: &'static str, what: String) -> Raw<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        inner.calls.push(what);
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

    fn max_vcpus(&self) -> Raw<u32> {
        self.call("max_vcpus", "max vcpus".to_owned()).map(|_| 64)
    }

    fn map(&self, region: &Region, flags: u64) -> Raw<()> {
        let what = format!("map {:#x} {:#x} {flags}", region.start_addr().raw_value(), region.len());
        self.call("map", what).map(drop)
    }

    fn vcpu_create(&self) -> Raw<VcpuId> {
        let mut inner = self.call("vcpu_create", "vcpu create".to_owned())?;
        inner.vcpus += 1;
        Ok(inner.vcpus - 1)
    }

    fn vcpu_destroy(&self, vcpu: VcpuId) -> Raw<()> {
        self.call("vcpu_destroy", format!("vcpu destroy {vcpu}")).map(drop)
    }

    fn run(&self, _: VcpuId) -> Raw<RawExit> {
        let mut inner = self.lock();
        let shown = std::mem::take(&mut inner.pending);
        inner.shown.push(shown);
        match inner.runs.pop_front() {
            Some(Run::Exit(exit)) => return Ok(exit),
            Some(Run::Fail(error)) => return Err(error),
            Some(Run::Stay) => {}
            None => {
                let kick = inner.kick.clone().expect("a script that ends is kicked");
                inner.kickers.push(std::thread::spawn(move || kick.kick()));
            }
        }
        let mut inner =
            self.0.1.wait_while(inner, |inner| !inner.cancelled).unwrap_or_else(PoisonError::into_inner);
        inner.cancelled = false;
        Ok(RawExit { reason: reason::CANCELED, ..RawExit::default() })
    }

    fn exit(&self, vcpu: VcpuId) -> Raw<()> {
        let mut inner = self.call("exit", format!("exit {vcpu}"))?;
        inner.cancelled = true;
        self.0.1.notify_all();
        Ok(())
    }

    fn reg(&self, vcpu: VcpuId, reg: u32) -> Raw<u64> {
        assert!(reg < 35);
        Ok(self.lock().registers.get(&(vcpu, reg)).copied().unwrap_or(0))
    }

    fn set_reg(&self, vcpu: VcpuId, reg: u32, value: u64) -> Raw<()> {
        assert!(reg < 35);
        self.call("set_reg", format!("x{reg} {value:#x}"))?.registers.insert((vcpu, reg), value);
        Ok(())
    }

    fn simd(&self, vcpu: VcpuId, reg: u32) -> Raw<u128> {
        Ok(self.lock().vectors.get(&(vcpu, reg)).copied().unwrap_or(0))
    }

    fn set_simd(&self, vcpu: VcpuId, reg: u32, value: u128) -> Raw<()> {
        self.lock().vectors.insert((vcpu, reg), value);
        Ok(())
    }

    fn sys_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64> {
        let inner = self.call("sys_reg", format!("get {reg:#x}"))?;
        Ok(inner.system.get(&(vcpu, reg)).copied().unwrap_or(0))
    }

    fn set_sys_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()> {
        self.call("set_sys_reg", format!("set {reg:#x}"))?.system.insert((vcpu, reg), value);
        Ok(())
    }

    fn set_pending(&self, _: VcpuId, irq: bool, fiq: bool) -> Raw<()> {
        self.lock().pending = (irq, fiq);
        Ok(())
    }

    fn set_vtimer_mask(&self, _: VcpuId, masked: bool) -> Raw<()> {
        self.call("set_vtimer_mask", format!("vtimer mask {masked}")).map(drop)
    }

    fn set_vtimer_offset(&self, vcpu: VcpuId, offset: u64) -> Raw<()> {
        self.call("set_vtimer_offset", format!("offset {vcpu} {offset}")).map(drop)
    }

    fn counter(&self) -> u64 {
        self.lock().counter
    }

    fn counter_hz(&self) -> u64 {
        COUNTER_HZ
    }

    fn gic_sizes(&self) -> Option<GicSizes> {
        self.lock().gic
    }

    fn gic_create(&self, distributor: u64, redistributors: u64) -> Raw<()> {
        self.call("gic_create", format!("gic {distributor:#x} {redistributors:#x}")).map(drop)
    }

    fn gic_set_spi(&self, intid: u32, level: bool) -> Raw<()> {
        self.call("gic_set_spi", format!("spi {intid} {level}")).map(drop)
    }

    fn gic_state(&self) -> Raw<Vec<u8>> {
        let inner = self.lock();
        if inner.gic.is_some() { Ok(inner.gic_state.clone()) } else { Err(UNSUPPORTED) }
    }

    fn gic_set_state(&self, state: &[u8]) -> Raw<()> {
        self.call("gic_set_state", format!("gic state {} bytes", state.len())).map(drop)
    }

    fn icc_reg(&self, vcpu: VcpuId, reg: u16) -> Raw<u64> {
        self.sys_reg(vcpu, reg)
    }

    fn set_icc_reg(&self, vcpu: VcpuId, reg: u16, value: u64) -> Raw<()> {
        self.set_sys_reg(vcpu, reg, value)
    }
}

/// RAM of 256 KiB, and 16 KiB more that the guest may only read.
#[must_use]
pub fn mem() -> (Mem, GuestAddress) {
    let rom = GuestAddress(RAM + 0x10_0000);
    let region = |at, size| GuestRegionMmap::new(servin_devices::testing::region(size, false), at).unwrap();
    let regions = vec![region(GuestAddress(RAM), 0x4_0000), region(rom, 0x4000)];
    (Arc::new(GuestRam::from_regions(regions).unwrap()), rom)
}

/// A machine of `cpus` on the script.
pub fn machine(script: &Script, cpus: u8) -> Result<Machine, crate::Error> {
    let (mem, rom) = mem();
    let plan = Plan { read_only: vec![rom], ..Plan::new(mem, cpus, 64) };
    Hvf::with(Arc::new(script.clone()))?.create(&plan)
}

/// One fuzz input: registers, then exits, run to their end. Everything behind them must come back with an exit or a typed
/// error.
pub fn fuzz_exits(data: &[u8]) {
    let script = Script::new();
    let machine = machine(&script, 2).unwrap();
    let line = machine.vm.irq_line(3).unwrap();
    let slot = machine.slots.into_iter().next().unwrap();
    script.kick_at_end(slot.kick());
    let kick = slot.kick();
    let mut vcpu = slot.bind().unwrap();
    vcpu.set_entry(&Entry::Arm64(Arm64Entry { pc: RAM, x0: 0 })).unwrap();
    let (registers, rest) = data.split_at(data.len().min(64));
    for (number, bytes) in (0..).zip(registers.chunks(4)) {
        script.put_x(number, bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    }
    let mut devices = Devices { answers: data.to_vec(), ..Devices::default() };
    for bytes in rest.chunks_exact(16).take(64) {
        let word = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        let reason = (word(0) & 3) as u32;
        let exit =
            RawExit { reason, syndrome: word(4), virtual_address: word(8), physical_address: word(12) };
        if word(0) & 4 != 0 {
            line.trigger().unwrap();
        }
        script.push(Run::Exit(exit));
        // A guest that waits for an interrupt, which may never come, is kicked; nobody else is.
        let waits = matches!(
            esr::decode(exit.syndrome),
            Syndrome::Wait { event: false } | Syndrome::Hvc(0) | Syndrome::Smc(0)
        );
        if exit.reason == reason::EXCEPTION && waits {
            let kick = Arc::clone(&kick);
            let run = std::thread::spawn(move || kick.kick());
            let _ = vcpu.run(&mut devices);
            run.join().unwrap();
        } else {
            let _ = vcpu.run(&mut devices);
        }
        while script.take_run() {}
    }
    script.join_kickers();
    let state = vcpu.save().unwrap();
    vcpu.restore(&state).unwrap();
}
