//! A small machine around one program, and a recorder of what it does.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use servin_devices::mem::{GuestRam, Mem};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use super::arch;
use crate::hv::fake::{Fake, FakeCpu};
use crate::hv::{self, Caps, Exit, GuestIo, Hypervisor, Kick, Plan, Vcpu, VcpuSlot, Vm};

/// Nothing is here but the monitor.
pub(super) const MMIO: u64 = 0x2000_0000;
/// A read-only region of one word.
pub(super) const ROM: u64 = 0x40_0000;
/// What it holds.
pub(super) const ROM_CONTENT: u32 = 0xcafe_f00d;
/// Where a guest without ports reaches them.
const PORTS: std::ops::Range<u64> = 0x2100_0000..0x2101_0000;
/// A port that echoes.
pub(super) const PORT: u16 = 0x50;
/// The guest is at its end: kicks the vCPU.
pub(super) const DONE: u16 = 0xf4;
/// The guest is where the test wants it.
pub(super) const READY: u16 = 0xf5;
/// Interrupt lines of the machine.
pub(super) const GSIS: u32 = 24;
/// Longer than any check takes on the slowest host.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Where programs start; a stack and the second vCPU's program have their places beside.
pub(super) const CODE: u64 = 0x1_0000;
pub(super) const STACK: u64 = 0x2_8000;
const SECOND: u64 = 0x8000;
const MIB: usize = 1 << 20;

/// Byte `index` of what the recorder answers a read at `addr`.
pub(super) fn answer(addr: u64, index: usize) -> u8 {
    (addr as u8).wrapping_mul(17).wrapping_add(index as u8 + 1)
}

/// A backend under test.
pub(super) struct Bench {
    hypervisor: Arc<dyn Hypervisor>,
    fake: Option<Fake>,
}

impl Bench {
    pub(super) fn fake() -> Self {
        let fake = Fake::new();
        Self { hypervisor: Arc::new(fake.clone()), fake: Some(fake) }
    }

    pub(super) fn fake_with_doorbells() -> Self {
        let fake = Fake::with_doorbells();
        Self { hypervisor: Arc::new(fake.clone()), fake: Some(fake) }
    }

    /// Runs `check` on this host's hypervisor, or says that there is none.
    pub(super) fn host(check: fn(&Self)) {
        match hv::open() {
            Ok(hypervisor) => check(&Self { hypervisor, fake: None }),
            Err(error) => println!("skipped: {error}"),
        }
    }

    pub(super) fn caps(&self) -> &Caps {
        self.hypervisor.caps()
    }

    pub(super) fn is_fake(&self) -> bool {
        self.fake.is_some()
    }

    pub(super) fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.hypervisor
    }

    /// A machine with this program, as machine code and for the fake's first vCPU.
    pub(super) fn machine(
        &self,
        cpus: u8,
        code: &[u8],
        guest: impl Fn(&FakeCpu) + Send + Sync + 'static,
    ) -> TestMachine {
        self.machine_of(cpus, code, guest)
    }

    /// The same, with every vCPU of the fake executing `guest`.
    pub(super) fn machine_of(
        &self,
        cpus: u8,
        code: &[u8],
        guest: impl Fn(&FakeCpu) + Send + Sync + 'static,
    ) -> TestMachine {
        let mem = ram();
        mem.write_slice(code, GuestAddress(CODE)).unwrap();
        mem.write_slice(arch::second(), GuestAddress(SECOND)).unwrap();
        mem.write_obj(ROM_CONTENT, GuestAddress(ROM)).unwrap();
        arch::prepare(&mem);
        self.assemble(mem, cpus, true, guest)
    }

    /// A machine of one vCPU in which written pages are not tracked yet.
    pub(super) fn untracked(
        &self,
        code: &[u8],
        guest: impl Fn(&FakeCpu) + Send + Sync + 'static,
    ) -> TestMachine {
        let mem = ram();
        mem.write_slice(code, GuestAddress(CODE)).unwrap();
        arch::prepare(&mem);
        self.assemble(mem, 1, false, guest)
    }

    /// A machine on the memory of another one.
    pub(super) fn machine_on(
        &self,
        mem: Mem,
        guest: impl Fn(&FakeCpu) + Send + Sync + 'static,
    ) -> TestMachine {
        self.assemble(mem, 1, true, guest)
    }

    fn assemble(
        &self,
        mem: Mem,
        cpus: u8,
        track_dirty: bool,
        guest: impl Fn(&FakeCpu) + Send + Sync + 'static,
    ) -> TestMachine {
        let plan = Plan {
            read_only: vec![GuestAddress(ROM)],
            track_dirty,
            ..Plan::new(Arc::clone(&mem), cpus, GSIS)
        };
        let machine = self.hypervisor.create(&plan).unwrap();
        let kicks = machine.slots.iter().map(|slot| slot.kick()).collect();
        let guests =
            self.fake.iter().flat_map(|fake| (0..cpus).map(|index| fake.cpu(index).unwrap())).collect();
        TestMachine {
            mem,
            vm: Some(machine.vm),
            slots: machine.slots,
            kicks,
            guests,
            program: Arc::new(guest),
            threads: Vec::new(),
        }
    }
}

fn ram() -> Mem {
    let region = |base, size| {
        GuestRegionMmap::new(servin_devices::testing::region(size, true), GuestAddress(base)).unwrap()
    };
    Arc::new(GuestRam::from_regions(vec![region(0, 2 * MIB), region(ROM, 2 * MIB)]).unwrap())
}

/// A machine with its program.
pub(super) struct TestMachine {
    pub(super) mem: Mem,
    vm: Option<Arc<dyn Vm>>,
    slots: Vec<Box<dyn VcpuSlot>>,
    kicks: Vec<Arc<dyn Kick>>,
    guests: Vec<FakeCpu>,
    program: Arc<dyn Fn(&FakeCpu) + Send + Sync>,
    threads: Vec<JoinHandle<()>>,
}

impl TestMachine {
    pub(super) fn vm(&self) -> &Arc<dyn Vm> {
        self.vm.as_ref().unwrap()
    }

    pub(super) fn take_vm(&mut self) -> Arc<dyn Vm> {
        self.vm.take().unwrap()
    }

    pub(super) fn take_slots(&mut self) -> Vec<Box<dyn VcpuSlot>> {
        std::mem::take(&mut self.slots)
    }

    pub(super) fn put_slots(&mut self, slots: Vec<Box<dyn VcpuSlot>>) {
        self.slots = slots;
    }

    pub(super) fn kick(&self, index: usize) -> Arc<dyn Kick> {
        Arc::clone(&self.kicks[index])
    }

    pub(super) fn recorder(&self) -> Recorder {
        Recorder::new(self.kick(0))
    }

    /// Binds the first vCPU to this thread, in front of the program.
    pub(super) fn boot_vcpu(&mut self) -> Box<dyn Vcpu> {
        let mut vcpu = self.slots.remove(0).bind().unwrap();
        vcpu.set_entry(&arch::entry()).unwrap();
        self.start_guest();
        vcpu
    }

    /// Lets the fake's vCPUs execute the program.
    pub(super) fn start_guest(&mut self) {
        for guest in self.guests.drain(..) {
            let program = Arc::clone(&self.program);
            self.threads.push(std::thread::spawn(move || program(&guest)));
        }
    }

    /// Runs the first vCPU until the program says DONE.
    pub(super) fn run_until_done(&mut self, io: &mut Recorder) {
        let mut vcpu = self.boot_vcpu();
        self.run_vcpu_until_done(&mut *vcpu, io);
    }

    pub(super) fn run_vcpu_until_done(&self, vcpu: &mut dyn Vcpu, io: &mut Recorder) {
        let _watch = Watchdog::new(self.kick(0));
        let exit = vcpu.run(io).unwrap();
        let at = vcpu.program_counter().unwrap();
        assert_eq!(exit, Exit::Kicked, "at {at:#x}");
        assert!(io.done, "the guest hangs at {at:#x}");
    }
}

/// Kicks a vCPU whose guest hangs, so that its test can fail.
pub(super) struct Watchdog(#[expect(dead_code, reason = "its end stops the watch")] mpsc::Sender<()>);

impl Watchdog {
    pub(super) fn new(kick: Arc<dyn Kick>) -> Self {
        let (alive, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.kick();
            }
        });
        Self(alive)
    }
}

type OnWrite = Box<dyn FnMut(u64, &[u8])>;

/// Records what a guest writes, answers what it reads.
pub(super) struct Recorder {
    pub(super) writes: Vec<(u64, Vec<u8>)>,
    pub(super) outs: Vec<(u16, Vec<u8>)>,
    /// The guest said DONE.
    pub(super) done: bool,
    pub(super) on_read: Option<Box<dyn FnMut(u64)>>,
    pub(super) on_write: Option<OnWrite>,
    pub(super) on_ready: Option<Box<dyn FnMut()>>,
    kick: Arc<dyn Kick>,
}

impl Recorder {
    pub(super) fn new(kick: Arc<dyn Kick>) -> Self {
        Self {
            writes: Vec::new(),
            outs: Vec::new(),
            done: false,
            on_read: None,
            on_write: None,
            on_ready: None,
            kick,
        }
    }
}

impl GuestIo for Recorder {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        if PORTS.contains(&addr) {
            return self.pio_in((addr - PORTS.start) as u16, data);
        }
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = answer(addr, index);
        }
        if let Some(hook) = &mut self.on_read {
            hook(addr);
        }
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        if PORTS.contains(&addr) {
            return self.pio_out((addr - PORTS.start) as u16, data);
        }
        self.writes.push((addr, data.to_vec()));
        if let Some(hook) = &mut self.on_write {
            hook(addr, data);
        }
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = answer(port.into(), index);
        }
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        match port {
            DONE => {
                self.done = true;
                self.kick.kick();
            }
            READY => {
                if let Some(hook) = &mut self.on_ready {
                    hook();
                }
            }
            _ => self.outs.push((port, data.to_vec())),
        }
    }
}
