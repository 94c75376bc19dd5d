use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    (dir, store)
}

fn record(id: &str, name: &str) -> Record {
    Record {
        id: id.into(),
        name: name.into(),
        image: None,
        config: "{}".into(),
        state: State::Created,
        pid: None,
        exit_code: None,
        oom: false,
        error: String::new(),
        created_ns: now_ns(),
        started_ns: None,
        finished_ns: None,
        restarts: 0,
    }
}

#[test]
fn a_new_root_is_private_and_opens_again() {
    let (_dir, store) = store();
    assert_eq!(fs::metadata(store.root()).unwrap().permissions().mode() & 0o7777, 0o700);
    let again = Store::open(store.root()).unwrap();
    assert_eq!(again.containers().list().unwrap(), []);
    let mode: String = again.db().query_row("PRAGMA journal_mode", (), |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn the_default_root_follows_the_environment() {
    let env = |set: &'static [(&'static str, &'static str)]| {
        move |name: &'static str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        }
    };
    let all = env(&[("SERVIN_DATA_ROOT", "/s"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")]);
    assert_eq!(root::choose(all, true).unwrap(), PathBuf::from("/s"));
    assert_eq!(root::choose(env(&[("HOME", "/h")]), true).unwrap(), PathBuf::from("/var/lib/servin"));
    let user = env(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]);
    assert_eq!(root::choose(user, false).unwrap(), PathBuf::from("/x/servin"));
    let relative = env(&[("XDG_DATA_HOME", "x"), ("HOME", "/h")]);
    assert_eq!(root::choose(relative, false).unwrap(), PathBuf::from("/h/.local/share/servin"));
    assert!(matches!(root::choose(env(&[]), false), Err(Error::NoDataRoot)));
}

#[test]
fn an_older_layout_takes_the_steps_it_lacks_once_and_keeps_its_rows() {
    let steps =
        ["CREATE TABLE a (x TEXT) STRICT", "CREATE TABLE b (y TEXT) STRICT; INSERT INTO b SELECT x FROM a"];
    let dir = tempfile::tempdir().unwrap();
    let open = || Connection::open(dir.path().join("db")).unwrap();
    let mut db = open();
    assert_eq!(schema::bring_up(&mut db, &steps[..1]).unwrap(), (1, 1));
    db.execute("INSERT INTO a VALUES ('kept')", ()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut db = open();
                db.busy_timeout(BUSY).unwrap();
                assert_eq!(schema::bring_up(&mut db, &steps).unwrap(), (2, 2));
            });
        }
    });
    let kept: String = db.query_row("SELECT y FROM b", (), |row| row.get(0)).unwrap();
    assert_eq!(kept, "kept");
    assert_eq!(schema::bring_up(&mut db, &steps[..1]).unwrap(), (2, 1), "a newer one is left alone");
    // A step that fails leaves the layout as it was.
    let failing = [steps[0], steps[1], "CREATE TABLE c (z TEXT) STRICT; nonsense"];
    assert!(schema::bring_up(&mut db, &failing).is_err());
    assert_eq!(schema::bring_up(&mut db, &steps).unwrap(), (2, 2));
    assert!(db.execute("SELECT z FROM c", ()).is_err());
}

#[test]
fn a_root_of_a_newer_layout_is_refused_and_left_alone() {
    let (_dir, store) = store();
    store.db().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(store.root()).unwrap_err();
    assert!(matches!(error, Error::NewerLayout { found: 99, .. }), "{error}");
}

#[test]
fn a_file_is_no_data_root() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Store::open(file.path()), Err(Error::BadDataRoot { .. })));
}

#[test]
fn many_processes_worth_of_connections_may_open_a_new_root_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let root = &root;
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                store.containers().insert(&record(&format!("{number:064x}"), &format!("c{number}"))).unwrap();
            });
        }
    });
    assert_eq!(Store::open(&root).unwrap().containers().list().unwrap().len(), 8);
}

#[test]
fn a_new_root_that_another_process_is_making_is_opened_when_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let other = rusqlite::Connection::open(root.join("store.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| Store::open(&root).map(drop));
        // Long enough for it to have found the database busy; too short a time would prove nothing, and fail nothing.
        std::thread::sleep(Duration::from_millis(200));
        assert!(!opened.is_finished(), "{:?}", opened.join());
        other.execute_batch("COMMIT").unwrap();
        opened.join().unwrap().unwrap();
    });
}

#[test]
fn scratch_goes_with_its_owner_and_a_dead_owners_is_cleaned() {
    let (_dir, store) = store();
    let scratch = store.scratch().unwrap();
    let path = scratch.path().to_path_buf();
    fs::write(path.join("half"), b"x").unwrap();
    Store::open(store.root()).unwrap();
    assert!(path.exists(), "a living owner's scratch was cleaned");
    drop(scratch);
    assert!(!path.exists());

    // A process that is killed while it holds the lock.
    let dead = store.root().join("tmp/dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("half"), b"x").unwrap();
    let mut flock = Command::new("flock");
    let flock = flock.arg("--no-fork").arg(&dead).args(["sh", "-c", "echo held; exec sleep 60"]);
    let mut child = flock.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    Store::open(store.root()).unwrap();
    assert!(dead.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    Store::open(store.root()).unwrap();
    assert!(!dead.exists());
}

#[test]
fn sweep_removes_only_what_no_row_speaks_of() {
    let (_dir, store) = store();
    let (kept, garbage) = (Digest::of(b"kept"), Digest::of(b"garbage"));
    for digest in [&kept, &garbage] {
        fs::write(store.blob_path(digest), vec![1; 10_000]).unwrap();
    }
    store
        .db()
        .execute_batch(&format!(
            "INSERT INTO blobs VALUES ('{kept}', 4); INSERT INTO images VALUES ('{kept}', '{kept}', '{{}}', 0, 0);
             INSERT INTO image_blobs VALUES ('{kept}', 0, '{kept}', 0)"
        ))
        .unwrap();
    assert!(store.sweep().unwrap() >= 10_000);
    assert!(store.blob_path(&kept).exists());
    assert!(!store.blob_path(&garbage).exists());
}

#[test]
fn a_failed_transaction_changes_nothing() {
    let (_dir, store) = store();
    let done: Result<()> = store.write("test", |transaction| {
        let blob = Digest::of(b"x").to_string();
        transaction.execute("INSERT INTO blobs VALUES (?1, 1)", [blob]).unwrap();
        Err(Error::NoDataRoot)
    });
    assert!(done.is_err());
    let count: i64 = store.db().query_row("SELECT count(*) FROM blobs", (), |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
}

#[test]
fn a_record_survives_the_table_and_every_column_can_change() {
    let (_dir, store) = store();
    let containers = store.containers();
    let mut row = record(&"a".repeat(64), "web");
    containers.insert(&row).unwrap();
    assert_eq!(containers.get(&row.id).unwrap(), Some(row.clone()));
    row = Record {
        state: State::Restarting,
        restarts: 3,
        pid: Some(7),
        exit_code: Some(137),
        oom: true,
        error: "why".into(),
        started_ns: Some(5),
        finished_ns: Some(6),
        ..row
    };
    containers.rename(&row, "web2").unwrap();
    containers.update(&row).unwrap();
    row.name = "web2".into();
    assert_eq!(containers.find("web2").unwrap(), row, "an older record does not undo a new name");
    containers.insert(&record(&"b".repeat(64), "taken")).unwrap();
    assert!(matches!(containers.rename(&row, "taken"), Err(Error::NameTaken { .. })));
    assert!(containers.remove(&row.id).unwrap());
    assert!(!containers.remove(&row.id).unwrap());
    assert!(matches!(containers.update(&row), Err(Error::NoSuchContainer { .. })));
}

#[test]
fn names_are_unique_and_id_prefixes_must_be_unambiguous() {
    let (_dir, store) = store();
    let containers = store.containers();
    let (one, two) = (format!("ab{}", "0".repeat(62)), format!("ac{}", "0".repeat(62)));
    containers.insert(&record(&one, "one")).unwrap();
    containers.insert(&record(&two, "ab")).unwrap();
    let taken = containers.insert(&record(&"b".repeat(64), "one")).unwrap_err();
    assert_eq!(
        taken.to_string(),
        "the name \"one\" is in use by container ab0000000000: remove or rename that one, or choose another name"
    );
    assert_eq!(containers.find("ab0").unwrap().id, one);
    assert_eq!(containers.find("ab").unwrap().id, two, "a name comes before a prefix");
    assert!(matches!(containers.find("a"), Err(Error::AmbiguousContainer { count: 2, .. })));
    for missing in ["", "zz", "abcd", "%", "ONE"] {
        assert!(matches!(containers.find(missing), Err(Error::NoSuchContainer { .. })), "{missing}");
    }
}

#[test]
fn a_state_changes_only_from_the_expected_one() {
    let (_dir, store) = store();
    let row = record(&"a".repeat(64), "web");
    store.containers().insert(&row).unwrap();
    assert!(store.containers().advance(&row.id, State::Created, State::Running).unwrap());
    assert!(!store.containers().advance(&row.id, State::Created, State::Running).unwrap());
    assert_eq!(store.containers().find("web").unwrap().state, State::Running);
}

#[test]
fn a_container_needs_its_image_in_the_store() {
    let (_dir, store) = store();
    let row = Record { image: Some(Digest::of(b"none")), ..record(&"a".repeat(64), "web") };
    assert!(matches!(store.containers().insert(&row), Err(Error::NoSuchImage { .. })));
}

#[test]
fn the_log_outlives_the_last_process_and_loses_nothing() {
    let (_dir, store) = store();
    let root = store.root().to_path_buf();
    drop(store);
    for number in 0..50 {
        let store = Store::open(&root).unwrap();
        store.containers().insert(&record(&format!("{number:064x}"), &format!("c{number}"))).unwrap();
    }
    assert!(root.join("store.db-wal").exists(), "every run would wait for a checkpoint");
    assert!(fs::metadata(root.join("store.db-wal")).unwrap().len() < 1 << 20, "the log grows without end");
    assert_eq!(Store::open(&root).unwrap().containers().list().unwrap().len(), 50);
}
