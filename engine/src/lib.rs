//! What makes virtual machines containers: images, containers, volumes, and the store that remembers them.
//!
//! Used by the command `servin`. Values that come from an image, an archive or a guest never panic here: the lints below are
//! errors outside tests.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable
    )
)]

pub mod container;
pub mod erofs;
mod error;
pub mod events;
pub mod ext4;
pub mod files;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::panic, clippy::expect_used)]
pub mod fuzz;
pub mod host;
pub mod image;
pub mod monitor;
pub mod network;
mod os;
pub mod process;
pub mod registry;
pub mod snapshot;
pub mod store;
pub mod template;
#[cfg(test)]
mod testing;
pub mod time;
mod trace;
pub mod volume;
pub mod watch;

pub use error::{Error, Result, chain};

/// Version of the protocol that engine and guest speak.
pub const GUEST_PROTOCOL: u32 = servin_init::proto::VERSION;

/// The guest kernel and initramfs.
pub use servin_guest_kernel as guest;
