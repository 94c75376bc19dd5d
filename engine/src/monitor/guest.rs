//! The session's side of the guest's wire (`servin_init::proto`).

use std::os::unix::net::UnixStream;
use std::time::Instant;

use servin_init::proto::{
    CONTROL_PORT, Channel, Frame, Frames, GuestMessage, HostMessage, Prepare, STREAM_PORT, Stage,
    StreamMessage, VERSION,
};

use super::link::{Arrived, Link};
use super::machine::Machine;
use super::program::{Outcome, Program, Stream};
use super::record::Record;
use super::session::{MAIN, Phase, QUIET, Session};
use super::wire::{self, Exit, Failure, Output, Tell};

/// A message of the control connection, or why there is none.
enum Control {
    Message(GuestMessage),
    Nothing,
    Broken(String),
}

impl<M: Machine, R: Record> Session<M, R> {
    /// The guest opened a connection.
    pub(super) fn on_connection(&mut self, port: u32, stream: UnixStream) {
        let Ok(link) = Link::new(stream) else { return };
        match port {
            CONTROL_PORT if self.control.is_none() => {
                self.control = Some((link, Frames::new(Channel::GuestControl)));
            }
            STREAM_PORT if self.unnamed.len() < 64 => {
                self.unnamed.push((link, Frames::new(Channel::GuestStream)));
            }
            // Dropped: the guest sees a reset.
            other => log::warn!("the guest connected to port {other}, where nobody is"),
        }
    }

    pub(super) fn on_control(&mut self) {
        let Some((link, frames)) = &mut self.control else { return };
        link.flush();
        let end = fill(link, frames);
        loop {
            let next = match &mut self.control {
                Some((_, frames)) => next_control(frames),
                None => return,
            };
            match next {
                Control::Message(message) => self.on_guest_message(message),
                Control::Nothing => break,
                Control::Broken(why) => {
                    return self.fail(125, format!("the guest broke the protocol: {why}"), None);
                }
            }
        }
        if end && self.control.is_some() {
            self.control = None;
            if self.start_over("its agent closed its connection") {
                return;
            }
            // With the machine's own end the reason follows; the loop waits for it.
            if self.phase < Phase::Closing {
                log::info!("the guest closed its control connection");
                self.end_at.get_or_insert(Instant::now() + super::session::KILL);
            }
        }
    }

    fn on_guest_message(&mut self, message: GuestMessage) {
        match message {
            GuestMessage::Hello(hello) if hello.version != VERSION => {
                let text = format!(
                    "the guest's initramfs speaks protocol {}, this servin speaks {VERSION}",
                    hello.version
                );
                self.fail(125, text, Some("build both from one tree: make guest"));
            }
            GuestMessage::Hello(hello) => {
                // A clone's agent has noticed that it is one. Nothing of a container runs in one that has not.
                if self.machine.is_warm() && hello.generation == 0 {
                    if !self.start_over("its agent did not notice") {
                        self.fail(125, "the clone of a template said hello as if it had booted".into(), None);
                    }
                    return;
                }
                if self.start.restored && hello.generation == 0 {
                    self.fail(
                        125,
                        "the restored machine's agent said hello as if it had booted".into(),
                        None,
                    );
                    return;
                }
                self.machine.said_hello(&hello, Instant::now());
                if self.phase == Phase::Booting && self.start.restored {
                    self.take_up();
                } else if self.phase == Phase::Booting && self.machine.wants_template() {
                    self.phase = Phase::Settling;
                    // Without a root there is nothing that could be made ready.
                    if self.machine.root().is_none() {
                        let prepare = self.prepare();
                        self.tell_guest(&HostMessage::Prepare(prepare));
                    }
                    self.tell_guest(&HostMessage::Sync { token: 0 });
                } else if self.phase == Phase::Booting && self.start.template_only {
                    self.leave_template(match self.machine.is_warm() {
                        true => Ok(()),
                        false => Err("one with directories of the host, with --debug, or on a network that is not its own boots at every start".into()),
                    });
                } else if self.phase == Phase::Booting {
                    self.configure();
                }
            }
            GuestMessage::Synced { .. } if self.phase == Phase::Settling => {
                let saved = self.machine.save_template();
                if self.start.template_only {
                    self.leave_template(saved);
                } else {
                    if let Err(why) = saved {
                        log::warn!("cannot make a template: {why}");
                    }
                    self.configure();
                }
            }
            GuestMessage::Ready => self.on_ready(),
            GuestMessage::Synced { .. } => {}
            GuestMessage::Started { id, .. } => {
                let Some(program) = self.programs.get_mut(&id) else { return };
                program.started = true;
                match id {
                    MAIN => self.main_runs(),
                    _ => self.on_started(id),
                }
            }
            GuestMessage::ExecFailed { id, stage, errno, message } => {
                let Some(program) = self.programs.get_mut(&id) else { return };
                program.stream = None;
                program.outcome = Some(Outcome::Failed(failure(stage, errno, &message)));
            }
            GuestMessage::Exited { id, status, oom } => {
                let Some(program) = self.programs.get_mut(&id) else { return };
                let exit = Exit { code: status.code(), oom };
                program.outcome.get_or_insert(Outcome::Exited(exit));
            }
            GuestMessage::Updated { errno, message } => self.on_updated(errno, &message),
            GuestMessage::Frozen { errno, message } => self.on_frozen(errno, &message),
            GuestMessage::Networked { errno, message } => self.on_networked(errno, &message),
            GuestMessage::Observed { token, cut, text } => self.on_observed(token, cut, text),
            GuestMessage::Error { errno, message } => {
                self.fail(125, format!("the guest cannot go on: {}", reason(&message, errno)), None);
            }
        }
    }

    /// The main program runs.
    pub(super) fn main_runs(&mut self) {
        if self.phase == Phase::Preparing {
            self.phase = Phase::Running;
            let now = Instant::now();
            self.rest.since = Some(now);
            self.quiet_at = Some(now + QUIET);
            self.record.started();
            self.begin_checks();
        }
        self.on_started(MAIN);
        self.next_change();
    }

    /// What a template is to have in it: nothing that is this container's own, but the name of the program that others are
    /// likely to run, too.
    fn prepare(&self) -> Prepare {
        let (main, configure) = (&self.start.main, &self.start.configure);
        let path = main.env.iter().rev().find_map(|variable| variable.strip_prefix(b"PATH="));
        let longest = |text: &[u8]| if text.len() <= 4096 { text.to_vec() } else { Vec::new() };
        Prepare {
            program: longest(main.argv.first().map_or(&[], Vec::as_slice)),
            path: longest(path.unwrap_or_default()),
            hosts: configure.hosts.is_some(),
            resolv_conf: configure.resolv_conf.is_some(),
        }
    }

    /// Ends a machine that was only for its template.
    fn leave_template(&mut self, saved: Result<(), String>) {
        match saved {
            Ok(()) => self.close(Outcome::Exited(Exit { code: 0, oom: false })),
            Err(why) => self.fail(125, format!("this machine cannot be a template: {why}"), None),
        }
    }

    /// Makes the container and starts its program. The agent does the first, with the clock, the host's random bytes and
    /// the names, before it looks at the second.
    fn configure(&mut self) {
        self.phase = Phase::Preparing;
        // It is needed again if a policy starts the program again.
        let mut configure = self.start.configure.clone();
        configure.root = self.machine.root();
        configure.realtime_ns = u64::try_from(crate::store::now_ns()).ok();
        self.tell_guest(&HostMessage::Configure(configure));
        let main = if self.start.files_only {
            HostMessage::Files { id: MAIN }
        } else {
            HostMessage::Exec(self.start.main.clone())
        };
        self.tell_guest(&main);
    }

    /// A connection to the stream port says whose it is.
    pub(super) fn on_unnamed(&mut self, index: usize) {
        let Some((link, frames)) = self.unnamed.get_mut(index) else { return };
        let end = fill(link, frames);
        let hello = match frames.next_frame() {
            Ok(None) if !end => return,
            Ok(Some(frame)) => StreamMessage::decode(frame).ok(),
            _ => None,
        };
        let named = match hello {
            Some(StreamMessage::Hello { id }) => {
                self.programs.get_mut(&id).filter(|p| p.stream.is_none()).map(|p| (id, p))
            }
            _ => None,
        };
        let (link, frames) = match named {
            Some((id, program)) => {
                let (link, frames) = self.unnamed.swap_remove(index);
                program.open(Stream { link, frames });
                return self.drain_stream(id, end);
            }
            None => self.unnamed.swap_remove(index),
        };
        log::warn!("a stream of the guest belongs to no program");
        drop((link, frames));
    }

    /// Takes in what has arrived of every program's output: the machine is off.
    pub(super) fn drain_streams(&mut self) {
        for id in self.programs.keys().copied().collect::<Vec<_>>() {
            while let Some(stream) = self.programs.get_mut(&id).and_then(|program| program.stream.as_mut()) {
                match stream.link.read(stream.frames.space()) {
                    Arrived::Bytes(count) => stream.frames.advance(count),
                    Arrived::Nothing => break,
                    Arrived::End => {
                        self.drain_stream(id, true);
                        break;
                    }
                }
                self.drain_stream(id, false);
            }
        }
    }

    pub(super) fn on_stream(&mut self, id: u32) {
        let Some(stream) = self.programs.get_mut(&id).and_then(|program| program.stream.as_mut()) else {
            return;
        };
        stream.link.flush();
        let end = fill(&mut stream.link, &mut stream.frames);
        self.drain_stream(id, end);
    }

    /// Passes on what has arrived of a program's output.
    fn drain_stream(&mut self, id: u32, end: bool) {
        let now = Instant::now();
        let (mut ended, mut broken, mut first) = (Vec::new(), false, false);
        let mut checks = self.checks.as_mut().filter(|checks| checks.program() == Some(id));
        if let Some(stream) = self.programs.get_mut(&id).and_then(|program| program.stream.as_mut()) {
            loop {
                let message = match stream.frames.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => StreamMessage::decode(frame),
                    Err(error) => Err(error),
                };
                match message {
                    Ok(StreamMessage::Stdout(data)) => {
                        first = true;
                        if let Some(checks) = &mut checks {
                            checks.hear(data);
                        }
                        deliver(&mut self.clients, &mut self.log, id, Output::Stdout, data);
                    }
                    Ok(StreamMessage::Stderr(data)) => {
                        first = true;
                        if let Some(checks) = &mut checks {
                            checks.hear(data);
                        }
                        deliver(&mut self.clients, &mut self.log, id, Output::Stderr, data);
                    }
                    Ok(StreamMessage::StdoutEof) => ended.push(Output::Stdout),
                    Ok(StreamMessage::StderrEof) => ended.push(Output::Stderr),
                    _ => {
                        broken = true;
                        break;
                    }
                }
            }
        }
        if first && id == MAIN && self.clocks.first_byte.is_none() {
            self.clocks.first_byte = Some(self.microseconds(now));
            self.machine.learn();
        }
        if broken {
            return self.fail(125, "the guest broke the protocol of a stream".into(), None);
        }
        if let Some(program) = self.programs.get_mut(&id) {
            ended.into_iter().for_each(|output| program.end_output(output));
            if end {
                program.end_stream();
            }
        }
        self.return_credit(id);
    }

    /// Tells the client that gives a program's input how much of it has left.
    pub(super) fn return_credit(&mut self, id: u32) {
        let taken = self.programs.get_mut(&id).map_or(0, Program::take_input_credit);
        if taken > 0 {
            for client in
                self.clients.values_mut().filter(|client| client.watching == Some(id) && client.gives_input)
            {
                client.tell(&Tell::InputTaken(taken));
            }
        }
    }
}

/// Hands output to the log and to those who watch.
fn deliver(
    clients: &mut std::collections::BTreeMap<u64, super::client::Client>,
    log: &mut Option<super::log::Log>,
    id: u32,
    output: Output,
    data: &[u8],
) {
    let kind = match output {
        Output::Stdout => wire::STDOUT,
        Output::Stderr => wire::STDERR,
    };
    for client in clients.values_mut().filter(|client| client.watching == Some(id) && !client.leaving) {
        wire::frame(client.link.out(), kind, data);
        client.link.flush();
    }
    if id == MAIN
        && let Some(file) = log
        && let Err(error) = file.add(output, data)
    {
        log::error!("cannot write the container's log, and write no more of it: {error}");
        *log = None;
    }
}

/// Reads once; says whether the connection has ended.
fn fill(link: &mut Link, frames: &mut Frames) -> bool {
    match link.read(frames.space()) {
        Arrived::Bytes(count) => {
            frames.advance(count);
            false
        }
        Arrived::Nothing => false,
        Arrived::End => true,
    }
}

fn next_control(frames: &mut Frames) -> Control {
    let decode = |frame: Frame<'_>| GuestMessage::decode(frame);
    match frames.next_frame() {
        Ok(None) => Control::Nothing,
        Ok(Some(frame)) => match decode(frame) {
            Ok(message) => Control::Message(message),
            Err(error) => Control::Broken(error.to_string()),
        },
        Err(error) => Control::Broken(error.to_string()),
    }
}

/// What a program that could not be started means for the command.
fn failure(stage: Stage, errno: i32, message: &str) -> Failure {
    const ENOENT: i32 = 2;
    let message = if message.is_empty() { "run the program" } else { message };
    let why = reason(message, errno);
    match (stage, errno) {
        // What the guest says is what it tried: "execute nosuch".
        (Stage::Program, ENOENT) => Failure {
            code: 127,
            text: format!("cannot {why}"),
            hint: Some("it, or the interpreter it names, is not in the container's file system".into()),
        },
        (Stage::Program | Stage::WorkingDirectory, _) => {
            Failure { code: 126, text: format!("cannot {why}"), hint: None }
        }
        _ => Failure { code: 125, text: format!("cannot start the program: {why}"), hint: None },
    }
}

pub(super) fn reason(message: &str, errno: i32) -> String {
    if errno == 0 {
        return message.to_owned();
    }
    let text = crate::os::guest_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    if message.is_empty() { text.to_owned() } else { format!("{message}: {text}") }
}
