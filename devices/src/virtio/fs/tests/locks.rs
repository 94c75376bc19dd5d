//! Locks on shares among the processes of one guest.

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::super::host::{Options, WAYS};
use super::super::locks::MAX_OWNERS;
use super::super::memfs::MemFs;
use super::super::testing::Client;
use super::super::vfs::{Errno, LAST_BYTE, ROOT};

const RDONLY: u32 = 0;
const WRONLY: u32 = 1;
const RDWR: u32 = 2;
/// Kinds of locks in requests.
const SHARED: u32 = 0;
const EXCLUSIVE: u32 = 1;
const NONE: u32 = 2;
const ALL: (u64, u64) = (0, LAST_BYTE);

/// One guest: on a file system in memory, on a directory of the host held in each way, and on the latter on the device's
/// own thread.
fn one_guest(check: impl Fn(&mut Client)) {
    check(&mut Client::new(Box::new(MemFs::new(1 << 20))));
    for share in WAYS {
        let dir = tempfile::tempdir().unwrap();
        check(&mut Client::new(share(dir.path(), Options::default())));
        let dir = tempfile::tempdir().unwrap();
        check(&mut Client::threaded(share(dir.path(), Options::default())));
    }
}

#[test]
fn owners_of_one_guest_keep_each_other_out_and_are_told_by_whom() {
    one_guest(|fs| {
        let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        let other = fs.open(file.node, RDWR).unwrap();
        fs.setlk(handle, 7, EXCLUSIVE, (10, 19)).unwrap();
        assert_eq!(fs.setlk(other, 8, SHARED, (0, 10)), Err(Errno::AGAIN));
        assert_eq!(fs.getlk(other, 8, SHARED, ALL).unwrap(), (EXCLUSIVE, (10, 19), 7));
        assert_eq!(fs.getlk(handle, 7, EXCLUSIVE, ALL).unwrap().0, NONE, "one's own");
        fs.setlk(other, 8, SHARED, (20, LAST_BYTE)).unwrap();
        fs.setlk(handle, 7, SHARED, (10, 14)).unwrap();
        fs.setlk(other, 8, SHARED, (0, 14)).unwrap();
        assert_eq!(
            fs.setlk(other, 8, SHARED, (0, 15)),
            Err(Errno::AGAIN),
            "the rest of it is exclusive still"
        );
        fs.setlk(handle, 7, NONE, ALL).unwrap();
        fs.setlk(other, 8, SHARED, (0, 15)).unwrap();
        // Closing any descriptor of a file gives all of the process's locks up.
        fs.flush(handle, 8).unwrap();
        fs.setlk(handle, 7, EXCLUSIVE, ALL).unwrap();
    });
}

#[test]
fn a_file_must_be_open_for_what_its_lock_keeps_away() {
    one_guest(|fs| {
        let (file, _) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        let reader = fs.open(file.node, RDONLY).unwrap();
        let writer = fs.open(file.node, WRONLY).unwrap();
        assert_eq!(fs.setlk(reader, 7, EXCLUSIVE, ALL), Err(Errno::BADF));
        assert_eq!(fs.setlk(writer, 7, SHARED, ALL), Err(Errno::BADF));
        assert_eq!(fs.setlk(99, 7, SHARED, ALL), Err(Errno::BADF));
        // One owner's lock grows through another open file, and nobody else comes in between.
        fs.setlk(reader, 7, SHARED, (0, 9)).unwrap();
        fs.setlk(reader, 8, SHARED, (100, 109)).unwrap();
        fs.setlk(writer, 7, EXCLUSIVE, (5, 20)).unwrap();
        assert_eq!(fs.setlk(reader, 8, SHARED, (5, 5)), Err(Errno::AGAIN));
        fs.setlk(reader, 8, SHARED, (0, 4)).unwrap();
        assert_eq!(fs.setlk(writer, 7, EXCLUSIVE, (90, 100)), Err(Errno::AGAIN));
        assert_eq!(fs.setlk(writer, 9, EXCLUSIVE, (0, 0)), Err(Errno::AGAIN));
        // Bad ranges and kinds.
        assert_eq!(fs.setlk(reader, 7, SHARED, (5, 4)), Err(Errno::INVAL));
        assert_eq!(fs.setlk(reader, 7, SHARED, (5, LAST_BYTE + 1)), Err(Errno::INVAL));
        assert_eq!(fs.setlk(reader, 7, 3, ALL), Err(Errno::INVAL));
        assert_eq!(fs.getlk(reader, 7, NONE, ALL), Err(Errno::INVAL));
    });
}

#[test]
fn locks_of_open_files_end_with_them_and_leave_ranges_alone() {
    one_guest(|fs| {
        let (file, one) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        let two = fs.open(file.node, RDONLY).unwrap();
        fs.flock(one, SHARED).unwrap();
        fs.flock(two, SHARED).unwrap();
        assert_eq!(fs.flock(two, EXCLUSIVE), Err(Errno::AGAIN));
        // macOS has one list of both kinds.
        let ranges = fs.setlk(one, 7, EXCLUSIVE, ALL);
        assert!(ranges == Ok(()) || cfg!(target_os = "macos"), "{ranges:?}");
        fs.flush(one, 7).unwrap();
        assert_eq!(
            fs.flock(two, EXCLUSIVE),
            Err(Errno::AGAIN),
            "closing a descriptor is not closing the file"
        );
        fs.release(one).unwrap();
        fs.flock(two, EXCLUSIVE).unwrap();
        fs.flock(two, NONE).unwrap();
        let three = fs.open(file.node, RDONLY).unwrap();
        fs.flock(three, EXCLUSIVE).unwrap();
        if cfg!(target_os = "macos") {
            return;
        }
        // A range locked by an open file itself (F_OFD_SETLK in the guest) has no other end than the file's.
        fs.setlk(two, 1234, SHARED, ALL).unwrap();
        fs.release(two).unwrap();
        let four = fs.open(file.node, RDWR).unwrap();
        fs.setlk(four, 9, EXCLUSIVE, ALL).unwrap();
    });
}

#[test]
fn a_waiting_request_is_answered_when_its_guest_gives_the_lock_up() {
    one_guest(|fs| {
        let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        fs.setlk(handle, 7, EXCLUSIVE, ALL).unwrap();
        let waits = fs.ask_lock(handle, 8, EXCLUSIVE, (0, 9), false);
        let also = fs.ask_lock(handle, 9, EXCLUSIVE, (0, 9), false);
        // Others are served meanwhile.
        assert_eq!(fs.getattr(file.node).unwrap().size, 0);
        let after = fs.ask_lock(handle, 7, NONE, ALL, false);
        let mut answers = [fs.answer(), fs.answer()];
        answers.sort_by_key(|answer| answer.0);
        assert_eq!(answers, [(waits, Ok(())), (after, Ok(()))], "the first in line has it");
        let closes = fs.ask_lock(handle, 8, NONE, (9, 9), false);
        assert_eq!(fs.answer(), (closes, Ok(())), "a part of the range is not enough");
        fs.rig.run();
        assert_eq!(fs.answered(), None);
        let closes = fs.ask_lock(handle, 8, NONE, (0, 8), false);
        let mut answers = [fs.answer(), fs.answer()];
        answers.sort_by_key(|answer| answer.0);
        assert_eq!(answers, [(also, Ok(())), (closes, Ok(()))]);
    });
}

#[test]
fn a_waiting_request_is_given_up_when_it_is_interrupted_even_before_it_was_seen() {
    one_guest(|fs| {
        let (file, one) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        let two = fs.open(file.node, RDWR).unwrap();
        fs.flock(one, EXCLUSIVE).unwrap();
        let waits = fs.ask_lock(two, two, SHARED, ALL, true);
        fs.interrupt(waits);
        assert_eq!(fs.answer(), (waits, Err(Errno::INTR)));
        fs.interrupt(waits + 2);
        let waits = fs.ask_lock(two, two, SHARED, ALL, true);
        assert_eq!(fs.answer(), (waits, Err(Errno::INTR)), "the interrupt was faster");
        let waits = fs.ask_lock(two, two, SHARED, ALL, true);
        fs.interrupt(waits + 1000);
        fs.rig.run();
        assert_eq!(fs.answered(), None);
        let ends = fs.ask_lock(one, one, NONE, ALL, true);
        let mut answers = [fs.answer(), fs.answer()];
        answers.sort_by_key(|answer| answer.0);
        assert_eq!(answers, [(waits, Ok(())), (ends, Ok(()))]);
    });
}

#[test]
fn what_a_guest_may_hold_and_wait_for_is_bounded() {
    one_guest(|fs| {
        fs.reset(!(1 << VIRTIO_RING_F_INDIRECT_DESC));
        let (_, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        for owner in 0..MAX_OWNERS as u64 {
            fs.setlk(handle, owner, SHARED, (0, 0)).unwrap();
        }
        assert_eq!(fs.setlk(handle, 1 << 20, SHARED, (0, 0)), Err(Errno::NOLCK));
        fs.flush(handle, 5).unwrap();
        fs.setlk(handle, 1 << 20, SHARED, (0, 0)).unwrap();
        // Waiting requests leave room in the ring (three descriptors each here) for those that end the wait.
        let asked: Vec<_> = (0..=super::super::waiting::MOST)
            .map(|_| fs.ask_lock(handle, 1, EXCLUSIVE, (0, 0), false))
            .collect();
        let (first, last) = (asked[0], asked[super::super::waiting::MOST]);
        assert_eq!(fs.answer(), (last, Err(Errno::NOLCK)));
        fs.interrupt(first);
        assert_eq!(fs.answer(), (first, Err(Errno::INTR)));
    });
}
