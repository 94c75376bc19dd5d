//! Virtio 1.2 devices over virtio-mmio: the contract between a device and what runs it.
//!
//! A [`VirtioDevice`] is a state machine without threads. The worker (one thread per device) or a test calls it
//! with an [`Io`], which lends guest memory and queues, completes chains, decides about interrupts and watches
//! host sources. The transport (registers, rings) is written once, for all devices.

pub mod blk;
pub mod chain;
pub mod console;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
mod queue;
pub mod rng;
mod runner;
pub mod vsock;
mod worker;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::{Ready, Source, Token};
use crate::mem::GuestRam;
use crate::state::StateError;

pub use chain::{Chain, ChainError, Reader, Writer};
pub use mmio::{Activation, MmioTransport};
pub use worker::FaultSink;

/// Device types (virtio 1.2, section 5).
pub mod id {
    /// Network card (5.1).
    pub const NET: u32 = 1;
    /// Block device (5.2).
    pub const BLOCK: u32 = 2;
    /// Console (5.3).
    pub const CONSOLE: u32 = 3;
    /// Entropy source (5.4).
    pub const RNG: u32 = 4;
    /// Memory balloon (5.5).
    pub const BALLOON: u32 = 5;
    /// Socket (5.10).
    pub const VSOCK: u32 = 19;
    /// File system (5.11).
    pub const FS: u32 = 26;
    /// Persistent memory (5.19).
    pub const PMEM: u32 = 27;
}

/// What stops a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver broke the rules. The device asks for a reset (DEVICE_NEEDS_RESET); the VM goes on.
    #[error("guest driver: {0}")]
    Guest(String),
    /// The host failed the device. The VM stops with this error.
    #[error("{doing}")]
    Host {
        /// What the device was doing.
        doing: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A chain in the ring is malformed: a guest fault.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A device type as the transport and the worker see it.
///
/// Life: constructed, then any number of times `start` (the driver wrote DRIVER_OK) ... `stop` (reset or the end).
/// Between them `on_kick` and `on_host` are called, one at a time, never concurrently.
pub trait VirtioDevice: Send {
    /// The device type, see [`id`].
    fn id(&self) -> u32;

    /// The device's own feature bits (0 to 23 and 50 up). The transport adds its own.
    fn features(&self) -> u64;

    /// The greatest size of each queue; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space. The device keeps a clone and may change it while running.
    fn config(&self) -> ConfigSpace;

    /// The driver is ready: `features` are the negotiated bits.
    ///
    /// # Errors
    /// See [`Error`].
    fn start(&mut self, features: u64, io: &mut dyn Io) -> Result<(), Error>;

    /// The driver rang the doorbell of `queue`. Chains may be left in the ring for later.
    ///
    /// # Errors
    /// See [`Error`].
    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error>;

    /// A source watched under `token` is ready.
    ///
    /// # Errors
    /// See [`Error`].
    fn on_host(&mut self, token: Token, ready: Ready, io: &mut dyn Io) -> Result<(), Error>;

    /// The driver wrote `data` at `offset` of the configuration space. Called between `start` and `stop` only.
    ///
    /// # Errors
    /// See [`Error`].
    fn on_config_write(&mut self, offset: u64, data: &[u8], io: &mut dyn Io) -> Result<(), Error>;

    /// The driver reset the device or the VM ends: forget the queues, unwatch every source.
    fn stop(&mut self, io: &mut dyn Io);

    /// The device's own state, without the queues and the transport.
    ///
    /// # Errors
    /// See [`StateError`].
    fn save(&self) -> Result<Vec<u8>, StateError>;

    /// Takes back what [`Self::save`] gave, before `start` is called with the saved features.
    ///
    /// # Errors
    /// See [`StateError`].
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError>;
}

/// What a running device may use. Implemented by the worker's device context, which owns queues and interrupt.
pub trait Io {
    /// Takes the next chain from the ring of `queue`; `None` when it is empty.
    ///
    /// # Errors
    /// The chain is malformed (out of memory bounds, loops, readable after writable): a guest fault.
    fn pop(&mut self, queue: u16) -> Result<Option<Chain>, ChainError>;

    /// Puts the chain that was popped last from `queue` back, to be popped again. Several are put back in the reverse
    /// order of their popping.
    fn unpop(&mut self, queue: u16, chain: Chain);

    /// Gives a chain back to the driver with `written` bytes written into it. The interrupt is raised at the
    /// end of the call, if the driver wants one.
    ///
    /// # Errors
    /// The ring is not in memory any more: a guest fault.
    fn complete(&mut self, queue: u16, chain: Chain, written: u32) -> Result<(), ChainError>;

    /// Gives several chains back at once: the driver sees all of them or none (a frame in merged buffers, 5.1.6.4).
    ///
    /// # Errors
    /// As [`Self::complete`].
    fn complete_all(&mut self, queue: u16, chains: Vec<(Chain, u32)>) -> Result<(), ChainError>;

    /// Whether the doorbell of `queue` is needed: a device that takes chains only when it has something for them
    /// spares the guest the doorbell while there are some. It is needed at first.
    fn need_doorbell(&mut self, queue: u16, needed: bool);

    /// Guest memory, to look at chains with [`Chain::reader`] and [`Chain::writer`].
    fn mem(&self) -> Arc<GuestRam>;

    /// Raises a configuration change interrupt at the end of the call.
    fn config_changed(&mut self);

    /// Starts watching a host source under `token`. Unwatch it before it is closed.
    ///
    /// # Errors
    /// The source cannot be watched.
    fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()>;

    /// Changes what is waited for on a watched source.
    ///
    /// # Errors
    /// The source is not watched.
    fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()>;

    /// Stops watching a source.
    ///
    /// # Errors
    /// The source is not watched.
    fn unwatch(&mut self, source: Source<'_>) -> std::io::Result<()>;
}

/// A device's configuration space (virtio 1.2, section 2.5): bytes shared by the device, which changes them, and
/// the transport, which answers reads.
#[derive(Debug, Clone, Default)]
pub struct ConfigSpace(Arc<ConfigInner>);

#[derive(Debug, Default)]
struct ConfigInner {
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU32,
}

impl ConfigSpace {
    /// A configuration space with these contents.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(ConfigInner { bytes: Mutex::new(bytes), generation: AtomicU32::new(0) }))
    }

    /// Copies bytes from `offset`; those past the end are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = from.get(index).copied().unwrap_or(0);
        }
    }

    /// Changes the contents and bumps the generation. Call [`Io::config_changed`] to tell the driver.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// Counts changes (`ConfigGeneration`).
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }
}
