//! Guest memory as devices see it: shared, volatile, dirty-tracked when asked.
//!
//! Guest memory is never a `&[u8]`: another vCPU may change it at any time. Devices copy headers out once and
//! move payload between [`Slice`]s and files with [`read_at`] and its siblings, which hand the kernel the guest
//! pages themselves.

// A leaf that may use unsafe: it passes guest pages to readv-like system calls, which no safe crate offers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, BitmapSlice, MS};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// The RAM of one guest. A region has a bitmap of pages written by devices when dirty tracking was asked for.
pub type GuestRam = GuestMemoryMmap<Option<AtomicBitmap>>;

/// Guest RAM shared between the monitor, vCPUs and device workers.
pub type Mem = Arc<GuestRam>;

/// A checked piece of guest memory.
pub type Slice<'a> = VolatileSlice<'a, MS<'a, GuestRam>>;

/// The most pieces handed to the kernel in one call (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Reads from `file` at `offset` into guest memory; returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// The error of `preadv(2)`.
pub fn read_at(file: BorrowedFd<'_>, into: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    transfer(into, true, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { libc::preadv64(file.as_raw_fd(), iov, count, offset.cast_signed()) }
    })
}

/// Writes guest memory to `file` at `offset`; returns the bytes written.
///
/// # Errors
/// The error of `pwritev(2)`.
pub fn write_at(file: BorrowedFd<'_>, from: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    transfer(from, false, |iov, count| {
        // SAFETY: `iov` names `count` pieces of guest memory that stay mapped during the call (see `transfer`).
        unsafe { libc::pwritev64(file.as_raw_fd(), iov, count, offset.cast_signed()) }
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
        unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        }
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

fn mark_dirty<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], mut done: usize) {
    for piece in pieces {
        let part = piece.len().min(done);
        piece.bitmap().mark_dirty(0, part);
        done -= part;
        if done == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use vm_memory::bitmap::Bitmap as _;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

    use super::*;

    fn ram() -> GuestRam {
        let size = 0x4000;
        let page = std::num::NonZero::new(0x1000).unwrap();
        let region =
            vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(size, Some(AtomicBitmap::new(size, page)))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
                .build();
        GuestRam::from_regions(vec![GuestRegionMmap::new(region.unwrap(), GuestAddress(0)).unwrap()]).unwrap()
    }

    #[test]
    fn a_file_is_read_into_scattered_guest_memory_and_marked_dirty() {
        let ram = ram();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pieces =
            [ram.get_slice(GuestAddress(0x10), 3).unwrap(), ram.get_slice(GuestAddress(0x2000), 4).unwrap()];
        assert_eq!(read_at(file.as_fd(), &pieces, 1).unwrap(), 7);
        let mut got = [0; 4];
        ram.read_slice(&mut got, GuestAddress(0x2000)).unwrap();
        assert_eq!(&got, b"4567");
        let region = ram.iter().next().unwrap();
        let dirty = |at| region.bitmap().as_ref().unwrap().dirty_at(at);
        assert!(dirty(0x10) && dirty(0x2000) && !dirty(0x1000) && !dirty(0x3000));
    }

    #[test]
    fn guest_memory_is_sent_on_a_socket_until_it_is_full_or_gone() {
        let ram = ram();
        ram.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        let pieces =
            [ram.get_slice(GuestAddress(0x100), 2).unwrap(), ram.get_slice(GuestAddress(0x102), 3).unwrap()];
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(send(ours.as_fd(), &pieces).unwrap(), 5);
        let mut got = [0; 5];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        let page = [ram.get_slice(GuestAddress(0), 0x1000).unwrap()];
        let full = std::iter::from_fn(|| Some(send(ours.as_fd(), &page))).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(ours.as_fd(), &page).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn guest_memory_is_written_to_a_file_at_an_offset() {
        let ram = ram();
        ram.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(write_at(file.as_fd(), &[ram.get_slice(GuestAddress(0x100), 5).unwrap()], 2).unwrap(), 5);
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"\0\0hello");
    }
}
