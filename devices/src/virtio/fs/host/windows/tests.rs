//! What matters only on Windows, asked through the whole device.

use std::path::Path;

use windows_sys::Wdk::Storage::FileSystem::FILE_OPEN;
use windows_sys::Win32::Storage::FileSystem::{FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA};
use windows_sys::Win32::System::Ioctl::FSCTL_SET_REPARSE_POINT;

use super::super::super::readonly::ReadOnly;
use super::super::super::testing::Client;
use super::super::super::vfs::{Errno, ROOT};
use super::super::system::System as _;
use super::super::{HostFs, Options};
use super::by_handle::ByHandle;
use super::{calls, names};

const RDONLY: u32 = 0;
const WRONLY: u32 = 1;
const RDWR: u32 = 2;
const APPEND: u32 = 0o2000;

fn share(path: &Path) -> Client {
    Client::new(Box::new(HostFs::directory(path, Options::default()).unwrap()))
}

fn listed(fs: &mut Client) -> Vec<String> {
    let mut names: Vec<_> = fs.list(ROOT, 4000, true).unwrap().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

/// Makes what is there lead elsewhere, by a reparse point with this tag; false, and says so, where it cannot be.
fn turn(path: &Path, tag: u32, target: &str) -> bool {
    let parent = ByHandle::root(path.parent().unwrap()).unwrap();
    let name = names::encode(path.file_name().unwrap().as_encoded_bytes()).unwrap();
    let rights = FILE_WRITE_DATA | FILE_WRITE_ATTRIBUTES | FILE_READ_ATTRIBUTES;
    let file = calls::open_at(&parent.file, &name, rights, FILE_OPEN, 0).unwrap();
    let target: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = target.len();
    let mut data = tag.to_le_bytes().to_vec();
    for word in [8 + len + 4, 0, 0, len, len + 2, 0] {
        data.extend((word as u16).to_le_bytes());
    }
    data.extend(target);
    data.extend([0; 4]);
    let made = calls::control(&file, FSCTL_SET_REPARSE_POINT, &data, &mut []);
    if let Err(why) = made {
        println!("skipped: no reparse points can be made here: {why}");
    }
    made.is_ok()
}

const MOUNT_POINT: u32 = 0xa000_0003;

#[test]
fn a_junction_is_a_directory_that_is_neither_entered_nor_moved_nor_removed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let junction = dir.path().join("junction");
    std::fs::create_dir(&junction).unwrap();
    let mut fs = share(dir.path());
    // Known as a directory before, and held as such.
    let node = fs.lookup(ROOT, "junction").unwrap().node;
    if !turn(&junction, MOUNT_POINT, &format!("\\??\\{}", outside.path().display())) {
        return;
    }
    assert_eq!(fs.lookup(node, "secret"), Err(Errno::ACCESS));
    let found = fs.lookup(ROOT, "junction").unwrap();
    assert_eq!(found.mode & 0o170_000, 0o040_000);
    assert_eq!(fs.lookup(found.node, "secret"), Err(Errno::ACCESS));
    assert_eq!(fs.create(found.node, "new", RDWR, 0o600), Err(Errno::ACCESS));
    assert!(fs.list(found.node, 1000, false).is_err());
    assert_eq!(fs.rmdir(ROOT, "junction"), Err(Errno::BUSY));
    assert_eq!(fs.rename((ROOT, "junction"), (ROOT, "other"), 0), Err(Errno::BUSY));
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
    std::fs::remove_dir(junction).unwrap();
}

#[test]
fn no_name_leads_out_of_the_share_or_to_a_stream() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("share");
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::write(outer.path().join("secret"), b"secret").unwrap();
    std::fs::write(dir.join("sub").join("inner"), b"inner").unwrap();
    std::fs::write(dir.join("file"), b"contents").unwrap();
    let mut fs = share(&dir);
    let absolute = outer.path().join("secret").display().to_string();
    let names = [
        "..\\secret",
        "sub\\inner",
        "sub\\..\\..\\secret",
        "\\secret",
        "C:",
        "C:\\",
        "\\\\?\\C:\\",
        "\\??\\C:\\",
        "file:",
        "file::$DATA",
        "file:stream",
        "sub::$INDEX_ALLOCATION",
        "f*",
        "fil?",
        "file.",
        "file ",
        "file\t",
        &absolute,
    ];
    for name in names {
        if name.contains('/') {
            continue;
        }
        assert_eq!(fs.lookup(ROOT, name).map(|found| found.size), Err(Errno::NOENT), "{name}");
        assert_eq!(fs.unlink(ROOT, name), Err(Errno::NOENT), "{name}");
        assert_eq!(fs.rename((ROOT, name), (ROOT, "x"), 0), Err(Errno::NOENT), "{name}");
    }
    assert_eq!(listed(&mut fs), ["file", "sub"]);
    assert_eq!(std::fs::read(outer.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn names_that_windows_does_not_have_are_made_listed_found_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let mut names = ["a:b", "a\\b", "what?", "aux.c", "nul", "end.", "end ", "tab\there", "\u{fc}ber", "<|>"];
    names.sort();
    for name in names {
        let (_, handle) = fs.create(ROOT, name, RDWR, 0o600).unwrap();
        fs.write(handle, 0, name.as_bytes()).unwrap();
        fs.release(handle).unwrap();
    }
    assert_eq!(listed(&mut fs), names);
    for name in names {
        let node = fs.lookup(ROOT, name).unwrap().node;
        let handle = fs.open(node, RDONLY).unwrap();
        assert_eq!(fs.read(handle, 0, 100).unwrap(), name.as_bytes());
        fs.release(handle).unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("a\u{f03a}b")).unwrap(), b"a:b");
    fs.rename((ROOT, "a:b"), (ROOT, "b:a"), 0).unwrap();
    fs.mkdir(ROOT, "con", 0o755).unwrap();
    fs.rmdir(ROOT, "con").unwrap();
    for name in names {
        fs.unlink(ROOT, if name == "a:b" { "b:a" } else { name }).unwrap();
    }
    assert!(listed(&mut fs).is_empty());
    assert_eq!(fs.create(ROOT, "\u{f03a}", RDWR, 0o600), Err(Errno::INVAL));
}

#[test]
fn names_of_the_host_that_stand_for_none_of_the_guests_are_hidden() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["shown", "needless\u{f061}"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    let mut fs = share(dir.path());
    assert_eq!(listed(&mut fs), ["shown"]);
    assert_eq!(fs.lookup(ROOT, "needlessa"), Err(Errno::NOENT));
    assert_eq!(fs.lookup(ROOT, "needless\u{f061}"), Err(Errno::INVAL));
}

#[test]
fn an_open_file_is_removed_replaced_and_made_anew_while_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let sub = fs.mkdir(ROOT, "sub", 0o755).unwrap().node;
    let (_, gone) = fs.create(sub, "file", RDWR, 0o600).unwrap();
    fs.write(gone, 0, b"gone").unwrap();
    fs.unlink(sub, "file").unwrap();
    assert_eq!(fs.lookup(sub, "file"), Err(Errno::NOENT));
    let (_, replaced) = fs.create(sub, "file", RDWR, 0o600).unwrap();
    fs.write(replaced, 0, b"replaced").unwrap();
    let (_, new) = fs.create(sub, "new", RDWR, 0o600).unwrap();
    fs.write(new, 0, b"new").unwrap();
    fs.rename((sub, "new"), (sub, "file"), 0).unwrap();
    for (handle, contents) in [(gone, &b"gone"[..]), (replaced, b"replaced"), (new, b"new")] {
        assert_eq!(fs.read(handle, 0, 100).unwrap(), contents);
    }
    assert_eq!(fs.lookup(sub, "file").unwrap().size, 3);
    fs.unlink(sub, "file").unwrap();
    // Nothing of them keeps the directory, nor can it be seen.
    fs.rmdir(ROOT, "sub").unwrap();
    assert!(listed(&mut fs).is_empty());
    assert_eq!(fs.read(gone, 0, 100).unwrap(), b"gone");
    drop(fs);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_may_not_be_written_keeps_that_and_can_be_removed_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (file, handle) = fs.create(ROOT, "file", RDWR, 0o444).unwrap();
    assert_eq!(file.mode, 0o100_555);
    fs.write(handle, 0, b"by who made it").unwrap();
    fs.release(handle).unwrap();
    assert!(std::fs::metadata(dir.path().join("file")).unwrap().permissions().readonly());
    match fs.open(file.node, WRONLY) {
        // Wine leaves it to the system below, where root may.
        Ok(handle) => fs.release(handle).unwrap(),
        refused => assert_eq!(refused, Err(Errno::ACCESS)),
    }
    assert_eq!(fs.setattr(file.node, 1, 0, 0o600, (0, 0)).unwrap().mode, 0o100_755);
    let handle = fs.open(file.node, WRONLY).unwrap();
    fs.release(handle).unwrap();
    fs.setattr(file.node, 1, 0, 0o400, (0, 0)).unwrap();
    fs.create(ROOT, "new", RDWR, 0o600).unwrap();
    fs.rename((ROOT, "new"), (ROOT, "file"), 0).unwrap();
    let file = fs.lookup(ROOT, "file").unwrap();
    assert_eq!(file.mode, 0o100_755);
    fs.setattr(file.node, 1, 0, 0o400, (0, 0)).unwrap();
    fs.unlink(ROOT, "file").unwrap();
    assert!(listed(&mut fs).is_empty());
    // Owners are one, and others cannot be given.
    let (file, _) = fs.create(ROOT, "owned", RDWR, 0o600).unwrap();
    assert_eq!(fs.setattr(file.node, 1 << 1 | 1 << 2, 0, 0, (77, 88)), Err(Errno::PERM));
    let kept = fs.setattr(file.node, 1 << 1 | 1 << 2, 0, 0, (0, 0)).unwrap();
    assert_eq!((kept.uid, kept.gid), (0, 0));
}

#[test]
fn what_is_not_kept_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    for mode in [0o010_644, 0o020_666, 0o060_666, 0o140_755] {
        assert_eq!(fs.mknod(ROOT, "node", mode, 0), Err(Errno::PERM), "{mode:o}");
    }
    let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
    assert_eq!(fs.setxattr(file.node, "user.color", b"blue"), Err(Errno::OPNOTSUPP));
    assert_eq!(fs.listxattr(file.node).unwrap(), b"");
    assert_eq!(fs.fallocate(handle, 1, 0, 100), Err(Errno::OPNOTSUPP), "behind the end");
    assert_eq!(fs.fallocate(handle, 0x10, 0, 100), Err(Errno::OPNOTSUPP), "zeroed in place");
    assert_eq!(fs.fallocate(handle, 0, u64::MAX, 100), Err(Errno::FBIG));
    let sub = fs.mkdir(ROOT, "sub", 0o755).unwrap().node;
    assert_eq!(fs.link(sub, ROOT, "other"), Err(Errno::PERM));
    assert_eq!(fs.rename((ROOT, "file"), (ROOT, "x"), 4), Err(Errno::INVAL), "a whiteout");
    assert_eq!(fs.rename((ROOT, "file"), (ROOT, "sub"), 0), Err(Errno::ISDIR));
    assert_eq!(fs.rename((ROOT, "sub"), (ROOT, "file"), 0), Err(Errno::NOTDIR));
    assert_eq!(fs.unlink(ROOT, "sub"), Err(Errno::ISDIR));
    assert_eq!(fs.rmdir(ROOT, "file"), Err(Errno::NOTDIR));
    assert_eq!(listed(&mut fs), ["file", "sub"]);
}

#[test]
fn what_is_appended_goes_to_the_end_wherever_that_is_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (_, handle) = fs.create(ROOT, "log", WRONLY | APPEND, 0o600).unwrap();
    fs.write(handle, 0, b"one").unwrap();
    let path = dir.path().join("log");
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().append(true).open(&path).unwrap(), b"-host-")
        .unwrap();
    fs.write(handle, 3, b"two").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"one-host-two");
}

#[test]
fn offsets_that_mean_something_else_to_windows_are_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (file, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
    fs.write(handle, 0, b"contents").unwrap();
    // The end of the file, and where it was read or written last.
    for offset in [u64::MAX, u64::MAX - 1] {
        assert!(fs.write(handle, offset, b"x").is_err(), "{offset:#x}");
        assert_ne!(fs.read(handle, offset, 4).as_deref(), Ok(&b"cont"[..]), "{offset:#x}");
        assert!(fs.setattr(file.node, 1 << 3, offset, 0, (0, 0)).is_err(), "{offset:#x}");
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"contents");
}

#[test]
fn the_case_of_a_name_changes_and_a_link_beside_its_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (file, _) = fs.create(ROOT, "name", RDWR, 0o600).unwrap();
    assert_eq!(fs.lookup(ROOT, "NAME").unwrap().node, file.node);
    fs.rename((ROOT, "name"), (ROOT, "Name"), 0).unwrap();
    let name = listed(&mut fs);
    // Wine says that it did, and keeps the letters.
    assert!(name == ["Name"] || name == ["name"], "{name:?}");
    fs.link(file.node, ROOT, "link").unwrap();
    fs.rename((ROOT, "Name"), (ROOT, "link"), 0).unwrap();
    assert_eq!(listed(&mut fs).len(), 2, "two names of one file, as POSIX has it");
    assert_eq!(fs.rename((ROOT, "Name"), (ROOT, "link"), 1), Err(Errno::EXIST));
}

#[test]
fn a_directory_moves_with_what_the_guest_knows_in_it_and_replaces_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let old = fs.mkdir(ROOT, "old", 0o755).unwrap().node;
    let (file, handle) = fs.create(old, "file", RDWR, 0o600).unwrap();
    fs.release(handle).unwrap();
    let full = fs.mkdir(ROOT, "full", 0o755).unwrap().node;
    fs.create(full, "x", RDWR, 0o600).unwrap();
    fs.mkdir(ROOT, "empty", 0o755).unwrap();
    assert_eq!(fs.rename((ROOT, "old"), (ROOT, "full"), 0), Err(Errno::NOTEMPTY));
    fs.rename((ROOT, "old"), (ROOT, "empty"), 0).unwrap();
    assert_eq!(listed(&mut fs), ["empty", "full"]);
    let handle = fs.open(file.node, RDWR).unwrap();
    fs.write(handle, 0, b"known").unwrap();
    assert_eq!(std::fs::read(dir.path().join("empty").join("file")).unwrap(), b"known");
}

#[test]
fn a_read_only_share_is_read_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"contents").unwrap();
    let mut fs = Client::new(Box::new(ReadOnly(HostFs::directory(dir.path(), Options::default()).unwrap())));
    let file = fs.lookup(ROOT, "file").unwrap();
    let handle = fs.open(file.node, RDONLY).unwrap();
    assert_eq!(fs.read(handle, 0, 100).unwrap(), b"contents");
    assert_eq!(fs.open(file.node, RDWR), Err(Errno::ROFS));
    assert_eq!(fs.unlink(ROOT, "file"), Err(Errno::ROFS));
    assert_eq!(fs.symlink(ROOT, "link", "file"), Err(Errno::ROFS));
    assert_eq!(listed(&mut fs), ["file"]);
}

#[test]
fn holes_are_made_and_found_where_the_file_system_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share(dir.path());
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o600).unwrap();
    fs.write(handle, 0, &[7; 1 << 20]).unwrap();
    match fs.fallocate(handle, 3, 1 << 16, 1 << 19) {
        Err(Errno::OPNOTSUPP) => println!("skipped: this host makes no holes in files"),
        made => {
            made.unwrap();
            let bytes = fs.read(handle, 0, 1 << 20).unwrap();
            assert!(bytes[..1 << 16].iter().all(|&byte| byte == 7));
            assert!(bytes[1 << 16..(1 << 16) + (1 << 19)].iter().all(|&byte| byte == 0));
            assert!(bytes[(1 << 16) + (1 << 19)..].iter().all(|&byte| byte == 7));
            assert_eq!(fs.lseek(handle, 0, 4).unwrap(), 1 << 16);
            assert_eq!(fs.lseek(handle, 1 << 16, 3).unwrap(), (1 << 16) + (1 << 19));
        }
    }
    assert_eq!(fs.lseek(handle, 0, 3).unwrap(), 0);
    assert_eq!(fs.lseek(handle, 1 << 20, 4), Err(Errno::NXIO));
}
