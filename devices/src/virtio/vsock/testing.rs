//! What a hostile guest may do to the socket device, from any bytes: bodies of fuzz targets.
//!
//! They panic where a promise is broken: the device panics, spins, fails the host, gives a stream a byte that was
//! not sent, or a connection takes more than its buffer or sends more than its credit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use super::conn::{Conn, State, Step};
use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};
use super::{EVENT, HostStream, Limits, RX, TX, Vsock, VsockHost};
use crate::testing::Rig;

const CID: u64 = 3;
/// Ports of the host with a listener.
const PORTS: u32 = 2;

/// One of the bodies, as the first byte says.
pub fn fuzz(data: &[u8]) {
    match data.split_first() {
        Some((0x80.., rest)) => connection(rest),
        Some((_, rest)) => packets(rest),
        None => {}
    }
}

/// The input, cut into values; zeroes behind its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u32 {
        let mut word = [0; 4];
        let bytes = self.bytes(4);
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }
}

/// A driver that does anything with the rings, and programs of the host that come and go.
pub fn packets(data: &[u8]) {
    let mut input = Input(data);
    let host = VsockHost::new().unwrap();
    let limits = Limits {
        connections: 4,
        buffer: 64 + u32::from(input.byte()) * 16,
        connect_timeout: Duration::from_secs(3600),
        close_timeout: Duration::from_secs(3600),
    };
    let mut rig = Rig::started(Box::new(Vsock::with_limits(CID, &host, limits).unwrap()));
    let listeners: Vec<_> = (0..PORTS).map(|port| host.listen(port).unwrap()).collect();
    let mut streams: Vec<HostStream> = Vec::new();
    while !input.0.is_empty() {
        let what = input.byte();
        let which = usize::from(what >> 4);
        match what % 16 {
            0 => {
                // Any bytes, cut anywhere.
                let (len, cut) = (usize::from(input.byte()), usize::from(input.byte()));
                let bytes = input.bytes(len);
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                let pieces: Vec<&[u8]> = [head, tail].into_iter().filter(|piece| !piece.is_empty()).collect();
                if !pieces.is_empty() {
                    rig.try_add(TX, &pieces, &[]);
                }
            }
            1..=5 => send(&mut rig, what, &mut input),
            6 | 7 => {
                rig.try_add(RX, &[], &[1 + usize::from(input.byte()) * 8]);
            }
            8 => streams.extend(listeners.iter().filter_map(|listener| listener.try_accept().unwrap())),
            9 => streams.extend(host.dial(input.byte().into()).ok().filter(|_| streams.len() < 8)),
            10 => {
                if let Some(mut stream) = streams.get(which) {
                    let _ = stream.write(&[0; 700][..usize::from(input.byte()) * 2]);
                }
            }
            11 => {
                if let Some(mut stream) = streams.get(which) {
                    let mut bytes = [0; 300];
                    if let Ok(len) = stream.read(&mut bytes) {
                        assert!(bytes[..len].iter().all(|&byte| byte == b'd'), "what was never sent");
                    }
                }
            }
            12 => {
                if which < streams.len() {
                    streams.swap_remove(which);
                }
            }
            13 => {
                if let Some(stream) = streams.get(which) {
                    let _ =
                        stream.shutdown(if input.byte() % 2 == 0 { Shutdown::Write } else { Shutdown::Read });
                }
            }
            14 => {
                rig.try_add(EVENT, &[], &[usize::from(input.byte()) % 16 + 1]);
            }
            _ => {
                if input.byte().is_multiple_of(8) {
                    rig.init(u64::MAX);
                }
            }
        }
        rig.run();
        for queue in [TX, RX, EVENT] {
            while let Some(used) = rig.used(queue) {
                check(queue, used.len as usize, &used.data);
            }
        }
        assert!(!rig.needs_reset(), "well-formed rings never need a reset");
    }
    assert!(rig.faults.lock().unwrap().is_empty());
}

/// A packet whose addresses and lengths make some sense. Data is all `d`.
fn send(rig: &mut Rig, what: u8, input: &mut Input<'_>) {
    let (ports, op, len) = (input.byte(), input.byte(), usize::from(input.byte()) * 4);
    let lie = what % 16 == 5;
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: u32::from(ports & 3),
        // A listener, nobody, or the first ports that dials get.
        dst_port: if ports & 0x80 == 0 {
            u32::from(ports >> 4 & 3)
        } else {
            (1 << 30) + u32::from(ports >> 4 & 3)
        },
        len: if lie { input.word() } else { len as u32 },
        kind: TYPE_STREAM,
        op: u16::from(if what % 16 == 1 { op } else { op % 8 }),
        flags: if lie { input.word() } else { u32::from(what >> 4) },
        buf_alloc: if what >> 4 & 1 == 0 { 4096 } else { input.word() },
        fwd_cnt: if what >> 4 & 2 == 0 { 0 } else { input.word() },
    };
    let (header, payload) = (header.to_bytes(), vec![b'd'; len]);
    if payload.is_empty() {
        rig.try_add(TX, &[&header], &[]);
    } else {
        rig.try_add(TX, &[&header, &payload], &[]);
    }
}

/// What the device gave back must be a packet (or an event) from start to end.
fn check(queue: u16, len: usize, data: &[u8]) {
    match queue {
        TX => assert_eq!(len, 0),
        EVENT => panic!("no event was due"),
        _ if len == 0 => assert!(data.len() <= HEADER_LEN, "a good buffer came back empty"),
        _ => {
            let (header, payload) = data[..len].split_first_chunk().expect("a packet has a header");
            let header = Header::from_bytes(header);
            let op = Op::from_number(header.op).expect("a known operation");
            assert_eq!(header.len as usize, payload.len());
            assert!(payload.iter().all(|&byte| byte == 0));
            assert!(op == Op::Data || payload.is_empty());
            assert!(op == Op::Reset || (header.src_cid, header.dst_cid) == (HOST_CID, CID));
        }
    }
}

/// One connection: any packets, any host.
pub fn connection(data: &[u8]) {
    let mut input = Input(data);
    let alloc = 1 + input.word() % (2 * MAX_PAYLOAD);
    let mut greatest = input.word();
    let request = Header { buf_alloc: greatest, ..Header::default() };
    let dialed = input.byte().is_multiple_of(2);
    let mut conn = if dialed { Conn::dialed(alloc) } else { Conn::accepted(alloc, &request) };
    let (mut sent, mut confirmed) = (0_u64, 0_u64);
    let (mut received, mut taken) = (0_u64, 0_u64);
    while !input.0.is_empty() && conn.state() != State::Over && !conn.is_finished() {
        let what = input.byte();
        match what % 8 {
            0..=2 => {
                let progress = if what & 0x10 == 0 { 0 } else { input.word() };
                let honest = u64::from(progress).min(sent - confirmed);
                // Sometimes a count that cannot be.
                let fwd_cnt = if what & 0x20 == 0 { (confirmed + honest) as u32 } else { progress };
                let packet = Header {
                    op: u16::from(what >> 6 | input.byte() & 4),
                    len: input.word() % (alloc + 2),
                    flags: input.byte().into(),
                    buf_alloc: input.word(),
                    fwd_cnt,
                    ..Header::default()
                };
                greatest = greatest.max(packet.buf_alloc);
                match conn.receive(&packet) {
                    Step::Data(len) => received += u64::from(len),
                    Step::Nothing if packet.op == Op::Data as u16 => (received, taken) = (0, 0),
                    Step::Reset { .. } | Step::Violation(_) => assert_eq!(conn.state(), State::Over),
                    _ => {}
                }
                // What the guest can at most have confirmed by this.
                let way = u64::from((sent as u32).wrapping_sub(fwd_cnt));
                if way <= sent - confirmed {
                    confirmed = sent - way;
                }
            }
            3 => {
                let count = input.word().min(conn.buffered());
                conn.taken(count);
                taken += u64::from(count);
            }
            4 => conn.host_done_sending(),
            5 => {
                conn.host_done_receiving();
                (received, taken) = (0, 0);
            }
            6 => {
                conn.starve();
                let packet = conn.next_packet();
                assert!(packet.is_none_or(|packet| packet.buf_alloc == alloc && packet.len == 0));
            }
            _ => {
                let len = conn.sendable().min(input.word());
                assert!(conn.state() == State::Open || len == 0);
                if len > 0 {
                    conn.data(len);
                    sent += u64::from(len);
                    assert!(
                        sent - confirmed <= u64::from(greatest),
                        "more on the way than the guest allowed"
                    );
                }
            }
        }
        assert!(conn.buffered() <= alloc);
        assert!(conn.sendable() <= MAX_PAYLOAD);
        if conn.state() != State::Over {
            assert_eq!(u64::from(conn.buffered()), received - taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same on every run; the fuzz targets look further.
    #[test]
    fn noise_keeps_every_promise() {
        let mut noise = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..3000 {
            let bytes: Vec<u8> = (0..40 + round % 200)
                .map(|_| {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    (noise >> 32) as u8
                })
                .collect();
            connection(&bytes);
            if round % 15 == 0 {
                packets(&bytes);
            }
            if round % 100 == 0 {
                fuzz(&bytes);
            }
        }
    }
}
