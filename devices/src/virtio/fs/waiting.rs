//! Requests that wait for a lock (SETLKW): their chains are kept until the lock is theirs, the guest gives up, or the
//! device is reset.
//!
//! A lock that this guest gives up is tried for at once. Nothing tells when another guest or a process of the host gives
//! one up, and a device has no thread that could wait in the host's kernel: while there are waiters, and only then, a
//! timer has them try again.

use std::collections::VecDeque;
use std::time::Duration;

use super::server::{self, Outcome, Server};
use super::vfs::Errno;
use super::wire::LockRequest;
use crate::event::{Ready, Timer, Token};
use crate::virtio::{Chain, Error, Io};

/// The host source of the timer.
pub(super) const TIMER: Token = 0;

/// The delay before a lock of others is tried again: first, and at most. It doubles in between.
const FIRST_DELAY: Duration = Duration::from_millis(1);
const MOST_DELAY: Duration = Duration::from_millis(64);

/// Requests that may wait: they keep their places in the ring, and the requests that end their wait need some too. A
/// request has three descriptors in a ring of 256, or one if the driver uses indirect ones.
pub(super) const MOST: usize = 48;
const MOST_INDIRECT: usize = 192;

/// Interrupts that are remembered when they come before their request.
const MOST_EARLY: usize = 64;

#[derive(Debug)]
struct Waiter {
    queue: u16,
    chain: Chain,
    unique: u64,
    lock: LockRequest,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: VecDeque<Waiter>,
    /// Requests that were interrupted before they were seen: the two queues are not in step.
    early: VecDeque<u64>,
    most: usize,
    /// Made when somebody waits for the first time.
    timer: Option<Timer>,
    delay: Duration,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { waiters: VecDeque::new(), early: VecDeque::new(), most: MOST, timer: None, delay: FIRST_DELAY }
    }

    /// The driver is ready.
    pub(super) fn start(&mut self, indirect: bool) {
        self.most = if indirect { MOST_INDIRECT } else { MOST };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Deals with what became of the request in `chain`.
    pub(super) fn settle(
        &mut self,
        queue: u16,
        chain: Chain,
        outcome: Outcome,
        io: &mut dyn Io,
    ) -> Result<(), Error> {
        match outcome {
            Outcome::Answered(written) => Ok(io.complete(queue, chain, written)?),
            Outcome::Interrupts(unique) => {
                io.complete(queue, chain, 0)?;
                self.interrupt(unique, io)
            }
            Outcome::Waits { unique, lock } => {
                let waiter = Waiter { queue, chain, unique, lock };
                if let Some(at) = self.early.iter().position(|&early| early == unique) {
                    self.early.remove(at);
                    return waiter.fail(Errno::INTR, io);
                }
                if self.waiters.len() >= self.most {
                    return waiter.fail(Errno::NOLCK, io);
                }
                self.waiters.push_back(waiter);
                self.delay = FIRST_DELAY;
                self.arm(io)
            }
        }
    }

    /// The guest does not want this request any more.
    fn interrupt(&mut self, unique: u64, io: &mut dyn Io) -> Result<(), Error> {
        match self.waiters.iter().position(|waiter| waiter.unique == unique) {
            Some(at) => self.waiters.remove(at).map_or(Ok(()), |waiter| waiter.fail(Errno::INTR, io)),
            None => {
                // It is answered already, or is still in its ring.
                if self.early.len() >= MOST_EARLY {
                    self.early.pop_front();
                }
                self.early.push_back(unique);
                Ok(())
            }
        }
    }

    /// Everybody tries again, in the order in which they came.
    pub(super) fn retry(&mut self, server: &mut Server, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        for _ in 0..self.waiters.len() {
            let Some(waiter) = self.waiters.pop_front() else { break };
            match server.retry(waiter.unique, &waiter.lock, waiter.chain.writer(&mem)) {
                Some(written) => io.complete(waiter.queue, waiter.chain, written)?,
                None => self.waiters.push_back(waiter),
            }
        }
        Ok(())
    }

    /// The timer rang.
    pub(super) fn ring(&mut self, server: &mut Server, io: &mut dyn Io) -> Result<(), Error> {
        if let Some(timer) = &self.timer {
            timer.take();
        }
        self.retry(server, io)?;
        self.delay = (self.delay * 2).min(MOST_DELAY);
        self.arm(io)
    }

    /// Sets the timer if somebody waits.
    fn arm(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        if self.waiters.is_empty() {
            return Ok(());
        }
        let fail = |source| Error::Host { doing: "setting the timer of a share's locks", source };
        if self.timer.is_none() {
            let timer = Timer::new().map_err(fail)?;
            io.watch(timer.source(), TIMER, Ready::READ).map_err(fail)?;
            self.timer = Some(timer);
        }
        self.timer.as_ref().map_or(Ok(()), |timer| timer.set(Some(self.delay))).map_err(fail)
    }

    /// The device was reset: nobody waits any more.
    pub(super) fn stop(&mut self, io: &mut dyn Io) {
        if let Some(timer) = self.timer.take() {
            let _ = io.unwatch(timer.source());
        }
        self.waiters.clear();
        self.early.clear();
    }
}

impl Waiter {
    fn fail(self, errno: Errno, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        let written =
            server::reply_header(&mut self.chain.writer(&mem), self.unique, errno.raw_os_error(), 0);
        Ok(io.complete(self.queue, self.chain, written)?)
    }
}
