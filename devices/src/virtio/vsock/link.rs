//! One connection put together: the state machine, the host's end, and what waits between them.
//!
//! Data moves straight between the socket and guest memory. Only what the host does not take at once is copied,
//! into a backlog that the credit given to the guest bounds. Nothing is read from the host before the guest has
//! both credit and a buffer for it.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::time::Instant;

use super::conn::{Conn, State, Step};
use super::host::Caller;
use super::packet::{HEADER_LEN, Header, SHUT_RECEIVE, SHUT_SEND};
use super::stream::Stream;
use crate::event::{Ready, Token};
use crate::virtio::{Io, Reader, Writer};

/// Bytes of a backlog's buffer that are kept when it is empty.
const KEPT: usize = 4096;

/// The two ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// What [`Link::fill`] came to.
#[derive(Debug)]
pub(super) enum Filled {
    /// A packet of this length, header included, is in the chain.
    Packet(usize),
    /// There is nothing to send, and the chain is untouched.
    Nothing,
    /// The host's end failed.
    Failed,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: Key,
    pub(super) conn: Conn,
    pub(super) caller: Caller,
    /// In the mux's queue of links that may have something to send.
    pub(super) queued: bool,
    /// When the guest has to have answered.
    pub(super) deadline: Option<Instant>,
    /// `None` when neither direction needs it any more.
    stream: Option<Stream>,
    /// What is watched on the stream.
    watched: Option<Ready>,
    backlog: Backlog,
    /// A read would have found nothing, as far as is known: the next readiness tells.
    idle: bool,
    /// Readiness to read was reported while nothing could be read; do not hear of it again.
    muted: bool,
    /// All that the host sent was read.
    ended: bool,
    /// The other end is closed.
    hung_up: bool,
}

impl Link {
    /// A connection between `conn` and `stream`, which is not watched yet.
    pub(super) fn new(key: Key, conn: Conn, stream: Stream, caller: Caller) -> Self {
        Self {
            key,
            conn,
            caller,
            queued: false,
            deadline: None,
            stream: Some(stream),
            watched: None,
            backlog: Backlog::default(),
            idle: true,
            muted: false,
            ended: false,
            hung_up: false,
        }
    }

    /// Takes in a packet of the guest.
    pub(super) fn receive(&mut self, header: &Header, payload: &mut Reader<'_>) -> Step {
        let step = self.conn.receive(header);
        match step {
            Step::Data(len) => self.deliver(payload, len as usize),
            Step::Accepted => self.accepted(),
            Step::Shut => {
                if self.conn.guest_shut() & SHUT_RECEIVE != 0 {
                    self.shutdown(Shutdown::Read);
                }
                self.end_if_drained();
            }
            Step::Nothing | Step::Reset { .. } | Step::Violation(_) => {}
        }
        step
    }

    /// Tells whoever dialed that the guest accepted.
    fn accepted(&mut self) {
        match std::mem::replace(&mut self.caller, Caller::Nobody) {
            Caller::Nobody => {}
            Caller::Waiter(waiter) => waiter.answer(Ok(())),
            Caller::Line => {
                let line = format!("OK {}\n", self.key.host_port);
                // Nothing was sent before: there is room, or the program is gone, which will show.
                if let Some(stream) = &self.stream {
                    let _ = stream.send_bytes(line.as_bytes());
                }
            }
        }
        self.deadline = None;
    }

    fn deliver(&mut self, payload: &mut Reader<'_>, len: usize) {
        let mut left = len;
        while left > 0 && self.backlog.is_empty() {
            let Some(stream) = &self.stream else { break };
            match stream.send(payload, left) {
                Ok(sent) => {
                    left -= sent.min(left);
                    self.conn.taken(u32::try_from(sent).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.refuse(),
            }
        }
        self.backlog.append(payload, left);
    }

    /// Passes on what waits for the host.
    pub(super) fn flush(&mut self) {
        while let (Some(stream), bytes @ [_, ..]) = (&self.stream, self.backlog.bytes()) {
            match stream.send_bytes(bytes) {
                Ok(sent) => {
                    self.backlog.consume(sent);
                    self.conn.taken(u32::try_from(sent).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.refuse(),
            }
        }
        self.end_if_drained();
    }

    /// Passes on the guest's end of data, behind the data.
    fn end_if_drained(&self) {
        if self.conn.guest_shut() & SHUT_SEND != 0 && self.backlog.is_empty() {
            self.shutdown(Shutdown::Write);
        }
    }

    fn shutdown(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            stream.shutdown(how);
        }
    }

    /// The host takes no more.
    fn refuse(&mut self) {
        self.backlog = Backlog::default();
        self.conn.host_done_receiving();
    }

    /// Whether everything that the guest sent was passed on.
    pub(super) fn is_drained(&self) -> bool {
        self.backlog.is_empty()
    }

    /// The stream is ready.
    pub(super) fn ready(&mut self, ready: Ready) {
        if ready.hang_up {
            // Nothing more can be written, and what is there can be read without being told.
            self.hung_up = true;
            self.refuse();
        }
        if ready.write {
            self.flush();
        }
        if ready.read || ready.hang_up {
            if self.idle {
                self.idle = false;
            } else {
                self.muted = true;
            }
            self.conn.starve();
        }
    }

    /// Whether it is worth to call [`Self::fill`].
    pub(super) fn wants_to_send(&self) -> bool {
        self.conn.owes() || (self.may_read() && self.conn.sendable() > 0)
    }

    fn may_read(&self) -> bool {
        !self.idle && !self.ended && self.stream.is_some()
    }

    /// Puts the next packet into a chain, cut into its header and its rest. `address` completes the header.
    pub(super) fn fill(
        &mut self,
        head: &mut Writer<'_>,
        body: &mut Writer<'_>,
        address: impl Fn(&Key, Header) -> Header,
    ) -> Filled {
        // When the other end is closed, one hint may say all that is to be said.
        let read_first = self.hung_up && !self.conn.owes_opening();
        if (read_first || !self.conn.owes_urgent()) && self.may_read() {
            match self.read(body) {
                Ok(Some(len)) => {
                    let header = address(&self.key, self.conn.data(len));
                    self.look_for_more();
                    let _ = header.write(head);
                    return Filled::Packet(HEADER_LEN + len as usize);
                }
                Ok(None) => {}
                Err(_) => return Filled::Failed,
            }
        }
        let Some(header) = self.conn.next_packet() else { return Filled::Nothing };
        // Chains without room for a header are not given here.
        let _ = address(&self.key, header).write(head);
        Filled::Packet(HEADER_LEN)
    }

    /// Reads what the guest can take now.
    fn read(&mut self, body: &mut Writer<'_>) -> io::Result<Option<u32>> {
        let room = self.conn.sendable().min(u32::try_from(body.len()).unwrap_or(u32::MAX));
        let (Some(stream), 1..) = (&self.stream, room) else { return Ok(None) };
        match stream.receive(body, room as usize) {
            Ok(0) => {
                self.ended = true;
                self.conn.host_done_sending();
                if stream.is_gone() {
                    self.hung_up = true;
                    self.refuse();
                }
                Ok(None)
            }
            Ok(len) => {
                let len = u32::try_from(len).unwrap_or(room);
                // A short read has emptied the socket; when its other end is closed, the end is still to be read.
                self.rest(len < room && !self.hung_up);
                Ok(Some(len))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.rest(true);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The credit may be used up: then the next readiness, if there is more, leads to a request for credit.
    fn look_for_more(&mut self) {
        if self.conn.sendable() == 0 {
            if self.hung_up {
                self.conn.starve();
            } else {
                self.rest(true);
            }
        }
    }

    fn rest(&mut self, idle: bool) {
        self.idle = idle;
        self.muted &= !idle;
    }

    /// Watches the stream for what can be used now.
    ///
    /// # Errors
    /// The poller refuses.
    pub(super) fn watch(&mut self, token: Token, io: &mut dyn Io) -> io::Result<()> {
        let over = self.conn.state() == State::Closing;
        if self.hung_up || over {
            self.unwatch(io);
            if over {
                self.stream = None;
            }
            return Ok(());
        }
        let Some(stream) = self.stream.as_ref().filter(|_| self.conn.state() != State::Requested) else {
            return Ok(());
        };
        let wanted = Ready {
            read: self.conn.can_send() && !self.ended && !self.muted,
            write: !self.backlog.is_empty(),
            hang_up: false,
        };
        if self.watched != Some(wanted) {
            match self.watched {
                None => io.watch(stream.source(), token, wanted)?,
                Some(_) => io.rewatch(stream.source(), token, wanted)?,
            }
            self.watched = Some(wanted);
        }
        Ok(())
    }

    /// Stops watching the stream.
    pub(super) fn unwatch(&mut self, io: &mut dyn Io) {
        if let (Some(stream), Some(_)) = (&self.stream, self.watched.take()) {
            let _ = io.unwatch(stream.source());
        }
    }
}

/// Bytes on their way to the host, no more than the guest has credit for.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    fn append(&mut self, from: &mut Reader<'_>, len: usize) {
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        // The length was checked against the chain: reading from guest memory does not fail.
        let _ = from.take(len as u64).read_to_end(&mut self.bytes);
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count);
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.start = 0;
        }
    }
}
