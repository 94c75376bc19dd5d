//! What makes virtual machines containers: images, containers, volumes, and the store that remembers them.
//!
//! Used by `servin-cli`. Values that come from an image, an archive or a guest never panic here: the lints below are
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

pub mod erofs;
mod error;
pub mod image;
pub mod store;

pub use error::{Error, Result};
