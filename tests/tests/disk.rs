//! What a container writes: it outlives stop and start, the monitor's death, and is seen by the verbs about files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";

/// The one container's disk.
fn disk(servin: &Servin) -> Option<PathBuf> {
    let mut all = fs::read_dir(servin.data_root().join("containers")).unwrap();
    let disk = all.next()?.unwrap().path().join("disk");
    disk.exists().then_some(disk)
}

#[test]
fn changes_survive_and_are_seen_by_every_verb_about_them() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo x >> /kept; wc -l < /kept; rm -rf /srv; mkdir -p /new/dir; ln -sf ../kept /new/link";
    let created = servin.go(&["create", "--name", "box", BASE, "sh", "-c", script]);
    assert!(created.code == Some(0) && created.text().trim().len() == 64, "{created:?}");
    servin.go(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]).expect(0, "box created\n");
    servin.go(&["start", "-a", "box"]).expect(0, "1\n");
    servin.go(&["start", "-a", "box"]).expect(0, "2\n");
    servin.go(&["start", "box"]).expect(0, "box\n");
    servin.go(&["wait", "box"]).expect(0, "0\n");
    servin.go(&["logs", "box"]).expect(0, "1\n2\n3\n");

    servin.go(&["diff", "box"]).expect(0, "A /kept\nA /new\nA /new/dir\nA /new/link\nD /srv\n");
    let out = servin.folder().join("out");
    fs::create_dir(&out).unwrap();
    servin.go(&["cp", "box:/new", out.to_str().unwrap()]).expect(0, "");
    assert_eq!(fs::read_link(out.join("new/link")).unwrap(), PathBuf::from("../kept"));
    servin.go(&["cp", "-L", "box:/new/link", out.join("file").to_str().unwrap()]).expect(0, "");
    assert_eq!(fs::read(out.join("file")).unwrap(), b"x\nx\nx\n");
    servin.go_with_input(&["cp", "-", "box:/new"], &tar("in/tar", b"packed")).expect(0, "");
    let tar = servin.go(&["export", "box"]);
    let listed = String::from_utf8_lossy(&tar.stdout);
    assert!(
        tar.code == Some(0) && listed.contains("new/in/tar") && listed.contains("packed"),
        "{:?}",
        tar.stderr
    );

    let committed = servin.go(&["commit", "-c", "CMD [\"cat\", \"/kept\"]", "-m", "why", "box", "made:1"]);
    assert!(committed.code == Some(0) && committed.text().starts_with("sha256:"), "{committed:?}");
    servin.go(&["run", "--rm", "made:1"]).expect(0, "x\nx\nx\n");
    servin.go(&["run", "--rm", "made:1", "sh", "-c", "cat /new/in/tar; test -e /srv"]).expect(1, "packed");
    let imported = servin.go_with_input(&["import", "-c", "CMD /bin/sh", "-", "flat:1"], &tar.stdout);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    servin.go(&["run", "--rm", "flat:1", "cat", "/kept"]).expect(0, "x\nx\nx\n");

    servin.go(&["rename", "box", "crate"]).expect(0, "");
    servin.go(&["rm", "crate"]).expect(0, "crate\n");
    assert_eq!(fs::read_dir(servin.data_root().join("containers")).unwrap().count(), 0);
}

/// A tar with one file.
fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, data).unwrap();
    let made = std::process::Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .args(["-cf", "-", name])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

#[test]
fn a_container_that_changes_nothing_has_no_disk_and_one_that_is_removed_leaves_none() {
    let Some(servin) = Servin::new() else { return };
    // The first run leaves the template, and has a disk of its own.
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    assert_eq!(fs::read_dir(servin.data_root().join("containers")).unwrap().count(), 0);
    servin.go(&["run", "--name", "quiet", BASE, "ls", "/etc/passwd"]).expect(0, "/etc/passwd\n");
    assert_eq!(disk(&servin), None);
    servin.go(&["start", "-a", "quiet"]).expect(0, "/etc/passwd\n");
    servin.go(&["diff", "quiet"]).expect(0, "");
    servin.go(&["rm", "quiet"]).expect(0, "quiet\n");
    let script =
        "dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sync; rm /big; sync; echo kept > /small";
    servin.go(&["run", "--name", "loud", BASE, "sh", "-c", script]).expect(0, "");
    let meta = fs::metadata(disk(&servin).expect("a disk")).unwrap();
    assert!(
        meta.len() > 1 << 30 && meta.blocks() * 512 < 20 << 20,
        "{} bytes on the host",
        meta.blocks() * 512
    );
}

#[test]
fn a_full_disk_is_an_error_of_the_program_and_goes_by_deleting() {
    let Some(servin) = Servin::new() else { return };
    let script = "dd if=/dev/zero of=/big bs=1M count=100; rm /big; echo more > /small && cat /small";
    let full = servin.go(&["run", "--rm", "--storage-opt", "size=64m", BASE, "sh", "-c", script]);
    full.expect(0, "more\n");
    assert!(full.stderr.contains("No space left on device"), "{full:?}");
}

/// A small file system of memory, gone with this.
struct Small(String);

impl Small {
    /// `None`, with the reason printed, where this user cannot mount.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let path = folder.to_str().unwrap().to_owned();
        let options = format!("size={size},mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs", &path]).output().unwrap();
        if !done.status.success() {
            println!(
                "skipped: this user cannot mount a file system: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            );
            return None;
        }
        Some(Small(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[test]
fn on_a_full_host_disk_what_is_stored_is_shown_and_can_be_removed() {
    let Some(servin) = Servin::new() else { return };
    let folder = servin.folder().join("small");
    let Some(small) = Small::mount(&folder, "112m") else { return };
    let go = |args: &[&str]| servin.go(&[&["--data-root", &small.0], args].concat());
    go(&["run", "--name", "box", "-m", "64m", BASE, "sh", "-c", "echo kept > /file"]).expect(0, "");
    assert!(folder.join("reserve").exists());
    let mut filler = fs::File::create(folder.join("filler")).unwrap();
    while filler.write_all(&[1; 1 << 16]).is_ok() {}
    while filler.write_all(&[1; 1 << 12]).is_ok() {}

    go(&["ps", "-a", "--filter", "name=box", "--format", "{{.Names}}"]).expect(0, "box\n");
    go(&["rm", "box"]).expect(0, "box\n");
    assert!(!folder.join("reserve").exists(), "it was given back");
    drop(filler);
    fs::remove_file(folder.join("filler")).unwrap();
    go(&["run", "--rm", "-m", "64m", BASE, "echo", "hi"]).expect(0, "hi\n");
    assert!(folder.join("reserve").exists(), "it was made anew");
}

#[test]
fn a_program_that_starts_while_a_container_stands_still_for_its_image_waits_for_it() {
    let Some(servin) = Servin::new() else { return };
    // More than any pipe on the way holds.
    let script = "dd if=/dev/urandom of=/big bs=64k count=160 2>/dev/null; echo made; exec sleep 1000000";
    let mut running = servin.start(&["run", "--name", "box", BASE, "sh", "-c", script]);
    running.wait_for("made\n");
    let mut commit = servin.start(&["commit", "box", "of-box:1"]);
    let mut meanwhile = 0;
    while commit.child.try_wait().unwrap().is_none() {
        servin.go(&["exec", "box", "echo", "there"]).expect(0, "there\n");
        meanwhile += 1;
    }
    assert_eq!(commit.finish().code, Some(0));
    assert!(meanwhile > 0);
    servin.go(&["run", "--rm", "of-box:1", "stat", "-c", "%s", "/big"]).expect(0, "10485760\n");
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");
}

#[test]
fn files_go_into_a_running_container_and_out_of_it_and_nowhere_else() {
    let Some(servin) = Servin::new() else { return };
    let folder = servin.folder().join("here");
    fs::create_dir_all(folder.join("tree/sub")).unwrap();
    fs::write(folder.join("tree/sub/file"), "from here").unwrap();
    symlink("/etc/passwd", folder.join("tree/link")).unwrap();
    let here = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let script = "ln -s / /rootlink; mkdir /trap; ln -s /etc /trap/etc; echo ready; exec sleep 1000";
    let mut running = servin.start(&["run", "--name", "box", BASE, "sh", "-c", script]);
    running.wait_for("ready\n");
    servin.go(&["cp", &here("tree"), "box:/rootlink/copied"]).expect(0, "");
    servin
        .go(&[
            "exec",
            "box",
            "sh",
            "-c",
            "cat /copied/sub/file; readlink /copied/link; stat -c %u /copied/sub",
        ])
        .expect(0, "from here/etc/passwd\n0\n");
    servin.go(&["cp", &here("tree/sub/file"), "box:/copied/sub"]).expect(0, "");
    servin.go(&["cp", &here("tree/sub/file"), "box:/new-name"]).expect(0, "");
    servin.go(&["cp", "box:/new-name", &here("back")]).expect(0, "");
    assert_eq!(fs::read(folder.join("back")).unwrap(), b"from here");
    // A link of the container's that lies on the way here is not followed here.
    fs::create_dir(folder.join("out")).unwrap();
    symlink("/etc", folder.join("out/etc")).unwrap();
    let trapped = servin.go(&["cp", "box:/trap/.", &here("out")]);
    assert_eq!(trapped.code, Some(0), "{trapped:?}");
    assert_eq!(
        fs::read_link(folder.join("out/etc")).unwrap(),
        PathBuf::from("/etc"),
        "replaced by the same link"
    );
    for (words, why) in [
        (["cp", "box:/nope", here("x").as_str()], "cannot find /nope in the container"),
        (["cp", here("nope").as_str(), "box:/x"], "No such file"),
        (["cp", here("tree").as_str(), "box:/new-name"], "which is a file"),
        (["cp", here("back").as_str(), "box:/no/such/dir/"], "no directory"),
        (["cp", "box:/x", "other:/y"], "between containers"),
        (["cp", "x", "y"], "in a container"),
    ] {
        let refused = servin.go(&words);
        assert!(refused.code == Some(1) && refused.stderr.contains(why), "{words:?}: {refused:?}");
    }
    let committed = servin.go(&["commit", "box", "live"]);
    assert_eq!(committed.code, Some(0), "{committed:?}");
    servin.go(&["exec", "box", "echo", "it goes on"]).expect(0, "it goes on\n");
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");
    let _ = running.finish();
}

#[test]
fn a_monitor_that_is_killed_in_the_middle_of_writing_leaves_a_disk_that_starts_again() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo start >> /count; cat /count; i=0; while :; do i=$((i + 1)); mkdir -p /d/$((i % 50)); \
                  echo $i > /d/$((i % 50))/$i; sync; [ $i = 20 ] && echo busy; done";
    let mut running = servin.start(&["run", "--name", "hit", BASE, "sh", "-c", script]);
    for start in 1..4 {
        running.wait_for("busy\n");
        let pid = servin.go(&["inspect", "-f", "{{.State.Pid}}", "hit"]).text();
        let killed = std::process::Command::new("kill").args(["-s", "KILL", pid.trim()]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let outcome = running.finish();
        let seen = outcome.text();
        assert_eq!(seen.matches("start\n").count(), start, "{outcome:?}");
        servin.go(&["inspect", "-f", "{{.State.Status}}", "hit"]).expect(0, "exited\n");
        running = servin.start(&["start", "-a", "hit"]);
    }
    running.wait_for("busy\n");
    servin.go(&["kill", "hit"]).expect(0, "hit\n");
    let _ = running.finish();
    if let Some(disk) = disk(&servin)
        && let Ok(checked) = std::process::Command::new("/sbin/e2fsck").args(["-fy"]).arg(&disk).output()
    {
        // 0: nothing was wrong; 1: the journal was played back.
        let text = String::from_utf8_lossy(&checked.stdout);
        assert!(matches!(checked.status.code(), Some(0 | 1)) && !text.contains("UNEXPECTED"), "{text}");
    }
    servin.go(&["rm", "-f", "hit"]).expect(0, "hit\n");
}

#[test]
fn a_policy_starts_a_program_again_and_stop_ends_that() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo x >> /runs; wc -l < /runs; exit 3";
    servin
        .go(&["run", "--name", "two", "--restart", "on-failure:2", BASE, "sh", "-c", script])
        .expect(3, "1\n");
    let until = Instant::now() + Duration::from_secs(120);
    let state = |servin: &Servin, name: &str| {
        servin.go(&["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", name]).text()
    };
    while state(&servin, "two") != "exited 2\n" {
        assert!(Instant::now() < until, "{}", state(&servin, "two"));
        std::thread::sleep(Duration::from_millis(100));
    }
    servin.go(&["logs", "two"]).expect(0, "1\n2\n3\n");

    servin.go(&["run", "-d", "--name", "ever", "--restart", "always", BASE, "sh", "-c", "sleep 1; exit 0"]);
    // Nobody looks in time at every count.
    let again = |state: &str| state.split_whitespace().nth(1).is_some_and(|count| count != "0");
    while !again(&state(&servin, "ever")) {
        assert!(Instant::now() < until, "{}", state(&servin, "ever"));
        std::thread::sleep(Duration::from_millis(100));
    }
    let policy = ["inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "ever"];
    servin.go(&policy).expect(0, "always\n");
    servin.go(&["update", "--restart", "unless-stopped", "ever"]).expect(0, "ever\n");
    servin.go(&policy).expect(0, "unless-stopped\n");
    servin.go(&["stop", "-t", "1", "ever"]).expect(0, "ever\n");
    assert!(state(&servin, "ever").starts_with("exited "));
    let refused = servin.go(&["run", "--rm", "--restart", "always", BASE, "true"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("contradict"), "{refused:?}");
    servin.go(&["restart", "two"]).expect(0, "two\n");
    servin.go(&["rm", "-f", "two", "ever"]).expect(0, "two\never\n");
}
