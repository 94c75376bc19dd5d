//! Networks that come and go, against the guest of threads: what ends with number 2 it cannot do, and to number
//! 4 it says nothing.

use super::*;
use crate::monitor::wire::SnapshotRequest;
use crate::network::Change;
use crate::snapshot::Target;

fn connect(network: &str) -> Ask {
    let network = network.to_owned();
    Ask::Networks(Box::new(Change::Connect { network, address: None, aliases: Vec::new() }))
}

fn disconnect(network: &str, force: bool) -> Ask {
    Ask::Networks(Box::new(Change::Disconnect { network: network.into(), force }))
}

fn asking(run: &Run, ask: &Ask) -> Client {
    let mut client = run.connect();
    client.ask(ask);
    client
}

fn one(run: &Run, ask: &Ask) -> Tell {
    asking(run, ask).next().expect("an answer")
}

fn refused(run: &Run, ask: &Ask, why: &str) {
    match one(run, ask) {
        Tell::Failed(failure) => assert!(failure.text.contains(why), "{}", failure.text),
        other => panic!("{other:?}"),
    }
}

fn on_network() -> How {
    How { network: true, ..How::default() }
}

fn await_line(run: &Run, line: &str) {
    let until = Instant::now() + super::super::testing::LIMIT;
    while !run.guest.log().iter().any(|known| known == line) {
        assert!(Instant::now() < until, "{line} is not in {:?}", run.guest.log());
        std::thread::yield_now();
    }
}

/// Ends it, and gives what its guest and its record were told of networks.
fn end(run: Run) -> (Vec<String>, Vec<String>) {
    assert_eq!(one(&run, &Ask::Kill(2)), Tell::Done);
    let guest = run.guest.clone();
    let (.., record) = run.end();
    let about = |line: &String| line.starts_with("rewire") || line.starts_with("networks");
    (
        guest.log().into_iter().filter(about).collect(),
        record.into_iter().filter(|line| line.starts_with("on")).collect(),
    )
}

#[test]
fn networks_come_before_the_guest_hears_of_them_and_go_when_it_has_left_them() {
    let mut run = run(&["wait"], on_network());
    run.started();
    assert_eq!(one(&run, &connect("a")), Tell::Done);
    assert_eq!(one(&run, &disconnect("bridge", false)), Tell::Done);
    refused(&run, &connect("a"), "already connected to network a");
    refused(&run, &disconnect("bridge", true), "not on network bridge");
    let (guest, record) = end(run);
    assert_eq!(guest, ["rewire bridge a", "networks 0 1", "networks 1", "rewire a"]);
    assert_eq!(record, ["on bridge a", "on a"]);
}

#[test]
fn what_fails_is_put_back_in_the_tables_on_the_card_and_in_the_guest() {
    let mut run = run(&["wait"], on_network());
    run.started();
    refused(&run, &connect("broken"), "it is broken");
    assert_eq!(one(&run, &connect("a")), Tell::Done);
    refused(&run, &connect("b"), "the guest could not change its networks: unlucky");
    // The next change is not taken for what the guest says about the way back.
    assert_eq!(one(&run, &disconnect("a", false)), Tell::Done);
    let (guest, record) = end(run);
    let steps = [
        "rewire bridge broken",
        "rewire bridge",
        "rewire bridge a",
        "networks 0 1",
        "rewire bridge a b",
        "networks 0 1 2",
        "rewire bridge a",
        "networks 0 1",
        "networks 0",
        "rewire bridge",
    ];
    assert_eq!(guest, steps);
    let tables =
        ["on bridge broken", "on bridge", "on bridge a", "on bridge a b", "on bridge a", "on bridge"];
    assert_eq!(record, tables);
}

#[test]
fn a_guest_that_does_not_leave_a_network_keeps_it_unless_it_is_forced() {
    let mut run = run(&["wait"], How { networks: vec!["a", "b", "c"], ..on_network() });
    run.started();
    // What is left ends with number 2.
    refused(&run, &disconnect("c", false), "unlucky");
    assert_eq!(one(&run, &disconnect("c", true)), Tell::Done);
    let (guest, record) = end(run);
    assert_eq!(guest[..4], ["networks 0 1 2", "rewire bridge a b c", "networks 0 1 2 3", "networks 0 1 2"]);
    assert_eq!(
        (guest.last().unwrap().as_str(), record),
        ("rewire bridge a b", vec!["on bridge a b".to_owned()])
    );
}

#[test]
fn one_change_follows_another_and_nothing_stands_still_between() {
    let mut run = run(&["wait"], How { networks: vec!["a", "b", "c"], ..on_network() });
    run.started();
    let mut first = asking(&run, &connect("d"));
    await_line(&run, "networks 0 1 2 3 4");
    let mut second = asking(&run, &disconnect("a", false));
    refused(&run, &Ask::Pause, "networks are being changed");
    let request = SnapshotRequest { target: Target::Name("x".into()), stop: false };
    refused(&run, &Ask::Snapshot(Box::new(request)), "networks are being changed");
    assert_eq!(one(&run, &Ask::Kill(2)), Tell::Done);
    // With the container both are over.
    assert_eq!((first.finish().2, second.finish().2), (exited(130), exited(130)));
    let guest = run.guest.clone();
    run.end();
    assert!(!guest.log().iter().any(|line| line == "rewire bridge b c d"), "{:?}", guest.log());
}

#[test]
fn what_cannot_change_its_networks_says_why() {
    let mut none = run(&["wait"], How::default());
    none.started();
    refused(&none, &connect("a"), "gets no card while it runs");
    let (guest, record) = end(none);
    assert!(guest.is_empty() && record.is_empty());

    let mut paused = run(&["wait"], on_network());
    paused.started();
    assert_eq!(one(&paused, &Ask::Pause), Tell::Done);
    refused(&paused, &connect("a"), "is paused: unpause it first");
    assert_eq!(one(&paused, &Ask::Unpause), Tell::Done);
    assert_eq!(one(&paused, &disconnect("bridge", false)), Tell::Done);
    let request = SnapshotRequest { target: Target::Name("x".into()), stop: false };
    refused(&paused, &Ask::Snapshot(Box::new(request)), "disconnected from all its networks");
    let (guest, record) = end(paused);
    assert_eq!((guest, record), (vec!["networks".to_owned(), "rewire ".to_owned()], vec!["on".to_owned()]));
}

#[test]
fn a_machine_that_is_made_anew_has_the_networks_of_then() {
    let mut run = run(&["wait"], How { restart: Restart::Always, ..on_network() });
    run.started();
    assert_eq!(one(&run, &connect("a")), Tell::Done);
    run.guest.end(Ended::Failed("it broke".into()));
    run.client.until(|tell| matches!(tell, Tell::Failed(_)));
    // In the pause, or when the next one runs.
    assert_eq!(one(&run, &disconnect("bridge", false)), Tell::Done);
    await_line(&run, "rewire a");
    let until = Instant::now() + super::super::testing::LIMIT;
    while run.record.lock().unwrap().iter().filter(|line| *line == "started").count() < 2 {
        assert!(Instant::now() < until, "{:?}", run.record.lock().unwrap());
        std::thread::yield_now();
    }
    let mut last = run.connect();
    last.ask(&Ask::Kill(9));
    run.session.join().unwrap();
    let log = run.guest.log();
    let anew: Vec<_> = log.iter().filter(|line| line.starts_with("configure box on")).collect();
    assert!(anew == ["configure box on 1"] || anew == ["configure box on 0 1"], "{log:?}");
}
