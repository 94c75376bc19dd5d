//! Messages of a program's stream.

use alloc::vec::Vec;

use super::{
    Encode, Error, Frame, HEADER_LEN, MAX_DATA, frame, kind,
    wire::{Reader, Writer},
};

/// Input and output of one program. Data is lent from the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// Guest to host, first on every stream: whose it is.
    Hello {
        /// The `id` of the `Exec`.
        id: u32,
    },
    /// Guest to host: what the program wrote to its standard output, or to its terminal.
    Stdout(&'a [u8]),
    /// Guest to host: what the program wrote to its standard error. Never with a terminal.
    Stderr(&'a [u8]),
    /// Guest to host: nothing more comes from standard output.
    StdoutEof,
    /// Guest to host: nothing more comes from standard error. Sent with a terminal too.
    StderrEof,
    /// Host to guest: input. Thrown away if the program has closed its end.
    Stdin(&'a [u8]),
    /// Host to guest: end of input. On a terminal the agent types its end-of-file character.
    StdinEof,
    /// Host to guest: nobody reads standard output any more. The agent closes its end of the pipe, so that the
    /// program's next write fails (SIGPIPE, EPIPE), and sends `StdoutEof`. On a terminal it does nothing.
    CloseStdout,
    /// Host to guest: nobody reads standard error any more; as `CloseStdout`.
    CloseStderr,
}

impl Encode for StreamMessage<'_> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let (kind, data): (u16, &[u8]) = match self {
            Self::Hello { id } => {
                let mut w = Writer::new(out, kind::STREAM_HELLO);
                w.u32(*id);
                return w.finish();
            }
            Self::Stdout(data) => (kind::STDOUT, data),
            Self::Stderr(data) => (kind::STDERR, data),
            Self::StdoutEof => (kind::STDOUT_EOF, &[]),
            Self::StderrEof => (kind::STDERR_EOF, &[]),
            Self::Stdin(data) => (kind::STDIN, data),
            Self::StdinEof => (kind::STDIN_EOF, &[]),
            Self::CloseStdout => (kind::CLOSE_STDOUT, &[]),
            Self::CloseStderr => (kind::CLOSE_STDERR, &[]),
        };
        let mut w = Writer::new(out, kind);
        w.raw(data);
        w.finish()
    }
}

impl<'a> StreamMessage<'a> {
    /// Decodes a frame of [`super::Channel::GuestStream`] or [`super::Channel::HostStream`].
    ///
    /// # Errors
    /// If the body is not exactly one message of the frame's kind.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Error> {
        let body = frame.body;
        let empty = |message| if body.is_empty() { Ok(message) } else { Err(Error::Trailing) };
        match frame.kind {
            kind::STREAM_HELLO => {
                let mut r = Reader::new(body);
                let message = Self::Hello { id: r.u32()? };
                r.end()?;
                Ok(message)
            }
            kind::STDOUT => Ok(Self::Stdout(body)),
            kind::STDERR => Ok(Self::Stderr(body)),
            kind::STDOUT_EOF => empty(Self::StdoutEof),
            kind::STDERR_EOF => empty(Self::StderrEof),
            kind::STDIN => Ok(Self::Stdin(body)),
            kind::STDIN_EOF => empty(Self::StdinEof),
            kind::CLOSE_STDOUT => empty(Self::CloseStdout),
            kind::CLOSE_STDERR => empty(Self::CloseStderr),
            other => Err(Error::UnknownKind(other)),
        }
    }
}

/// The header of a data frame whose `length` bytes of body are written separately, so that they need no copy.
///
/// # Errors
/// If `kind` is not one of data, or `length` is above [`MAX_DATA`].
pub fn data_header(kind: u16, length: usize) -> Result<[u8; HEADER_LEN], Error> {
    match kind {
        kind::STDIN | kind::STDOUT | kind::STDERR if length <= MAX_DATA => {
            Ok(frame::header(kind, length as u32))
        }
        kind::STDIN | kind::STDOUT | kind::STDERR => Err(Error::TooLong { kind, length }),
        other => Err(Error::UnknownKind(other)),
    }
}
