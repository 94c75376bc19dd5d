//! One connection of an event loop, the monitor's or a command's: it never blocks and keeps what could not be written yet.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// Nothing ever more: the peer is gone or has closed its direction.
    End,
}

/// A stream socket and its unsent bytes.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    out: Vec<u8>,
    sent: usize,
    broken: bool,
}

impl Link {
    /// Takes over a connection.
    ///
    /// # Errors
    /// If it cannot be made nonblocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Link { stream, out: Vec::new(), sent: 0, broken: false })
    }

    /// The buffer to append to; call [`Link::flush`] after it.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 && self.sent * 2 >= self.out.len() {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.out
    }

    /// Unsent bytes.
    pub fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether writing has failed: the peer is gone.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes what the socket takes. After a failure unsent bytes are dropped.
    pub fn flush(&mut self) {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) if count > 0 => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {
                    self.broken = true;
                    break;
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        if self.out.capacity() > 64 * 1024 {
            self.out.shrink_to(0);
        }
    }

    /// Reads once.
    pub fn read(&mut self, buf: &mut [u8]) -> Arrived {
        loop {
            return match self.stream.read(buf) {
                Ok(0) => Arrived::End,
                Ok(count) => Arrived::Bytes(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Arrived::Nothing,
                Err(_) => Arrived::End,
            };
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
