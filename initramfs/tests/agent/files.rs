//! The file server.

use servin_init::proto::*;

use super::harness::{Guest, Running, command, sh, skipped};

/// An answer with its data.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Node(Node),
    Data(Vec<u8>),
    Change(ChangeKind, String),
    Done,
    Failed(i32, String),
}

/// Asks one question (all of its parts) and takes the whole answer.
fn ask(server: &mut Running, asks: &[FilesAsk<'_>]) -> Vec<Told> {
    for ask in asks {
        server.input(&ask.to_frame().unwrap());
    }
    let (mut frames, mut told) = (Frames::new(Channel::GuestFiles), Vec::new());
    loop {
        while let Some(frame) = frames.next_frame().unwrap() {
            let one = match FilesTell::decode(frame).unwrap() {
                FilesTell::Node(node) => Told::Node(node),
                FilesTell::Data(data) => Told::Data(data.to_vec()),
                FilesTell::Change { kind, path } => Told::Change(kind, String::from_utf8(path).unwrap()),
                FilesTell::Done => Told::Done,
                FilesTell::Failed { errno, message } => Told::Failed(errno, message),
            };
            let last = matches!(one, Told::Done | Told::Failed(..));
            told.push(one);
            if last {
                return told;
            }
        }
        server.output.stdout.clear();
        assert!(server.read(), "the server ended: {:?}", server.output);
        frames.push(&server.output.stdout);
    }
}

fn node(path: &str, kind: NodeKind) -> Node {
    Node {
        path: path.into(),
        kind,
        mode: 0o750,
        uid: 33,
        gid: 34,
        mtime: (1_000_000_000, 5),
        size: 0,
        device: (0, 0),
        link: Vec::new(),
        xattrs: Vec::new(),
    }
}

fn link(path: &str, kind: NodeKind, to: &str) -> Node {
    Node { link: to.into(), ..node(path, kind) }
}

/// Writes these nodes, files with this content.
fn write(server: &mut Running, to: &str, nodes: &[(Node, &[u8])]) -> Told {
    let mut asks = vec![FilesAsk::Write { path: to.into() }];
    for (node, data) in nodes {
        asks.push(FilesAsk::Node(Node { size: data.len() as u64, ..node.clone() }));
        asks.extend(data.chunks(MAX_DATA).map(FilesAsk::Data));
    }
    asks.push(FilesAsk::End);
    let mut told = ask(server, &asks);
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}

fn names(told: &[Told]) -> Vec<(String, NodeKind)> {
    let node = |told: &Told| match told {
        Told::Node(node) => Some((String::from_utf8(node.path.clone()).unwrap(), node.kind)),
        _ => None,
    };
    told.iter().filter_map(node).collect()
}

/// A container whose program waits, and a server beside it.
fn running(script: &str) -> (Guest, Running, Running) {
    let mut guest = Guest::configured(Configure::default());
    let mut main = guest.start(sh(&format!("{script}; echo ready; exec sleep 1000")));
    main.read_until("ready");
    let server = guest.files();
    (guest, main, server)
}

#[test]
fn what_is_written_is_read_as_it_was() {
    if skipped() {
        return;
    }
    let (mut guest, main, mut server) = running("true");
    let big = vec![7; 3 * MAX_DATA + 1];
    let nodes: [(Node, &[u8]); 7] = [
        (node("d", NodeKind::Directory), b""),
        (Node { mode: 0o4755, ..node("d/big", NodeKind::File) }, &big),
        (node("d/empty", NodeKind::File), b""),
        (link("d/hard", NodeKind::HardLink, "d/big"), b""),
        (node("d/pipe", NodeKind::Fifo), b""),
        (link("d/sym", NodeKind::Symlink, "../../outside"), b""),
        (Node { device: (1, 3), ..node("d/null", NodeKind::Character) }, b""),
    ];
    assert_eq!(write(&mut server, "/tmp", &nodes), Told::Done);
    let told = ask(&mut server, &[FilesAsk::Read { path: b"/tmp/d".to_vec(), follow: false }]);
    let mut data = Vec::new();
    for one in &told {
        let Told::Node(found) = one else {
            if let Told::Data(bytes) = one {
                data.extend_from_slice(bytes);
            }
            continue;
        };
        let path = [&b"d"[..], if found.path.is_empty() { b"" } else { b"/" }, &found.path].concat();
        let (wanted, _) = nodes.iter().find(|(node, _)| node.path == path).unwrap();
        assert_eq!((found.kind, found.mtime), (wanted.kind, wanted.mtime), "{found:?}");
        if found.kind == NodeKind::Symlink {
            assert_eq!(found.link, wanted.link);
        } else if found.kind != NodeKind::HardLink {
            assert_eq!(
                (found.mode, found.uid, found.gid, found.device),
                (wanted.mode, 33, 34, wanted.device)
            );
        }
    }
    assert_eq!((names(&told).len(), data == big, told.last()), (7, true, Some(&Told::Done)));
    let stat = ask(&mut server, &[FilesAsk::Stat { path: b"/tmp/d/sym".to_vec(), follow: false }]);
    assert!(matches!(&stat[0], Told::Node(node) if node.link == b"../../outside"), "{stat:?}");
    let stat = ask(&mut server, &[FilesAsk::Stat { path: b"/tmp/d/sym".to_vec(), follow: true }]);
    assert!(matches!(&stat[..], [Told::Failed(2, _)]), "{stat:?}");
    server.end_input();
    assert_eq!(guest.wait(server).code, 0);
    drop(main);
}

#[test]
fn a_server_needs_no_main_program_and_is_the_machines_then() {
    if skipped() {
        return;
    }
    let mut guest = Guest::configured(Configure::default());
    let mut server = guest.files();
    assert_eq!(write(&mut server, "/", &[(node("x", NodeKind::File), b"x")]), Told::Done);
    server.end_input();
    assert_eq!(guest.wait(server).code, 0);
    guest.control.send(&HostMessage::Exec(Exec { id: 9, ..command(&["true"]) }));
    assert!(matches!(guest.control.message(), Some(GuestMessage::ExecFailed { .. })));
}

#[test]
fn links_lead_where_they_lead_in_the_container() {
    if skipped() {
        return;
    }
    let script = "mkdir /real; ln -s /real /in; ln -s /../../../etc /out; ln -s gone /dangling";
    let (_guest, _main, mut server) = running(script);
    let file = |path: &str| (node(path, NodeKind::File), &b"data"[..]);
    assert_eq!(write(&mut server, "/in", &[file("a"), file("deep/b")]), Told::Done);
    assert_eq!(write(&mut server, "/", &[file("in/c"), file("out/planted")]), Told::Done);
    assert_eq!(
        write(&mut server, "/", &[(node("in", NodeKind::Directory), b""), file("dangling")]),
        Told::Done
    );
    let told = ask(&mut server, &[FilesAsk::Read { path: b"/real".to_vec(), follow: false }]);
    let mut found: Vec<String> = names(&told).into_iter().map(|(name, _)| name).collect();
    found.sort();
    assert_eq!(found, ["", "a", "c", "deep", "deep/b"]);
    let stat = |server: &mut Running, path: &str| {
        ask(server, &[FilesAsk::Stat { path: path.into(), follow: false }])
    };
    assert!(matches!(&stat(&mut server, "/etc/planted")[0], Told::Node(_)), "the container's own /etc");
    assert!(!std::path::Path::new("/etc/planted").exists());
    assert!(matches!(&stat(&mut server, "/dangling")[0], Told::Node(node) if node.kind == NodeKind::File));
}

#[test]
fn a_directory_never_takes_the_place_of_a_file_nor_the_other_way_round() {
    if skipped() {
        return;
    }
    let (_guest, _main, mut server) = running("mkdir /d; echo x > /f");
    for (path, kind) in [("d", NodeKind::File), ("f", NodeKind::Directory), ("f/below", NodeKind::File)] {
        let told = write(&mut server, "/", &[(node(path, kind), b"")]);
        assert!(matches!(told, Told::Failed(..)), "{path}: {told:?}");
    }
    assert_eq!(write(&mut server, "/", &[(node("d/ok", NodeKind::File), b"x")]), Told::Done, "it goes on");
}

#[test]
fn changes_are_listed_as_added_changed_and_deleted() {
    if skipped() {
        return;
    }
    let script = "echo x > /etc/plain; rm /etc/script; mkdir -p /new/dir; echo y > /new/dir/f; \
                  mv /bin /nib; /nib/busybox rm -r /root; /nib/busybox mkdir /root";
    let mut guest = Guest::boot(Upper::Tmpfs);
    std::fs::create_dir_all(guest.image().join("root/kept")).unwrap();
    guest.configure(Configure { hostname: "box".into(), hosts: Some(b"x".to_vec()), ..Configure::default() });
    let mut main = guest.start(sh(&format!("{script}; echo ready; exec /nib/busybox sleep 1000")));
    main.read_until("ready");
    let mut server = guest.files();
    let told = ask(&mut server, &[FilesAsk::Changes]);
    let (added, changed, deleted) = (ChangeKind::Added, ChangeKind::Changed, ChangeKind::Deleted);
    let found = |path: &str| {
        told.iter().find_map(|told| match told {
            Told::Change(kind, found) if found == path => Some(*kind),
            _ => None,
        })
    };
    for (path, kind) in [
        ("/etc", Some(changed)),
        ("/etc/plain", Some(changed)),
        ("/etc/script", Some(deleted)),
        ("/etc/passwd", None),
        ("/etc/hosts", None),
        ("/etc/hostname", None),
        ("/new", Some(added)),
        ("/new/dir", Some(added)),
        ("/new/dir/f", Some(added)),
        ("/bin", Some(deleted)),
        ("/nib", Some(added)),
        ("/nib/busybox", Some(added)),
        ("/root", Some(changed)),
        ("/root/kept", Some(deleted)),
        ("/proc", None),
        ("/tmp", None),
    ] {
        assert_eq!(found(path), kind, "{path} in {told:?}");
    }
    assert_eq!(told.last(), Some(&Told::Done));

    let layer = ask(&mut server, &[FilesAsk::Layer { pause: false }]);
    let names = names(&layer);
    let has = |name: &str, kind| names.contains(&(name.to_owned(), kind));
    for (name, kind) in [
        ("etc/plain", NodeKind::File),
        ("etc/.wh.script", NodeKind::File),
        ("new/dir/f", NodeKind::File),
        (".wh.bin", NodeKind::File),
        ("nib", NodeKind::Directory),
        ("nib/busybox", NodeKind::File),
        ("nib/sh", NodeKind::Symlink),
        ("root/.wh..wh..opq", NodeKind::File),
        ("root", NodeKind::Directory),
    ] {
        assert!(has(name, kind), "no {name} in {names:?}");
    }
    assert!(!names.iter().any(|(name, _)| name == "etc/hosts" || name == "proc"), "{names:?}");

    let export = ask(&mut server, &[FilesAsk::Export]);
    let names = self::names(&export);
    let has = |name: &str| names.iter().any(|(found, _)| found == name);
    assert!(has("nib/busybox") && has("etc/passwd") && has("new/dir/f"), "{names:?}");
    assert!(!has("bin") && !has("etc/script") && !has("proc/self"), "{names:?}");
}
