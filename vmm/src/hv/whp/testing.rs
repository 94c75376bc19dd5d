//! The platform played by a script, for tests and the fuzzer: registers that remember, exits as they were written down.

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

use super::Whp;
use super::api::{Api, Blob, CONTEXT_SIZE, Context, Hresult, Partition, Raw, Region, capability, name};
use super::exit::at;
use crate::hv::x86::testing::Devices;
use crate::hv::{Exit, Hypervisor, Kick, Machine, Plan};

/// Bytes of RAM of [`machine`].
pub const RAM: usize = 256 * 1024;
/// A frequency.
pub const TSC_HZ: u64 = 2_400_000_000;

/// What a run of a virtual processor does.
pub enum Run {
    /// Ends with this context.
    Exit(Box<Context>),
    /// Stays in the guest until it is cancelled.
    Stay,
    /// Fails.
    Fail(Hresult),
}

#[derive(Default)]
struct Inner {
    /// What was called, as text.
    calls: Vec<String>,
    runs: VecDeque<Run>,
    /// Kicked when the script is through.
    kick: Option<Arc<dyn Kick>>,
    kickers: Vec<JoinHandle<()>>,
    registers: HashMap<(u32, u32), u128>,
    blobs: HashMap<(u32, bool), Vec<u8>>,
    capabilities: HashMap<u32, u64>,
    /// Calls that fail, by their name.
    failing: HashMap<&'static str, Hresult>,
    /// A processor is in the guest.
    inside: bool,
    cancelled: bool,
    /// Interrupts that were requested.
    interrupts: Vec<[u8; 16]>,
    dirty: Vec<u64>,
}

/// A platform by script. Clones are the same one.
#[derive(Clone, Default)]
pub struct Script(Arc<(Mutex<Inner>, Condvar)>);

impl Script {
    /// A platform of today, with nothing to run.
    #[must_use]
    pub fn new() -> Self {
        let script = Self::default();
        script.lock().capabilities = HashMap::from([
            (capability::HYPERVISOR_PRESENT, 1),
            (capability::FEATURES, 0xf),
            (capability::PROCESSOR_FEATURES, 0xff),
            (capability::XSAVE_FEATURES, 7),
            (capability::PROCESSOR_CLOCK_FREQUENCY, TSC_HZ),
            (capability::INTERRUPT_CLOCK_FREQUENCY, 200_000_000),
        ]);
        script
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a capability, or takes it away.
    pub fn set_capability(&self, code: u32, value: Option<u64>) {
        match value {
            Some(value) => self.lock().capabilities.insert(code, value),
            None => self.lock().capabilities.remove(&code),
        };
    }

    /// Makes the call `name` fail from now on.
    pub fn fail(&self, name: &'static str, error: Hresult) {
        self.lock().failing.insert(name, error);
    }

    /// The next run does this.
    pub fn push(&self, run: Run) {
        self.lock().runs.push_back(run);
    }

    /// Takes the next run away; false when there is none.
    pub fn take_run(&self) -> bool {
        self.lock().runs.pop_front().is_some()
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

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The interrupts requested so far.
    #[must_use]
    pub fn interrupts(&self) -> Vec<[u8; 16]> {
        self.lock().interrupts.clone()
    }

    /// A register of processor 0.
    #[must_use]
    pub fn register(&self, name: u32) -> u128 {
        self.lock().registers.get(&(0, name)).copied().unwrap_or(0)
    }

    /// Sets a register of processor 0.
    pub fn put_register(&self, name: u32, value: u128) {
        self.lock().registers.insert((0, name), value);
    }

    /// What the next question for dirty pages answers.
    pub fn put_dirty(&self, bitmap: Vec<u64>) {
        self.lock().dirty = bitmap;
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
    fn capability(&self, code: u32, out: &mut [u8]) -> Raw<usize> {
        let inner = self.call("capability", format!("capability {code:#x}"))?;
        let value = inner.capabilities.get(&code).ok_or(super::api::UNKNOWN_CAPABILITY)?;
        let len = out.len().min(8);
        out[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(len)
    }

    fn create_partition(&self) -> Raw<Partition> {
        self.call("create_partition", "create".to_owned()).map(|_| Partition(7))
    }

    fn set_property(&self, _: Partition, code: u32, value: &[u8]) -> Raw<()> {
        self.call("set_property", format!("property {code:#x} {} bytes", value.len())).map(drop)
    }

    fn setup_partition(&self, _: Partition) -> Raw<()> {
        self.call("setup_partition", "setup".to_owned()).map(drop)
    }

    fn delete_partition(&self, _: Partition) -> Raw<()> {
        self.call("delete_partition", "delete".to_owned()).map(drop)
    }

    fn map(&self, _: Partition, region: &Region, flags: u32) -> Raw<()> {
        let what = format!("map {:#x} {:#x} {flags}", region.start_addr().raw_value(), region.len());
        self.call("map", what).map(drop)
    }

    fn query_dirty(&self, _: Partition, gpa: u64, bytes: u64, bitmap: &mut [u64]) -> Raw<()> {
        let mut inner = self.call("query_dirty", format!("dirty {gpa:#x} {bytes:#x}"))?;
        for (to, from) in bitmap.iter_mut().zip(std::mem::take(&mut inner.dirty)) {
            *to = from;
        }
        Ok(())
    }

    fn request_interrupt(&self, _: Partition, control: [u8; 16]) -> Raw<()> {
        self.call("request_interrupt", "interrupt".to_owned())?.interrupts.push(control);
        Ok(())
    }

    fn create_vp(&self, _: Partition, index: u32) -> Raw<()> {
        self.call("create_vp", format!("create vp {index}")).map(drop)
    }

    fn delete_vp(&self, _: Partition, index: u32) -> Raw<()> {
        self.call("delete_vp", format!("delete vp {index}")).map(drop)
    }

    fn run_vp(&self, _: Partition, _: u32, context: &mut Context) -> Raw<()> {
        let mut inner = self.lock();
        match inner.runs.pop_front() {
            Some(Run::Exit(exit)) => *context = *exit,
            Some(Run::Fail(error)) => return Err(error),
            Some(Run::Stay) => {
                inner.inside = true;
                while !inner.cancelled {
                    inner = self.0.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
                inner.inside = false;
                inner.cancelled = false;
                *context = *canceled();
            }
            None => {
                let kick = inner.kick.clone();
                *context = *canceled();
                // As if another thread had kicked meanwhile. There must be a way out.
                drop(inner);
                let kick = kick.expect("a script that ends is kicked");
                let kicker = std::thread::spawn(move || kick.kick());
                // The kick cancels until the run is over.
                let mut inner = self.lock();
                inner.kickers.push(kicker);
                let inner = self
                    .0
                    .1
                    .wait_while(inner, |inner| !std::mem::take(&mut inner.cancelled))
                    .unwrap_or_else(PoisonError::into_inner);
                drop(inner);
            }
        }
        Ok(())
    }

    fn cancel_vp(&self, _: Partition, index: u32) -> Raw<()> {
        let mut inner = self.call("cancel_vp", format!("cancel {index}"))?;
        inner.cancelled = true;
        self.0.1.notify_all();
        Ok(())
    }

    fn registers(&self, _: Partition, index: u32, names: &[u32], values: &mut [u128]) -> Raw<()> {
        let inner = self.call("registers", format!("get {index} {names:x?}"))?;
        assert_eq!(names.len(), values.len());
        for (name, value) in names.iter().zip(values) {
            *value = inner.registers.get(&(index, *name)).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn set_registers(&self, _: Partition, index: u32, values: &[(u32, u128)]) -> Raw<()> {
        let mut inner = self.call("set_registers", format!("set {index}"))?;
        inner.registers.extend(values.iter().map(|(name, value)| ((index, *name), *value)));
        Ok(())
    }

    fn blob(&self, _: Partition, index: u32, blob: Blob) -> Raw<Vec<u8>> {
        let inner = self.call("blob", format!("get {blob:?} {index}"))?;
        Ok(inner.blobs.get(&(index, blob == Blob::Apic)).cloned().unwrap_or_default())
    }

    fn set_blob(&self, _: Partition, index: u32, blob: Blob, bytes: &[u8]) -> Raw<()> {
        let mut inner = self.call("set_blob", format!("set {blob:?} {index}"))?;
        inner.blobs.insert((index, blob == Blob::Apic), bytes.to_vec());
        Ok(())
    }
}

/// A context of this reason at `rip`, 64-bit code, instruction of `length` bytes.
#[must_use]
pub fn context(reason: u32, rip: u64, length: u8) -> Box<Context> {
    let mut context = Box::new(Context([0; CONTEXT_SIZE]));
    put(&mut context, at::REASON, &reason.to_le_bytes());
    put(&mut context, at::RIP, &rip.to_le_bytes());
    put(&mut context, at::LENGTH, &[length]);
    put(&mut context, at::CS_ATTRIBUTES, &0x209b_u16.to_le_bytes());
    context
}

/// Writes into a context.
pub fn put(context: &mut Context, at: usize, bytes: &[u8]) {
    context.0[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An access to memory, with the bytes of its instruction.
#[must_use]
pub fn memory(rip: u64, gpa: u64, access: u32, bytes: &[u8]) -> Box<Context> {
    let mut context = context(1, rip, 0);
    put(&mut context, at::BODY, &[bytes.len() as u8]);
    put(&mut context, at::BYTES, bytes);
    put(&mut context, at::INFO, &access.to_le_bytes());
    put(&mut context, at::GPA, &gpa.to_le_bytes());
    context
}

/// An access to a port by an instruction of one byte.
#[must_use]
pub fn port(rip: u64, port: u16, info: u32, rax: u64) -> Box<Context> {
    let mut context = context(2, rip, 1);
    put(&mut context, at::INFO, &info.to_le_bytes());
    put(&mut context, at::PORT, &port.to_le_bytes());
    put(&mut context, at::PORT_RAX, &rax.to_le_bytes());
    context
}

/// An access to an MSR.
#[must_use]
pub fn msr(rip: u64, number: u32, write: bool, value: u64) -> Box<Context> {
    let mut context = context(0x1000, rip, 2);
    put(&mut context, at::BODY, &[u8::from(write)]);
    put(&mut context, at::MSR, &number.to_le_bytes());
    put(&mut context, at::MSR_RAX, &(value & 0xffff_ffff).to_le_bytes());
    put(&mut context, at::MSR_RDX, &(value >> 32).to_le_bytes());
    context
}

/// A run that was cancelled.
#[must_use]
pub fn canceled() -> Box<Context> {
    context(0x2001, 0, 0)
}

/// RAM of [`RAM`] bytes, and 16 KiB more that the guest may only read.
#[must_use]
pub fn mem() -> (Mem, GuestAddress) {
    let rom = GuestAddress(0x10_0000);
    let region = |at, size| GuestRegionMmap::new(servin_devices::testing::region(size, false), at).unwrap();
    let regions = vec![region(GuestAddress(0), RAM), region(rom, 0x4000)];
    (Arc::new(GuestRam::from_regions(regions).unwrap()), rom)
}

/// A machine of `cpus` on the script.
pub fn machine(script: &Script, cpus: u8) -> Result<Machine, crate::Error> {
    let (mem, rom) = mem();
    let plan = Plan { read_only: vec![rom], track_dirty: true, ..Plan::new(mem, cpus, 24) };
    Whp::with(Arc::new(script.clone()))?.create(&plan)
}

/// One fuzz input: registers, a bit of code in RAM, then exit contexts, run to their end. The decoder and everything
/// behind it must come back with an exit or a typed error.
pub fn fuzz_exits(data: &[u8]) {
    /// Bytes of a context that are decoded.
    const DECODED: usize = 96;
    let script = Script::new();
    let machine = machine(&script, 1).unwrap();
    let (registers, rest) = data.split_at(data.len().min(18 * 4));
    for (name, bytes) in (name::RAX..).zip(registers.chunks(4)) {
        let value = bytes.iter().fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
        script.put_register(name, value);
    }
    // Protected mode, flat.
    for name in name::ES..=name::GS {
        script.put_register(name, 0xc093 << 112 | 0xffff_ffff << 64);
    }
    script.put_register(name::CR0, 0x11);
    for bytes in rest.chunks(DECODED).take(32) {
        let mut context = Box::new(Context([0; CONTEXT_SIZE]));
        put(&mut context, 0, bytes);
        script.push(Run::Exit(context));
    }
    let slot = machine.slots.into_iter().next().unwrap();
    script.kick_at_end(slot.kick());
    let mut vcpu = slot.bind().unwrap();
    let mut devices = Devices::default();
    // A fault of one exit does not keep the others from being looked at.
    for _ in 0..64 {
        match vcpu.run(&mut devices) {
            Ok(Exit::Kicked) => break,
            Ok(Exit::Fault(_) | Exit::Reset) | Err(_) => {}
            Ok(other) => panic!("{other:?} from WHP"),
        }
    }
    script.join_kickers();
    let state = vcpu.save().unwrap();
    vcpu.restore(&state).unwrap();
}
