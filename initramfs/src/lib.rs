//! What host and guest of a servin virtual machine share.
//!
//! - [`proto`]: the wire between the engine on the host and the agent, which is PID 1 of the guest.
//! - [`cpio`]: the writer of the initial RAM file system that the agent travels in.
//!
//! The crate has no dependencies and needs only `alloc`, so that the freestanding agent
//! (`initramfs/agent`) is built from the same source as the host's side.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cpio;
pub mod proto;
