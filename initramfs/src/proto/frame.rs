//! Cutting a byte stream into frames.

use alloc::vec::Vec;

use super::{Error, kind};

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 8;

/// Room that a reader is given at least.
const READ_LEN: usize = 4096;

/// Which connection a decoder reads, and from which side: only the kinds that belong there are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The control connection, read by the guest.
    HostControl,
    /// The control connection, read by the host.
    GuestControl,
    /// A program's stream, read by the guest.
    HostStream,
    /// A program's stream, read by the host.
    GuestStream,
    /// The file server's standard input, read by the guest.
    HostFiles,
    /// The file server's standard output, read by the host.
    GuestFiles,
}

impl Channel {
    const fn carries(self, kind: u16) -> bool {
        let group = match self {
            Self::HostControl => 0x01,
            Self::GuestControl => 0x02,
            Self::HostStream => 0x03,
            Self::GuestStream => 0x04,
            Self::HostFiles => 0x05,
            Self::GuestFiles => 0x06,
        };
        kind >> 8 == group
    }
}

/// One whole frame, lent from the buffer it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// One of the constants in [`kind`].
    pub kind: u16,
    /// Its body, within the kind's limit.
    pub body: &'a [u8],
}

pub(super) fn header(kind: u16, length: u32) -> [u8; HEADER_LEN] {
    let [l0, l1, l2, l3] = length.to_le_bytes();
    let [k0, k1] = kind.to_le_bytes();
    [l0, l1, l2, l3, k0, k1, 0, 0]
}

/// The incremental decoder: takes bytes as they arrive and gives frames as they become whole.
///
/// Memory follows the bytes that really arrived (at most twice as much), not the length that a peer announced.
///
/// ```
/// use servin_init::proto::{Channel, Encode, Frames, HostMessage};
///
/// let wire = HostMessage::Shutdown.to_frame().unwrap();
/// let mut frames = Frames::new(Channel::HostControl);
/// frames.push(&wire[..3]); // whatever a read returned
/// assert!(frames.next_frame().unwrap().is_none());
/// frames.push(&wire[3..]);
/// let frame = frames.next_frame().unwrap().unwrap();
/// assert_eq!(HostMessage::decode(frame).unwrap(), HostMessage::Shutdown);
/// ```
#[derive(Debug)]
pub struct Frames {
    channel: Channel,
    buf: Vec<u8>,
    /// First byte not yet given out.
    start: usize,
    /// End of the bytes that arrived.
    end: usize,
}

impl Frames {
    /// A decoder for one direction of one connection.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { channel, buf: Vec::new(), start: 0, end: 0 }
    }

    /// Room to read into, never empty; tell [`Frames::advance`] how much was used.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buf.len() - self.end < READ_LEN {
            if self.start > 0 {
                self.buf.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let wanted = (2 * self.end).max(self.end + READ_LEN);
            if self.buf.len() < wanted {
                self.buf.resize(wanted, 0);
            }
        }
        &mut self.buf[self.end..]
    }

    /// `count` bytes were read into [`Frames::space`].
    pub fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buf.len());
    }

    /// Adds bytes that arrived; the copying form of [`Frames::space`].
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            let (head, rest) = bytes.split_at(count);
            space[..count].copy_from_slice(head);
            self.advance(count);
            bytes = rest;
        }
    }

    /// The next whole frame, or `None` until more bytes have arrived.
    ///
    /// # Errors
    /// [`Error::UnknownKind`], [`Error::TooLong`] or [`Error::Reserved`], as soon as the header shows it. The
    /// stream is then useless: every further call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        let pending = &self.buf[self.start..self.end];
        let Some(([l0, l1, l2, l3, k0, k1, r0, r1], rest)) = pending.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let kind = u16::from_le_bytes([*k0, *k1]);
        let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        if (*r0, *r1) != (0, 0) {
            return Err(Error::Reserved);
        }
        if !self.channel.carries(kind) {
            return Err(Error::UnknownKind(kind));
        }
        if length > kind::limit(kind).ok_or(Error::UnknownKind(kind))? {
            return Err(Error::TooLong { kind, length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.start += HEADER_LEN + length;
        Ok(Some(Frame { kind, body: &rest[..length] }))
    }

    /// True if bytes of an unfinished frame are waiting: a stream that ends now was cut.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.start != self.end
    }
}
