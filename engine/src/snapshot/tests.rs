use std::sync::Arc;

use servin_vmm::hv::fake::{Fake, FakeCpu};
use servin_vmm::{Snapshot, Vm, VmBuilder};

use super::*;
use crate::container::{Plan, Request, RootSource};
use crate::image::{Composed, Images, Platform, Process, Removed};
use crate::store::Finding;
use crate::testing::{Item, layer};

/// A store with the image `hello:1`, and a snapshot `saved` of a container made from it.
fn store() -> (tempfile::TempDir, Store, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    let named = Composed { name: Some("hello:1".parse().unwrap()), ..Composed::default() };
    let mut tar = &layer(&[Item::file("hello", b"hello")])[..];
    let image = Images::new(&store).import(&mut tar, &Platform::native(), &named).unwrap().id;
    let request = Request::new(RootSource::Image("hello:1".into()));
    let plan = Plan::new(&request, &Process { cmd: vec!["x".into()], ..Process::default() }, "id").unwrap();
    let about = About {
        servin: "0.0.1".into(),
        protocol: proto::VERSION,
        id: "c".repeat(64),
        name: "web".into(),
        image: Some(image.to_string()),
        config: Config { request, plan },
        volumes: Vec::new(),
        hypervisor: hypervisor(),
        processor: host::cpu_identity(),
        created_ns: now_ns(),
        number: None,
        parent: None,
    };
    save(&store, "saved", &about);
    (dir, store, image)
}

fn save(store: &Store, name: &str, about: &About) {
    let draft = Snapshots::new(store).draft(&Target::Name(name.into()), &[]).unwrap();
    fs::write(draft.place().dir.join("memory"), "memory").unwrap();
    draft.finish(about).unwrap();
}

fn restored(store: &Store, name: &str) -> Result<Chain> {
    open(store, &Snapshots::new(store).find(name)?.path).map(|(_, chain)| chain)
}

fn refusal(store: &Store, name: &str) -> String {
    crate::chain(&restored(store, name).unwrap_err())
}

#[test]
fn what_another_host_or_version_made_is_refused_with_what_differs() {
    let (_dir, store, _) = store();
    let snapshots = Snapshots::new(&store);
    let (about, _) = open(&store, &snapshots.find("saved").unwrap().path).unwrap();
    type Change = fn(&mut About);
    let changes: [(Change, &str); 3] = [
        (|about| about.protocol += 1, "use servin 0.0.1, which made it"),
        (|about| about.hypervisor = "other".into(), "made on the hypervisor other, and this host has"),
        (|about| about.processor.push(1), "made on another processor"),
    ];
    for (index, (change, why)) in changes.into_iter().enumerate() {
        let (mut changed, name) = (about.clone(), format!("changed{index}"));
        change(&mut changed);
        save(&store, &name, &changed);
        let error = refusal(&store, &name);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_image_stays_while_a_snapshot_needs_it() {
    let (_dir, store, image) = store();
    let images = Images::new(&store);
    let error = images.remove("hello:1", false).unwrap_err().to_string();
    assert_eq!(error, "cannot remove image hello:1: snapshot saved is made from it: remove that first");
    assert_eq!(images.prune(true).unwrap().0, []);
    Snapshots::new(&store).remove("saved").unwrap();
    assert!(images.remove("hello:1", false).unwrap().contains(&Removed::Deleted(image)));
}

#[test]
fn a_damaged_snapshot_is_found_by_the_check_of_the_store() {
    let (_dir, store, _) = store();
    let check = || crate::store::check(&store, false, &mut |_| {}).unwrap();
    assert_eq!(check(), []);
    fs::write(Snapshots::new(&store).find("saved").unwrap().path.join("memory"), "nemory").unwrap();
    let [Finding { what, .. }] = &check()[..] else { panic!("one finding") };
    assert!(what.starts_with("snapshot saved: its file memory is damaged"), "{what}");
}

/// Saves a machine of the fake hypervisor, whose guest writes a number first, under a name; the snapshot builds on one of
/// those that the machine knows.
fn save_machine(store: &Store, name: &str, vm: &Vm, cpu: &FakeCpu, number: u32) -> usize {
    let about = open(store, &Snapshots::new(store).find("saved").unwrap().path).unwrap().0;
    cpu.write32(0x5000, number);
    vm.pause().unwrap();
    let known: Vec<String> = vm.known().iter().map(ToString::to_string).collect();
    let draft = Snapshots::new(store).draft(&Target::Name(name.into()), &known).unwrap();
    let Place { dir, below, follow } = draft.place();
    let id = match &below[..] {
        [] => vm.save(&dir),
        below => vm.save_changes(&dir, &Snapshot::open_chain(below).unwrap()),
    };
    assert!(follow && vm.follow(id.unwrap()).unwrap());
    vm.resume().unwrap();
    draft.finish(&about).unwrap();
    below.len()
}

/// A machine that was saved three times, each time with what changed.
fn lineage() -> (tempfile::TempDir, Store) {
    let (dir, store, _) = store();
    let fake = Fake::new();
    let vm = VmBuilder::new().hypervisor(Arc::new(fake.clone())).memory_mib(32).build().unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(0).unwrap();
    for (below, name) in ["one", "two", "three"].into_iter().enumerate() {
        assert_eq!(save_machine(&store, name, &vm, &cpu, 70 + below as u32), below);
    }
    (dir, store)
}

#[test]
fn a_snapshot_builds_on_the_last_one_has_little_and_is_restored_with_it() {
    let (_dir, store) = lineage();
    let snapshots = Snapshots::new(&store);
    let found = |name: &str| snapshots.find(name).unwrap();
    let names = |name: &str| found(name).about.parent.map(|parent| parent.name);
    assert_eq!((names("one"), names("two"), names("three")), (None, Some("one".into()), Some("two".into())));
    assert!(found("three").size < 64 << 10, "{}", found("three").size);
    let fake = Fake::new();
    let snapshot = Snapshot::open_chain(&restored(&store, "three").unwrap()).unwrap();
    let vm = VmBuilder::new().hypervisor(Arc::new(fake.clone())).restore(snapshot).build().unwrap();
    vm.start().unwrap();
    let cpu = fake.cpu(0).unwrap();
    assert_eq!(cpu.read32(0x5000), 72);
    // What was restored can be saved on top of what it was restored from, and found elsewhere beside its lineage.
    assert_eq!(save_machine(&store, "four", &vm, &cpu, 99), 3);
    let aside = snapshots.dir().with_extension("aside");
    fs::rename(snapshots.dir(), &aside).unwrap();
    assert_eq!(open(&store, &aside.join("four")).unwrap().1.len(), 4);
    assert!(Snapshot::open(&aside.join("four")).unwrap_err().to_string().contains("only what changed"));
}

#[test]
fn what_a_snapshot_builds_on_must_be_there_whole_and_the_same() {
    let (_dir, store) = lineage();
    let snapshots = Snapshots::new(&store);
    let path = |name: &str| snapshots.dir().join(name);
    assert_eq!(restored(&store, "three").unwrap(), ["one", "two", "three"].map(path));
    // Every file of the lineage, altered, cut and missing.
    for (name, file) in ["one", "two"]
        .iter()
        .flat_map(|name| ["state", "memory", "about.json", "sums"].map(|file| (name, file)))
    {
        let file = path(name).join(file);
        let bytes = fs::read(&file).unwrap();
        let mut altered = bytes.clone();
        altered[9] ^= 1;
        let cut = bytes[..bytes.len() - 1].to_vec();
        for bytes in [altered, cut] {
            fs::write(&file, bytes).unwrap();
            let why = refusal(&store, "three");
            assert!(why.contains(*name) || why.contains("not beside it"), "{why}");
        }
        fs::remove_file(&file).unwrap();
        assert!(restored(&store, "three").is_err());
        fs::write(&file, bytes).unwrap();
        restored(&store, "three").unwrap();
    }
    // One that is whole, but another.
    let about = open(&store, &path("one")).unwrap().0;
    let json = path("one").join("about.json");
    let before = (fs::read(&json).unwrap(), fs::read(path("one").join("sums")).unwrap());
    fs::write(&json, serde_json::to_vec(&About { name: "other".into(), ..about }).unwrap()).unwrap();
    sums::write(&path("one")).unwrap();
    assert!(refusal(&store, "three").contains("the snapshot one, on which it builds, was altered since"));
    fs::write(&json, before.0).unwrap();
    fs::write(path("one").join("sums"), before.1).unwrap();
    restored(&store, "three").unwrap();
    // Gone altogether.
    fs::remove_dir_all(path("one")).unwrap();
    let error = refusal(&store, "three");
    assert!(
        error.contains("only what changed since the snapshot one (") && error.contains("neither beside it"),
        "{error}"
    );
    let [Finding { what, .. }, ..] = &crate::store::check(&store, false, &mut |_| {}).unwrap()[..] else {
        panic!("findings")
    };
    assert!(what.contains("since the snapshot one"), "{what}");
}

#[test]
fn what_others_build_on_is_removed_after_them() {
    let (_dir, store) = lineage();
    let snapshots = Snapshots::new(&store);
    let error = snapshots.remove("one").unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot remove the snapshot one: the snapshot two has only what changed since; remove that first"
    );
    let number = snapshots.find("three").unwrap().about.number.unwrap();
    let draft = snapshots.draft(&Target::Name("four".into()), std::slice::from_ref(&number)).unwrap();
    let error = snapshots.remove("three").unwrap_err().to_string();
    assert!(error.contains("a snapshot that is being made"), "{error}");
    drop(draft);
    let names: Vec<String> = ["one", "three", "two", "nope"].map(String::from).to_vec();
    let order = snapshots.children_first(&names).unwrap();
    assert_eq!(order, ["three", "two", "one", "nope"]);
    for name in &order[..3] {
        snapshots.remove(name).unwrap();
    }
    // Without its parent the next one is whole; one for elsewhere always is.
    let draft = snapshots.draft(&Target::Name("four".into()), &[number]).unwrap();
    assert_eq!(draft.place().below, Chain::new());
    drop(draft);
    let place = snapshots.draft(&Target::Directory(store.root().join("x")), &[]).unwrap().place();
    assert!(!place.follow && place.below.is_empty());
}

#[test]
fn a_volume_that_a_snapshot_needs_stays_and_a_missing_one_is_told_with_the_snapshots_name() {
    let (dir, store, _) = store();
    let volumes = Volumes::new(&store);
    for name in ["data", "free"] {
        volumes.create(Some(name), &BTreeMap::new()).unwrap();
    }
    let (mut about, _) = open(&store, &Snapshots::new(&store).find("saved").unwrap().path).unwrap();
    let mount = |name: &str| VolumeMount {
        name: Some(name.into()),
        target: "/data".into(),
        read_only: false,
        no_copy: true,
    };
    about.volumes = vec![mount("data")];
    save(&store, "warm", &about);
    let error = volumes.remove("data").unwrap_err().to_string();
    assert_eq!(error, "volume data is in use by the snapshot warm: remove that first");
    assert_eq!(volumes.prune(true, |_| false).unwrap().0, ["free"]);
    Snapshots::new(&store).remove("warm").unwrap();
    volumes.remove("data").unwrap();

    save(&store, "cold", &about);
    let path = Snapshots::new(&store).find("cold").unwrap().path;
    let restore = crate::monitor::Restore {
        snapshot: path.clone(),
        name: None,
        hostname: None,
        publish: Vec::new(),
        remove: false,
        detach: false,
    };
    let error = restore.open(&store).unwrap_err().to_string();
    assert_eq!(error, "cannot restore cold: its volume data is not here");
    let outside = dir.path().join("outside");
    assert_eq!(Snapshots::new(&store).name_of(&outside), outside.display().to_string());
}
