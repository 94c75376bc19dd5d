//! The guest's end of the wire, as a back end sees it during one call.

use std::io::Write as _;

use virtio_bindings::bindings::virtio_net as bits;

use super::super::{Chain, Error, Io};
use super::header::{GSO_TCPV4, GSO_TCPV6, HEADER_LEN, Header, NEEDS_CSUM};
use super::{Mac, RECEIVE, wire};
use crate::event::{Ready, Source, Token};

/// A long TCP segment, for the guest to see as if it had been cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// It is IPv6.
    pub v6: bool,
    /// Payload of each frame.
    pub size: u16,
}

/// A frame for the guest: its headers, and the payload in two parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'a> {
    /// From the Ethernet header on.
    pub head: &'a [u8],
    /// What follows.
    pub payload: [&'a [u8]; 2],
    /// Where the checksum of the transport header begins to cover, and where it is from there. In `head` is the sum of
    /// the pseudo header.
    pub checksum: Option<(u16, u16)>,
    /// It is longer than the MTU.
    pub segments: Option<Segments>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The guest has it, or never will: it is too long for the guest's buffers.
    Done,
    /// There is no room now. [`super::Backend::settle`] is called when there is some.
    NoRoom,
}

/// See the module's description.
pub struct Port<'a> {
    io: &'a mut dyn Io,
    features: u64,
    /// Chains taken for a frame that is about to come, with their room.
    reserved: Vec<(Chain, usize)>,
    asked: bool,
    /// Added to the tokens of the back end that is called.
    base: Token,
    /// The interface of the guest that alone hears its frames, where there are several.
    only: Option<Mac>,
}

impl std::fmt::Debug for Port<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("features", &self.features).finish_non_exhaustive()
    }
}

impl<'a> Port<'a> {
    pub(super) fn new(io: &'a mut dyn Io, features: u64) -> Self {
        Self { io, features, reserved: Vec::new(), asked: false, base: 0, only: None }
    }

    /// Gives back what was reserved and not used; says whether the guest's frames were asked for.
    pub(super) fn finish(mut self) -> bool {
        self.release();
        self.asked
    }

    fn release(&mut self) {
        for (chain, _) in self.reserved.drain(..).rev() {
            self.io.unpop(RECEIVE, chain);
        }
    }

    /// Whose back end is called: its tokens are from `base` on, and what it sends to groups goes to `only`.
    pub(super) fn aim(&mut self, base: Token, only: Option<Mac>) {
        (self.base, self.only) = (base, only);
    }

    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// The longest payload of one TCP segment towards the guest, where `mss` is what it can take by itself.
    #[must_use]
    pub fn segment(&self, v6: bool, mss: usize) -> usize {
        let long = if v6 { bits::VIRTIO_NET_F_GUEST_TSO6 } else { bits::VIRTIO_NET_F_GUEST_TSO4 };
        if self.has(long) && self.has(bits::VIRTIO_NET_F_GUEST_CSUM) { 65_535 - 120 } else { mss }
    }

    /// Makes room for a frame of up to `want` bytes, and says how long it may be now; 0 if nothing fits.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn reserve(&mut self, want: usize) -> Result<usize, Error> {
        let merged = self.has(bits::VIRTIO_NET_F_MRG_RXBUF);
        let mem = self.io.mem();
        let mut room: usize = self.reserved.iter().map(|(_, room)| room).sum();
        while room < want + HEADER_LEN && (merged || self.reserved.is_empty()) {
            let Some(chain) = self.io.pop(RECEIVE)? else { break };
            let len = chain.writer(&mem).len();
            if len < HEADER_LEN {
                return Err(Error::Guest(format!(
                    "a receive buffer of {len} bytes has no room for the header"
                )));
            }
            room += len;
            self.reserved.push((chain, len));
        }
        if room == 0 {
            self.io.need_doorbell(RECEIVE, true);
        }
        Ok(room.saturating_sub(HEADER_LEN).min(want))
    }

    /// Gives a frame to the guest.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn deliver(&mut self, frame: &Outgoing<'_>) -> Result<Delivery, Error> {
        let len = frame.head.len() + frame.payload.iter().map(|part| part.len()).sum::<usize>();
        let mut header = Header { num_buffers: 1, ..Header::default() };
        let mut changed = self.only.filter(|_| is_for_group(frame.head)).map(|mac| {
            let mut head = frame.head.to_vec();
            head.iter_mut().zip(mac.0).for_each(|(place, byte)| *place = byte);
            head
        });
        if let Some((start, offset)) = frame.checksum {
            if self.has(bits::VIRTIO_NET_F_GUEST_CSUM) {
                (header.flags, header.csum_start, header.csum_offset) = (NEEDS_CSUM, start, offset);
            } else {
                let head = changed.get_or_insert_with(|| frame.head.to_vec());
                wire::finish(head, frame.payload, usize::from(start), usize::from(offset));
            }
        }
        if let Some(Segments { v6, size }) = frame.segments {
            header.gso_type = if v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            header.gso_size = size;
            header.hdr_len = u16::try_from(frame.head.len()).unwrap_or(u16::MAX);
        }
        let head = changed.as_deref().unwrap_or(frame.head);
        self.put(header, &[head, frame.payload[0], frame.payload[1]], len)
    }

    fn put(&mut self, mut header: Header, parts: &[&[u8]], len: usize) -> Result<Delivery, Error> {
        let room = self.reserve(len)?;
        if room < len {
            if self.reserved.is_empty() {
                return Ok(Delivery::NoRoom);
            }
            log::debug!("a frame of {len} bytes is lost: the guest has room for {room}");
            self.release();
            return Ok(Delivery::Done);
        }
        let mem = self.io.mem();
        let mut left = len + HEADER_LEN;
        let mut count = 0;
        for (_, room) in &self.reserved {
            count += 1;
            left = left.saturating_sub(*room);
            if left == 0 {
                break;
            }
        }
        header.num_buffers = count;
        let raw = header.to_bytes();
        let mut rest: Vec<&[u8]> = std::iter::once(raw.as_slice()).chain(parts.iter().copied()).collect();
        rest.reverse();
        let mut used = Vec::with_capacity(usize::from(count));
        for (chain, _) in self.reserved.drain(..usize::from(count)) {
            let mut writer = chain.writer(&mem);
            while let Some(part) = rest.pop() {
                // Guest memory that was checked takes what there is room for.
                let done = writer.write(part).unwrap_or(0);
                match part.get(done..) {
                    Some(left) if !left.is_empty() => {
                        rest.push(left);
                        break;
                    }
                    _ => {}
                }
            }
            let written = writer.written();
            used.push((chain, written));
        }
        self.io.complete_all(RECEIVE, used)?;
        // While there are chains nobody needs to be told of more.
        self.io.need_doorbell(RECEIVE, false);
        Ok(Delivery::Done)
    }

    /// Has the device look for the guest's frames again, after [`super::Backend::is_ready`] said no.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Starts watching a host source under `token`.
    ///
    /// # Errors
    /// The source cannot be watched.
    pub fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()> {
        self.io.watch(source, self.base + token, interest)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> std::io::Result<()> {
        self.io.rewatch(source, self.base + token, interest)
    }

    /// Stops watching a source.
    pub fn unwatch(&mut self, source: Source<'_>) {
        let _ = self.io.unwatch(source);
    }
}

fn is_for_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}
