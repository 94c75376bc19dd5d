//! Ethernet, ARP, IP, TCP, UDP and ICMP headers, as far as a network of two ends needs them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Ethernet types.
pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;
/// IP protocols.
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the wire.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it is one of a group, or everybody.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).unwrap_or("x");
            *byte = u8::from_str_radix(part, 16)
                .map_err(|_| "it is six bytes as 02:42:ac:11:00:02".to_owned())?;
        }
        match parts.next() {
            None => Ok(Self(mac)),
            Some(_) => Err("it is six bytes as 02:42:ac:11:00:02".to_owned()),
        }
    }
}

pub(super) fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// The Ethernet header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ethernet {
    pub(super) dst: Mac,
    pub(super) src: Mac,
    pub(super) kind: u16,
}

impl Ethernet {
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        Some(Self { dst: Mac(array(frame, 0)?), src: Mac(array(frame, 6)?), kind: be16(frame, 12)? })
    }
}

/// The IP header of a frame, and where what it carries lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    /// Hops that are left.
    pub(super) hops: u8,
    /// Where the payload begins in the frame.
    pub(super) at: usize,
    /// How long it is.
    pub(super) len: usize,
}

impl Ip {
    /// Reads the header of a frame of `total` bytes of which `head` are the first. `None` for what is malformed, and for
    /// fragments.
    pub(super) fn read(head: &[u8], kind: u16, total: usize) -> Option<Self> {
        let at = ETHERNET;
        if kind == IPV4 {
            let first = byte(head, at)?;
            let header = usize::from(first & 15) * 4;
            let len = usize::from(be16(head, at + 2)?);
            let fragment = be16(head, at + 6)? & 0x3fff;
            if first >> 4 != 4 || header < 20 || len < header || at + len > total || fragment != 0 {
                return None;
            }
            return Some(Self {
                src: Ipv4Addr::from(array::<4>(head, at + 12)?).into(),
                dst: Ipv4Addr::from(array::<4>(head, at + 16)?).into(),
                protocol: byte(head, at + 9)?,
                hops: byte(head, at + 8)?,
                at: at + header,
                len: len - header,
            });
        }
        let len = usize::from(be16(head, at + 4)?);
        if byte(head, at)? >> 4 != 6 || at + 40 + len > total {
            return None;
        }
        Some(Self {
            src: Ipv6Addr::from(array::<16>(head, at + 8)?).into(),
            dst: Ipv6Addr::from(array::<16>(head, at + 24)?).into(),
            protocol: byte(head, at + 6)?,
            hops: byte(head, at + 7)?,
            at: at + 40,
            len,
        })
    }
}

/// A TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tcp {
    pub(super) src: u16,
    pub(super) dst: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Options: the largest segment, and the shift of windows.
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    /// Bytes of the header.
    pub(super) len: usize,
}

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

impl Tcp {
    /// Reads a header.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let len = usize::from(byte(bytes, 12)? >> 4) * 4;
        if len < 20 {
            return None;
        }
        let mut tcp = Self {
            src: be16(bytes, 0)?,
            dst: be16(bytes, 2)?,
            seq: be32(bytes, 4)?,
            ack: be32(bytes, 8)?,
            flags: byte(bytes, 13)?,
            window: be16(bytes, 14)?,
            len,
            ..Self::default()
        };
        let mut options = bytes.get(20..len)?;
        while let &[kind, ref rest @ ..] = options {
            if kind < 2 {
                if kind == 0 {
                    break;
                }
                options = rest;
                continue;
            }
            let size = usize::from(byte(options, 1)?);
            let Some(value) = options.get(2..size) else { break };
            match (kind, value) {
                (2, _) => tcp.mss = be16(value, 0),
                (3, &[shift]) => tcp.scale = Some(shift.min(14)),
                _ => {}
            }
            options = options.get(size..)?;
        }
        Some(tcp)
    }
}

/// Adds bytes to a sum of 16 bit words, as the Internet checksum does. Only the last part may be odd.
pub(super) fn sum(bytes: &[u8], mut sum: u64) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<8>();
    for pair in pairs {
        let word = u64::from_be_bytes(*pair);
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    for pair in rest.chunks(2) {
        let word = u16::from_be_bytes([byte(pair, 0).unwrap_or(0), byte(pair, 1).unwrap_or(0)]);
        sum += u64::from(word);
    }
    sum
}

/// The sum in 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // What is left fits.
    sum as u16
}

/// The sum of the pseudo header.
fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u64 {
    let part = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets(), 0),
        IpAddr::V6(address) => sum(&address.octets(), 0),
    };
    part(src) + part(dst) + u64::from(protocol) + len as u64
}

/// Finishes a checksum: `head` from `start` on and the payload, stored at `offset` from there.
pub(super) fn finish(head: &mut [u8], payload: [&[u8]; 2], start: usize, offset: usize) {
    let mut total = sum(head.get(start..).unwrap_or_default(), 0);
    let [first, second] = payload;
    // The head and the first part are even unless nothing follows them.
    let odd = first.len() % 2 == 1 && !second.is_empty();
    if odd {
        let joined = [first, second].concat();
        total = sum(&joined, total);
    } else {
        total = sum(second, sum(first, total));
    }
    let value = match !fold(total) {
        0 => 0xffff,
        value => value,
    };
    store(head, start + offset, value);
}

fn store(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Both ends of a wire, for the frames that go one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) dst: Mac,
    pub(super) src: Mac,
}

impl Link {
    fn ethernet(self, out: &mut Vec<u8>, kind: u16) {
        out.extend(self.dst.0);
        out.extend(self.src.0);
        out.extend(kind.to_be_bytes());
    }

    /// Ethernet and IP headers for `len` bytes. Both addresses are of one family; where they are not, the frame is one
    /// that nobody takes.
    pub(super) fn ip(self, out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, len: usize) {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.ethernet(out, IPV4);
                let at = out.len();
                let total = u16::try_from(20 + len).unwrap_or(u16::MAX);
                out.extend([0x45, 0]);
                out.extend(total.to_be_bytes());
                // No identification, not to be fragmented, 64 hops, the checksum below.
                out.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                out.extend(src.octets());
                out.extend(dst.octets());
                let value = !fold(sum(out.get(at..).unwrap_or_default(), 0));
                store(out, at + 10, value);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.ethernet(out, IPV6);
                out.extend([0x60, 0, 0, 0]);
                out.extend(u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
                // Neighbour discovery wants hops that were never counted.
                out.extend([protocol, if protocol == ICMPV6 { 255 } else { 64 }]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            _ => self.ethernet(out, 0),
        }
    }

    /// Headers of a TCP segment with `payload` bytes. Returns where its unfinished checksum is.
    pub(super) fn tcp(
        self,
        out: &mut Vec<u8>,
        (src, dst): (SocketAddr, SocketAddr),
        tcp: &Tcp,
        payload: usize,
    ) -> (u16, u16) {
        let mut options = Vec::new();
        if let Some(mss) = tcp.mss {
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
        }
        if let Some(shift) = tcp.scale {
            options.extend([1, 3, 3, shift]);
        }
        let len = 20 + options.len() + payload;
        self.ip(out, src.ip(), dst.ip(), TCP, len);
        let start = out.len();
        out.extend(src.port().to_be_bytes());
        out.extend(dst.port().to_be_bytes());
        out.extend(tcp.seq.to_be_bytes());
        out.extend(tcp.ack.to_be_bytes());
        out.extend([(5 + (options.len() / 4) as u8) << 4, tcp.flags]);
        out.extend(tcp.window.to_be_bytes());
        out.extend(fold(pseudo(src.ip(), dst.ip(), TCP, len)).to_be_bytes());
        out.extend([0, 0]);
        out.extend(options);
        (u16::try_from(start).unwrap_or(0), 16)
    }

    /// Headers of a UDP datagram with `payload` bytes. Returns where its unfinished checksum is.
    pub(super) fn udp(
        self,
        out: &mut Vec<u8>,
        src: SocketAddr,
        dst: SocketAddr,
        payload: usize,
    ) -> (u16, u16) {
        let len = 8 + payload;
        self.ip(out, src.ip(), dst.ip(), UDP, len);
        let start = out.len();
        out.extend(src.port().to_be_bytes());
        out.extend(dst.port().to_be_bytes());
        out.extend(u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(fold(pseudo(src.ip(), dst.ip(), UDP, len)).to_be_bytes());
        (u16::try_from(start).unwrap_or(0), 6)
    }

    /// A whole ICMP message of either family; its checksum, at 2, is filled in.
    pub(super) fn icmp(self, src: IpAddr, dst: IpAddr, message: &[u8]) -> Vec<u8> {
        let protocol = if src.is_ipv4() { ICMP } else { ICMPV6 };
        let mut out = Vec::new();
        self.ip(&mut out, src, dst, protocol, message.len());
        let start = out.len();
        let mut message = message.to_vec();
        store(&mut message, 2, 0);
        let seed = if src.is_ipv4() { 0 } else { pseudo(src, dst, ICMPV6, message.len()) };
        let value = !fold(sum(&message, seed));
        store(&mut message, 2, value);
        out.extend(message);
        debug_assert!(start <= out.len());
        out
    }

    /// The answer to an ARP request: `ip` is at our address.
    pub(super) fn arp_reply(self, ip: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
        let mut out = Vec::new();
        self.ethernet(&mut out, ARP);
        out.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        out.extend(self.src.0);
        out.extend(ip.octets());
        out.extend(self.dst.0);
        out.extend(asker.octets());
        out
    }
}

/// An ARP request for an IPv4 address: who asks, and for which.
pub(super) fn arp_request(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let body = frame.get(ETHERNET..)?;
    if array::<8>(body, 0)? != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    Some((array::<4>(body, 14)?.into(), array::<4>(body, 24)?.into()))
}
