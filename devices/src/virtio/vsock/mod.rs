//! The socket device (virtio 1.2, 5.10): stream sockets between programs in the guest and on the host.
//!
//! - `packet`: the header of a packet.
//! - `conn`: one connection as a pure state machine, with credit and half closes.
//! - `stream`, `host`: the host's ends, in this process and by Unix sockets; `socket`: what of them hosts have differently.
//! - `link`: a connection put together from these.
//! - `mux`: all of them, and whose turn it is.
//!
//! This file moves chains between the rings and the mux, and never sees a socket.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use servin_devices::virtio::vsock::{Vsock, VsockHost};
//!
//! let host = VsockHost::new()?;
//! let agent = host.listen(1024)?;
//! let device = Vsock::new(3, &host)?;
//! // ... give the device to a transport, start the guest ...
//! let stream = agent.accept(None)?;
//! # let _ = (device, stream);
//! # Ok(())
//! # }
//! ```

mod conn;
mod host;
mod link;
mod mux;
pub mod packet;
mod socket;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::host::Shared;
use self::mux::{FIRST_TOKEN, Mux};
use self::packet::{HEADER_LEN, Header};
use super::{ConfigSpace, Error, Io, VirtioDevice, id};
use crate::event::{Ready, Token};
use crate::state::{self, State, StateError};

pub use self::host::{Listener, VsockHost};
pub use self::socket::HostStream;

/// Packets to the guest.
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// Events for the guest.
const EVENT: u16 = 2;

const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const FEATURES: u64 = 1;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

const WAKE: Token = 0;
const TIMER: Token = 1;
const LISTENER: Token = 2;
const _: () = assert!(LISTENER < FIRST_TOKEN);

/// Packets taken from the guest, and sent to it, before other sources get their turn.
const BUDGET: u32 = 256;

/// Host programs taken from the listening socket before other sources get their turn.
const ACCEPTS: u32 = 16;

/// How long to wait when no more can be taken.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a device allows itself and the guest.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, those that are being made or closed among them. Further ones are reset. At least 1.
    pub connections: usize,
    /// Bytes that the guest may send ahead of what the host takes, for each connection.
    pub buffer: u32,
    /// How long the guest may take to answer when the host connects.
    pub connect_timeout: Duration,
    /// How long the guest may take to confirm the end of a connection.
    pub close_timeout: Duration,
}

impl Default for Limits {
    /// 1023 connections of 256 KiB, 10 s to connect, 10 s to close.
    fn default() -> Self {
        Self {
            connections: 1023,
            buffer: 256 * 1024,
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(10),
        }
    }
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    config: ConfigSpace,
    host: Arc<Shared>,
    mux: Mux,
    /// The guest has to hear that its connections are no more.
    owes_reset_event: bool,
    /// When to accept host programs again.
    accept_again: Option<Instant>,
}

/// What a snapshot keeps: connections do not survive it.
#[derive(Debug, Serialize, Deserialize)]
struct VsockState {
    cid: u64,
}

impl State for VsockState {
    const NAME: &'static str = "vsock";
    const VERSION: u16 = 1;
}

impl Vsock {
    /// A device for the guest with context id `cid` (3 or more), whose host side is `host`. A host side serves
    /// one device.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(cid: u64, host: &VsockHost) -> io::Result<Self> {
        Self::with_limits(cid, host, Limits::default())
    }

    /// As [`Self::new`], with other limits.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn with_limits(cid: u64, host: &VsockHost, limits: Limits) -> io::Result<Self> {
        let host = host.shared();
        Ok(Self {
            cid,
            config: ConfigSpace::new(cid.to_le_bytes().to_vec()),
            mux: Mux::new(cid, limits, Arc::clone(&host))?,
            host,
            owes_reset_event: false,
            accept_again: None,
        })
    }

    /// Takes in what the guest sent, and fills its buffers with what there is to send.
    fn work(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        loop {
            self.take_packets(io)?;
            let was_clogged = self.mux.is_clogged();
            self.send_packets(io)?;
            if !was_clogged || self.mux.is_clogged() {
                return Ok(());
            }
        }
    }

    fn take_packets(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        for _ in 0..BUDGET {
            if self.mux.is_clogged() {
                break;
            }
            let Some(chain) = io.pop(TX)? else { break };
            let mut reader = chain.reader(&mem);
            match Header::read(&mut reader) {
                Some(header) => self.mux.receive(&header, &mut reader, io),
                None => self.mux.fault("a packet without a header"),
            }
            io.complete(TX, chain, 0)?;
        }
        Ok(())
    }

    fn send_packets(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        for _ in 0..BUDGET {
            if !self.mux.wants_to_send() {
                return Ok(());
            }
            let Some(chain) = io.pop(RX)? else { return Ok(()) };
            let writer = chain.writer(&mem);
            if writer.len() <= HEADER_LEN {
                self.mux.fault("a buffer without room for data");
                io.complete(RX, chain, 0)?;
                continue;
            }
            match self.mux.fill(writer, io) {
                Some(written) => io.complete(RX, chain, written)?,
                None => io.unpop(RX, chain),
            }
        }
        // There may be more: come back after the others had their turn.
        self.host.wake().signal();
        Ok(())
    }

    fn send_event(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        if !self.owes_reset_event {
            return Ok(());
        }
        let mem = io.mem();
        while let Some(chain) = io.pop(EVENT)? {
            let mut writer = chain.writer(&mem);
            let sent = writer.len() >= TRANSPORT_RESET.len() && writer.write_obj(&TRANSPORT_RESET);
            let written = writer.written();
            io.complete(EVENT, chain, written)?;
            if sent {
                self.owes_reset_event = false;
                break;
            }
        }
        Ok(())
    }

    /// Takes in host programs that connected to the path.
    fn greet(&mut self, io: &mut dyn Io) {
        for _ in 0..ACCEPTS {
            match self.host.accept() {
                Ok(stream) => self.mux.greet(stream, io),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // No descriptor is left: the socket would stay ready for ever.
                    log::warn!("vsock: accepting a connection: {error}; trying again in {ACCEPT_PAUSE:?}");
                    if let Some(listener) = self.host.listener() {
                        let _ = io.unwatch(listener);
                        self.accept_again = Some(self.mux.arm(Instant::now() + ACCEPT_PAUSE));
                    }
                    break;
                }
            }
        }
    }

    /// The timer rang.
    fn expire(&mut self, io: &mut dyn Io) -> io::Result<()> {
        self.mux.expire(io);
        match (self.accept_again, self.host.listener()) {
            (Some(again), Some(listener)) if again <= Instant::now() => {
                self.accept_again = None;
                io.watch(listener, LISTENER, Ready::READ)?;
            }
            (Some(again), _) => drop(self.mux.arm(again)),
            (None, _) => {}
        }
        Ok(())
    }

    fn watch_sources(&self, io: &mut dyn Io) -> io::Result<()> {
        io.watch(self.host.wake().source(), WAKE, Ready::READ)?;
        io.watch(self.mux.timer().source(), TIMER, Ready::READ)?;
        if let Some(listener) = self.host.listener() {
            io.watch(listener, LISTENER, Ready::READ)?;
        }
        Ok(())
    }
}

fn watching(source: io::Error) -> Error {
    Error::Host { doing: "watching the sources of a socket device", source }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        id::VSOCK
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, _: u64, io: &mut dyn Io) -> Result<(), Error> {
        self.watch_sources(io).map_err(watching)?;
        self.send_event(io)?;
        self.mux.dial(io);
        self.work(io)
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        if queue == EVENT { self.send_event(io) } else { self.work(io) }
    }

    fn on_host(&mut self, token: Token, ready: Ready, io: &mut dyn Io) -> Result<(), Error> {
        match token {
            WAKE => {
                self.host.wake().take();
                self.mux.dial(io);
            }
            TIMER => self.expire(io).map_err(watching)?,
            LISTENER => self.greet(io),
            _ => self.mux.on_host(token, ready, io),
        }
        self.work(io)
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        // The configuration is read-only.
        Ok(())
    }

    fn stop(&mut self, io: &mut dyn Io) {
        // What the guest sent before it reset the device or went off still belongs to the host. A broken ring has
        // nothing more to give.
        let _ = self.take_packets(io);
        self.mux.clear(io);
        self.accept_again = None;
        let _ = io.unwatch(self.host.wake().source());
        let _ = io.unwatch(self.mux.timer().source());
        if let Some(listener) = self.host.listener() {
            let _ = io.unwatch(listener);
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode(&VsockState { cid: self.cid })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let VsockState { cid } = state::decode(state)?;
        if cid != self.cid {
            let why = format!("context id {cid}, this device has {}", self.cid);
            return Err(StateError::Mismatch { what: VsockState::NAME, why });
        }
        self.owes_reset_event = true;
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.host.close();
    }
}
