//! The host's end of one connection: a nonblocking socket, read and written straight from guest memory.

use std::io;
use std::net::Shutdown;

use rustix::fd::AsFd as _;
use rustix::net::RecvFlags;

use super::socket::{self, DeviceEnd};
use crate::event::{self, Source};
use crate::os;
use crate::virtio::{Reader, Writer};

/// The longest greeting of a host program, `CONNECT 4294967295\r\n`, with room for more blanks.
const MAX_GREETING: usize = 64;

/// A connected socket of the host.
#[derive(Debug)]
pub(super) struct Stream(DeviceEnd);

impl Stream {
    /// Takes a connected socket and makes it nonblocking.
    pub(super) fn new(socket: DeviceEnd) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        os::quiet(&socket)?;
        Ok(Self(socket))
    }

    /// What to watch.
    pub(super) fn source(&self) -> Source<'_> {
        event::socket(&self.0)
    }

    /// Moves up to `count` bytes from the guest to the host.
    pub(super) fn send(&self, from: &mut Reader<'_>, count: usize) -> io::Result<usize> {
        from.send_to(self.0.as_fd(), count)
    }

    /// Sends bytes to the host.
    pub(super) fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| rustix::net::send(&self.0, bytes, os::SEND))
    }

    /// Moves up to `count` bytes from the host to the guest; 0 at the end of data.
    pub(super) fn receive(&self, into: &mut Writer<'_>, count: usize) -> io::Result<usize> {
        into.read_from(self.0.as_fd(), count)
    }

    /// Ends one direction or both for the program at the other end.
    pub(super) fn shutdown(&self, how: Shutdown) {
        socket::shutdown(&self.0, how);
    }

    /// Whether the other end, which said its last byte, takes none either, and no hang-up says so.
    pub(super) fn is_gone(&self) -> bool {
        socket::is_gone(&self.0)
    }
}

/// A host program that has connected and not yet said to which port.
#[derive(Debug)]
pub(super) struct Greeting {
    stream: Stream,
    line: Vec<u8>,
}

impl Greeting {
    /// Expects a greeting on `stream`.
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// What to watch.
    pub(super) fn source(&self) -> Source<'_> {
        self.stream.source()
    }

    /// The stream, once the greeting is over.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Reads `CONNECT <port>\n` and not a byte more; `None` while the line is not complete.
    ///
    /// # Errors
    /// `InvalidData` when it is something else, `UnexpectedEof` when the program went away.
    pub(super) fn port(&mut self) -> io::Result<Option<u32>> {
        let mut bytes = [0; MAX_GREETING];
        let seen = match self.receive(&mut bytes, RecvFlags::PEEK) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            seen => seen?,
        };
        let seen = bytes.get(..seen).filter(|seen| !seen.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let end = seen.iter().position(|&byte| byte == b'\n');
        let mine = end.map_or(seen, |end| seen.get(..end).unwrap_or_default());
        self.line.extend_from_slice(mine);
        // Take them out of the socket, with the end of the line.
        let taken = mine.len() + usize::from(end.is_some());
        self.receive([0; MAX_GREETING].get_mut(..taken).unwrap_or_default(), RecvFlags::empty())?;
        if self.line.len() >= MAX_GREETING {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match end {
            Some(_) => Ok(Some(parse_greeting(&self.line).ok_or(io::ErrorKind::InvalidData)?)),
            None => Ok(None),
        }
    }

    fn receive(&self, bytes: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        retry(|| {
            rustix::net::recv(&self.stream.0, &mut *bytes, flags | os::RECEIVE).map(|(_, length)| length)
        })
    }
}

/// The port of `CONNECT <port>`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then(|| port.parse().ok())?
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::super::socket::HostStream;
    use super::*;

    #[test]
    fn a_greeting_names_a_port_and_nothing_else() {
        assert_eq!(parse_greeting(b"CONNECT 52"), Some(52));
        assert_eq!(parse_greeting(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in
            [&b"CONNECT"[..], b"CONNECT x", b"CONNECT 1 2", b"GET 1", b"CONNECT 4294967296", b"\xff 1", b""]
        {
            assert_eq!(parse_greeting(bad), None, "{bad:?}");
        }
    }

    fn connected() -> (HostStream, Greeting) {
        let (server, client) = socket::pair().unwrap();
        (client, Greeting::new(Stream::new(server).unwrap()))
    }

    #[test]
    fn what_follows_the_greeting_stays_in_the_socket() {
        let (mut client, mut greeting) = connected();
        assert_eq!(greeting.port().unwrap(), None);
        client.write_all(b"CONNE").unwrap();
        assert_eq!(greeting.port().unwrap(), None);
        assert_eq!(greeting.port().unwrap(), None, "the part was taken, so that nothing is ready");
        client.write_all(b"CT 7\nhello\n").unwrap();
        assert_eq!(greeting.port().unwrap(), Some(7));
        let mut rest = [0; 8];
        let length = (&greeting.into_stream().0).read(&mut rest).unwrap();
        assert_eq!(&rest[..length], b"hello\n");
    }

    #[test]
    fn an_endless_or_broken_off_greeting_is_an_error() {
        let (mut client, mut greeting) = connected();
        client.write_all(&[b' '; 200]).unwrap();
        let error = (0..2).find_map(|_| greeting.port().err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let (client, mut greeting) = connected();
        drop(client);
        assert_eq!(greeting.port().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
