mod control;
mod networks;
mod saving;

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
fn the_template_is_made_before_anything_of_the_container_is_in_the_machine() {
    let run = run(&["echo", "hi"], How { template: true, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, _, code, _) = run.end();
    assert_eq!((out.as_str(), code), ("hi\n", 0));
    assert_eq!(guest.log()[..3], ["prepare echo", "template", "configure box"]);
}

#[test]
fn of_a_machine_that_is_only_for_a_template_nothing_runs() {
    let run_one = |how: How| {
        let run = run(&["echo", "hi"], How { template_only: true, ..how });
        let guest = run.guest.clone();
        let (out, _, last, code, record) = run.end();
        assert_eq!((out.as_str(), last, code), ("", exited(0), 0));
        assert_eq!(record, ["ended 0 oom=false"]);
        guest.log()
    };
    assert_eq!(run_one(How { template: true, ..How::default() })[..2], ["prepare echo", "template"]);
    // There is one: the clone of it shows that it can be used.
    let log = run_one(How { warm: true, generation: 1, ..How::default() });
    assert!(!log.iter().any(|word| word.starts_with("configure")), "{log:?}");
}

#[test]
fn a_machine_that_can_have_no_template_is_told_so() {
    let run = run(&["echo", "hi"], How { template_only: true, ..How::default() });
    let (_, _, last, code, _) = run.end();
    assert_eq!(code, 125);
    assert!(format!("{last:?}").contains("cannot be a template"), "{last:?}");
}

#[test]
fn a_clone_that_noticed_runs_the_container() {
    let run = run(&["echo", "hi"], How { warm: true, generation: 1, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, _, code, _) = run.end();
    assert_eq!((out.as_str(), code), ("hi\n", 0));
    assert_eq!(guest.log()[0], "configure box");
}

#[test]
fn a_clone_that_did_not_notice_is_replaced_before_anything_runs_in_it() {
    let run = run(&["echo", "hi"], How { warm: true, generation: 0, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, last, code, record) = run.end();
    assert_eq!((out.as_str(), last, code), ("hi\n", exited(0), 0));
    assert_eq!(guest.log()[..2], ["cold", "configure box"]);
    assert_eq!(record, ["started", "ended 0 oom=false"]);
}

#[test]
fn a_clone_that_fails_before_its_hello_is_replaced() {
    let run = run(&["echo", "hi"], How { warm: true, silent: true, ..How::default() });
    run.guest.end(Ended::Failed("its state does not fit".into()));
    let guest = run.guest.clone();
    let (out, _, last, ..) = run.end();
    assert_eq!((out.as_str(), last), ("hi\n", exited(0)));
    assert_eq!(guest.log()[0], "cold");
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
fn input_reaches_the_program_and_its_end_too() {
    let mut run = run(&["cat"], How { stdin: true, ..How::default() });
    run.started();
    run.client.ask(&Ask::Stdin(b"one\n\0\xff".to_vec()));
    run.client.ask(&Ask::Stdin(b"two".to_vec()));
    run.client.ask(&Ask::StdinEof);
    let (out, _, last) = run.client.finish();
    assert_eq!(out, b"one\n\0\xfftwo");
    assert_eq!(last, exited(0));
}

#[test]
fn a_lot_of_input_flows_against_credit() {
    let mut run = run(&["cat"], How { stdin: true, ..How::default() });
    run.started();
    let piece: Vec<u8> = (0..32 * 1024).map(|i| (i % 251) as u8).collect();
    let (mut sent, mut taken, mut echoed) = (0_usize, 0_usize, 0_usize);
    let total = 64 * piece.len();
    while echoed < total {
        while sent < total && sent - taken + piece.len() <= super::wire::INPUT_WINDOW {
            run.client.ask(&Ask::Stdin(piece.clone()));
            sent += piece.len();
        }
        match run.client.next() {
            Some(Tell::InputTaken(count)) => taken += count as usize,
            Some(Tell::Stdout(data)) => echoed += data.len(),
            other => panic!("{other:?}"),
        }
    }
    run.client.ask(&Ask::StdinEof);
    assert_eq!(run.client.finish().2, exited(0));
}

#[test]
fn a_signal_passes_input_that_nobody_reads() {
    let mut run = run(&["wait"], How { stdin: true, ..How::default() });
    run.started();
    for _ in 0..4 {
        run.client.ask(&Ask::Stdin(vec![0; 64 * 1024]));
    }
    run.client.ask(&Ask::Signal(15));
    assert_eq!(run.end().2, exited(143));
}

#[test]
fn a_command_that_is_killed_leaves_the_program_and_the_record_true() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let Run { client, record, session, dir, guest, .. } = run;
    drop(client);
    let mut later = Client::new(UnixStream::connect(dir.path().join("sock")).unwrap());
    later.ask(&Ask::Hello(Hello { version: super::wire::VERSION }));
    later.ask(&Ask::Attach { stdin: false });
    later.until(|tell| *tell == Tell::Started);
    assert_eq!(*record.lock().unwrap(), ["started"]);
    later.ask(&Ask::Signal(2));
    assert_eq!(later.finish().2, exited(130));
    assert_eq!(session.join().unwrap(), 130);
    assert_eq!(guest.log(), ["configure box", "signal 1 2", "killed"]);
}

#[test]
fn a_command_that_is_killed_ends_the_input_it_gave() {
    let mut run = run(&["cat"], How { stdin: true, ..How::default() });
    run.started();
    let Run { client, session, .. } = run;
    drop(client);
    assert_eq!(session.join().unwrap(), 0);
}

#[test]
fn a_command_that_detaches_leaves_the_input_open() {
    let mut run = run(&["cat"], How { stdin: true, ..How::default() });
    run.started();
    run.client.ask(&Ask::Detach);
    run.client.until(|tell| *tell == Tell::Done);
    assert!(run.client.next().is_none());
    let mut later = run.connect();
    later.ask(&Ask::Attach { stdin: true });
    later.until(|tell| *tell == Tell::Started);
    later.ask(&Ask::Stdin(b"x".to_vec()));
    later.until(|tell| *tell == Tell::Stdout(b"x".to_vec()));
    later.ask(&Ask::StdinEof);
    assert_eq!(later.finish().2, exited(0));
}

#[test]
fn a_reader_that_leaves_is_a_broken_pipe_for_the_program() {
    let mut run = run(&["yes"], How::default());
    run.client.until(|tell| matches!(tell, Tell::Stdout(_)));
    run.client.ask(&Ask::CloseOutput(Output::Stdout));
    assert_eq!(run.client.finish().2, exited(141));
}

#[test]
fn a_client_that_does_not_read_stops_the_program_and_nothing_else() {
    let mut run = run(&["yes"], How::default());
    run.started();
    // Nothing is read here: the program is held back, and a later command is still served.
    let mut later = run.connect();
    later.ask(&Ask::Wait);
    let mut killer = run.connect();
    killer.ask(&Ask::Kill(15));
    killer.until(|tell| *tell == Tell::Done);
    run.client.ask(&Ask::CloseOutput(Output::Stdout));
    assert_eq!(run.client.finish().2, exited(141));
    assert_eq!(later.finish().2, exited(141));
}

#[test]
fn detached_the_command_is_told_of_the_start_alone() {
    let mut run = run(&["wait"], How { detached: true, ..How::default() });
    assert_eq!(run.client.next(), Some(Tell::Started));
    assert_eq!(run.client.next(), None);
    let mut waiter = run.connect();
    waiter.ask(&Ask::Wait);
    let mut killer = run.connect();
    killer.ask(&Ask::Kill(9));
    assert_eq!(waiter.finish().2, exited(137));
}

#[test]
fn detached_a_start_that_fails_is_told() {
    let (.., last, code, _) = run(&["nope"], How { detached: true, ..How::default() }).end();
    assert!(matches!(last, Some(Tell::Failed(Failure { code: 127, .. }))), "{last:?}");
    assert_eq!(code, 127);
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
fn further_programs_run_beside_the_main_one() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let exec = |words: &[&str], stdin| {
        Ask::Exec(Box::new(ExecRequest {
            argv: words.iter().map(|word| (*word).into()).collect(),
            stdin,
            ..ExecRequest::default()
        }))
    };
    let (mut echo, mut cat, mut bad) = (run.connect(), run.connect(), run.connect());
    cat.ask(&exec(&["cat"], true));
    cat.until(|tell| *tell == Tell::Started);
    echo.ask(&exec(&["echo", "beside"], false));
    let (out, _, last) = echo.finish();
    assert_eq!((out.as_slice(), last), (&b"beside\n"[..], exited(0)));
    bad.ask(&exec(&["nope"], false));
    let last = bad.finish().2;
    let Some(Tell::Failed(Failure { code: 127, text, .. })) = last else { panic!("{last:?}") };
    assert_eq!(text, "cannot exec nope: No such file or directory", "once");
    cat.ask(&Ask::Stdin(b"in".to_vec()));
    cat.until(|tell| *tell == Tell::Stdout(b"in".to_vec()));
    run.client.ask(&Ask::Signal(15));
    assert_eq!(run.client.finish().2, exited(143));
    assert_eq!(cat.finish().2, exited(137), "it dies with the container");
    let expected = [
        "exec_create: cat execID=2",
        "exec_start: cat execID=2",
        "exec_create: echo beside execID=3",
        "exec_start: echo beside execID=3",
        "exec_die execID=3 exitCode=0",
        "exec_create: nope execID=4",
        "exec_start: nope execID=4",
        "exec_die execID=4 exitCode=127",
        "exec_die execID=2 exitCode=137",
    ];
    assert_eq!(*run.events.lock().unwrap(), expected);
}

#[test]
fn the_terminals_size_reaches_the_guest() {
    let mut run = run(&["wait"], How { terminal: true, ..How::default() });
    run.started();
    run.client.ask(&Ask::Resize(Size { rows: 50, cols: 132 }));
    run.client.ask(&Ask::Signal(1));
    let guest = run.guest.clone();
    assert_eq!(run.end().2, exited(129));
    assert!(guest.log().contains(&"resize 132x50".to_owned()), "{:?}", guest.log());
}

#[test]
fn a_stranger_to_the_protocol_is_dropped() {
    let mut run = run(&["wait"], How::default());
    run.started();
    let mut stranger = Client::new(UnixStream::connect(run.dir.path().join("sock")).unwrap());
    stranger.ask(&Ask::Kill(9));
    assert_eq!(stranger.next(), None);
    let mut older = Client::new(UnixStream::connect(run.dir.path().join("sock")).unwrap());
    older.ask(&Ask::Hello(Hello { version: 99 }));
    assert!(matches!(older.next(), Some(Tell::Failed(f)) if f.text.contains("another version")));
    run.client.ask(&Ask::Signal(15));
    assert_eq!(run.end().2, exited(143));
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

#[test]
fn a_file_server_is_a_program_beside_others_or_the_only_one() {
    let mut both = run(&["wait"], How::default());
    both.started();
    let mut client = both.connect();
    client.ask(&Ask::Files);
    client.ask(&Ask::Stdin(b"question".to_vec()));
    client.until(|tell| *tell == Tell::Stdout(b"question".to_vec()));
    client.ask(&Ask::StdinEof);
    client.until(|tell| Some(tell) == exited(0).as_ref());
    assert_eq!(*both.events.lock().unwrap(), [""; 0], "nobody asked for a program");
    both.connect().ask(&Ask::Kill(9));
    both.client.until(|tell| Some(tell) == exited(137).as_ref());

    let mut alone = run(&["nope"], How { stdin: true, files_only: true, ..How::default() });
    alone.started();
    alone.client.ask(&Ask::Stdin(b"x".to_vec()));
    alone.client.ask(&Ask::StdinEof);
    let (out, _, last, ..) = alone.end();
    assert_eq!((out.as_str(), last), ("x", exited(0)));
}
