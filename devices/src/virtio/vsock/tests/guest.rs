//! The guest's side of the device, as its kernel would play it: buffers, packets, and sockets with credit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};
use super::super::{EVENT, RX, TX};
use crate::testing::Rig;

pub(super) const CID: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> Op {
        Op::from_number(self.header.op).unwrap()
    }
}

pub(super) struct Guest {
    pub(super) rig: Rig,
    buffer_len: usize,
    arrived: VecDeque<Packet>,
}

impl Guest {
    /// A driver that is ready and keeps `buffers` receive buffers of `len` bytes in the ring.
    pub(super) fn new(rig: Rig, buffers: usize, len: usize) -> Self {
        let mut guest = Self { rig, buffer_len: len, arrived: VecDeque::new() };
        guest.start(buffers);
        guest
    }

    /// Resets the device and starts it again, as a driver that is loaded anew.
    pub(super) fn start(&mut self, buffers: usize) {
        self.rig.init(u64::MAX);
        self.arrived.clear();
        self.give_buffers(buffers);
    }

    pub(super) fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            self.rig.add(RX, &[], &[self.buffer_len]);
        }
    }

    pub(super) fn give_event_buffer(&mut self, len: usize) {
        self.rig.add(EVENT, &[], &[len]);
    }

    /// Sends a packet in as many descriptors as there are pieces.
    pub(super) fn send_pieces(&mut self, pieces: &[&[u8]]) {
        while self.rig.try_add(TX, pieces, &[]).is_none() {
            self.rig.wait_used(TX);
        }
        while self.rig.used(TX).is_some() {}
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header { len: u32::try_from(payload.len()).unwrap(), ..header }.to_bytes();
        if payload.is_empty() {
            self.send_pieces(&[&header]);
        } else {
            self.send_pieces(&[&header, payload]);
        }
    }

    /// The next packet, if one is there. Its buffer goes back into the ring when `refill` is set, but only behind all that
    /// are there: whoever took what comes into buffers just given would answer nobody until all had said everything, and
    /// on a slow host not before the device gives up.
    pub(super) fn poll(&mut self, refill: bool) -> Option<Packet> {
        if let Some(packet) = self.arrived.pop_front() {
            return Some(packet);
        }
        let mut taken = 0;
        while let Some(used) = self.rig.used(RX) {
            let bytes = &used.data[..used.len as usize];
            let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().expect("a packet has a header");
            let packet = Packet { header: Header::from_bytes(header), payload: payload.to_vec() };
            assert_eq!(packet.header.len as usize, payload.len());
            assert_eq!((packet.header.src_cid, packet.header.dst_cid), (HOST_CID, CID));
            self.arrived.push_back(packet);
            taken += 1;
        }
        if refill {
            self.give_buffers(taken);
        }
        self.arrived.pop_front()
    }

    /// Runs the device a little, for it to see what happened on the host.
    pub(super) fn turn(&mut self) {
        // The threaded device runs by itself.
        if !self.rig.transport().turn(Duration::from_millis(1)).unwrap() {
            std::thread::yield_now();
        }
    }

    /// Runs the device until `done` gives something.
    pub(super) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(done) = done(self) {
                return done;
            }
            assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
            self.turn();
        }
    }

    pub(super) fn next(&mut self) -> Packet {
        self.until("a packet", |guest| guest.poll(true))
    }

    pub(super) fn expect(&mut self, op: Op) -> Packet {
        let packet = self.next();
        assert_eq!(packet.op(), op, "{packet:?}");
        packet
    }

    /// Nothing came, and nothing comes by running the device.
    pub(super) fn expect_silence(&mut self) {
        self.rig.run();
        assert_eq!(self.poll(true), None);
    }

    /// A socket of the guest that is connected to a port of the host.
    pub(super) fn connect(&mut self, guest_port: u32, host_port: u32) -> Sock {
        let mut sock = Sock::new(guest_port, host_port);
        self.send(sock.header(Op::Request), &[]);
        let answer = self.expect(Op::Response);
        sock.hear(&answer);
        sock
    }

    /// A socket of the guest that the host connects to: takes the request and accepts.
    pub(super) fn accept(&mut self, buf_alloc: u32) -> Sock {
        let request = self.expect(Op::Request);
        let mut sock = Sock::new(request.header.dst_port, request.header.src_port);
        sock.buf_alloc = buf_alloc;
        sock.hear(&request);
        self.send(sock.header(Op::Response), &[]);
        sock
    }

    /// Sends as much of `data` as one packet and the credit allow; returns the bytes sent.
    pub(super) fn write(&mut self, sock: &mut Sock, data: &[u8]) -> usize {
        let len = data.len().min(sock.credit() as usize).min(MAX_PAYLOAD as usize);
        if len > 0 {
            self.send(sock.header(Op::Data), &data[..len]);
            sock.sent = sock.sent.wrapping_add(len as u32);
        }
        len
    }

    pub(super) fn shutdown(&mut self, sock: &Sock, flags: u32) {
        self.send(Header { flags, ..sock.header(Op::Shutdown) }, &[]);
    }
}

/// One socket of the guest.
#[derive(Debug, Clone)]
pub(super) struct Sock {
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    pub(super) buf_alloc: u32,
    pub(super) consumed: u32,
    pub(super) sent: u32,
    host_alloc: u32,
    host_consumed: u32,
}

impl Sock {
    pub(super) fn new(guest_port: u32, host_port: u32) -> Self {
        let buf_alloc = 256 * 1024;
        Self { guest_port, host_port, buf_alloc, consumed: 0, sent: 0, host_alloc: 0, host_consumed: 0 }
    }

    pub(super) fn header(&self, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.consumed,
            ..Header::default()
        }
    }

    pub(super) fn owns(&self, packet: &Packet) -> bool {
        (packet.header.dst_port, packet.header.src_port) == (self.guest_port, self.host_port)
    }

    /// Takes in the credit of a packet.
    pub(super) fn hear(&mut self, packet: &Packet) {
        assert!(self.owns(packet), "{packet:?} is not for {self:?}");
        (self.host_alloc, self.host_consumed) = (packet.header.buf_alloc, packet.header.fwd_cnt);
    }

    pub(super) fn credit(&self) -> u32 {
        self.host_alloc - self.sent.wrapping_sub(self.host_consumed)
    }
}
