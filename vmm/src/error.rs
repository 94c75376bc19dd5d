//! What can go wrong in the monitor. One enum for the crate; each variant says what was being done.

use std::io;

use servin_devices::bus::AttachError;
use servin_devices::state::StateError;

use crate::hv::Fault;

/// An error of the monitor. The source, where there is one, is not repeated in the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no hypervisor to use, or no permission to use it.
    #[error("no hypervisor: {why}")]
    NoHypervisor {
        /// Which one was tried, what it answered, what to do.
        why: String,
    },
    /// A call into the hypervisor failed.
    #[error("hypervisor: {doing}")]
    Hypervisor {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The hypervisor cannot do what was asked for.
    #[error("{what} is not possible here: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be, and what can be done about it.
        why: String,
    },
    /// The configuration contradicts itself or is out of range.
    #[error("bad configuration: {0}")]
    Config(String),
    /// A call into the host failed.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Guest memory could not be mapped.
    #[error("mapping {mib} MiB of guest memory")]
    Memory {
        /// The size asked for.
        mib: u64,
        /// The cause.
        source: io::Error,
    },
    /// The kernel or initramfs cannot be loaded.
    #[error("loading the {what}: {why}")]
    Boot {
        /// Kernel, initramfs, command line ...
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Two devices claim one address.
    #[error("attaching a device to the bus")]
    Bus(#[from] AttachError),
    /// Saved state cannot be used.
    #[error("saved state")]
    State(#[from] StateError),
    /// A snapshot file is not whole, not ours or not of this version.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// A device failed on the host side.
    #[error("device {device}")]
    Device {
        /// Which one.
        device: String,
        /// The cause.
        source: servin_devices::virtio::Error,
    },
    /// The guest did something that no vCPU can go on from.
    #[error("the guest stopped: {0}")]
    Fault(Fault),
    /// A thread of this VM panicked: a bug in the monitor. The VM was stopped.
    #[error("a bug in the monitor stopped the VM: {0}")]
    Panic(String),
    /// The VM is not in a state in which this can be done.
    #[error("cannot {what}: the VM {is}")]
    Lifecycle {
        /// What was asked for.
        what: &'static str,
        /// The state it is in.
        is: &'static str,
    },
}

impl Error {
    pub(crate) fn hypervisor(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Hypervisor { doing, source }
    }

    pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}
