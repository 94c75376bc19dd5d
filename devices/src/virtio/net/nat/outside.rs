//! What the guest says to the rest of the world in datagrams, and which of the world there is for it.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto, sockopt};

use super::super::super::{Error, Reader};
use super::super::wire::{self, Ip, be16, byte};
use super::super::{Outgoing, Port};
use super::datagram::{self, Kind};
use super::tcp::Key;
use super::{DNS, IDLE, IDLE_DNS, MAX_DATAGRAMS, Nat, resolver};
use crate::event::{self, Ready, Token};
use crate::os;

/// The longest question that is looked at for names that are known here.
const MAX_QUESTION: usize = 512;
/// Types of echoes: request and answer, of either family.
const ECHO: [(u8, u8); 2] = [(8, 0), (128, 129)];
/// Neighbour discovery: solicitation and advertisement.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Whether guests may reach this address: not the host's loopback, in any form, no group, nothing that needs an interface
/// to be named.
pub(super) fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            !(address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
                || first == 0
                || first >= 240)
        }
        IpAddr::V6(address) => {
            // IPv4 in IPv6, mapped or compatible, and with it the unspecified address and the loopback.
            let carries_v4 = address.segments().iter().take(5).all(|word| *word == 0);
            !(carries_v4 || address.is_multicast() || address.is_unicast_link_local())
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    os::socket(family, kind, protocol)
}

/// Begins a TCP connection.
pub(super) fn connect(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket(family(target.ip()), SocketType::STREAM, None)?;
    // Nagle's algorithm ran in the guest already, if it was wanted.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &target) {
        Err(errno) if errno != os::CONNECTING => Err(errno),
        _ => Ok(socket),
    }
}

/// A socket for datagrams between two ends.
fn datagrams(kind: Kind, target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = family(target.ip());
    let protocol = match (kind, target) {
        (Kind::Udp, _) => None,
        (Kind::Echo, SocketAddr::V4(_)) => Some(ipproto::ICMP),
        (Kind::Echo, SocketAddr::V6(_)) => Some(ipproto::ICMPV6),
    };
    let socket = socket(family, SocketType::DGRAM, protocol)?;
    rustix::net::connect(&socket, &target)?;
    Ok(socket)
}

impl Nat {
    /// A datagram of the guest.
    pub(super) fn udp(
        &mut self,
        ip: &Ip,
        head: &[u8],
        mut data: Reader<'_>,
        port: &mut Port<'_>,
    ) -> Result<(), Error> {
        let ports = head.get(ip.at..).and_then(|udp| Some((be16(udp, 0)?, be16(udp, 2)?, be16(udp, 4)?)));
        let Some((src, dst, len)) = ports else { return Ok(()) };
        let Some(len) = usize::from(len).checked_sub(8).filter(|len| len + 8 <= ip.len) else {
            return Ok(());
        };
        let key = Key { guest: SocketAddr::new(ip.src, src), remote: SocketAddr::new(ip.dst, dst) };
        data.skip(ip.at + 8);
        if self.forwards.answer(key, &mut data, len) {
            return Ok(());
        }
        if (self.names.is_some() || !self.outside)
            && self.addresses.is_gateway(ip.dst)
            && dst == DNS
            && len <= MAX_QUESTION
        {
            let mut question = vec![0; len];
            let count = data.clone().read(&mut question).unwrap_or(0);
            question.truncate(count);
            if let Some(answer) = resolver::answer(&question, self.names.as_deref(), !self.outside) {
                return datagram::deliver(self.link(), key.remote, key.guest, &answer, port);
            }
        }
        let first = head.get(ip.at..ip.at + 8).unwrap_or_default();
        let sent = self.datagram_socket(Kind::Udp, key, port)?.and_then(|socket| {
            match data.send_to(socket, len) {
                Err(error) => match Errno::from_io_error(&error) {
                    // Lost, as datagrams may be.
                    Some(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) | None => Ok(()),
                    Some(errno) => Err(errno),
                },
                Ok(_) => Ok(()),
            }
        });
        if let Err(errno) = sent {
            self.unreachable(key, wire::UDP, first, errno);
        }
        Ok(())
    }

    /// The socket between two ends, made if there is none yet.
    fn datagram_socket(
        &mut self,
        kind: Kind,
        key: Key,
        port: &mut Port<'_>,
    ) -> Result<Result<BorrowedFd<'_>, Errno>, Error> {
        let now = Instant::now();
        let is_dns = self.addresses.is_gateway(key.remote.ip());
        let expires = now + if is_dns { IDLE_DNS } else { IDLE };
        if let Some(token) = self.datagrams_by_key.get(&(kind, key)).copied() {
            // A resolver that has not answered when the question comes again is replaced by the next.
            let is_deaf = is_dns && self.datagrams.get(&token).is_some_and(|flow| flow.asks);
            if is_deaf {
                self.drop_datagrams(token, port);
                if let Some(server) = self.resolvers.current(now) {
                    self.resolvers.failed(server);
                }
            }
        }
        if !self.datagrams_by_key.contains_key(&(kind, key)) {
            let target = match kind {
                Kind::Echo if is_dns => return Ok(Err(Errno::HOSTUNREACH)),
                _ => self.target(key.remote, now),
            };
            let socket = match target.and_then(|target| datagrams(kind, target)) {
                Ok(socket) => socket,
                Err(errno) => return Ok(Err(errno)),
            };
            if self.datagrams.len() >= MAX_DATAGRAMS {
                let oldest =
                    self.datagrams.iter().min_by_key(|(_, flow)| flow.expires).map(|(token, _)| *token);
                if let Some(oldest) = oldest {
                    self.drop_datagrams(oldest, port);
                }
            }
            let token = self.token();
            port.watch(event::socket(&socket), token, Ready::READ)
                .map_err(|source| Error::Host { doing: "watching a socket of the guest", source })?;
            self.datagrams.insert(token, datagram::Flow { kind, key, socket, expires, asks: is_dns });
            self.datagrams_by_key.insert((kind, key), token);
            self.wake_at(Some(expires));
        }
        let token = self.datagrams_by_key.get(&(kind, key)).copied().unwrap_or(0);
        match self.datagrams.get_mut(&token) {
            Some(flow) => {
                flow.expires = expires;
                Ok(Ok(flow.socket.as_fd()))
            }
            None => Ok(Err(Errno::HOSTUNREACH)),
        }
    }

    fn drop_datagrams(&mut self, token: Token, port: &mut Port<'_>) {
        if let Some(flow) = self.datagrams.remove(&token) {
            self.datagrams_by_key.remove(&(flow.kind, flow.key));
            flow.close(port);
        }
    }

    /// Forgets the pairs of ends that have said nothing for long.
    pub(super) fn expire(&mut self, now: Instant, port: &mut Port<'_>) {
        let late: Vec<Token> =
            self.datagrams.iter().filter(|(_, flow)| flow.expires <= now).map(|(token, _)| *token).collect();
        for token in late {
            self.drop_datagrams(token, port);
        }
    }

    /// Answers from outside.
    pub(super) fn on_datagrams(
        &mut self,
        token: Token,
        now: Instant,
        port: &mut Port<'_>,
    ) -> Result<(), Error> {
        self.make_scratch();
        let (link, scratch) = (self.link(), &mut self.scratch);
        let Some(flow) = self.datagrams.get_mut(&token) else { return Ok(()) };
        flow.expires = flow.expires.max(now + IDLE_DNS);
        let Some(errno) = flow.receive(link, scratch, port)? else { return Ok(()) };
        let (kind, key) = (flow.kind, flow.key);
        self.drop_datagrams(token, port);
        if kind == Kind::Udp {
            let ports =
                [key.guest.port().to_be_bytes(), key.remote.port().to_be_bytes(), [0, 8], [0, 0]].concat();
            self.unreachable(key, wire::UDP, &ports, errno);
        }
        Ok(())
    }

    /// An ICMP message of the guest: an echo, or a question who the gateway is.
    pub(super) fn icmp(&mut self, ip: &Ip, mut data: Reader<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        data.skip(ip.at);
        let mut message = vec![0; ip.len];
        let count = data.read(&mut message).unwrap_or(0);
        message.truncate(count);
        let Some(kind) = byte(&message, 0) else { return Ok(()) };
        if kind == SOLICITATION && ip.src.is_ipv6() {
            return self.advertise(ip, &message, port);
        }
        let Some((_, answer)) = ECHO.into_iter().find(|(request, _)| *request == kind) else { return Ok(()) };
        if (kind == 8) != ip.src.is_ipv4() {
            return Ok(());
        }
        if self.addresses.is_gateway(ip.dst) {
            if let Some(kind) = message.first_mut() {
                *kind = answer;
            }
            let frame = self.link().icmp(ip.dst, ip.src, &message);
            return port.deliver(&Outgoing { head: &frame, ..Outgoing::default() }).map(|_| ());
        }
        let Some(id) = be16(&message, 4) else { return Ok(()) };
        let key = Key { guest: SocketAddr::new(ip.src, id), remote: SocketAddr::new(ip.dst, 0) };
        let protocol = ip.protocol;
        let sent = self.datagram_socket(Kind::Echo, key, port)?.and_then(|socket| {
            match rustix::net::send(socket, &message, os::SEND) {
                Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) => Ok(()),
                Err(errno) => Err(errno),
            }
        });
        if let Err(errno) = sent {
            self.unreachable(key, protocol, message.get(..8).unwrap_or_default(), errno);
        }
        Ok(())
    }

    /// Answers a neighbour solicitation for the gateway (RFC 4861, 7.2.4).
    fn advertise(&mut self, ip: &Ip, message: &[u8], port: &mut Port<'_>) -> Result<(), Error> {
        let gateway = self.addresses.gateway6;
        if wire::array::<16>(message, 8) != Some(gateway.octets()) || ip.src.is_unspecified() {
            return Ok(());
        }
        // A router, solicited, to replace what was known; then our address.
        let mut reply = vec![ADVERTISEMENT, 0, 0, 0, 0xe0, 0, 0, 0];
        reply.extend(gateway.octets());
        reply.extend([2, 1]);
        reply.extend(super::GATEWAY_MAC.0);
        let frame = self.link().icmp(gateway.into(), ip.src, &reply);
        port.deliver(&Outgoing { head: &frame, ..Outgoing::default() }).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_loopback_is_reached_by_no_address() {
        let refused = [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:8.8.8.8",
            "fe80::1",
            "ff02::1",
            "240.0.0.1",
        ];
        for address in refused {
            assert!(!is_reachable(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "8.8.8.8", "169.254.169.254", "2001:db8::1", "fd00::1"] {
            assert!(is_reachable(address.parse().unwrap()), "{address}");
        }
    }
}
