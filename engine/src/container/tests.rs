use super::life::RunDir;
use super::*;
use crate::Error;
use crate::store::{Record, State, Store, now_ns};

fn record(store: &Store, name: &str, state: State, remove: bool) -> Record {
    let mut request = Request::new(RootSource::Directory("/r".into()));
    (request.remove, request.args) = (remove, vec!["x".into()]);
    let id = new_id().unwrap();
    let plan = Plan::new(&request, &crate::image::Process::default(), &id).unwrap();
    let record = Record {
        id,
        name: name.into(),
        image: None,
        config: serde_json::to_string(&Config { request, plan }).unwrap(),
        state,
        pid: Some(1),
        exit_code: None,
        oom: false,
        error: String::new(),
        created_ns: now_ns(),
        started_ns: None,
        finished_ns: None,
        restarts: 0,
    };
    store.containers().insert(&record).unwrap();
    std::fs::create_dir(store.container_dir(&record.id)).unwrap();
    std::fs::write(store.container_dir(&record.id).join("log"), "x").unwrap();
    record
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_container_whose_monitor_lives_is_left_alone() {
    let (_dir, store) = open();
    let record = record(&store, "lives", State::Running, true);
    let run = RunDir::create(store.root(), &record.id).unwrap();
    let _listener = run.listen().unwrap();
    reconcile(&store).unwrap();
    assert_eq!(store.containers().get(&record.id).unwrap().unwrap(), record);
    connect(&store, &record).unwrap();
}

#[test]
fn a_container_whose_monitor_was_killed_is_exited_and_says_so() {
    let (dir, store) = open();
    let record = record(&store, "dies", State::Running, false);
    drop(RunDir::create(store.root(), &record.id).unwrap());
    reconcile(&store).unwrap();
    let found = store.containers().get(&record.id).unwrap().unwrap();
    assert_eq!((found.state, found.exit_code, found.pid), (State::Exited, Some(137), None));
    assert_eq!(found.error, "its monitor was killed");
    assert!(found.finished_ns.is_some());
    assert!(!dir.path().join("run").join(&record.id).exists());
    assert!(store.container_dir(&record.id).exists(), "its log stays");
    assert!(matches!(connect(&store, &record), Err(Error::NotRunning { .. })));
    reconcile(&store).unwrap();
    assert_eq!(store.containers().get(&record.id).unwrap().unwrap(), found, "a second look changes nothing");
}

#[test]
fn a_start_that_was_killed_before_its_row_leaves_nothing() {
    let (dir, store) = open();
    let id = new_id().unwrap();
    let run = RunDir::create(store.root(), &id).unwrap();
    std::fs::create_dir(store.container_dir(&id)).unwrap();
    reconcile(&store).unwrap();
    assert!(store.container_dir(&id).exists(), "it is on its way");
    drop(run);
    reconcile(&store).unwrap();
    assert!(!store.container_dir(&id).exists() && !dir.path().join("run").join(&id).exists());
}

#[test]
fn a_monitor_that_is_still_on_its_way_out_is_waited_for() {
    let (dir, store) = open();
    let record = record(&store, "dying", State::Running, false);
    let run = RunDir::create(store.root(), &record.id).unwrap();
    assert!(is_living(&store, &record.id));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| await_end(&Store::open(dir.path()).unwrap(), &record.id).unwrap());
        drop(run);
        assert!(waits.join().unwrap());
    });
    assert_eq!(store.containers().get(&record.id).unwrap().unwrap().state, State::Exited);
    assert!(await_end(&store, &record.id).unwrap(), "one that is gone is not waited for");
}

#[test]
fn a_container_that_was_to_be_removed_goes_with_its_monitor() {
    let (_dir, store) = open();
    for (name, state) in [("a1", State::Created), ("a2", State::Running), ("a3", State::Exited)] {
        let record = record(&store, name, state, true);
        drop(RunDir::create(store.root(), &record.id).unwrap());
        reconcile(&store).unwrap();
        assert_eq!(store.containers().get(&record.id).unwrap(), None, "{name}");
        assert!(!store.container_dir(&record.id).exists());
    }
}

#[test]
fn a_start_that_was_killed_is_exited_and_says_so() {
    let (_dir, store) = open();
    let record = record(&store, "early", State::Created, false);
    drop(RunDir::create(store.root(), &record.id).unwrap());
    reconcile(&store).unwrap();
    let found = store.containers().get(&record.id).unwrap().unwrap();
    assert_eq!(
        (found.state, found.error.as_str()),
        (State::Exited, "its monitor was killed during the start")
    );
}

#[test]
fn rows_without_a_directory_are_brought_to_their_end() {
    let (_dir, store) = open();
    drop(RunDir::create(store.root(), "0123").unwrap());
    let running = record(&store, "running", State::Running, false);
    let removing = record(&store, "removing", State::Removing, false);
    let created = record(&store, "created", State::Created, false);
    reconcile(&store).unwrap();
    let state = |record: &Record| store.containers().get(&record.id).unwrap().map(|record| record.state);
    assert_eq!(state(&running), Some(State::Exited));
    assert_eq!(state(&removing), None, "the removal is taken up again");
    assert!(!store.container_dir(&removing.id).exists());
    assert_eq!(state(&created), Some(State::Created), "it was never started");
}

#[test]
fn a_directory_of_a_volume_that_no_row_speaks_of_goes_with_the_monitor_that_made_it() {
    let (dir, store) = open();
    crate::volume::Volumes::new(&store).create(Some("kept"), &std::collections::BTreeMap::new()).unwrap();
    let half = dir.path().join("volumes").join("0".repeat(64));
    std::fs::create_dir_all(half.join("_data")).unwrap();
    let victim = record(&store, "victim", State::Created, false);
    reconcile(&store).unwrap();
    assert!(half.exists(), "nobody was killed");
    drop(RunDir::create(store.root(), &victim.id).unwrap());
    reconcile(&store).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path().join("volumes")).unwrap().flatten().collect();
    assert!(left.len() == 1 && left[0].file_name() == "kept", "{left:?}");
}

#[test]
fn a_removed_run_directory_leaves_nothing() {
    let (dir, store) = open();
    let run = RunDir::create(store.root(), "0123").unwrap();
    let _listener = run.listen().unwrap();
    run.remove().unwrap();
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn a_socket_works_however_long_the_path_is() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    let store = Store::open(&deep).unwrap();
    let record = record(&store, "deep", State::Running, false);
    let run = RunDir::create(store.root(), &record.id).unwrap();
    let listener = run.listen().unwrap();
    connect(&store, &record).unwrap();
    listener.accept().unwrap();
}

#[test]
fn removal_does_not_follow_links() {
    let (dir, store) = open();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("keep"), "x").unwrap();
    let record = record(&store, "links", State::Exited, false);
    std::os::unix::fs::symlink(&outside, store.container_dir(&record.id).join("link")).unwrap();
    remove_container(&store, &record, true).unwrap();
    assert!(outside.join("keep").exists());
    assert!(!store.container_dir(&record.id).exists());
}
