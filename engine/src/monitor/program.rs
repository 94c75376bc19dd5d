//! One program in the guest as the monitor sees it.
//!
//! ```text
//!  asked --Started--> running --Exited--> exited --both outputs at their end--> over
//!    '----ExecFailed-----------------------------------------------------------^
//! ```
//!
//! `Exited` may arrive before the last of the stream, so a program is over only when its outputs are.

use servin_init::proto::{Encode, Frames, StreamMessage};

use super::link::Link;
use super::wire::{Exit, Failure, Output};

/// Its connection to the guest.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) link: Link,
    pub(super) frames: Frames,
}

/// How a program came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran.
    Exited(Exit),
    /// It could not be started.
    Failed(Failure),
}

/// A program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) stream: Option<Stream>,
    pub(super) started: bool,
    pub(super) outcome: Option<Outcome>,
    /// Frames for the stream from before it was there.
    early: Vec<u8>,
    /// Bytes of input that are in `early` or in the link.
    input: usize,
    pub(super) input_ended: bool,
    /// Its end is an event.
    pub(super) told: bool,
    on_terminal: bool,
    stdout_ended: bool,
    stderr_ended: bool,
}

impl Program {
    /// A program that was asked for.
    pub(super) fn new(on_terminal: bool, has_input: bool) -> Self {
        Program {
            stream: None,
            started: false,
            outcome: None,
            early: Vec::new(),
            input: 0,
            input_ended: !has_input,
            told: true,
            on_terminal,
            stdout_ended: false,
            stderr_ended: false,
        }
    }

    /// One that no user asked for: nobody is told of it.
    pub(super) fn untold(self) -> Self {
        Program { told: false, ..self }
    }

    /// Whether it has a terminal.
    pub(super) fn on_terminal(&self) -> bool {
        self.on_terminal
    }

    /// The guest opened its stream; `frames` holds what arrived behind its hello.
    pub(super) fn open(&mut self, mut stream: Stream) {
        stream.link.out().append(&mut self.early);
        stream.link.flush();
        self.stream = Some(stream);
    }

    /// Sends on the stream, or keeps it until there is one.
    fn send(&mut self, message: StreamMessage<'_>) {
        let out = match &mut self.stream {
            Some(stream) => stream.link.out(),
            None => &mut self.early,
        };
        if let Err(error) = message.encode(out) {
            log::warn!("cannot send to the program: {error}");
        }
        if let Some(stream) = &mut self.stream {
            stream.link.flush();
        }
    }

    /// Passes input on.
    pub(super) fn give_input(&mut self, data: &[u8]) {
        if !self.input_ended && !data.is_empty() {
            self.input += data.len();
            self.send(StreamMessage::Stdin(data));
        }
    }

    /// Ends its input, once.
    pub(super) fn end_input(&mut self) {
        if !self.input_ended {
            self.input_ended = true;
            self.send(StreamMessage::StdinEof);
        }
    }

    /// Lets its writes to an output fail.
    pub(super) fn close_output(&mut self, output: Output) {
        match output {
            Output::Stdout if !self.stdout_ended => self.send(StreamMessage::CloseStdout),
            Output::Stderr if !self.stderr_ended => self.send(StreamMessage::CloseStderr),
            _ => {}
        }
    }

    /// Bytes of input that have left for the guest since the last call.
    pub(super) fn take_input_credit(&mut self) -> u32 {
        let unsent = self.stream.as_ref().map_or(self.early.len(), |stream| stream.link.pending());
        let taken = self.input.saturating_sub(unsent);
        self.input -= taken;
        u32::try_from(taken).unwrap_or(u32::MAX)
    }

    /// An output has ended.
    pub(super) fn end_output(&mut self, output: Output) {
        match output {
            Output::Stdout => self.stdout_ended = true,
            Output::Stderr => self.stderr_ended = true,
        }
    }

    /// The stream itself has ended.
    pub(super) fn end_stream(&mut self) {
        self.stream = None;
        (self.stdout_ended, self.stderr_ended) = (true, true);
    }

    /// Whether nothing more comes of it.
    pub(super) fn is_over(&self) -> bool {
        match &self.outcome {
            None => false,
            Some(Outcome::Failed(_)) => true,
            Some(Outcome::Exited(_)) => self.stdout_ended && self.stderr_ended,
        }
    }
}
