//! Any frames of a guest, and any datagrams for it, on a network that is shared; for the fuzz target and the replay of its
//! corpus. Nothing leaves the directory: the network has no outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::super::header::{GSO_TCPV4, GSO_TCPV6, HEADER_LEN, Header, NEEDS_CSUM};
use super::super::nat::{self, Addresses, GATEWAY_MAC};
use super::super::wire::{Ethernet, IPV4, IPV6, Link, Mac, Tcp};
use super::super::{Net, RECEIVE, TRANSMIT};
use super::members::Directory;
use super::{Config, LONGEST, MEMBERS, Member, Switch, frame};
use crate::testing::Rig;

const GUEST: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 15), Mac([2, 0x42, 10, 0, 2, 15]));
const OTHER: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 16), Mac([2, 0x42, 10, 0, 2, 16]));
const NOBODY: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 17), Mac([2, 0x42, 10, 0, 2, 17]));

/// The IPv6 address of who has an IPv4 one.
fn six(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, address.octets()[3].into())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }
    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// One of the members, or nobody.
    fn who(&mut self, honest: (Ipv4Addr, Mac)) -> (Ipv4Addr, Mac) {
        match self.byte() % 8 {
            0 => GUEST,
            1 => NOBODY,
            2 => (Ipv4Addr::new(10, 0, 2, 2), GATEWAY_MAC),
            3 => (Ipv4Addr::BROADCAST, Mac::BROADCAST),
            4 => (OTHER.0, GUEST.1),
            _ => honest,
        }
    }

    /// A header and a frame that are nearly right.
    fn datagram(&mut self, from: (Ipv4Addr, Mac), to: (Ipv4Addr, Mac)) -> Vec<u8> {
        let (from, to) = (self.who(from), self.who(to));
        let len = usize::from(self.word() % 4000);
        let mut bytes = Vec::new();
        let link = Link { dst: to.1, src: from.1 };
        let tcp = Tcp { src: 1, dst: 2, flags: self.byte(), ..Tcp::default() };
        let is_v6 = tcp.flags & 0x80 != 0;
        let end = |who: Ipv4Addr, port| match is_v6 {
            true => (six(who), port).into(),
            false => (who, port).into(),
        };
        link.tcp(&mut bytes, (end(from.0, 1), end(to.0, 2)), &tcp, len);
        bytes.resize(bytes.len() + len, 7);
        let mut header = Header::default();
        if self.byte() & 1 == 0 {
            (header.flags, header.csum_offset, header.gso_size) = (NEEDS_CSUM, 16, 1448);
            (header.csum_start, header.gso_type) = if is_v6 { (54, GSO_TCPV6) } else { (34, GSO_TCPV4) };
        }
        let mut all = [&header.to_bytes()[..], &bytes].concat();
        for _ in 0..self.byte() % 4 {
            let at = usize::from(self.byte());
            if let Some(byte) = all.get_mut(at) {
                *byte = self.byte();
            }
        }
        let cut = usize::from(self.byte());
        all.truncate(if cut < 128 { all.len() } else { all.len().saturating_sub(cut) });
        all
    }
}

/// Runs a network on these bytes, with its files in a directory that nobody else uses.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz(data: &[u8], dir: &Path) {
    let mut input = Input(data);
    let line = |(address, mac): (Ipv4Addr, Mac)| Member {
        address,
        mac,
        address6: Some(six(address)),
        names: Vec::new(),
    };
    let list: String = [GUEST, OTHER].map(|who| format!("{}\n", line(who))).concat();
    std::fs::write(dir.join(MEMBERS), list).unwrap();
    let directory = Directory::open(dir).unwrap();
    let _ = std::fs::remove_file(directory.socket(OTHER.1));
    let other = UnixDatagram::bind(directory.socket(OTHER.1)).unwrap();
    other.set_nonblocking(true).unwrap();
    let nat = nat::Config {
        addresses: Addresses {
            guest: GUEST.0,
            gateway: [10, 0, 2, 2].into(),
            prefix: 24,
            guest6: six(GUEST.0),
            gateway6: six([10, 0, 2, 2].into()),
        },
        mac: GUEST.1,
        resolv_conf: "/nonexistent".into(),
        resolvers: Vec::new(),
        names: None,
        forwards: Vec::new(),
        aliases: Vec::new(),
        outside: false,
    };
    let switch = Switch::new(Config { nat, directory: dir.to_path_buf() }).unwrap();
    let mut rig = Rig::new(Box::new(Net::new(GUEST.1, Box::new(switch))));
    rig.init(if input.byte() & 1 == 0 { u64::MAX } else { u64::from(input.word()) << 8 });
    let towards = UnixDatagram::unbound().unwrap();
    towards.set_nonblocking(true).unwrap();
    let mut got = vec![0; LONGEST + 1];
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 | 1 => {
                let bytes = input.datagram(GUEST, OTHER);
                rig.try_add(TRANSMIT, &[&bytes], &[]);
            }
            2 => {
                let len = usize::from(input.byte());
                let mut bytes = [&[0; HEADER_LEN][..], &Mac::BROADCAST.0, &GUEST.1.0, &[8, 6]].concat();
                bytes.extend(input.bytes(len));
                rig.try_add(TRANSMIT, &[&bytes], &[]);
            }
            3 | 4 => {
                let bytes = input.datagram(OTHER, GUEST);
                let _ = towards.send_to(&bytes, directory.socket(GUEST.1));
            }
            5 => {
                let size = HEADER_LEN + usize::from(input.word() % 3000);
                for _ in 0..input.byte() % 64 {
                    rig.try_add(RECEIVE, &[], &[size]);
                }
            }
            6 => {
                while let Ok(count) = other.recv(&mut got) {
                    let frame = &got[HEADER_LEN..count];
                    let ethernet = Ethernet::read(frame).unwrap();
                    assert_eq!(ethernet.src, GUEST.1, "it speaks as itself");
                    assert!(is_of(frame, GUEST.0), "it speaks as itself");
                }
            }
            _ => {
                let _ = rig.transport().turn(Duration::ZERO);
            }
        }
        while rig.used(TRANSMIT).is_some() {}
        rig.run();
        hear(&mut rig);
        if rig.needs_reset() {
            rig.init(u64::MAX);
        }
    }
}

/// What the guest is given is from the other one or the gateway, with offloads that fit it.
fn hear(rig: &mut Rig) {
    while let Some(first) = rig.used(RECEIVE) {
        let mut bytes = first.data[..first.len as usize].to_vec();
        let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
        for _ in 1..header.num_buffers {
            let more = rig.used(RECEIVE).expect("all buffers of a frame come at once");
            bytes.extend(&more.data[..more.len as usize]);
        }
        let frame = &bytes[HEADER_LEN..];
        let ethernet = Ethernet::read(frame).unwrap();
        let is_answer = ethernet.src == GATEWAY_MAC || frame::ends(frame).is_none();
        if is_answer || ![IPV4, IPV6].contains(&ethernet.kind) {
            continue;
        }
        assert!(ethernet.src == OTHER.1 && is_of(frame, OTHER.0), "it is from a member");
        if header.flags & NEEDS_CSUM != 0 {
            let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
            assert!(end <= frame.len(), "the checksum is in the frame");
        }
        let long = if ethernet.kind == IPV4 { GSO_TCPV4 } else { GSO_TCPV6 };
        assert!(header.gso_type == 0 || (header.gso_type == long && header.gso_size >= 48));
    }
}

/// Whether a frame says that it is from this one.
fn is_of(frame: &[u8], who: Ipv4Addr) -> bool {
    frame::ends(frame).is_some_and(|(src, _)| src == IpAddr::from(who) || src == IpAddr::from(six(who)))
}
