//! Commands that come, give input, read or do not, and go, against the guest of threads.

use super::*;
use crate::monitor::wire;

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
        while sent < total && sent - taken + piece.len() <= wire::INPUT_WINDOW {
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
    later.ask(&Ask::Hello(Hello { version: wire::VERSION }));
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
