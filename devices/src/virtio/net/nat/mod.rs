//! User-mode network: the guest behind a gateway that speaks for it with sockets of this process, without privileges.
//!
//! ```text
//! guest ── Ethernet ── gateway (ARP, neighbour discovery, echo, DNS) ── sockets of the host
//!                        TCP: one socket a connection      UDP, ping: one socket a pair of ends
//!                        published ports: sockets that the caller bound
//! ```
//!
//! The guest reaches what the host's sockets reach, with three exceptions: the host's loopback (by no address, the
//! gateway's least of all), its own network, and groups. Nothing is opened before the guest first asks for it.
//!
//! Left out: fragments (the guest's datagrams have to fit its MTU), and IPv6 extension headers.

mod datagram;
mod forward;
mod outside;
mod resolver;
mod tcp;

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;

pub use forward::{Forward, Listener};
pub use resolver::Names;

use super::super::{Error, Reader};
use super::wire::{self, ETHERNET, Ethernet, Ip, Link, Mac, Tcp};
use super::{Backend, Delivery, Frame, Offloads, Outgoing, Port};
use crate::event::{Ready, Timer, Token};
use crate::os;
use datagram::Kind;
use forward::Forwards;
use resolver::Resolvers;
use tcp::{Context, Fate, Key};

/// The gateway's address on every wire.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0x53, 0x56, 0, 0, 1]);

const TIMER: Token = 0;
/// Forwards have the tokens from here, connections those above.
const FORWARDS: Token = 1;
const FLOWS: Token = 0x1_0000;
const LAST_FLOW: Token = 0x07ff_ffff;

/// It makes the frames of its connections anew.
pub(super) const OFFLOADS: Offloads = Offloads { takes_unfinished: true, takes_long: true };

/// Connections of a guest, at most.
const MAX_TCP: usize = 512;
const MAX_DATAGRAMS: usize = 256;
/// Bytes that are kept for all connections together before no more are taken.
const MAX_KEPT: usize = 64 << 20;
/// Answers of the gateway that wait for room.
const MAX_OUTBOX: usize = 64;
/// How long a pair of ends without traffic is known.
const IDLE: Duration = Duration::from_secs(120);
const IDLE_DNS: Duration = Duration::from_secs(10);
/// The most that is looked at of a frame's headers.
const HEAD: usize = 192;
const DNS: u16 = 53;

/// The network as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's.
    pub guest: Ipv4Addr,
    /// The gateway's, where the resolver answers too.
    pub gateway: Ipv4Addr,
    /// Bits of the network in both.
    pub prefix: u8,
    /// The same for IPv6, with a network of 64 bits.
    pub guest6: Ipv6Addr,
    /// The gateway's.
    pub gateway6: Ipv6Addr,
}

impl Addresses {
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        address == self.gateway || address == self.gateway6
    }

    #[cfg(unix)]
    pub(super) fn is_guest(&self, address: IpAddr) -> bool {
        address == self.guest || address == self.guest6
    }

    pub(super) fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                (address.to_bits() ^ self.guest.to_bits()) & mask == 0
            }
            IpAddr::V6(address) => (address.to_bits() ^ self.guest6.to_bits()) >> 64 == 0,
        }
    }
}

/// What a [`Nat`] is made from.
pub struct Config {
    /// The network.
    pub addresses: Addresses,
    /// The guest's address on the wire, until it says another.
    pub mac: Mac,
    /// The host's list of resolvers, looked at when the guest first asks. Empty: what the system says without a file, on
    /// Windows those of its adapters.
    pub resolv_conf: PathBuf,
    /// Resolvers instead of those.
    pub resolvers: Vec<IpAddr>,
    /// Names that are answered by the gateway.
    pub names: Option<Box<dyn Names>>,
    /// Published ports.
    pub forwards: Vec<Forward>,
    /// Addresses that stand for others, which the guest may then reach whatever they are: the first is the guest's name
    /// for the second.
    pub aliases: Vec<(IpAddr, IpAddr)>,
    /// There is more than the guest's network; without, nothing is reached through the gateway, and no resolver asked.
    pub outside: bool,
}

/// See the module's description.
pub struct Nat {
    addresses: Addresses,
    mac: Mac,
    resolvers: Resolvers,
    names: Option<Box<dyn Names>>,
    aliases: Vec<(IpAddr, IpAddr)>,
    outside: bool,
    forwards: Forwards,
    tcp: HashMap<Token, tcp::Flow>,
    tcp_by_key: HashMap<Key, Token>,
    datagrams: HashMap<Token, datagram::Flow>,
    datagrams_by_key: HashMap<(Kind, Key), Token>,
    next: Token,
    /// Connections to be pumped at the end of the call, or when there is room.
    due: Vec<Token>,
    outbox: VecDeque<Vec<u8>>,
    kept: usize,
    timer: Option<Timer>,
    /// When something is to be done, and what the timer is set to.
    alarm: Option<Instant>,
    armed: Option<Instant>,
    began: Instant,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Nat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nat")
            .field("tcp", &self.tcp.len())
            .field("datagrams", &self.datagrams.len())
            .finish_non_exhaustive()
    }
}

impl Nat {
    /// A network with no connection yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let Config { addresses, mac, resolv_conf, resolvers, names, forwards, aliases, outside } = config;
        Self {
            addresses,
            mac,
            resolvers: Resolvers::new(resolv_conf, resolvers),
            names,
            aliases,
            outside,
            forwards: Forwards::new(forwards),
            tcp: HashMap::new(),
            tcp_by_key: HashMap::new(),
            datagrams: HashMap::new(),
            datagrams_by_key: HashMap::new(),
            next: FLOWS,
            due: Vec::new(),
            outbox: VecDeque::new(),
            kept: 0,
            timer: None,
            alarm: None,
            armed: None,
            began: Instant::now(),
            scratch: Vec::new(),
        }
    }

    /// The wire towards the guest.
    fn link(&self) -> Link {
        Link { dst: self.mac, src: GATEWAY_MAC }
    }

    fn say(&mut self, frame: Vec<u8>) {
        if self.outbox.len() < MAX_OUTBOX {
            self.outbox.push_back(frame);
        }
    }

    fn token(&mut self) -> Token {
        loop {
            let token = self.next;
            self.next = if token == LAST_FLOW { FLOWS } else { token + 1 };
            if !self.tcp.contains_key(&token) && !self.datagrams.contains_key(&token) {
                return token;
            }
        }
    }

    /// Room for whatever a socket gives at once, made when it is first needed.
    fn make_scratch(&mut self) {
        if self.scratch.is_empty() {
            self.scratch = vec![0; 65_536];
        }
    }

    fn arp(&mut self, head: &[u8]) {
        if let Some((asker, ip)) = wire::arp_request(head)
            && ip == self.addresses.gateway
        {
            let reply = self.link().arp_reply(ip, asker);
            self.say(reply);
        }
    }

    fn tcp(&mut self, ip: &Ip, head: &[u8], mut data: Reader<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let Some(tcp) = head.get(ip.at..).and_then(Tcp::read).filter(|tcp| tcp.len <= ip.len) else {
            return Ok(());
        };
        let len = ip.len - tcp.len;
        let key = Key { guest: SocketAddr::new(ip.src, tcp.src), remote: SocketAddr::new(ip.dst, tcp.dst) };
        let is_new = tcp.flags & (wire::SYN | wire::ACK | wire::RST) == wire::SYN;
        let known = self.tcp_by_key.get(&key).copied();
        if let Some((token, flow)) = known.and_then(|token| Some((token, self.tcp.get_mut(&token)?))) {
            data.skip(ip.at + tcp.len);
            let before = flow.kept();
            let fate = flow.on_segment(&tcp, &mut data, len, self.kept > MAX_KEPT);
            self.kept = (self.kept + flow.kept()).saturating_sub(before);
            if fate == Fate::Lives {
                if !std::mem::replace(&mut flow.is_due, true) {
                    self.due.push(token);
                }
                return Ok(());
            }
            self.judge(token, fate, port);
            return Ok(());
        }
        if is_new {
            self.open(key, &tcp);
            return Ok(());
        }
        if tcp.flags & wire::RST == 0 {
            self.reset(key, &tcp, len);
        }
        Ok(())
    }

    /// Answers a segment of a connection that is not there (RFC 9293, 3.5.2).
    fn reset(&mut self, key: Key, tcp: &Tcp, len: usize) {
        let more = u32::from(tcp.flags & wire::SYN != 0) + u32::from(tcp.flags & wire::FIN != 0);
        let next = tcp.seq.wrapping_add(u32::try_from(len).unwrap_or(0)).wrapping_add(more);
        let reset = if tcp.flags & wire::ACK != 0 {
            Tcp { seq: tcp.ack, flags: wire::RST, ..Tcp::default() }
        } else {
            Tcp { ack: next, flags: wire::RST | wire::ACK, ..Tcp::default() }
        };
        self.say_tcp(key, &reset);
    }

    fn say_tcp(&mut self, key: Key, tcp: &Tcp) {
        let mut frame = Vec::with_capacity(80);
        let tcp = Tcp { src: key.remote.port(), dst: key.guest.port(), ..*tcp };
        let (start, offset) = self.link().tcp(&mut frame, (key.remote, key.guest), &tcp, 0);
        wire::finish(&mut frame, [&[], &[]], start.into(), offset.into());
        self.say(frame);
    }

    /// The guest calls.
    fn open(&mut self, key: Key, syn: &Tcp) {
        let now = Instant::now();
        if self.tcp.len() >= MAX_TCP {
            log::warn!("the guest has {MAX_TCP} connections and gets no more");
            return self.reset(key, syn, 0);
        }
        let socket = self.target(key.remote, now).and_then(outside::connect);
        match socket {
            Ok(socket) => {
                let token = self.token();
                let flow = tcp::Flow::called(key, token, socket, syn, self.sequence(now));
                self.insert(token, flow);
            }
            Err(errno) => self.refuse(key, syn, errno),
        }
    }

    fn insert(&mut self, token: Token, mut flow: tcp::Flow) {
        flow.is_due = true;
        self.due.push(token);
        self.tcp_by_key.insert(flow.key, token);
        self.tcp.insert(token, flow);
    }

    /// First numbers of connections grow with time, so that one that takes the place of another is told apart.
    fn sequence(&self, now: Instant) -> u32 {
        (now.saturating_duration_since(self.began).as_micros() / 4) as u32
    }

    /// Where a connection to `remote` really goes.
    fn target(&mut self, remote: SocketAddr, now: Instant) -> Result<SocketAddr, Errno> {
        if !self.outside {
            let is_gateway = self.addresses.is_gateway(remote.ip());
            return Err(if is_gateway { Errno::CONNREFUSED } else { Errno::NETUNREACH });
        }
        if self.addresses.is_gateway(remote.ip()) {
            if remote.port() != DNS {
                return Err(Errno::CONNREFUSED);
            }
            return match self.resolvers.current(now) {
                Some(server) => Ok(SocketAddr::new(server, DNS)),
                None => Err(Errno::HOSTUNREACH),
            };
        }
        if let Some((_, real)) = self.aliases.iter().find(|(alias, _)| *alias == remote.ip()) {
            return Ok(SocketAddr::new(*real, remote.port()));
        }
        if self.addresses.is_inside(remote.ip()) || !outside::is_reachable(remote.ip()) {
            return Err(Errno::HOSTUNREACH);
        }
        Ok(remote)
    }

    /// The guest's call came to nothing.
    fn refuse(&mut self, key: Key, syn: &Tcp, errno: Errno) {
        if errno == Errno::CONNREFUSED {
            return self.reset(key, &Tcp { flags: wire::SYN, ..*syn }, 0);
        }
        let first = [key.guest.port().to_be_bytes(), key.remote.port().to_be_bytes()].concat();
        let first: Vec<u8> = first.into_iter().chain(syn.seq.to_be_bytes()).collect();
        self.unreachable(key, wire::TCP, &first, errno);
    }

    /// Tells the guest that what it sent went nowhere, by ICMP. `first` are the first eight bytes of the transport header.
    fn unreachable(&mut self, key: Key, protocol: u8, first: &[u8], errno: Errno) {
        let (guest, remote) = (key.guest.ip(), key.remote.ip());
        let from: IpAddr =
            if guest.is_ipv4() { self.addresses.gateway.into() } else { self.addresses.gateway6.into() };
        let kind = match (guest.is_ipv4(), errno) {
            (true, errno) if os::is_closed_port(errno) => [3, 3],
            (true, errno) if os::is_forbidden(errno) => [3, 13],
            (true, Errno::NETUNREACH) => [3, 0],
            (true, _) => [3, 1],
            (false, errno) if os::is_closed_port(errno) => [1, 4],
            (false, errno) if os::is_forbidden(errno) => [1, 1],
            (false, Errno::NETUNREACH) => [1, 0],
            (false, _) => [1, 3],
        };
        let mut message = vec![0; 8];
        if let Some(place) = message.get_mut(..2) {
            place.copy_from_slice(&kind);
        }
        let mut original = Vec::new();
        self.link().ip(&mut original, guest, remote, protocol, first.len());
        message.extend(original.get(ETHERNET..).unwrap_or_default());
        message.extend(first);
        let frame = self.link().icmp(from, guest, &message);
        self.say(frame);
    }

    /// What becomes of a connection.
    fn judge(&mut self, token: Token, fate: Fate, port: &mut Port<'_>) {
        match fate {
            Fate::Lives | Fate::Waits => return,
            Fate::Over => {}
            Fate::Reset => {
                if let Some((key, reset)) = self.tcp.get(&token).map(|flow| (flow.key, flow.reset())) {
                    self.say_tcp(key, &reset);
                }
            }
            Fate::Refused(errno) => {
                if let Some((key, syn)) = self.tcp.get(&token).map(|flow| (flow.key, flow.syn())) {
                    self.refuse(key, &syn, errno);
                    if self.addresses.is_gateway(key.remote.ip())
                        && let Some(server) = self.resolvers.current(Instant::now())
                    {
                        self.resolvers.failed(server);
                    }
                }
            }
        }
        if let Some(flow) = self.tcp.remove(&token) {
            self.kept = self.kept.saturating_sub(flow.kept());
            if self.tcp_by_key.get(&flow.key) == Some(&token) {
                self.tcp_by_key.remove(&flow.key);
            }
            flow.close(port);
        }
    }

    /// Pumps the connections that have something to do, those that wait for room among them.
    fn pump(&mut self, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        if self.due.is_empty() {
            return Ok(());
        }
        self.make_scratch();
        for token in std::mem::take(&mut self.due) {
            let link = self.link();
            let Some(flow) = self.tcp.get_mut(&token) else { continue };
            flow.is_due = false;
            let before = flow.kept();
            let mut cx =
                Context { link, port, scratch: &mut self.scratch, now, is_full: self.kept > MAX_KEPT };
            let fate = flow.pump(&mut cx)?;
            self.kept = (self.kept + flow.kept()).saturating_sub(before);
            if fate == Fate::Waits {
                flow.is_due = true;
                self.due.push(token);
            }
            let deadline = flow.deadline;
            self.wake_at(deadline);
            self.judge(token, fate, port);
        }
        Ok(())
    }

    fn wake_at(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && self.alarm.is_none_or(|alarm| deadline < alarm)
        {
            self.alarm = Some(deadline);
        }
    }

    /// Sets the timer, if what it waits for has changed.
    fn set_timer(&mut self, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        if self.alarm == self.armed {
            return Ok(());
        }
        let fail = |source| Error::Host { doing: "setting the timer of the network", source };
        let timer = match &self.timer {
            Some(timer) => timer,
            None => {
                let timer = Timer::new().map_err(fail)?;
                port.watch(timer.source(), TIMER, Ready::READ).map_err(fail)?;
                self.timer.insert(timer)
            }
        };
        self.armed = self.alarm;
        timer.set(self.alarm.map(|at| at.saturating_duration_since(now))).map_err(fail)
    }

    fn on_timer(&mut self, now: Instant, port: &mut Port<'_>) -> Result<(), Error> {
        if let Some(timer) = &self.timer {
            timer.take();
        }
        (self.alarm, self.armed) = (None, None);
        let late: Vec<Token> = self
            .tcp
            .iter()
            .filter(|(_, flow)| flow.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            let Some(flow) = self.tcp.get_mut(&token) else { continue };
            let fate = flow.on_deadline();
            if !std::mem::replace(&mut flow.is_due, true) {
                self.due.push(token);
            }
            self.judge(token, fate, port);
        }
        self.expire(now, port);
        self.forwards.on_timer(now, port)?;
        let next = self
            .tcp
            .values()
            .filter_map(|flow| flow.deadline)
            .chain(self.datagrams.values().map(|flow| flow.expires))
            .chain(self.forwards.deadline())
            .min();
        self.wake_at(next);
        Ok(())
    }
}

impl Backend for Nat {
    fn offloads(&self) -> Offloads {
        OFFLOADS
    }

    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.forwards.watch(FORWARDS, port)
    }

    fn transmit(&mut self, frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let total = frame.data.len();
        let mut head = [0; HEAD];
        // Guest memory that was checked gives all that is there.
        let count = frame.data.clone().read(&mut head).unwrap_or(0);
        let head = head.get(..count).unwrap_or_default();
        let Some(ethernet) = Ethernet::read(head) else { return Ok(()) };
        if !ethernet.src.is_group() {
            self.mac = ethernet.src;
        }
        if ethernet.dst != GATEWAY_MAC && !ethernet.dst.is_group() {
            return Ok(());
        }
        match ethernet.kind {
            wire::ARP => {
                self.arp(head);
                Ok(())
            }
            wire::IPV4 | wire::IPV6 => {
                let Some(ip) = Ip::read(head, ethernet.kind, total) else { return Ok(()) };
                match ip.protocol {
                    wire::TCP => self.tcp(&ip, head, frame.data, port),
                    wire::UDP => self.udp(&ip, head, frame.data, port),
                    wire::ICMP if ip.src.is_ipv4() => self.icmp(&ip, frame.data, port),
                    wire::ICMPV6 if ip.src.is_ipv6() => self.icmp(&ip, frame.data, port),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        if self.due.is_empty() && self.outbox.is_empty() && self.alarm == self.armed {
            return Ok(());
        }
        let now = Instant::now();
        self.pump(now, port)?;
        while let Some(frame) = self.outbox.pop_front() {
            if port.deliver(&Outgoing { head: &frame, ..Outgoing::default() })? == Delivery::NoRoom {
                self.outbox.push_front(frame);
                break;
            }
        }
        self.set_timer(now, port)
    }

    fn on_host(&mut self, token: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        let now = Instant::now();
        if token == TIMER {
            return self.on_timer(now, port);
        }
        if token < FLOWS {
            return self.on_forward(token - FORWARDS, now, port);
        }
        if let Some(flow) = self.tcp.get_mut(&token) {
            let fate = flow.on_host(ready);
            if !std::mem::replace(&mut flow.is_due, true) {
                self.due.push(token);
            }
            self.judge(token, fate, port);
            return Ok(());
        }
        self.on_datagrams(token, now, port)
    }

    fn stop(&mut self, port: &mut Port<'_>) {
        for (_, flow) in self.tcp.drain() {
            flow.abort();
            flow.close(port);
        }
        for (_, flow) in self.datagrams.drain() {
            flow.close(port);
        }
        self.tcp_by_key.clear();
        self.datagrams_by_key.clear();
        self.due.clear();
        self.outbox.clear();
        self.kept = 0;
        (self.alarm, self.armed) = (None, None);
        self.forwards.unwatch(port);
        if let Some(timer) = self.timer.take() {
            port.unwatch(timer.source());
        }
    }
}

#[cfg(test)]
mod tests;
