//! Frames by a descriptor that takes and gives one with every call: a tap of the host's kernel. They are as long as its
//! MTU allows and their checksums finished.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use super::{Backend, Delivery, Frame, MAX_FRAME, Offloads, Outgoing, Port};
use crate::event::{Ready, Token};
use crate::virtio::Error;

/// The one source that is watched.
const TAP: Token = 0;
/// Nothing shorter has a destination, a source and a type.
const LEAST_FRAME: usize = 14;
/// Bytes taken from the tap in one call, at most about.
const MOST_READ: usize = 1 << 20;

/// See the module's description. A tap that is taken away is a cable that was pulled; one that is down loses frames.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// The guest's frame that the tap did not take yet, or nothing; others stay in the ring meanwhile.
    unsent: Vec<u8>,
    /// Room for one frame, and how much of it was received and not delivered yet.
    received: Vec<u8>,
    waiting: usize,
    watched: Option<Ready>,
    is_gone: bool,
}

impl Tap {
    /// A back end that speaks through `file`, which does not block.
    #[must_use]
    pub fn new(file: File) -> Self {
        let received = vec![0; MAX_FRAME];
        Self { file, unsent: Vec::new(), received, waiting: 0, watched: None, is_gone: false }
    }

    /// Sends the frame that waits, if the tap takes it.
    fn flush(&mut self, port: &mut Port<'_>) {
        while !self.unsent.is_empty() && !self.is_gone {
            match self.file.write(&self.unsent) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_end(&error) => self.leave(&error, port),
                // It is down, or has no memory now, or the frame is none to it: as on any wire, it is lost.
                Err(error) => log::debug!("the tap takes no frame: {error}"),
                Ok(_) => {}
            }
            self.unsent.clear();
        }
    }

    /// Takes what has come, frame by frame; says whether the guest has room for more.
    fn receive(&mut self, port: &mut Port<'_>) -> Result<bool, Error> {
        let mut total = 0;
        loop {
            let frame = self.received.get(..self.waiting).unwrap_or_default();
            if frame.len() >= LEAST_FRAME
                && port.deliver(&Outgoing { head: frame, ..Outgoing::default() })? == Delivery::NoRoom
            {
                return Ok(false);
            }
            total += self.waiting;
            self.waiting = 0;
            if self.is_gone || total >= MOST_READ {
                return Ok(true);
            }
            match self.file.read(&mut self.received) {
                Ok(0) => self.leave(&io::ErrorKind::UnexpectedEof.into(), port),
                Ok(count) => self.waiting = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_end(&error) => self.leave(&error, port),
                Err(error) => {
                    log::debug!("the tap gives no frame: {error}");
                    return Ok(true);
                }
            }
        }
    }

    /// The tap is gone.
    fn leave(&mut self, error: &io::Error, port: &mut Port<'_>) {
        log::error!("the container's tap is gone: {error}");
        self.is_gone = true;
        port.ask();
        if self.watched.take().is_some() {
            port.unwatch(self.file.as_fd());
        }
    }

    /// Waits for what is of use now.
    fn watch(&mut self, wanted: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        if self.is_gone || self.watched == Some(wanted) {
            return Ok(());
        }
        let source = self.file.as_fd();
        let done = match self.watched {
            None => port.watch(source, TAP, wanted),
            Some(_) => port.rewatch(source, TAP, wanted),
        };
        done.map_err(|source| Error::Host { doing: "watching the tap", source })?;
        self.watched = Some(wanted);
        Ok(())
    }
}

/// Whether nothing will come or go any more: the tap was deleted, or is no tap's descriptor.
fn is_end(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // Linux says EBADFD of a tap that was deleted.
    #[cfg(target_os = "linux")]
    if error.raw_os_error() == Some(Errno::BADFD.raw_os_error()) {
        return true;
    }
    let ends = [Errno::BADF, Errno::NODEV, Errno::CONNRESET, Errno::PIPE];
    error.raw_os_error().is_some_and(|code| ends.contains(&Errno::from_raw_os_error(code)))
}

impl Backend for Tap {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.watch(Ready::READ, port)
    }

    fn is_ready(&self) -> bool {
        self.unsent.is_empty()
    }

    fn transmit(&mut self, mut frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let length = frame.data.len();
        if self.is_gone || length < LEAST_FRAME {
            return Ok(());
        }
        self.unsent.resize(length, 0);
        if frame.data.read_exact(&mut self.unsent).is_err() {
            self.unsent.clear();
            return Err(Error::Guest("a frame lies outside of memory".into()));
        }
        self.flush(port);
        Ok(())
    }

    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        let read = self.receive(port)?;
        self.watch(Ready { read, write: !self.unsent.is_empty(), hang_up: false }, port)
    }

    fn on_host(&mut self, _: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        // It is told again and again; what the guest has no room for is lost.
        if ready.hang_up && self.watched.is_some_and(|watched| !watched.read) {
            self.leave(&io::ErrorKind::NotConnected.into(), port);
        }
        if ready.write {
            self.flush(port);
            if self.is_ready() {
                port.ask();
            }
        }
        Ok(())
    }

    fn stop(&mut self, port: &mut Port<'_>) {
        if self.watched.take().is_some() {
            port.unwatch(self.file.as_fd());
        }
        self.unsent.clear();
        self.waiting = 0;
    }
}

// They stand a socket that keeps frames apart in for the tap, which other systems do not have.
#[cfg(all(test, target_os = "linux"))]
mod tests;
