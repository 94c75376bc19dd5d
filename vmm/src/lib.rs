//! The monitor as a library: virtual machines over one small hypervisor contract.
//!
//! It returns: no globals, no `exit`, no signal handlers, as many VMs in a process as memory allows. This example runs
//! on the fake hypervisor, whose guest is written in Rust; on a real one, leave `.hypervisor(..)` out and give the VM
//! a `.kernel(path)`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use servin_devices::virtio::rng::Rng;
//! use servin_vmm::hv::fake::Fake;
//! use servin_vmm::layout::VIRTIO_BASE;
//! use servin_vmm::{ExitReason, Mark, VmBuilder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fake = Fake::new();
//! let vm = VmBuilder::new()
//!     .hypervisor(Arc::new(fake.clone()))
//!     .memory_mib(64)
//!     .cpus(2)
//!     .device(Box::new(Rng::new()))
//!     .build()?;
//! vm.start()?;
//!
//! // The guest's side: "virt", the magic value of virtio-mmio, then a power-off through the hypervisor.
//! let cpu = fake.cpu(1).ok_or("the VM has two vCPUs")?;
//! assert_eq!(cpu.read32(VIRTIO_BASE), 0x7472_6976);
//!
//! vm.pause()?;
//! vm.resume()?;
//!
//! cpu.power_off();
//! assert_eq!(vm.wait()?, ExitReason::Off);
//! assert!(vm.timeline().between(Mark::Created, Mark::Exit).is_some());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod boot;
mod builder;
mod config;
pub mod error;
mod event;
mod gate;
pub mod hv;
pub mod layout;
pub mod memory;
mod platform;
mod snapshot;
mod timeline;
mod trace;
mod vcpu;
mod vm;
mod written;

pub use boot::{Protocol, Source};
pub use builder::VmBuilder;
pub use config::Config;
pub use error::Error;
pub use event::{ExitReason, VmEvent};
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub use snapshot::fuzz_changes;
pub use snapshot::{Snapshot, SnapshotId};
pub use timeline::{Mark, Timeline};
pub use trace::{Access, Accesses};
pub use vm::Vm;
