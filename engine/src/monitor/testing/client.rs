//! A client, as a command is.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::super::wire::{Ask, Decoder, Message as _, Tell};
use super::LIMIT;

/// A command's end of a connection.
pub(in crate::monitor) struct Client {
    pub(in crate::monitor) stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    pub(in crate::monitor) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client { stream, decoder: Decoder::default() }
    }

    pub(in crate::monitor) fn ask(&mut self, ask: &Ask) {
        let mut frame = Vec::new();
        ask.encode(&mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next message; `None` at the end of the connection.
    pub(in crate::monitor) fn next(&mut self) -> Option<Tell> {
        loop {
            if let Some(tell) = self.decoder.next_message().unwrap() {
                return Some(tell);
            }
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf).expect("a message within the limit") {
                0 => return None,
                count => self.decoder.push(&buf[..count]),
            }
        }
    }

    /// Messages up to one that fits, which must come.
    pub(in crate::monitor) fn until(&mut self, fits: impl Fn(&Tell) -> bool) -> Vec<Tell> {
        let mut seen = Vec::new();
        loop {
            let tell = self.next().unwrap_or_else(|| panic!("the connection ended after {seen:?}"));
            let done = fits(&tell);
            seen.push(tell);
            if done {
                return seen;
            }
        }
    }

    /// Everything up to the end: standard output, standard error, and the last message.
    pub(in crate::monitor) fn finish(&mut self) -> (Vec<u8>, Vec<u8>, Option<Tell>) {
        let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(tell) = self.next() {
            match tell {
                Tell::Stdout(data) => out.extend(data),
                Tell::Stderr(data) => err.extend(data),
                other => last = Some(other),
            }
        }
        (out, err, last)
    }
}
