//! What every host's events, timers and pollers do.

use std::time::Duration;

use super::{Event, Poller, Ready, Timer};

#[test]
fn a_rung_event_is_ready_until_taken() {
    let event = Event::new().unwrap();
    let mut poller = Poller::new().unwrap();
    poller.watch(event.source(), 7, Ready::READ).unwrap();
    let mut ready = Vec::new();
    poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
    assert!(ready.is_empty());
    event.clone().signal();
    event.signal();
    for _ in 0..2 {
        poller.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [(7, Ready::READ)]);
    }
    assert!(event.take() && !event.take());
    poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
    assert!(ready.is_empty());
}

#[test]
fn a_timer_rings_once_after_its_delay_and_not_when_unset() {
    let timer = Timer::new().unwrap();
    let mut poller = Poller::new().unwrap();
    poller.watch(timer.source(), 3, Ready::READ).unwrap();
    let mut ready = Vec::new();
    timer.set(Some(Duration::from_secs(3600))).unwrap();
    timer.set(Some(Duration::from_millis(1))).unwrap();
    poller.wait(None, &mut ready).unwrap();
    assert_eq!(ready, [(3, Ready::READ)]);
    assert!(timer.take() && !timer.take());
    timer.set(Some(Duration::ZERO)).unwrap();
    poller.wait(None, &mut ready).unwrap();
    timer.set(None).unwrap();
    assert!(!timer.take(), "unsetting takes the ringing away");
}

#[test]
fn all_that_is_ready_is_found_and_what_is_unwatched_is_not() {
    let events: Vec<_> = (0..20).map(|_| Event::new().unwrap()).collect();
    let mut poller = Poller::new().unwrap();
    for (event, token) in events.iter().zip(0..) {
        poller.watch(event.source(), token, Ready::READ).unwrap();
        assert!(poller.watch(event.source(), 99, Ready::READ).is_err(), "watched already");
    }
    let mut ready = Vec::new();
    for at in [3, 7, 19] {
        events[at].signal();
    }
    poller.wait(None, &mut ready).unwrap();
    ready.sort_by_key(|(token, _)| *token);
    assert_eq!(ready, [3, 7, 19].map(|token| (token, Ready::READ)));
    poller.unwatch(events[7].source()).unwrap();
    assert!(poller.unwatch(events[7].source()).is_err(), "not watched any more");
    poller.rewatch(events[19].source(), 50, Ready::READ).unwrap();
    poller.wait(None, &mut ready).unwrap();
    ready.sort_by_key(|(token, _)| *token);
    assert_eq!(ready, [3, 50].map(|token| (token, Ready::READ)));
}

#[test]
fn a_waiting_poller_is_woken_by_another_thread() {
    let event = Event::new().unwrap();
    let mut poller = Poller::new().unwrap();
    poller.watch(event.source(), 1, Ready::READ).unwrap();
    let ringer = std::thread::spawn({
        let event = event.clone();
        move || event.signal()
    });
    let mut ready = Vec::new();
    poller.wait(Some(Duration::from_secs(20)), &mut ready).unwrap();
    assert_eq!(ready, [(1, Ready::READ)]);
    ringer.join().unwrap();
}
