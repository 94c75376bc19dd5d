//! Between descriptors and guest memory: the kernel reads and writes the guest's pages itself.

// A leaf that may use unsafe: it passes guest pages to readv-like system calls, which no safe crate offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use vm_memory::VolatileSlice;

use super::{Slice, mark_dirty};

/// An open file.
pub type FileRef<'a> = BorrowedFd<'a>;
/// An open stream: socket, pipe, character device.
pub type StreamRef<'a> = BorrowedFd<'a>;

#[cfg(not(target_os = "linux"))]
use libc::{preadv, pwritev};
#[cfg(target_os = "linux")]
use libc::{preadv64 as preadv, pwritev64 as pwritev};

/// Raise no signal. Where a send cannot say so, the socket does (`os::quiet`).
#[cfg(target_os = "linux")]
const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;
#[cfg(not(target_os = "linux"))]
const NO_SIGNAL: libc::c_int = 0;

/// The most pieces handed to the kernel in one call (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// A file as the calls here take it.
#[must_use]
pub fn file_ref(file: &File) -> FileRef<'_> {
    file.as_fd()
}

/// Reads from `file` at `offset` into guest memory; returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// The error of `preadv(2)`.
pub fn read_at(file: BorrowedFd<'_>, into: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    transfer(into, true, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { preadv(file.as_raw_fd(), iov, count, offset.cast_signed()) }
    })
}

/// Writes guest memory to `file` at `offset`; returns the bytes written.
///
/// # Errors
/// The error of `pwritev(2)`.
pub fn write_at(file: BorrowedFd<'_>, from: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    transfer(from, false, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { pwritev(file.as_raw_fd(), iov, count, offset.cast_signed()) }
    })
}

/// Reads from a stream (socket, pipe, character device) into guest memory; returns the bytes read, 0 at the end.
///
/// # Errors
/// The error of `readv(2)`, `WouldBlock` among them.
pub fn read_stream(stream: BorrowedFd<'_>, into: &[Slice<'_>]) -> io::Result<usize> {
    transfer(into, true, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { libc::readv(stream.as_raw_fd(), iov, count) }
    })
}

/// Writes guest memory to a stream; returns the bytes written.
///
/// # Errors
/// The error of `writev(2)`, `WouldBlock` among them.
pub fn write_stream(stream: BorrowedFd<'_>, from: &[Slice<'_>]) -> io::Result<usize> {
    transfer(from, false, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { libc::writev(stream.as_raw_fd(), iov, count) }
    })
}

/// Sends guest memory on a socket, without blocking and without SIGPIPE; returns the bytes sent.
///
/// # Errors
/// The error of `sendmsg(2)`, `WouldBlock` and `BrokenPipe` among them.
pub fn send(socket: BorrowedFd<'_>, from: &[Slice<'_>]) -> io::Result<usize> {
    transfer(from, false, |iov, count| {
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.cast_mut();
        message.msg_iovlen = count as _;
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`);
        // sendmsg only reads the message and what it names.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, NO_SIGNAL | libc::MSG_DONTWAIT) }
    })
}

/// Runs `call` on the pieces and marks what it filled as dirty. The slices borrow the guest RAM, so their pages
/// stay mapped until `call` has returned.
fn transfer(
    pieces: &[Slice<'_>],
    fills: bool,
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let pieces = pieces.get(..MAX_PIECES).unwrap_or(pieces);
    let guards: Vec<_> = pieces.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let iov: Vec<libc::iovec> =
        guards.iter().map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() }).collect();
    let count = libc::c_int::try_from(iov.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let done = loop {
        match usize::try_from(call(iov.as_ptr(), count)) {
            Ok(done) => break done,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    if fills {
        mark_dirty(pieces, done);
    }
    Ok(done)
}
