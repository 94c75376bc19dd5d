//! Network card (virtio 1.2, section 5.1): frames between the guest and a [`Backend`].
//!
//! One pair of queues. Checksums and segmentation are offered as far as the back end does them, so that a frame is as
//! long as 64 KiB in both directions; received frames lie in merged buffers where the driver knows them. The device
//! keeps no frame: what the guest sends is taken at once or waits in the ring, and a back end that has a frame for the
//! guest and finds no room is called again when there is some.

pub mod header;
pub mod nat;
mod port;
#[cfg(unix)]
pub mod stream;
#[cfg(unix)]
pub mod switch;
#[cfg(unix)]
pub mod tap;
pub mod trunk;
pub mod wire;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net as bits;

use super::{ConfigSpace, Error, Io, VirtioDevice, id};
use crate::event::{Ready, Token};
use crate::state::{self, State, StateError};

pub use header::Header;
pub use port::{Delivery, Outgoing, Port, Segments};
pub use wire::Mac;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Receive buffers cost the guest memory when it brings the card up.
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// The longest frame: a segment of 64 KiB with its headers.
pub const MAX_FRAME: usize = 65_535 + 14 + 60;

/// What a back end does with long frames and unfinished checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// It takes frames whose checksum is unfinished.
    pub takes_unfinished: bool,
    /// It takes TCP segments longer than the MTU, to be cut by whoever sends them on.
    pub takes_long: bool,
}

/// What is on the other end of the wire. Called by the device's worker, one call at a time.
pub trait Backend: Send {
    /// What it can do.
    fn offloads(&self) -> Offloads;

    /// The driver is ready: sources may be watched from now on.
    ///
    /// # Errors
    /// A host fault.
    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error>;

    /// Whether it takes a frame now. If not, it calls for the guest's frames with [`Port::ask`].
    fn is_ready(&self) -> bool {
        true
    }

    /// A frame of the guest. One that is not understood is dropped.
    ///
    /// # Errors
    /// A host fault.
    fn transmit(&mut self, frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error>;

    /// The guest's frames of this call have all been taken, or there is room for frames again.
    ///
    /// # Errors
    /// A host fault, or a broken ring.
    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error>;

    /// A source that it watches is ready. [`Self::settle`] follows.
    ///
    /// # Errors
    /// A host fault, or a broken ring.
    fn on_host(&mut self, token: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error>;

    /// The driver is gone: drop every connection and unwatch every source.
    fn stop(&mut self, port: &mut Port<'_>);
}

/// A frame of the guest, still in its memory.
#[derive(Debug)]
pub struct Frame<'m> {
    /// Offloads that the guest asks for.
    pub header: Header,
    /// The frame itself, from the destination address on.
    pub data: super::Reader<'m>,
}

/// The device.
pub struct Net {
    config: ConfigSpace,
    backend: Box<dyn Backend>,
    features: u64,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("features", &self.features).finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this address, wired to `backend`.
    #[must_use]
    pub fn new(mac: Mac, backend: Box<dyn Backend>) -> Self {
        let mut config = mac.0.to_vec();
        // Status, number of queue pairs and MTU are there and not offered.
        config.resize(12, 0);
        Self { config: ConfigSpace::new(config), backend, features: 0 }
    }

    /// Takes the guest's frames while the back end does.
    fn transmit(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        while self.backend.is_ready() {
            let Some(chain) = io.pop(TRANSMIT)? else { break };
            let mut data = chain.reader(&mem);
            let Some(header) = Header::read(&mut data) else {
                return Err(Error::Guest(format!("a frame of {} bytes has no header", data.len())));
            };
            if data.len() <= MAX_FRAME {
                let mut port = Port::new(io, self.features);
                let taken = self.backend.transmit(Frame { header, data }, &mut port);
                port.finish();
                taken?;
            }
            io.complete(TRANSMIT, chain, 0)?;
        }
        Ok(())
    }

    fn settle(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut port = Port::new(io, self.features);
        let done = self.backend.settle(&mut port);
        let asked = port.finish();
        done?;
        if asked { self.transmit(io) } else { Ok(()) }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        id::NET
    }

    fn features(&self) -> u64 {
        let Offloads { takes_unfinished, takes_long } = self.backend.offloads();
        // What the guest can take is the driver's to say, and is used where it helps.
        let mut offered = 1 << bits::VIRTIO_NET_F_MAC
            | 1 << bits::VIRTIO_NET_F_MRG_RXBUF
            | 1 << bits::VIRTIO_NET_F_GUEST_CSUM
            | 1 << bits::VIRTIO_NET_F_GUEST_TSO4
            | 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
        if takes_unfinished {
            offered |= 1 << bits::VIRTIO_NET_F_CSUM;
        }
        if takes_unfinished && takes_long {
            offered |= 1 << bits::VIRTIO_NET_F_HOST_TSO4 | 1 << bits::VIRTIO_NET_F_HOST_TSO6;
        }
        offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, features: u64, io: &mut dyn Io) -> Result<(), Error> {
        self.features = features;
        let mut port = Port::new(io, features);
        let started = self.backend.start(&mut port);
        port.finish();
        started
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        if queue == TRANSMIT {
            self.transmit(io)?;
        }
        self.settle(io)
    }

    fn on_host(&mut self, token: Token, ready: Ready, io: &mut dyn Io) -> Result<(), Error> {
        let mut port = Port::new(io, self.features);
        let done = self.backend.on_host(token, ready, &mut port);
        let asked = port.finish();
        done?;
        if asked {
            self.transmit(io)?;
        }
        self.settle(io)
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        // The address can be written by old drivers only; the back end learns it from the frames.
        Ok(())
    }

    fn stop(&mut self, io: &mut dyn Io) {
        let mut port = Port::new(io, self.features);
        self.backend.stop(&mut port);
        port.finish();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode(&NetState {})
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        state::decode::<NetState>(bytes).map(|_| ())
    }
}

/// Nothing: connections end with the process that has their sockets, and a restored guest is told when it next uses one.
#[derive(Debug, Serialize, Deserialize)]
struct NetState {}

impl State for NetState {
    const NAME: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
