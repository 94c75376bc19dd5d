//! Published ports: sockets that the caller bound, and what comes in by them.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use super::super::super::{Error, Reader};
use super::super::Port;
use super::tcp::{self, Key};
use super::{MAX_TCP, Nat, datagram};
use crate::event::{self, Ready, Source, Token};

/// Connections, or datagrams, taken in one call.
const BATCH: usize = 32;
/// Visitors of published UDP ports, at most, and how long one is known.
const MAX_VISITORS: usize = 256;
const IDLE: Duration = Duration::from_secs(120);
/// How long a listener rests when this process has no descriptors left.
const REST: Duration = Duration::from_secs(1);
/// The first port of a visitor that cannot have its own.
const FIRST_PORT: u16 = 20_000;

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// A listening one.
    Tcp(TcpListener),
    /// For datagrams.
    Udp(UdpSocket),
}

/// A published port.
#[derive(Debug)]
pub struct Forward {
    /// Where it is published. Made nonblocking by [`Nat`].
    pub listener: Listener,
    /// The guest's port.
    pub port: u16,
}

impl Listener {
    fn source(&self) -> Source<'_> {
        match self {
            Self::Tcp(listener) => event::socket(listener),
            Self::Udp(socket) => event::socket(socket),
        }
    }
}

#[derive(Debug)]
struct Visitor {
    forward: usize,
    peer: SocketAddr,
    expires: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Forwards {
    list: Vec<Forward>,
    first: Token,
    watched: bool,
    /// Those that rest, until then.
    resting: Option<(Vec<usize>, Instant)>,
    /// By the guest's end and how the guest sees them.
    visitors: HashMap<Key, Visitor>,
}

impl Forwards {
    pub(super) fn new(list: Vec<Forward>) -> Self {
        Self { list, ..Self::default() }
    }

    pub(super) fn watch(&mut self, first: Token, port: &mut Port<'_>) -> Result<(), Error> {
        let fail = |source| Error::Host { doing: "watching a published port", source };
        self.first = first;
        self.watched = true;
        for (forward, token) in self.list.iter().zip(first..) {
            let set = match &forward.listener {
                Listener::Tcp(listener) => listener.set_nonblocking(true),
                Listener::Udp(socket) => socket.set_nonblocking(true),
            };
            set.and_then(|()| port.watch(forward.listener.source(), token, Ready::READ)).map_err(fail)?;
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, port: &mut Port<'_>) {
        let (resting, _) = self.resting.take().unwrap_or((Vec::new(), Instant::now()));
        let was_watched = std::mem::take(&mut self.watched);
        for (index, forward) in self.list.iter().enumerate() {
            if was_watched && !resting.contains(&index) {
                port.unwatch(forward.listener.source());
            }
        }
        self.visitors.clear();
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let resting = self.resting.as_ref().map(|(_, until)| *until);
        self.visitors.values().map(|visitor| visitor.expires).chain(resting).min()
    }

    pub(super) fn on_timer(&mut self, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        self.visitors.retain(|_, visitor| visitor.expires > now);
        if self.resting.as_ref().is_some_and(|(_, until)| *until <= now) {
            for index in self.resting.take().map(|(list, _)| list).unwrap_or_default() {
                let Some(forward) = self.list.get(index) else { continue };
                let token = self.first + Token::try_from(index).unwrap_or(0);
                port.watch(forward.listener.source(), token, Ready::READ)
                    .map_err(|source| Error::Host { doing: "watching a published port", source })?;
            }
        }
        Ok(())
    }

    /// Leaves a listener alone for a while: what made it fail would make it fail again at once.
    fn rest(&mut self, index: usize, now: Instant, port: &mut Port<'_>) {
        let Some(forward) = self.list.get(index) else { return };
        port.unwatch(forward.listener.source());
        self.resting.get_or_insert((Vec::new(), now + REST)).0.push(index);
    }

    /// Sends what the guest says to a visitor; false if it is for nobody who came by a published port.
    pub(super) fn answer(&mut self, key: Key, data: &mut Reader<'_>, len: usize) -> bool {
        let Some(visitor) = self.visitors.get_mut(&key) else { return false };
        let Some(Forward { listener: Listener::Udp(socket), .. }) = self.list.get(visitor.forward) else {
            return false;
        };
        visitor.expires = Instant::now() + IDLE;
        let mut bytes = vec![0; len];
        let count = data.read(&mut bytes).unwrap_or(0);
        // A datagram may be lost.
        let _ = socket.send_to(bytes.get(..count).unwrap_or_default(), visitor.peer);
        true
    }
}

impl Nat {
    /// Somebody came by a published port.
    pub(super) fn on_forward(&mut self, index: u32, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match self.forwards.list.get(index).map(|forward| matches!(forward.listener, Listener::Tcp(_))) {
            Some(true) => self.accept(index, now, port),
            Some(false) => return self.visit(index, now, port),
            None => {}
        }
        Ok(())
    }

    fn accept(&mut self, index: usize, now: Instant, port: &mut Port<'_>) {
        for _ in 0..BATCH {
            let Some(Forward { listener: Listener::Tcp(listener), port: inside }) =
                self.forwards.list.get(index)
            else {
                return;
            };
            let inside = *inside;
            let accepted =
                listener.accept().and_then(|accepted| crate::os::quiet(&accepted.0).map(|()| accepted));
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    log::warn!("cannot take a connection to a published port: {error}");
                    self.forwards.rest(index, now, port);
                    let deadline = self.forwards.deadline();
                    self.wake_at(deadline);
                    return;
                }
            };
            // Without these the connection would only be slower, or block: it is not taken then.
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            let guest = SocketAddr::new(self.addresses.guest.into(), inside);
            let remote = self.visible(peer, guest, |nat, key| nat.tcp_by_key.contains_key(&key));
            let (Some(remote), true) = (remote, self.tcp.len() < MAX_TCP) else {
                log::warn!("the guest has {MAX_TCP} connections and gets no more");
                continue;
            };
            let token = self.token();
            let iss = self.sequence(now);
            self.insert(token, tcp::Flow::calls(Key { guest, remote }, token, OwnedFd::from(stream), iss));
        }
    }

    fn visit(&mut self, index: usize, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        self.make_scratch();
        for _ in 0..BATCH {
            let Some(Forward { listener: Listener::Udp(socket), port: inside }) =
                self.forwards.list.get(index)
            else {
                break;
            };
            let inside = *inside;
            let (count, peer) = match socket.recv_from(&mut self.scratch) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What a visitor who has left made of an answer; the next one is not concerned.
                Err(_) => continue,
            };
            let guest = SocketAddr::new(self.addresses.guest.into(), inside);
            let mut known = self.forwards.visitors.iter().filter(|(key, visitor)| {
                key.guest == guest && visitor.forward == index && visitor.peer == peer
            });
            let remote = match known.next().map(|(key, _)| key.remote) {
                Some(remote) => Some(remote),
                None if self.forwards.visitors.len() >= MAX_VISITORS => None,
                None => self.visible(peer, guest, |nat, key| {
                    nat.forwards.visitors.contains_key(&key)
                        || nat.datagrams_by_key.contains_key(&(datagram::Kind::Udp, key))
                }),
            };
            let Some(remote) = remote else { continue };
            let expires = now + IDLE;
            self.forwards.visitors.insert(Key { guest, remote }, Visitor { forward: index, peer, expires });
            self.wake_at(Some(expires));
            let data = self.scratch.get(..count).unwrap_or_default();
            datagram::deliver(self.link(), remote, guest, data, port)?;
        }
        Ok(())
    }

    /// How the guest sees a visitor: by its own address where that leads back here, else as the gateway.
    fn visible(
        &self,
        peer: SocketAddr,
        guest: SocketAddr,
        taken: impl Fn(&Self, Key) -> bool,
    ) -> Option<SocketAddr> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let is_own = peer.is_ipv4()
            && super::outside::is_reachable(peer.ip())
            && !self.addresses.is_inside(peer.ip())
            && !taken(self, Key { guest, remote: peer });
        if is_own {
            return Some(peer);
        }
        let gateway = IpAddr::V4(self.addresses.gateway);
        let first = peer.port().max(1024);
        (first..=u16::MAX)
            .chain(FIRST_PORT..first.max(FIRST_PORT))
            .map(|port| SocketAddr::new(gateway, port))
            .find(|remote| !taken(self, Key { guest, remote: *remote }))
    }
}
