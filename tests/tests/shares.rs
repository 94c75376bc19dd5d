//! A directory that a container shares with the host and with another container: what is written is seen, what is locked
//! is locked for all of them, and what is mounted inside is told apart. One boot, or two, for everything.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;
use servin_tests::machine::{Running, Servin};

const BASE: &str = "servin/base";

/// A container that waits, with the share at `/share`.
fn start(servin: &Servin, name: &str, share: &Path, programs: &Path, more: &[&str]) {
    let (share, programs) =
        (format!("{}:/share", share.display()), format!("{}:/programs:ro", programs.display()));
    let mut words = vec!["run", "-d", "--name", name, "-v", &share, "-v", &programs];
    words.extend(more);
    words.extend([BASE, "sleep", "1000000"]);
    let outcome = servin.go(&words);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// Runs `script` in a container and returns what it printed.
#[track_caller]
fn inside(servin: &Servin, name: &str, script: &str) -> String {
    let outcome = servin.go(&["exec", name, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{script}: {outcome:?}");
    outcome.text()
}

/// The program `share` with these words on the host.
#[track_caller]
fn on_host(programs: &Path, words: &[&str]) -> String {
    let output = Command::new(programs.join("share")).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process in a container that holds a lock until [`let_go`].
fn hold(servin: &Servin, name: &str, words: &str) -> Running {
    servin.start_with_input(&["exec", "-i", name, "sh", "-c", &format!("/programs/share lock {words}")])
}

fn let_go(mut holder: Running) {
    holder.end_input();
    let outcome = holder.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// Mounts a file system in memory, which goes with the value. `None`, and a line that says why, where that is not allowed.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let output = Command::new("mount").args(["-t", "tmpfs", "servin-test"]).arg(at).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(at.to_path_buf())),
            other => {
                println!("skipped: what is mounted inside a share: mount is refused here ({other:?})");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn containers_and_the_host_share_a_directory() {
    let Some(servin) = Servin::new() else { return };
    let Some(programs) = servin.programs() else { return };
    let [share, consistent, delegated] = ["share", "consistent", "delegated"].map(|name| {
        let share = servin.folder().join(name);
        fs::create_dir(&share).unwrap();
        share
    });
    let mounted = Mounted::new(&share.join("mounted"));
    fs::write(share.join("from-host"), "old\n").unwrap();
    let strict = format!("{}:/consistent:consistent", consistent.display());
    let loose = format!("type=bind,source={},target=/delegated,consistency=delegated", delegated.display());
    start(&servin, "one", &share, &programs, &["-v", &strict, "--mount", &loose]);

    written_and_seen(&servin, &share);
    what_programs_do(&servin, "/share", &share);
    seen_at_once(&servin, &consistent);
    kept_for_a_while(&servin, &delegated);
    if mounted.is_some() {
        mounts_inside(&servin, &share);
    }
    start(&servin, "two", &share, &programs, &[]);
    locks(&servin, &share, &programs);
    counted(&servin, &share, &programs);
    servin.go(&["rm", "-f", "one", "two"]).expect(0, "one\ntwo\n");
    drop(mounted);
}

fn written_and_seen(servin: &Servin, share: &Path) {
    assert_eq!(inside(servin, "one", "cat /share/from-host; echo hello > /share/from-guest"), "old\n");
    assert_eq!(
        fs::read_to_string(share.join("from-guest")).unwrap(),
        "hello\n",
        "the host sees writes at once"
    );
    fs::write(share.join("from-host"), "newer than before\n").unwrap();
    let seen = "until grep -q newer /share/from-host; do sleep 0.1; done; cat /share/from-host";
    assert_eq!(inside(servin, "one", seen), "newer than before\n");
    fs::write(share.join("made-later"), "x").unwrap();
    fs::remove_file(share.join("from-guest")).unwrap();
    let names = "until [ -e /share/made-later ] && [ ! -e /share/from-guest ]; do sleep 0.1; done; ls /share";
    assert_eq!(inside(servin, "one", names), "from-host\nmade-later\nmounted\n");
}

/// The same in each mode: `target` in the container is `share` on the host.
fn what_programs_do(servin: &Servin, target: &str, share: &Path) {
    fs::create_dir(share.join("checks")).unwrap();
    let done = inside(servin, "one", &format!("/programs/share checks {target}/checks"));
    let names = ["mmap", "direct", "fsync", "rename", "xattr", "link", "mtime", "append", "unlink", "sparse"];
    assert_eq!(done, names.map(|name| format!("{name} ok\n")).concat());
    let dir = share.join("checks");
    assert_eq!(&fs::read(dir.join("mapped")).unwrap()[5000..5014], b"through memory");
    assert_eq!(&fs::read(dir.join("direct")).unwrap()[4096..4104], b"ccccdddd");
    assert_eq!(fs::read(dir.join("replaced")).unwrap(), b"new contents");
    assert_eq!(fs::read(dir.join("appended")).unwrap(), b"one,two,three");
    let [one, two] = ["replaced", "linked"].map(|name| fs::metadata(dir.join(name)).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    assert_eq!((one.mtime(), one.mtime_nsec()), (1_000_000_000, 500_000_000));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(dir.join("replaced"), "user.color", &mut value).unwrap();
    assert_eq!(&value[..len], b"blue");
    let sparse = fs::metadata(dir.join("sparse")).unwrap();
    assert!(sparse.len() == (1 << 20) + 3 && sparse.blocks() < 1024, "{sparse:?}");
    assert!(!dir.join("new").exists() && !dir.join("unlinked").exists());
}

/// `consistent`: nothing that the container knows is older than its question.
fn seen_at_once(servin: &Servin, share: &Path) {
    what_programs_do(servin, "/consistent", share);
    let mut reader = servin.start_with_input(&[
        "exec",
        "-i",
        "one",
        "sh",
        "-c",
        "cd /consistent; while read -r name; do ls; cat \"$name\" 2>&1; done",
    ]);
    reader.say("first\n");
    reader.wait_for("checks\ncat: can't open 'first': No such file or directory\n");
    for (content, listed) in [("one\n", "checks\nfirst\n"), ("other\n", "checks\nfirst\n")] {
        fs::write(share.join("first"), content).unwrap();
        reader.say("first\n");
        reader.wait_for(&format!("{listed}{content}"));
    }
    fs::rename(share.join("first"), share.join("second")).unwrap();
    reader.say("first\n");
    reader.wait_for("checks\nsecond\ncat: can't open 'first': No such file or directory\n");
    reader.end_input();
    reader.finish();
}

/// `delegated`: the container believes what it has seen; what it writes is on the host when the file is closed.
fn kept_for_a_while(servin: &Servin, share: &Path) {
    what_programs_do(servin, "/delegated", share);
    let (kept, written) = (share.join("kept"), share.join("written"));
    fs::write(&kept, "old\n").unwrap();
    let script = "cd /delegated; cat kept; echo read; read -r _; cat kept; cat > written; echo closed";
    let mut program = servin.start_with_input(&["exec", "-i", "one", "sh", "-c", script]);
    program.wait_for("old\nread\n");
    fs::write(&kept, "new and longer\n").unwrap();
    program.say("\nnews\n");
    program.wait_for("old\nread\nold\n");
    program.end_input();
    program.wait_for("closed\n");
    assert_eq!(fs::read_to_string(&written).unwrap(), "news\n");
    program.finish();
}

fn mounts_inside(servin: &Servin, share: &Path) {
    let script = "echo inside > /share/mounted/file; stat -c %d /share /share/mounted; grep -c ' /share/mounted ' \
                  /proc/self/mountinfo; mv /share/mounted/file /share/moved && cat /share/moved";
    let printed = inside(servin, "one", script);
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines.len() == 4 && lines[0] != lines[1], "another device number: {printed}");
    assert_eq!(lines[2..], ["1", "inside"], "a mount of its own, which a rename does not cross: {printed}");
    assert!(fs::read_dir(share.join("mounted")).unwrap().next().is_none());
}

fn locks(servin: &Servin, share: &Path, programs: &Path) {
    let file = share.join("locked");
    let file = file.to_str().unwrap();
    let mut holder = hold(servin, "one", "/share/locked exclusive 100 10");
    holder.wait_for("held\n");
    // Within the guest the holder's number is told, elsewhere nobody's is.
    let told = inside(servin, "one", "/programs/share try /share/locked shared 0 0; pidof share");
    let (busy, pid) = told.split_once('\n').unwrap();
    assert_eq!(busy, format!("busy {}", pid.trim()));
    assert_eq!(inside(servin, "two", "/programs/share try /share/locked shared 105 1"), "busy 0\n");
    assert_eq!(inside(servin, "two", "/programs/share try /share/locked exclusive 110 0"), "taken\n");
    assert!(on_host(programs, &["try", file, "exclusive", "0", "101"]).starts_with("busy "));
    assert_eq!(on_host(programs, &["try", file, "exclusive", "0", "100"]), "taken\n");
    // Waiting in the other container, until an alarm rings, until it is killed, and until the lock is free.
    assert_eq!(inside(servin, "two", "/programs/share interrupted /share/locked"), "interrupted\n");
    let killed =
        "/programs/share lock /share/locked shared 0 0 & pid=$!; sleep 0.5; kill -9 $pid; wait $pid; echo $?";
    assert_eq!(inside(servin, "two", killed), "137\n");
    let mut waiter = hold(servin, "two", "/share/locked exclusive 0 0");
    let_go(holder);
    waiter.wait_for("held\n");
    assert!(on_host(programs, &["try", file, "shared", "0", "1"]).starts_with("busy "));
    let_go(waiter);
    // A lock of the host.
    let host = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    rustix::fs::fcntl_lock(&host, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::flock(&host, FlockOperation::NonBlockingLockExclusive).unwrap();
    let both = "/programs/share try /share/locked shared 5 5; /programs/share flock /share/locked shared";
    assert_eq!(inside(servin, "one", both), "busy 0\nbusy\n");
    let mut waiter = hold(servin, "one", "/share/locked shared 0 0");
    drop(host);
    waiter.wait_for("held\n");
    let_go(waiter);
    assert_eq!(inside(servin, "two", "/programs/share flock /share/locked exclusive"), "taken\n");
}

/// Under a lock everybody sees what the one before wrote: no addition is lost.
fn counted(servin: &Servin, share: &Path, programs: &Path) {
    fs::write(share.join("count"), "00000000\n").unwrap();
    let guests = ["one", "two"]
        .map(|name| servin.start(&["exec", name, "/programs/share", "count", "/share/count", "25"]));
    on_host(programs, &["count", share.join("count").to_str().unwrap(), "25"]);
    for guest in guests {
        guest.finish().expect(0, "");
    }
    assert_eq!(fs::read_to_string(share.join("count")).unwrap(), "00000075\n");
}
