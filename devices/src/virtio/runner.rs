//! A running device: the device, its queues, its interrupt and what it watches, driven one turn at a time.
//!
//! The worker thread calls [`Runner::turn`] in a loop; a test calls it inline. After every call into the device
//! the runner re-arms the rings the device took chains from, and raises at most one interrupt.

use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::interrupt::{CONFIG_CHANGE, Interrupt, USED_BUFFER};
use super::queue::Queue;
use super::{Chain, ChainError, Error, Io, VirtioDevice};
use crate::event::{Event, Poller, Ready, Source, Token};
use crate::mem::{GuestRam, Mem};

/// Tokens from here up belong to the runner: doorbells count down from the mailbox. Devices use smaller ones.
const RESERVED: Token = u32::MAX - 0x1_0000;
const MAILBOX: Token = u32::MAX;

/// Writes of the configuration space that may wait for a busy device.
const MAX_CONFIG_WRITES: usize = 64;

/// How often a device is called again for one ring before other sources get their turn.
const MAX_ROUNDS: u32 = 16;

/// How many chains a device may take from one ring in one call, so that a driver that never stops adding chains
/// cannot keep the device from being stopped.
const MAX_CHAINS: u32 = 256;

/// `VRING_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Requests from the transport's side of the device to the runner's.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pub(super) stop: bool,
    pub(super) config_writes: Vec<(u64, Vec<u8>)>,
}

/// The mailbox and the event that announces it.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) mailbox: Arc<std::sync::Mutex<Mailbox>>,
    pub(super) event: Event,
}

impl Post {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { mailbox: Arc::default(), event: Event::new()? })
    }

    /// Passes a write of the configuration space on; a driver that floods the device loses writes.
    pub(super) fn send_config_write(&self, offset: u64, data: &[u8]) {
        self.send(|mailbox| {
            if mailbox.config_writes.len() < MAX_CONFIG_WRITES {
                mailbox.config_writes.push((offset, data.to_vec()));
            }
        });
    }

    pub(super) fn send(&self, change: impl FnOnce(&mut Mailbox)) {
        change(&mut self.mailbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        self.event.signal();
    }

    fn take(&self) -> Mailbox {
        self.event.take();
        std::mem::take(&mut *self.mailbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// What a turn ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing was ready within the timeout.
    Idle,
    /// Something was handled.
    Busy,
    /// The transport asked the runner to stop.
    Stopped,
}

struct Ring {
    queue: Queue,
    doorbell: Event,
    /// Chains taken in the current call.
    popped: u32,
    /// Chains completed since the last interrupt decision.
    completed: bool,
    /// The index of the used ring at the last interrupt decision.
    decided: u16,
    /// The device wants to hear of new chains.
    audible: bool,
}

/// The part of the runner that it lends to the device.
struct Lent {
    mem: Mem,
    rings: Vec<Option<Ring>>,
    poller: Poller,
    config_changed: bool,
}

/// See the module's description.
pub(super) struct Runner {
    device: Box<dyn VirtioDevice>,
    lent: Lent,
    interrupt: Arc<Interrupt>,
    post: Post,
    ready: Vec<(Token, Ready)>,
    broken: bool,
}

impl Runner {
    /// Arms the doorbells. `queues` has one entry per device queue; `None` where the driver set none up.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        mem: Mem,
        queues: Vec<Option<Queue>>,
        doorbells: &[Event],
        interrupt: Arc<Interrupt>,
        post: Post,
    ) -> Result<Self, (Box<dyn VirtioDevice>, Error)> {
        let armed = (|| {
            let mut poller = Poller::new()?;
            let mut rings = Vec::new();
            for ((index, queue), doorbell) in (0..).zip(queues).zip(doorbells) {
                rings.push(queue.map(|queue| Ring {
                    decided: queue.next_used(),
                    queue,
                    doorbell: doorbell.clone(),
                    popped: 0,
                    completed: false,
                    audible: true,
                }));
                if rings.last().is_some_and(Option::is_some) {
                    poller.watch(doorbell.source(), RESERVED + index, Ready::READ)?;
                    // Buffers may be there before the first doorbell rings, or from before a snapshot.
                    doorbell.signal();
                }
            }
            // Behind the doorbells: a poller that looks at its sources in order hears those before a request to stop.
            poller.watch(post.event.source(), MAILBOX, Ready::READ)?;
            Ok(Lent { mem, rings, poller, config_changed: false })
        })();
        match armed {
            Ok(lent) => Ok(Self { device, lent, interrupt, post, ready: Vec::new(), broken: false }),
            Err(source) => Err((device, Error::Host { doing: "watching the doorbells of a device", source })),
        }
    }

    /// Starts the device.
    pub(super) fn start(&mut self, features: u64) -> Result<(), Error> {
        let result = self.device.start(features, &mut self.lent);
        self.settle(result)
    }

    /// Stops the device and gives it back, with the final state of the queues.
    pub(super) fn stop(mut self) -> Box<dyn VirtioDevice> {
        self.device.stop(&mut self.lent);
        self.device
    }

    pub(super) fn queue(&self, index: usize) -> Option<&Queue> {
        self.lent.rings.get(index)?.as_ref().map(|ring| &ring.queue)
    }

    pub(super) fn post(&self) -> Post {
        self.post.clone()
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Waits for what is ready, at most `timeout` (`None`: for ever), and handles it. An error is a host fault.
    pub(super) fn turn(&mut self, timeout: Option<Duration>) -> Result<Turn, Error> {
        let mut ready = std::mem::take(&mut self.ready);
        self.lent
            .poller
            .wait(timeout, &mut ready)
            .map_err(|source| Error::Host { doing: "waiting for work of a device", source })?;
        let mut turn = if ready.is_empty() { Turn::Idle } else { Turn::Busy };
        for &(token, ready) in &ready {
            if token == MAILBOX {
                let mail = self.post.take();
                for (offset, data) in mail.config_writes {
                    let result = self.device.on_config_write(offset, &data, &mut self.lent);
                    self.settle(result)?;
                }
                if mail.stop {
                    turn = Turn::Stopped;
                    break;
                }
            } else if self.broken {
                self.silence(token);
            } else if let Some(queue) = token.checked_sub(RESERVED) {
                self.kick(queue)?;
            } else {
                let result = self.device.on_host(token, ready, &mut self.lent);
                self.settle(result)?;
            }
        }
        self.ready = ready;
        Ok(turn)
    }

    fn kick(&mut self, queue: u32) -> Result<(), Error> {
        let index = queue as usize;
        let Some(Some(ring)) = self.lent.rings.get_mut(index) else { return Ok(()) };
        ring.doorbell.take();
        let result = ring.queue.disable_notification(&self.lent.mem).map_err(Error::from);
        let result = result.and_then(|()| match u16::try_from(queue) {
            Ok(queue) => self.device.on_kick(queue, &mut self.lent),
            Err(_) => Ok(()),
        });
        // The doorbell was switched off: it must be armed again even if the device took nothing.
        if let Some(Some(ring)) = self.lent.rings.get_mut(index) {
            ring.popped = ring.popped.max(1);
        }
        self.settle(result)
    }

    /// After a call into the device: raise interrupts, arm the rings it took from, and call it again where more
    /// came meanwhile. Guest faults end here; what remains is a host fault.
    fn settle(&mut self, mut result: Result<(), Error>) -> Result<(), Error> {
        for round in 0.. {
            if result.is_ok() {
                result = self.lent.interrupts(&self.interrupt);
            }
            let mut again = None;
            for index in 0..self.lent.rings.len() {
                if result.is_ok() {
                    match self.lent.rearm(index) {
                        Ok(true) if again.is_none() => again = u16::try_from(index).ok(),
                        // Its driver rang before it was armed, and does not ring again.
                        Ok(true) => self.lent.ring_doorbell(index as u16),
                        Ok(false) => {}
                        Err(error) => result = Err(error.into()),
                    }
                }
            }
            match (&result, again) {
                (Ok(()), Some(queue)) if round < MAX_ROUNDS => {
                    result = self.device.on_kick(queue, &mut self.lent);
                }
                (Ok(()), Some(queue)) => {
                    self.lent.ring_doorbell(queue);
                    return Ok(());
                }
                _ => break,
            }
        }
        match result {
            Ok(()) => Ok(()),
            Err(error @ Error::Host { .. }) => Err(error),
            Err(guest) => {
                log::warn!("virtio device {}: {guest}; it waits for a reset", self.device.id());
                self.broken = true;
                self.interrupt
                    .need_reset()
                    .map_err(|source| Error::Host { doing: "raising an interrupt", source })
            }
        }
    }

    /// A broken device does nothing until it is reset, but must not spin on a ringing doorbell.
    fn silence(&mut self, token: Token) {
        let ring = token.checked_sub(RESERVED).and_then(|index| self.lent.rings.get_mut(index as usize));
        if let Some(Some(ring)) = ring {
            ring.doorbell.take();
        } else {
            // A host source that nobody serves any more: let the device give all of them up, once.
            self.device.stop(&mut self.lent);
        }
    }
}

impl Lent {
    /// Raises the interrupts that are due.
    fn interrupts(&mut self, interrupt: &Interrupt) -> Result<(), Error> {
        let mut bits = 0;
        for ring in self.rings.iter_mut().flatten() {
            if std::mem::take(&mut ring.completed)
                && needs_interrupt(ring, &self.mem).map_err(|_| ChainError::Ring)?
            {
                bits |= USED_BUFFER;
            }
        }
        if std::mem::take(&mut self.config_changed) {
            bits |= CONFIG_CHANGE;
        }
        if bits == 0 {
            return Ok(());
        }
        interrupt.raise(bits).map_err(|source| Error::Host { doing: "raising an interrupt", source })
    }

    /// Arms the doorbell of a ring that chains were taken from; true when more came meanwhile.
    fn rearm(&mut self, index: usize) -> Result<bool, ChainError> {
        let Some(Some(ring)) = self.rings.get_mut(index) else { return Ok(false) };
        if std::mem::take(&mut ring.popped) == 0 {
            return Ok(false);
        }
        if !ring.audible {
            return ring.queue.disable_notification(&self.mem).map(|()| false);
        }
        ring.queue.enable_notification(&self.mem)
    }

    fn ring_doorbell(&self, queue: u16) {
        if let Some(Some(ring)) = self.rings.get(usize::from(queue)) {
            ring.doorbell.signal();
        }
    }

    fn ring(&mut self, queue: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(queue))?.as_mut()
    }
}

/// Whether the driver wants to hear of the chains completed since the last decision (virtio 1.2, 2.7.7.2 and 2.7.10).
/// The queue crate counts them one by one and knows nothing of [`Io::complete_all`], nor of the flag.
fn needs_interrupt(ring: &mut Ring, mem: &GuestRam) -> Result<bool, vm_memory::GuestMemoryError> {
    // The used ring is written before the driver's wish is read.
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    let avail = ring.queue.avail_ring();
    let now = ring.queue.next_used();
    let old = std::mem::replace(&mut ring.decided, now);
    if ring.queue.event_idx() {
        let event = mem.read_obj(GuestAddress(avail + 4 + 2 * u64::from(ring.queue.size())))?;
        return Ok(now.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < now.wrapping_sub(old));
    }
    let flags: u16 = mem.read_obj(GuestAddress(avail))?;
    Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
}

impl Io for Lent {
    fn pop(&mut self, queue: u16) -> Result<Option<Chain>, ChainError> {
        let mem = Arc::clone(&self.mem);
        let Some(ring) = self.ring(queue).filter(|ring| ring.popped < MAX_CHAINS) else { return Ok(None) };
        let Some(descriptors) = ring.queue.pop(&mem)? else { return Ok(None) };
        ring.popped += 1;
        Chain::new(&mem, descriptors).map(Some)
    }

    fn unpop(&mut self, queue: u16, chain: Chain) {
        drop(chain);
        if let Some(ring) = self.ring(queue) {
            ring.queue.unpop();
            ring.popped = ring.popped.saturating_sub(1);
        }
    }

    fn complete(&mut self, queue: u16, chain: Chain, written: u32) -> Result<(), ChainError> {
        let mem = Arc::clone(&self.mem);
        let Some(ring) = self.ring(queue) else { return Ok(()) };
        ring.queue.add_used(&mem, chain.head(), written)?;
        ring.completed = true;
        Ok(())
    }

    fn complete_all(&mut self, queue: u16, mut chains: Vec<(Chain, u32)>) -> Result<(), ChainError> {
        let Some((last, written)) = chains.pop() else { return Ok(()) };
        let mem = Arc::clone(&self.mem);
        let Some(ring) = self.ring(queue) else { return Ok(()) };
        // The elements of all but the last are written behind the index, which the last one moves.
        let (size, mut at) = (ring.queue.size().max(1), ring.queue.next_used());
        for (chain, written) in chains {
            let slot = ring.queue.used_ring() + 4 + 8 * u64::from(at % size);
            let element = [u32::from(chain.head()).to_le(), written.to_le()];
            mem.write_obj(element, GuestAddress(slot)).map_err(|_| ChainError::Ring)?;
            at = at.wrapping_add(1);
        }
        ring.queue.set_next_used(at);
        self.complete(queue, last, written)
    }

    fn need_doorbell(&mut self, queue: u16, needed: bool) {
        if let Some(ring) = self.ring(queue)
            && ring.audible != needed
        {
            ring.audible = needed;
            // Armed, or not, at the end of the call.
            ring.popped = ring.popped.max(1);
        }
    }

    fn mem(&self) -> Arc<GuestRam> {
        Arc::clone(&self.mem)
    }

    fn config_changed(&mut self) {
        self.config_changed = true;
    }

    fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()> {
        if token >= RESERVED {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        self.poller.watch(source, token, interest)
    }

    fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()> {
        self.poller.rewatch(source, token, interest)
    }

    fn unwatch(&mut self, source: Source<'_>) -> std::io::Result<()> {
        self.poller.unwatch(source)
    }
}
