//! `kill -9` at any moment of a container's life, of its monitor, of its guest and of the command in front of it: the next
//! command tells the truth, nothing is left, the store is whole, and the name can be used anew. (`registry.rs` has what is
//! killed while it pulls.)
//!
//! The moments are pseudo-random: `SERVIN_TEST_SEED` repeats a run, `SERVIN_TEST_KILLS` says how many there are.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use servin_tests::machine::{Running, Servin};

const BASE: &str = "servin/base";

/// A small generator (xorshift), so that a seed says everything.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let given = std::env::var("SERVIN_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or(now.as_nanos() as u64 | 1);
        println!("seed {seed}: SERVIN_TEST_SEED={seed} repeats it");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        most.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn kills() -> u32 {
    asked().unwrap_or(4)
}

fn asked() -> Option<u32> {
    std::env::var("SERVIN_TEST_KILLS").ok().and_then(|text| text.parse().ok())
}

/// Processes of this test's servin, by number and name: its data root is in their environment.
fn processes(servin: &Servin) -> Vec<(Pid, String)> {
    let root = servin.data_root();
    let mark = [b"SERVIN_DATA_ROOT=", root.as_os_str().as_bytes()].concat();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let ours = environment.split(|byte| *byte == 0).any(|variable| variable == mark);
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            // A process that has ended and is not yet waited for is none any more.
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let lives = !stat.rsplit(')').next()?.trim_start().starts_with('Z');
            (ours && lives).then(|| (pid, name.trim().to_owned()))
        })
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing of a container lives or is left half-made, once a command has run after its monitor was gone.
#[track_caller]
fn assert_nothing_lives(servin: &Servin, when: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while !processes(servin).is_empty() {
        assert!(Instant::now() < until, "{when}: processes are left: {:?}", processes(servin));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(servin.go(&["ps", "-q"]).code, Some(0));
    let root = servin.data_root();
    assert_eq!(
        names(&root.join("run")).iter().filter(|name| *name != ".lock").count(),
        0,
        "{when}: a socket"
    );
    assert_eq!(names(&root.join("tmp")), [""; 0], "{when}: temporary files");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.to_str().unwrap()), "{when}: a mount");
}

/// The name works once more, and then nothing but the volume is left.
#[track_caller]
fn assert_name_is_free(servin: &Servin, when: &str) {
    // Without shares it takes up a template that was cut.
    servin.go(&["run", "--rm", "--name", "victim", BASE, "true"]).expect(0, "");
    let again =
        servin.go(&["run", "--rm", "--name", "victim", "-v", "kept:/kept", BASE, "cat", "/kept/file"]);
    assert_eq!((again.code, again.text().as_str()), (Some(0), "kept"), "{when}: {again:?}");
    servin.go(&["ps", "-aq"]).expect(0, "");
    assert_nothing_lives(servin, when);
    let root = servin.data_root();
    assert_eq!(names(&root.join("containers")), [""; 0], "{when}: a container's files");
    assert_eq!(names(&root.join("volumes")), ["kept"], "{when}: volumes");
    let drafts: Vec<_> =
        names(&root.join("templates")).into_iter().filter(|name| name.ends_with(".new")).collect();
    assert_eq!(drafts, [""; 0], "{when}: half a template");
}

/// How long a container's whole life takes; the second is a warm start where there are any.
fn lives(servin: &Servin) -> [Duration; 2] {
    let words = ["run", "--rm", "-v", "kept:/kept", BASE, "sh", "-c", "printf kept > /kept/file"];
    [(); 2].map(|()| {
        let outcome = servin.go(&words);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome.took
    })
}

#[test]
fn a_monitor_that_is_killed_at_any_moment_leaves_nothing_and_the_truth() {
    let Some(servin) = Servin::new() else { return };
    let mut moments = Moments::new();
    let [cold, warm] = lives(&servin);
    for round in 0..kills() {
        // With and without a volume of its own, with and without a template to be left or cloned.
        let (whole, flags): (_, &[&str]) = match round % 3 {
            0 => (cold, &["-v", "kept:/kept", "-v", "/anonymous"]),
            1 => (warm, &[]),
            _ => (cold, &["--no-warm"]),
        };
        let remove = if round % 2 == 0 { "--rm" } else { "--rm=false" };
        let words =
            [&["run", remove, "--name", "victim"], flags, &[BASE, "sh", "-c", "sync; exit 5"]].concat();
        let running = servin.start(&words);
        let moment = moments.below(whole.mul_f64(1.1));
        let when = format!("round {round}, {moment:?} into {words:?}");
        std::thread::sleep(moment);
        let monitor = processes(&servin).into_iter().find(|(_, name)| name == "servin-monitor");
        let killed = monitor.is_some_and(|(pid, _)| kill_process(pid, Signal::KILL).is_ok());
        let outcome = running.finish();
        println!("{when}: killed {killed}, code {:?}", outcome.code);
        // It was killed and the command says so, or it was faster.
        let told = outcome.code == Some(125) && outcome.stderr.contains("monitor");
        assert!(outcome.code == Some(5) || killed && told, "{when}: {outcome:?}");

        let shown = servin.go(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
        let all = shown.text();
        assert!(all.is_empty() || all == "victim exited\n", "{when}: {all}");
        assert_nothing_lives(&servin, &when);
        if !all.is_empty() {
            assert_eq!(remove, "--rm=false", "{when}: it was to be removed");
            servin.go(&["rm", "-v", "victim"]).expect(0, "victim\n");
        }
        assert_name_is_free(&servin, &when);
    }
}

#[test]
fn a_command_that_is_killed_in_the_foreground_leaves_a_container_that_can_be_had_or_none() {
    let Some(servin) = Servin::new() else { return };
    let mut moments = Moments::new();
    let [_, warm] = lives(&servin);
    for round in 0..kills() {
        let words = ["run", "--rm", "--name", "victim", "-v", "kept:/kept", BASE, "sleep", "1000000"];
        let mut running = servin.start(&words);
        let moment = moments.below(warm.mul_f64(1.5));
        let when = format!("round {round}, {moment:?} into the command");
        std::thread::sleep(moment);
        running.child.kill().unwrap();
        let _ = running.child.wait();
        // The monitor, if there is one already, goes on: it can be seen and ended, or has not come to a row yet.
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let shown = servin.go(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
            let all = shown.text();
            println!("{when}: {all:?}");
            assert!(["", "victim created\n", "victim running\n"].contains(&all.as_str()), "{when}: {all}");
            if processes(&servin).is_empty() && all.is_empty() {
                break;
            }
            let removed = servin.go(&["rm", "-f", "victim"]);
            assert!(Instant::now() < until, "{when}: {removed:?}, {:?}", processes(&servin));
        }
        assert_nothing_lives(&servin, &when);
        assert_name_is_free(&servin, &when);
    }
}

/// Who is killed. A guest is, as far as it can be: its kernel panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Command,
    Monitor,
    Guest,
}

impl Who {
    fn of(round: u32) -> Self {
        [Self::Command, Self::Monitor, Self::Guest][round as usize % 3]
    }

    /// Once each, where no number is asked for.
    fn rounds() -> impl Iterator<Item = (u32, Self)> {
        (0..asked().unwrap_or(3).max(3)).map(|round| (round, Self::of(round)))
    }

    /// Kills it. The monitor may not be there yet, or no more.
    fn kill(self, servin: &Servin, command: &mut Running) {
        match self {
            Self::Command => drop(command.child.kill()),
            Self::Monitor => {
                let found = processes(servin).into_iter().find(|(_, name)| name == "servin-monitor");
                let _ = found.map(|(pid, _)| kill_process(pid, Signal::KILL));
            }
            // The container's limit is passed, and its kernel was told to panic then.
            Self::Guest => drop(servin.go(&["exec", "victim", "tail", "/dev/zero"])),
        }
    }
}

/// A container whose guest can be killed, with files to be committed.
fn victim(servin: &Servin) {
    let script = "dd if=/dev/urandom of=/big bs=64k count=16 2>/dev/null; sync; echo made; sleep 1000000";
    let flags = ["-m", "48m", "--sysctl", "vm.panic_on_oom=2"];
    let words = [&["run", "-d", "--name", "victim"], &flags[..], &[BASE, "sh", "-c", script]].concat();
    let started = servin.go(&words);
    assert_eq!(started.code, Some(0), "{started:?}");
    let mut logs = servin.start(&["logs", "-f", "victim"]);
    logs.wait_for("made");
    let _ = logs.child.kill();
    let _ = logs.child.wait();
}

#[track_caller]
fn shown(servin: &Servin) -> String {
    let shown = servin.go(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    shown.text()
}

#[track_caller]
fn assert_whole(servin: &Servin, when: &str) {
    let checked = servin.go(&["system", "check"]);
    assert_eq!(
        (checked.code, checked.text().as_str()),
        (Some(0), "The store is whole.\n"),
        "{when}: {checked:?}"
    );
}

#[test]
fn whatever_is_killed_while_an_image_is_made_of_a_container_the_image_is_whole_or_none() {
    let Some(servin) = Servin::new() else { return };
    let mut moments = Moments::new();
    victim(&servin);
    let whole = servin.go(&["commit", "victim", "whole:1"]);
    assert_eq!(whole.code, Some(0), "{whole:?}");
    for (round, who) in Who::rounds() {
        let name = format!("cut:{round}");
        let mut running = servin.start(&["commit", "victim", &name]);
        let moment = moments.below(whole.took.mul_f64(1.1));
        let when = format!("round {round}, {who:?} {moment:?} into commit");
        std::thread::sleep(moment);
        who.kill(&servin, &mut running);
        let outcome = running.finish();
        println!("{when}: {:?} {}", outcome.code, outcome.stderr.trim_end());
        let done = outcome.code == Some(0);
        assert!(done || who == Who::Command || outcome.stderr.starts_with("servin: "), "{when}: {outcome:?}");
        let made = servin.go(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).text().contains(&name);
        assert!(made || !done, "{when}: an image that was told of is not there");
        assert!(!made || done || who == Who::Command, "{when}: an image of a commit that failed");
        let state = if who == Who::Command { "victim running\n" } else { "victim exited\n" };
        assert_eq!(shown(&servin), state, "{when}");
        if made {
            servin.go(&["save", "-o", "/dev/null", &name]).expect(0, "");
            assert_eq!(servin.go(&["rmi", &name]).code, Some(0));
        }
        assert_eq!(names(&servin.data_root().join("tmp")), [""; 0], "{when}: temporary files");
        assert_whole(&servin, &when);
        servin.go(&["start", "victim"]).expect(0, "victim\n");
    }
    servin.go(&["run", "--rm", "whole:1", "stat", "-c", "%s", "/big"]).expect(0, "1048576\n");
    servin.go(&["rm", "-f", "victim"]).expect(0, "victim\n");
    assert_nothing_lives(&servin, "at the end");
}

#[test]
fn whatever_is_killed_while_a_container_is_removed_it_is_there_or_gone() {
    let Some(servin) = Servin::new() else { return };
    let mut moments = Moments::new();
    victim(&servin);
    let whole = servin.go(&["rm", "-f", "victim"]).took;
    for (round, who) in Who::rounds() {
        victim(&servin);
        let mut running = servin.start(&["rm", "-f", "victim"]);
        let moment = moments.below(whole.mul_f64(1.1));
        let when = format!("round {round}, {who:?} {moment:?} into rm");
        std::thread::sleep(moment);
        who.kill(&servin, &mut running);
        let outcome = running.finish();
        let state = shown(&servin);
        println!("{when}: {:?}, {state:?} {}", outcome.code, outcome.stderr.trim_end());
        match state.as_str() {
            "" => {}
            "victim running\n" => {
                assert!(who == Who::Command && !processes(&servin).is_empty(), "{when}: a false running");
            }
            "victim exited\n" => assert_ne!(outcome.code, Some(0), "{when}: {outcome:?}"),
            other => panic!("{when}: {other}"),
        }
        if !state.is_empty() {
            servin.go(&["rm", "-f", "victim"]).expect(0, "victim\n");
        }
        assert_nothing_lives(&servin, &when);
        assert_eq!(names(&servin.data_root().join("containers")), [""; 0], "{when}: a container's files");
        assert_whole(&servin, &when);
    }
}
