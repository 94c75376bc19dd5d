//! Windows has no pairs of sockets: both ends are a connection by the loopback, made at once and checked to be ours. What
//! TCP does not tell the other end goes by what both ends share in this process.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::sockopt;

/// Programs of others that may come first to the port that both ends meet at.
const STRANGERS: u32 = 64;
/// Bytes that the system keeps for each end, each way. Otherwise it keeps as many as it likes, outside of all limits.
const BUFFER: usize = 128 << 10;
/// Bytes that are taken from a connection before it is closed, at most.
const UNREAD: usize = 4 << 20;

/// What the device tells the program, which is gone when nobody has this any more.
#[derive(Debug, Default)]
struct Program {
    /// The guest receives no more.
    deaf: AtomicBool,
}

/// A program's end of a connection.
#[derive(Debug)]
pub struct HostStream {
    // Dropped in this order: whoever reads the end finds the program gone.
    program: Arc<Program>,
    socket: TcpStream,
}

impl HostStream {
    /// Whether reading and writing wait.
    ///
    /// # Errors
    /// The error of `ioctlsocket`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    /// How long reading waits at most (`None`: for ever).
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// The error of `shutdown`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// No handle is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { program: Arc::clone(&self.program), socket: self.socket.try_clone()? })
    }
}

impl AsSocket for HostStream {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }
}

impl Read for &HostStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(into)
    }
}

impl Write for &HostStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.program.deaf.load(Ordering::Acquire) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        (&self.socket).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for HostStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
}

impl Write for HostStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&*self).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The device's end of a connection.
#[derive(Debug)]
pub(in super::super) struct DeviceEnd {
    /// `None`: the program is another process, which came by a path or was reached by one.
    program: Option<Weak<Program>>,
    socket: TcpStream,
}

impl From<OwnedFd> for DeviceEnd {
    /// One of a connection by a path. To std it is a stream like any other: nothing here asks for its addresses.
    fn from(socket: OwnedFd) -> Self {
        Self { program: None, socket: socket.into() }
    }
}

impl DeviceEnd {
    pub(in super::super) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

impl AsSocket for DeviceEnd {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }
}

impl Read for &DeviceEnd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(into)
    }
}

impl Drop for DeviceEnd {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        // Closed with bytes unread it would reset the connection, and the program lose what it has not read yet.
        let mut bytes = [0; 4096];
        let mut left = UNREAD;
        while let (1.., Ok(count @ 1..)) = (left, self.socket.read(&mut bytes)) {
            left = left.saturating_sub(count);
        }
    }
}

/// Both ends of a connection; neither blocks.
pub(in super::super) fn pair() -> io::Result<(DeviceEnd, HostStream)> {
    let meeting = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let theirs = TcpStream::connect(meeting.local_addr()?)?;
    let expected = theirs.local_addr()?;
    let ours = (0..STRANGERS)
        .find_map(|_| match meeting.accept() {
            Ok((_, peer)) if peer != expected => None,
            accepted => Some(accepted),
        })
        .unwrap_or_else(|| Err(io::ErrorKind::ConnectionRefused.into()))?
        .0;
    for socket in [&ours, &theirs] {
        sockopt::set_socket_send_buffer_size(socket, BUFFER)?;
        sockopt::set_socket_recv_buffer_size(socket, BUFFER)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
    }
    let program = Arc::<Program>::default();
    let ours = DeviceEnd { program: Some(Arc::downgrade(&program)), socket: ours };
    Ok((ours, HostStream { program, socket: theirs }))
}

/// Whether the other end, which said its last byte, takes none either. Of another process it is not known: sending fails.
pub(in super::super) fn is_gone(end: &DeviceEnd) -> bool {
    end.program.as_ref().is_some_and(|program| program.strong_count() == 0)
}

/// Ends one direction or both for the program at the other end. Another process is not told that the guest receives no
/// more: its bytes stay where they are.
pub(in super::super) fn shutdown(end: &DeviceEnd, how: Shutdown) {
    if how != Shutdown::Write
        && let Some(program) = end.program.as_ref().and_then(Weak::upgrade)
    {
        // A socket that is shut for reading resets the connection when something comes.
        program.deaf.store(true, Ordering::Release);
    }
    if how != Shutdown::Read {
        // It fails only when the other end is gone, and then there is nothing to end.
        let _ = end.socket.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_read_is_no_reset_and_the_programs_end_is_known() {
        let (ours, mut theirs) = pair().unwrap();
        theirs.set_nonblocking(false).unwrap();
        theirs.write_all(b"never read").unwrap();
        (&ours.socket).write_all(b"last").unwrap();
        assert!(!is_gone(&ours));
        drop(ours);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last");
        let (ours, theirs) = pair().unwrap();
        let again = theirs.try_clone().unwrap();
        drop(theirs);
        assert!(!is_gone(&ours));
        drop(again);
        assert!(is_gone(&ours));
    }

    #[test]
    fn a_program_whose_guest_is_deaf_cannot_write_and_reads_on() {
        let (ours, mut theirs) = pair().unwrap();
        theirs.set_nonblocking(false).unwrap();
        shutdown(&ours, Shutdown::Read);
        assert_eq!(theirs.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        (&ours.socket).write_all(b"heard").unwrap();
        shutdown(&ours, Shutdown::Write);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"heard");
    }

    #[test]
    fn a_program_of_another_process_is_not_known_to_be_gone_and_reads_to_the_end() {
        let meeting = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut theirs = TcpStream::connect(meeting.local_addr().unwrap()).unwrap();
        let ours = DeviceEnd::from(crate::os::accept(&meeting).unwrap());
        theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
        assert!(!is_gone(&ours));
        shutdown(&ours, Shutdown::Read);
        (&ours.socket).write_all(b"last").unwrap();
        shutdown(&ours, Shutdown::Both);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last");
    }
}
