//! `struct virtio_net_hdr` (virtio 1.2, section 5.1.6), the twelve bytes before every frame.

use super::super::Reader;

/// Bytes of the header.
pub const HEADER_LEN: usize = 12;

/// The checksum from `start` on is to be finished (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`
pub const GSO_TCPV6: u8 = 4;

/// The header, all fields little-endian on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// See [`NEEDS_CSUM`].
    pub flags: u8,
    /// 0, [`GSO_TCPV4`] or [`GSO_TCPV6`].
    pub gso_type: u8,
    /// Length of the headers of a long segment.
    pub hdr_len: u16,
    /// Payload of each frame that a long segment is cut into.
    pub gso_size: u16,
    /// Where the unfinished checksum begins to cover.
    pub csum_start: u16,
    /// Where it is stored, from there.
    pub csum_offset: u16,
    /// Buffers that a received frame lies in.
    pub num_buffers: u16,
}

impl Header {
    /// Reads the header; `None` if there are too few bytes.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.read_obj::<[u8; HEADER_LEN]>().map(Self::from_bytes)
    }

    /// The header in these bytes.
    #[must_use]
    pub fn from_bytes(raw: [u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = raw;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}
