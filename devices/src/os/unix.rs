//! What the Unix hosts have alike.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::net::SocketAddrUnix;

/// Where the Unix socket at a path is found.
///
/// # Errors
/// The path is too long.
pub(crate) fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(path)?)
}

/// Connects a socket to the Unix socket at an address: at once, or its queue is full (`EAGAIN`).
pub(crate) fn connect_unix(socket: &OwnedFd, address: &SocketAddrUnix) -> io::Result<()> {
    Ok(rustix::net::connect(socket, address)?)
}

/// Whether the file is a Unix socket, and no link to one.
pub(crate) fn is_unix_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// Lets the owner of a Unix socket alone connect to it.
pub(crate) fn keep_to_owner(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}
