//! The fake guest's programs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::Duration;

use servin_init::proto::{
    Channel, Encode as _, Exec, ExitStatus, Frames, GuestMessage, STREAM_PORT, Stage, StreamMessage,
};

use super::{LIMIT, Shared};

/// What reaches a program.
pub(super) enum Input {
    Data(Vec<u8>),
    Eof,
    CloseStdout,
    Signal(u8),
}

pub(super) fn program(shared: &Arc<Shared>, exec: &Exec, sender: &Sender<Input>, inputs: &Receiver<Input>) {
    let id = exec.id;
    let words: Vec<String> =
        exec.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let name = words[0].as_str();
    let refuse = |errno| {
        shared.say(&GuestMessage::ExecFailed {
            id,
            stage: Stage::Program,
            errno,
            message: format!("exec {name}"),
        });
    };
    match name {
        "nope" => return refuse(2),
        "denied" => return refuse(13),
        _ => {}
    }
    let mut stream = shared.connect(STREAM_PORT);
    let mut send = |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
    send(StreamMessage::Hello { id });
    shared.say(&GuestMessage::Started { id, pid: 1 });
    let exit = |status, oom| shared.say(&GuestMessage::Exited { id, status, oom });
    let next = || inputs.recv_timeout(LIMIT).ok();
    let mut status = ExitStatus::Code(0);
    match name {
        "echo" => {
            send(StreamMessage::Stdout(format!("{}\n", words[1..].join(" ")).as_bytes()));
        }
        "both" => {
            send(StreamMessage::Stdout(b"out"));
            send(StreamMessage::Stderr(b"err"));
        }
        "exit" => status = ExitStatus::Code(words[1].parse().unwrap()),
        "late" => {
            // The exit overtakes the output.
            exit(ExitStatus::Code(4), false);
            thread::sleep(Duration::from_millis(100));
            send(StreamMessage::Stdout(b"last words"));
        }
        "wait" => loop {
            match next() {
                Some(Input::Signal(signal)) => break status = ExitStatus::Signal(signal),
                Some(_) => {}
                None => return,
            }
        },
        "stubborn" => while next().is_some() {},
        "oom" => {
            return (
                send(StreamMessage::StdoutEof),
                send(StreamMessage::StderrEof),
                exit(ExitStatus::Signal(9), true),
            )
                .2;
        }
        "cat" | "yes" => {
            let mut input = stream.try_clone().unwrap();
            let sender = sender.clone();
            thread::spawn(move || read_input(&mut input, &sender));
            let mut send =
                |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
            if name == "cat" {
                loop {
                    match next() {
                        Some(Input::Data(data)) => send(StreamMessage::Stdout(&data)),
                        Some(Input::Eof) => break,
                        Some(_) => true,
                        None => return,
                    };
                }
            } else {
                while !matches!(inputs.try_recv(), Ok(Input::CloseStdout)) {
                    if !send(StreamMessage::Stdout(&b"y\n".repeat(8192))) {
                        return;
                    }
                }
                status = ExitStatus::Signal(13);
            }
        }
        other => panic!("no program {other}"),
    }
    let mut send = |message: StreamMessage<'_>| stream.write_all(&message.to_frame().unwrap()).is_ok();
    send(StreamMessage::StdoutEof);
    send(StreamMessage::StderrEof);
    if name != "late" {
        exit(status, false);
    }
}

fn read_input(stream: &mut UnixStream, sender: &Sender<Input>) {
    let mut frames = Frames::new(Channel::HostStream);
    loop {
        while let Some(frame) = frames.next_frame().unwrap() {
            let input = match StreamMessage::decode(frame).unwrap() {
                StreamMessage::Stdin(data) => Input::Data(data.to_vec()),
                StreamMessage::StdinEof => Input::Eof,
                StreamMessage::CloseStdout => Input::CloseStdout,
                _ => continue,
            };
            let _ = sender.send(input);
        }
        match stream.read(frames.space()) {
            Ok(count) if count > 0 => frames.advance(count),
            _ => return,
        }
    }
}
