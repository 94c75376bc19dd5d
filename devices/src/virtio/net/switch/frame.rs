//! What a frame between two guests must be. It is a datagram of the card's header and the frame; whoever receives one
//! believes nothing of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::header::{GSO_TCPV4, GSO_TCPV6, HEADER_LEN, Header, NEEDS_CSUM};
use super::super::wire::{self, ETHERNET, Ethernet, Ip, Mac, Tcp, array, be16, byte};
use super::super::{Outgoing, Segments};

/// The longest frame that is not to be cut.
const LONGEST: usize = 1500 + ETHERNET;
/// The shortest payload that a long segment is cut into, as Linux has it.
const LEAST_SEGMENT: u16 = 48;

/// Bytes of an IPv6 header.
const IPV6_LEN: usize = 40;
/// Further protocols over IPv6 that have no say in how it works (IANA's numbers): SCTP and UDP-Lite, and a fragment, which
/// Linux takes no neighbour discovery from.
const PLAIN: [u8; 3] = [132, 136, 44];
/// Types of ICMPv6 that say where neighbours and routers are (RFC 4861).
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// The addresses of an IP frame whose header is whole and which may cross. Fragments have them too. Who is where in IPv6 is
/// answered from the list of members, as with ARP: neighbour discovery does not cross, nor what it could hide in.
pub(super) fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match be16(frame, 12)? {
        wire::IPV4 => {
            let first = byte(frame, ETHERNET)?;
            let (header, len) = (usize::from(first & 15) * 4, usize::from(be16(frame, ETHERNET + 2)?));
            let is_whole = first >> 4 == 4 && header >= 20 && len >= header && ETHERNET + len <= frame.len();
            let at = |at| array::<4>(frame, ETHERNET + at).map(|ip| IpAddr::from(Ipv4Addr::from(ip)));
            is_whole.then_some((at(12)?, at(16)?))
        }
        wire::IPV6 => {
            let ip = Ip::read(frame, wire::IPV6, frame.len())?;
            let crosses = match ip.protocol {
                wire::TCP | wire::UDP => true,
                wire::ICMPV6 => !DISCOVERY.contains(&byte(frame, ip.at)?),
                other => PLAIN.contains(&other),
            };
            crosses.then_some((ip.src, ip.dst))
        }
        _ => None,
    }
}

/// Who asks for which neighbour, in a frame of `total` bytes that asks (RFC 4861, 4.3), of which `head` are the first.
pub(super) fn solicitation(head: &[u8], total: usize) -> Option<(Ipv6Addr, Ipv6Addr)> {
    const SOLICITATION: u8 = 135;
    let ip = Ip::read(head, wire::IPV6, total).filter(|ip| ip.protocol == wire::ICMPV6 && ip.hops == 255)?;
    let IpAddr::V6(asker) = ip.src else { return None };
    let asks = byte(head, ip.at)? == SOLICITATION && ip.len >= 24;
    asks.then_some((asker, array::<16>(head, ip.at + 8)?.into()))
}

/// The answer to one: `target` is at `mac` (RFC 4861, 4.4).
pub(super) fn advertisement(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    // Solicited, to replace what was known; then the address on the wire.
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    message
}

/// A frame that came from another: its Ethernet header, who sent it, and how the guest is given it.
pub(super) struct Arrived<'a> {
    pub(super) ethernet: Ethernet,
    pub(super) src: IpAddr,
    pub(super) outgoing: Outgoing<'a>,
}

/// Reads a datagram; `None` for what no honest card sends.
pub(super) fn arrived(datagram: &[u8]) -> Option<Arrived<'_>> {
    let header = Header::from_bytes(array::<HEADER_LEN>(datagram, 0)?);
    let frame = datagram.get(HEADER_LEN..)?;
    let ethernet = Ethernet::read(frame)?;
    let (src, _) = ends(frame)?;
    let least = ETHERNET + if src.is_ipv6() { IPV6_LEN } else { 20 };
    let checksum = match header.flags {
        0 => None,
        NEEDS_CSUM => {
            let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
            if start < least || start + offset + 2 > frame.len() {
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
        kind if kind == if src.is_ipv6() { GSO_TCPV6 } else { GSO_TCPV4 }
            && header.gso_size >= LEAST_SEGMENT =>
        {
            // The cut is by the headers that are there, whatever the sender says of them.
            let ip = Ip::read(frame, ethernet.kind, frame.len()).filter(|ip| ip.protocol == wire::TCP)?;
            let tcp = frame.get(ip.at..).and_then(Tcp::read).filter(|tcp| tcp.len <= ip.len)?;
            checksum.filter(|sum| *sum == (u16::try_from(ip.at).unwrap_or(0), 16))?;
            let (head, payload) = frame.split_at_checked(ip.at + tcp.len)?;
            let segments = Some(Segments { v6: src.is_ipv6(), size: header.gso_size });
            Outgoing { head, payload: [payload, &[]], checksum, segments }
        }
        _ => return None,
    };
    Some(Arrived { ethernet, src, outgoing })
}
