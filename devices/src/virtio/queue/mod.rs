//! A split ring as a device sees it (virtio 1.2, 2.7): [`Queue`] takes chains from it and gives them back.
//!
//! Two files give the same names: `vmm` stands on the `virtio-queue` crate, which does not build for Windows; `own` is
//! ours, taken there, and on every host with the feature `own-queue`, so that all tests run on it. A test holds the two
//! against each other.

#[cfg(any(test, windows, feature = "own-queue"))]
#[cfg_attr(not(any(windows, feature = "own-queue")), allow(dead_code))]
mod own;
#[cfg(all(test, not(windows)))]
mod tests;
#[cfg(not(windows))]
#[cfg_attr(feature = "own-queue", allow(dead_code))]
mod vmm;

#[cfg(any(windows, feature = "own-queue"))]
pub(super) use own::{Descriptors, Queue};
#[cfg(not(any(windows, feature = "own-queue")))]
pub(super) use vmm::{Descriptors, Queue};

use vm_memory::GuestAddress;

/// Where the driver put a ring, and how far it was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    /// The greatest size that the device offers.
    pub(super) max: u16,
    /// The size that the driver chose: a power of two.
    pub(super) size: u16,
    /// The descriptor table, on 16 bytes.
    pub(super) desc: u64,
    /// The ring of available chains, on 2 bytes.
    pub(super) avail: u64,
    /// The ring of used chains, on 4 bytes.
    pub(super) used: u64,
    /// `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub(super) event_idx: bool,
    /// Chains taken so far, modulo 2^16.
    pub(super) next_avail: u16,
    /// Chains given back so far, modulo 2^16.
    pub(super) next_used: u16,
}

/// Why a ring cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetupError {
    /// The size is no power of two or too great, or an address is not aligned.
    Shape,
    /// A part of it is not in guest RAM.
    OutOfRam,
}

/// One descriptor; an indirect one is never seen, its table takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    /// The device writes it.
    pub(super) writable: bool,
    /// Another one follows.
    pub(super) next: bool,
}
