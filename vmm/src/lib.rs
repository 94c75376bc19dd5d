//! The monitor as a library: virtual machines over one small hypervisor contract.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod error;
pub mod hv;

pub use error::Error;
