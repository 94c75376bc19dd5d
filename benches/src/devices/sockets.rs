//! A socket between guest and host: one stream, 64 KiB packets from the guest, credit and all.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use servin_devices::testing::Rig;
use servin_devices::virtio::vsock::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use servin_devices::virtio::vsock::{Vsock, VsockHost};

use super::Rate;

const CID: u64 = 3;
const PORT: u32 = 1024;
const PACKET: u32 = 60 << 10;
const RX: u16 = 0;
const TX: u16 = 1;

/// Packets in a second from a guest's stream to a reader on the host.
///
/// # Errors
/// If the host refuses a socket, or the device the connection.
pub fn sockets(time: Duration) -> io::Result<Vec<Rate>> {
    let host = VsockHost::new()?;
    let listener = host.listen(PORT)?;
    let mut rig = Rig::threaded(Box::new(Vsock::new(CID, &host)?));
    rig.init(u64::MAX);
    for _ in 0..32 {
        rig.add(RX, &[], &[HEADER_LEN + 256]);
    }
    let mut guest = Guest { rig, sent: 0, allowed: 0 };
    guest.send(Op::Request, &[]);
    let mut stream = listener.accept(Some(Duration::from_secs(10)))?;
    stream.set_nonblocking(false)?;
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        let mut all = 0_u64;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            all += length as u64;
        }
        all
    });
    let payload = vec![5; PACKET as usize];
    let (start, mut packets) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        guest.wait_for_credit(PACKET)?;
        guest.send(Op::Data, &payload);
        guest.sent = guest.sent.wrapping_add(PACKET);
        packets += 1;
    }
    guest.send(Op::Shutdown, &[]);
    let taken = reader.join().map_err(|_| io::Error::other("the reader panicked"))?;
    let elapsed = start.elapsed();
    if taken != packets * u64::from(PACKET) {
        return Err(io::Error::other(format!("{packets} packets were sent, {taken} bytes arrived")));
    }
    Ok(vec![Rate {
        what: "vsock: packet of 60 KiB from guest to host".into(),
        per_second: packets as f64 / elapsed.as_secs_f64(),
        bytes: PACKET.into(),
    }])
}

/// The guest's end of one connection.
struct Guest {
    rig: Rig,
    /// Bytes sent, modulo 2^32 as in the protocol.
    sent: u32,
    /// Bytes that may have been sent by now: the peer's buffer and what it consumed.
    allowed: u32,
}

impl Guest {
    fn send(&mut self, op: Op, payload: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 7,
            dst_port: PORT,
            len: payload.len() as u32,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: if op == Op::Shutdown { 3 } else { 0 },
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
        }
        .to_bytes();
        if payload.is_empty() {
            self.rig.ask(TX, &[&header], &[]);
        } else {
            self.rig.ask(TX, &[&header, payload], &[]);
        }
    }

    fn wait_for_credit(&mut self, bytes: u32) -> io::Result<()> {
        let start = Instant::now();
        loop {
            while let Some(used) = self.rig.used(RX) {
                let header = used.data.first_chunk().map(Header::from_bytes);
                self.rig.add(RX, &[], &[HEADER_LEN + 256]);
                let Some(header) = header else { continue };
                if header.op == Op::Reset as u16 {
                    return Err(io::Error::other("the device reset the connection"));
                }
                self.allowed = header.buf_alloc.wrapping_add(header.fwd_cnt);
            }
            let room = self.allowed.wrapping_sub(self.sent);
            if room >= bytes && room < 1 << 31 {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(20) {
                return Err(io::Error::other("no credit came"));
            }
            thread::yield_now();
        }
    }
}
