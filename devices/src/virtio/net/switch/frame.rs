//! What a frame between two guests must be. It is a datagram of the card's header and the frame; whoever receives one
//! believes nothing of it.

use std::net::Ipv4Addr;

use super::super::header::{GSO_TCPV4, HEADER_LEN, Header, NEEDS_CSUM};
use super::super::wire::{self, ETHERNET, Ethernet, Ip, Tcp, array, be16, byte};
use super::super::{Outgoing, Segments};

/// The longest frame that is not to be cut.
const LONGEST: usize = 1500 + ETHERNET;
/// The shortest payload that a long segment is cut into, as Linux has it.
const LEAST_SEGMENT: u16 = 48;

/// The addresses of an IPv4 frame whose header is whole. Fragments have them too.
pub(super) fn ends(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let first = byte(frame, ETHERNET)?;
    let (header, len) = (usize::from(first & 15) * 4, usize::from(be16(frame, ETHERNET + 2)?));
    let is_whole = first >> 4 == 4 && header >= 20 && len >= header && ETHERNET + len <= frame.len();
    is_whole.then_some((array::<4>(frame, ETHERNET + 12)?.into(), array::<4>(frame, ETHERNET + 16)?.into()))
}

/// A frame that came from another: its Ethernet header, who sent it, and how the guest is given it.
pub(super) struct Arrived<'a> {
    pub(super) ethernet: Ethernet,
    pub(super) src: Ipv4Addr,
    pub(super) outgoing: Outgoing<'a>,
}

/// Reads a datagram; `None` for what no honest card sends.
pub(super) fn arrived(datagram: &[u8]) -> Option<Arrived<'_>> {
    let header = Header::from_bytes(array::<HEADER_LEN>(datagram, 0)?);
    let frame = datagram.get(HEADER_LEN..)?;
    let ethernet = Ethernet::read(frame).filter(|ethernet| ethernet.kind == wire::IPV4)?;
    let (src, _) = ends(frame)?;
    let checksum = match header.flags {
        0 => None,
        NEEDS_CSUM => {
            let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
            if start < ETHERNET + 20 || start + offset + 2 > frame.len() {
                return None;
            }
            Some((header.csum_start, header.csum_offset))
        }
        _ => return None,
    };
    let outgoing = match header.gso_type {
        0 if frame.len() <= LONGEST => {
            Outgoing { head: frame, payload: [&[], &[]], checksum, segments: None }
        }
        GSO_TCPV4 if header.gso_size >= LEAST_SEGMENT => {
            // The cut is by the headers that are there, whatever the sender says of them.
            let ip = Ip::read(frame, ethernet.kind, frame.len()).filter(|ip| ip.protocol == wire::TCP)?;
            let tcp = frame.get(ip.at..).and_then(Tcp::read).filter(|tcp| tcp.len <= ip.len)?;
            checksum.filter(|sum| *sum == (u16::try_from(ip.at).unwrap_or(0), 16))?;
            let (head, payload) = frame.split_at_checked(ip.at + tcp.len)?;
            let segments = Some(Segments { v6: false, size: header.gso_size });
            Outgoing { head, payload: [payload, &[]], checksum, segments }
        }
        _ => return None,
    };
    Some(Arrived { ethernet, src, outgoing })
}
