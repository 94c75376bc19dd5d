//! The fake backend: a guest written in Rust, with real memory, the real bus and real device workers.
//!
//! The monitor runs its vCPU threads as ever. The test holds a [`FakeCpu`] and says what the guest does:
//! `cpu.write32(addr, value)` becomes an access that the vCPU's thread carries out inside [`Vcpu::run`].
//!
//! ```text
//! test thread: FakeCpu::write32 --request--> vCPU thread: run() -> GuestIo::mmio_write
//!                               <--reply----
//! ```

use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use servin_devices::event::Event;
use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
use servin_devices::state::{State, StateError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    Caps, Doorbell, Entry, Exit, GuestIo, Hypervisor, IrqChip, Kick, MAX_CPUS, Machine, MachineState,
};
use super::{Offload, Plan, Vcpu, VcpuSlot, VcpuState, Vm};
use crate::error::Error;

mod cpu;

pub use cpu::FakeCpu;

const BACKEND: &str = "fake";
/// What the log of written pages counts.
const PAGE: u64 = 0x1000;
/// What the machines of this architecture have.
const IRQCHIP: IrqChip = if cfg!(target_arch = "aarch64") { IrqChip::GicV3 } else { IrqChip::Pc };

/// A hypervisor whose guest is the caller. Clones share their machines.
#[derive(Debug, Clone)]
pub struct Fake {
    caps: Caps,
    /// The machine that was made last.
    last: Arc<Mutex<Weak<Board>>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// A fake without doorbells: every one reaches the bus.
    #[must_use]
    pub fn new() -> Self {
        let caps = Caps {
            name: BACKEND,
            variant: None,
            max_cpus: MAX_CPUS,
            emulates_kernel: false,
            triple_fault: true,
            doorbells: false,
            read_only: true,
            executes_code: false,
            starts_cpus: true,
            page_size: 0x4000,
        };
        Self { caps, last: Arc::default() }
    }

    /// A fake that answers offloaded doorbells itself, as KVM does.
    #[must_use]
    pub fn with_doorbells() -> Self {
        let mut fake = Self::new();
        fake.caps.doorbells = true;
        fake
    }

    /// A fake that starts only the first vCPU; the guest starts the others ([`FakeCpu::start_cpu`]).
    #[must_use]
    pub fn with_sleeping_cpus() -> Self {
        let mut fake = Self::new();
        fake.caps.starts_cpus = false;
        fake
    }

    /// The guest's side of vCPU `index` of the machine that was made last; `None` when there is no such vCPU.
    #[must_use]
    pub fn cpu(&self, index: u8) -> Option<FakeCpu> {
        let board = lock(&self.last).upgrade()?;
        let link = Arc::clone(board.links.get(usize::from(index))?);
        Some(FakeCpu::new(board, link))
    }
}

impl Hypervisor for Fake {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn create(&self, plan: &Plan) -> Result<Machine, Error> {
        if plan.cpus == 0 || plan.cpus > MAX_CPUS {
            return Err(Error::Config(format!("{} vCPUs; 1 to {MAX_CPUS} are possible", plan.cpus)));
        }
        let links: Vec<Arc<Link>> = (0..plan.cpus).map(|_| Arc::default()).collect();
        let board = Arc::new(Board {
            mem: Arc::clone(&plan.mem),
            read_only: plan.read_only.clone(),
            doorbells: self.caps.doorbells.then(Mutex::default),
            irqs: Mutex::new(vec![0; plan.gsis as usize]),
            triggered: Condvar::new(),
            links: links.clone(),
            dirty: Mutex::new(None),
        });
        if plan.track_dirty {
            board.track();
        }
        *lock(&self.last) = Arc::downgrade(&board);
        let slots = (0..)
            .zip(links)
            .map(|(index, link)| {
                Box::new(Slot { index, board: Arc::clone(&board), link }) as Box<dyn VcpuSlot>
            })
            .collect();
        Ok(Machine { vm: Arc::new(FakeVm(board)), slots, irqchip: IRQCHIP })
    }
}

/// What the vCPUs of a machine share.
#[derive(Debug)]
struct Board {
    mem: Mem,
    read_only: Vec<GuestAddress>,
    doorbells: Option<Mutex<Vec<(Doorbell, Event)>>>,
    /// How often each line was triggered.
    irqs: Mutex<Vec<u64>>,
    triggered: Condvar,
    links: Vec<Arc<Link>>,
    /// The pages of each region that vCPUs wrote, once they are tracked.
    dirty: Mutex<Option<Vec<Vec<u64>>>>,
}

/// The wire between a [`FakeCpu`] and its vCPU's thread.
#[derive(Debug, Default)]
struct Link {
    wire: Mutex<Wire>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wire {
    request: Option<Request>,
    reply: Option<u64>,
    kicked: bool,
    /// The vCPU was dropped: nothing will be answered any more.
    gone: bool,
    entry: Option<Entry>,
    registers: [u64; 16],
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    Read { addr: u64, len: u8 },
    Write { addr: u64, len: u8, value: u64 },
    In { port: u16, len: u8 },
    Out { port: u16, len: u8, value: u64 },
    Leave(Exit),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    fn is_ram(&self, addr: u64) -> bool {
        self.mem.find_region(GuestAddress(addr)).is_some()
    }

    fn is_read_only(&self, addr: u64) -> bool {
        let start = self.mem.find_region(GuestAddress(addr)).map(GuestMemoryRegion::start_addr);
        start.is_some_and(|start| self.read_only.contains(&start))
    }

    /// Tracks from now on which pages vCPUs write.
    fn track(&self) {
        let words = |bytes: u64| usize::try_from(bytes.div_ceil(64 * PAGE)).unwrap_or_default();
        let clean = || self.mem.iter().map(|region| vec![0; words(region.len())]).collect();
        lock(&self.dirty).get_or_insert_with(clean);
    }

    /// A vCPU wrote memory.
    fn mark(&self, addr: u64, len: usize) {
        let Some(dirty) = &mut *lock(&self.dirty) else { return };
        for (region, pages) in self.mem.iter().zip(dirty) {
            let start = region.start_addr().0;
            for addr in [addr, addr + len.saturating_sub(1) as u64] {
                let Some(page) = addr.checked_sub(start).map(|at| at / PAGE) else { continue };
                if let Some(word) = usize::try_from(page / 64).ok().and_then(|at| pages.get_mut(at)) {
                    *word |= 1 << (page % 64);
                }
            }
        }
    }

    /// Rings an offloaded doorbell; true when there was one.
    fn ring(&self, doorbell: Doorbell) -> bool {
        let Some(doorbells) = &self.doorbells else { return false };
        let doorbells = lock(doorbells);
        let found = doorbells.iter().find(|(other, _)| *other == doorbell);
        found.inspect(|(_, event)| event.signal()).is_some()
    }
}

/// The shared parts as the monitor holds them.
struct FakeVm(Arc<Board>);

impl Vm for FakeVm {
    fn irq_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        let lines = lock(&self.0.irqs).len();
        if gsi as usize >= lines {
            return Err(Error::Config(format!("interrupt line {gsi}; there are {lines} lines")));
        }
        Ok(Arc::new(FakeLine { board: Arc::clone(&self.0), gsi }))
    }

    fn offload(&self, doorbell: Doorbell, event: &Event) -> Option<Offload> {
        lock(self.0.doorbells.as_ref()?).push((doorbell, event.clone()));
        let board = Arc::clone(&self.0);
        Some(Offload::new(move || {
            if let Some(doorbells) = &board.doorbells {
                lock(doorbells).retain(|(other, _)| *other != doorbell);
            }
        }))
    }

    fn track_dirty(&self) -> Option<Result<(), Error>> {
        self.0.track();
        Some(Ok(()))
    }

    fn take_dirty(&self, region: usize) -> Option<Result<Vec<u64>, Error>> {
        let start = self.0.mem.iter().nth(region)?.start_addr().0;
        if self.0.is_read_only(start) {
            return None;
        }
        let mut dirty = lock(&self.0.dirty);
        let pages = dirty.as_mut()?.get_mut(region)?;
        let clean = vec![0; pages.len()];
        Some(Ok(std::mem::replace(pages, clean)))
    }

    fn save(&self) -> Result<MachineState, Error> {
        Ok(MachineState::new(BACKEND, &FakeMachine { irqs: lock(&self.0.irqs).clone() })?)
    }

    fn restore(&self, state: &MachineState) -> Result<(), Error> {
        let state: FakeMachine = state.open(BACKEND)?;
        let mut irqs = lock(&self.0.irqs);
        if irqs.len() != state.irqs.len() {
            let why = format!("it has {} interrupt lines, this machine {}", state.irqs.len(), irqs.len());
            return Err(StateError::Mismatch { what: FakeMachine::NAME, why }.into());
        }
        *irqs = state.irqs;
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct FakeMachine {
    irqs: Vec<u64>,
}

impl State for FakeMachine {
    const NAME: &'static str = "the fake machine";
    const VERSION: u16 = 1;
}

#[derive(Serialize, Deserialize)]
struct FakeRegisters {
    registers: [u64; 16],
}

impl State for FakeRegisters {
    const NAME: &'static str = "the fake vCPU";
    const VERSION: u16 = 1;
}

/// A line that counts.
struct FakeLine {
    board: Arc<Board>,
    gsi: u32,
}

impl IrqLine for FakeLine {
    fn trigger(&self) -> std::io::Result<()> {
        if let Some(count) = lock(&self.board.irqs).get_mut(self.gsi as usize) {
            *count += 1;
        }
        self.board.triggered.notify_all();
        Ok(())
    }
}

struct Slot {
    index: u8,
    board: Arc<Board>,
    link: Arc<Link>,
}

impl VcpuSlot for Slot {
    fn index(&self) -> u8 {
        self.index
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.link) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(Bound { slot: *self, not_send: PhantomData }))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.link.wire).gone = true;
        self.link.changed.notify_all();
    }
}

impl Kick for Link {
    fn kick(&self) {
        lock(&self.wire).kicked = true;
        self.changed.notify_all();
    }
}

struct Bound {
    slot: Slot,
    not_send: PhantomData<*mut ()>,
}

impl Vcpu for Bound {
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        lock(&self.slot.link.wire).entry = Some(*entry);
        Ok(())
    }

    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error> {
        let link = &self.slot.link;
        loop {
            let mut wire = lock(&link.wire);
            let request = loop {
                if std::mem::take(&mut wire.kicked) {
                    return Ok(Exit::Kicked);
                }
                if let Some(request) = wire.request.take() {
                    break request;
                }
                wire = link.changed.wait(wire).unwrap_or_else(PoisonError::into_inner);
            };
            // The access may kick this very vCPU.
            drop(wire);
            let (reply, exit) = self.slot.board.carry_out(request, io);
            lock(&link.wire).reply = Some(reply);
            link.changed.notify_all();
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    fn program_counter(&mut self) -> Result<u64, Error> {
        Ok(match lock(&self.slot.link.wire).entry {
            Some(Entry::X86(entry)) => entry.rip,
            Some(Entry::Arm64(entry)) => entry.pc,
            None => 0,
        })
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        let registers = lock(&self.slot.link.wire).registers;
        Ok(VcpuState::new(BACKEND, &FakeRegisters { registers })?)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        lock(&self.slot.link.wire).registers = state.open::<FakeRegisters>(BACKEND)?.registers;
        Ok(())
    }
}

impl Board {
    /// What the hardware does with an access: RAM, doorbell, or out to the monitor.
    fn carry_out(&self, request: Request, io: &mut dyn GuestIo) -> (u64, Option<Exit>) {
        let mut bytes = [0; 8];
        match request {
            Request::Read { addr, len } => {
                let data = part(&mut bytes, len);
                if self.is_ram(addr) {
                    if self.mem.read_slice(data, GuestAddress(addr)).is_err() {
                        data.fill(0xff);
                    }
                } else {
                    io.mmio_read(addr, data);
                }
            }
            Request::Write { addr, len, value } => {
                bytes = value.to_le_bytes();
                let data = part(&mut bytes, len);
                if self.is_ram(addr) && !self.is_read_only(addr) {
                    self.mark(addr, data.len());
                    // A write across the end of RAM is lost, as on a bus.
                    let _ = self.mem.write_slice(data, GuestAddress(addr));
                } else if !self.ring(Doorbell { addr, len, value }) {
                    io.mmio_write(addr, data);
                }
            }
            Request::In { port, len } => io.pio_in(port, part(&mut bytes, len)),
            Request::Out { port, len, value } => {
                bytes = value.to_le_bytes();
                io.pio_out(port, part(&mut bytes, len));
            }
            Request::Leave(exit) => return (0, Some(exit)),
        }
        (u64::from_le_bytes(bytes), None)
    }
}

/// The first `len` bytes.
fn part(bytes: &mut [u8; 8], len: u8) -> &mut [u8] {
    let len = usize::from(len).min(bytes.len());
    bytes.split_at_mut(len).0
}
