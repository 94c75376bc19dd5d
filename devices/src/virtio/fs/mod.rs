//! File system sharing (virtio 1.2, section 5.11): a FUSE server over chains.
//!
//! [`vfs`] is the file system behind a share: [`host::HostFs`] passes a directory of the host through, [`memfs::MemFs`]
//! lives in memory, [`readonly::ReadOnly`] refuses changes to another one. The server knows the wire format and none
//! of them.
//!
//! Locks are the file system's: those of a directory of the host are taken on the host (`waiting.rs` has those who wait).

#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(target_os = "linux", allow(unreachable_pub))]
mod errno;
pub mod host;
mod locks;
pub mod memfs;
pub mod readonly;
mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vfs;
mod waiting;
mod wire;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::{ConfigSpace, Error, Io, VirtioDevice, id};
use crate::event::{Ready, Token};
use crate::state::StateError;
use server::Server;
use vfs::FileSystem;
use waiting::Waiting;

/// The longest tag in bytes (virtio 1.2, 5.11.4).
pub const TAG_MAX: usize = 36;

/// High-priority requests (forget, interrupt) and ordinary ones.
const QUEUE_SIZES: [u16; 2] = [64, 256];

/// The tag cannot name a share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("share tag {0:?} must have 1 to {TAG_MAX} bytes and no NUL")]
pub struct BadTag(String);

/// The file system device: one share.
#[derive(Debug)]
pub struct Fs {
    config: ConfigSpace,
    server: Server,
    waiting: Waiting,
}

impl Fs {
    /// Shares `fs` under `tag`.
    ///
    /// # Errors
    /// [`BadTag`].
    pub fn new(tag: &str, fs: Box<dyn FileSystem>) -> Result<Self, BadTag> {
        if tag.is_empty() || tag.len() > TAG_MAX || tag.contains('\0') {
            return Err(BadTag(tag.to_owned()));
        }
        let mut config = tag.as_bytes().to_vec();
        config.resize(TAG_MAX, 0);
        // num_request_queues
        config.extend(1_u32.to_le_bytes());
        Ok(Self { config: ConfigSpace::new(config), server: Server::new(fs), waiting: Waiting::new() })
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> u32 {
        id::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, features: u64, _: &mut dyn Io) -> Result<(), Error> {
        self.waiting.start(features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0);
        Ok(())
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        while let Some(chain) = io.pop(queue)? {
            let outcome = self.server.serve(chain.reader(&mem), chain.writer(&mem))?;
            self.waiting.settle(queue, chain, outcome, io)?;
            if self.server.take_unlocked() {
                self.waiting.retry(&mut self.server, io)?;
            }
        }
        Ok(())
    }

    fn on_host(&mut self, _: Token, _: Ready, io: &mut dyn Io) -> Result<(), Error> {
        self.waiting.ring(&mut self.server, io)
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self, io: &mut dyn Io) {
        self.waiting.stop(io);
        self.server.clear();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        if !self.waiting.is_empty() {
            let why = "a process of the guest waits for a lock; save it again when it has the lock".into();
            return Err(StateError::Mismatch { what: "a share", why });
        }
        self.server.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.server.restore(state)
    }
}
