//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): registers and the status machine.
//!
//! vCPU threads reach it through the bus. The configuration of the queues is frozen when the driver sets
//! DRIVER_OK: from then on the runner owns it, and the registers only answer. Writing 0 to `Status` resets at
//! any time.
//!
//! ```text
//!            Status |= DRIVER_OK              pause
//!   Idle ───────────────────────────► Running ─────► Parked
//!    ▲                                  │  ◄─────────  │
//!    └────────── Status = 0 ────────────┘    resume    │
//!    └────────── Status = 0 ───────────────────────────┘
//! ```

mod registers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::{virtio_config as config, virtio_mmio as reg, virtio_ring as ring};

use super::interrupt::Interrupt;
use super::queue::{Queue, Setup, SetupError};
use super::runner::{Post, Runner, Turn};
use super::worker::{FaultSink, Worker};
use super::{ConfigSpace, Error, VirtioDevice};
use crate::event::Event;
use crate::irq::IrqLine;
use crate::mem::Mem;
use crate::state::{self, State, StateError};

/// Bytes of one transport on the bus.
pub const MMIO_LEN: u64 = 0x1000;

/// Where a doorbell lies: writing the queue's index here rings it (`QueueNotify`).
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

const DRIVER_OK: u32 = config::VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = config::VIRTIO_CONFIG_S_FEATURES_OK;

/// The transport's own features: the modern interface, EVENT_IDX and indirect descriptors.
const TRANSPORT_FEATURES: u64 = 1 << config::VIRTIO_F_VERSION_1
    | 1 << ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Who runs a device once its driver is ready.
#[derive(Clone)]
pub enum Activation {
    /// A thread of its own; host faults go to the sink.
    Thread(FaultSink),
    /// Whoever calls [`MmioTransport::turn`]: tests, fuzz targets, or an embedder with its own loop.
    Inline,
}

impl std::fmt::Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "Thread",
            Self::Inline => "Inline",
        })
    }
}

enum Slot {
    Idle(Box<dyn VirtioDevice>),
    Running(Worker),
    Parked(Box<Runner>),
    /// The device panicked or could not be taken back; it answers like a broken one for ever.
    Lost,
}

/// The registers of one queue, as the driver writes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRegs {
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
}

/// One virtio-mmio device on the bus.
pub struct MmioTransport {
    slot: Slot,
    device_id: u32,
    device_features: u64,
    max_sizes: Vec<u16>,
    config: ConfigSpace,
    doorbells: Vec<Event>,
    interrupt: Arc<Interrupt>,
    mem: Mem,
    activation: Activation,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegs>,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device_id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A transport for `device` over guest memory `mem`, which raises `line`.
    ///
    /// # Errors
    /// No descriptor is left for the doorbells.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        mem: Mem,
        line: Arc<dyn IrqLine>,
        activation: Activation,
    ) -> Result<Self, Error> {
        let max_sizes = device.queue_sizes().to_vec();
        let doorbells = max_sizes
            .iter()
            .map(|_| Event::new())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| Error::Host { doing: "making the doorbells of a device", source })?;
        Ok(Self {
            device_id: device.id(),
            device_features: device.features() | TRANSPORT_FEATURES,
            config: device.config(),
            queues: vec![QueueRegs::default(); max_sizes.len()],
            max_sizes,
            doorbells,
            interrupt: Arc::new(Interrupt::new(line)),
            mem,
            activation,
            slot: Slot::Idle(device),
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        })
    }

    /// One doorbell per queue. Writing queue index `n` to [`QUEUE_NOTIFY`] rings doorbell `n`; a hypervisor may
    /// ring it without leaving the guest.
    #[must_use]
    pub fn doorbells(&self) -> &[Event] {
        &self.doorbells
    }

    /// The device type, see [`super::id`].
    #[must_use]
    pub fn device_id(&self) -> u32 {
        self.device_id
    }

    /// Runs a device that was activated [`Activation::Inline`] once: waits at most `timeout` for something to do
    /// and does it. False when nothing was ready or the device does not run.
    ///
    /// # Errors
    /// A host fault of the device.
    pub fn turn(&mut self, timeout: Duration) -> Result<bool, Error> {
        match &mut self.slot {
            Slot::Parked(runner) => Ok(runner.turn(Some(timeout))? == Turn::Busy),
            _ => Ok(false),
        }
    }

    /// Takes the device off its thread, between two calls. A paused device keeps its queues and connections.
    pub fn pause(&mut self) {
        self.slot = match std::mem::replace(&mut self.slot, Slot::Lost) {
            Slot::Running(worker) => worker.join().map_or(Slot::Lost, Slot::Parked),
            other => other,
        };
    }

    /// Puts a paused device back on a thread, and raises an interrupt again that the driver has not acknowledged: one
    /// from before the interrupt controller and the vCPUs had their saved state, as a device raises that says it was
    /// restored, is lost. To the driver a second one is spurious.
    ///
    /// # Errors
    /// No thread can be had, or the hypervisor refused.
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.interrupt.status() != 0 {
            self.interrupt
                .raise(0)
                .map_err(|source| Error::Host { doing: "raising an interrupt again", source })?;
        }
        let Activation::Thread(faults) = &self.activation else { return Ok(()) };
        self.slot = match std::mem::replace(&mut self.slot, Slot::Lost) {
            Slot::Parked(runner) => {
                let post = runner.post();
                let worker = Worker::spawn(runner, post, Arc::clone(faults))
                    .map_err(|source| Error::Host { doing: "starting the thread of a device", source })?;
                Slot::Running(worker)
            }
            other => other,
        };
        Ok(())
    }

    /// The state of a paused or idle device and its transport.
    ///
    /// # Errors
    /// The device runs, or its state cannot be encoded.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        let (device, runner) = match &self.slot {
            Slot::Idle(device) => (&**device, None),
            Slot::Parked(runner) => (runner.device(), Some(runner)),
            Slot::Running(_) | Slot::Lost => {
                return Err(StateError::Mismatch { what: TransportState::NAME, why: "not paused".into() });
            }
        };
        let progress = (0..self.queues.len())
            .map(|index| {
                let queue = runner.and_then(|runner| runner.queue(index));
                queue.map_or((0, 0), |queue| (queue.next_avail(), queue.next_used()))
            })
            .collect();
        state::encode(&TransportState {
            device_id: self.device_id,
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            progress,
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.needs_reset(),
            device: device.save()?,
        })
    }

    /// Takes back a state that [`Self::save`] gave, into a transport that was just made. A device that ran is
    /// started and stays paused until [`Self::resume`].
    ///
    /// # Errors
    /// The state does not fit this device, or the device cannot take it back.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: TransportState = state::decode(bytes)?;
        let mismatch = |why: &str| StateError::Mismatch { what: TransportState::NAME, why: why.into() };
        let Slot::Idle(device) = &mut self.slot else { return Err(mismatch("the device runs already")) };
        if saved.device_id != self.device_id || saved.queues.len() != self.queues.len() {
            return Err(mismatch("another device type"));
        }
        if saved.progress.len() != saved.queues.len() || saved.driver_features & !self.device_features != 0 {
            return Err(mismatch("features or queues that this device does not have"));
        }
        device.restore(&saved.device)?;
        self.status = saved.status;
        self.device_features_select = saved.device_features_select;
        self.driver_features_select = saved.driver_features_select;
        self.driver_features = saved.driver_features;
        self.queue_select = saved.queue_select;
        self.queues = saved.queues;
        self.interrupt.restore(saved.interrupt_status, saved.needs_reset);
        if saved.status & DRIVER_OK != 0 && !saved.needs_reset {
            self.activate(&saved.progress).map_err(|error| mismatch(&error.to_string()))?;
        }
        Ok(())
    }

    /// Builds the runner from the frozen configuration and starts the device; it stays parked.
    fn activate(&mut self, progress: &[(u16, u16)]) -> Result<(), Error> {
        let queues = self.build_queues(progress)?;
        let Slot::Idle(device) = std::mem::replace(&mut self.slot, Slot::Lost) else {
            return Err(Error::Guest("activated twice".into()));
        };
        let post =
            Post::new().map_err(|source| Error::Host { doing: "making the mailbox of a device", source });
        let post = match post {
            Ok(post) => post,
            Err(error) => {
                self.slot = Slot::Idle(device);
                return Err(error);
            }
        };
        let interrupt = Arc::clone(&self.interrupt);
        match Runner::new(device, Arc::clone(&self.mem), queues, &self.doorbells, interrupt, post) {
            Ok(mut runner) => {
                let started = runner.start(self.driver_features);
                self.slot = Slot::Parked(Box::new(runner));
                started
            }
            Err((device, error)) => {
                self.slot = Slot::Idle(device);
                Err(error)
            }
        }
    }

    fn build_queues(&self, progress: &[(u16, u16)]) -> Result<Vec<Option<Queue>>, Error> {
        let event_idx = self.driver_features & (1 << ring::VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for ((regs, &max), index) in self.queues.iter().zip(&self.max_sizes).zip(0..) {
            if !regs.ready {
                queues.push(None);
                continue;
            }
            let &(next_avail, next_used) = progress.get(queues.len()).unwrap_or(&(0, 0));
            let setup = Setup {
                max,
                size: regs.size,
                desc: regs.desc,
                avail: regs.avail,
                used: regs.used,
                event_idx,
                next_avail,
                next_used,
            };
            let queue = Queue::new(&self.mem, &setup).map_err(|error| {
                Error::Guest(match error {
                    SetupError::Shape => format!("queue {index}: bad size or addresses"),
                    SetupError::OutOfRam => format!("queue {index} does not lie in guest RAM"),
                })
            })?;
            queues.push(Some(queue));
        }
        Ok(queues)
    }

    fn reset(&mut self) {
        self.pause();
        self.slot = match std::mem::replace(&mut self.slot, Slot::Lost) {
            Slot::Parked(runner) => Slot::Idle(runner.stop()),
            other => other,
        };
        for doorbell in &self.doorbells {
            doorbell.take();
        }
        self.interrupt.reset();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues.fill(QueueRegs::default());
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The registers and the progress of the queues, with the device's own state inside.
#[derive(Debug, Serialize, Deserialize)]
struct TransportState {
    device_id: u32,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegs>,
    /// `next_avail` and `next_used` of each queue.
    progress: Vec<(u16, u16)>,
    interrupt_status: u32,
    needs_reset: bool,
    device: Vec<u8>,
}

impl State for TransportState {
    const NAME: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;
}
