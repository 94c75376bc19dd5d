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
    };
    save(&store, "saved", &about);
    (dir, store, image)
}

fn save(store: &Store, name: &str, about: &About) {
    let draft = Snapshots::new(store).draft(&Target::Name(name.into())).unwrap();
    fs::write(draft.path().join("memory"), "memory").unwrap();
    draft.finish(about).unwrap();
}

#[test]
fn what_another_host_or_version_made_is_refused_with_what_differs() {
    let (_dir, store, _) = store();
    let snapshots = Snapshots::new(&store);
    let about = open(&snapshots.find("saved").unwrap().path).unwrap();
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
        let error = crate::chain(&open(&snapshots.find(&name).unwrap().path).unwrap_err());
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
