//! A running program: its input and output, and its end.
//!
//! ```text
//!   host ══ link ══> [frames] ──> input (≤ 1 frame) ──> stdin pipe or terminal ──> program
//!   host <══ link ══ [pending ≤ 2 frames] <── scratch <── stdout, stderr or terminal <── program
//! ```
//!
//! A side is read only while the other side of its path takes data, so nothing grows: the buffers of the two pipes
//! and vsock's credit do the rest.

use alloc::vec::Vec;

use rustix::{
    event::{PollFd, PollFlags},
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};
use servin_init::proto::{Channel, ExitStatus, StreamMessage, WindowSize, data_header, kind};

use crate::{
    failure::{Doing as _, Failure},
    link::{Link, Transport},
    setup, spawn, sys,
};

/// The agent's ends of what a program writes to; `None` once it has ended.
#[derive(Debug)]
pub(crate) enum Output {
    /// Standard output and standard error.
    Pipes(Option<OwnedFd>, Option<OwnedFd>),
    /// The master of the program's terminal, which is its input as well.
    Terminal(Option<OwnedFd>),
}

/// A descriptor of a program that poll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Exit,
    Link,
    Stdin,
    Stdout,
    Stderr,
    Terminal,
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) id: u32,
    pub(crate) is_main: bool,
    /// Process id as the agent sees it.
    pid: i32,
    pidfd: OwnedFd,
    /// `None` once the host has let go of the stream.
    link: Option<Link>,
    /// The agent's end of a standard input that is a pipe; `None` throws input away.
    stdin: Option<OwnedFd>,
    /// Input that the program has not taken yet.
    input: Vec<u8>,
    /// Nothing comes after `input`.
    input_ended: bool,
    output: Output,
    pub(crate) exit: Option<ExitStatus>,
}

impl Program {
    pub(crate) fn new(
        id: u32,
        is_main: bool,
        pid: i32,
        pidfd: OwnedFd,
        link: Link,
        stdin: Option<OwnedFd>,
        output: Output,
    ) -> Self {
        Self {
            id,
            is_main,
            pid,
            pidfd,
            link: Some(link),
            stdin,
            input: Vec::new(),
            input_ended: false,
            output,
            exit: None,
        }
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal, unless the program has ended.
    pub(crate) fn signal(&self, signal: u8) {
        if self.exit.is_none() {
            // It is not waited for yet, so the number is still its own; a signal that may not be sent (there is
            // none for the agent) would have nobody to tell.
            let _ = sys::kill(self.pid, signal);
        }
    }

    /// Sets the terminal's size, if there is one.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Output::Terminal(Some(master)) = &self.output {
            // The terminal may have been hung up in this moment.
            let _ = spawn::resize(master.as_fd(), size);
        }
    }

    /// Lists what to wait for.
    pub(crate) fn sources<'a>(&'a self, mut add: impl FnMut(Source, PollFd<'a>)) {
        let mut watch = |source, fd: BorrowedFd<'a>, flags| add(source, PollFd::from_borrowed_fd(fd, flags));
        if self.exit.is_none() {
            watch(Source::Exit, self.pidfd.as_fd(), PollFlags::IN);
        }
        let Some(link) = &self.link else { return };
        let has_input = !self.input.is_empty();
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, link.has_pending());
        flags.set(PollFlags::IN, !link.ended && !has_input);
        watch(Source::Link, link.as_fd(), flags);
        if let Some(stdin) = self.stdin.as_ref().filter(|_| has_input) {
            watch(Source::Stdin, stdin.as_fd(), PollFlags::OUT);
        }
        // A closed pipe or terminal shows whatever is asked for, so it is left out while it may not be read.
        match &self.output {
            Output::Pipes(stdout, stderr) if !link.is_stuck() => {
                if let Some(stdout) = stdout {
                    watch(Source::Stdout, stdout.as_fd(), PollFlags::IN);
                }
                if let Some(stderr) = stderr {
                    watch(Source::Stderr, stderr.as_fd(), PollFlags::IN);
                }
            }
            Output::Terminal(Some(master)) if has_input || !link.is_stuck() => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, !link.is_stuck());
                flags.set(PollFlags::OUT, has_input);
                watch(Source::Terminal, master.as_fd(), flags);
            }
            Output::Pipes(..) | Output::Terminal(_) => {}
        }
    }

    /// Carries on with what poll found. `scratch` is room for one frame of data.
    pub(crate) fn ready(
        &mut self,
        source: Source,
        flags: PollFlags,
        scratch: &mut [u8],
    ) -> Result<(), Failure> {
        match source {
            Source::Exit => self.reap(),
            Source::Link => self.link_ready(flags),
            Source::Stdin => self.write_input(),
            Source::Stdout | Source::Stderr => {
                self.read_output(source, scratch);
                Ok(())
            }
            Source::Terminal => {
                if flags.contains(PollFlags::OUT) && !self.input.is_empty() {
                    self.write_input()?;
                }
                if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.read_output(source, scratch);
                }
                Ok(())
            }
        }
    }

    /// Sends what waits for the host.
    pub(crate) fn flush(&mut self) {
        if self.link.as_mut().is_some_and(|link| link.flush().is_err()) {
            self.let_go();
        }
    }

    /// Sends what waits for the host, and waits until it has taken it.
    pub(crate) fn send_all(&mut self) -> Result<(), Failure> {
        loop {
            self.flush();
            match &self.link {
                Some(link) if link.has_pending() => {
                    if !setup::wait(link.as_fd(), PollFlags::OUT) {
                        return Err(Errno::TIMEDOUT).doing("send what a program wrote");
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// The machine was restored: the main program gets a stream to the new host, others end.
    pub(crate) fn take_up(&mut self, transport: &Transport) -> Result<(), Failure> {
        /// No host chooses such a number.
        const FORGOTTEN: u32 = 1 << 31;
        if !self.is_main {
            self.signal(9);
            self.id |= FORGOTTEN;
            self.let_go();
            return Ok(());
        }
        let mut link = Link::connect(transport, Channel::HostStream).doing("connect the program's stream")?;
        link.queue(&StreamMessage::Hello { id: self.id })?;
        let (no_stdout, no_stderr) = match &self.output {
            Output::Pipes(stdout, stderr) => (stdout.is_none(), stderr.is_none()),
            Output::Terminal(master) => (master.is_none(), master.is_none()),
        };
        if no_stdout {
            link.queue(&StreamMessage::StdoutEof)?;
        }
        if no_stderr {
            link.queue(&StreamMessage::StderrEof)?;
        }
        self.link = Some(link);
        Ok(())
    }

    /// After the exit, and a look at the outputs that was later than it: what is not readable now stays empty,
    /// whoever may still hold its other end.
    pub(crate) fn end_output(&mut self, readable: impl Fn(Source) -> bool) {
        if self.exit.is_none() || self.is_stuck() {
            return;
        }
        for source in [Source::Stdout, Source::Stderr, Source::Terminal] {
            if !readable(source) {
                self.close_output(source);
            }
        }
    }

    /// True if the program has ended and its outputs were not looked at since.
    pub(crate) fn is_draining(&self) -> bool {
        self.exit.is_some() && !self.is_stuck() && self.has_output()
    }

    /// The exit status, when there is nothing more to send before it.
    pub(crate) fn finished(&self) -> Option<ExitStatus> {
        let sent = self.link.as_ref().is_none_or(|link| !link.has_pending());
        self.exit.filter(|_| sent && !self.has_output())
    }

    fn is_stuck(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_stuck)
    }

    fn has_output(&self) -> bool {
        matches!(
            self.output,
            Output::Pipes(Some(_), _) | Output::Pipes(_, Some(_)) | Output::Terminal(Some(_))
        )
    }

    fn reap(&mut self) -> Result<(), Failure> {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
            .doing("wait for a program")?;
        let Some(status) = status else { return Ok(()) };
        self.exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(ExitStatus::Code(code as u8)),
            (None, Some(signal)) => Some(ExitStatus::Signal(signal as u8)),
            (None, None) => None,
        };
        // Nobody reads it any more.
        self.stdin = None;
        self.input.clear();
        Ok(())
    }

    /// The host is gone from this stream: the program's next write is an error, as at any broken pipe.
    fn let_go(&mut self) {
        self.link = None;
        self.stdin = None;
        self.input.clear();
        match &mut self.output {
            Output::Pipes(stdout, stderr) => (*stdout, *stderr) = (None, None),
            Output::Terminal(master) => *master = None,
        }
    }

    fn link_ready(&mut self, flags: PollFlags) -> Result<(), Failure> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut broken = flags.contains(PollFlags::ERR);
        if flags.contains(PollFlags::OUT) {
            broken |= link.flush().is_err();
        }
        if flags.contains(PollFlags::IN) {
            broken |= link.receive().is_err();
        } else if flags.contains(PollFlags::HUP) {
            // Both directions are closed, so what waits to be sent will not be read.
            broken = true;
        }
        if broken {
            self.let_go();
            return Ok(());
        }
        self.take_input()
    }

    /// Passes on the input that has arrived, until the program takes no more.
    fn take_input(&mut self) -> Result<(), Failure> {
        while self.input.is_empty() {
            let Some(link) = &mut self.link else { return Ok(()) };
            let ended = link.ended;
            match link.frames.next_frame()?.map(StreamMessage::decode).transpose()? {
                Some(StreamMessage::Stdin(data)) => {
                    let target = match &self.output {
                        Output::Terminal(master) => master.as_ref(),
                        Output::Pipes(..) => self.stdin.as_ref(),
                    };
                    match target.map(|target| rustix::io::write(target, data)) {
                        Some(Ok(count)) => {
                            self.input.extend_from_slice(data.get(count..).unwrap_or_default());
                        }
                        Some(Err(Errno::AGAIN | Errno::INTR)) => self.input.extend_from_slice(data),
                        // Nobody reads: it is thrown away.
                        Some(Err(_)) => self.stdin = None,
                        None => {}
                    }
                }
                Some(StreamMessage::StdinEof) => self.end_input(),
                Some(StreamMessage::CloseStdout) => self.close_output(Source::Stdout),
                Some(StreamMessage::CloseStderr) => self.close_output(Source::Stderr),
                Some(_) => {}
                None => {
                    if ended {
                        self.end_input();
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn end_input(&mut self) {
        const END_OF_TRANSMISSION: u8 = 4;
        self.stdin = None;
        if !self.input_ended && matches!(self.output, Output::Terminal(Some(_))) {
            self.input.push(END_OF_TRANSMISSION);
        }
        self.input_ended = true;
    }

    /// Writes what the program has not taken; then goes on with what came after it.
    fn write_input(&mut self) -> Result<(), Failure> {
        let target = match &self.output {
            Output::Terminal(master) => master.as_ref(),
            Output::Pipes(..) => self.stdin.as_ref(),
        };
        match target.map(|target| rustix::io::write(target, &self.input)) {
            Some(Ok(count)) => {
                self.input.drain(..count.min(self.input.len()));
            }
            Some(Err(Errno::AGAIN | Errno::INTR)) => {}
            Some(Err(_)) | None => {
                self.stdin = None;
                self.input.clear();
            }
        }
        self.take_input()
    }

    /// Reads an output once and sends it on, unless the host takes nothing.
    fn read_output(&mut self, source: Source, scratch: &mut [u8]) {
        if self.is_stuck() {
            return;
        }
        let (fd, kind) = match (source, &self.output) {
            (Source::Stdout, Output::Pipes(Some(fd), _)) | (Source::Terminal, Output::Terminal(Some(fd))) => {
                (fd, kind::STDOUT)
            }
            (Source::Stderr, Output::Pipes(_, Some(fd))) => (fd, kind::STDERR),
            _ => return,
        };
        match rustix::io::read(fd, &mut *scratch) {
            Ok(length @ 1..) => {
                let data = scratch.get(..length).unwrap_or_default();
                let Some(link) = &mut self.link else { return };
                let sent = data_header(kind, length).map(|header| link.send_pieces(&header, data));
                if !matches!(sent, Ok(Ok(()))) {
                    self.let_go();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end; of a terminal it is EIO.
            Ok(0) | Err(_) => self.close_output(source),
        }
    }

    fn close_output(&mut self, source: Source) {
        let (fd, messages) = match (source, &mut self.output) {
            (Source::Stdout, Output::Pipes(fd, _)) => (fd, &[StreamMessage::StdoutEof][..]),
            (Source::Stderr, Output::Pipes(_, fd)) => (fd, &[StreamMessage::StderrEof][..]),
            (Source::Terminal, Output::Terminal(fd)) => {
                (fd, &[StreamMessage::StdoutEof, StreamMessage::StderrEof][..])
            }
            _ => return,
        };
        if fd.take().is_none() {
            return;
        }
        if let Some(link) = &mut self.link {
            for message in messages {
                // An empty frame always fits.
                let _ = link.queue(message);
            }
        }
    }
}
