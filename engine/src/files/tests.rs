use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::image::tar::{Kind, Tar};

fn node(path: &str, kind: NodeKind) -> Node {
    Node {
        path: path.into(),
        kind,
        mode: 0o4750,
        uid: 1,
        gid: 2,
        mtime: (1_000_000_000, 0),
        size: 0,
        device: (0, 0),
        link: Vec::new(),
        xattrs: Vec::new(),
    }
}

fn link(path: &str, kind: NodeKind, to: &str) -> Node {
    Node { link: to.into(), ..node(path, kind) }
}

fn put(extract: &mut Extract, nodes: &[(Node, &[u8])]) -> Result<()> {
    for (node, data) in nodes {
        extract.node(Node { size: data.len() as u64, ..node.clone() })?;
        if !data.is_empty() {
            extract.data(data)?;
        }
    }
    Ok(())
}

#[test]
fn nodes_become_files_with_modes_and_times_and_without_setuid() {
    let dir = tempfile::tempdir().unwrap();
    let mut extract = Extract::new(dir.path(), false).unwrap();
    let nodes: [(Node, &[u8]); 4] = [
        (node("d", NodeKind::Directory), b""),
        (node("d/f", NodeKind::File), b"data"),
        (link("d/s", NodeKind::Symlink, "/etc/passwd"), b""),
        (link("d/h", NodeKind::HardLink, "d/f"), b""),
    ];
    put(&mut extract, &nodes).unwrap();
    extract.finish().unwrap();
    let meta = std::fs::metadata(dir.path().join("d/f")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
    assert_eq!(std::fs::read(dir.path().join("d/h")).unwrap(), b"data");
    assert_eq!(std::fs::read_link(dir.path().join("d/s")).unwrap(), std::path::Path::new("/etc/passwd"));
    let modified = std::fs::metadata(dir.path().join("d")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_000_000_000);
}

#[test]
fn nothing_leaves_the_directory_whatever_the_guest_says() {
    let outer = tempfile::tempdir().unwrap();
    let (inside, outside) = (outer.path().join("in"), outer.path().join("out"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    symlink(&outside, inside.join("trap")).unwrap();
    symlink(outside.join("kept"), inside.join("file")).unwrap();
    let put = |nodes: &[(Node, &[u8])]| {
        let mut extract = Extract::new(&inside, false).unwrap();
        put(&mut extract, nodes).and_then(|()| extract.finish())
    };
    for path in ["../evil", "a/../../evil", "..", "trap/evil", "a\0b"] {
        assert!(put(&[(node(path, NodeKind::File), b"evil")]).is_err(), "{path:?}");
    }
    let planted: [(Node, &[u8]); 2] =
        [(link("sub", NodeKind::Symlink, "../out"), b""), (node("sub/evil", NodeKind::File), b"evil")];
    assert!(put(&planted).is_err());
    assert!(put(&[(link("stolen", NodeKind::HardLink, "../out/kept"), b"")]).is_err());
    assert!(put(&[(link("stolen", NodeKind::HardLink, "trap/kept"), b"")]).is_err());
    assert!(put(&[(node("trap", NodeKind::Directory), b"")]).is_err(), "a link is no directory");
    // A link in the way of a file is replaced, not followed; an absolute name is one below the directory.
    put(&[(node("file", NodeKind::File), b"new"), (node("/etc/x", NodeKind::File), b"x")]).unwrap();
    assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"new");
    assert_eq!(std::fs::read(inside.join("etc/x")).unwrap(), b"x");
    let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
    assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"kept");
}

#[test]
fn data_that_does_not_fit_its_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut extract = Extract::new(dir.path(), false).unwrap();
    assert!(extract.data(b"x").is_err());
    extract.node(Node { size: 2, ..node("f", NodeKind::File) }).unwrap();
    assert!(extract.data(b"123").is_err());
    let mut extract = Extract::new(dir.path(), false).unwrap();
    extract.node(Node { size: 2, ..node("g", NodeKind::File) }).unwrap();
    assert!(extract.node(node("h", NodeKind::File)).is_err());
    assert!(extract.finish().is_err());
}

#[test]
fn what_is_written_as_tar_is_read_as_it_was() {
    let long = "n".repeat(300);
    let nodes = [
        node("d", NodeKind::Directory),
        Node {
            size: 700,
            xattrs: vec![(b"user.x".to_vec(), vec![0, 10, 255])],
            ..node("d/f", NodeKind::File)
        },
        Node { uid: 3_000_000, mtime: (-5, 7), ..node(&long, NodeKind::File) },
        link("l", NodeKind::Symlink, &long),
        link("h", NodeKind::HardLink, "d/f"),
        Node { device: (8, 1), ..node("b", NodeKind::Block) },
        node("p", NodeKind::Fifo),
    ];
    let mut tar = TarWriter::new(Vec::new());
    for node in &nodes {
        tar.node(node).unwrap();
        if node.size > 0 {
            tar.data(&vec![7; 300]).unwrap();
            tar.data(&vec![7; 400]).unwrap();
        }
    }
    let bytes = tar.finish().unwrap();
    assert_eq!(bytes.len() % 512, 0);
    let mut tar = Tar::new(bytes.as_slice());
    for wanted in &nodes {
        let found = tar.next_entry().unwrap().unwrap();
        let path = found.path.strip_suffix(b"/").unwrap_or(&found.path);
        assert_eq!(path, wanted.path);
        assert_eq!((found.uid, found.gid, u32::from(found.mode)), (wanted.uid, 2, 0o4750));
        assert_eq!((found.size, found.device, &found.link), (wanted.size, wanted.device, &wanted.link));
        assert_eq!(found.xattrs, wanted.xattrs);
        assert_eq!(found.kind == Kind::HardLink, wanted.kind == NodeKind::HardLink);
        if wanted.mtime.0 > 0 {
            assert_eq!(found.mtime, wanted.mtime);
        }
        let mut data = Vec::new();
        tar.read_to_end(&mut data).unwrap();
        assert_eq!(data, vec![7; usize::try_from(wanted.size).unwrap()]);
    }
    assert!(tar.next_entry().unwrap().is_none());
}

#[test]
fn a_tar_writer_takes_neither_more_data_than_a_file_has_nor_less() {
    let mut tar = TarWriter::new(Vec::new());
    tar.node(&Node { size: 2, ..node("f", NodeKind::File) }).unwrap();
    assert!(tar.data(b"123").is_err());
    assert!(tar.node(&node("g", NodeKind::File)).is_err());
    assert!(tar.finish().is_err());
}
