//! Descriptor chains: copied out of the ring once, checked, then read and written as two byte streams.
//!
//! A chain is its readable segments followed by its writable ones (virtio 1.2, 2.7.4.2). Every segment was
//! checked to lie in guest RAM when the chain was made; readers and writers never leave it.

use std::io;

use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::queue::{Descriptor, Descriptors};
use crate::mem::{self, FileRef, GuestRam, Slice, StreamRef};

/// Why a chain cannot be used. Always the guest's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A segment does not lie in guest RAM.
    #[error("descriptor {addr:#x}+{len:#x} is not in guest RAM")]
    OutOfRam {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// The chain has more than 4 GiB of readable or of writable bytes (virtio 1.2, 2.7.5.2), or no descriptor.
    #[error("the chain is empty or longer than 4 GiB")]
    Length,
    /// The ring itself is broken (indices, addresses, a chain that loops or ends early).
    #[error("the ring is broken")]
    Ring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    addr: GuestAddress,
    len: u32,
}

/// One descriptor chain, taken from a ring.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// Copies a chain out of the ring and checks it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(super) fn new(ram: &GuestRam, descriptors: Descriptors<'_>) -> Result<Self, ChainError> {
        let head = descriptors.head();
        let mut chain = Self { head, readable: Vec::new(), writable: Vec::new() };
        let mut lengths = [0_u64; 2];
        let mut open = true;
        for descriptor in descriptors {
            let Descriptor { addr, len, writable, next } = descriptor;
            open = next;
            if len == 0 {
                continue;
            }
            if ram.get_slices(addr, len as usize).any(|piece| piece.is_err()) {
                return Err(ChainError::OutOfRam { addr: addr.0, len });
            }
            let [read_len, write_len] = &mut lengths;
            if writable {
                *write_len += u64::from(len);
                chain.writable.push(Segment { addr, len });
            } else if chain.writable.is_empty() {
                *read_len += u64::from(len);
                chain.readable.push(Segment { addr, len });
            } else {
                return Err(ChainError::Order);
            }
        }
        // The iterator stops early at a descriptor it cannot follow (a bad index, a loop).
        if open {
            return Err(ChainError::Ring);
        }
        if lengths.iter().any(|&len| len > u64::from(u32::MAX)) || lengths == [0, 0] {
            return Err(ChainError::Length);
        }
        Ok(chain)
    }

    /// The index of the first descriptor, which names the chain in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    #[must_use]
    pub fn reader<'m>(&self, ram: &'m GuestRam) -> Reader<'m> {
        Reader { pieces: Pieces::new(ram, &self.readable) }
    }

    /// Where the device writes for the driver.
    #[must_use]
    pub fn writer<'m>(&self, ram: &'m GuestRam) -> Writer<'m> {
        Writer { pieces: Pieces::new(ram, &self.writable), written: 0 }
    }
}

/// The rest of a byte stream over guest memory.
#[derive(Debug, Clone, Default)]
struct Pieces<'m> {
    /// In order; the first may be partly consumed already (it was cut).
    slices: std::collections::VecDeque<Slice<'m>>,
    len: usize,
}

impl<'m> Pieces<'m> {
    fn new(ram: &'m GuestRam, segments: &[Segment]) -> Self {
        let mut pieces = Self::default();
        for segment in segments {
            // Checked when the chain was made, and RAM never shrinks: an error cannot occur, and would only cut
            // the stream short.
            for slice in ram.get_slices(segment.addr, segment.len as usize).flatten() {
                pieces.len += slice.len();
                pieces.slices.push_back(slice);
            }
        }
        pieces
    }

    /// The first `count` bytes, at most.
    fn head(&self, count: usize) -> Vec<Slice<'m>> {
        let mut left = count;
        let mut head = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            let part = slice.len().min(left);
            head.extend(slice.subslice(0, part));
            left -= part;
        }
        head
    }

    /// Drops the first `count` bytes, at most.
    fn consume(&mut self, count: usize) -> usize {
        let mut left = count.min(self.len);
        let done = left;
        self.len -= done;
        while left > 0 {
            let Some(slice) = self.slices.pop_front() else { break };
            if slice.len() > left {
                if let Ok(rest) = slice.offset(left) {
                    self.slices.push_front(rest);
                }
                break;
            }
            left -= slice.len();
        }
        done
    }

    /// Cuts the stream at `at`: keeps what is before, returns what is behind.
    fn split_off(&mut self, at: usize) -> Self {
        let head = self.head(at);
        let mut tail = std::mem::take(self);
        tail.consume(at);
        self.len = head.iter().map(Slice::len).sum();
        self.slices = head.into();
        tail
    }

    fn copy(&mut self, count: usize, mut copy: impl FnMut(&Slice<'m>, usize)) -> usize {
        let mut done = 0;
        for slice in self.head(count) {
            copy(&slice, done);
            done += slice.len();
        }
        self.consume(done)
    }
}

/// Reads the readable part of a chain.
#[derive(Debug, Clone)]
pub struct Reader<'m> {
    pieces: Pieces<'m>,
}

impl<'m> Reader<'m> {
    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies a fixed-layout value out; `None` when too few bytes are left (then nothing is consumed).
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Option<T> {
        let mut value = T::default();
        let size = size_of::<T>();
        (self.len() >= size && io::Read::read(self, value.as_mut_slice()).ok()? == size).then_some(value)
    }

    /// Skips `count` bytes, at most what is left; returns how many.
    pub fn skip(&mut self, count: usize) -> usize {
        self.pieces.consume(count)
    }

    /// Cuts the stream at `at` bytes from here: keeps the part before, returns the rest.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self { pieces: self.pieces.split_off(at) }
    }

    /// Writes up to `count` bytes to `file` at `offset`, straight from guest memory; returns the bytes moved.
    ///
    /// # Errors
    /// The error of `pwritev(2)`.
    pub fn write_to_at(&mut self, file: FileRef<'_>, count: usize, offset: u64) -> io::Result<usize> {
        let done = mem::write_at(file, &self.pieces.head(count), offset)?;
        Ok(self.pieces.consume(done))
    }

    /// Writes up to `count` bytes to a stream, straight from guest memory; returns the bytes moved.
    ///
    /// # Errors
    /// The error of `writev(2)`.
    #[cfg(unix)]
    pub fn write_to(&mut self, stream: StreamRef<'_>, count: usize) -> io::Result<usize> {
        let done = mem::write_stream(stream, &self.pieces.head(count))?;
        Ok(self.pieces.consume(done))
    }

    /// Sends up to `count` bytes on a socket, straight from guest memory, without blocking and without SIGPIPE;
    /// returns the bytes moved.
    ///
    /// # Errors
    /// The error of `sendmsg(2)`.
    pub fn send_to(&mut self, socket: StreamRef<'_>, count: usize) -> io::Result<usize> {
        let done = mem::send(socket, &self.pieces.head(count))?;
        Ok(self.pieces.consume(done))
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.pieces.copy(buf.len(), |slice, done| {
            if let Some(into) = buf.get_mut(done..) {
                slice.copy_to(into);
            }
        }))
    }
}

/// Writes the writable part of a chain. The default one has no room.
#[derive(Debug, Clone, Default)]
pub struct Writer<'m> {
    pieces: Pieces<'m>,
    written: usize,
}

impl<'m> Writer<'m> {
    /// Bytes of room left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len
    }

    /// Whether no room is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes written so far through this writer: what to report to [`super::Io::complete`].
    #[must_use]
    pub fn written(&self) -> u32 {
        u32::try_from(self.written).unwrap_or(u32::MAX)
    }

    /// Writes a fixed-layout value; false when there is too little room (then nothing is written).
    pub fn write_obj<T: ByteValued>(&mut self, value: &T) -> bool {
        self.len() >= size_of::<T>()
            && io::Write::write(self, value.as_slice()).is_ok_and(|done| done == size_of::<T>())
    }

    /// Cuts the room at `at` bytes from here: keeps the part before, returns the rest with its own count.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self { pieces: self.pieces.split_off(at), written: 0 }
    }

    /// Reads up to `count` bytes from `file` at `offset`, straight into guest memory; returns the bytes moved.
    ///
    /// # Errors
    /// The error of `preadv(2)`.
    pub fn read_from_at(&mut self, file: FileRef<'_>, count: usize, offset: u64) -> io::Result<usize> {
        let done = mem::read_at(file, &self.pieces.head(count), offset)?;
        Ok(self.advance(done))
    }

    /// Reads up to `count` bytes from a stream, straight into guest memory; returns the bytes moved.
    ///
    /// # Errors
    /// The error of `readv(2)`.
    pub fn read_from(&mut self, stream: StreamRef<'_>, count: usize) -> io::Result<usize> {
        let done = mem::read_stream(stream, &self.pieces.head(count))?;
        Ok(self.advance(done))
    }

    /// Writes `count` zero bytes, at most what room there is; returns how many.
    pub fn write_zeroes(&mut self, count: usize) -> usize {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < count {
            let step = ZEROES.get(..(count - done).min(ZEROES.len())).unwrap_or(&ZEROES);
            match io::Write::write(self, step) {
                Ok(0) | Err(_) => break,
                Ok(moved) => done += moved,
            }
        }
        done
    }

    fn advance(&mut self, done: usize) -> usize {
        let done = self.pieces.consume(done);
        self.written += done;
        done
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let done = self.pieces.copy(buf.len(), |slice, done| {
            if let Some(from) = buf.get(done..) {
                // The slice is checked and no longer than the rest of the buffer.
                let part = from.get(..slice.len()).unwrap_or(from);
                let _ = slice.write(part, 0);
            }
        });
        self.written += done;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
