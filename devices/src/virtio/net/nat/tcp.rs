//! One TCP connection: a TCP of our own towards the guest, a socket towards the rest of the world.
//!
//! The way to the guest loses nothing and keeps order, so this is TCP without congestion control: windows bound what is
//! under way, and what was sent is kept until it is acknowledged. Bytes of the guest go from its memory straight into the
//! socket; what the socket does not take waits here, never more than the window that the guest was told.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};

use super::super::super::{Error, Reader};
use super::super::wire::{ACK, FIN, Link, PSH, RST, SYN, Tcp};
use super::super::{Delivery, Outgoing, Port, Segments};
use crate::event::{self, Ready, Token};
use crate::os;

/// What the guest may send before it hears of us again.
const WINDOW: usize = 256 << 10;
/// Windows are told in units of this power of two.
const SCALE: u8 = 7;
/// What is kept for the guest.
const KEEP: usize = 256 << 10;
/// Until the first repetition. Nothing is lost on the way unless the guest drops it, and then three acknowledgements of
/// nothing new say so; a guest whose kernel is emulated on a busy host may take seconds for one window.
const PATIENCE: Duration = Duration::from_secs(4);
const MOST_PATIENCE: Duration = Duration::from_secs(32);
/// Repetitions until the guest is given up.
const TRIES: u32 = 10;
/// What guests without the option take.
const LEAST_MSS: usize = 536;
/// Bytes of the headers of a segment, at most.
const HEADERS: usize = 14 + 40 + 20;
/// The largest segment that fits the MTU of 1500.
const MSS_V4: u16 = 1460;
const MSS_V6: u16 = 1440;

/// Both ends as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest called; the socket is being connected.
    Opening,
    /// It was told that the connection is made, and has not acknowledged.
    Answered,
    /// The guest was called, from a published port, and has not answered.
    Calling,
    Open,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It goes on when the guest has room.
    Waits,
    /// It has ended on both sides.
    Over,
    /// It broke on the other side: the guest is told by a reset.
    Reset,
    /// It could not be made for this reason.
    Refused(Errno),
}

/// What a connection works with during one call.
pub(super) struct Context<'a, 'p> {
    pub(super) link: Link,
    pub(super) port: &'a mut Port<'p>,
    pub(super) scratch: &'a mut [u8],
    pub(super) now: Instant,
    /// No more bytes may be kept, for all connections together.
    pub(super) is_full: bool,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    token: Token,
    socket: OwnedFd,
    watched: Option<Ready>,
    state: State,
    // Towards the guest.
    /// The first byte that is not acknowledged.
    una: u32,
    /// The next to be sent, and the highest that was ever the next.
    nxt: u32,
    top: u32,
    /// Bytes from `una` on.
    keep: VecDeque<u8>,
    /// The socket said its last byte.
    eof: bool,
    /// Number of our FIN, once it was sent.
    fin: Option<u32>,
    /// What the guest takes.
    window: u32,
    scale: u8,
    mss: usize,
    owes_syn: bool,
    duplicates: u32,
    // From the guest.
    rcv: u32,
    pending: VecDeque<u8>,
    guest_fin: bool,
    shut: bool,
    /// The first byte that the guest may not send, as it was told.
    edge: u32,
    owes_ack: bool,
    readable: bool,
    pub(super) deadline: Option<Instant>,
    /// It is on the list of those that are pumped at the end of the call.
    pub(super) is_due: bool,
    tries: u32,
    probes: bool,
}

impl Flow {
    /// The guest called (`syn`), and `socket` is being connected.
    pub(super) fn called(key: Key, token: Token, socket: OwnedFd, syn: &Tcp, iss: u32) -> Self {
        let mut flow = Self::new(key, token, socket, State::Opening, iss);
        flow.meet(syn);
        flow
    }

    /// Somebody connected to a published port: the guest is called.
    pub(super) fn calls(key: Key, token: Token, socket: OwnedFd, iss: u32) -> Self {
        let mut flow = Self::new(key, token, socket, State::Calling, iss);
        flow.owes_syn = true;
        flow
    }

    fn new(key: Key, token: Token, socket: OwnedFd, state: State, iss: u32) -> Self {
        Self {
            key,
            token,
            socket,
            watched: None,
            state,
            una: iss,
            nxt: iss,
            top: iss,
            keep: VecDeque::new(),
            eof: false,
            fin: None,
            window: 0,
            scale: 0,
            mss: LEAST_MSS,
            owes_syn: false,
            duplicates: 0,
            rcv: 0,
            pending: VecDeque::new(),
            guest_fin: false,
            shut: false,
            edge: 0,
            owes_ack: false,
            readable: false,
            deadline: None,
            is_due: false,
            tries: 0,
            probes: false,
        }
    }

    /// Takes what the guest's SYN says.
    fn meet(&mut self, syn: &Tcp) {
        self.rcv = syn.seq.wrapping_add(1);
        self.edge = self.rcv;
        self.mss = usize::from(syn.mss.unwrap_or(0)).clamp(LEAST_MSS, 65_535);
        self.scale = syn.scale.unwrap_or(0);
        // Windows of a SYN are not scaled.
        self.window = syn.window.into();
    }

    /// Bytes that are kept here.
    pub(super) fn kept(&self) -> usize {
        self.keep.len() + self.pending.len()
    }

    /// A segment of the guest, whose payload is the first `len` bytes of `data`.
    pub(super) fn on_segment(&mut self, tcp: &Tcp, data: &mut Reader<'_>, len: usize, is_full: bool) -> Fate {
        if tcp.flags & RST != 0 {
            self.abort();
            return Fate::Over;
        }
        match self.state {
            // A repetition, most likely; the answer comes when there is one.
            State::Opening => return Fate::Lives,
            State::Calling => {
                if tcp.flags & (SYN | ACK) != SYN | ACK || tcp.ack != self.una.wrapping_add(1) {
                    return Fate::Lives;
                }
                self.meet(tcp);
                self.established(tcp.ack);
                self.owes_ack = true;
                return Fate::Lives;
            }
            State::Answered | State::Open if tcp.flags & SYN != 0 => {
                self.owes_syn |= self.state == State::Answered;
                self.owes_ack = true;
                return Fate::Lives;
            }
            State::Answered => {
                if tcp.flags & ACK == 0 || tcp.ack != self.una.wrapping_add(1) {
                    return Fate::Lives;
                }
                self.established(tcp.ack);
            }
            State::Open => {}
        }
        if tcp.flags & ACK != 0 {
            self.acknowledged(tcp, len);
        }
        self.receive(tcp, data, len, is_full)
    }

    fn established(&mut self, ack: u32) {
        self.state = State::Open;
        (self.una, self.nxt, self.top) = (ack, ack, ack);
        self.owes_syn = false;
        self.deadline = None;
        self.tries = 0;
        // It may have spoken before the guest did.
        self.readable = true;
    }

    fn acknowledged(&mut self, tcp: &Tcp, len: usize) {
        let news = tcp.ack.wrapping_sub(self.una);
        if news > self.top.wrapping_sub(self.una) {
            // Of what was never sent, or of long ago.
            self.owes_ack |= (news as i32) > 0;
            return;
        }
        let window = u32::from(tcp.window) << self.scale;
        if news > 0 {
            let count = usize::try_from(news).unwrap_or(usize::MAX).min(self.keep.len());
            self.keep.drain(..count);
            if self.keep.is_empty() && self.keep.capacity() > 2 * KEEP {
                self.keep = VecDeque::new();
            }
            self.una = tcp.ack;
            if (self.nxt.wrapping_sub(self.una) as i32) < 0 {
                self.nxt = self.una;
            }
            self.tries = 0;
            self.duplicates = 0;
            self.deadline = None;
        } else if len == 0 && window == self.window && tcp.flags & FIN == 0 && self.nxt != self.una {
            self.duplicates += 1;
            if self.duplicates == 3 {
                self.nxt = self.una;
            }
        }
        self.window = window;
    }

    fn receive(&mut self, tcp: &Tcp, data: &mut Reader<'_>, len: usize, is_full: bool) -> Fate {
        let ahead = tcp.seq.wrapping_sub(self.rcv) as i32;
        let fin = tcp.flags & FIN != 0;
        if len == 0 && !fin {
            // A probe of a guest that waits for our window has a number before the next one.
            self.owes_ack |= ahead < 0;
            return Fate::Lives;
        }
        self.owes_ack = true;
        let old = usize::try_from(ahead.unsigned_abs()).unwrap_or(usize::MAX);
        if ahead > 0 || self.guest_fin || (ahead < 0 && old > len) {
            return Fate::Lives;
        }
        let old = if ahead < 0 { old } else { 0 };
        data.skip(old);
        let fresh = len - old;
        let room = if is_full { 0 } else { WINDOW.saturating_sub(self.pending.len()) };
        let mut taken = fresh.min(room);
        if taken > 0 && !self.shut {
            let mut sent = 0;
            if self.pending.is_empty() {
                match data.send_to(self.socket.as_fd(), taken) {
                    Ok(done) => sent = done,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Fate::Reset,
                }
            }
            if sent < taken {
                let mut rest = vec![0; taken - sent];
                // Guest memory that was checked gives all that is there.
                let done = io::Read::read(data, &mut rest).unwrap_or(0);
                self.pending.extend(rest.get(..done).unwrap_or_default());
                taken = sent + done;
            }
        }
        self.rcv = self.rcv.wrapping_add(u32::try_from(taken).unwrap_or(0));
        if fin && taken == fresh {
            self.guest_fin = true;
            self.rcv = self.rcv.wrapping_add(1);
        }
        Fate::Lives
    }

    /// The socket has news.
    pub(super) fn on_host(&mut self, ready: Ready) -> Fate {
        if self.state == State::Opening {
            if !ready.write && !ready.hang_up {
                return Fate::Lives;
            }
            return match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => {
                    self.state = State::Answered;
                    self.owes_syn = true;
                    Fate::Lives
                }
                Ok(Err(errno)) | Err(errno) => Fate::Refused(errno),
            };
        }
        self.readable |= ready.read || ready.hang_up;
        Fate::Lives
    }

    /// The deadline has passed.
    pub(super) fn on_deadline(&mut self) -> Fate {
        self.deadline = None;
        self.tries += 1;
        if self.tries > TRIES && (self.nxt != self.una || self.state != State::Open) {
            self.abort();
            return Fate::Reset;
        }
        match self.state {
            State::Opening => {}
            State::Answered | State::Calling => self.owes_syn = true,
            State::Open => {
                self.nxt = self.una;
                self.probes = self.window == 0;
            }
        }
        Fate::Lives
    }

    /// Moves what can be moved, both ways.
    pub(super) fn pump(&mut self, cx: &mut Context<'_, '_>) -> Result<Fate, Error> {
        let fate = match self.move_bytes(cx)? {
            Some(fate) => fate,
            None => self.speak(cx)?,
        };
        if matches!(fate, Fate::Lives | Fate::Waits) {
            self.watch(cx)?;
            if self.deadline.is_none() && (self.nxt != self.una || self.has_unsent() || self.owes_syn) {
                let patience = PATIENCE.saturating_mul(1 << self.tries.min(4)).min(MOST_PATIENCE);
                self.deadline = Some(cx.now + patience);
            }
        }
        Ok(fate)
    }

    fn has_unsent(&self) -> bool {
        self.state == State::Open && self.in_flight() < self.keep.len()
    }

    fn in_flight(&self) -> usize {
        usize::try_from(self.nxt.wrapping_sub(self.una)).unwrap_or(0)
    }

    /// Between the socket and what is kept.
    fn move_bytes(&mut self, cx: &mut Context<'_, '_>) -> Result<Option<Fate>, Error> {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match rustix::net::send(&self.socket, first, os::SEND) {
                Ok(done) => drop(self.pending.drain(..done.min(self.pending.len()))),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Ok(Some(Fate::Reset)),
            }
        }
        if self.pending.is_empty() {
            if self.pending.capacity() > 0 {
                self.pending = VecDeque::new();
            }
            if self.guest_fin && !self.shut {
                // A socket that was reset says so when it is read.
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
                self.shut = true;
            }
        }
        while self.state == State::Open && self.readable && !self.eof && self.keep.len() < KEEP && !cx.is_full
        {
            match rustix::net::recv(&self.socket, &mut *cx.scratch, os::RECEIVE) {
                Ok((0, _)) => self.eof = true,
                Ok((count, _)) => self.keep.extend(cx.scratch.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(_) => return Ok(Some(Fate::Reset)),
            }
        }
        Ok(None)
    }

    /// Tells the guest what is due.
    fn speak(&mut self, cx: &mut Context<'_, '_>) -> Result<Fate, Error> {
        match self.state {
            State::Opening => return Ok(Fate::Lives),
            State::Answered | State::Calling => {
                if !self.owes_syn {
                    return Ok(Fate::Lives);
                }
                let v6 = self.key.guest.is_ipv6();
                let tcp = Tcp {
                    seq: self.una,
                    ack: self.rcv,
                    flags: if self.state == State::Answered { SYN | ACK } else { SYN },
                    window: 65_535,
                    mss: Some(if v6 { MSS_V6 } else { MSS_V4 }),
                    // Offered only to a guest that offered it, or that has not been heard yet.
                    scale: (self.state == State::Calling || self.scale > 0).then_some(SCALE),
                    ..Tcp::default()
                };
                if self.put(cx, tcp, 0, 0)? == Delivery::NoRoom {
                    return Ok(Fate::Waits);
                }
                self.owes_syn = false;
                self.nxt = self.una.wrapping_add(1);
                self.top = self.nxt;
                return Ok(Fate::Lives);
            }
            State::Open => {}
        }
        while self.has_unsent() {
            let flight = self.in_flight();
            let mut window = usize::try_from(self.window).unwrap_or(0).saturating_sub(flight);
            if window == 0 && std::mem::take(&mut self.probes) {
                window = 1;
            }
            let unsent = self.keep.len() - flight;
            let want = unsent.min(window).min(cx.port.segment(self.key.guest.is_ipv6(), self.mss));
            // No small pieces while more is under way and the window opens soon.
            if want == 0 || (want < self.mss && want < unsent && flight > 0) {
                break;
            }
            let room = cx.port.reserve(want + HEADERS)?;
            let Some(count) = room.checked_sub(HEADERS).filter(|room| *room > 0).map(|room| room.min(want))
            else {
                return Ok(Fate::Waits);
            };
            let flags = if count == unsent { ACK | PSH } else { ACK };
            if self.put(cx, Tcp { seq: self.nxt, flags, ..Tcp::default() }, flight, count)?
                == Delivery::NoRoom
            {
                return Ok(Fate::Waits);
            }
            self.advance(u32::try_from(count).unwrap_or(0));
        }
        let sent_all = self.eof && !self.has_unsent() && self.in_flight() <= self.keep.len();
        if sent_all && self.fin.is_none_or(|fin| self.nxt == fin) {
            let fin = Tcp { seq: self.nxt, flags: FIN | ACK, ..Tcp::default() };
            if self.put(cx, fin, 0, 0)? == Delivery::NoRoom {
                return Ok(Fate::Waits);
            }
            self.fin = Some(self.nxt);
            self.advance(1);
        }
        // A guest that may not send much more waits for more room than it was told.
        let told = usize::try_from(self.edge.wrapping_sub(self.rcv)).unwrap_or(0);
        if self.owes_ack || (told < WINDOW / 8 && self.room() >= WINDOW / 2) {
            let ack = Tcp { seq: self.nxt, flags: ACK, ..Tcp::default() };
            if self.put(cx, ack, 0, 0)? == Delivery::NoRoom {
                return Ok(Fate::Waits);
            }
        }
        let acknowledged = self.fin.is_some_and(|fin| self.una == fin.wrapping_add(1));
        Ok(if acknowledged && self.shut { Fate::Over } else { Fate::Lives })
    }

    fn advance(&mut self, count: u32) {
        self.nxt = self.nxt.wrapping_add(count);
        if (self.nxt.wrapping_sub(self.top) as i32) > 0 {
            self.top = self.nxt;
        }
    }

    fn room(&self) -> usize {
        WINDOW.saturating_sub(self.pending.len())
    }

    /// Sends a segment with `count` of the kept bytes from `at` on.
    fn put(
        &mut self,
        cx: &mut Context<'_, '_>,
        mut tcp: Tcp,
        at: usize,
        count: usize,
    ) -> Result<Delivery, Error> {
        let room = self.room();
        if tcp.flags & SYN == 0 {
            tcp.ack = self.rcv;
            let shift = if self.scale > 0 { SCALE } else { 0 };
            tcp.window = u16::try_from(room >> shift).unwrap_or(u16::MAX);
        }
        let (first, second) = self.keep.as_slices();
        let end = at + count;
        let split = first.len();
        let payload = [
            first.get(at.min(split)..end.min(split)).unwrap_or_default(),
            second.get(at.max(split) - split..end.max(split) - split).unwrap_or_default(),
        ];
        let mut head = Vec::with_capacity(HEADERS + 8);
        let ends = (
            SocketAddr::new(self.key.remote.ip(), self.key.remote.port()),
            SocketAddr::new(self.key.guest.ip(), self.key.guest.port()),
        );
        let checksum =
            cx.link.tcp(&mut head, ends, &Tcp { src: ends.0.port(), dst: ends.1.port(), ..tcp }, count);
        let segments = (count > self.mss)
            .then(|| Segments { v6: ends.1.is_ipv6(), size: u16::try_from(self.mss).unwrap_or(MSS_V4) });
        let outgoing = Outgoing { head: &head, payload, checksum: Some(checksum), segments };
        let delivery = cx.port.deliver(&outgoing)?;
        if delivery == Delivery::Done {
            self.owes_ack = false;
            let shift = if self.scale > 0 { SCALE } else { 0 };
            let told = if tcp.flags & SYN == 0 { u32::from(tcp.window) << shift } else { 65_535 };
            self.edge = self.rcv.wrapping_add(told);
        }
        Ok(delivery)
    }

    fn watch(&mut self, cx: &mut Context<'_, '_>) -> Result<(), Error> {
        let want = Ready {
            read: self.state == State::Open && !self.eof && self.keep.len() < KEEP && !cx.is_full,
            write: self.state == State::Opening || !self.pending.is_empty(),
            hang_up: false,
        };
        // A source nobody waits for would still report that it hung up, for ever.
        let want = (want.read || want.write).then_some(want);
        if want == self.watched {
            return Ok(());
        }
        let source = event::socket(&self.socket);
        match (self.watched, want) {
            (None, Some(want)) => cx.port.watch(source, self.token, want),
            (Some(_), Some(want)) => cx.port.rewatch(source, self.token, want),
            _ => {
                cx.port.unwatch(source);
                Ok(())
            }
        }
        .map_err(|source| Error::Host { doing: "watching a connection of the guest", source })?;
        self.watched = want;
        Ok(())
    }

    /// The other side shall see a reset, not an end.
    pub(super) fn abort(&self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Stops watching; the socket is closed with the value.
    pub(super) fn close(mut self, port: &mut Port<'_>) {
        if self.watched.take().is_some() {
            port.unwatch(event::socket(&self.socket));
        }
    }

    /// As much of the guest's SYN as an answer to it needs.
    pub(super) fn syn(&self) -> Tcp {
        Tcp { seq: self.rcv.wrapping_sub(1), flags: SYN, ..Tcp::default() }
    }

    /// A reset for the guest.
    pub(super) fn reset(&self) -> Tcp {
        Tcp {
            src: self.key.remote.port(),
            dst: self.key.guest.port(),
            seq: self.nxt,
            ack: self.rcv,
            flags: RST | ACK,
            ..Tcp::default()
        }
    }
}
