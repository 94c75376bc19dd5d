//! The session's side of commands that watch or control the container.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use servin_init::proto::{Exec, HostMessage, Subject, WindowSize};

use super::link::{Arrived, Link};
use super::machine::Machine;
use super::program::Program;
use super::record::Record;
use super::session::{MAIN, Phase, Session};
use super::wire::{Ask, Decoder, ExecRequest, Failure, Message, Size, Tell, VERSION};
use crate::container::{Text, capability};

/// Connected commands at most.
const MOST_CLIENTS: usize = 256;

/// One connected command.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) link: Link,
    decoder: Decoder,
    greeted: bool,
    /// The program whose output it sees.
    pub(super) watching: Option<u32>,
    /// It gives that program's input.
    pub(super) gives_input: bool,
    /// It asked for the container: without it the program has no more input.
    launched: bool,
    /// It is told of the start and then leaves.
    until_started: bool,
    /// Nothing more is read from it; it is dropped when everything was sent.
    pub(super) leaving: bool,
}

impl Client {
    fn new(link: Link) -> Self {
        Client {
            link,
            decoder: Decoder::default(),
            greeted: false,
            watching: None,
            gives_input: false,
            launched: false,
            until_started: false,
            leaving: false,
        }
    }

    /// The command that asked for the container.
    pub(super) fn launcher(link: Link, watching: bool, gives_input: bool) -> Self {
        Client {
            greeted: true,
            watching: Some(MAIN),
            gives_input: watching && gives_input,
            launched: true,
            until_started: !watching,
            ..Client::new(link)
        }
    }

    /// Sends it something.
    pub(super) fn tell(&mut self, tell: &Tell) {
        tell.encode(self.link.out());
        self.link.flush();
    }

    pub(super) fn leave_with(&mut self, tell: &Tell) {
        self.tell(tell);
        self.leaving = true;
    }
}

impl<M: Machine, R: Record> Session<M, R> {
    pub(super) fn on_listener(&mut self) {
        let Some(stream) = self.listener.as_ref().and_then(accept_own) else { return };
        // Who comes later must find the truth in the record.
        self.record.settle();
        if self.clients.len() >= MOST_CLIENTS {
            return;
        }
        if let Ok(link) = Link::new(stream) {
            self.clients.insert(self.next_client, Client::new(link));
            self.next_client += 1;
        }
    }

    pub(super) fn on_client(&mut self, id: u64) {
        let is_saving = self.saving.is_some();
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.link.flush();
        if client.leaving || is_saving {
            return;
        }
        // On the heap: the stack's pages would be touched whenever the monitor has anything to do.
        let mut buf = vec![0; 32 * 1024];
        match client.link.read(&mut buf) {
            Arrived::Bytes(count) => client.decoder.push(buf.get(..count).unwrap_or_default()),
            Arrived::Nothing => return,
            Arrived::End => return self.drop_client(id),
        }
        loop {
            let Some(client) = self.clients.get_mut(&id).filter(|client| !client.leaving) else { return };
            match client.decoder.next_message::<Ask>() {
                Ok(Some(ask)) => self.on_ask(id, ask),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("a client sent a {error}");
                    return self.drop_client(id);
                }
            }
        }
    }

    /// A command is gone.
    pub(super) fn drop_client(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        if let Some(program) = client.watching.and_then(|program| self.programs.get_mut(&program))
            && client.gives_input
            && !program.on_terminal()
            && (client.launched || client.watching != Some(MAIN))
        {
            program.end_input();
        }
    }

    fn on_ask(&mut self, id: u64, ask: Ask) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let running = self.phase == Phase::Running;
        if !client.greeted {
            match ask {
                Ask::Hello(hello) if hello.version == VERSION => client.greeted = true,
                Ask::Hello(hello) => {
                    let text = format!(
                        "this container was started by another version of servin (its protocol is {VERSION}, not {})",
                        hello.version
                    );
                    client.leave_with(&failed(text));
                }
                _ => client.leaving = true,
            }
            return;
        }
        let watching = client.watching;
        match ask {
            Ask::Hello(_) => {}
            Ask::Attach { stdin } if client.watching.is_none() => {
                client.watching = Some(MAIN);
                client.gives_input = stdin && self.start.main.stdin;
                if running {
                    client.tell(&Tell::Started);
                }
            }
            Ask::Exec(_) | Ask::Files if self.paused => {
                client.leave_with(&failed("the container is paused: unpause it first".into()));
            }
            Ask::Exec(_) | Ask::Files if !running => {
                client.leave_with(&failed("the container is not running".into()))
            }
            Ask::Exec(request) if client.watching.is_none() => self.exec(id, *request),
            Ask::Files if client.watching.is_none() => self.files(id),
            Ask::Attach { .. } | Ask::Exec(_) | Ask::Files => client.leaving = true,
            Ask::Wait => {}
            Ask::Kill(signal) => {
                client.leave_with(&Tell::Done);
                self.record.event("kill", &[("signal", &signal.to_string())]);
                self.kill_main(signal);
            }
            Ask::Stop(seconds) => self.stop(seconds),
            Ask::StopWith(seconds, signal) => {
                self.start.stop_signal = signal;
                self.stop(seconds);
            }
            Ask::Stdin(data) if client.gives_input => {
                if let Some(program) = watching.and_then(|program| self.programs.get_mut(&program)) {
                    program.give_input(&data);
                }
                watching.into_iter().for_each(|program| self.return_credit(program));
            }
            Ask::StdinEof if client.gives_input => {
                if let Some(program) = watching.and_then(|program| self.programs.get_mut(&program)) {
                    program.end_input();
                }
            }
            Ask::Stdin(_) | Ask::StdinEof => {}
            Ask::CloseOutput(output) => {
                // Others may still read what this one does not.
                let alone = self.clients.values().filter(|client| client.watching == watching).count() == 1;
                if let Some(program) =
                    watching.and_then(|program| self.programs.get_mut(&program)).filter(|_| alone)
                {
                    program.close_output(output);
                }
            }
            Ask::Signal(signal) => match watching {
                Some(MAIN) => self.kill_main(signal),
                Some(program) => {
                    self.tell_guest(&HostMessage::Signal { id: program, signal });
                    self.wake();
                }
                None => {}
            },
            Ask::Resize(size) => {
                if watching == Some(MAIN) && self.phase < Phase::Preparing {
                    if let Some(terminal) = &mut self.start.main.terminal {
                        *terminal = window(size);
                    }
                } else if let Some(program) = watching {
                    self.tell_guest(&HostMessage::Resize { id: program, size: window(size) });
                }
            }
            Ask::Detach => {
                client.gives_input = false;
                client.watching = None;
                client.leave_with(&Tell::Done);
            }
            Ask::Pause => self.pause(id, true),
            Ask::Unpause => self.pause(id, false),
            Ask::Stats => self.observe(id, Subject::Usage),
            Ask::Top => self.observe(id, Subject::Processes),
            Ask::Update(update) => self.update(id, *update),
            Ask::Networks(change) => self.change_networks(id, *change),
            Ask::Snapshot(request) => self.snapshot(id, &request),
        }
    }

    /// Tells those who wait for a program that it runs.
    pub(super) fn on_started(&mut self, program: u32) {
        if self.clients.values().any(|client| client.until_started && client.watching == Some(program)) {
            // The command ends with this, and the next one must see it.
            self.record.settle();
        }
        for client in self.clients.values_mut().filter(|client| client.watching == Some(program)) {
            client.tell(&Tell::Started);
            client.leaving |= client.until_started;
        }
    }

    /// Sends the stop signal, and kills when the seconds are over.
    pub(super) fn stop(&mut self, seconds: Option<u32>) {
        self.rest.never = true;
        if self.phase < Phase::Running {
            return self.kill_main(self.start.stop_signal);
        }
        self.stopped = true;
        self.record.event("kill", &[("signal", &self.start.stop_signal.to_string())]);
        let wait = seconds.map_or(self.start.stop_timeout, |seconds| Duration::from_secs(seconds.into()));
        let until = Instant::now() + wait;
        self.stop_at = Some(self.stop_at.map_or(until, |at| at.min(until)));
        self.kill_main(self.start.stop_signal);
    }

    fn new_program(&mut self) -> u32 {
        let id = self.next_program;
        self.next_program = self.next_program.wrapping_add(1).max(MAIN + 1);
        id
    }

    fn files(&mut self, client_id: u64) {
        let id = self.new_program();
        self.programs.insert(id, Program::new(false, true).untold());
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.watching = Some(id);
            client.gives_input = true;
        }
        self.tell_guest(&HostMessage::Files { id });
    }

    fn exec(&mut self, client_id: u64, request: ExecRequest) {
        let stdin = request.stdin;
        let words: Vec<String> = request.argv.iter().map(ToString::to_string).collect();
        let id = self.start_program(request);
        for action in ["exec_create", "exec_start"] {
            self.record.event(&format!("{action}: {}", words.join(" ")), &[("execID", &id.to_string())]);
        }
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.watching = Some(id);
            client.gives_input = stdin;
        }
    }

    /// Starts one more program as the container's main program was, and gives its number.
    pub(super) fn start_program(&mut self, request: ExecRequest) -> u32 {
        let id = self.new_program();
        let main = &self.start.main;
        let exec = Exec {
            id,
            argv: request.argv.into_iter().map(|word| word.0).collect(),
            env: merge_env(&main.env, &request.env),
            cwd: request.cwd.map_or_else(|| main.cwd.clone(), |cwd| cwd.0),
            create_cwd: false,
            user: request.user.unwrap_or_else(|| main.user.clone()),
            terminal: request.terminal.map(window),
            stdin: request.stdin,
            groups: main.groups.clone(),
            capabilities: if request.privileged { capability::EVERY } else { main.capabilities },
            rlimits: main.rlimits.clone(),
            no_new_privileges: main.no_new_privileges,
            oom_score_adj: main.oom_score_adj,
            init: false,
            main: false,
        };
        self.programs.insert(id, Program::new(exec.terminal.is_some(), exec.stdin));
        self.tell_guest(&HostMessage::Exec(exec));
        id
    }
}

fn window(size: Size) -> WindowSize {
    WindowSize { rows: size.rows, cols: size.cols }
}

pub(super) fn failed(text: String) -> Tell {
    Tell::Failed(Failure { code: 125, text, hint: None })
}

/// Adds variables to an environment: `NAME=value` replaces, `NAME` removes.
pub(crate) fn merge_env(base: &[Vec<u8>], changes: &[Text]) -> Vec<Vec<u8>> {
    let name = |variable: &[u8]| variable.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
    let mut merged = base.to_vec();
    for Text(change) in changes {
        let place = merged.iter().position(|variable| name(variable) == name(change));
        match (place, change.contains(&b'=')) {
            (Some(at), true) => {
                if let Some(variable) = merged.get_mut(at) {
                    variable.clone_from(change);
                }
            }
            (None, true) => merged.push(change.clone()),
            (Some(at), false) => {
                merged.remove(at);
            }
            (None, false) => {}
        }
    }
    merged
}

/// A connection of this user or root; others are turned away.
fn accept_own(listener: &UnixListener) -> Option<UnixStream> {
    let (stream, _) = listener.accept().ok()?;
    let peer = crate::os::peer_uid(&stream).ok()?;
    (peer.is_root() || peer == rustix::process::geteuid()).then_some(stream)
}
