//! Snapshots that have only what changed since another one, and snapshots that are cut short.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use servin_tests::machine::{DEADLINE, Servin};

const BASE: &str = "servin/base";

#[track_caller]
fn exec(servin: &Servin, name: &str, script: &str) -> String {
    let outcome = servin.go(&["exec", name, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome.text()
}

/// Names of what is in a directory of the data root.
fn left(servin: &Servin, name: &str) -> Vec<String> {
    let entries = fs::read_dir(servin.data_root().join(name)).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Bytes that a file of a snapshot takes.
fn size(servin: &Servin, snapshot: &str, file: &str) -> u64 {
    fs::metadata(servin.data_root().join("snapshots").join(snapshot).join(file)).unwrap().blocks() * 512
}

fn start(servin: &Servin, name: &str) {
    let count = "i=0; while :; do i=$((i + 1)); echo $i > /count; sleep 0.1; done";
    let started =
        servin.go(&["run", "-d", "--name", name, "-m", "96m", "--network", "none", BASE, "sh", "-c", count]);
    assert_eq!(started.code, Some(0), "{started:?}");
}

const SUMS: &str = "sha256sum /dev/shm/big /data";

#[test]
fn the_next_snapshot_has_only_what_changed_and_is_restored_with_those_below_it() {
    let Some(servin) = Servin::new() else { return };
    start(&servin, "box");
    let made = exec(
        &servin,
        "box",
        &format!(
            "head -c 8000000 /dev/urandom > /dev/shm/big; head -c 4000000 /dev/urandom > /data; sync; {SUMS}"
        ),
    );
    servin.go(&["snapshot", "box", "one"]).expect(0, "one\n");
    exec(&servin, "box", "echo two > /dev/shm/more; echo two > /more; sync");
    servin.go(&["snapshot", "box", "two"]).expect(0, "two\n");
    exec(&servin, "box", "rm /more; echo three > /three; sync");
    servin.go(&["snapshot", "box", "three"]).expect(0, "three\n");
    servin
        .go(&["snapshot", "ls", "--format", "{{.Name}}<{{.Parent}}"])
        .expect(0, "one<\nthree<two\ntwo<one\n");
    servin.go(&["snapshot", "inspect", "-f", "{{.Parent}}", "three"]).expect(0, "two\n");
    for (file, least) in [("memory", 8_000_000), ("disk", 4_000_000)] {
        let sizes = ["one", "two", "three"].map(|name| size(&servin, name, file));
        println!("{file}: {sizes:?} bytes");
        assert!(sizes[0] > least && sizes[1..].iter().all(|size| *size < sizes[0] / 2), "{file}: {sizes:?}");
    }
    // One for elsewhere stands alone.
    let copy = servin.folder().join("copy");
    servin.go(&["snapshot", "-o", copy.to_str().unwrap(), "box"]).expect(0, &format!("{}\n", copy.display()));
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");

    let restore = |name: &str, snapshot: &str| {
        let id = servin.go(&["restore", "-d", "--name", name, snapshot]);
        assert_eq!(id.code, Some(0), "{id:?}");
    };
    restore("third", "three");
    assert_eq!(exec(&servin, "third", SUMS), made);
    assert_eq!(
        exec(&servin, "third", "cat /dev/shm/more /three; test -e /more || echo gone"),
        "two\nthree\ngone\n"
    );
    restore("second", "two");
    assert_eq!(exec(&servin, "second", "cat /more; test -e /three || echo new"), "two\nnew\n");
    exec(
        &servin,
        "third",
        "echo four > /dev/shm/four; c=$(cat /count); until [ $(cat /count) != $c ]; do :; done",
    );
    // What was restored builds on what it was restored from.
    servin.go(&["snapshot", "third", "four"]).expect(0, "four\n");
    servin.go(&["snapshot", "inspect", "-f", "{{.Parent}}", "four"]).expect(0, "three\n");
    let sizes = ["one", "four"].map(|name| size(&servin, name, "memory"));
    assert!(sizes[1] < sizes[0] / 2, "{sizes:?}");
    restore("fourth", "four");
    assert_eq!(exec(&servin, "fourth", &format!("{SUMS}; cat /dev/shm/four")), format!("{made}four\n"));
    restore("alone", copy.to_str().unwrap());
    assert_eq!(exec(&servin, "alone", SUMS), made);
    servin.go(&["snapshot", "alone", "whole"]).expect(0, "whole\n");
    servin.go(&["snapshot", "inspect", "-f", "{{json .Parent}}", "whole"]).expect(0, "null\n");

    let refused = servin.go(&["snapshot", "rm", "one"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("the snapshot two has only what changed"),
        "{refused:?}"
    );
    // A parent that is damaged, and one that is gone.
    let state = servin.data_root().join("snapshots/one/state");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[1..]).unwrap();
    let refused = servin.go(&["restore", "four"]);
    assert!(
        refused.code == Some(125) && refused.stderr.contains("snapshots/one: its file state"),
        "{refused:?}"
    );
    fs::write(&state, bytes).unwrap();
    let (here, away) = ["snapshots/two", "two.away"].map(|name| servin.data_root().join(name)).into();
    fs::rename(&here, &away).unwrap();
    let refused = servin.go(&["restore", "four"]);
    assert!(
        refused.code == Some(125) && refused.stderr.contains("changed since the snapshot two"),
        "{refused:?}"
    );
    fs::rename(&away, &here).unwrap();
    servin
        .go(&["rm", "-f", "second", "third", "fourth", "alone"])
        .expect(0, "second\nthird\nfourth\nalone\n");
    servin
        .go(&["snapshot", "rm", "one", "two", "three", "four", "whole"])
        .expect(0, "four\nthree\ntwo\none\nwhole\n");
    for directory in ["containers", "run", "snapshots", "tmp"] {
        assert_eq!(left(&servin, directory), Vec::<String>::new(), "in {directory}");
    }
}

#[test]
fn a_monitor_killed_while_it_saves_leaves_nothing_half_and_the_container_can_be_saved_after_a_start() {
    let Some(servin) = Servin::new() else { return };
    start(&servin, "box");
    exec(&servin, "box", "echo kept > /kept; sync; head -c 30000000 /dev/urandom > /dev/shm/big");
    servin.go(&["snapshot", "box", "before"]).expect(0, "before\n");
    for (round, file) in ["memory.new", "disk", "about.json"].into_iter().enumerate() {
        let pid: i32 = servin.go(&["inspect", "-f", "{{.State.Pid}}", "box"]).text().trim().parse().unwrap();
        // Enough to be written, and then to be summed up.
        exec(&servin, "box", "head -c 30000000 /dev/urandom > /dev/shm/big");
        let snapshot = servin.start(&["snapshot", "box", "half"]);
        let tmp = servin.data_root().join("tmp");
        let until = Instant::now() + DEADLINE;
        let begun = || {
            let drafts = fs::read_dir(&tmp).into_iter().flatten().flatten();
            drafts.into_iter().any(|draft| draft.path().join("snapshot").join(file).exists())
        };
        while !begun() {
            assert!(Instant::now() < until, "no {file} of a snapshot");
            std::thread::yield_now();
        }
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let outcome = snapshot.finish();
        assert!(outcome.code != Some(0) && !outcome.stderr.is_empty(), "round {round}: {outcome:?}");
        servin.go(&["snapshot", "ls", "-q"]).expect(0, "before\n");
        assert_eq!(left(&servin, "tmp"), Vec::<String>::new());
        servin
            .go(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"])
            .expect(0, "exited 137\n");
        servin.go(&["snapshot", "box", "dead"]).expect(1, "");
        servin.go(&["start", "box"]).expect(0, "box\n");
        assert_eq!(exec(&servin, "box", "cat /kept"), "kept\n");
    }
    servin.go(&["snapshot", "box", "after"]).expect(0, "after\n");
    servin.go(&["snapshot", "inspect", "-f", "{{json .Parent}}", "after"]).expect(0, "null\n");
    for snapshot in ["before", "after"] {
        let id = servin.go(&["restore", "-d", "--rm", "--name", "again", snapshot]);
        assert_eq!(id.code, Some(0), "{id:?}");
        assert_eq!(exec(&servin, "again", "cat /kept"), "kept\n");
        servin.go(&["rm", "-f", "again"]).expect(0, "again\n");
    }
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");
    assert_eq!(servin.go(&["system", "check"]).code, Some(0));
    for directory in ["containers", "run", "tmp"] {
        assert_eq!(left(&servin, directory), Vec::<String>::new(), "in {directory}");
    }
}
