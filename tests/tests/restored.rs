//! Restoring what is not plain: terminals, shared networks, and several at once.

use std::io::Read;
use std::time::{Duration, Instant};

use servin_tests::machine::{DEADLINE, Outcome, Servin, Terminal};

const BASE: &str = "servin/base";

#[track_caller]
fn done(outcome: Outcome) -> String {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome.text()
}

#[track_caller]
fn exec(servin: &Servin, name: &str, script: &str) -> String {
    done(servin.go(&["exec", name, "sh", "-c", script]))
}

/// Does it until it works.
#[track_caller]
fn until(servin: &Servin, name: &str, script: &str) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        let outcome = servin.go(&["exec", name, "sh", "-c", script]);
        if outcome.code == Some(0) {
            return outcome.text();
        }
        assert!(Instant::now() < end, "{outcome:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Types a line once the program has the terminal: what comes before is thrown away.
#[track_caller]
fn type_line(terminal: &mut Terminal, line: &[u8]) {
    let end = Instant::now() + DEADLINE;
    while terminal.is_cooked() {
        assert!(Instant::now() < end, "the program did not get the terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
    terminal.type_in(line);
}

#[test]
fn a_program_on_a_terminal_goes_on_on_another_one_and_knows_its_size() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo ready; while read line; do echo got $line $(stty size); done";
    let (mut running, mut terminal) =
        servin.on_terminal(24, 80, &["run", "-it", "--name", "box", BASE, "sh", "-c", script]);
    running.wait_for("ready\r\n");
    type_line(&mut terminal, b"one\n");
    running.wait_for("got one 24 80\r\n");
    done(servin.go(&["snapshot", "--stop", "box", "tty"]));
    assert_eq!(running.finish().code, Some(137));
    assert!(terminal.is_cooked(), "the terminal was not given back");

    let (mut running, mut terminal) = servin.on_terminal(40, 100, &["restore", "--name", "again", "tty"]);
    type_line(&mut terminal, b"two\n");
    running.wait_for("got two 40 100\r\n");
    // Detached from it, and taken up once more.
    terminal.type_in(b"\x10\x11");
    assert_eq!(running.finish().code, Some(0));
    assert!(terminal.is_cooked(), "the terminal was not given back");
    let (mut running, mut terminal) = servin.on_terminal(33, 77, &["attach", "again"]);
    type_line(&mut terminal, b"three\n");
    running.wait_for("got three 33 77\r\n");
    terminal.type_in(b"\x04");
    assert_eq!(running.finish().code, Some(0));

    // Nobody watches this one at first.
    done(servin.go(&["restore", "-d", "--name", "later", "tty"]));
    let (mut running, mut terminal) = servin.on_terminal(30, 90, &["attach", "later"]);
    type_line(&mut terminal, b"four\n");
    running.wait_for("got four 30 90\r\n");
    terminal.type_in(b"\x04");
    assert_eq!(running.finish().code, Some(0));
    done(servin.go(&["rm", "box", "again", "later"]));
}

#[test]
fn a_restored_container_has_its_own_place_on_a_shared_network_at_once() {
    let Some(servin) = Servin::new() else { return };
    done(servin.go(&["network", "create", "--subnet", "10.90.0.0/24", "back"]));
    let serve = "while :; do echo from $(hostname) | nc -l -p 80 > /dev/null; done";
    let run = ["run", "-d", "--name", "box", "--network", "back", "-m", "64m", BASE, "sh", "-c", serve];
    done(servin.go(&run));
    until(&servin, "box", "netstat -ltn | grep -q :80");
    done(servin.go(&["snapshot", "box", "web"]));
    let restore = ["restore", "-d", "--name", "two", "-h", "host2", "-p", "127.0.0.1::80", "web"];
    done(servin.go(&restore));
    // The first thing that anybody asks it.
    let address = exec(&servin, "two", "ip -4 addr show dev eth0 | grep -o 'inet [0-9.]*'");
    let own = done(servin.go(&["inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "two"]));
    assert_eq!(address, format!("inet {own}"));
    let other = done(servin.go(&["inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "box"]));
    assert_ne!(own, other);
    let card = |name: &str| exec(&servin, name, "cat /sys/class/net/eth0/address");
    assert_ne!(card("box"), card("two"));
    // By name, both ways.
    for (from, to, address) in [("box", "two", &own), ("two", "box", &other)] {
        let answer = exec(&servin, from, &format!("ping -c 1 -W 5 {to}"));
        assert!(answer.contains(&format!("({})", address.trim())), "{answer}");
    }
    // The answer to the first was made before the snapshot.
    assert_eq!(until(&servin, "box", "nc two 80 < /dev/null | grep host2"), "from host2\n");
    // A port that only the restored one publishes.
    let at = done(servin.go(&["port", "two", "80"]));
    let end = Instant::now() + DEADLINE;
    let mut page = String::new();
    while page.is_empty() {
        assert!(Instant::now() < end, "no answer from {at}");
        let stream = std::net::TcpStream::connect(at.trim());
        let _ = stream.and_then(|mut stream| stream.read_to_string(&mut page));
    }
    assert_eq!(page, "from host2\n");
    done(servin.go(&["rm", "-f", "box", "two"]));
    done(servin.go(&["network", "rm", "back"]));
}

#[test]
fn two_restores_of_one_snapshot_at_once_are_two_containers() {
    let Some(servin) = Servin::new() else { return };
    let script = "echo kept > /kept; echo ready; exec sleep 1000";
    done(servin.go(&["run", "-d", "--name", "box", "-m", "64m", BASE, "sh", "-c", script]));
    until(&servin, "box", "cat /kept");
    done(servin.go(&["snapshot", "box", "one"]));
    done(servin.go(&["snapshot", "box", "two"]));
    done(servin.go(&["rm", "-f", "box"]));
    let names = ["aa", "bb", "cc", "dd"];
    let running = names.map(|name| {
        // Both of a whole one, and both of one that builds on it.
        let snapshot = if name < "cc" { "one" } else { "two" };
        servin.start(&["restore", "-d", "--name", name, snapshot])
    });
    for running in running {
        done(running.finish());
    }
    let own = "cat /kept; hostname; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1";
    let told = names.map(|name| exec(&servin, name, own));
    for (at, one) in told.iter().enumerate() {
        assert!(one.starts_with("kept\n"), "{one}");
        for other in &told[..at] {
            assert!(one.lines().skip(1).zip(other.lines().skip(1)).all(|(a, b)| a != b), "{one} and {other}");
        }
    }
    let refused = servin.go(&["restore", "-d", "--name", "aa", "one"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("\"aa\""), "{refused:?}");
    done(servin.go(&["rm", "-f", "aa", "bb", "cc", "dd"]));
    done(servin.go(&["snapshot", "rm", "one", "two"]));
}
