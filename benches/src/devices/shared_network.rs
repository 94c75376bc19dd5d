//! A network that two guests share: long segments from one card to the other, each with its gateway and its thread.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use servin_devices::testing::Rig;
use servin_devices::virtio::net::header::{GSO_TCPV4, HEADER_LEN, Header, NEEDS_CSUM};
use servin_devices::virtio::net::nat::{self, Addresses};
use servin_devices::virtio::net::switch::{Config, MEMBERS, Member, Switch};
use servin_devices::virtio::net::{Mac, Net};

use super::Rate;

const RX: u16 = 0;
const TX: u16 = 1;
const A: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 15), Mac([2, 0x42, 10, 0, 2, 15]));
const B: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 16), Mac([2, 0x42, 10, 0, 2, 16]));
/// Payload of a segment as Linux sends it.
const PAYLOAD: usize = 60 << 10;
/// Receive buffers of the other one, and the size of each.
const BUFFERS: usize = 120;
const BUFFER: usize = 4096;
/// Segments on the way at once: none is lost.
const AHEAD: u64 = 4;

/// Segments in a second from one guest to another.
///
/// # Errors
/// If the host refuses a socket, or a segment is lost.
pub fn shared_network(time: Duration) -> io::Result<Vec<Rate>> {
    let dir = tempfile::tempdir()?;
    let line = |(address, mac)| format!("{}\n", Member { address, mac, address6: None, names: Vec::new() });
    std::fs::write(dir.path().join(MEMBERS), [line(A), line(B)].concat())?;
    let (mut a, mut b) = (card(A, dir.path())?, card(B, dir.path())?);
    for _ in 0..BUFFERS {
        b.add(RX, &[], &[BUFFER]);
    }
    let (header, head, payload) = segment();
    let (start, mut sent, mut got, mut left) = (Instant::now(), 0_u64, 0_u64, 0_u16);
    while start.elapsed() < time || got < sent {
        if sent < got + AHEAD && start.elapsed() < time {
            a.ask(TX, &[&header, &head, &payload], &[]);
            sent += 1;
        }
        while let Some(used) = b.used(RX) {
            b.add(RX, &[], &[BUFFER]);
            if left == 0 {
                let raw = used.data.first_chunk::<HEADER_LEN>();
                left = raw.map_or(1, |raw| Header::from_bytes(*raw).num_buffers);
            }
            left -= 1;
            got += u64::from(left == 0);
        }
        if start.elapsed() > time + Duration::from_secs(20) {
            return Err(io::Error::other(format!("of {sent} segments {got} arrived")));
        }
    }
    Ok(vec![Rate {
        what: "net: segment of 60 KiB from guest to guest".into(),
        per_second: got as f64 / start.elapsed().as_secs_f64(),
        bytes: PAYLOAD as u64,
    }])
}

fn card((guest, mac): (Ipv4Addr, Mac), dir: &Path) -> io::Result<Rig> {
    let addresses = Addresses {
        guest,
        gateway: [10, 0, 2, 2].into(),
        prefix: 24,
        guest6: "fd00::15".parse().map_err(io::Error::other)?,
        gateway6: "fd00::2".parse().map_err(io::Error::other)?,
    };
    let nat = nat::Config {
        addresses,
        mac,
        resolv_conf: "/nonexistent".into(),
        resolvers: Vec::new(),
        names: None,
        forwards: Vec::new(),
        aliases: Vec::new(),
        outside: false,
    };
    let switch = Switch::new(Config { nat, directory: dir.to_path_buf() })?;
    let mut rig = Rig::threaded(Box::new(Net::new(mac, Box::new(switch))));
    rig.init(u64::MAX);
    Ok(rig)
}

/// A TCP segment to be cut: the card's header, those of the frame, and the payload.
fn segment() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let mut head = [B.1.0, A.1.0].concat();
    head.extend([8, 0, 0x45, 0]);
    head.extend((40 + PAYLOAD as u16).to_be_bytes());
    head.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    head.extend(A.0.octets());
    head.extend(B.0.octets());
    // Ports, numbers, five words of header, ACK, a window; the sums are not looked at.
    head.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    (header.to_bytes().to_vec(), head, vec![5; PAYLOAD])
}
