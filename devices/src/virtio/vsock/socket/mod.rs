//! The sockets at the host's end: the form that is reached by a path, and the streams, of which each host has its own, in
//! one leaf file each.

mod path;
#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as host;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as host;

pub use host::HostStream;
pub(super) use host::{DeviceEnd, is_gone, pair, shutdown};
pub(super) use path::Bound;
#[cfg(test)]
pub(super) use path::dial;
