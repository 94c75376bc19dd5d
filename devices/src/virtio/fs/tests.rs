//! What every file system must do, asked through the whole device, of all of them.

use super::host::{HostFs, Options, WAYS};
use super::memfs::MemFs;
use super::readonly::ReadOnly;
use super::testing::{Bytes, Client};
use super::vfs::{Errno, ROOT};
use super::wire::op;

#[cfg(unix)]
mod host_locks;
mod locks;

const RDONLY: u32 = 0;
const RDWR: u32 = 2;

/// Whether a file has the mode that was asked for, or as much of it as a directory of Windows keeps.
fn has_mode(mode: u32, asked: u32) -> bool {
    mode == asked || cfg!(windows) && mode == asked & 0o170_000 | 0o755
}

/// Whether a file has as many links; one that is open can have its last name out of sight where Windows cannot do without.
fn has_links(links: u32, wanted: u32) -> bool {
    links == wanted || cfg!(windows) && links == wanted + 1
}

/// Runs a check on a file system in memory and on a directory of the host, held in each way that the host can, first with
/// room for all descriptors, then with hardly any; each on the device's own thread too.
fn both(check: impl Fn(&mut Client)) {
    check(&mut Client::new(Box::new(MemFs::new(1 << 24))));
    check(&mut Client::threaded(Box::new(MemFs::new(1 << 24))));
    on_the_host(check);
}

fn on_the_host(check: impl Fn(&mut Client)) {
    for share in WAYS {
        for max_nodes_open in [256, 2] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { max_nodes_open, ..Options::default() };
            check(&mut Client::new(share(dir.path(), options)));
        }
        let dir = tempfile::tempdir().unwrap();
        check(&mut Client::threaded(share(dir.path(), Options::default())));
    }
}

#[test]
fn a_file_is_made_written_read_and_found_again() {
    both(|fs| {
        let (made, handle) = fs.create(ROOT, "file", RDWR, 0o640).unwrap();
        assert!(has_mode(made.mode, 0o100_640) && made.size == 0, "{made:?}");
        assert_eq!(fs.write(handle, 0, b"hello world").unwrap(), 11);
        assert_eq!(fs.read(handle, 6, 100).unwrap(), b"world");
        assert_eq!(fs.read(handle, 100, 10).unwrap(), b"");
        fs.fsync(handle).unwrap();
        fs.release(handle).unwrap();
        assert_eq!(fs.read(handle, 0, 1), Err(Errno::BADF));
        let found = fs.lookup(ROOT, "file").unwrap();
        assert_eq!((found.node, found.size), (made.node, 11));
        assert_eq!(fs.open(ROOT, RDONLY), Err(Errno::ISDIR));
    });
}

#[test]
fn megabytes_pass_in_one_request_and_come_back_the_same() {
    both(|fs| {
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        let (_, handle) = fs.create(ROOT, "big", RDWR, 0o600).unwrap();
        assert_eq!(fs.write(handle, 0, &bytes).unwrap(), 1 << 20);
        assert!(fs.read(handle, 0, 1 << 20).unwrap() == bytes);
    });
}

#[test]
fn names_that_are_paths_are_refused_everywhere() {
    both(|fs| {
        for name in ["..", ".", "", "a/b", "/etc"] {
            assert_eq!(fs.lookup(ROOT, name), Err(Errno::INVAL), "{name}");
            assert_eq!(fs.mkdir(ROOT, name, 0o755), Err(Errno::INVAL));
            assert_eq!(fs.unlink(ROOT, name), Err(Errno::INVAL));
            assert_eq!(fs.rename((ROOT, name), (ROOT, "x"), 0), Err(Errno::INVAL));
            assert_eq!(fs.rename((ROOT, "x"), (ROOT, name), 0), Err(Errno::INVAL));
        }
        assert_eq!(fs.lookup(ROOT, &"x".repeat(256)), Err(Errno::NAMETOOLONG));
        assert_eq!(fs.call(op::LOOKUP, ROOT, b"no end", 128), Err(Errno::INVAL));
    });
}

#[test]
fn directories_are_made_listed_in_pieces_and_removed() {
    both(|fs| {
        let dir = fs.mkdir(ROOT, "dir", 0o750).unwrap();
        assert!(has_mode(dir.mode, 0o040_750), "{:o}", dir.mode);
        for n in 0..100 {
            fs.mknod(dir.node, &format!("entry-{n:03}"), 0o100_644, 0).unwrap();
        }
        for plus in [false, true] {
            let mut all = fs.list(dir.node, 600, plus).unwrap();
            all.sort();
            assert_eq!(all.len(), 102);
            assert_eq!((all[0].0.as_str(), all[1].0.as_str(), all[101].0.as_str()), (".", "..", "entry-099"));
            assert_eq!(all[101].1 != 0, plus);
        }
        assert_eq!(fs.rmdir(ROOT, "dir"), Err(Errno::NOTEMPTY));
        for n in 0..100 {
            fs.unlink(dir.node, &format!("entry-{n:03}")).unwrap();
        }
        fs.rmdir(ROOT, "dir").unwrap();
        assert_eq!(fs.lookup(ROOT, "dir"), Err(Errno::NOENT));
    });
}

#[test]
fn entries_removed_during_a_listing_hide_no_others() {
    both(|fs| {
        for n in 0..60 {
            fs.mknod(ROOT, &format!("f{n}"), 0o100_644, 0).unwrap();
        }
        let mut removed = 0;
        loop {
            let names: Vec<_> = fs.list(ROOT, 400, false).unwrap();
            let names: Vec<_> = names.into_iter().filter(|(name, _)| !name.starts_with('.')).collect();
            if names.is_empty() {
                break;
            }
            for (name, _) in names.iter().take(7) {
                fs.unlink(ROOT, name).unwrap();
                removed += 1;
            }
        }
        assert_eq!(removed, 60);
    });
}

#[test]
fn renames_replace_exchange_and_refuse_as_asked() {
    both(|fs| {
        let dir = fs.mkdir(ROOT, "dir", 0o755).unwrap().node;
        let (one, _) = fs.create(ROOT, "one", RDWR, 0o600).unwrap();
        let (two, handle) = fs.create(dir, "two", RDWR, 0o600).unwrap();
        fs.write(handle, 0, b"22").unwrap();
        assert_eq!(fs.rename((ROOT, "one"), (dir, "two"), 1), Err(Errno::EXIST));
        match fs.rename((ROOT, "one"), (dir, "two"), 2) {
            // Windows has no such call.
            Err(Errno::INVAL) if cfg!(windows) => {
                fs.rename((ROOT, "one"), (ROOT, "between"), 0).unwrap();
                fs.rename((dir, "two"), (ROOT, "one"), 0).unwrap();
                fs.rename((ROOT, "between"), (dir, "two"), 0).unwrap();
            }
            exchanged => exchanged.unwrap(),
        }
        assert_eq!(fs.lookup(ROOT, "one").unwrap().node, two.node);
        assert_eq!(fs.lookup(dir, "two").unwrap().node, one.node);
        fs.rename((ROOT, "one"), (dir, "two"), 0).unwrap();
        assert_eq!(fs.lookup(dir, "two").unwrap().node, two.node);
        assert!(
            has_links(fs.getattr(one.node).unwrap().nlink, 0),
            "the replaced file lives while it is known"
        );
        assert_eq!(fs.rename((ROOT, "gone"), (ROOT, "x"), 0), Err(Errno::NOENT));
        let inner = fs.mkdir(dir, "inner", 0o755).unwrap().node;
        assert_eq!(fs.rename((ROOT, "dir"), (inner, "loop"), 0), Err(Errno::INVAL));
        fs.rename((ROOT, "dir"), (ROOT, "moved"), 0).unwrap();
        assert_eq!(fs.getattr(two.node).unwrap().size, 2, "known below a renamed directory");
        assert_eq!(fs.walk("moved/two").unwrap().node, two.node);
    });
}

#[test]
fn hard_links_are_one_node_and_symbolic_ones_are_not_followed() {
    both(|fs| {
        let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        fs.write(handle, 0, b"x").unwrap();
        let link = fs.link(file.node, ROOT, "link").unwrap();
        assert_eq!((link.node, link.nlink), (file.node, 2));
        fs.unlink(ROOT, "file").unwrap();
        assert!(has_links(fs.lookup(ROOT, "link").unwrap().nlink, 1));
        assert_eq!(fs.getattr(file.node).unwrap().size, 1);
        let symlink = match fs.symlink(ROOT, "symlink", "../../etc/passwd") {
            Err(Errno::PERM) if cfg!(windows) => {
                println!("skipped: this host's file system keeps no symbolic links");
                return;
            }
            made => made.unwrap(),
        };
        assert_eq!(symlink.mode & 0o170_000, 0o120_000);
        assert_eq!(fs.readlink(symlink.node).unwrap(), b"../../etc/passwd");
        assert_eq!(fs.lookup(symlink.node, "x"), Err(Errno::NOTDIR));
        assert_eq!(fs.open(symlink.node, RDONLY), Err(Errno::LOOP));
    });
}

#[test]
fn an_unlinked_file_works_until_it_is_forgotten() {
    both(|fs| {
        let (file, handle) = fs.create(ROOT, "temporary", RDWR, 0o600).unwrap();
        fs.unlink(ROOT, "temporary").unwrap();
        for n in 0..20 {
            fs.mknod(ROOT, &format!("other{n}"), 0o100_600, 0).unwrap();
        }
        fs.write(handle, 0, b"still here").unwrap();
        assert_eq!(fs.getattr(file.node).unwrap().size, 10);
        fs.release(handle).unwrap();
        fs.forget(file.node, 1);
        assert_eq!(fs.getattr(file.node), Err(Errno::STALE));
    });
}

#[test]
fn attributes_are_set_and_kept() {
    both(|fs| {
        let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        fs.write(handle, 0, b"0123456789").unwrap();
        let set = fs.setattr(file.node, 1 | 1 << 3 | 1 << 5, 4, 0o4751, (0, 0)).unwrap();
        assert_eq!((set.size, set.mtime), (4, 1_000_000_000));
        assert!(has_mode(set.mode, 0o104_751), "{:o}", set.mode);
        assert_eq!(fs.lookup(ROOT, "file").unwrap().mode, set.mode);
        assert!(fs.setattr(file.node, 1 << 5 | 1 << 8, 0, 0, (0, 0)).unwrap().mtime > 1_700_000_000);
        let dir = fs.mkdir(ROOT, "dir", 0o700).unwrap();
        assert!(fs.setattr(dir.node, 1 << 3, 0, 0, (0, 0)).is_err(), "truncating a directory");
    });
}

#[test]
fn extended_attributes_are_set_listed_and_removed() {
    both(|fs| {
        let (file, _) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        match fs.setxattr(file.node, "user.color", b"blue") {
            Err(Errno::OPNOTSUPP) => return, // The temporary directory's file system has none.
            set => set.unwrap(),
        }
        assert_eq!(fs.getxattr(file.node, "user.color", 100).unwrap(), b"blue");
        assert_eq!(fs.getxattr(file.node, "user.color", 0).unwrap()[..4], [4, 0, 0, 0]);
        assert_eq!(fs.getxattr(file.node, "user.color", 3), Err(Errno::RANGE));
        assert_eq!(fs.getxattr(file.node, "user.shape", 3), Err(Errno::NODATA));
        assert_eq!(fs.listxattr(file.node).unwrap(), b"user.color\0");
        fs.call(op::REMOVEXATTR, file.node, &Bytes::default().name("user.color").0, 0).unwrap();
        assert_eq!(fs.listxattr(file.node).unwrap(), b"");
    });
}

#[test]
fn space_is_reserved_and_data_is_found() {
    both(|fs| {
        let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
        fs.fallocate(handle, 0, 0, 10_000).unwrap();
        assert_eq!(fs.getattr(file.node).unwrap().size, 10_000);
        fs.write(handle, 0, b"data").unwrap();
        assert_eq!(fs.lseek(handle, 0, 3).unwrap(), 0);
        assert!(fs.lseek(handle, 0, 4).unwrap() <= 10_000);
        assert_eq!(fs.lseek(handle, 20_000, 3), Err(Errno::NXIO));
        assert_eq!(fs.lseek(handle, 0, 0), Err(Errno::INVAL));
        assert_eq!(fs.statfs().unwrap().len(), 80);
    });
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"contents").unwrap();
    let inner = HostFs::directory(dir.path(), Options::default()).unwrap();
    let mut fs = Client::new(Box::new(ReadOnly(inner)));
    let file = fs.lookup(ROOT, "file").unwrap().node;
    for flags in [1, RDWR, 0o1000, 0o2000] {
        assert_eq!(fs.open(file, flags), Err(Errno::ROFS));
    }
    let handle = fs.open(file, RDONLY).unwrap();
    assert_eq!(fs.read(handle, 0, 100).unwrap(), b"contents");
    assert_eq!(fs.write(handle, 0, b"x"), Err(Errno::ROFS));
    assert_eq!(fs.fallocate(handle, 0, 0, 100), Err(Errno::ROFS));
    assert_eq!(fs.create(ROOT, "new", RDWR, 0o600), Err(Errno::ROFS));
    assert_eq!(fs.mkdir(ROOT, "new", 0o700), Err(Errno::ROFS));
    assert_eq!(fs.mknod(ROOT, "new", 0o100_600, 0), Err(Errno::ROFS));
    assert_eq!(fs.symlink(ROOT, "new", "x"), Err(Errno::ROFS));
    assert_eq!(fs.link(file, ROOT, "new"), Err(Errno::ROFS));
    assert_eq!(fs.unlink(ROOT, "file"), Err(Errno::ROFS));
    assert_eq!(fs.rmdir(ROOT, "file"), Err(Errno::ROFS));
    assert_eq!(fs.rename((ROOT, "file"), (ROOT, "new"), 0), Err(Errno::ROFS));
    assert_eq!(fs.setattr(file, 1, 0, 0o777, (0, 0)), Err(Errno::ROFS));
    assert_eq!(fs.setxattr(file, "user.x", b"y"), Err(Errno::ROFS));
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"contents");
}

#[test]
fn a_full_file_system_in_memory_says_so_and_goes_on() {
    let mut fs = Client::new(Box::new(MemFs::new(64 << 10)));
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
    assert_eq!(fs.write(handle, 0, &[1; 60_000]).unwrap(), 60_000);
    assert_eq!(fs.write(handle, 60_000, &[1; 60_000]), Err(Errno::NOSPC));
    assert_eq!(fs.write(handle, u64::MAX - 5, &[1; 10]), Err(Errno::FBIG));
    fs.release(handle).unwrap();
    fs.unlink(ROOT, "file").unwrap();
    fs.tell(op::BATCH_FORGET, 0, &Bytes::default().u32(1).u32(0).u64(2).u64(1).0);
    let (_, handle) = fs.create(ROOT, "again", RDWR, 0o600).unwrap();
    assert_eq!(fs.write(handle, 0, &[1; 60_000]).unwrap(), 60_000);
}

#[test]
fn injected_files_are_there_with_their_modes() {
    let mut memfs = MemFs::new(1 << 20);
    memfs.put("hosts", b"127.0.0.1 localhost\n", 0o644).unwrap();
    assert_eq!(memfs.put("a/b", b"", 0), Err(Errno::INVAL));
    let mut fs = Client::new(Box::new(memfs));
    let file = fs.lookup(ROOT, "hosts").unwrap();
    assert_eq!((file.mode, file.size), (0o100_644, 20));
}

#[test]
fn nothing_is_served_before_init_and_other_versions_are_told() {
    let mut fs = Client::silent(Box::new(MemFs::new(1 << 20)));
    assert_eq!(fs.lookup(ROOT, "x"), Err(Errno::IO));
    let newer = fs.call(op::INIT, 0, &Bytes::default().u32(8).u32(0).u32(0).u32(0).0, 64).unwrap();
    assert_eq!(newer[..4], [7, 0, 0, 0]);
    let older = fs.call(op::INIT, 0, &Bytes::default().u32(7).u32(20).u32(0).u32(0).0, 64);
    assert_eq!(older, Err(Errno::PROTO));
    assert_eq!(fs.lookup(ROOT, "x"), Err(Errno::IO));
}

#[test]
fn unknown_requests_and_wrong_lengths_are_answered() {
    let mut fs = Client::new(Box::new(MemFs::new(1 << 20)));
    assert_eq!(fs.call(39, ROOT, &[0; 40], 40), Err(Errno::NOSYS), "ioctl");
    assert_eq!(fs.call(4095, ROOT, &[], 0), Err(Errno::NOSYS));
    assert_eq!(fs.call(op::OPEN, ROOT, &[0; 3], 16), Err(Errno::INVAL));
    assert_eq!(fs.call(op::SETXATTR, ROOT, &vec![0; 100_000], 0), Err(Errno::TOOBIG));
    assert_eq!(fs.call(op::GETATTR, ROOT, &[0; 16], 10), Err(Errno::INVAL), "no room for the reply");
    let mut header = [0; 40];
    header[..4].copy_from_slice(&99_u32.to_le_bytes());
    let used = fs.rig.ask(1, &[&header], &[16]);
    assert_eq!(used.data[4..8], (-22_i32).to_le_bytes(), "the length does not match");
    fs.rig.add(1, &[&[0; 39]], &[16]);
    assert!(fs.rig.needs_reset(), "no whole header");
}
