//! Between files or sockets and guest memory, through a buffer: for files there is no call that takes several pieces of
//! memory at any alignment.

use std::fs::File;
use std::io;
use std::os::windows::fs::FileExt as _;
use std::os::windows::io::BorrowedSocket;

use super::{Slice, mark_dirty};
use crate::os;

/// An open file.
pub type FileRef<'a> = &'a File;
/// An open stream: here a socket.
pub type StreamRef<'a> = BorrowedSocket<'a>;

/// The most bytes moved by one call.
const MOST: usize = 256 << 10;

/// A file as the calls here take it.
#[must_use]
pub fn file_ref(file: &File) -> FileRef<'_> {
    file
}

/// Reads from `file` at `offset` into guest memory; returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// The error of `ReadFile`.
pub fn read_at(file: FileRef<'_>, into: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let mut buffer = buffer(into);
    let done = again(|| file.seek_read(&mut buffer, offset))?;
    scatter(&buffer, done, into);
    Ok(done)
}

/// Writes guest memory to `file` at `offset`; returns the bytes written.
///
/// # Errors
/// The error of `WriteFile`.
pub fn write_at(file: FileRef<'_>, from: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let buffer = gather(from);
    again(|| file.seek_write(&buffer, offset))
}

/// Reads from a stream into guest memory; returns the bytes read, 0 at the end.
///
/// # Errors
/// The error of `recv`, `WouldBlock` among them.
pub fn read_stream(stream: StreamRef<'_>, into: &[Slice<'_>]) -> io::Result<usize> {
    let mut buffer = buffer(into);
    let done = again(|| Ok(rustix::net::recv(stream, &mut *buffer, os::RECEIVE)?.0))?;
    scatter(&buffer, done, into);
    Ok(done)
}

/// Sends guest memory on a socket that does not block; returns the bytes sent.
///
/// # Errors
/// The error of `send`, `WouldBlock` among them.
pub fn send(socket: StreamRef<'_>, from: &[Slice<'_>]) -> io::Result<usize> {
    let buffer = gather(from);
    again(|| Ok(rustix::net::send(socket, &buffer, os::SEND)?))
}

/// Puts the first `done` bytes of the buffer into guest memory.
fn scatter(buffer: &[u8], done: usize, into: &[Slice<'_>]) {
    let mut rest = buffer.get(..done).unwrap_or(buffer);
    for piece in into {
        let (part, more) = rest.split_at(piece.len().min(rest.len()));
        // The part is no longer than the piece.
        piece.copy_from(part);
        rest = more;
    }
    mark_dirty(into, done);
}

/// A copy of guest memory, within bounds.
fn gather(from: &[Slice<'_>]) -> Vec<u8> {
    let mut buffer = buffer(from);
    let mut rest = buffer.as_mut_slice();
    for piece in from {
        let (part, more) = rest.split_at_mut(piece.len().min(rest.len()));
        piece.copy_to(part);
        rest = more;
    }
    buffer
}

/// Room for all pieces together, within bounds.
fn buffer(pieces: &[Slice<'_>]) -> Vec<u8> {
    let len = pieces.iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.len()));
    vec![0; len.min(MOST)]
}

fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Reading at the end of a file that was opened without buffering.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            result => return result,
        }
    }
}
