//! The packet header of a virtio socket (virtio 1.2, 5.10.6): 44 little-endian bytes before every payload.

use std::io::{Read as _, Write as _};

use crate::virtio::{Reader, Writer};

/// The well-known context id of the host.
pub const HOST_CID: u64 = 2;

/// The greatest payload of one packet, in bytes. Linux sends no more; a longer packet is a violation.
pub const MAX_PAYLOAD: u32 = 64 * 1024;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// The sender will not receive any more data (`VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`).
pub const SHUT_RECEIVE: u32 = 1;
/// The sender will not send any more data (`VIRTIO_VSOCK_SHUTDOWN_F_SEND`).
pub const SHUT_SEND: u32 = 2;
/// Both hints: a clean disconnect, answered by a reset.
pub const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// What a packet asks for (`VIRTIO_VSOCK_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one at once.
    Reset = 3,
    /// Says which directions are over; `flags` are the hints.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Says how much has been consumed.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number, if there is one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The length of a header, in bytes.
pub const HEADER_LEN: usize = 44;

/// A packet header (`struct virtio_vsock_hdr`), in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Context id of the sender. The upper 32 bits are reserved and zero.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// Socket type, [`TYPE_STREAM`].
    pub kind: u16,
    /// The number of an [`Op`].
    pub op: u16,
    /// Depends on the operation; hints of [`Op::Shutdown`].
    pub flags: u32,
    /// Bytes of buffer that the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Takes a header apart.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Puts a header together.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = &mut bytes[..];
        for field in [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ] {
            // The fields fill the array exactly.
            let _ = rest.write_all(field);
        }
        bytes
    }

    /// Copies a header out of a chain, once; `None` when the chain is too short.
    pub fn read(from: &mut Reader<'_>) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        (from.read(&mut bytes).ok()? == HEADER_LEN).then(|| Self::from_bytes(&bytes))
    }

    /// Writes the header into a chain; false when there is too little room.
    #[must_use]
    pub fn write(&self, into: &mut Writer<'_>) -> bool {
        into.write(&self.to_bytes()).is_ok_and(|written| written == HEADER_LEN)
    }

    /// A reset that answers this packet.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// The rest of the bytes of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            // Not reached: the fields are as long as the header.
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x1817_1615_1413_1211,
            src_port: 0x2423_2221,
            dst_port: 0x3433_3231,
            len: 0x4443_4241,
            kind: 0x5251,
            op: 0x6261,
            flags: 0x7473_7271,
            buf_alloc: 0x8483_8281,
            fwd_cnt: 0x9493_9291,
        }
    }

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let bytes = header().to_bytes();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[24..32], [0x41, 0x42, 0x43, 0x44, 0x51, 0x52, 0x61, 0x62]);
        assert_eq!(bytes[40..], [0x91, 0x92, 0x93, 0x94]);
    }

    #[test]
    fn a_header_survives_the_way_out_and_back() {
        assert_eq!(Header::from_bytes(&header().to_bytes()), header());
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let packet = header();
        let reset = packet.reset();
        assert_eq!((reset.src_cid, reset.src_port), (packet.dst_cid, packet.dst_port));
        assert_eq!((reset.dst_cid, reset.dst_port), (packet.src_cid, packet.src_port));
        assert_eq!((reset.op, reset.len, reset.kind), (3, 0, packet.kind));
    }

    #[test]
    fn every_operation_has_its_number_and_no_other() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|&n| Op::from_number(n).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
        assert!(known.iter().all(|&n| Op::from_number(n).is_some_and(|op| op as u16 == n)));
    }
}
