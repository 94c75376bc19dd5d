//! `servin run -t` on a real terminal: size, signals by key, and a terminal that is always given back.

use std::time::{Duration, Instant};

use servin_tests::machine::{Servin, Terminal};

const BASE: &str = "servin/base";

#[track_caller]
fn expect_cooked(terminal: &Terminal) {
    let until = Instant::now() + Duration::from_secs(30);
    while !terminal.is_cooked() {
        assert!(Instant::now() < until, "the terminal was not given back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_program_has_a_terminal_of_the_same_size_and_learns_of_a_change() {
    let Some(servin) = Servin::new() else { return };
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 5' WINCH; echo ready; \
                  while :; do sleep 0.1; done";
    let (mut running, terminal) = servin.on_terminal(33, 77, &["run", "-it", BASE, "sh", "-c", script]);
    running.wait_for("33 77\r\n");
    running.wait_for("ready\r\n");
    terminal.resize(40, 100);
    running.wait_for("40 100\r\n");
    assert_eq!(running.finish().code, Some(5));
    expect_cooked(&terminal);
}

#[test]
fn control_c_is_the_program_s_and_the_terminal_is_given_back() {
    let Some(servin) = Servin::new() else { return };
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let (mut running, mut terminal) = servin.on_terminal(24, 80, &["run", "-it", BASE, "sh", "-c", script]);
    running.wait_for("ready\r\n");
    assert!(!terminal.is_cooked(), "the terminal is not raw while the program has it");
    terminal.type_in(b"\x03");
    running.wait_for("interrupted\r\n");
    assert_eq!(running.finish().code, Some(9));
    expect_cooked(&terminal);
}

#[test]
fn control_d_ends_the_input_and_what_is_typed_is_echoed_once() {
    let Some(servin) = Servin::new() else { return };
    let (mut running, mut terminal) =
        servin.on_terminal(24, 80, &["run", "-it", BASE, "sh", "-c", "echo ready; exec cat"]);
    running.wait_for("ready\r\n");
    terminal.type_in(b"typed\n");
    running.wait_for("typed\r\ntyped\r\n");
    terminal.type_in(b"\x04");
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.text().matches("typed").count(), 2, "{outcome:?}");
}

#[test]
fn a_killed_command_line_gives_the_terminal_back() {
    let Some(servin) = Servin::new() else { return };
    let (mut running, terminal) =
        servin.on_terminal(24, 80, &["run", "-it", "--rm", BASE, "sh", "-c", "echo ready; exec sleep 20"]);
    running.wait_for("ready\r\n");
    assert!(!terminal.is_cooked());
    running.signal("KILL");
    let _ = running.child.wait();
    expect_cooked(&terminal);
}

#[test]
fn t_without_a_terminal_is_refused() {
    let outcome = Servin::without_machine().go_with_input(&["run", "-it", BASE, "sh"], b"");
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.to_lowercase().contains("terminal"), "{outcome:?}");
}
