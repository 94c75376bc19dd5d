//! A guest's side of the card for tests: frames in and out of a [`Rig`], and a TCP that does what it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::header::{HEADER_LEN, Header};
use super::nat::{Addresses, Config, Forward, GATEWAY_MAC, Nat};
use super::wire::{self, ETHERNET, Ethernet, Ip, Link, Mac, Tcp};
use super::{Net, RECEIVE, TRANSMIT};
use crate::testing::Rig;

const DEADLINE: Duration = Duration::from_secs(20);
/// Receive buffers of a rig, and the size of each.
const BUFFERS: usize = 100;
const BUFFER: usize = 1536;
/// The card's address.
pub(crate) const MAC: Mac = Mac([0x02, 0x53, 0x56, 0, 0, 2]);
/// Stands for the host's loopback.
pub(crate) const OUTSIDE: &str = "198.51.100.1";

/// The network of tests.
pub(crate) fn addresses() -> Addresses {
    Addresses {
        guest: [10, 0, 2, 15].into(),
        gateway: [10, 0, 2, 2].into(),
        prefix: 24,
        guest6: "fd53:5600::15".parse().unwrap(),
        gateway6: "fd53:5600::2".parse().unwrap(),
    }
}

/// A configuration where [`OUTSIDE`] is 127.0.0.1.
pub(crate) fn config(forwards: Vec<Forward>) -> Config {
    Config {
        addresses: addresses(),
        mac: MAC,
        resolv_conf: "/nonexistent".into(),
        resolvers: Vec::new(),
        names: None,
        forwards,
        aliases: vec![(OUTSIDE.parse().unwrap(), [127, 0, 0, 1].into())],
        outside: true,
    }
}

/// A received frame.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) header: Header,
    pub(crate) bytes: Vec<u8>,
}

impl Received {
    pub(crate) fn ethernet(&self) -> Ethernet {
        Ethernet::read(&self.bytes).unwrap()
    }

    pub(crate) fn ip(&self) -> Ip {
        Ip::read(&self.bytes, self.ethernet().kind, self.bytes.len()).unwrap()
    }

    /// What the IP header carries.
    pub(crate) fn body(&self) -> &[u8] {
        let ip = self.ip();
        &self.bytes[ip.at..ip.at + ip.len]
    }
}

/// A guest with a card.
pub(crate) struct Guest {
    pub(crate) rig: Rig,
    posted: usize,
}

impl Guest {
    pub(crate) fn new(config: Config) -> Self {
        Self::with(config, u64::MAX)
    }

    pub(crate) fn with(config: Config, features: u64) -> Self {
        Self::on(Net::new(MAC, Box::new(Nat::new(config))), features)
    }

    /// A guest with this card.
    pub(crate) fn on(card: Net, features: u64) -> Self {
        Self::in_rig(Rig::new(Box::new(card)), features)
    }

    /// A guest with the card of this rig.
    pub(crate) fn in_rig(mut rig: Rig, features: u64) -> Self {
        rig.init(features);
        let mut guest = Self { rig, posted: 0 };
        guest.post(BUFFERS);
        guest
    }

    /// Gives the card receive buffers, up to this many.
    pub(crate) fn post(&mut self, count: usize) {
        while self.posted < count {
            self.rig.add(RECEIVE, &[], &[BUFFER]);
            self.posted += 1;
        }
    }

    /// Sends a frame. A card whose thread gets no turn has a full ring for a while.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let start = Instant::now();
        loop {
            let edges = self.rig.line().edges();
            while self.rig.used(TRANSMIT).is_some() {}
            if self.rig.try_add(TRANSMIT, &[&[0; HEADER_LEN], frame], &[]).is_some() {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "no frame was taken");
            self.rig.wait(edges);
        }
        while self.rig.used(TRANSMIT).is_some() {}
    }

    /// A frame, if there is one.
    pub(crate) fn poll(&mut self) -> Option<Received> {
        let first = self.rig.used(RECEIVE)?;
        let mut bytes = first.data[..first.len as usize].to_vec();
        let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
        for _ in 1..header.num_buffers {
            let more = self.rig.used(RECEIVE).expect("all buffers of a frame come at once");
            bytes.extend(&more.data[..more.len as usize]);
        }
        self.posted -= usize::from(header.num_buffers);
        let bytes = bytes.split_off(HEADER_LEN);
        Some(Received { header, bytes })
    }

    /// The next frame; buffers are given back at once.
    pub(crate) fn receive(&mut self) -> Received {
        let start = Instant::now();
        loop {
            let edges = self.rig.line().edges();
            if let Some(frame) = self.poll() {
                self.post(BUFFERS);
                return frame;
            }
            assert!(start.elapsed() < DEADLINE, "no frame came");
            self.rig.wait(edges);
        }
    }

    pub(crate) fn link() -> Link {
        Link { dst: GATEWAY_MAC, src: MAC }
    }

    pub(crate) fn send_udp(&mut self, src: SocketAddr, dst: SocketAddr, data: &[u8]) {
        let mut frame = Vec::new();
        let (start, offset) = Self::link().udp(&mut frame, src, dst, data.len());
        wire::finish(&mut frame, [data, &[]], start.into(), offset.into());
        frame.extend(data);
        self.send(&frame);
    }

    pub(crate) fn send_icmp(&mut self, src: IpAddr, dst: IpAddr, message: &[u8]) {
        let frame = Self::link().icmp(src, dst, message);
        self.send(&frame);
    }
}

/// One TCP connection of the guest.
pub(crate) struct Socket {
    pub(crate) link: Link,
    pub(crate) me: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
}

impl Socket {
    pub(crate) fn new(port: u16, peer: &str) -> Self {
        let me = SocketAddr::new(addresses().guest.into(), port);
        Self { link: Guest::link(), me, peer: peer.parse().unwrap(), seq: 1000, ack: 0, window: 60_000 }
    }

    /// Sends a segment; what it takes of the numbers is counted.
    pub(crate) fn send(&mut self, guest: &mut Guest, flags: u8, data: &[u8]) {
        let syn = flags & wire::SYN != 0;
        let tcp = Tcp {
            src: self.me.port(),
            dst: self.peer.port(),
            seq: self.seq,
            ack: self.ack,
            flags,
            window: self.window,
            mss: syn.then_some(1460),
            scale: syn.then_some(4),
            ..Tcp::default()
        };
        let mut frame = Vec::new();
        let (start, offset) = self.link.tcp(&mut frame, (self.me, self.peer), &tcp, data.len());
        wire::finish(&mut frame, [data, &[]], start.into(), offset.into());
        frame.extend(data);
        guest.send(&frame);
        let taken = data.len() as u32 + u32::from(syn) + u32::from(flags & wire::FIN != 0);
        self.seq = self.seq.wrapping_add(taken);
    }

    /// The next segment of this connection, with its payload; nothing is counted.
    pub(crate) fn receive(&self, guest: &mut Guest) -> (Tcp, Vec<u8>) {
        let frame = guest.receive();
        let ip = frame.ip();
        assert_eq!((ip.protocol, ip.src, ip.dst), (wire::TCP, self.peer.ip(), self.me.ip()));
        let body = frame.body();
        let tcp = Tcp::read(body).unwrap();
        assert_eq!((tcp.src, tcp.dst), (self.peer.port(), self.me.port()));
        (tcp, body[tcp.len..].to_vec())
    }

    /// The handshake of a call by the guest.
    pub(crate) fn connect(&mut self, guest: &mut Guest) {
        self.send(guest, wire::SYN, &[]);
        let (answer, _) = self.receive(guest);
        assert_eq!((answer.flags, answer.ack), (wire::SYN | wire::ACK, self.seq));
        self.ack = answer.seq.wrapping_add(1);
        self.send(guest, wire::ACK, &[]);
    }

    /// Reads and acknowledges until `len` bytes or the end have come; the second says which.
    pub(crate) fn read(&mut self, guest: &mut Guest, len: usize) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        while all.len() < len {
            let (tcp, data) = self.receive(guest);
            assert_eq!(tcp.flags & wire::RST, 0, "the connection was reset");
            let fin = tcp.flags & wire::FIN != 0;
            if tcp.seq == self.ack {
                self.ack = self.ack.wrapping_add(data.len() as u32 + u32::from(fin));
                all.extend(&data);
            }
            if !data.is_empty() || fin {
                self.send(guest, wire::ACK, &[]);
            }
            if fin {
                return (all, true);
            }
        }
        (all, false)
    }
}

/// A frame of nothing but an Ethernet header.
pub(crate) fn bare(dst: Mac, kind: u16) -> Vec<u8> {
    let mut frame = [dst.0, MAC.0].concat();
    frame.extend(kind.to_be_bytes());
    assert_eq!(frame.len(), ETHERNET);
    frame
}
