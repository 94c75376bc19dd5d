//! What is at the host's end of a console: a descriptor. Windows has nothing that is both a terminal and can be waited for,
//! so there a console has no such end, only a writer.

use std::io;

use crate::event::Source;
use crate::virtio::Writer;

/// An open descriptor.
#[cfg(unix)]
pub type Stream = std::os::fd::OwnedFd;

/// There is none.
#[cfg(windows)]
#[derive(Debug)]
pub enum Stream {}

#[cfg(unix)]
pub(super) fn source(stream: &Stream) -> Source<'_> {
    std::os::fd::AsFd::as_fd(stream)
}

#[cfg(unix)]
pub(super) fn write(stream: &Stream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(stream, bytes)?)
}

#[cfg(unix)]
pub(super) fn read(stream: &Stream, into: &mut Writer<'_>, count: usize) -> io::Result<usize> {
    into.read_from(std::os::fd::AsFd::as_fd(stream), count)
}

#[cfg(windows)]
pub(super) fn source(stream: &Stream) -> Source<'_> {
    match *stream {}
}

#[cfg(windows)]
pub(super) fn write(stream: &Stream, _: &[u8]) -> io::Result<usize> {
    match *stream {}
}

#[cfg(windows)]
pub(super) fn read(stream: &Stream, _: &mut Writer<'_>, _: usize) -> io::Result<usize> {
    match *stream {}
}
