//! The hypervisor contract: what a backend (`kvm`, later `hvf` and `whp`, and the `fake`) offers the monitor.
//!
//! The rules that shaped it:
//!
//! - I/O exits are calls, not data: [`Vcpu::run`] takes a [`GuestIo`] and returns control flow only ([`Exit`]).
//! - There is no file descriptor in any trait: an interrupt is [`IrqLine::trigger`], a doorbell is
//!   `Event::signal`. irqfd and ioeventfd are accelerations inside a backend.
//! - Thread affinity is in the types: a [`VcpuSlot`] moves to its thread, [`VcpuSlot::bind`] yields a [`Vcpu`]
//!   that is not `Send`.
//! - Kicks are sticky: a kick before `run` makes the next `run` return [`Exit::Kicked`].
//! - The [`Plan`] is complete, so that a backend can set up its interrupt controller before any vCPU exists.
//!
//! ```text
//! Hypervisor --create(Plan)--> Machine { vm, slots }
//!                                         slots --move to a thread, bind()--> Vcpu --run(GuestIo)--> Exit
//! ```

pub mod arm64;
#[cfg(test)]
mod conformance;
pub mod entry;
pub mod fake;
pub mod hvf;
mod kick;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub mod kvm;
#[cfg(test)]
mod mutants;
pub mod state;
pub mod whp;
pub mod x86;

use std::fmt;
use std::sync::Arc;

pub use entry::{Arm64Entry, Entry, X86Entry, X86Mode};
use servin_devices::event::Event;
pub use servin_devices::irq::IrqLine;
use servin_devices::mem::Mem;
pub use state::{MachineState, VcpuState};
use vm_memory::GuestAddress;

use crate::error::Error;

/// The most vCPUs of one VM.
pub const MAX_CPUS: u8 = 8;

/// A hypervisor of this host. Opening it costs next to nothing; a machine is made by [`Self::create`].
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// What this hypervisor can do.
    fn caps(&self) -> &Caps;

    /// Makes a machine: memory mapped, interrupt controller and every vCPU created, nothing running.
    ///
    /// # Errors
    /// The plan is not possible here, or the host refused.
    fn create(&self, plan: &Plan) -> Result<Machine, Error>;
}

/// What a hypervisor can do, for decisions above it and for `servin doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Name of the backend: `kvm`, `hvf`, `whp`, `fake`.
    pub name: &'static str,
    /// A kind of host below the name that matters to the user, `kvm_pvm` for instance.
    pub variant: Option<&'static str>,
    /// The most vCPUs of one VM.
    pub max_cpus: u8,
    /// Guest kernel code is emulated instruction by instruction: slow, and some instructions are missing.
    pub emulates_kernel: bool,
    /// The hypervisor notices a triple fault (as [`Exit::Reset`]). Where it does not, one hangs the vCPU. Of no meaning
    /// on arm64.
    pub triple_fault: bool,
    /// [`Vm::offload`] answers doorbells without an exit to the monitor.
    pub doorbells: bool,
    /// Regions can be mapped read-only ([`Plan::read_only`]).
    pub read_only: bool,
    /// It executes guest code: a VM needs a kernel. The fake does not.
    pub executes_code: bool,
    /// It starts vCPUs other than the first by itself, as the guest asks (INIT and SIPI, PSCI inside). Where it does not,
    /// they wait for [`Exit::CpuOn`].
    pub starts_cpus: bool,
    /// The granule of guest memory regions in bytes.
    pub page_size: u64,
}

/// Everything a machine consists of, as far as the hypervisor must know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Guest RAM.
    pub mem: Mem,
    /// Start addresses of the regions of `mem` that the guest may only read. A write to one reaches
    /// [`GuestIo::mmio_write`] and changes nothing.
    pub read_only: Vec<GuestAddress>,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Interrupt lines 0 .. `gsis` exist.
    pub gsis: u32,
    /// Track the pages that the guest writes from the start, for [`Vm::take_dirty`].
    pub track_dirty: bool,
}

impl Plan {
    /// A plan with all of `mem` writable and no dirty tracking.
    #[must_use]
    pub fn new(mem: Mem, cpus: u8, gsis: u32) -> Self {
        Self { mem, read_only: Vec::new(), cpus, gsis, track_dirty: false }
    }
}

/// A machine as [`Hypervisor::create`] makes it. Its parts may be dropped in any order.
pub struct Machine {
    /// The parts shared by all vCPUs.
    pub vm: Arc<dyn Vm>,
    /// One slot per vCPU, in order of their index.
    pub slots: Vec<Box<dyn VcpuSlot>>,
    /// The interrupt controller that it has.
    pub irqchip: IrqChip,
}

/// The interrupt controller of a machine, as its guest must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqChip {
    /// What a PC has: local APICs, an I/O APIC, two 8259s. A line is a pin of the I/O APIC.
    Pc,
    /// A GICv2 (arm64). A line is a shared peripheral interrupt.
    GicV2,
    /// A GICv3 (arm64). A line is a shared peripheral interrupt.
    GicV3,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("cpus", &self.slots.len()).finish_non_exhaustive()
    }
}

/// A guest register write that rings a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Guest physical address of the register.
    pub addr: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8.
    pub len: u8,
    /// The value that rings it.
    pub value: u64,
}

/// An accelerated doorbell. Dropping it takes the acceleration away: the write reaches the bus again.
pub struct Offload(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Offload {
    /// An offload that `undo` takes away.
    #[must_use]
    pub fn new(undo: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(undo)))
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

/// The parts of a machine that all vCPUs share. Called from any thread.
pub trait Vm: Send + Sync {
    /// An edge-triggered interrupt line.
    ///
    /// # Errors
    /// `gsi` is not within the plan, or the host refused.
    fn irq_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error>;

    /// Makes the hypervisor signal `event` when the guest rings `doorbell`, without an exit. `None` where that is
    /// not possible: the same write then reaches [`GuestIo::mmio_write`].
    fn offload(&self, doorbell: Doorbell, event: &Event) -> Option<Offload>;

    /// Tracks from now on the pages that the guest writes, if the plan did not want that from the start. Every vCPU must
    /// be between two `run`s. `None` where the backend can only do so from the start, or not at all.
    fn track_dirty(&self) -> Option<Result<(), Error>>;

    /// One bit per page (of 4 KiB) of `region` (index in the plan's memory) written by the guest since the last call.
    /// `None` when nothing is tracked, the backend cannot, or there is no such writable region.
    fn take_dirty(&self, region: usize) -> Option<Result<Vec<u64>, Error>>;

    /// Saves interrupt controller and clocks. Every vCPU must be between two `run`s, the last of which returned
    /// [`Exit::Kicked`] or never happened.
    ///
    /// # Errors
    /// The host refused.
    fn save(&self) -> Result<MachineState, Error>;

    /// Takes back what [`Self::save`] gave, before any vCPU is restored.
    ///
    /// # Errors
    /// The state is of another backend or does not fit, or the host refused.
    fn restore(&self, state: &MachineState) -> Result<(), Error>;
}

/// A vCPU that has not found its thread yet.
pub trait VcpuSlot: Send {
    /// Its index, from 0.
    fn index(&self) -> u8;

    /// A handle that kicks this vCPU, bound or not, and does nothing once it is gone.
    fn kick(&self) -> Arc<dyn Kick>;

    /// Makes the calling thread the vCPU's own.
    ///
    /// # Errors
    /// The host refused.
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, Error>;
}

/// Brings a vCPU out of [`Vcpu::run`] from any thread.
pub trait Kick: Send + Sync {
    /// Makes the current `run`, or else the next one, return [`Exit::Kicked`]. Several kicks before one return
    /// count as one. Never blocks on the guest.
    fn kick(&self);
}

/// A vCPU on its own thread.
pub trait Vcpu {
    /// Sets the registers for the first instruction of the guest.
    ///
    /// # Errors
    /// The entry is for another architecture, or the host refused.
    fn set_entry(&mut self, entry: &Entry) -> Result<(), Error>;

    /// Runs the guest until something other than an access stops it. Accesses are calls of `io`. A guest that waits for
    /// an interrupt waits in here, without spinning, until a line of its own, its timer or a kick ends the wait.
    ///
    /// After [`Exit::Kicked`] no access is half done, so that the vCPU may be saved.
    ///
    /// # Errors
    /// The host failed the vCPU. It cannot be run again.
    fn run(&mut self, io: &mut dyn GuestIo) -> Result<Exit, Error>;

    /// Where the vCPU is: the address of its next instruction, for messages.
    ///
    /// # Errors
    /// The host refused.
    fn program_counter(&mut self) -> Result<u64, Error>;

    /// Saves the registers.
    ///
    /// # Errors
    /// The host refused.
    fn save(&mut self) -> Result<VcpuState, Error>;

    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// The state is of another backend or does not fit, or the host refused.
    fn restore(&mut self, state: &VcpuState) -> Result<(), Error>;
}

/// Where the accesses of a guest go. Called on the vCPU's thread; `data` has 1, 2, 4 or 8 bytes, little-endian.
pub trait GuestIo {
    /// The guest reads memory that is not RAM.
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]);
    /// The guest writes memory that is not RAM, or read-only RAM.
    fn mmio_write(&mut self, addr: u64, data: &[u8]);
    /// The guest reads a port (x86).
    fn pio_in(&mut self, port: u16, data: &mut [u8]);
    /// The guest writes a port (x86).
    fn pio_out(&mut self, port: u16, data: &[u8]);
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Somebody kicked the vCPU.
    Kicked,
    /// The guest asks to start another vCPU (PSCI `CPU_ON`).
    CpuOn {
        /// The vCPU to start.
        cpu: u8,
        /// Where it begins.
        entry: u64,
        /// What it finds in its first register.
        context: u64,
    },
    /// This vCPU turned itself off until another one starts it (PSCI `CPU_OFF`).
    CpuOff,
    /// The guest powered off through the hypervisor.
    Off,
    /// The guest reset through the hypervisor, or by a triple fault.
    Reset,
    /// The guest did something that it cannot go on from.
    Fault(Fault),
}

/// Why a guest cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub why: String,
    /// Address of the instruction, where known.
    pub pc: Option<u64>,
    /// The bytes of the instruction, where known.
    pub bytes: Vec<u8>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        if let Some(pc) = self.pc {
            write!(f, " at {pc:#x}")?;
        }
        if !self.bytes.is_empty() {
            f.write_str(", instruction")?;
            for byte in &self.bytes {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Opens this host's hypervisor.
///
/// # Errors
/// [`Error::NoHypervisor`] says what was tried and what to do.
pub fn open() -> Result<Arc<dyn Hypervisor>, Error> {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Ok(Arc::new(kvm::Kvm::open()?));
    #[cfg(all(target_os = "windows", target_arch = "x86_64"))]
    return Ok(Arc::new(whp::Whp::open()?));
    #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
    return Ok(Arc::new(hvf::Hvf::open()?));
    #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
    return Ok(Arc::new(hvf::vmx::Vmx::open()?));
    #[cfg(not(any(
        all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")),
        all(target_os = "windows", target_arch = "x86_64"),
        all(target_os = "macos", any(target_arch = "x86_64", target_arch = "aarch64")),
    )))]
    Err(Error::NoHypervisor {
        why: format!("servin has no backend for {} on {} yet", std::env::consts::OS, std::env::consts::ARCH),
    })
}
