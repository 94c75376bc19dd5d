//! Linux.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Sends on a socket do not wait; where its other side is gone they fail, and raise no signal.
pub(crate) const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);
/// Receives do not wait.
pub(crate) const RECEIVE: RecvFlags = RecvFlags::DONTWAIT;
/// What connecting a socket says that does not wait for it.
pub(crate) const CONNECTING: Errno = Errno::INPROGRESS;

/// Fills `bytes` with random ones, of the quality that keys need.
///
/// # Errors
/// The error of `getrandom(2)`.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

/// A socket that does not block and that no other program inherits.
pub(crate) fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
}

/// The next connection to a listening socket, which no other program inherits.
pub(crate) fn accept<Fd: AsFd>(socket: Fd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(socket, SocketFlags::CLOEXEC)
}

/// Makes sends on a socket raise no signal, where that is said of the socket and not of each send.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn quiet<Fd: AsFd>(_: Fd) -> io::Result<()> {
    Ok(())
}

/// Whether a socket's error says that nobody listens there.
pub(crate) fn is_closed_port(errno: Errno) -> bool {
    errno == Errno::CONNREFUSED
}

/// Whether a socket's error says that it is not allowed.
pub(crate) fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM)
}

/// Gives the blocks of a range back, so that it reads as zeroes; false where that cannot be done.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    fallocate(file, FallocateFlags::PUNCH_HOLE, offset, len)
}

/// Zeroes a range and keeps its blocks; false where that cannot be done but by writing.
pub(crate) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    fallocate(file, FallocateFlags::ZERO_RANGE, offset, len)
}

fn fallocate(file: &File, what: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, what | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
