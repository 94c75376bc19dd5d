//! Published ports. They are bound before the machine is made, so that one that is taken is an error before anything
//! has been started.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::nat::Listener;

use crate::{Error, Result, os};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;
/// How often a port that is free in one family is looked for in the other.
const TRIES: u32 = 8;

/// What a port is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `80`, `80/tcp` or `53/udp`, as images expose ports.
pub(super) fn parse(text: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((port.parse().ok().filter(|port| *port != 0)?, protocol))
}

/// A port to be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address of the host; all of them, of both families, without.
    pub ip: Option<IpAddr>,
    /// The first free port of this range; any free one for 0.
    pub host: (u16, u16),
    /// The container's port.
    pub guest: u16,
    /// What it is for.
    pub protocol: Protocol,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Address of the host.
    pub ip: IpAddr,
    /// Its port.
    pub host: u16,
    /// The container's port.
    pub guest: u16,
    /// What it is for.
    pub protocol: Protocol,
}

/// One with its socket.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) published: Published,
    socket: OwnedFd,
}

impl Bound {
    /// The socket, for a machine: it is the same one.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        let socket = self.socket.try_clone()?;
        Ok(match self.published.protocol {
            Protocol::Tcp => Listener::Tcp(TcpListener::from(socket)),
            Protocol::Udp => Listener::Udp(UdpSocket::from(socket)),
        })
    }
}

/// Binds all of them, or none.
pub(crate) fn bind(wanted: &[Publish]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for publish in wanted {
        bound.extend(bind_one(publish)?);
    }
    Ok(bound)
}

fn bind_one(publish: &Publish) -> Result<Vec<Bound>> {
    let (first, last) = publish.host;
    let mut failed = None;
    for port in first..=last.max(first) {
        for _ in 0..if port == 0 { TRIES } else { 1 } {
            match bind_at(publish, port) {
                Ok(bound) => return Ok(bound),
                Err((ip, source)) => {
                    let is_taken = source.kind() == io::ErrorKind::AddrInUse;
                    failed = Some(Error::Port {
                        address: SocketAddr::new(ip, port),
                        protocol: publish.protocol,
                        source,
                    });
                    if !is_taken {
                        return failed.map_or(Ok(Vec::new()), Err);
                    }
                }
            }
        }
    }
    failed.map_or(Ok(Vec::new()), Err)
}

/// Binds one port of the host, at the given address or at all of them.
fn bind_at(publish: &Publish, port: u16) -> std::result::Result<Vec<Bound>, (IpAddr, io::Error)> {
    let one = |ip: IpAddr, port: u16| {
        let (socket, host) =
            socket(SocketAddr::new(ip, port), publish.protocol).map_err(|error| (ip, error))?;
        let published = Published { ip, host, guest: publish.guest, protocol: publish.protocol };
        Ok(Bound { published, socket })
    };
    if let Some(ip) = publish.ip {
        return Ok(vec![one(ip, port)?]);
    }
    let v4 = one(Ipv4Addr::UNSPECIFIED.into(), port)?;
    let v6 = one(Ipv6Addr::UNSPECIFIED.into(), v4.published.host);
    match v6 {
        Ok(v6) => Ok(vec![v4, v6]),
        Err((ip, error)) if error.kind() == io::ErrorKind::AddrInUse => Err((ip, error)),
        // A host without IPv6.
        Err(_) => Ok(vec![v4]),
    }
}

fn socket(address: SocketAddr, protocol: Protocol) -> io::Result<(OwnedFd, u16)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = os::socket(family, kind)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier container that linger are no reason to refuse; a listener is one all the same.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    let bound: SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
    Ok((socket, bound.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(ip: Option<IpAddr>, host: (u16, u16)) -> Publish {
        Publish { ip, host, guest: 80, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it_and_nothing_stays_bound() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (ip, port) = (taken.local_addr().unwrap().ip(), taken.local_addr().unwrap().port());
        let error = bind(&[publish(Some(ip), (free, free)), publish(Some(ip), (port, port))]).unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}/tcp")), "{error}");
        TcpListener::bind((ip, free)).unwrap();
    }

    #[test]
    fn the_first_free_port_of_a_range_is_taken() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let bound =
            bind(&[publish(Some(Ipv4Addr::LOCALHOST.into()), (port, port.saturating_add(20)))]).unwrap();
        assert!(bound[0].published.host > port);
    }

    #[test]
    fn without_an_address_a_port_is_the_same_in_both_families() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let bound = bind(&[Publish { protocol, ..publish(None, (0, 0)) }]).unwrap();
            assert!(
                bound
                    .iter()
                    .all(|one| one.published.host == bound[0].published.host && one.published.host != 0)
            );
            assert_eq!(bound[0].published.ip, IpAddr::from(Ipv4Addr::UNSPECIFIED));
            assert!(matches!(
                (bound[0].listener().unwrap(), protocol),
                (Listener::Tcp(_), Protocol::Tcp) | (Listener::Udp(_), Protocol::Udp)
            ));
        }
    }

    #[test]
    fn exposed_ports_are_read_as_images_write_them() {
        assert_eq!(parse("80/tcp"), Some((80, Protocol::Tcp)));
        assert_eq!(parse("53/udp"), Some((53, Protocol::Udp)));
        for bad in ["", "0", "x/tcp", "70000", "5/sctp"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
