//! A command that watches a program: standard streams, signals and terminal on one side, the monitor on the other.
//!
//! One thread, one `poll`. The standard streams are shared with other processes, so they stay as they are: a write is made
//! only when the stream is ready, of no more than it surely takes, and no other process ever finds its terminal
//! nonblocking.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use servin_engine::monitor::wire::{
    Ask, Clocks, Decoder, Exit, Failure, INPUT_WINDOW, Message, Output, Tell,
};
use servin_engine::monitor::{Arrived, Link};
use servin_engine::process::Signals;

use crate::keys::Detector;
use crate::output;
use crate::terminal::{self, Raw};

/// Signals that are passed on to the program, by their numbers here and in the guest, which is a Linux.
const PASSED: &[(i32, u8)] = &[
    (Signal::HUP.as_raw(), 1),
    (Signal::INT.as_raw(), 2),
    (Signal::QUIT.as_raw(), 3),
    (Signal::USR1.as_raw(), 10),
    (Signal::USR2.as_raw(), 12),
    (Signal::ALARM.as_raw(), 14),
    (Signal::TERM.as_raw(), 15),
];
const SIGCONT: i32 = Signal::CONT.as_raw();
const SIGWINCH: i32 = Signal::WINCH.as_raw();
/// Unwritten bytes above which the monitor is not read.
const MOST_UNWRITTEN: usize = 512 * 1024;
/// What a pipe or terminal that is ready takes without blocking (`PIPE_BUF`).
const SURE: usize = 4096;
/// What a file takes at once.
const FILE: usize = 1 << 20;
/// How long a start is slow before a line says why, where nobody looks at a terminal.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a command watches.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Pass the standard input on.
    pub(crate) stdin: bool,
    /// The program has a terminal.
    pub(crate) terminal: bool,
    /// Pass signals on.
    pub(crate) sig_proxy: bool,
    /// Keys that detach.
    pub(crate) detach_keys: Vec<u8>,
    /// Leave when the program has started.
    pub(crate) detach: bool,
}

/// How the watching ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The program did.
    Exited(Exit),
    /// It could not be started, or the monitor gave up.
    Failed(Failure),
    /// This command left.
    Detached,
    /// The monitor is gone without a word.
    Lost,
}

/// Takes over the signals that a watching command handles. Call it before the monitor is forked, so that none is lost in
/// between.
pub(crate) fn signals(watch: &Watch) -> io::Result<Signals> {
    let mut list = vec![SIGWINCH];
    if watch.sig_proxy {
        list.extend(PASSED.iter().map(|(signal, _)| signal));
    }
    if watch.terminal {
        list.push(SIGCONT);
    }
    Signals::take(&list)
}

/// One of our outputs.
struct Sink {
    output: Output,
    pending: Vec<u8>,
    /// Most bytes of one write.
    most: usize,
    /// Nobody reads it.
    closed: bool,
    failed: bool,
}

impl Sink {
    fn new(output: Output) -> Self {
        let is_file = |fd: BorrowedFd<'_>| {
            rustix::fs::fstat(fd)
                .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
        };
        let file = match output {
            Output::Stdout => is_file(io::stdout().as_fd()),
            Output::Stderr => is_file(io::stderr().as_fd()),
        };
        Sink {
            output,
            pending: Vec::new(),
            most: if file { FILE } else { SURE },
            closed: false,
            failed: false,
        }
    }

    fn add(&mut self, data: &[u8]) {
        if !self.closed {
            self.pending.extend_from_slice(data);
        }
    }

    /// Writes what the stream surely takes; says whether its reader is gone now.
    fn write(&mut self) -> bool {
        let part = self.pending.get(..self.most).unwrap_or(&self.pending);
        let written = match self.output {
            Output::Stdout => rustix::io::write(io::stdout(), part),
            Output::Stderr => rustix::io::write(io::stderr(), part),
        };
        match written {
            Ok(count) => {
                self.pending.drain(..count);
                false
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(error) => {
                if error != rustix::io::Errno::PIPE {
                    self.failed = true;
                    output::line(
                        &format!("cannot write the program's output: {}", io::Error::from(error)),
                        None,
                    );
                }
                self.closed = true;
                self.pending.clear();
                true
            }
        }
    }
}

/// The state of the loop.
pub(crate) struct Session<'a> {
    link: Link,
    decoder: Decoder,
    watch: Watch,
    signals: Signals,
    detector: Detector,
    out: Sink,
    err: Sink,
    raw: Option<Raw>,
    started: bool,
    /// Input may be read: there is some, and the monitor takes it.
    input_open: bool,
    credit: usize,
    notice: Option<(Instant, String)>,
    end: Option<End>,
    on_created: Box<dyn FnMut(&str) + 'a>,
    /// The clocks of the start, once told.
    pub(crate) clocks: Option<Clocks>,
}

impl<'a> Session<'a> {
    /// Watches over this connection. `on_created` hears the id of a new container.
    pub(crate) fn new(
        stream: UnixStream,
        watch: Watch,
        signals: Signals,
        on_created: impl FnMut(&str) + 'a,
    ) -> io::Result<Self> {
        let detector =
            Detector::new(if watch.terminal && watch.stdin { watch.detach_keys.clone() } else { Vec::new() });
        Ok(Session {
            link: Link::new(stream)?,
            decoder: Decoder::default(),
            input_open: watch.stdin && !watch.detach,
            watch,
            signals,
            detector,
            out: Sink::new(Output::Stdout),
            err: Sink::new(Output::Stderr),
            raw: None,
            started: false,
            credit: INPUT_WINDOW,
            notice: None,
            end: None,
            on_created: Box::new(on_created),
            clocks: None,
        })
    }

    /// Sends the monitor something.
    pub(crate) fn ask(&mut self, ask: &Ask) {
        ask.encode(self.link.out());
        self.link.flush();
    }

    /// Runs to the end, with everything written that came before it.
    pub(crate) fn run(&mut self) -> End {
        loop {
            let unwritten = self.out.pending.len() + self.err.pending.len();
            if unwritten == 0
                && let Some(end) = self.end.take()
            {
                self.raw = None;
                return match end {
                    // Output was lost, and not because nobody wanted it.
                    End::Exited(Exit { code: 0, oom }) if self.out.failed || self.err.failed => {
                        End::Exited(Exit { code: 125, oom })
                    }
                    end => end,
                };
            }
            self.turn(unwritten);
            if self.notice.as_ref().is_some_and(|(at, _)| *at <= Instant::now())
                && let Some((_, text)) = self.notice.take()
            {
                output::line(&text, None);
            }
        }
    }

    /// Waits for something and handles it.
    fn turn(&mut self, unwritten: usize) {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let reads_input = self.started && self.input_open && self.credit > 0 && self.end.is_none();
        let mut link = PollFlags::empty();
        link.set(PollFlags::IN, self.end.is_none() && unwritten < MOST_UNWRITTEN);
        link.set(PollFlags::OUT, self.end.is_none() && self.link.pending() > 0);
        let want = |wanted: bool, flags| if wanted { flags } else { PollFlags::empty() };
        let all: [(BorrowedFd<'_>, PollFlags); 5] = [
            (self.link.as_fd(), link),
            (self.signals.as_fd(), PollFlags::IN),
            (stdin.as_fd(), want(reads_input, PollFlags::IN)),
            (stdout.as_fd(), want(!self.out.pending.is_empty(), PollFlags::OUT)),
            (stderr.as_fd(), want(!self.err.pending.is_empty(), PollFlags::OUT)),
        ];
        // One that nothing is wanted of is left out: its hang-up would wake us for ever.
        let watched: Vec<usize> = (0..all.len()).filter(|index| !all[*index].1.is_empty()).collect();
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|index| PollFd::from_borrowed_fd(all[*index].0, all[*index].1)).collect();
        let left = self.notice.as_ref().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
        if rustix::event::poll(&mut fds, left.as_ref()).is_err() {
            return;
        }
        let ready: Vec<usize> = watched
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(index, _)| *index)
            .collect();
        for index in ready {
            match index {
                0 => self.on_link(),
                1 => self.on_signals(),
                2 => self.on_input(),
                3 => {
                    if self.out.write() {
                        self.ask(&Ask::CloseOutput(Output::Stdout));
                    }
                }
                _ => {
                    if self.err.write() {
                        self.ask(&Ask::CloseOutput(Output::Stderr));
                    }
                }
            }
        }
    }

    fn on_link(&mut self) {
        self.link.flush();
        let mut buf = [0; 64 * 1024];
        match self.link.read(&mut buf) {
            Arrived::Bytes(count) => self.decoder.push(&buf[..count]),
            Arrived::Nothing => return,
            Arrived::End => {
                self.end.get_or_insert(End::Lost);
                return;
            }
        }
        while self.end.is_none() {
            match self.decoder.next_message::<Tell>() {
                Ok(Some(tell)) => self.on_tell(tell),
                Ok(None) => return,
                Err(error) => {
                    log::error!("{error}");
                    self.end = Some(End::Lost);
                }
            }
        }
    }

    fn on_tell(&mut self, tell: Tell) {
        match tell {
            Tell::Notice(text) => {
                let patience = if io::stderr().is_terminal() { Duration::ZERO } else { PATIENCE };
                self.notice = Some((Instant::now() + patience, text));
            }
            Tell::Created(id) => (self.on_created)(&id),
            Tell::Started => self.on_started(),
            Tell::Stdout(data) => self.out.add(&data),
            Tell::Stderr(data) => self.err.add(&data),
            Tell::InputTaken(count) => self.credit += count as usize,
            Tell::Clocks(clocks) => self.clocks = Some(clocks),
            Tell::Exited(exit) => self.end = Some(End::Exited(exit)),
            Tell::Failed(failure) => self.end = Some(End::Failed(failure)),
            Tell::Done => self.end = Some(End::Detached),
            // Nobody here asks for it.
            Tell::Seen(_) => {}
        }
    }

    fn on_started(&mut self) {
        self.started = true;
        self.notice = None;
        if self.watch.detach {
            self.end = Some(End::Detached);
            return;
        }
        if self.watch.terminal {
            if self.watch.stdin && io::stdin().is_terminal() {
                match Raw::enter() {
                    Ok(raw) => self.raw = Some(raw),
                    Err(error) => log::warn!("cannot set the terminal: {error}"),
                }
            }
            self.tell_size();
        }
    }

    fn tell_size(&mut self) {
        if let Some(size) = terminal::size() {
            self.ask(&Ask::Resize(size));
        }
    }

    fn on_signals(&mut self) {
        while let Some(signal) = self.signals.next_signal() {
            match signal {
                SIGWINCH if self.watch.terminal && self.started => self.tell_size(),
                SIGWINCH => {}
                SIGCONT => {
                    if let Some(raw) = &self.raw {
                        let _ = raw.again();
                    }
                }
                other => {
                    if let Some((_, signal)) = PASSED.iter().find(|(here, _)| *here == other) {
                        self.ask(&Ask::Signal(*signal));
                    }
                }
            }
        }
    }

    fn on_input(&mut self) {
        let mut buf = [0; 32 * 1024];
        let most = buf.len().min(self.credit);
        match rustix::io::read(io::stdin(), &mut buf[..most]) {
            Ok(0) => {
                self.input_open = false;
                self.ask(&Ask::StdinEof);
            }
            Ok(count) => {
                let (data, detached) = self.detector.filter(&buf[..count]);
                if !data.is_empty() {
                    self.credit = self.credit.saturating_sub(data.len());
                    self.ask(&Ask::Stdin(data));
                }
                if detached {
                    self.input_open = false;
                    self.ask(&Ask::Detach);
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => {
                // A terminal that was hung up, or a read from the background.
                log::debug!("standard input: {error}");
                self.input_open = false;
                self.ask(&Ask::StdinEof);
            }
        }
    }
}
