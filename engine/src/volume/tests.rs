use std::os::unix::fs::MetadataExt;

use super::*;
use crate::container::{Bind, Config, Consistency, Plan, RootSource};
use crate::events::told;
use crate::store::{Record, State};
use crate::testing::{Item, layer};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    (dir, store)
}

fn container(store: &Store, name: &str) -> Record {
    let record = Record {
        id: format!("{:0<64}", name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()),
        name: name.into(),
        image: None,
        config: "{}".into(),
        state: State::Exited,
        pid: None,
        exit_code: None,
        oom: false,
        error: String::new(),
        created_ns: now_ns(),
        started_ns: None,
        finished_ns: None,
        restarts: 0,
    };
    store.containers().insert(&record).unwrap();
    record
}

fn mount(name: Option<&str>, target: &str) -> VolumeMount {
    VolumeMount { name: name.map(Into::into), target: target.into(), read_only: false, no_copy: false }
}

fn names(volumes: &Volumes<'_>) -> Vec<String> {
    volumes.list().unwrap().into_iter().map(|volume| volume.name).collect()
}

#[test]
fn a_volume_is_made_once_listed_and_removed_with_its_files() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
    let (made, new) = volumes.create(Some("data"), &labels).unwrap();
    assert!(new && !made.anonymous && volumes.path("data").is_dir());
    fs::write(volumes.path("data").join("file"), "kept").unwrap();
    let (again, new) = volumes.create(Some("data"), &BTreeMap::new()).unwrap();
    assert!(!new && again == made, "the labels of its maker stay");
    assert_eq!(volumes.get("data").unwrap(), made);
    let (other, _) = volumes.create(None, &BTreeMap::new()).unwrap();
    assert!(other.anonymous && other.name.len() == 64);
    assert_eq!(names(&volumes).len(), 2);
    assert!(volumes.remove("data").unwrap() > 0);
    assert!(matches!(volumes.remove("data"), Err(Error::NoSuchVolume { .. })));
    let left: Vec<_> =
        fs::read_dir(store.root().join("volumes")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [other.name.as_str()]);
    let anonymous = format!("volume create {}", other.name);
    assert_eq!(told(store.root()), ["volume create data", &anonymous, "volume destroy data"]);
    // A new one of the name starts empty.
    volumes.create(Some("data"), &BTreeMap::new()).unwrap();
    assert!(is_empty(&volumes.path("data")).unwrap());
}

#[test]
fn names_that_are_none_are_refused() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    for name in ["", "x", "../x", "a/b", ".hidden", "-x", "a b", "\u{e9}\u{e9}", &"x".repeat(129)] {
        assert!(
            matches!(volumes.create(Some(name), &BTreeMap::new()), Err(Error::VolumeName { .. })),
            "{name}"
        );
        assert!(matches!(volumes.remove(name), Err(Error::NoSuchVolume { .. })), "{name}");
    }
}

#[test]
fn a_volume_in_use_stays_and_its_users_are_named() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    let (one, two) = (container(&store, "one"), container(&store, "two"));
    volumes.attach(&one.id, &[mount(Some("data"), "/data"), mount(None, "/anonymous")], None).unwrap();
    volumes
        .attach(&two.id, &[VolumeMount { read_only: true, ..mount(Some("data"), "/other") }], None)
        .unwrap();
    // A later start finds what it had, the volume without a name too.
    volumes.attach(&one.id, &[mount(Some("data"), "/data"), mount(None, "/anonymous")], None).unwrap();
    assert_eq!((volumes.of(&one.id).unwrap().len(), names(&volumes).len()), (2, 2));
    let error = volumes.remove("data").unwrap_err().to_string();
    assert!(error.contains("one, two"), "{error}");
    assert_eq!(volumes.users("data").unwrap(), ["one", "two"]);
    let uses = volumes.of(&two.id).unwrap();
    assert_eq!(uses, [Use { volume: "data".into(), target: "/other".into(), read_only: true }]);
    assert_eq!(volumes.prune(true, |_| false).unwrap().0, [""; 0]);
    // With its container go the volumes that have no name.
    let own = volumes.anonymous_of(&one.id).unwrap();
    assert_eq!(own.len(), 1);
    crate::container::remove_container(&store, &one, true).unwrap();
    assert_eq!(names(&volumes), ["data"]);
    crate::container::remove_container(&store, &two, true).unwrap();
    volumes.remove("data").unwrap();
}

#[test]
fn prune_takes_what_nobody_uses_and_without_all_only_what_has_no_name() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    let record = container(&store, "one");
    volumes.attach(&record.id, &[mount(None, "/a"), mount(Some("named"), "/b")], None).unwrap();
    let keep = BTreeMap::from([("keep".to_owned(), String::new())]);
    volumes.create(Some("kept"), &keep).unwrap();
    volumes.create(Some("unused"), &BTreeMap::new()).unwrap();
    crate::container::remove_container(&store, &record, false).unwrap();
    let (gone, _) = volumes.prune(false, |_| false).unwrap();
    assert!(gone.len() == 1 && gone[0].len() == 64, "{gone:?}");
    let (gone, _) = volumes.prune(true, |volume| volume.labels.contains_key("keep")).unwrap();
    assert_eq!(gone, ["named", "unused"]);
    assert_eq!(names(&volumes), ["kept"]);
}

#[test]
fn what_a_killed_command_left_is_taken_away() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    volumes.create(Some("data"), &BTreeMap::new()).unwrap();
    let root = store.root().join("volumes");
    // Killed before its row was there, and while its files were being removed.
    fs::create_dir_all(root.join("half/_data")).unwrap();
    fs::write(root.join("half/_data/old"), "x").unwrap();
    fs::create_dir_all(root.join(".gone.0123/_data/deep")).unwrap();
    fs::create_dir_all(root.join("unknown/_data/deep")).unwrap();
    volumes.create(Some("half"), &BTreeMap::new()).unwrap();
    assert!(is_empty(&volumes.path("half")).unwrap());
    volumes.prune(false, |_| false).unwrap();
    let mut left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["data", "half"]);
}

#[test]
fn the_images_volumes_are_added_where_nothing_else_is() {
    let mut request = Request::new(RootSource::Image("x".into()));
    request.volumes.push(mount(Some("data"), "/var/lib/db"));
    let image = Process {
        volumes: ["/var/lib/db/", "cache", "/", "/a/../b", "//srv//x"].map(String::from).to_vec(),
        ..Process::default()
    };
    let wanted = wanted(&request, &image);
    let targets: Vec<_> = wanted.iter().map(|volume| volume.target.to_string()).collect();
    assert_eq!(targets, ["/var/lib/db", "/cache", "/srv/x"]);
    assert_eq!(wanted[0].name.as_deref(), Some("data"));
}

/// The root of an image with a directory `/srv/data`, and `/link` that leads there.
fn image(dir: &tempfile::TempDir) -> PathBuf {
    let item = |item: Item, mode| item.mode(mode).owner(33, 44).time(1_000_000_000, 5);
    let layer = layer(&[
        item(Item::dir("srv"), 0o755),
        item(Item::dir("srv/data"), 0o2750),
        item(Item::file("srv/data/big", &[7; 10_000]), 0o640).xattr("user.color", b"blue"),
        item(Item::file("srv/data/name", b"short"), 0o4755),
        item(Item::hard_link("srv/data/again", "srv/data/name"), 0o755),
        item(Item::symlink("srv/data/way-out", "../../../etc/passwd"), 0o777),
        item(Item::dir("srv/data/locked"), 0o500),
        item(Item::file("srv/data/locked/inside", b"deep"), 0o400),
        item(Item::fifo("srv/data/pipe"), 0o600),
        item(Item::device("srv/data/null", true, 1, 3), 0o666),
        item(Item::symlink("link", "/srv/../srv/./data"), 0o777),
        item(Item::symlink("loop", "/loop"), 0o777),
        item(Item::file("file", b"no directory"), 0o644),
    ]);
    let path = dir.path().join("root.erofs");
    crate::testing::erofs(&layer, &path);
    path
}

#[test]
fn an_empty_volume_gets_what_the_image_has_there_once() {
    let (dir, store) = store();
    let volumes = Volumes::new(&store);
    let image = image(&dir);
    let record = container(&store, "one");
    volumes.attach(&record.id, &[mount(Some("data"), "/link")], Some(&image)).unwrap();
    let data = volumes.path("data");
    let meta = |name: &str| data.join(name).symlink_metadata().unwrap();
    assert_eq!(fs::read(data.join("big")).unwrap(), vec![7; 10_000]);
    assert_eq!(fs::read(data.join("name")).unwrap(), b"short");
    assert_eq!((meta("again").ino(), meta("again").nlink()), (meta("name").ino(), 2));
    assert_eq!(fs::read_link(data.join("way-out")).unwrap(), Path::new("../../../etc/passwd"));
    assert_eq!((meta("name").mode() & 0o7777, meta("locked").mode() & 0o7777), (0o4755, 0o500));
    assert_eq!((meta("big").mtime(), meta("locked").mtime()), (1_000_000_000, 1_000_000_000));
    let top = fs::metadata(&data).unwrap();
    assert_eq!(top.mode() & 0o7777, 0o2750);
    if rustix::process::geteuid().is_root() {
        assert_eq!((top.uid(), top.gid(), meta("name").uid()), (33, 44, 33));
        assert_eq!(meta("null").rdev(), 0x103);
    }
    let inside: Vec<_> =
        fs::read_dir(data.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(inside, ["_data"], "nothing is left beside");
    // What is there stays.
    fs::write(data.join("name"), "changed").unwrap();
    let second = container(&store, "two");
    volumes.attach(&second.id, &[mount(Some("data"), "/srv/data")], Some(&image)).unwrap();
    assert_eq!(fs::read(data.join("name")).unwrap(), b"changed");
}

#[test]
fn a_volume_stays_empty_where_the_image_has_no_directory_or_it_is_not_wanted() {
    let (dir, store) = store();
    let volumes = Volumes::new(&store);
    let image = image(&dir);
    let record = container(&store, "one");
    let wanted = [
        mount(Some("v1"), "/file"),
        mount(Some("v2"), "/loop"),
        mount(Some("v3"), "/nowhere"),
        mount(Some("v4"), "/srv/data/big/x"),
        VolumeMount { no_copy: true, ..mount(Some("v5"), "/srv/data") },
    ];
    volumes.attach(&record.id, &wanted, Some(&image)).unwrap();
    for name in ["v1", "v2", "v3", "v4", "v5"] {
        assert!(is_empty(&volumes.path(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_damaged_image_is_an_error_and_no_more() {
    let (dir, store) = store();
    let volumes = Volumes::new(&store);
    let good = image(&dir);
    let bytes = fs::read(good).unwrap();
    let record = container(&store, "one");
    let bad = dir.path().join("bad");
    for at in (1024..bytes.len()).step_by(97) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0xff;
        fs::write(&bad, bytes).unwrap();
        let name = format!("volume-{at}");
        let done =
            volumes.attach(&record.id, &[mount(Some(&name), &format!("/srv/data/{at}/../.."))], Some(&bad));
        assert!(matches!(done, Ok(()) | Err(Error::FillVolume { .. })), "{done:?}");
    }
}

#[test]
fn a_container_lends_its_mounts_but_where_there_is_one_already() {
    let (_dir, store) = store();
    let volumes = Volumes::new(&store);
    let bind = |target: &str| Bind {
        host: format!("/srv{target}").into(),
        target: target.into(),
        read_only: false,
        must_exist: false,
        consistency: Consistency::default(),
    };
    let mut lender = Request::new(RootSource::Image("img".into()));
    lender.binds = vec![bind("/a"), bind("/b")];
    let plan = Plan::new(&lender, &Process { cmd: vec!["x".into()], ..Process::default() }, "id").unwrap();
    let mut record = container(&store, "lender");
    record.config = serde_json::to_string(&Config { request: lender, plan }).unwrap();
    store.containers().update(&record).unwrap();
    volumes
        .attach(&record.id, &[mount(Some("data"), "/data"), mount(Some("logs"), "/b/logs")], None)
        .unwrap();

    let mut request = Request::new(RootSource::Image("img".into()));
    request.volumes.push(mount(Some("own"), "/data"));
    volumes.lend("lender", Some(true), &mut request).unwrap();
    let binds: Vec<_> = request.binds.iter().map(|bind| (bind.target.to_string(), bind.read_only)).collect();
    assert_eq!(binds, [("/a".to_owned(), true), ("/b".to_owned(), true)]);
    let lent: Vec<_> =
        request.volumes.iter().map(|volume| (volume.name.as_deref(), volume.read_only)).collect();
    assert_eq!(lent, [(Some("own"), false), (Some("logs"), true)]);
    let before = request.clone();
    volumes.lend("lender", None, &mut request).unwrap();
    assert_eq!(request, before, "a second time changes nothing");
    assert!(matches!(volumes.lend("nobody", None, &mut request), Err(Error::NoSuchContainer { .. })));
}
