//! Pause, update, stats, top and health checks, against the guest of threads.

use super::*;
use crate::container::{Cpus, HealthCheck, Update};
use crate::monitor::wire::Seen;

fn one(run: &Run, ask: Ask) -> Tell {
    let mut client = run.connect();
    client.ask(&ask);
    client.next().expect("an answer")
}

fn why(tell: Tell) -> String {
    match tell {
        Tell::Failed(failure) => failure.text,
        other => panic!("{other:?}"),
    }
}

/// Waits until the record has a line that fits, and gives all.
fn recorded(run: &Run, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let until = Instant::now() + super::super::testing::LIMIT;
    loop {
        let lines = run.record.lock().unwrap().clone();
        if lines.iter().any(|line| fits(line)) {
            return lines;
        }
        assert!(Instant::now() < until, "not in {lines:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_paused_container_refuses_what_would_hang_and_goes_on_as_it_was() {
    let mut run = run(&["wait"], How::default());
    run.started();
    assert!(why(one(&run, Ask::Unpause)).contains("not paused"));
    assert_eq!(one(&run, Ask::Pause), Tell::Done);
    assert!(why(one(&run, Ask::Pause)).contains("paused already"));
    let exec = ExecRequest { argv: vec!["echo".into()], ..ExecRequest::default() };
    for ask in [Ask::Exec(Box::new(exec)), Ask::Stats, Ask::Top, Ask::Update(Box::default())] {
        assert!(why(one(&run, ask.clone())).contains("is paused"), "{ask:?}");
    }
    assert_eq!(one(&run, Ask::Unpause), Tell::Done);
    assert_eq!(one(&run, Ask::Kill(2)), Tell::Done);
    let guest = run.guest.clone();
    let (.., last, _, record) = run.end();
    assert_eq!(last, exited(130));
    assert_eq!(record[..3], ["started", "paused", "unpaused"]);
    assert_eq!(guest.log()[1..4], ["pause", "resume", "signal 1 2"]);
}

#[test]
fn a_new_policy_holds_from_the_next_end_of_the_program() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let policy = |run: &Run, restart| {
        one(run, Ask::Update(Box::new(Update { restart: Some(restart), ..Update::default() })))
    };
    assert_eq!(policy(&run, Restart::Always), Tell::Done);
    assert_eq!(one(&run, Ask::Kill(2)), Tell::Done);
    recorded(&run, |line| line == "resting 130");
    // It counts also between two starts.
    assert_eq!(policy(&run, Restart::No), Tell::Done);
    let until = Instant::now() + super::super::testing::LIMIT;
    while run.record.lock().unwrap().iter().filter(|line| *line == "started").count() < 2 {
        assert!(Instant::now() < until, "{:?}", run.record.lock().unwrap());
        std::thread::yield_now();
    }
    assert_eq!(one(&run, Ask::Kill(2)), Tell::Done);
    run.session.join().unwrap();
    let record = run.record.lock().unwrap().clone();
    let ends: Vec<&String> = record.iter().filter(|line| line.contains("130")).collect();
    assert_eq!(ends, ["resting 130", "ended 130 oom=false"]);
}

#[test]
fn a_signal_to_a_paused_container_lets_it_go_on() {
    for ask in [Ask::Kill(15), Ask::Stop(Some(20))] {
        let mut run = run(&["wait"], How::default());
        run.started();
        assert_eq!(one(&run, Ask::Pause), Tell::Done);
        let mut client = run.connect();
        client.ask(&ask);
        let guest = run.guest.clone();
        let (.., last, _, record) = run.end();
        assert_eq!(last, exited(143));
        assert_eq!(record, ["started", "paused", "unpaused", "ended 143 oom=false"]);
        assert!(guest.log().iter().any(|line| line == "resume"), "{:?}", guest.log());
    }
}

#[test]
fn limits_are_changed_in_the_guest_first_and_then_in_the_record() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let update = |update: Update| one(&run, Ask::Update(Box::new(update)));
    assert_eq!(update(Update { memory: Some(64 << 20), ..Update::default() }), Tell::Done);
    let text = why(update(Update { memory: Some(1 << 30), ..Update::default() }));
    assert!(text.contains("do not fit"), "{text}");
    let text = why(update(Update { cpus: Some(Cpus { nano: 3_000_000_000 }), ..Update::default() }));
    assert!(text.contains("2 CPUs"), "{text}");
    let text = why(update(Update { pids: Some(13), ..Update::default() }));
    assert!(text.contains("unlucky: Invalid argument"), "{text}");
    run.client.ask(&Ask::Signal(9));
    let guest = run.guest.clone();
    let record = run.end().4;
    assert_eq!(record[..2], ["started", "updated Some(67108864)"]);
    assert!(guest.log().contains(&"update Some(67108864) None".to_owned()));
}

#[test]
fn what_the_guest_tells_of_itself_reaches_the_client_as_often_as_it_asks() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let mut client = run.connect();
    for (ask, text) in [(Ask::Stats, "Usage"), (Ask::Top, "Processes"), (Ask::Stats, "Usage")] {
        client.ask(&ask);
        assert_eq!(client.next(), Some(Tell::Seen(Seen { cut: true, text: text.into() })));
    }
    run.client.ask(&Ask::Signal(9));
    run.end();
}

fn check(words: &[&str], timeout_ms: u64) -> Option<HealthCheck> {
    Some(HealthCheck {
        argv: words.iter().map(|word| (*word).into()).collect(),
        shell: false,
        interval: 1_000_000,
        timeout: timeout_ms * 1_000_000,
        retries: 2,
        start_period: 0,
        start_interval: 1_000_000,
    })
}

#[test]
fn checks_run_one_after_another_and_say_how_the_container_is() {
    let mut healthy = run(&["wait"], How { health: check(&["both"], 20_000), ..How::default() });
    healthy.started();
    let record = recorded(&healthy, |line| line == "healthy 0 outerr" || line == "healthy 0 errout");
    let first = record.iter().find(|line| line.starts_with("healthy")).unwrap();
    assert!(record.contains(&"starting".to_owned()) && first.starts_with("healthy changed 0 "), "{record:?}");
    healthy.client.ask(&Ask::Signal(9));
    let (out, err, last, ..) = healthy.end();
    assert_eq!((out.as_str(), err.as_str(), last), ("", "", exited(137)), "its output is nobody's");

    let mut failing = run(&["wait"], How { health: check(&["exit", "3"], 20_000), ..How::default() });
    failing.started();
    let record = recorded(&failing, |line| line.starts_with("unhealthy"));
    let checks: Vec<_> = record.iter().filter(|line| *line != "started").take(3).collect();
    assert_eq!(checks, ["starting", "starting 3 ", "unhealthy changed 3 "]);
    failing.client.ask(&Ask::Signal(9));
    failing.end();
}

#[test]
fn a_check_that_takes_too_long_is_killed_and_one_that_is_missing_is_told() {
    let mut slow = run(&["wait"], How { health: check(&["wait"], 1), ..How::default() });
    slow.started();
    recorded(&slow, |line| line.starts_with("unhealthy changed -1 Health check exceeded timeout (1ms)"));
    slow.client.ask(&Ask::Signal(9));
    slow.end();
    let mut missing = run(&["wait"], How { health: check(&["nope"], 20_000), ..How::default() });
    missing.started();
    recorded(&missing, |line| line.starts_with("unhealthy changed -1 ") && line.contains("nope"));
    missing.client.ask(&Ask::Signal(9));
    missing.end();
}
