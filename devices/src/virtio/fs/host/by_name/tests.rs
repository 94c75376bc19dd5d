//! What is so only where files are held by name.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt, symlink};
use std::path::Path;

use super::super::super::testing::Client;
use super::super::super::vfs::{LAST_BYTE, Name, ROOT};
use super::super::{FileSystem, Options, Passthrough};
use super::*;

const RDWR: u32 = 2;
const EXCLUSIVE: u32 = 1;
/// `O_TRUNC`.
const TRUNC: u32 = 0o1000;

fn share(path: &Path) -> Client {
    Client::new(Box::new(Passthrough::<ByName>::directory(path, Options::default()).unwrap()))
}

#[test]
fn a_file_that_the_host_put_in_place_of_another_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, b"old").unwrap();
    let mut fs = share(dir.path());
    let old = fs.lookup(ROOT, "file").unwrap().node;
    std::fs::write(dir.path().join("other"), b"new").unwrap();
    std::fs::rename(dir.path().join("other"), &path).unwrap();
    assert_eq!(fs.getattr(old), Err(Errno::STALE));
    for flags in [0, RDWR, RDWR | TRUNC, TRUNC] {
        assert_eq!(fs.open(old, flags), Err(Errno::STALE), "{flags:o}");
    }
    assert_eq!(fs.setattr(old, 1, 0, 0o4777, (0, 0)), Err(Errno::STALE));
    assert_eq!(fs.setattr(old, 1 << 3, 0, 0, (0, 0)), Err(Errno::STALE));
    assert_eq!(fs.setattr(old, 1 << 5, 0, 0, (0, 0)), Err(Errno::STALE));
    assert_eq!(fs.link(old, ROOT, "link"), Err(Errno::STALE));
    assert_eq!(fs.setxattr(old, "user.x", b"y"), Err(Errno::STALE));
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    let new = fs.lookup(ROOT, "file").unwrap().node;
    assert_ne!(new, old);
    fs.open(new, TRUNC).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"", "truncated though it is only read");
    std::fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert_eq!(fs.open(new, 0), Err(Errno::STALE));
    assert_eq!(fs.getxattr(new, "user.x", 10), Err(Errno::STALE));
}

#[test]
fn what_the_guest_has_open_it_keeps_wherever_the_host_moves_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (file, handle) = fs.create(ROOT, "log", RDWR, 0o600).unwrap();
    std::fs::rename(dir.path().join("log"), dir.path().join("log.1")).unwrap();
    fs.write(handle, 0, b"more").unwrap();
    assert_eq!(fs.getattr(file.node).unwrap().size, 4);
    assert_eq!(fs.open(file.node, 0), Err(Errno::STALE));
    fs.release(handle).unwrap();
    assert_eq!(fs.getattr(file.node), Err(Errno::STALE));
    assert_eq!(fs.lookup(ROOT, "log.1").unwrap().node, file.node, "looked up, it is the same");
    fs.open(file.node, 0).unwrap();
}

#[test]
fn only_regular_files_outlive_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let link = fs.symlink(ROOT, "link", "target").unwrap().node;
    let pipe = fs.mknod(ROOT, "pipe", 0o010_600, 0).unwrap().node;
    let file = fs.mknod(ROOT, "file", 0o100_600, 0).unwrap().node;
    let dir = fs.mkdir(ROOT, "dir", 0o700).unwrap().node;
    for name in ["link", "pipe", "file"] {
        fs.unlink(ROOT, name).unwrap();
    }
    fs.rmdir(ROOT, "dir").unwrap();
    assert_eq!((fs.getattr(file).unwrap().nlink, fs.list(dir, 1000, false)), (0, Ok(Vec::new())));
    assert_eq!(fs.setattr(file, 1, 0, 0o640, (0, 0)).unwrap().mode, 0o100_640);
    assert_eq!(fs.readlink(link), Err(Errno::STALE));
    assert_eq!(fs.getattr(pipe), Err(Errno::STALE));
    // It is there, but nothing leads to it any more.
    assert_eq!(fs.open(file, 0), Err(Errno::STALE));
    assert_eq!(fs.link(file, ROOT, "again"), Err(Errno::STALE));
}

#[test]
fn a_file_without_a_name_takes_no_new_locks_of_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
    fs.setlk(handle, 7, EXCLUSIVE, (0, 9)).unwrap();
    fs.unlink(ROOT, "file").unwrap();
    fs.setlk(handle, 7, EXCLUSIVE, (10, 19)).unwrap();
    assert_eq!(fs.setlk(handle, 8, EXCLUSIVE, (30, LAST_BYTE)), Err(Errno::NOLCK));
    fs.flock(handle, EXCLUSIVE).unwrap();
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    for mode in [0o140_600, 0o020_600, 0o060_600] {
        assert_eq!(fs.mknod(ROOT, "new", mode, 0), Err(Errno::PERM), "{mode:o}");
    }
    std::fs::write(dir.path().join("file"), b"").unwrap();
    for flags in [3, 4, 5, 8] {
        assert_eq!(fs.rename((ROOT, "file"), (ROOT, "new"), flags), Err(Errno::INVAL));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    fs.mknod(ROOT, "pipe", 0o010_640, 0).unwrap();
    assert!(std::fs::metadata(dir.path().join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_renamed_file_is_found_under_its_new_name_and_a_linked_one_under_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let sub = fs.mkdir(ROOT, "sub", 0o755).unwrap().node;
    let file = fs.mknod(ROOT, "file", 0o100_600, 0).unwrap().node;
    fs.rename((ROOT, "file"), (sub, "moved"), 0).unwrap();
    fs.rename((ROOT, "sub"), (ROOT, "dir"), 0).unwrap();
    fs.open(file, RDWR).unwrap();
    fs.link(file, ROOT, "link").unwrap();
    // It was entered by that name last: the other one may go, and comes back.
    fs.unlink(sub, "moved").unwrap();
    fs.open(file, RDWR).unwrap();
    fs.link(file, sub, "moved").unwrap();
    fs.unlink(sub, "moved").unwrap();
    assert_eq!(fs.getattr(file).unwrap().nlink, 1, "held by the name that is gone, but open");
    assert_eq!(fs.lookup(ROOT, "link").unwrap().node, file);
    fs.open(file, RDWR).unwrap();
}

#[test]
fn a_file_keeps_no_more_than_its_directory_open() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("a/b/file"), b"").unwrap();
    let mut fs = Passthrough::<ByName>::directory(dir.path(), Options::default()).unwrap();
    let mut node = ROOT;
    for name in ["a", "b", "file"] {
        node = fs.lookup(node, Name::new(name.as_bytes()).unwrap()).unwrap().node;
    }
    let anchor = fs.nodes.anchor(node).unwrap();
    let place = anchor.place.as_ref().unwrap();
    assert!(anchor.fd.is_none() && place.dir.fd.is_some() && place.dir.place.is_none());
}

#[test]
fn what_may_not_be_read_can_be_seen_and_passed_through() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may read everything");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let permit = |name: &str, mode| {
        std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    std::fs::create_dir_all(dir.path().join("searched/inner")).unwrap();
    std::fs::create_dir(dir.path().join("closed")).unwrap();
    std::fs::write(dir.path().join("written"), b"").unwrap();
    std::fs::write(dir.path().join("nothing"), b"").unwrap();
    for (name, mode) in [("searched", 0o300), ("closed", 0), ("written", 0o200), ("nothing", 0)] {
        permit(name, mode);
    }
    let mut fs = share(dir.path());
    let mut node = |name| fs.lookup(ROOT, name).unwrap().node;
    let (searched, closed, written, nothing) =
        (node("searched"), node("closed"), node("written"), node("nothing"));
    fs.lookup(searched, "inner").unwrap();
    assert_eq!(fs.list(searched, 100, false), Err(Errno::ACCESS));
    assert_eq!(fs.lookup(closed, "inner"), Err(Errno::ACCESS));
    assert_eq!(fs.list(closed, 100, false), Err(Errno::ACCESS));
    assert_eq!(fs.open(written, 0), Err(Errno::ACCESS));
    fs.unlink(ROOT, "written").unwrap();
    fs.unlink(ROOT, "nothing").unwrap();
    assert_eq!(fs.getattr(written).unwrap().nlink, 0);
    assert_eq!(fs.getattr(nothing), Err(Errno::STALE));
    // A directory held by its name is changed by it, and found anew when it is renamed.
    fs.rename((ROOT, "closed"), (ROOT, "shut"), 0).unwrap();
    assert_eq!(fs.setattr(closed, 1, 0, 0o700, (0, 0)).unwrap().mode, 0o040_700);
    permit("searched", 0o700);
}

#[test]
fn the_flags_of_an_open_are_the_hosts() {
    assert_eq!(host_flags(0), OFlags::RDONLY);
    assert_eq!(host_flags(1 | 0o2000), OFlags::WRONLY | OFlags::APPEND);
    assert_eq!(host_flags(2 | TRUNC), OFlags::RDWR | OFlags::TRUNC);
    assert_eq!(host_flags(0o10_000), OFlags::DSYNC);
    assert_eq!(host_flags(0o4_010_000), OFlags::DSYNC | OFlags::SYNC);
}
