//! Everything a guest can touch: the bus, the virtio-mmio devices, the serial port, the power device.
//!
//! This crate knows no hypervisor and no host policy. The floors inside it, lowest first:
//!
//! 1. contracts: [`mem`], [`irq`], [`bus`], [`event`], [`lock`], [`state`];
//! 2. the virtio transport: [`virtio::chain`] and its neighbours;
//! 3. the devices themselves.
//!
//! Devices are state machines without threads: the virtio worker (or a test) calls them.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod bus;
pub mod event;
pub mod irq;
pub mod lock;
pub mod mem;
pub mod os;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
