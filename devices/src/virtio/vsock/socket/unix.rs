//! Unix sockets, in pairs.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// A program's end of a connection.
pub type HostStream = UnixStream;

/// The device's end of a connection.
pub(in super::super) type DeviceEnd = UnixStream;

/// Both ends of a connection; the program's does not block.
pub(in super::super) fn pair() -> io::Result<(DeviceEnd, HostStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

/// Whether the other end, which said its last byte, takes none either: here a hang-up says so.
pub(in super::super) fn is_gone(_: &DeviceEnd) -> bool {
    false
}

/// Ends one direction or both for the program at the other end.
pub(in super::super) fn shutdown(end: &DeviceEnd, how: Shutdown) {
    // It fails only when the other end is gone, and then there is nothing to end.
    let _ = end.shutdown(how);
}
