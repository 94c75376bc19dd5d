#![allow(clippy::indexing_slicing)]

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::*;
use crate::testing::Rig;
use crate::virtio::net::header::{HEADER_LEN, Header};
use crate::virtio::net::{Net, RECEIVE, TRANSMIT, testing};

const BUFFER: usize = 2048;

/// The other end of the wire.
struct Peer(OwnedFd);

impl Peer {
    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::net::send(&self.0, frame, SendFlags::empty()).unwrap(), frame.len());
    }

    fn receive(&self) -> Vec<u8> {
        let mut got = vec![0; MAX_FRAME];
        let (count, _) = rustix::net::recv(&self.0, &mut got, RecvFlags::empty()).unwrap();
        got.truncate(count);
        got
    }
}

/// A guest's card on a socket that keeps frames apart as a tap does, and the other end of its wire.
fn pair() -> (Rig, Peer) {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = rustix::net::socketpair(kind.0, kind.1, kind.2, None).unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    let tap = Tap::new(File::from(ours));
    let mut rig = Rig::new(Box::new(Net::new(testing::MAC, Box::new(tap))));
    rig.init(u64::MAX);
    (rig, Peer(theirs))
}

fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + seed) as u8).collect()
}

/// The next frame that the guest gets; its buffer is given back.
fn received(rig: &mut Rig) -> Vec<u8> {
    let first = rig.wait_used(RECEIVE);
    let header = Header::from_bytes(first.data[..HEADER_LEN].try_into().unwrap());
    assert_eq!((header.num_buffers, header.flags, header.gso_type), (1, 0, 0));
    rig.add(RECEIVE, &[], &[BUFFER]);
    first.data[HEADER_LEN..first.len as usize].to_vec()
}

#[test]
fn a_frame_is_one_call_in_both_directions() {
    let (mut rig, theirs) = pair();
    for _ in 0..8 {
        rig.add(RECEIVE, &[], &[BUFFER]);
    }
    for length in [14, 60, 1514] {
        let frame = frame(length, length);
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &frame], &[]);
        rig.wait_used(TRANSMIT);
        assert_eq!(theirs.receive(), frame);
        // What is no frame is not seen, either way.
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &[1; 13]], &[]);
        rig.wait_used(TRANSMIT);
        theirs.send(&[1; 13]);
        theirs.send(&frame);
        assert_eq!(received(&mut rig), frame);
    }
}

#[test]
fn a_guest_without_room_keeps_the_tap_waiting_and_loses_nothing() {
    let (mut rig, theirs) = pair();
    for seed in 0..3 {
        theirs.send(&frame(1000, seed));
    }
    rig.run();
    assert!(!rig.transport().turn(std::time::Duration::ZERO).unwrap(), "it does not spin");
    for _ in 0..3 {
        rig.add(RECEIVE, &[], &[BUFFER]);
    }
    for seed in 0..3 {
        assert_eq!(received(&mut rig), frame(1000, seed));
    }
}

#[test]
fn a_tap_that_is_full_keeps_the_guest_waiting_and_loses_nothing() {
    let (mut rig, theirs) = pair();
    let count = 60;
    for seed in 0..count {
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &frame(60_000, seed)], &[]);
    }
    let mut back = std::iter::from_fn(|| rig.used(TRANSMIT)).count();
    assert!(back < count, "a socket with {back} frames of 60 kB is not full");
    let reader = std::thread::spawn(move || {
        for seed in 0..count {
            assert!(theirs.receive() == frame(60_000, seed));
        }
        theirs
    });
    while back < count {
        rig.wait_used(TRANSMIT);
        back += 1;
    }
    while !reader.is_finished() {
        rig.transport().turn(std::time::Duration::from_millis(20)).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn a_tap_that_is_taken_away_is_a_cable_that_was_pulled() {
    let (mut rig, theirs) = pair();
    rig.add(RECEIVE, &[], &[BUFFER]);
    theirs.send(&[3; 20]);
    assert_eq!(received(&mut rig), [3; 20]);
    drop(theirs);
    rig.run();
    // The guest is not held up.
    for _ in 0..3 {
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &[1; 60]], &[]);
        rig.wait_used(TRANSMIT);
    }
    assert!(!rig.transport().turn(std::time::Duration::ZERO).unwrap(), "it does not spin");
    assert!(rig.used(RECEIVE).is_none());
}

#[test]
fn a_driver_that_resets_finds_the_tap_again() {
    use virtio_bindings::bindings::virtio_mmio as reg;
    let (mut rig, theirs) = pair();
    theirs.send(&frame(1000, 9));
    rig.run();
    rig.write32(reg::VIRTIO_MMIO_STATUS, 0);
    rig.init(u64::MAX);
    rig.add(RECEIVE, &[], &[BUFFER]);
    // What came for the driver before is gone, as with any card.
    theirs.send(&frame(1000, 10));
    assert_eq!(received(&mut rig), frame(1000, 10));
}
