use std::fs;
use std::sync::Arc;

use servin_vmm::VmBuilder;
use servin_vmm::hv::fake::Fake;

use super::*;

/// Saves a machine of the fake under this key; gives the fake, which must outlive it.
fn save(templates: &Templates, key: &Key) {
    let draft = templates.draft(key).unwrap().expect("nobody else makes one");
    let fake = Fake::new();
    let vm = VmBuilder::new().hypervisor(Arc::new(fake.clone())).memory_mib(32).build().unwrap();
    vm.start().unwrap();
    vm.pause().unwrap();
    vm.save(draft.path()).unwrap();
    draft.finish(&about()).unwrap();
}

fn about() -> About {
    About { image: "servin/base".into(), memory_mib: 32, cpus: 1, created_ns: 7 }
}

fn keys(templates: &Templates) -> Vec<String> {
    templates.list().unwrap().into_iter().map(|template| template.key).collect()
}

#[test]
fn a_template_is_found_by_its_key_alone() {
    let root = tempfile::tempdir().unwrap();
    let templates = Templates::at(root.path());
    assert_eq!(templates.list().unwrap(), []);
    save(&templates, &Key::of("a"));
    assert_eq!(templates.open(&Key::of("a")).unwrap().memory_mib(), 32);
    assert!(templates.open(&Key::of("b")).is_none());
    let list = templates.list().unwrap();
    assert_eq!((list.len(), &list[0].about), (1, &about()));
    assert!(list[0].size > 0 && list[0].size < 1 << 20, "{} bytes", list[0].size);
}

#[test]
fn one_that_is_not_finished_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let templates = Templates::at(root.path());
    let draft = templates.draft(&Key::of("a")).unwrap().unwrap();
    fs::write(draft.path().join("memory"), "x").unwrap();
    assert!(templates.draft(&Key::of("b")).unwrap().is_none(), "one at a time");
    drop(draft);
    assert!(templates.open(&Key::of("a")).is_none());
    assert_eq!(templates.names().unwrap(), Vec::<String>::new());
}

#[test]
fn what_a_killed_maker_left_is_swept_by_the_next() {
    let root = tempfile::tempdir().unwrap();
    let templates = Templates::at(root.path());
    fs::create_dir_all(root.path().join("templates/a.new")).unwrap();
    fs::write(root.path().join("templates/a.new/memory"), "x").unwrap();
    assert_eq!(keys(&templates), Vec::<String>::new());
    save(&templates, &Key::of("b"));
    assert_eq!(templates.names().unwrap(), ["b"]);
}

#[test]
fn a_damaged_one_is_thrown_away_and_made_again() {
    let root = tempfile::tempdir().unwrap();
    let templates = Templates::at(root.path());
    let key = Key::of("a");
    for damage in ["state", "memory"] {
        save(&templates, &key);
        let path = root.path().join("templates/a").join(damage);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert!(templates.open(&key).is_none(), "{damage}");
        assert_eq!(keys(&templates), Vec::<String>::new());
    }
}

#[test]
fn those_used_longest_ago_go_first() {
    let root = tempfile::tempdir().unwrap();
    let templates = Templates::at(root.path());
    for name in ["a", "b", "c"] {
        save(&templates, &Key::of(name));
        let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        fs::File::open(root.path().join("templates").join(name)).unwrap().set_times(times).unwrap();
    }
    templates.open(&Key::of("b")).unwrap();
    let one = templates.list().unwrap()[0].size;
    let gone = templates.prune(one).unwrap();
    assert_eq!((gone.len(), keys(&templates)), (2, vec!["b".to_owned()]));
    assert_eq!(templates.prune(0).unwrap().len(), 1);
    assert_eq!(keys(&templates), Vec::<String>::new());
}
