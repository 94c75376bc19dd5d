//! The sockets at the host's end, of which each host has its own; one leaf file each.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as host;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as host;

pub use host::HostStream;
pub(super) use host::{Bound, DeviceEnd, is_gone, pair, shutdown};
