//! The device between a driver and programs of the host, inline and on its own thread.

mod ends;
mod guest;
mod paths;
mod protocol;
mod transfer;

use std::io::{self, Read as _};
use std::time::Duration;

use self::guest::{CID, Guest};
use super::{HostStream, Limits, Vsock, VsockHost};
use crate::testing::Rig;

const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u32 = 1024;

/// A host side and a driver, twice: the device inline, and on its own thread.
fn both() -> impl Iterator<Item = (VsockHost, Guest)> {
    [false, true].into_iter().map(|threaded| {
        let host = VsockHost::new().unwrap();
        let device = Box::new(Vsock::new(CID, &host).unwrap());
        let rig = if threaded { Rig::threaded(device) } else { Rig::new(device) };
        (host, Guest::new(rig, 64, 4096))
    })
}

fn inline_with(limits: Limits) -> (VsockHost, Guest) {
    let host = VsockHost::new().unwrap();
    let device = Vsock::with_limits(CID, &host, limits).unwrap();
    (host, Guest::new(Rig::new(Box::new(device)), 64, 4096))
}

fn inline() -> (VsockHost, Guest) {
    inline_with(Limits::default())
}

/// Reads what is there; `Some(0)` at the end.
fn read_some(stream: &mut impl io::Read, into: &mut [u8]) -> Option<usize> {
    match stream.read(into) {
        Ok(len) => Some(len),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// Runs the device until exactly `len` bytes have come out of the stream.
fn read_exactly(guest: &mut Guest, stream: &mut impl io::Read, len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    let mut done = 0;
    while done < len {
        let part = guest.until("data on the host", |_| read_some(stream, &mut all[done..]));
        assert_ne!(part, 0, "the stream ended after {done} of {len} bytes");
        done += part;
    }
    all
}

fn expect_end(guest: &mut Guest, stream: &mut impl io::Read) {
    assert_eq!(guest.until("the end of the stream", |_| read_some(stream, &mut [0; 16])), 0);
}

/// Deterministic noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}
