//! The monitor's loop: one machine, its programs, and the clients that watch them.
//!
//! ```text
//!  booting --Hello--> preparing --Started--> running --main program over--> closing --machine off--> ended
//!     |                   |                     |                              |
//!     '-------------------'---------------------'--- kill, failure ------------'
//! ```
//! With a policy that starts it again the machine goes after `closing` and a new one boots, with a pause between.
//!
//! One thread, one `poll`. Nothing here blocks but the poll: connections keep what could not be written, and a program
//! whose output a client does not read is not read from either.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use servin_init::proto::{Configure, Encode, Exec, Frames, HostMessage};

use super::client::Client;
use super::health::Checks;
use super::link::Link;
use super::log::Log;
use super::machine::{Ended, Machine};
use super::networks::Moving;
use super::program::{Outcome, Program};
use super::record::Record;
use super::rest::Rest;
use super::saving::Saving;
use super::wire::{Clocks, Exit};
use crate::container::{HealthCheck, Restart, Update};
use crate::network::Change;
use crate::process::Signals;

/// The main program's id.
pub(super) const MAIN: u32 = 1;
/// Unsent bytes of a client above which the program it watches is not read.
const MOST_UNSENT: usize = 256 * 1024;
/// How long the guest may take to write back and power off.
pub(super) const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a clone may take to its agent's hello before a machine is booted instead.
const WARM: Duration = Duration::from_secs(20);
/// How long a killed program may take to be gone before the machine is ended.
pub(super) const KILL: Duration = Duration::from_secs(5);
/// A program that has run for so long is not one of those that are over before anybody looks.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// What the session starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// Sent to the guest when it says hello.
    pub(crate) configure: Configure,
    /// The main program.
    pub(crate) main: Exec,
    /// The machine continues a container that was saved: its main program is there.
    pub(crate) restored: bool,
    /// A file server takes the main program's place.
    pub(crate) files_only: bool,
    /// Nothing runs: the machine ends as soon as there is a template like it.
    pub(crate) template_only: bool,
    /// The machine has a network card of ours.
    pub(crate) network: bool,
    /// What happens when the program ends.
    pub(crate) restart: Restart,
    /// How long the guest may take to say hello.
    pub(crate) deadline: Duration,
    /// The signal that `stop` sends.
    pub(crate) stop_signal: u8,
    /// How long `stop` waits.
    pub(crate) stop_timeout: Duration,
    /// The guest has something to write back before it may be ended.
    pub(crate) needs_shutdown: bool,
    /// When the command was executed.
    pub(crate) began: Instant,
    /// Bytes of the machine's memory.
    pub(crate) memory: u64,
    /// The machine's virtual CPUs.
    pub(crate) cpus: u32,
    /// How the container is checked.
    pub(crate) health: Option<HealthCheck>,
}

/// The container's life so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It is over, and is started again when it is time ([`super::rest`]).
    Resting,
    /// Waiting for the guest's hello.
    Booting,
    /// Waiting for the agent to be idle, so that the machine is a template.
    Settling,
    /// Waiting for the main program.
    Preparing,
    /// The main program runs.
    Running,
    /// It is over; the machine ends.
    Closing,
    /// Clients are told the last.
    Ended,
}

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy)]
enum Who {
    Machine,
    Listener,
    /// A signal to this process.
    Signals,
    Control,
    /// A connection that has not said whose stream it is.
    Unnamed(usize),
    Stream(u32),
    Client(u64),
}

/// The state of the loop.
pub(crate) struct Session<M, R> {
    pub(super) machine: M,
    pub(super) record: R,
    pub(super) start: Start,
    pub(super) phase: Phase,
    pub(super) control: Option<(Link, Frames)>,
    pub(super) unnamed: Vec<(Link, Frames)>,
    pub(super) programs: BTreeMap<u32, Program>,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) listener: Option<UnixListener>,
    signals: Option<Signals>,
    pub(super) log: Option<Log>,
    pub(super) paused: bool,
    /// It was told to stop.
    pub(super) stopped: bool,
    pub(super) checks: Option<Checks>,
    /// Changes of limits that the guest has not answered yet, and who asked for them.
    pub(super) updates: VecDeque<(u64, Update)>,
    /// Changes of networks that wait for their turn, and who asked for them.
    pub(super) changes: VecDeque<(u64, Change)>,
    /// The one that waits for the guest.
    pub(super) moving: Option<Moving>,
    /// How many answers about its networks the guest owes.
    pub(super) moves: u32,
    /// A snapshot that waits for the guest to stand still.
    pub(super) saving: Option<Saving>,
    /// How many answers about standing still the guest owes.
    pub(super) freezes: u32,
    /// The main program was saved, and waits to go on.
    pub(super) taking_up: bool,
    pub(super) clocks: Clocks,
    /// The signal that ended the start, or that kills.
    pub(super) killed_by: Option<u8>,
    /// When the main program is killed for not having stopped.
    pub(super) stop_at: Option<Instant>,
    /// When the machine is ended whatever the guest does.
    pub(super) end_at: Option<Instant>,
    /// When what the start took can be given back.
    pub(super) quiet_at: Option<Instant>,
    pub(super) boot_until: Instant,
    /// How often it was started by its policy, and how soon it is the next time.
    pub(super) rest: Rest,
    pub(super) next_program: u32,
    pub(super) next_client: u64,
    pub(super) last: Option<Outcome>,
}

impl<M: Machine, R: Record> Session<M, R> {
    /// A session around a machine that has been started.
    pub(crate) fn new(machine: M, record: R, start: Start, log: Option<Log>) -> Self {
        let boot_until = Instant::now() + if machine.is_warm() { WARM } else { start.deadline };
        let checks = start.health.clone().map(Checks::new);
        let main = Program::new(start.main.terminal.is_some(), start.main.stdin);
        Session {
            machine,
            record,
            start,
            phase: Phase::Booting,
            control: None,
            unnamed: Vec::new(),
            programs: BTreeMap::from([(MAIN, main)]),
            clients: BTreeMap::new(),
            listener: None,
            signals: None,
            log,
            paused: false,
            stopped: false,
            checks,
            updates: VecDeque::new(),
            changes: VecDeque::new(),
            moving: None,
            moves: 0,
            saving: None,
            freezes: 0,
            taking_up: false,
            clocks: Clocks::default(),
            killed_by: None,
            stop_at: None,
            end_at: None,
            quiet_at: None,
            boot_until,
            rest: Rest::default(),
            next_program: MAIN + 1,
            next_client: 1,
            last: None,
        }
    }

    /// Serves later commands on this socket.
    pub(crate) fn listen(&mut self, listener: UnixListener) {
        self.listener = listener.set_nonblocking(true).is_ok().then_some(listener);
    }

    /// Whether the machine has a network card.
    pub(crate) fn has_network(&self) -> bool {
        self.start.network
    }

    /// Takes these signals to this process as the wish to stop the container.
    pub(crate) fn stop_on(&mut self, signals: Option<Signals>) {
        self.signals = signals;
    }

    /// Adds the command that asked for the container. With `watching` it sees the main program and gives its input if
    /// there is to be one; without it is told of the start alone.
    pub(crate) fn launcher(&mut self, stream: UnixStream, watching: bool, gives_input: bool) {
        if let Ok(link) = Link::new(stream) {
            let client = Client::launcher(link, watching, gives_input && self.start.main.stdin);
            self.clients.insert(0, client);
        }
    }

    /// Runs until the container has ended and every client was told, and gives the exit code.
    pub(crate) fn run(mut self) -> u8 {
        loop {
            self.settle();
            if self.phase == Phase::Ended && self.clients.is_empty() {
                return match &self.last {
                    Some(Outcome::Exited(exit)) => exit.code,
                    Some(Outcome::Failed(failure)) => failure.code,
                    None => 125,
                };
            }
            let mut ready = self.poll();
            if ready.is_empty() && self.record.is_unsettled() {
                self.record.settle();
                ready = self.poll();
            }
            for who in ready {
                match who {
                    Who::Machine => self.on_machine(),
                    Who::Listener => self.on_listener(),
                    Who::Signals => self.on_signals(),
                    Who::Control => self.on_control(),
                    Who::Unnamed(index) => self.on_unnamed(index),
                    Who::Stream(id) => self.on_stream(id),
                    Who::Client(id) => self.on_client(id),
                }
            }
            self.on_time(Instant::now());
        }
    }

    fn poll(&mut self) -> Vec<Who> {
        let timeout = if self.record.is_unsettled() {
            Some(Duration::ZERO)
        } else {
            self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()))
        };
        let mut all: Vec<(Who, BorrowedFd<'_>, PollFlags)> = Vec::new();
        let flags = |read: bool, link: &Link| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, link.pending() > 0);
            flags
        };
        if self.phase < Phase::Ended {
            all.extend(self.machine.sources().into_iter().map(|fd| (Who::Machine, fd, PollFlags::IN)));
            if let Some(listener) = &self.listener {
                all.push((Who::Listener, listener.as_fd(), PollFlags::IN));
            }
            if let Some(signals) = &self.signals {
                all.push((Who::Signals, signals.as_fd(), PollFlags::IN));
            }
            if let Some((link, _)) = &self.control {
                all.push((Who::Control, link.as_fd(), flags(true, link)));
            }
            for (index, (link, _)) in self.unnamed.iter().enumerate() {
                all.push((Who::Unnamed(index), link.as_fd(), flags(true, link)));
            }
            for (id, program) in &self.programs {
                if let Some(stream) = &program.stream {
                    // What a program wrote must be out of the guest before it is saved.
                    let read = self.saving.is_some()
                        || self.clients.values().all(|client| {
                            client.watching != Some(*id) || client.link.pending() < MOST_UNSENT
                        });
                    all.push((Who::Stream(*id), stream.link.as_fd(), flags(read, &stream.link)));
                }
            }
        }
        for (id, client) in &self.clients {
            if self.saving.is_some() && client.link.pending() == 0 {
                continue;
            }
            all.push((Who::Client(*id), client.link.as_fd(), flags(!client.leaving, &client.link)));
        }
        let mut fds: Vec<PollFd<'_>> =
            all.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
        if let Err(error) = rustix::event::poll(&mut fds, timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            log::error!("cannot poll: {error}");
            std::thread::sleep(Duration::from_millis(100));
            return Vec::new();
        }
        // An unnamed connection is taken out of its list by index: the last first.
        let mut ready: Vec<Who> = all
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((who, ..), _)| *who)
            .collect();
        ready.reverse();
        ready
    }

    fn next_deadline(&self) -> Option<Instant> {
        let boot = (self.phase < Phase::Preparing).then_some(self.boot_until);
        let check = self.checks.as_ref().filter(|_| self.can_check());
        let saving = self.saving.as_ref().map(|saving| saving.until);
        let moving = self.moving.as_ref().map(|moving| moving.until);
        [boot, self.stop_at, self.end_at, self.quiet_at, check.and_then(Checks::deadline), saving, moving]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_time(&mut self, now: Instant) {
        if self.quiet_at.take_if(|at| now >= *at).is_some() {
            self.machine.learn();
            self.record.rest();
        }
        if self.phase == Phase::Resting {
            if now >= self.boot_until {
                self.again();
            }
        } else if self.phase < Phase::Preparing && now >= self.boot_until && !self.start_over("it is silent")
        {
            let text = format!("the guest did not start within {} s", self.start.deadline.as_secs());
            self.fail(125, text, Some("see \"servin doctor\""));
        }
        if self.stop_at.is_some_and(|at| now >= at) {
            self.stop_at = None;
            self.kill_main(9);
        }
        self.on_check_time(now);
        self.on_saving_time(now);
        self.on_networks_time(now);
        if self.end_at.is_some_and(|at| now >= at) {
            self.end_at = None;
            if self.phase < Phase::Closing {
                let code = 128 + self.killed_by.unwrap_or(9);
                self.close(Outcome::Exited(Exit { code, oom: false }));
            }
            self.finish();
        }
    }

    fn on_machine(&mut self) {
        while let Some((port, stream)) = self.machine.accept() {
            self.on_connection(port, stream);
        }
        match self.machine.ended() {
            None => {}
            Some(_) if self.phase == Phase::Resting => {}
            Some(_) if self.phase >= Phase::Closing => {
                self.drain_streams();
                self.finish();
            }
            Some(ended) if self.phase == Phase::Booting && self.start_over(&format!("{ended:?}")) => {}
            Some(Ended::Off) => self.fail(125, "the virtual machine powered off by itself".into(), None),
            Some(Ended::Failed(why)) => self.fail(125, format!("the virtual machine failed: {why}"), None),
        }
    }

    /// A clone that said nothing useful yet is replaced by a machine that boots.
    pub(super) fn start_over(&mut self, why: &str) -> bool {
        if self.phase != Phase::Booting || !self.machine.is_warm() {
            return false;
        }
        log::info!("a clone did not start, booting instead: {why}");
        self.control = None;
        self.unnamed.clear();
        self.end_at = None;
        self.boot_until = Instant::now() + self.start.deadline;
        self.machine.start_cold()
    }

    fn on_signals(&mut self) {
        let mut came = false;
        while self.signals.as_ref().is_some_and(|signals| signals.next_signal().is_some()) {
            came = true;
        }
        if came {
            log::info!("this monitor was told to end: the container is stopped");
            self.stop(None);
        }
    }

    /// Sends to the guest's agent.
    pub(super) fn tell_guest(&mut self, message: &HostMessage) {
        if let Some((link, _)) = &mut self.control {
            if let Err(error) = message.encode(link.out()) {
                log::error!("cannot send to the guest: {error}");
            }
            link.flush();
        }
    }

    /// Kills the main program with this signal, or the start before it runs; ends the machine if that does not help.
    pub(super) fn kill_main(&mut self, signal: u8) {
        let now = Instant::now();
        if signal == 9 || signal == self.start.stop_signal {
            self.rest.never = true;
        }
        if self.phase == Phase::Resting {
            self.give_up();
        } else if self.phase < Phase::Running {
            self.killed_by = Some(signal);
            self.end_at = Some(now);
        } else if self.phase == Phase::Running {
            if signal == 9 {
                self.killed_by = Some(signal);
                self.end_at.get_or_insert(now + KILL);
            }
            self.tell_guest(&HostMessage::Signal { id: MAIN, signal });
            self.wake();
        }
    }

    /// Microseconds between the command's start and `at`.
    pub(super) fn microseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start.began).as_micros()).unwrap_or(u64::MAX)
    }
}
