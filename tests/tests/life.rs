//! The life of a container beyond one command: in the background, entered and watched by others, interrupted, killed.

use std::fs;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";

#[test]
fn a_detached_container_is_shown_as_it_is_until_it_is_removed() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done";
    let outcome = servin.go(&["run", "-d", "--name", "web", "-e", "A=1", BASE, "sh", "-c", script]);
    let id = outcome.text().trim().to_owned();
    assert!(outcome.code == Some(0) && id.len() == 64, "{outcome:?}");
    servin
        .go(&["ps", "--format", "{{.ID}} {{.State}} {{.Names}}"])
        .expect(0, &format!("{} running web\n", &id[..12]));
    servin.go(&["ps", "-q", "--no-trunc"]).expect(0, &format!("{id}\n"));
    servin.go(&["exec", "web", "sh", "-c", "echo $A; exit 9"]).expect(9, "1\n");
    servin
        .go(&[
            "exec",
            "-e",
            "A=2",
            "-w",
            "/tmp",
            "-u",
            "nobody",
            &id[..8],
            "sh",
            "-c",
            "echo $A; pwd; id -un",
        ])
        .expect(0, "2\n/tmp\nnobody\n");
    servin.go_with_input(&["exec", "-i", "web", "cat"], b"x\0y").expect(0, "x\0y");
    assert_eq!(servin.go(&["exec", "web", "no-such"]).code, Some(127));
    let taken = servin.go(&["run", "--name", "web", BASE, "true"]);
    assert!(taken.code == Some(125) && taken.stderr.contains("\"web\" is in use"), "{taken:?}");
    let refused = servin.go(&["rm", "web"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("is running"), "{refused:?}");
    let logs = servin.go(&["logs", "web"]);
    logs.expect(0, "out\n");
    assert_eq!(logs.stderr, "err\n");
    let follower = servin.start(&["logs", "-f", "web"]);
    let waiter = servin.start(&["wait", "web"]);
    servin.go(&["stop", "web"]).expect(0, "web\n");
    waiter.finish().expect(0, "3\n");
    follower.finish().expect(0, "out\nbye\n");
    servin.go(&["logs", "-n", "1", "web"]).expect(0, "bye\n");
    servin.go(&["wait", "web"]).expect(0, "3\n");
    servin.go(&["ps", "-q"]).expect(0, "");
    servin
        .go(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.Name}}", "web"])
        .expect(0, "exited 3 /web\n");
    let not_running = servin.go(&["exec", "web", "true"]);
    assert!(not_running.code == Some(125) && not_running.stderr.contains("not running"), "{not_running:?}");
    servin.go(&["rm", "web"]).expect(0, "web\n");
    let gone = servin.go(&["inspect", "web"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
}

#[test]
fn a_detached_start_that_fails_is_a_failure() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", "-d", "--rm", BASE, "no-such-program"]);
    assert_eq!((outcome.code, outcome.text().as_str()), (Some(127), ""), "{outcome:?}");
    servin.go(&["ps", "-aq"]).expect(0, "");
}

#[test]
fn an_interrupt_during_the_start_ends_it() {
    let Some(servin) = Servin::on_any_host() else { return };
    let running = servin.start(&["run", "--name", "early", BASE, "sleep", "1000"]);
    // The row is there before the machine is made.
    let until = Instant::now() + Duration::from_secs(60);
    while servin.go(&["ps", "-aq"]).stdout.is_empty() {
        assert!(Instant::now() < until, "no container appears");
    }
    running.signal("INT");
    let early = servin.go(&["wait", "early"]).text();
    // On a fast host the program may run already, as PID 1 without a handler: then it takes a KILL.
    if early.trim() != "130" {
        servin.go(&["kill", "early"]);
    }
    assert!(matches!(running.finish().code, Some(130 | 137)));
}

#[test]
fn killing_the_command_line_leaves_the_container_and_removing_that_leaves_nothing() {
    let Some(servin) = Servin::new() else { return };
    let mut running =
        servin.start(&["run", "--rm", "--name", "left", BASE, "sh", "-c", "echo ready; exec sleep 1000"]);
    running.wait_for("ready\n");
    running.signal("KILL");
    let _ = running.child.wait();
    servin.go(&["ps", "--format", "{{.Names}} {{.State}}"]).expect(0, "left running\n");
    servin.go(&["rm", "-f", "left"]).expect(0, "left\n");
    servin.go(&["ps", "-aq"]).expect(0, "");
    let left: Vec<_> = fs::read_dir(servin.data_root().join("containers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn killing_the_monitor_is_told_and_leaves_nothing_that_looks_alive() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo ready; exec sleep 1000";
    let mut running =
        servin.start(&["run", "--restart", "always", "--name", "hit", BASE, "sh", "-c", script]);
    running.wait_for("ready\n");
    let pid = servin.go(&["inspect", "-f", "{{.State.Pid}}", "hit"]).text();
    let killed = std::process::Command::new("kill").args(["-s", "KILL", pid.trim()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("monitor was killed"), "{outcome:?}");
    servin.go(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "hit"]).expect(0, "exited 137\n");
    let living = fs::read_dir(servin.data_root().join("run")).unwrap().flatten();
    let living: Vec<_> = living.filter(|entry| entry.file_name() != ".lock").collect();
    assert!(living.is_empty(), "{living:?}");
    // Its policy was the monitor's business. As after a start of the host, whoever starts those with a policy has it again.
    servin.go(&["start", "--filter", "restart-policy=no"]).expect(0, "");
    servin.go(&["start", "--filter", "restart-policy=always"]).expect(0, "hit\n");
    servin.go(&["start", "--filter", "restart-policy=always"]).expect(0, "");
    servin.go(&["rm", "-f", "hit"]).expect(0, "hit\n");
}

#[test]
fn detach_keys_leave_the_program_running_and_attach_comes_back() {
    let Some(servin) = Servin::new() else { return };
    let (mut running, mut terminal) =
        servin.on_terminal(24, 80, &["run", "-it", "--name", "kept", BASE, "sh"]);
    // Answers are told from the echo of what is typed by the quotes.
    terminal.type_in(b"A=kept; echo rea''dy\n");
    running.wait_for("ready\r\n");
    terminal.type_in(b"\x10\x11");
    assert_eq!(running.finish().code, Some(0));
    assert!(terminal.is_cooked());
    servin.go(&["ps", "--format", "{{.Names}} {{.State}}"]).expect(0, "kept running\n");
    let (mut again, mut terminal) = servin.on_terminal(24, 80, &["attach", "kept"]);
    terminal.type_in(b"echo st''ill $A; exit 6\n");
    again.wait_for("still kept\r\n");
    assert_eq!(again.finish().code, Some(6));
    servin.go(&["rm", "kept"]).expect(0, "kept\n");
}
