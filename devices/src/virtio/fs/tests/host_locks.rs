//! Locks on shares that are the host's: between two guests, and with processes of the host.

use std::os::fd::AsFd as _;
use std::path::Path;

use super::super::host::{HostFs, Options, Share, WAYS};
use super::super::readonly::ReadOnly;
use super::super::testing::Client;
use super::super::vfs::{Errno, LAST_BYTE, ROOT};
use crate::lock::{self, Kind, Range};

const RDONLY: u32 = 0;
const RDWR: u32 = 2;
/// Kinds of locks in requests.
const SHARED: u32 = 0;
const EXCLUSIVE: u32 = 1;
const ALL: (u64, u64) = (0, LAST_BYTE);

/// Two guests that share a directory, inline and each on a thread; with the open file of each.
fn two_guests(check: impl Fn(&Path, &mut Client, u64, &mut Client, u64)) {
    for share in WAYS {
        for threaded in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let start = || {
                let fs = share(dir.path(), Options::default());
                if threaded { Client::threaded(fs) } else { Client::new(fs) }
            };
            let (mut one, mut two) = (start(), start());
            let (_, first) = one.create(ROOT, "file", RDWR, 0o666).unwrap();
            let node = two.lookup(ROOT, "file").unwrap().node;
            let second = two.open(node, RDWR).unwrap();
            check(dir.path(), &mut one, first, &mut two, second);
        }
    }
}

#[test]
fn two_guests_and_the_host_keep_each_other_out() {
    two_guests(|dir, one, first, two, second| {
        one.setlk(first, 7, EXCLUSIVE, (0, 9)).unwrap();
        assert_eq!(
            two.setlk(second, 7, EXCLUSIVE, (0, 9)),
            Err(Errno::AGAIN),
            "the same owner, another guest"
        );
        assert_eq!(
            two.getlk(second, 7, SHARED, ALL).unwrap(),
            (EXCLUSIVE, (0, 9), 0),
            "a process of nobody's here"
        );
        two.setlk(second, 7, EXCLUSIVE, (10, 19)).unwrap();
        let host = std::fs::OpenOptions::new().read(true).write(true).open(dir.join("file")).unwrap();
        let range = |start, end| Range { start, end };
        assert!(lock::set(host.as_fd(), range(5, 5), Some(Kind::Shared)).is_err());
        assert!(lock::set(host.as_fd(), range(15, 15), Some(Kind::Shared)).is_err());
        lock::set(host.as_fd(), range(20, 29), Some(Kind::Exclusive)).unwrap();
        assert_eq!(one.setlk(first, 7, SHARED, (20, 20)), Err(Errno::AGAIN));
        // A wait ends when the other guest, or the host, gives the lock up.
        let waits = one.ask_lock(first, 7, EXCLUSIVE, (10, 29), false);
        two.flush(second, 7).unwrap();
        one.rig.run();
        assert_eq!(one.answered(), None, "the host has a part of it");
        drop(host);
        assert_eq!(one.answer(), (waits, Ok(())));
    });
}

#[test]
fn locks_of_open_files_hold_between_guests_and_against_the_host() {
    two_guests(|dir, one, first, two, second| {
        one.flock(first, EXCLUSIVE).unwrap();
        assert_eq!(two.flock(second, SHARED), Err(Errno::AGAIN));
        let host = std::fs::File::open(dir.join("file")).unwrap();
        assert!(host.try_lock_shared().is_err());
        let waits = two.ask_lock(second, second, SHARED, ALL, true);
        one.release(first).unwrap();
        assert_eq!(two.answer(), (waits, Ok(())));
        host.lock_shared().unwrap();
        assert!(host.try_lock().is_err());
    });
}

#[test]
fn a_reset_gives_every_lock_up_and_forgets_who_waits() {
    two_guests(|_, one, first, two, second| {
        one.setlk(first, 7, EXCLUSIVE, ALL).unwrap();
        one.flock(first, EXCLUSIVE).unwrap();
        two.ask_lock(second, 7, EXCLUSIVE, ALL, false);
        two.rig.run();
        two.reset(u64::MAX);
        one.reset(u64::MAX);
        let node = two.lookup(ROOT, "file").unwrap().node;
        let handle = two.open(node, RDWR).unwrap();
        two.setlk(handle, 7, EXCLUSIVE, ALL).unwrap();
        two.flock(handle, EXCLUSIVE).unwrap();
        assert_eq!(two.answered(), None);
    });
}

#[test]
fn a_read_only_share_takes_shared_locks_and_leaves_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"contents").unwrap();
    let inner = HostFs::directory(dir.path(), Options::default()).unwrap();
    let mut fs = Client::new(Box::new(ReadOnly(inner)));
    let node = fs.lookup(ROOT, "file").unwrap().node;
    let handle = fs.open(node, RDONLY).unwrap();
    assert_eq!(fs.setlk(handle, 7, EXCLUSIVE, ALL), Err(Errno::BADF));
    fs.setlk(handle, 7, SHARED, ALL).unwrap();
    let host = std::fs::OpenOptions::new().read(true).write(true).open(dir.path().join("file")).unwrap();
    let all = Range { start: 0, end: LAST_BYTE };
    assert!(lock::set(host.as_fd(), all, Some(Kind::Exclusive)).is_err());
    fs.flock(handle, EXCLUSIVE).unwrap();
    fs.release(handle).unwrap();
    lock::set(host.as_fd(), all, Some(Kind::Exclusive)).unwrap();
}

#[test]
fn saved_locks_are_taken_back_or_the_restore_fails() {
    WAYS.into_iter().for_each(saved_locks);
}

fn saved_locks(share: Share) {
    let dir = tempfile::tempdir().unwrap();
    let mut before = Client::new(share(dir.path(), Options::default()));
    let (file, handle) = before.create(ROOT, "file", RDWR, 0o600).unwrap();
    let other = before.open(file.node, RDWR).unwrap();
    before.setlk(handle, 7, EXCLUSIVE, (0, 9)).unwrap();
    before.setlk(handle, 7, SHARED, (20, 29)).unwrap();
    before.flock(handle, SHARED).unwrap();
    let waits = before.ask_lock(other, 8, EXCLUSIVE, (5, 5), false);
    before.rig.transport().pause();
    let why = before.rig.transport().save().unwrap_err().to_string();
    assert!(why.contains("waits for a lock"), "{why}");
    before.rig.transport().resume().unwrap();
    before.interrupt(waits);
    assert_eq!(before.answer(), (waits, Err(Errno::INTR)));
    before.rig.transport().pause();
    let saved = before.rig.transport().save().unwrap();

    let mem = std::sync::Arc::clone(before.rig.shared_mem());
    let restore = || {
        let fs = share(dir.path(), Options::default());
        let mut after = crate::virtio::MmioTransport::new(
            Box::new(super::super::Fs::new("share", fs).unwrap()),
            std::sync::Arc::clone(&mem),
            std::sync::Arc::new(crate::testing::CountingLine::default()),
            crate::virtio::Activation::Inline,
        )
        .unwrap();
        after.restore(&saved).map(|()| after)
    };
    let why = restore().unwrap_err().to_string();
    assert!(why.contains("process 7 had locked"), "the guest that was saved has them still: {why}");
    // It goes, and so do its locks: somebody else takes one of them.
    drop(before);
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(dir.path().join("file")).unwrap();
    let lock = |host: &std::fs::File, at, kind| {
        lock::set(host.as_fd(), Range { start: at, end: at }, Some(kind)).is_ok()
    };
    let host = open();
    assert!(lock(&host, 9, Kind::Shared));
    assert!(restore().is_err());
    drop(host);
    let restored = restore().unwrap();
    let host = open();
    assert!(!lock(&host, 9, Kind::Shared) && !lock(&host, 20, Kind::Exclusive));
    assert!(lock(&host, 20, Kind::Shared) && host.try_lock().is_err());
    drop(restored);
    host.try_lock().unwrap();
}
