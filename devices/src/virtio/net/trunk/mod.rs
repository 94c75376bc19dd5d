//! Several networks on the wire of one card.
//!
//! ```text
//! guest ── eth0 ──┬── number 0     a back end for each, told apart by the guest's addresses on the wire
//!          eth1 ──┼── number 1
//!          ...  ──┴── ...
//! ```
//!
//! A frame of the guest goes to the network of the address that it is from, and one from any other to number 0. What a
//! network sends to a group is given to its own interface alone, so that no other one of the guest hears it.
//!
//! Networks come and go while the driver runs: a [`Plug`] says it from any thread, and the worker does it between two
//! calls. While no driver runs, the networks lie where both reach them.

mod plug;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use super::super::Error;
use super::{Backend, Frame, Mac, Offloads, Port};
use crate::event::{Ready, Token};

use plug::{Order, Shared, State};
pub use plug::{Plug, Refused};

/// Networks of one card, numbered from 0.
pub const MOST: usize = 16;
/// A network's number stands in the upper bits of its tokens; its own have these.
const OWN_BITS: u32 = 28;
/// What a [`Plug`] rings. The last of number 0, which no back end has.
const BELL: Token = (1 << OWN_BITS) - 1;

/// A network, and the guest's address on it.
pub struct Wire {
    /// The guest's, by which its frames are known.
    pub mac: Mac,
    /// What is on the other end.
    pub backend: Box<dyn Backend>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Trunk {
    shared: Arc<Shared>,
    /// None while no driver runs.
    wires: Wires,
}

impl Trunk {
    /// A wire with this network as number 0, and the plug by which that is changed. Offloads are those of the first, and of
    /// a [`super::nat::Nat`] where there is none; the networks that come later must have the same.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new(first: Option<Wire>) -> io::Result<(Self, Plug)> {
        let offloads = first.as_ref().map_or(super::nat::OFFLOADS, |wire| wire.backend.offloads());
        let mut wires = Wires { list: vec![first], has_first_only: false };
        wires.list.resize_with(MOST, || None);
        wires.count();
        let shared = Arc::new(Shared::new(wires, offloads)?);
        Ok((Self { shared: Arc::clone(&shared), wires: Wires::default() }, Plug::new(shared)))
    }

    /// Does what was asked for by the plug.
    fn obey(&mut self, port: &mut Port<'_>) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let State::Running(orders) = &mut *state else { return };
        for order in orders.drain(..) {
            order.carry_out(&mut self.wires, Some(port));
        }
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        // Who waits for an order learns it.
        *self.shared.lock() = State::Gone;
    }
}

/// The networks, by their numbers.
#[derive(Debug, Default)]
struct Wires {
    list: Vec<Option<Wire>>,
    /// There is number 0 and no other.
    has_first_only: bool,
}

impl Wires {
    fn count(&mut self) {
        self.has_first_only =
            self.list.first().is_some_and(Option::is_some) && self.list.iter().skip(1).all(Option::is_none);
    }

    /// Calls a network. Alone, number 0 has the card's port as it is.
    fn call<T>(
        &mut self,
        number: usize,
        port: &mut Port<'_>,
        call: impl FnOnce(&mut dyn Backend, &mut Port<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let is_alone = self.has_first_only;
        let Some(wire) = self.list.get_mut(number).and_then(Option::as_mut) else { return Ok(None) };
        if is_alone {
            return call(&mut *wire.backend, port).map(Some);
        }
        port.aim(Token::try_from(number).unwrap_or(0) << OWN_BITS, Some(wire.mac));
        let done = call(&mut *wire.backend, port);
        port.aim(0, None);
        done.map(Some)
    }

    fn call_all(
        &mut self,
        port: &mut Port<'_>,
        mut call: impl FnMut(&mut dyn Backend, &mut Port<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let count = if self.has_first_only { 1 } else { self.list.len() };
        for number in 0..count {
            self.call(number, port, &mut call)?;
        }
        Ok(())
    }

    /// Puts a network in its place, and starts it if the driver runs.
    fn put(&mut self, number: usize, wire: Wire, mut port: Option<&mut Port<'_>>) -> Result<(), Refused> {
        let mac = wire.mac;
        let has_mac = |(at, other): (usize, &Option<Wire>)| {
            at != number && other.as_ref().is_some_and(|other| other.mac == mac)
        };
        if self.list.iter().enumerate().any(has_mac) {
            return Err(Refused::Mac(mac));
        }
        self.take(number, port.as_deref_mut());
        *self.list.get_mut(number).ok_or(Refused::Number(number))? = Some(wire);
        self.count();
        let Some(port) = port else { return Ok(()) };
        match self.call(number, port, |backend, port| backend.start(port)) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.take(number, Some(port));
                Err(Refused::Start(error))
            }
        }
    }

    /// Takes a network off; its connections and sockets are gone then.
    fn take(&mut self, number: usize, port: Option<&mut Port<'_>>) {
        if let Some(port) = port {
            // Nothing of it fails.
            let _ = self.call(number, port, |backend, port| {
                backend.stop(port);
                Ok(())
            });
        }
        if let Some(place) = self.list.get_mut(number) {
            *place = None;
        }
        self.count();
    }
}

impl Backend for Trunk {
    fn offloads(&self) -> Offloads {
        self.shared.offloads
    }

    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        let fail = |source| Error::Host { doing: "watching for changes of the card's networks", source };
        port.watch(self.shared.bell.source(), BELL, Ready::READ).map_err(fail)?;
        if let State::Idle(wires) = std::mem::replace(&mut *self.shared.lock(), State::Running(Vec::new())) {
            self.wires = wires;
        }
        self.wires.call_all(port, |backend, port| backend.start(port))
    }

    fn is_ready(&self) -> bool {
        // Whose frame is next is not known before it is taken.
        self.wires.list.iter().flatten().all(|wire| wire.backend.is_ready())
    }

    fn transmit(&mut self, frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let number = if self.wires.has_first_only { 0 } else { self.wires.sender(&frame) };
        self.wires.call(number, port, |backend, port| backend.transmit(frame, port)).map(drop)
    }

    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.wires.call_all(port, |backend, port| backend.settle(port))
    }

    fn on_host(&mut self, token: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        if token == BELL {
            self.shared.bell.take();
            self.obey(port);
            return Ok(());
        }
        let number = usize::try_from(token >> OWN_BITS).unwrap_or(MOST);
        let own = token & ((1 << OWN_BITS) - 1);
        self.wires.call(number, port, |backend, port| backend.on_host(own, ready, port)).map(drop)
    }

    fn stop(&mut self, port: &mut Port<'_>) {
        // Nothing of it fails.
        let _ = self.wires.call_all(port, |backend, port| {
            backend.stop(port);
            Ok(())
        });
        port.unwatch(self.shared.bell.source());
        let mut wires = std::mem::take(&mut self.wires);
        let mut state = self.shared.lock();
        if let State::Running(orders) = &mut *state {
            orders.drain(..).for_each(|order: Order| order.carry_out(&mut wires, None));
        }
        *state = State::Idle(wires);
    }
}

impl Wires {
    /// The number of the network that a frame of the guest is for.
    fn sender(&self, frame: &Frame<'_>) -> usize {
        let mut head = [0; 12];
        // Guest memory that was checked gives all that is there.
        let _ = io::Read::read(&mut frame.data.clone(), &mut head);
        let is_from = |wire: &Option<Wire>| wire.as_ref().is_some_and(|wire| head.ends_with(&wire.mac.0));
        self.list.iter().position(is_from).unwrap_or(0)
    }
}
