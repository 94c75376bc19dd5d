//! macOS.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, sockopt};

/// Sends on a socket do not wait. That they raise no signal [`quiet`] says of the socket.
pub(crate) const SEND: SendFlags = SendFlags::DONTWAIT;
/// Receives do not wait.
pub(crate) const RECEIVE: RecvFlags = RecvFlags::DONTWAIT;
/// What connecting a socket says that does not wait for it.
pub(crate) const CONNECTING: Errno = Errno::INPROGRESS;

/// Fills `bytes` with random ones, of the quality that keys need.
///
/// # Errors
/// The system's device of random bytes cannot be read.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

/// A socket that does not block and that no other program inherits.
pub(crate) fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket(family, kind, protocol)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

/// The next connection to a listening socket, which no other program inherits.
pub(crate) fn accept<Fd: AsFd>(socket: Fd) -> Result<OwnedFd, Errno> {
    let accepted = rustix::net::accept(socket)?;
    rustix::io::fcntl_setfd(&accepted, FdFlags::CLOEXEC)?;
    Ok(accepted)
}

/// Makes sends on a socket raise no signal, where that is said of the socket and not of each send.
pub(crate) fn quiet<Fd: AsFd>(socket: Fd) -> io::Result<()> {
    Ok(sockopt::set_socket_nosigpipe(socket, true)?)
}

/// Whether a socket's error says that nobody listens there.
pub(crate) fn is_closed_port(errno: Errno) -> bool {
    errno == Errno::CONNREFUSED
}

/// Whether a socket's error says that it is not allowed.
pub(crate) fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM)
}

/// Gives the blocks of a range back, so that it reads as zeroes; false where that cannot be done. There is no such call for
/// any range: `fcntl(F_PUNCHHOLE)` wants whole blocks, which only the file system knows.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn punch_hole(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Zeroes a range and keeps its blocks; false where that cannot be done but by writing.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn zero_range(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}
