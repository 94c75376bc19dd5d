//! Any frames to the network, for the fuzz target and the replay of its corpus. Nothing leaves this host: whatever
//! address and port a frame names are replaced by those of a listener of the run, or by ones that are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::nat::{Addresses, Config, Forward, GATEWAY_MAC, Listener, Nat};
use super::trunk::{Trunk, Wire};
use super::wire::{Mac, Tcp};
use super::{Net, RECEIVE, TRANSMIT};
use crate::testing::Rig;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// The guest's on a second network, that comes and goes.
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 3]);
/// Stands for this host's loopback.
const OUTSIDE: [u8; 4] = [198, 51, 100, 1];

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
}

/// Points a frame at something that may be reached.
fn tame(frame: &mut [u8], choice: u8, tcp: u16, udp: u16) {
    let v4 = [OUTSIDE, [10, 0, 2, 2], [127, 0, 0, 1], [10, 0, 2, 99]][usize::from(choice % 4)];
    let v6: [u8; 16] = [
        "fd00::2".parse::<std::net::Ipv6Addr>().unwrap(),
        "::ffff:127.0.0.1".parse().unwrap(),
        "fe80::1".parse().unwrap(),
        "fd00::99".parse().unwrap(),
    ][usize::from(choice % 4)]
    .octets();
    let (at, protocol) = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() >= 34 => {
            frame[30..34].copy_from_slice(&v4);
            (14 + usize::from(frame[14] & 15) * 4, frame[23])
        }
        Some([0x86, 0xdd]) if frame.len() >= 54 => {
            frame[38..54].copy_from_slice(&v6);
            (54, frame[20])
        }
        _ => return,
    };
    let port = if protocol == 6 { tcp } else { udp };
    if choice.is_multiple_of(4) && frame.len() >= at + 4 {
        frame[at + 2..at + 4].copy_from_slice(&port.to_be_bytes());
    }
    if protocol == 1 && choice.is_multiple_of(4) {
        // No echo leaves either.
        frame[33] = 0;
        frame[30] = 127;
    }
}

/// A network of the guest, with the same addresses for each.
fn wire(mac: Mac, forwards: Vec<Forward>) -> Wire {
    let config = Config {
        addresses: Addresses {
            guest: [10, 0, 2, 15].into(),
            gateway: [10, 0, 2, 2].into(),
            prefix: 24,
            guest6: "fd00::15".parse().unwrap(),
            gateway6: "fd00::2".parse().unwrap(),
        },
        mac,
        resolv_conf: "/nonexistent".into(),
        resolvers: Vec::new(),
        names: None,
        forwards,
        aliases: vec![(OUTSIDE.into(), Ipv4Addr::LOCALHOST.into())],
        outside: true,
    };
    Wire { mac, backend: Box::new(Nat::new(config)) }
}

/// Runs the network on these bytes.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz(data: &[u8]) {
    let mut input = Input(data);
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let published = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let visited = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_nonblocking(true).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let udp = datagrams.local_addr().unwrap().port();
    let (inward, visit) = (published.local_addr().unwrap(), visited.local_addr().unwrap());
    let forwards = vec![
        Forward { listener: Listener::Tcp(published), port: 80 },
        Forward { listener: Listener::Udp(visited), port: 53 },
    ];
    let (trunk, plug) = Trunk::new(Some(wire(MAC, forwards))).unwrap();
    let mut rig = Rig::new(Box::new(Net::new(MAC, Box::new(trunk))));
    rig.init(if input.byte() & 1 == 0 { u64::MAX } else { u64::from(input.word()) << 8 });
    let mut streams: Vec<TcpStream> = Vec::new();
    // As the guest's end of a connection would have them.
    let (mut seq, mut ack) = (1000_u32, 0_u32);
    let mut link = super::wire::Link { dst: GATEWAY_MAC, src: MAC };
    let mut other = SECOND;
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        let mut frame = Vec::new();
        match input.byte() % 8 {
            0 => {
                let len = usize::from(input.byte());
                let choice = input.byte();
                frame.extend(GATEWAY_MAC.0);
                frame.extend(if choice & 0x40 == 0 { MAC.0 } else { SECOND.0 });
                frame.extend([[8, 0], [8, 6], [0x86, 0xdd], [9, 9]][usize::from(choice >> 4) % 4]);
                frame.extend(input.bytes(len));
                tame(&mut frame, choice, port, udp);
            }
            1 | 2 => {
                let (flags, choice, skew) = (input.byte() & 31, input.byte(), input.byte());
                let len = usize::from(input.word() % 4000);
                let wanted = [port, 80, 53, 9][usize::from(choice) % 4];
                let remote = if choice & 4 == 0 { OUTSIDE } else { [10, 0, 2, 2] };
                if remote == OUTSIDE && wanted != port {
                    continue;
                }
                let tcp = Tcp {
                    src: if choice & 8 == 0 { 4000 } else { 80 },
                    dst: if choice & 16 == 0 { wanted } else { inward.port() },
                    seq: seq.wrapping_add(u32::from(skew & 15)).wrapping_sub(4),
                    ack: ack.wrapping_add(u32::from(skew >> 4)),
                    flags,
                    window: input.word(),
                    mss: (choice & 32 == 0).then_some(u16::from(skew) * 200),
                    scale: (choice & 64 == 0).then_some(skew),
                    len: 0,
                };
                if remote == OUTSIDE && tcp.dst != port {
                    continue;
                }
                let ends =
                    ((Ipv4Addr::new(10, 0, 2, 15), tcp.src).into(), (Ipv4Addr::from(remote), tcp.dst).into());
                link.tcp(&mut frame, ends, &tcp, len);
                frame.resize(frame.len() + len, 7);
                if skew & 15 == 4 {
                    seq = seq.wrapping_add(u32::try_from(len).unwrap() + u32::from(flags & 3 != 0));
                }
            }
            3 => {
                let size = 12 + usize::from(input.word() % 3000);
                for _ in 0..input.byte() % 64 {
                    rig.try_add(RECEIVE, &[], &[size]);
                }
            }
            4 => {
                let mut more = 0;
                while let Some(used) = rig.used(RECEIVE) {
                    if more > 0 {
                        more -= 1;
                        continue;
                    }
                    assert!(used.len >= 12, "a frame of {} bytes has no header", used.len);
                    more = u16::from_le_bytes([used.data[10], used.data[11]]).saturating_sub(1);
                    // Numbers as a peer would follow them.
                    if let Some(tcp) = used.data.get(12 + 34..).and_then(Tcp::read) {
                        ack = tcp.seq.wrapping_add(u32::from(tcp.flags & 2 != 0));
                    }
                }
                assert_eq!(more, 0, "buffers of a frame are missing");
            }
            5 => {
                while let Ok((stream, _)) = server.accept() {
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
                if let Some(stream) = streams.last_mut() {
                    let len = usize::from(input.word());
                    let _ = stream.write(&vec![1; len]);
                    let _ = stream.read(&mut vec![0; len]);
                }
                if input.byte() & 3 == 0 {
                    streams.pop();
                }
            }
            6 => {
                if streams.len() < 8
                    && let Ok(stream) = TcpStream::connect(inward)
                {
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
                let _ = datagrams.send_to(b"visit", visit);
                let mut got = [0; 64];
                if let Ok((_, from)) = datagrams.recv_from(&mut got) {
                    let _ = datagrams.send_to(b"answer", from);
                }
            }
            _ => match input.byte() {
                0 => rig.init(u64::MAX),
                1 => {
                    let _ = rig.transport().turn(Duration::from_millis(1));
                }
                // Done by the card's next turn, below.
                2 => {
                    plug.order(1, Some(wire(SECOND, Vec::new())));
                }
                3 => {
                    plug.order(usize::from(input.byte() & 1), None);
                }
                // From now on it speaks by the other interface.
                4 => std::mem::swap(&mut link.src, &mut other),
                len => {
                    let mut bytes = input.bytes(usize::from(len)).to_vec();
                    if let Some(frame) = bytes.get_mut(12..) {
                        tame(frame, len, port, udp);
                    }
                    rig.try_add(TRANSMIT, &[&bytes], &[]);
                }
            },
        }
        if !frame.is_empty() {
            rig.try_add(TRANSMIT, &[&[0; 12], &frame], &[]);
        }
        while rig.used(TRANSMIT).is_some() {}
        rig.run();
        if rig.needs_reset() {
            rig.init(u64::MAX);
        }
    }
}
