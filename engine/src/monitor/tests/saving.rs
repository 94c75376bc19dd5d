//! Snapshots, against the guest of threads.

use super::*;
use crate::monitor::wire::SnapshotRequest;
use crate::snapshot::Target;

fn snapshot(run: &Run, name: &str, stop: bool) -> Option<Tell> {
    let mut client = run.connect();
    client.ask(&Ask::Snapshot(Box::new(SnapshotRequest { target: Target::Name(name.into()), stop })));
    client.finish().2
}

fn why(tell: Option<Tell>) -> String {
    match tell {
        Some(Tell::Failed(failure)) => failure.text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_container_is_saved_while_it_stands_still_and_goes_on() {
    let mut run = run(&["wait"], How::default());
    run.started();
    assert_eq!(snapshot(&run, "one", false), Some(Tell::Done));
    assert_eq!(snapshot(&run, "two", false), Some(Tell::Done));
    let guest = run.guest.clone();
    let mut client = run.connect();
    client.ask(&Ask::Kill(2));
    let (.., last, _, record) = run.end();
    assert_eq!(last, exited(130));
    assert_eq!(record[..3], ["started", "snapshot one", "snapshot two"]);
    let steps = ["freeze true", "pause", "save one", "resume", "freeze false"];
    assert_eq!(guest.log()[1..6], steps);
    assert_eq!(guest.log()[6..11], ["freeze true", "pause", "save two on one", "resume", "freeze false"]);
}

#[test]
fn what_cannot_be_saved_goes_on_and_leaves_nothing() {
    let mut run = run(&["wait"], How::default());
    run.started();
    assert_eq!(why(snapshot(&run, "taken", false)), "there is one");
    for stop in [false, true] {
        assert_eq!(why(snapshot(&run, "full", stop)), "the disk is full");
    }
    run.guest.be_restless();
    assert_eq!(why(snapshot(&run, "still", false)), "the guest cannot stand still: stop");
    let guest = run.guest.clone();
    let mut client = run.connect();
    client.ask(&Ask::Kill(2));
    let (.., last, _, record) = run.end();
    assert_eq!(last, exited(130));
    assert_eq!(record[1..4], ["no snapshot", "no snapshot", "no snapshot"]);
    let log = guest.log();
    let freezes: Vec<_> = log.iter().filter(|line| line.starts_with("freeze")).collect();
    assert_eq!(freezes, ["freeze true", "freeze false", "freeze true", "freeze false", "freeze true"]);
}

#[test]
fn a_paused_container_is_not_saved() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let mut client = run.connect();
    client.ask(&Ask::Pause);
    assert_eq!(client.next(), Some(Tell::Done));
    assert!(why(snapshot(&run, "one", false)).contains("is paused"));
    let mut client = run.connect();
    client.ask(&Ask::Kill(9));
    run.end();
}

#[test]
fn a_container_that_is_to_be_stopped_ends_without_going_on() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let guest = run.guest.clone();
    assert_eq!(snapshot(&run, "one", true), exited(137));
    let (.., last, code, record) = run.end();
    assert_eq!((last, code), (exited(137), 137));
    assert_eq!(record, ["started", "snapshot one", "ended 137 oom=false"]);
    assert_eq!(guest.log()[1..], ["freeze true", "pause", "save one", "resume", "shutdown", "killed"]);
}

#[test]
fn a_saved_container_is_told_who_it_is_and_goes_on() {
    let mut run = run(&["wait"], How { restored: true, generation: 1, ..How::default() });
    run.started();
    let guest = run.guest.clone();
    assert_eq!(guest.log(), ["configure box", "freeze false"]);
    let mut client = run.connect();
    client.ask(&Ask::Kill(9));
    drop(client);
    // Nothing here runs a program: the machine is ended when the signal has no effect.
    guest.end(Ended::Off);
    let (.., record) = run.end();
    assert_eq!(record[0], "started");
}

#[test]
fn a_machine_that_does_not_know_that_it_was_restored_is_ended() {
    let run = run(&["wait"], How { restored: true, generation: 0, ..How::default() });
    let (.., last, code, _) = run.end();
    assert!(code == 125 && why(last).contains("as if it had booted"));
}
