use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::reader::{self, Found};
use super::*;
use crate::image::Digest;
use crate::image::tar::{Entry, Kind, Tar};
use crate::testing::{Item, layer};
use crate::{Error, Result};

struct Memory(Vec<Vec<u8>>);

impl Layers for Memory {
    fn open(&self, index: u32) -> Result<Box<dyn Read>> {
        Ok(Box::new(std::io::Cursor::new(self.0[index as usize].clone())))
    }

    fn digest(&self, index: u32) -> Digest {
        Digest::of(&self.0[index as usize])
    }
}

struct Built {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    found: BTreeMap<String, Found>,
}

fn build(layers: &[Vec<u8>]) -> Built {
    let mut tree = Tree::new();
    for (index, layer) in layers.iter().enumerate() {
        tree.begin_layer(index as u32);
        let mut tar = Tar::new(layer.as_slice());
        while let Some(entry) = tar.next_entry().unwrap() {
            tree.apply(&entry).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.erofs");
    write(&tree, &Memory(layers.to_vec()), &Digest::of(b"test"), &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let found = reader::read(&bytes);
    fsck(&path);
    Built { _dir: dir, path, bytes, found }
}

/// The format's own checker, where it is installed.
fn fsck(path: &Path) {
    match Command::new("fsck.erofs").arg(path).output() {
        Ok(done) => {
            let text = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && !text.contains("<E>"), "fsck.erofs: {text}");
        }
        Err(_) => eprintln!("skipped: no fsck.erofs"),
    }
}

fn many_kinds() -> Vec<u8> {
    let big: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let mut items = vec![
        Item::dir("./").mode(0o755).time(1_700_000_000, 0),
        Item::dir("etc/"),
        Item::file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
        Item::file("etc/empty", b""),
        Item::file("bin/su", &[1; 2048]).mode(0o4755).owner(0, 70_000),
        Item::file("bin/just-over", &[2; 2049]),
        Item::file("bin/block", &[3; 4096]).owner(1000, 1000),
        Item::file("bin/big", &big).time(-5, 123_456_789),
        Item::hard_link("bin/big2", "bin/big"),
        Item::hard_link("etc/big3", "/bin/../bin/big"),
        Item::file("bin/ping", b"ping").xattr("security.capability", &capability).xattr("user.note", b"n"),
        Item::file("bin/fat", b"fat").xattr("user.large", &[7; 50_000]),
        Item::symlink("lib", "usr/lib"),
        Item::symlink("long", &"x/".repeat(2000)),
        Item::device("dev/null", true, 1, 3),
        Item::device("dev/loop300", false, 7, 300),
        Item::fifo("run/pipe"),
        Item::dir("tmp/").mode(0o1777),
        Item::file(&format!("names/{}", "n".repeat(255)), b"long"),
        Item::file("names/-before-dot", b""),
        Item::file("names/!", b""),
        Item::file("names/\u{e9}t\u{e9}", b"utf-8"),
    ];
    for number in 0..3000 {
        items.push(Item::file(&format!("many/file-{number:05}"), &[number as u8; 10]));
    }
    layer(&items)
}

#[test]
fn every_kind_of_file_comes_out_as_it_went_in() {
    let built = build(&[many_kinds()]);
    let at = |path: &str| &built.found[path];
    assert_eq!(at("/").mtime, (1_700_000_000, 0));
    assert_eq!(at("/etc/passwd").data, b"root:x:0:0::/root:/bin/sh\n");
    assert_eq!((at("/bin/su").mode, at("/bin/su").gid), (0o104755, 70_000));
    assert_eq!(at("/bin/just-over").data, [2; 2049]);
    assert_eq!((at("/bin/block").data.as_slice(), at("/bin/block").uid), (&[3; 4096][..], 1000));
    let big = at("/bin/big");
    assert_eq!((big.data.len(), big.nlink, big.mtime), (1_200_000, 3, (-5, 123_456_789)));
    assert_eq!(&big.data[1_199_996..], 299_999u32.to_le_bytes());
    assert_eq!((at("/bin/big2").nid, at("/etc/big3").nid), (big.nid, big.nid));
    assert_eq!(at("/bin/ping").xattrs["security.capability"].len(), 20);
    assert_eq!(at("/bin/ping").xattrs["user.note"], b"n");
    assert_eq!(at("/bin/fat").xattrs["user.large"], [7; 50_000]);
    assert_eq!(at("/bin/fat").data, b"fat");
    assert_eq!((at("/lib").data.as_slice(), at("/lib").mode), (&b"usr/lib"[..], 0o120777));
    assert_eq!(at("/long").data.len(), 4000);
    assert_eq!((at("/dev/null").mode, at("/dev/null").rdev), (0o020644, 0x103));
    assert_eq!((at("/dev/loop300").mode, at("/dev/loop300").rdev), (0o060644, 0x0010_072c));
    assert_eq!(at("/run/pipe").mode, 0o010644);
    assert_eq!(at("/tmp").mode, 0o041777);
    assert_eq!(at(&format!("/names/{}", "n".repeat(255))).data, b"long");
    assert_eq!(at("/names/\u{e9}t\u{e9}").data, b"utf-8");
    assert_eq!(at("/many/file-02999").data, [(2999 % 256) as u8; 10]);
    assert_eq!(built.found.keys().filter(|path| path.starts_with("/many/")).count(), 3000);
    assert!(at("/many/file-00000").compact, "the common time does not make inodes compact");
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    assert!(build(&[many_kinds()]).bytes == build(&[many_kinds()]).bytes);
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let built = build(&[]);
    assert_eq!(built.found.len(), 1);
    assert_eq!(built.bytes.len(), 4096);
}

#[test]
fn a_file_that_an_upper_layer_replaces_takes_no_space() {
    let lower = layer(&[Item::file("a", &[1; 1 << 20]), Item::file("b", b"keep")]);
    let upper = layer(&[Item::file("a", b"new")]);
    let built = build(&[lower, upper]);
    assert!(built.bytes.len() <= 2 * 4096, "{}", built.bytes.len());
    assert_eq!(
        (built.found["/a"].data.as_slice(), built.found["/b"].data.as_slice()),
        (&b"new"[..], &b"keep"[..])
    );
}

#[test]
fn larger_files_start_on_blocks_in_the_order_of_the_layer() {
    let items: Vec<_> = ["z", "m", "a"].iter().map(|name| Item::file(name, &[9; 5000])).collect();
    let built = build(&[layer(&items)]);
    let blocks: Vec<_> = ["/z", "/m", "/a"].iter().map(|path| built.found[*path].block).collect();
    assert_eq!(blocks, [1, 3, 5]);
}

#[test]
fn the_kernel_and_fsck_read_the_same_tree() {
    let built = build(&[many_kinds()]);
    let dir = tempfile::tempdir().unwrap();
    let mut seen = false;
    if rustix::process::geteuid().is_root() {
        let mount = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(&built.path)
            .arg(dir.path())
            .output();
        if mount.is_ok_and(|done| done.status.success()) {
            let result = std::panic::catch_unwind(|| compare(&built.found, dir.path(), true));
            assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
            result.unwrap();
            seen = true;
        }
        let out = dir.path().join("out");
        let extract =
            Command::new("fsck.erofs").arg(format!("--extract={}", out.display())).arg(&built.path).output();
        if let Ok(done) = extract {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            compare(&built.found, &out, false);
            seen = true;
        }
    }
    if !seen {
        eprintln!("skipped: needs root, and erofs in the kernel or fsck.erofs");
    }
}

/// Compares what our reader saw with a directory; extraction keeps less than a mount does.
fn compare(expected: &BTreeMap<String, Found>, root: &Path, mounted: bool) {
    use std::os::unix::fs::MetadataExt;
    for (path, found) in expected {
        let real = root.join(path.trim_start_matches('/'));
        let meta = fs::symlink_metadata(&real).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(meta.mode() >> 12, u32::from(found.mode >> 12), "{path}");
        match found.mode >> 12 {
            0o10 => assert!(fs::read(&real).unwrap() == found.data, "{path}"),
            0o12 => {
                assert_eq!(fs::read_link(&real).unwrap().as_os_str().as_encoded_bytes(), found.data, "{path}")
            }
            0o04 => {
                let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
                let children = expected.keys().filter(|other| {
                    other.strip_prefix(&prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
                });
                assert_eq!(fs::read_dir(&real).unwrap().count(), children.count(), "{path}");
            }
            _ => {
                let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
                assert_eq!((minor & 0xff) | major << 8 | (minor & !0xff) << 12, found.rdev, "{path}");
            }
        }
        if mounted {
            assert_eq!(meta.mode() & 0o7777, u32::from(found.mode & 0o7777), "{path}");
            assert_eq!(
                (meta.uid(), meta.gid(), meta.nlink()),
                (found.uid, found.gid, found.nlink.into()),
                "{path}"
            );
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (found.mtime.0, found.mtime.1.into()), "{path}");
            assert_eq!(meta.ino(), found.nid, "{path}");
            for (name, value) in &found.xattrs {
                let mut buffer = vec![0; 65536];
                let length = rustix::fs::lgetxattr(&real, name.as_str(), &mut buffer).unwrap();
                assert!(buffer[..length] == value[..], "{path}: {name}");
            }
        }
    }
}

#[test]
fn a_layer_that_ends_early_in_the_second_pass_is_an_error() {
    let whole = layer(&[Item::file("a", &[1; 10_000])]);
    let mut tree = Tree::new();
    let mut tar = Tar::new(whole.as_slice());
    while let Some(entry) = tar.next_entry().unwrap() {
        tree.apply(&entry).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let cut = Memory(vec![whole[..5000].to_vec()]);
    let error = write(&tree, &cut, &Digest::of(b""), &dir.path().join("out")).unwrap_err();
    assert!(matches!(error, Error::Layer { .. }), "{error}");
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        return eprintln!("skipped: no /dev/full");
    }
    let error = std::io::Write::write_all(&mut fs::File::options().write(true).open(full).unwrap(), b"x")
        .unwrap_err();
    let error = Error::io("write", "x", error);
    assert!(error.to_string().starts_with("no space left for x: free some space"), "{error}");
}

#[test]
fn a_sparse_file_comes_out_whole_and_its_holes_take_no_space() {
    let lower = layer(&[Item::file("a", &[1; 9000]), Item::file("z", &[2; 5000])]);
    // GNU tar's format 0.1, by its records: 64 MiB with a piece in the midst and one at the end.
    let sparse = |name: &str, size: &str, map: &str, data: &[u8]| {
        let mut tar = ::tar::Builder::new(Vec::new());
        let records = [("GNU.sparse.name", name), ("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        tar.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
        let mut header = ::tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_path("GNUSparseFile.0/short").unwrap();
        header.set_cksum();
        tar.append(&header, data).unwrap();
        let mut bytes = tar.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes
    };
    let upper = [
        sparse("small", "100", "50,3,60,1", b"abcd"),
        sparse("large", "67108864", "1000000,5000,67108860,4", &[7; 5004]),
        sparse("hole", "3000000", "3000000,0", b""),
        layer(&[Item::file("b", &[3; 9000])]),
    ]
    .concat();
    let built = build(&[lower, upper]);
    let at = |path: &str| &built.found[path].data;
    let mut small = vec![0; 100];
    small[50..53].copy_from_slice(b"abc");
    small[60] = b'd';
    assert_eq!(at("/small"), &small);
    let mut large = vec![0; 64 << 20];
    large[1_000_000..1_005_000].fill(7);
    large[(64 << 20) - 4..].fill(7);
    assert!(at("/large") == &large, "large is another");
    assert!(at("/hole") == &vec![0; 3_000_000], "hole is another");
    assert_eq!((at("/a"), at("/b"), at("/z")), (&vec![1; 9000], &vec![3; 9000], &vec![2; 5000]));
    let taken = fs::metadata(&built.path).unwrap().blocks() * 512;
    assert!(taken < 1 << 20, "{taken} bytes for 30 KiB of data");

    // A volume's copy of it has the holes, too.
    let into = tempfile::tempdir().unwrap();
    let image = Image::open(&built.path).unwrap();
    assert!(image.copy_directory(b"/", &fs::File::open(into.path()).unwrap().into()).unwrap());
    assert!(fs::read(into.path().join("large")).unwrap() == large, "the copy is another");
    assert!(fs::read(into.path().join("hole")).unwrap() == vec![0; 3_000_000], "the copy is another");
    assert_eq!(fs::read(into.path().join("small")).unwrap(), small);
    assert!(
        fs::metadata(into.path().join("large")).unwrap().blocks() * 512 < 1 << 20,
        "the copy is not sparse"
    );
}

#[test]
fn a_sparse_file_larger_than_the_format_is_an_error() {
    let mut tree = Tree::new();
    for size in [17 << 40, u64::MAX] {
        let entry = Entry {
            path: b"f".to_vec(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            map: None,
            mtime: (0, 0),
            link: Vec::new(),
            xattrs: Vec::new(),
            device: (0, 0),
            data_offset: 0,
        };
        tree.apply(&entry).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = write(&tree, &Memory(Vec::new()), &Digest::of(b"x"), &dir.path().join("f")).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
    }
}
