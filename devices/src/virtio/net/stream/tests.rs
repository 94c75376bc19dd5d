#![allow(clippy::indexing_slicing)]

use super::*;
use crate::testing::Rig;
use crate::virtio::net::header::{HEADER_LEN, Header};
use virtio_bindings::bindings::virtio_mmio as reg;

use crate::virtio::net::{Net, RECEIVE, TRANSMIT, testing};

const BUFFER: usize = 2048;

/// A guest's card, and the other end of its wire.
fn pair() -> (Rig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut rig = Rig::new(Box::new(Net::new(testing::MAC, Box::new(Stream::new(ours).unwrap()))));
    rig.init(u64::MAX);
    theirs.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    (rig, theirs)
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + seed) as u8).collect()
}

/// The next frame that the guest gets; its buffers are given back.
fn received(rig: &mut Rig) -> Vec<u8> {
    let first = rig.wait_used(RECEIVE);
    let header = Header::from_bytes(first.data[..HEADER_LEN].try_into().unwrap());
    let mut bytes = first.data[HEADER_LEN..first.len as usize].to_vec();
    for _ in 1..header.num_buffers {
        let more = rig.wait_used(RECEIVE);
        bytes.extend(&more.data[..more.len as usize]);
    }
    for _ in 0..header.num_buffers {
        rig.add(RECEIVE, &[], &[BUFFER]);
    }
    bytes
}

#[test]
fn frames_go_out_behind_their_length() {
    let (mut rig, mut theirs) = pair();
    for length in [14, 60, 1514, MAX_FRAME] {
        let frame = frame(length, length);
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &frame], &[]);
        rig.wait_used(TRANSMIT);
        let mut got = vec![0; LENGTH + length];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, framed(&frame));
    }
    // No frame at all.
    rig.add(TRANSMIT, &[&[0; HEADER_LEN], &[1; 13]], &[]);
    rig.wait_used(TRANSMIT);
    theirs.set_nonblocking(true).unwrap();
    assert_eq!(theirs.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn frames_come_in_however_the_stream_is_cut() {
    let (mut rig, mut theirs) = pair();
    for _ in 0..80 {
        rig.add(RECEIVE, &[], &[BUFFER]);
    }
    let frames: Vec<_> = [14, 1514, 60, 9000, MAX_FRAME, 61].map(|length| frame(length, length)).into();
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    for step in [1 << 20, 1000, 7] {
        let bytes = bytes.clone();
        let mut theirs = theirs.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            for part in bytes.chunks(step) {
                theirs.write_all(part).unwrap();
            }
        });
        for frame in &frames {
            assert_eq!(received(&mut rig), *frame);
        }
        writer.join().unwrap();
    }
    theirs.write_all(&framed(&[5; 20])).unwrap();
    assert_eq!(received(&mut rig), [5; 20]);
}

#[test]
fn a_guest_without_room_keeps_the_socket_waiting_and_loses_nothing() {
    let (mut rig, mut theirs) = pair();
    for seed in 0..3 {
        theirs.write_all(&framed(&frame(1000, seed))).unwrap();
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
fn a_socket_that_is_full_keeps_the_guest_waiting_and_loses_nothing() {
    let (mut rig, mut theirs) = pair();
    let big = frame(MAX_FRAME, 1);
    let mut sent = 0;
    // The ring has room for some; what the socket and our own buffer do not take stays in it.
    for _ in 0..40 {
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &big], &[]);
        sent += 1;
    }
    let mut back = std::iter::from_fn(|| rig.used(TRANSMIT)).count();
    assert!(back < sent, "a socket with {back} frames of 64 KiB is not full");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; LENGTH + MAX_FRAME];
        for _ in 0..sent {
            theirs.read_exact(&mut got).unwrap();
            assert!(got == framed(&frame(MAX_FRAME, 1)));
        }
    });
    while back < sent {
        rig.wait_used(TRANSMIT);
        back += 1;
    }
    while !reader.is_finished() {
        rig.transport().turn(std::time::Duration::from_millis(20)).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn an_end_that_speaks_nonsense_or_goes_is_a_cable_that_was_pulled() {
    for bad in [Some(0_u32), Some(13), Some(MAX_FRAME as u32 + 1), Some(u32::MAX), None] {
        let (mut rig, mut theirs) = pair();
        rig.add(RECEIVE, &[], &[BUFFER]);
        theirs.write_all(&framed(&[3; 20])).unwrap();
        assert_eq!(received(&mut rig), [3; 20]);
        if let Some(length) = bad {
            theirs.write_all(&length.to_be_bytes()).unwrap();
            theirs.write_all(&[0; 100]).unwrap();
        } else {
            drop(theirs);
        }
        rig.run();
        // The guest is not held up.
        rig.add(TRANSMIT, &[&[0; HEADER_LEN], &[1; 60]], &[]);
        rig.wait_used(TRANSMIT);
        assert!(!rig.transport().turn(std::time::Duration::ZERO).unwrap(), "it does not spin");
        assert!(rig.used(RECEIVE).is_none());
    }
}

#[test]
fn a_driver_that_resets_in_the_middle_of_a_frame_finds_the_stream_in_step() {
    let (mut rig, mut theirs) = pair();
    rig.add(RECEIVE, &[], &[BUFFER]);
    let whole = framed(&frame(1000, 9));
    theirs.write_all(&whole[..500]).unwrap();
    rig.run();
    rig.write32(reg::VIRTIO_MMIO_STATUS, 0);
    rig.init(u64::MAX);
    rig.add(RECEIVE, &[], &[BUFFER]);
    theirs.write_all(&whole[500..]).unwrap();
    assert_eq!(received(&mut rig), frame(1000, 9));
}
