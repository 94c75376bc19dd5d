//! All connections of one device: finds the connection of a packet, gives each its turn to send, and keeps the
//! table within its limit.
//!
//! ```text
//!   tx ring ──receive──►┌─────┐◄──dials, greetings── host
//!                       │ mux │
//!   rx ring ◄──fill─────└─────┘◄──readiness───────── streams
//! ```
//!
//! Every refusal becomes a reset in `replies`, which go out before anything else. When the guest gives no buffers
//! for them, no more packets are taken from it ([`Mux::is_clogged`]), so that nothing grows without bounds.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::Limits;
use super::conn::{Conn, State, Step};
use super::host::{Caller, Dial, Shared};
use super::link::{Filled, Key, Link};
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::stream::{Greeting, Stream};
use crate::event::{Ready, Timer, Token};
use crate::virtio::{Io, Reader, Writer};

/// The token of slot 0; smaller ones are the device's own.
pub(super) const FIRST_TOKEN: Token = 16;

/// Resets that may wait for buffers before no more packets are taken from the guest.
const MAX_REPLIES: usize = 256;

/// The ports that the host's end of a dialed connection gets, in turn.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// An entry of the table.
#[derive(Debug)]
enum Slot {
    Greeting(Greeting),
    Link(Box<Link>),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Mux {
    cid: u64,
    limits: Limits,
    host: Arc<Shared>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    /// Links that may have something to send, in turn.
    ready: VecDeque<usize>,
    replies: VecDeque<Header>,
    next_port: u32,
    timer: Timer,
    /// When the timer rings.
    armed: Option<Instant>,
    faults: u64,
}

impl Mux {
    pub(super) fn new(cid: u64, limits: Limits, host: Arc<Shared>) -> io::Result<Self> {
        Ok(Self {
            cid,
            limits,
            host,
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            next_port: FIRST_PORT,
            timer: Timer::new()?,
            armed: None,
            faults: 0,
        })
    }

    /// To be watched; then call [`Self::expire`].
    pub(super) fn timer(&self) -> &Timer {
        &self.timer
    }

    /// So many resets wait for buffers that no more packets can be taken in.
    pub(super) fn is_clogged(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether it is worth to call [`Self::fill`].
    pub(super) fn wants_to_send(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Warns at the 1st, 2nd, 4th, 8th ... fault of the guest, so that it cannot flood the log.
    pub(super) fn fault(&mut self, what: &str) {
        self.faults += 1;
        if self.faults.is_power_of_two() {
            log::warn!("vsock: the guest sent {what} ({} such packets so far)", self.faults);
        }
    }

    /// Takes in a packet of the guest.
    pub(super) fn receive(&mut self, header: &Header, payload: &mut Reader<'_>, io: &mut dyn Io) {
        let is_reset = header.op == Op::Reset as u16;
        if header.src_cid != self.cid {
            // Whoever that is, there is no way to answer.
            return self.fault("a packet with another's context id");
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            if !is_reset {
                self.replies.push_back(header.reset());
            }
            return;
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let Some(&id) = self.keys.get(&key) else {
            match Op::from_number(header.op) {
                Some(Op::Reset) => {}
                Some(Op::Request) => self.accept(key, header, io),
                _ => self.replies.push_back(header.reset()),
            }
            return;
        };
        let Some(Some(Slot::Link(link))) = self.slots.get_mut(id) else { return };
        if header.op == Op::Data as u16 && header.len as usize > payload.len() {
            self.fault("a packet shorter than it says");
            return self.reset(id, io);
        }
        match link.receive(header, payload) {
            Step::Violation(what) => {
                self.fault(what);
                self.reset(id, io);
            }
            Step::Reset { clean } => {
                // What the guest sent before it closed cleanly still belongs to the host.
                let drained = link.is_drained();
                if let Caller::Waiter(waiter) = &link.caller {
                    waiter.answer(Err(io::ErrorKind::ConnectionRefused));
                }
                self.keys.remove(&key);
                if clean && !drained {
                    self.tidy(id, io);
                } else {
                    self.remove(id, io);
                }
            }
            Step::Nothing | Step::Accepted | Step::Data(_) | Step::Shut => self.tidy(id, io),
        }
    }

    /// The guest asks for a connection to a port of the host.
    fn accept(&mut self, key: Key, request: &Header, io: &mut dyn Io) {
        let offered = if self.is_full() {
            Err(io::Error::other("too many connections"))
        } else {
            self.host.offer(key.host_port)
        };
        match offered {
            Ok(stream) => {
                let conn = Conn::accepted(self.limits.buffer, request);
                self.insert(Link::new(key, conn, stream, Caller::Nobody), io);
            }
            Err(error) => {
                log::debug!("vsock: refused a connection to port {}: {error}", key.host_port);
                self.replies.push_back(request.reset());
            }
        }
    }

    /// Asks the guest for the connections that were dialed since.
    pub(super) fn dial(&mut self, io: &mut dyn Io) {
        for Dial { port, stream, caller } in self.host.take_dials() {
            self.request(port, stream, caller, io);
        }
    }

    fn request(&mut self, guest_port: u32, stream: Stream, caller: Caller, io: &mut dyn Io) {
        if self.is_full() {
            log::warn!("vsock: {} connections are open, no more can be made", self.limits.connections);
            if let Caller::Waiter(waiter) = &caller {
                waiter.answer(Err(io::ErrorKind::QuotaExceeded));
            }
            return;
        }
        // There are more ports than connections.
        let host_port = loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.keys.contains_key(&Key { host_port: port, guest_port }) {
                break port;
            }
        };
        let key = Key { host_port, guest_port };
        let mut link = Link::new(key, Conn::dialed(self.limits.buffer), stream, caller);
        link.deadline = Some(self.arm(Instant::now() + self.limits.connect_timeout));
        self.insert(link, io);
    }

    /// A host program connected to the path.
    pub(super) fn greet(&mut self, stream: Stream, io: &mut dyn Io) {
        if self.is_full() {
            // It sees an end of file.
            return;
        }
        let id = self.place();
        let greeting = Greeting::new(stream);
        if io.watch(greeting.source(), token(id), Ready::READ).is_ok() {
            self.set(id, Slot::Greeting(greeting));
        } else {
            self.free.push(id);
        }
    }

    /// A stream is ready.
    pub(super) fn on_host(&mut self, token: Token, ready: Ready, io: &mut dyn Io) {
        let Some(id) = token.checked_sub(FIRST_TOKEN).map(|id| id as usize) else { return };
        match self.slots.get_mut(id) {
            Some(Some(Slot::Link(link))) => {
                link.ready(ready);
                self.tidy(id, io);
            }
            Some(Some(Slot::Greeting(greeting))) => match greeting.port() {
                Ok(None) => {}
                Ok(Some(port)) => {
                    if let Some(greeting) = self.remove_greeting(id, io) {
                        self.request(port, greeting.into_stream(), Caller::Line, io);
                    }
                }
                Err(_) => drop(self.remove_greeting(id, io)),
            },
            // It went away in the same turn.
            Some(None) | None => {}
        }
    }

    /// Puts the next packet into a chain that has room for more than a header. Returns the bytes written; `None`
    /// when there is nothing to send, and the chain is untouched.
    pub(super) fn fill(&mut self, mut head: Writer<'_>, io: &mut dyn Io) -> Option<u32> {
        let mut body = head.split_off(HEADER_LEN);
        let cid = self.cid;
        let address = |key: &Key, header: Header| Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            ..header
        };
        loop {
            if let Some(reply) = self.replies.pop_front() {
                let _ = reply.write(&mut head);
                return Some(head.written());
            }
            let id = self.ready.pop_front()?;
            let Some(Some(Slot::Link(link))) = self.slots.get_mut(id) else { continue };
            link.queued = false;
            match link.fill(&mut head, &mut body, address) {
                Filled::Packet(len) => {
                    self.tidy(id, io);
                    return Some(u32::try_from(len).unwrap_or(u32::MAX));
                }
                Filled::Nothing => self.tidy(id, io),
                Filled::Failed => self.reset(id, io),
            }
        }
    }

    /// Ends what should have been answered by now, and sets the timer for the next deadline.
    pub(super) fn expire(&mut self, io: &mut dyn Io) {
        self.timer.take();
        self.armed = None;
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for id in 0..self.slots.len() {
            let Some(Some(Slot::Link(link))) = self.slots.get(id) else { continue };
            match link.deadline {
                Some(deadline) if deadline <= now => {
                    if let Caller::Waiter(waiter) = &link.caller {
                        waiter.answer(Err(io::ErrorKind::TimedOut));
                    }
                    self.reset(id, io);
                }
                Some(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                None => {}
            }
        }
        if let Some(next) = next {
            self.arm(next);
        }
    }

    /// Has the timer ring at `deadline`, or before.
    pub(super) fn arm(&mut self, deadline: Instant) -> Instant {
        if self.armed.is_none_or(|armed| deadline < armed) {
            match self.timer.set(Some(deadline.saturating_duration_since(Instant::now()))) {
                Ok(()) => self.armed = Some(deadline),
                Err(error) => log::warn!("vsock: setting a timer: {error}"),
            }
        }
        deadline
    }

    /// Forgets every connection, without a word to the guest.
    pub(super) fn clear(&mut self, io: &mut dyn Io) {
        for id in 0..self.slots.len() {
            match self.slots.get(id) {
                Some(Some(Slot::Link(_))) => self.remove(id, io),
                Some(Some(Slot::Greeting(_))) => drop(self.remove_greeting(id, io)),
                Some(None) | None => {}
            }
        }
        self.slots.clear();
        self.free.clear();
        self.keys.clear();
        self.ready.clear();
        self.replies.clear();
        self.armed = None;
        let _ = self.timer.set(None);
    }

    fn is_full(&self) -> bool {
        self.slots.len() - self.free.len() >= self.limits.connections
    }

    fn place(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    fn set(&mut self, id: usize, slot: Slot) {
        if let Some(place) = self.slots.get_mut(id) {
            *place = Some(slot);
        }
    }

    fn insert(&mut self, link: Link, io: &mut dyn Io) {
        let id = self.place();
        self.keys.insert(link.key, id);
        self.set(id, Slot::Link(Box::new(link)));
        self.tidy(id, io);
    }

    /// After anything happened to a link: ends it if it is over, gives it a turn if it has something to send, and
    /// watches its stream for what can be used now.
    fn tidy(&mut self, id: usize, io: &mut dyn Io) {
        let Some(Some(Slot::Link(link))) = self.slots.get_mut(id) else { return };
        if link.conn.is_finished() || link.conn.state() == State::Over {
            if link.conn.state() != State::Over {
                return self.reset(id, io);
            }
            if link.is_drained() {
                return self.remove(id, io);
            }
        }
        if !link.queued && link.wants_to_send() {
            link.queued = true;
            self.ready.push_back(id);
        }
        let closing = link.conn.state() == State::Closing && link.deadline.is_none();
        if let Err(error) = link.watch(token(id), io) {
            log::warn!("vsock: watching a connection: {error}");
            return self.reset(id, io);
        }
        if closing {
            link.deadline = Some(Instant::now() + self.limits.close_timeout);
            self.arm(Instant::now() + self.limits.close_timeout);
        }
    }

    /// Ends a connection and tells the guest.
    fn reset(&mut self, id: usize, io: &mut dyn Io) {
        let Some(Some(Slot::Link(link))) = self.slots.get(id) else { return };
        // The guest need not hear of a request that was never sent.
        if link.conn.state() != State::Requested || !link.conn.owes_urgent() {
            let key = link.key;
            self.replies.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: Op::Reset as u16,
                ..Header::default()
            });
        }
        self.remove(id, io);
    }

    /// Drops a link. Its other end sees an end of file.
    fn remove(&mut self, id: usize, io: &mut dyn Io) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        match slot.take() {
            Some(Slot::Link(mut link)) => {
                link.unwatch(io);
                if self.keys.get(&link.key) == Some(&id) {
                    self.keys.remove(&link.key);
                }
                if link.queued {
                    self.ready.retain(|&ready| ready != id);
                }
                self.free.push(id);
            }
            other => *slot = other,
        }
    }

    fn remove_greeting(&mut self, id: usize, io: &mut dyn Io) -> Option<Greeting> {
        let slot = self.slots.get_mut(id)?;
        match slot.take() {
            Some(Slot::Greeting(greeting)) => {
                let _ = io.unwatch(greeting.source());
                self.free.push(id);
                Some(greeting)
            }
            other => {
                *slot = other;
                None
            }
        }
    }
}

fn token(id: usize) -> Token {
    // The table has far fewer entries than there are tokens.
    FIRST_TOKEN.saturating_add(Token::try_from(id).unwrap_or(Token::MAX))
}
