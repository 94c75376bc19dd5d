//! Frames over a stream socket, each behind its length in four bytes (big-endian): what `passt`, QEMU's `-netdev stream` and
//! switches in other processes speak. Frames there are as long as the MTU allows and their checksums finished.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{Backend, Delivery, Frame, MAX_FRAME, Offloads, Outgoing, Port};
use crate::event::{Ready, Token};
use crate::virtio::Error;

/// The one source that is watched.
const SOCKET: Token = 0;
/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Nothing shorter has a destination, a source and a type.
const LEAST_FRAME: usize = 14;
/// Bytes for the socket that may wait: above, the guest's frames stay in its ring.
const MOST_UNSENT: usize = 256 << 10;
/// Bytes taken from the socket in one call, at most about.
const MOST_READ: usize = 1 << 20;

/// See the module's description. When the other end goes, the guest's frames are lost, as on a cable that was pulled.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Not sent yet; begins within a frame or with one.
    unsent: Vec<u8>,
    /// The guest has frames that were left in its ring: they are asked for when the socket takes more.
    was_full: bool,
    /// Room for two frames, and where in it is what was received and not delivered yet.
    received: Vec<u8>,
    waiting: Range<usize>,
    watched: Option<Ready>,
    is_gone: bool,
}

impl Stream {
    /// A back end that speaks through `socket`.
    ///
    /// # Errors
    /// The socket does not take the non-blocking mode.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let received = vec![0; 2 * (LENGTH + MAX_FRAME)];
        Ok(Self {
            socket,
            unsent: Vec::new(),
            was_full: false,
            received,
            waiting: 0..0,
            watched: None,
            is_gone: false,
        })
    }

    /// Sends what the socket takes.
    fn flush(&mut self, port: &mut Port<'_>) {
        let mut sent = 0;
        while let Some(rest) = self.unsent.get(sent..).filter(|rest| !rest.is_empty() && !self.is_gone) {
            match self.socket.write(rest) {
                Ok(0) => self.leave(None, port),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.leave(Some(&error), port),
            }
        }
        self.unsent.drain(..sent.min(self.unsent.len()));
    }

    /// Gives the guest the frames that have come; says whether more can be taken from the socket.
    fn deliver(&mut self, port: &mut Port<'_>) -> Result<bool, Error> {
        loop {
            let waiting = self.received.get(self.waiting.clone()).unwrap_or_default();
            let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else { break };
            let length = u32::from_be_bytes(*length) as usize;
            if !(LEAST_FRAME..=MAX_FRAME).contains(&length) {
                log::error!(
                    "the network's other end sends a frame of {length} bytes: it is not listened to any more"
                );
                self.leave(None, port);
                return Ok(false);
            }
            let Some(frame) = rest.get(..length) else { break };
            if port.deliver(&Outgoing { head: frame, ..Outgoing::default() })? == Delivery::NoRoom {
                return Ok(false);
            }
            self.waiting.start += LENGTH + length;
        }
        // A frame begins here: there is room for the rest of it.
        self.received.copy_within(self.waiting.clone(), 0);
        self.waiting = 0..self.waiting.len();
        Ok(true)
    }

    /// Takes what has come, one buffer at a time; says whether the guest has room for more.
    fn receive(&mut self, port: &mut Port<'_>) -> Result<bool, Error> {
        let mut total = 0;
        while self.deliver(port)? {
            if self.is_gone || total >= MOST_READ {
                return Ok(true);
            }
            match self.socket.read(self.received.get_mut(self.waiting.end..).unwrap_or_default()) {
                Ok(0) => self.leave(None, port),
                Ok(count) => {
                    self.waiting.end += count;
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.leave(Some(&error), port),
            }
        }
        Ok(self.is_gone)
    }

    /// The other end is gone.
    fn leave(&mut self, error: Option<&io::Error>, port: &mut Port<'_>) {
        match error {
            Some(error) => log::error!("the network's other end is lost: {error}"),
            None => log::error!("the network's other end is gone"),
        }
        self.is_gone = true;
        self.unsent = Vec::new();
        port.ask();
        if self.watched.take().is_some() {
            port.unwatch(self.socket.as_fd());
        }
    }

    /// Waits for what is of use now.
    fn watch(&mut self, wanted: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        if self.is_gone || self.watched == Some(wanted) {
            return Ok(());
        }
        let source = self.socket.as_fd();
        let done = match self.watched {
            None => port.watch(source, SOCKET, wanted),
            Some(_) => port.rewatch(source, SOCKET, wanted),
        };
        done.map_err(|source| Error::Host { doing: "watching the network's socket", source })?;
        self.watched = Some(wanted);
        Ok(())
    }
}

impl Backend for Stream {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.watch(Ready::READ, port)
    }

    fn is_ready(&self) -> bool {
        self.unsent.len() < MOST_UNSENT
    }

    fn transmit(&mut self, mut frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let length = frame.data.len();
        if self.is_gone || length < LEAST_FRAME {
            return Ok(());
        }
        let at = self.unsent.len();
        self.unsent.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        self.unsent.resize(at + LENGTH + length, 0);
        let room = self.unsent.get_mut(at + LENGTH..).unwrap_or_default();
        if frame.data.read_exact(room).is_err() {
            self.unsent.truncate(at);
            return Err(Error::Guest("a frame lies outside of memory".into()));
        }
        if !self.is_ready() {
            self.flush(port);
            self.was_full |= !self.is_ready();
        }
        Ok(())
    }

    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.flush(port);
        let read = self.receive(port)?;
        self.watch(Ready { read, write: self.was_full || !self.unsent.is_empty(), hang_up: false }, port)
    }

    fn on_host(&mut self, _: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        // It is told again and again; what the guest has no room for is lost.
        if ready.hang_up && self.watched.is_some_and(|watched| !watched.read) {
            self.leave(None, port);
        }
        if ready.write {
            self.flush(port);
            self.was_full = false;
            port.ask();
        }
        Ok(())
    }

    fn stop(&mut self, port: &mut Port<'_>) {
        // What was sent or received in part is finished when the driver is back: the other end counts bytes.
        if self.watched.take().is_some() {
            port.unwatch(self.socket.as_fd());
        }
    }
}

#[cfg(test)]
mod tests;
