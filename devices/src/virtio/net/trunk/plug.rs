//! The way to change a card's networks from other threads.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::super::Error;
use super::super::{Mac, Offloads, Port};
use super::{MOST, Wire, Wires};
use crate::event::Event;

/// How long the card's worker is waited for: a call of it is short, but it may be on a busy host or stand still for a
/// while.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a network was not connected. Nothing has changed then, but that with [`Refused::Start`] the number has none.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such number.
    #[error("a card has {MOST} networks at most; there is no number {0}")]
    Number(usize),
    /// Frames of both could not be told apart.
    #[error("another network of this card has the address {0}: choose another one")]
    Mac(Mac),
    /// The driver was told of others when it started.
    #[error("the network takes other frames than the card has promised to its driver")]
    Offloads,
    /// It could not start.
    #[error("start the network")]
    Start(#[source] Error),
    /// The card did not come to it.
    #[error("the card does not answer: the machine may stand still, try again when it goes on")]
    Busy,
    /// The machine has ended.
    #[error("the card is gone: its machine has ended")]
    Gone,
}

/// Changes the networks of a card.
#[derive(Debug, Clone)]
pub struct Plug {
    shared: Arc<Shared>,
}

impl Plug {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Puts a network on the wire, in place of the one that was there. It is there when this returns.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn connect(&self, number: usize, wire: Wire) -> Result<(), Refused> {
        if number >= MOST {
            return Err(Refused::Number(number));
        }
        if wire.backend.offloads() != self.shared.offloads {
            return Err(Refused::Offloads);
        }
        self.connect_within(PATIENCE, number, wire)
    }

    pub(super) fn connect_within(
        &self,
        patience: Duration,
        number: usize,
        wire: Wire,
    ) -> Result<(), Refused> {
        let (id, answer) = self.order(number, Some(wire));
        match answer.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(Refused::Gone),
            Err(RecvTimeoutError::Timeout) => {
                if let State::Running(orders) = &mut *self.shared.lock() {
                    orders.retain(|order| order.id != id);
                }
                // Or it was done just now.
                answer.try_recv().unwrap_or(Err(Refused::Busy))
            }
        }
    }

    /// Takes a network off the wire. Its connections and sockets are gone when this returns; if the machine stands still,
    /// when it goes on or ends.
    pub fn disconnect(&self, number: usize) {
        // Nobody left to do it has none either.
        let _ = self.order(number, None).1.recv_timeout(PATIENCE);
    }

    /// Has it done, here if no driver runs. Gives the order's number, and what tells of it.
    pub(in super::super) fn order(
        &self,
        number: usize,
        wire: Option<Wire>,
    ) -> (u64, Receiver<Result<(), Refused>>) {
        let (answer, done) = channel();
        let id = self.shared.orders.fetch_add(1, Ordering::Relaxed);
        let order = Order { id, number, wire, answer };
        match &mut *self.shared.lock() {
            State::Idle(wires) => order.carry_out(wires, None),
            State::Running(orders) => {
                orders.push(order);
                self.shared.bell.signal();
            }
            State::Gone => {}
        }
        (id, done)
    }
}

/// What is asked of the worker: a network for this number, or none.
#[derive(Debug)]
pub(super) struct Order {
    id: u64,
    number: usize,
    wire: Option<Wire>,
    answer: Sender<Result<(), Refused>>,
}

impl Order {
    /// Does it; the driver runs if there is a port.
    pub(super) fn carry_out(self, wires: &mut Wires, port: Option<&mut Port<'_>>) {
        let done = match self.wire {
            Some(wire) => wires.put(self.number, wire, port),
            None => {
                wires.take(self.number, port);
                Ok(())
            }
        };
        // Who asked may have given up.
        let _ = self.answer.send(done);
    }
}

/// Who has the networks.
#[derive(Debug)]
pub(super) enum State {
    /// No driver runs.
    Idle(Wires),
    /// The worker, which is asked for this.
    Running(Vec<Order>),
    /// Nobody, any more.
    Gone,
}

/// What card and plugs share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Orders so far.
    orders: AtomicU64,
    pub(super) bell: Event,
    pub(super) offloads: Offloads,
}

impl Shared {
    pub(super) fn new(wires: Wires, offloads: Offloads) -> io::Result<Self> {
        let state = Mutex::new(State::Idle(wires));
        Ok(Self { state, orders: AtomicU64::new(0), bell: Event::new()?, offloads })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
