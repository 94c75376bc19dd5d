//! Messages as frames, and back.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use super::{Ask, MOST_DATA, Seen, Tell};

/// Most bytes of a frame's body.
const MOST_BODY: usize = 4 << 20;
const HEADER: usize = 5;

/// A frame that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame of kind {kind}")]
pub struct Malformed {
    /// Its kind.
    pub kind: u8,
}

/// A message that goes one way.
pub trait Message: Sized + fmt::Debug {
    /// Appends it as a frame.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads a whole frame's body.
    ///
    /// # Errors
    /// If it is no message of that kind.
    fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed>;
}

/// Appends a frame.
pub(in crate::monitor) fn frame(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(body);
}

fn json(out: &mut Vec<u8>, kind: u8, body: &impl Serialize) {
    // Plain structs of text and numbers always have a JSON form.
    frame(out, kind, &serde_json::to_vec(body).unwrap_or_default());
}

fn parse<T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|_| Malformed { kind })
}

fn empty<T>(kind: u8, body: &[u8], message: T) -> Result<T, Malformed> {
    if body.is_empty() { Ok(message) } else { Err(Malformed { kind }) }
}

/// Kind of a frame of standard output, for [`frame`].
pub(in crate::monitor) const STDOUT: u8 = 0x83;
/// Kind of a frame of standard error.
pub(in crate::monitor) const STDERR: u8 = 0x84;

impl Message for Ask {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Ask::Hello(hello) => json(out, 0x01, hello),
            Ask::Attach { stdin } => json(out, 0x02, stdin),
            Ask::Exec(request) => json(out, 0x03, request),
            Ask::Wait => frame(out, 0x04, &[]),
            Ask::Kill(signal) => json(out, 0x05, signal),
            Ask::Stop(seconds) => json(out, 0x06, seconds),
            Ask::Stdin(data) => frame(out, 0x07, data),
            Ask::StdinEof => frame(out, 0x08, &[]),
            Ask::CloseOutput(output) => json(out, 0x09, output),
            Ask::Signal(signal) => json(out, 0x0a, signal),
            Ask::Resize(size) => json(out, 0x0b, size),
            Ask::Detach => frame(out, 0x0c, &[]),
            Ask::Pause => frame(out, 0x10, &[]),
            Ask::Unpause => frame(out, 0x11, &[]),
            Ask::Stats => frame(out, 0x12, &[]),
            Ask::Top => frame(out, 0x13, &[]),
            Ask::Update(update) => json(out, 0x14, update),
            Ask::Snapshot(request) => json(out, 0x16, request),
            Ask::Networks(change) => json(out, 0x17, change),
            Ask::StopWith(seconds, signal) => json(out, 0x15, &(seconds, signal)),
            Ask::Files => frame(out, 0x0d, &[]),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            0x01 => Ask::Hello(parse(kind, body)?),
            0x02 => Ask::Attach { stdin: parse(kind, body)? },
            0x03 => Ask::Exec(parse(kind, body)?),
            0x04 => empty(kind, body, Ask::Wait)?,
            0x05 => Ask::Kill(parse(kind, body)?),
            0x06 => Ask::Stop(parse(kind, body)?),
            0x07 if body.len() <= MOST_DATA => Ask::Stdin(body.to_vec()),
            0x08 => empty(kind, body, Ask::StdinEof)?,
            0x09 => Ask::CloseOutput(parse(kind, body)?),
            0x0a => Ask::Signal(parse(kind, body)?),
            0x0b => Ask::Resize(parse(kind, body)?),
            0x0c => empty(kind, body, Ask::Detach)?,
            0x10 => empty(kind, body, Ask::Pause)?,
            0x11 => empty(kind, body, Ask::Unpause)?,
            0x12 => empty(kind, body, Ask::Stats)?,
            0x13 => empty(kind, body, Ask::Top)?,
            0x14 => Ask::Update(parse(kind, body)?),
            0x16 => Ask::Snapshot(parse(kind, body)?),
            0x17 => Ask::Networks(parse(kind, body)?),
            0x15 => {
                let (seconds, signal) = parse(kind, body)?;
                Ask::StopWith(seconds, signal)
            }
            0x0d => empty(kind, body, Ask::Files)?,
            _ => return Err(Malformed { kind }),
        })
    }
}

impl Message for Tell {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Tell::Notice(text) => json(out, 0x81, text),
            Tell::Started => frame(out, 0x82, &[]),
            Tell::Stdout(data) => frame(out, STDOUT, data),
            Tell::Stderr(data) => frame(out, STDERR, data),
            Tell::InputTaken(count) => json(out, 0x85, count),
            Tell::Exited(exit) => json(out, 0x86, exit),
            Tell::Failed(failure) => json(out, 0x87, failure),
            Tell::Clocks(clocks) => json(out, 0x88, clocks),
            Tell::Done => frame(out, 0x89, &[]),
            Tell::Created(id) => json(out, 0x8a, id),
            Tell::Seen(seen) => {
                let body = [&[u8::from(seen.cut)], seen.text.as_slice()].concat();
                frame(out, 0x90, &body);
            }
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            0x81 => Tell::Notice(parse(kind, body)?),
            0x82 => empty(kind, body, Tell::Started)?,
            STDOUT => Tell::Stdout(body.to_vec()),
            STDERR => Tell::Stderr(body.to_vec()),
            0x85 => Tell::InputTaken(parse(kind, body)?),
            0x86 => Tell::Exited(parse(kind, body)?),
            0x87 => Tell::Failed(parse(kind, body)?),
            0x88 => Tell::Clocks(parse(kind, body)?),
            0x89 => empty(kind, body, Tell::Done)?,
            0x8a => Tell::Created(parse(kind, body)?),
            0x90 => match body {
                [cut @ (0 | 1), text @ ..] => Tell::Seen(Seen { cut: *cut == 1, text: text.to_vec() }),
                _ => return Err(Malformed { kind }),
            },
            _ => return Err(Malformed { kind }),
        })
    }
}

/// Cuts arriving bytes into messages. Memory follows the bytes that arrived.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more has arrived.
    ///
    /// # Errors
    /// On a frame that is too long, unknown or malformed; the connection is then useless.
    pub fn next_message<M: Message>(&mut self) -> Result<Option<M>, Malformed> {
        let pending = self.buf.get(self.start..).unwrap_or_default();
        let Some((&[l0, l1, l2, l3, kind], rest)) = pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MOST_BODY {
            return Err(Malformed { kind });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = M::decode(kind, body)?;
        self.start += HEADER + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Clocks, ExecRequest, Exit, Failure, Hello, Output, Size, SnapshotRequest, VERSION};
    use super::*;
    use crate::container::{Text, Update};
    use crate::network::Change;
    use crate::snapshot::Target;

    fn asks() -> Vec<Ask> {
        let exec = ExecRequest {
            argv: vec!["sh".into(), Text(vec![0xff])],
            env: vec!["A=1".into()],
            cwd: Some("/x".into()),
            user: None,
            terminal: Some(Size { rows: 24, cols: 80 }),
            stdin: true,
            privileged: true,
        };
        vec![
            Ask::Hello(Hello { version: VERSION }),
            Ask::Attach { stdin: true },
            Ask::Exec(Box::new(exec)),
            Ask::Wait,
            Ask::Kill(9),
            Ask::Stop(Some(3)),
            Ask::Stop(None),
            Ask::StopWith(Some(1), 10),
            Ask::Stdin(vec![0, 1, 0xff]),
            Ask::StdinEof,
            Ask::CloseOutput(Output::Stderr),
            Ask::Signal(15),
            Ask::Resize(Size { rows: 1, cols: 2 }),
            Ask::Detach,
            Ask::Pause,
            Ask::Unpause,
            Ask::Stats,
            Ask::Top,
            Ask::Update(Box::new(Update { memory: Some(1), ..Update::default() })),
            Ask::Snapshot(Box::new(SnapshotRequest { target: Target::Name("x".into()), stop: true })),
            Ask::Networks(Box::new(Change::Disconnect { network: "net".into(), force: true })),
            Ask::Files,
        ]
    }

    #[test]
    fn every_ask_comes_back_as_it_was_however_it_is_cut() {
        let mut wire = Vec::new();
        asks().iter().for_each(|ask| ask.encode(&mut wire));
        for step in [1, 3, wire.len()] {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for part in wire.chunks(step) {
                decoder.push(part);
                while let Some(ask) = decoder.next_message::<Ask>().unwrap() {
                    found.push(ask);
                }
            }
            assert_eq!(found, asks());
        }
    }

    #[test]
    fn every_tell_comes_back_as_it_was() {
        let tells = [
            Tell::Notice("n".into()),
            Tell::Created("ab".into()),
            Tell::Started,
            Tell::Stdout(vec![1]),
            Tell::Stderr(vec![]),
            Tell::InputTaken(7),
            Tell::Exited(Exit { code: 137, oom: true }),
            Tell::Failed(Failure { code: 125, text: "t".into(), hint: None }),
            Tell::Clocks(Clocks { exited: Some(5), ..Clocks::default() }),
            Tell::Done,
            Tell::Seen(Seen { cut: true, text: vec![0, 0xff] }),
        ];
        let mut decoder = Decoder::default();
        for tell in tells {
            let mut wire = Vec::new();
            tell.encode(&mut wire);
            decoder.push(&wire);
            assert_eq!(decoder.next_message::<Tell>().unwrap(), Some(tell));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_unknown_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 0x07]);
        assert_eq!(decoder.next_message::<Ask>(), Err(Malformed { kind: 7 }));
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 0x7f]);
        assert_eq!(decoder.next_message::<Ask>(), Err(Malformed { kind: 0x7f }));
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 0, 0, 0x08, 0]);
        assert_eq!(decoder.next_message::<Ask>(), Err(Malformed { kind: 8 }));
    }
}
