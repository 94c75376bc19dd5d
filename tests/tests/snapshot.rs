//! Snapshots of running containers: what is saved goes on, as often as it is restored, and as somebody else.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use servin_tests::machine::{DEADLINE, Servin};

const BASE: &str = "servin/base";

/// Counts in memory, a line for each number, and answers on a port; a second process keeps what it read once.
const PROGRAM: &str = "test -e /kept || { echo kept > /kept; echo saved > /etc/machine-id; }; uuid=$(cat /proc/sys/kernel/random/uuid); \
     (while :; do echo answer | nc -l -p 7000 > /dev/null; done) & \
     i=0; while :; do i=$((i + 1)); echo $i $uuid; sleep 0.05; done";

/// The numbers that a container has written, each of which must be one more than the last.
fn numbers(servin: &Servin, name: &str) -> Vec<u64> {
    let text = servin.go(&["logs", name]).text();
    let numbers: Vec<u64> =
        text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{name} lost or repeated some: {numbers:?}");
    numbers
}

/// Waits until a container has written a number of at least `least`.
fn count_to(servin: &Servin, name: &str, least: u64) -> Vec<u64> {
    let until = Instant::now() + DEADLINE;
    loop {
        let seen = numbers(servin, name);
        if seen.last().is_some_and(|last| *last >= least) {
            return seen;
        }
        assert!(Instant::now() < until, "{name} wrote {seen:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn first_uuid(servin: &Servin, name: &str) -> String {
    servin.go(&["logs", name]).text().lines().next().unwrap().split(' ').nth(1).unwrap().to_owned()
}

fn exec(servin: &Servin, name: &str, script: &str) -> String {
    let outcome = servin.go(&["exec", name, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome.text()
}

/// Asks a published port until it answers.
fn answer(address: &str) -> String {
    let until = Instant::now() + DEADLINE;
    loop {
        let mut text = String::new();
        let done = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(b"?\n")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_to_string(&mut text)
        });
        if done.is_ok() && !text.is_empty() {
            return text;
        }
        assert!(Instant::now() < until, "no answer from {address}: {done:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Names of what is in a directory of the data root.
fn left(servin: &Servin, name: &str) -> Vec<String> {
    let entries = fs::read_dir(servin.data_root().join(name)).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Flips one bit of a file.
fn alter(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_saved_container_goes_on_as_often_as_it_is_restored_and_each_time_as_another() {
    let Some(servin) = Servin::new() else { return };
    let started = servin.go(&["run", "-d", "--name", "box", "-m", "64m", BASE, "sh", "-c", PROGRAM]);
    assert_eq!(started.code, Some(0), "{started:?}");
    count_to(&servin, "box", 5);
    // A program beside the main one does not come along.
    let mut beside = servin.start(&["exec", "box", "sh", "-c", "echo here; exec sleep 100"]);
    beside.wait_for("here\n");
    servin.go(&["snapshot", "box", "one"]).expect(0, "one\n");
    let saved = *numbers(&servin, "box").last().unwrap();
    let again = servin.go(&["snapshot", "box", "one"]);
    assert!(again.code == Some(1) && again.stderr.contains("is there already"), "{again:?}");
    let copy = servin.folder().join("copy");
    servin.go(&["snapshot", "-o", copy.to_str().unwrap(), "box"]).expect(0, &format!("{}\n", copy.display()));
    // It goes on, and so does the program beside it.
    count_to(&servin, "box", saved + 5);
    exec(&servin, "box", "pidof sleep > /dev/null; kill $(pidof -s sleep) 2>/dev/null; true");
    assert_eq!(left(&servin, "tmp"), Vec::<String>::new());
    servin
        .go(&["snapshot", "ls", "--format", "{{.Name}} {{.Container}} {{.Image}}"])
        .expect(0, "one box servin/base\n");
    servin.go(&["snapshot", "inspect", "-f", "{{.Name}} {{.Container.Name}}", "one"]).expect(0, "one box\n");

    let id = servin.go(&["restore", "-d", "--name", "two", "-p", "127.0.0.1:17002:7000", "one"]);
    assert!(id.code == Some(0) && id.text().trim().len() == 64, "{id:?}");
    servin.go(&["restore", "-d", "--name", "three", "one"]);
    servin.go(&["restore", "-d", "--rm", "--name", "four", "-h", "host4", copy.to_str().unwrap()]);
    for name in ["two", "three", "four"] {
        let first = numbers(&servin, name).first().copied().unwrap_or_else(|| count_to(&servin, name, 1)[0]);
        assert!(first > 5, "{name} begins with {first}");
        assert!(name == "four" || first <= saved + 1, "{name} begins with {first}, and {saved} was saved");
        count_to(&servin, name, first + 3);
    }
    // What the program had in memory is the same; what the kernel gives it now is not.
    assert_eq!(first_uuid(&servin, "two"), first_uuid(&servin, "box"));
    let script =
        "hostname; cat /etc/hostname /proc/sys/kernel/random/uuid /kept /etc/machine-id; pidof sleep | wc -w";
    let seen: Vec<String> = ["box", "two", "three", "four"].map(|name| exec(&servin, name, script)).to_vec();
    for (at, one) in seen.iter().enumerate() {
        let lines: Vec<&str> = one.lines().collect();
        assert!(lines[0] == lines[1] && lines[3] == "kept", "{one}");
        for other in &seen[..at] {
            let others: Vec<&str> = other.lines().collect();
            assert!([0, 2, 4].iter().all(|at| others[*at] != lines[*at]), "{one} and {other}");
        }
    }
    assert!(seen[3].starts_with("host4\n"), "{}", seen[3]);
    assert!(seen[0].contains("\nsaved\n"), "{}", seen[0]);
    let machine_id = |name: &str| exec(&servin, name, "cat /etc/machine-id");
    assert_eq!(machine_id("two"), format!("{}\n", &id.text()[..32]));
    assert_eq!(answer("127.0.0.1:17002"), "answer\n");
    assert_eq!(exec(&servin, "three", "ping -c 1 10.0.2.2 > /dev/null && echo pong"), "pong\n");
    let now = servin.go(&["exec", "two", "date", "+%s"]).text().trim().parse::<u64>().unwrap();
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(here) < 60, "the clock of the restored container shows {now}, it is {here}");
    // Each has a disk of its own.
    exec(&servin, "two", "echo two > /kept");
    assert_eq!(exec(&servin, "three", "cat /kept"), "kept\n");
    // A restored container can be saved.
    servin.go(&["snapshot", "two", "later"]).expect(0, "later\n");
    let needed = servin.go(&["snapshot", "rm", "one"]);
    assert!(needed.code == Some(1) && needed.stderr.contains("later"), "it builds on the first: {needed:?}");
    let last = *numbers(&servin, "three").last().unwrap();
    count_to(&servin, "three", last + 2);
    // It ends as any other, and starts again from its disk.
    servin.go(&["stop", "-t", "1", "two", "four"]).expect(0, "two\nfour\n");
    servin.go(&["inspect", "-f", "{{.State.Status}}", "two"]).expect(0, "exited\n");
    servin.go(&["start", "two"]).expect(0, "two\n");
    servin.go(&["restore", "-d", "--name", "five", "later"]);
    assert_eq!(exec(&servin, "five", "cat /kept"), "two\n");
    let [two, five] = ["two", "five"].map(machine_id);
    assert!(two == id.text()[..32].to_owned() + "\n" && five.len() == 33 && five != two, "{two} and {five}");
    servin.go(&["rm", "-f", "box", "two", "three", "five"]).expect(0, "box\ntwo\nthree\nfive\n");
    let _ = beside.finish();
    servin.go(&["snapshot", "rm", "later", "nope"]).expect(1, "later\n");
    servin.go(&["snapshot", "rm", "one"]).expect(0, "one\n");
    servin.go(&["ps", "-aq"]).expect(0, "");
    for directory in ["containers", "run", "snapshots", "tmp"] {
        assert_eq!(left(&servin, directory), Vec::<String>::new(), "in {directory}");
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_and_leaves_nothing() {
    let Some(servin) = Servin::new() else { return };
    let data = servin.folder().join("shared");
    fs::create_dir(&data).unwrap();
    let volume = format!("{}:/shared", data.display());
    let started = servin.go(&[
        "run",
        "-d",
        "--name",
        "box",
        "-m",
        "64m",
        "--network",
        "none",
        "-v",
        &volume,
        "-v",
        "vol:/vol",
        BASE,
        "sh",
        "-c",
        "exec 3>>/shared/log; i=0; while :; do i=$((i + 1)); echo $i >&3; echo $i; sleep 0.1; done",
    ]);
    assert_eq!(started.code, Some(0), "{started:?}");
    count_to(&servin, "box", 3);
    for (words, why) in [
        (&["snapshot", "box", "/"][..], "no name of a snapshot"),
        (&["snapshot", "nope", "x1"], "no such container"),
        (&["snapshot", "-o", "/nope/dir", "box"], "/nope/dir"),
        (&["restore", "nope"], "no such snapshot"),
    ] {
        let refused = servin.go(words);
        assert!(refused.code != Some(0) && refused.stderr.contains(why), "{words:?}: {refused:?}");
    }
    servin.go(&["pause", "box"]).expect(0, "box\n");
    let refused = servin.go(&["snapshot", "box", "paused"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("is paused"), "{refused:?}");
    servin.go(&["unpause", "box"]).expect(0, "box\n");
    servin.go(&["snapshot", "--stop", "box", "end"]).expect(0, "end\n");
    servin.go(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"]).expect(0, "exited 137\n");
    let before = numbers(&servin, "box");

    let dir = servin.data_root().join("snapshots/end");
    for name in ["state", "memory", "disk", "about.json", "sums"] {
        let at = if matches!(name, "memory" | "disk") { 1024 + 0x38 } else { 40 };
        let path = dir.join(name);
        if name == "disk" {
            // Too long to be read as a whole; a write beside the data is a change as well.
            use std::os::unix::fs::FileExt;
            let file = fs::File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
            let refused = servin.go(&["restore", "end"]);
            file.write_all_at(&byte, at as u64).unwrap();
            assert!(refused.code == Some(125) && refused.stderr.contains("damaged"), "{name}: {refused:?}");
            continue;
        }
        alter(&path, at);
        let refused = servin.go(&["restore", "end"]);
        alter(&path, at);
        assert!(refused.code != Some(0) && refused.stderr.contains("damaged"), "{name}: {refused:?}");
    }
    servin.go(&["rm", "box"]).expect(0, "box\n");
    let taken = data.with_extension("away");
    fs::rename(&data, &taken).unwrap();
    let refused = servin.go(&["restore", "end"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("shared"), "{refused:?}");
    fs::rename(&taken, &data).unwrap();
    servin.go(&["ps", "-aq"]).expect(0, "");
    assert_eq!(left(&servin, "containers"), Vec::<String>::new());

    // The files of the host that it had open are written on, and no line of its output is lost or told twice.
    servin.go(&["restore", "-d", "--name", "box", "end"]);
    let last = *before.last().unwrap();
    let after = count_to(&servin, "box", last + 3);
    assert_eq!(after[0], last + 1);
    let written = fs::read_to_string(data.join("log")).unwrap();
    assert!(written.lines().count() as u64 >= last + 3, "{written}");
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");
    // A volume stays as long as a snapshot needs it; one that was carried away cannot hold it.
    let refused = servin.go(&["volume", "rm", "vol"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("the snapshot end"), "{refused:?}");
    let away = servin.folder().join("away");
    fs::rename(&dir, &away).unwrap();
    servin.go(&["volume", "rm", "vol"]).expect(0, "vol\n");
    let refused = servin.go(&["restore", away.to_str().unwrap()]);
    assert!(
        refused.code == Some(125) && refused.stderr.contains("its volume vol is not here"),
        "{refused:?}"
    );
}
