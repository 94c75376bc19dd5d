//! Events between threads, and waiting for them and for host sources (sockets, pipes, terminals).
//!
//! [`Event`] is a doorbell that one thread rings and another waits on; [`Poller`] waits for many events and
//! host sources at once; a [`Timer`] is such a source. The virtio worker is the only caller that loops on a poller. Each platform has its
//! own leaf file: Linux uses eventfd and the `event-manager` crate, macOS pipes and kqueue, Windows objects of its kernel,
//! one of them for all sockets of a poller.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{Event, Poller, Source, Timer};
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub use macos::{Event, Poller, Source, Timer};
#[cfg(test)]
mod tests;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::{Event, Poller, Source, Timer};

/// A socket, to be watched by a poller.
#[allow(clippy::useless_conversion, reason = "a source is not a descriptor on every host")]
pub fn socket(socket: &impl rustix::fd::AsFd) -> Source<'_> {
    socket.as_fd().into()
}

/// Names one watched event or host source to its watcher.
pub type Token = u32;

/// What to wait for on a host source, and what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// There is something to read, or the other side is gone (a read then says so).
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// Both directions are closed or the source failed. Reported whether asked for or not.
    pub hang_up: bool,
}

impl Ready {
    /// Waits for something to read.
    pub const READ: Self = Self { read: true, write: false, hang_up: false };
    /// Waits for room to write.
    pub const WRITE: Self = Self { read: false, write: true, hang_up: false };
    /// Waits for either.
    pub const BOTH: Self = Self { read: true, write: true, hang_up: false };
    /// Waits for nothing but a hang-up.
    pub const NONE: Self = Self { read: false, write: false, hang_up: false };
}
