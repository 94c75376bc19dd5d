mod clients;
mod control;
mod networks;
mod saving;
mod templates;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use servin_init::proto::{Configure, Exec, Hello as GuestHello, VERSION, WindowSize};

use super::log::LogOptions;
use super::machine::Ended;
use super::session::{Session, Start};
use super::testing::{Client, FakeGuest, FakeRecord, hello};
use super::wire::{Ask, ExecRequest, Exit, Failure, Hello, Output, Size, Tell};
use crate::container::Restart;

/// A running session, seen from the command that asked for it.
struct Run {
    client: Client,
    guest: FakeGuest,
    record: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Vec<String>>>,
    session: JoinHandle<u8>,
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct How {
    stdin: bool,
    terminal: bool,
    detached: bool,
    version: Option<u32>,
    silent: bool,
    deadline: Option<Duration>,
    stop_timeout: Option<Duration>,
    needs_shutdown: bool,
    warm: bool,
    generation: u32,
    template: bool,
    publishes: bool,
    health: Option<crate::container::HealthCheck>,
    restart: Restart,
    files_only: bool,
    template_only: bool,
    restored: bool,
    /// It has a card.
    network: bool,
    /// Networks that it is on beside its own.
    networks: Vec<&'static str>,
}

fn run(words: &[&str], how: How) -> Run {
    let (mut machine, guest) = hello((!how.silent).then(|| GuestHello {
        version: how.version.unwrap_or(VERSION),
        generation: how.generation,
        ..GuestHello::default()
    }));
    (machine.warm, machine.template, machine.publishes) = (how.warm, how.template, how.publishes);
    let record = FakeRecord::default();
    record.connect(&how.networks);
    let start = Start {
        configure: Configure { hostname: "box".into(), ..Configure::default() },
        main: Exec {
            id: 1,
            argv: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
            stdin: how.stdin,
            terminal: how.terminal.then(WindowSize::default),
            ..Exec::default()
        },
        restored: how.restored,
        files_only: how.files_only,
        template_only: how.template_only,
        network: how.network,
        restart: how.restart,
        deadline: how.deadline.unwrap_or(Duration::from_secs(20)),
        stop_signal: 15,
        stop_timeout: how.stop_timeout.unwrap_or(Duration::from_secs(10)),
        needs_shutdown: how.needs_shutdown,
        began: Instant::now(),
        memory: 128 << 20,
        cpus: 2,
        health: how.health,
    };
    let dir = tempfile::tempdir().unwrap();
    let log = super::log::Log::open(dir.path(), &LogOptions::default()).unwrap();
    let mut session = Session::new(machine, record.clone(), start, log);
    let (mine, theirs) = UnixStream::pair().unwrap();
    session.launcher(theirs, !how.detached, true);
    session.listen(UnixListener::bind(dir.path().join("sock")).unwrap());
    let session = std::thread::spawn(move || session.run());
    Run { client: Client::new(mine), guest, record: record.0, events: record.3, session, dir }
}

impl Run {
    fn connect(&self) -> Client {
        let mut client = Client::new(UnixStream::connect(self.dir.path().join("sock")).unwrap());
        client.ask(&Ask::Hello(Hello { version: super::wire::VERSION }));
        client
    }

    fn started(&mut self) {
        self.client.until(|tell| *tell == Tell::Started);
    }

    /// Waits for the end: standard output, standard error, last message, exit code and record.
    fn end(mut self) -> (String, String, Option<Tell>, u8, Vec<String>) {
        let (out, err, last) = self.client.finish();
        let code = self.session.join().unwrap();
        let record = self.record.lock().unwrap().clone();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(err), last, code, record)
    }
}

fn exited(code: u8) -> Option<Tell> {
    Some(Tell::Exited(Exit { code, oom: false }))
}

#[test]
fn output_and_exit_code_arrive_and_the_record_is_written_first() {
    let (out, err, last, code, record) = run(&["echo", "hi", "there"], How::default()).end();
    assert_eq!((out.as_str(), err.as_str()), ("hi there\n", ""));
    assert_eq!((last, code), (exited(0), 0));
    assert_eq!(record, ["started", "ended 0 oom=false"]);
}

#[test]
fn the_end_is_told_before_the_machine_is_taken_apart() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let guest = run.guest.clone();
    let held = guest.hold();
    run.client.ask(&Ask::Signal(2));
    run.client.until(|tell| Some(tell) == exited(130).as_ref());
    assert_eq!(*run.record.lock().unwrap(), ["started", "ended 130 oom=false"]);
    assert_eq!(guest.log(), ["configure box", "signal 1 2"]);
    drop(held);
    assert_eq!(run.session.join().unwrap(), 130);
    assert_eq!(guest.log(), ["configure box", "signal 1 2", "killed"]);
}

#[test]
fn published_ports_are_given_back_before_the_end_is_told() {
    let mut run = run(&["wait"], How { publishes: true, ..How::default() });
    run.started();
    let guest = run.guest.clone();
    run.client.ask(&Ask::Signal(2));
    run.client.until(|tell| Some(tell) == exited(130).as_ref());
    assert_eq!(guest.log().last().map(String::as_str), Some("killed"));
    assert_eq!(run.session.join().unwrap(), 130);
}

#[test]
fn both_outputs_are_kept_apart_and_logged() {
    let run = run(&["both"], How::default());
    let dir = run.dir.path().to_path_buf();
    let mut reader = super::log::Reader::open(&dir).unwrap();
    let (out, err, ..) = run.end();
    assert_eq!((out.as_str(), err.as_str()), ("out", "err"));
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.push((entry.output, entry.data));
    }
    assert_eq!(entries, [(Output::Stdout, b"out".to_vec()), (Output::Stderr, b"err".to_vec())], "{dir:?}");
}

#[test]
fn exit_codes_are_the_programs_own() {
    for code in [0, 1, 125, 126, 127, 255] {
        let (.., last, found, _) = run(&["exit", &code.to_string()], How::default()).end();
        assert_eq!((last, found), (exited(code), code));
    }
}

#[test]
fn an_exit_that_overtakes_its_output_waits_for_it() {
    let (out, _, last, ..) = run(&["late"], How::default()).end();
    assert_eq!((out.as_str(), last), ("last words", exited(4)));
}

#[test]
fn a_program_that_is_missing_is_127_and_one_that_may_not_run_is_126() {
    for (word, code, text) in [("nope", 127, "No such file"), ("denied", 126, "Permission denied")] {
        let (.., last, found, record) = run(&[word], How::default()).end();
        let Some(Tell::Failed(Failure { code: told, text: said, .. })) = last else { panic!("{last:?}") };
        assert_eq!((told, found), (code, code));
        assert!(said.contains(text) && said.contains(word), "{said}");
        assert!(record[0].starts_with(&format!("ended {code} ")), "{record:?}");
    }
}

#[test]
fn stop_sends_its_signal_first() {
    let mut run = run(&["wait"], How { detached: true, ..How::default() });
    run.started();
    let mut stopper = run.connect();
    stopper.ask(&Ask::Stop(None));
    assert_eq!(stopper.finish().2, exited(143));
}

#[test]
fn stop_kills_when_its_time_is_over_and_ends_the_machine_if_that_does_not_help() {
    let how = How { detached: true, stop_timeout: Some(Duration::from_millis(50)), ..How::default() };
    let mut run = run(&["stubborn"], how);
    run.started();
    let mut stopper = run.connect();
    let began = Instant::now();
    stopper.ask(&Ask::Stop(None));
    assert_eq!(stopper.finish().2, exited(137));
    assert!(began.elapsed() < super::session::KILL + Duration::from_secs(5));
    assert_eq!(run.guest.log(), ["configure box", "signal 1 15", "signal 1 9", "killed"]);
}

#[test]
fn an_interrupt_ends_a_start_that_is_under_way() {
    let mut run = run(&["wait"], How { silent: true, ..How::default() });
    run.client.ask(&Ask::Signal(2));
    let (.., last, code, record) = run.end();
    assert_eq!((last, code), (exited(130), 130));
    assert_eq!(record.last().unwrap(), "ended 130 oom=false");
}

#[test]
fn the_guests_memory_limit_is_137_and_said_so() {
    let (.., last, code, record) = run(&["oom"], How::default()).end();
    assert_eq!(last, Some(Tell::Exited(Exit { code: 137, oom: true })));
    assert_eq!((code, record.last().unwrap().as_str()), (137, "ended 137 oom=true"));
}

#[test]
fn a_machine_that_fails_is_our_failure() {
    let mut run = run(&["wait"], How::default());
    run.started();
    run.guest.end(Ended::Failed("it caught fire".into()));
    let (.., last, code, record) = run.end();
    assert!(matches!(&last, Some(Tell::Failed(f)) if f.text.contains("it caught fire")), "{last:?}");
    assert_eq!(code, 125);
    assert_eq!(record[1], "ended 125 oom=false the virtual machine failed: it caught fire");
}

#[test]
fn a_guest_that_speaks_another_protocol_is_refused() {
    let (.., last, code, _) = run(&["echo"], How { version: Some(VERSION + 1), ..How::default() }).end();
    assert!(matches!(&last, Some(Tell::Failed(f)) if f.text.contains("protocol")), "{last:?}");
    assert_eq!(code, 125);
}

#[test]
fn a_guest_with_something_to_write_back_is_shut_down_before_the_end_is_told() {
    let run = run(&["echo", "x"], How { needs_shutdown: true, ..How::default() });
    let guest = run.guest.clone();
    assert_eq!(run.end().2, exited(0));
    assert_eq!(guest.log(), ["configure box", "shutdown", "killed"]);
}

#[test]
fn a_guest_that_never_speaks_is_given_up() {
    let how = How { silent: true, deadline: Some(Duration::from_millis(20)), ..How::default() };
    let (.., last, code, _) = run(&["exit", "0"], how).end();
    assert!(matches!(&last, Some(Tell::Failed(f)) if f.text.contains("did not start")), "{last:?}");
    assert_eq!(code, 125);
}

#[test]
fn a_policy_starts_the_program_again_until_somebody_stops_it() {
    let mut run = run(&["exit", "3"], How { restart: Restart::Always, ..How::default() });
    run.client.until(|tell| Some(tell) == exited(3).as_ref());
    let resting = |run: &Run| run.record.lock().unwrap().iter().filter(|line| *line == "resting 3").count();
    let until = Instant::now() + super::testing::LIMIT;
    while resting(&run) < 2 {
        assert!(Instant::now() < until, "{:?}", run.record.lock().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut client = run.connect();
    client.ask(&Ask::Stop(None));
    client.until(|tell| matches!(tell, Tell::Exited(_)));
    run.session.join().unwrap();
    let record = run.record.lock().unwrap().clone();
    assert_eq!(record[..3], ["started", "resting 3", "started"]);
    assert!(record.last().unwrap().starts_with("ended "), "{record:?}");
    assert!(run.guest.log().contains(&"again".to_owned()), "{:?}", run.guest.log());
}

#[test]
fn a_policy_gives_up_after_its_number_of_times_and_leaves_a_success_alone() {
    let how = |restart| How { restart, ..How::default() };
    let run_out = run(&["exit", "3"], how(Restart::OnFailure(Some(1))));
    let (_, _, last, code, record) = run_out.end();
    assert_eq!((last, code), (exited(3), 3));
    assert_eq!(record, ["started", "resting 3", "started", "ended 3 oom=false"]);
    let (.., record) = run(&["exit", "0"], how(Restart::OnFailure(None))).end();
    assert_eq!(record, ["started", "ended 0 oom=false"]);
    let (.., record) = run(&["nope"], how(Restart::Always)).end();
    assert_eq!(record.len(), 1, "what never ran is not started again: {record:?}");
}
