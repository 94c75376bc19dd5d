//! Ports as they are published and exposed.

use std::net::IpAddr;

use servin_engine::network::{Protocol, Publish};

/// The most ports that one range names: each is a socket.
const MOST_PORTS: usize = 256;

/// `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, where HOST and CONTAINER may be ranges.
pub(super) fn publish(text: &str) -> Result<Vec<Publish>, String> {
    const FORM: &str = "it is [[IP:]PORT:]PORT[/udp], or with ranges as 8000-8010:80-90";
    let (ports, protocol) = protocol(text)?;
    let (rest, guest) = match ports.rsplit_once(':') {
        Some((rest, guest)) => (Some(rest), guest),
        None => (None, ports),
    };
    let (ip, host) = match rest.map(|rest| (rest, rest.rsplit_once(':'))) {
        None => (None, ""),
        Some((host, None)) => (None, host),
        Some((_, Some((ip, host)))) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
            let ip: Option<IpAddr> = match bare {
                "" => None,
                bare => Some(bare.parse().map_err(|_| format!("\"{bare}\" is no IP address"))?),
            };
            (ip, host)
        }
    };
    let guest = range(guest).ok_or(FORM)?;
    let host = if host.is_empty() { None } else { Some(range(host).ok_or(FORM)?) };
    let count = usize::from(guest.1 - guest.0) + 1;
    if count > MOST_PORTS {
        return Err(format!("a range has {MOST_PORTS} ports at most"));
    }
    let at = |number: u16, guest: u16| -> Result<(u16, u16), String> {
        match host {
            None => Ok((0, 0)),
            Some(range) if count == 1 => Ok(range),
            Some((first, last)) if usize::from(last - first) + 1 == count => {
                Ok((first + number, first + number))
            }
            Some(_) => Err(format!("the ranges differ in length, for port {guest} already")),
        }
    };
    (guest.0..=guest.1)
        .zip(0..)
        .map(|(guest, number)| Ok(Publish { ip, host: at(number, guest)?, guest, protocol }))
        .collect()
}

fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.split_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((ports, name)) => match name.to_ascii_lowercase().as_str() {
            "tcp" => Ok((ports, Protocol::Tcp)),
            "udp" => Ok((ports, Protocol::Udp)),
            _ => Err("the protocol is tcp or udp".into()),
        },
    }
}

/// A port or a range of them, none of them 0.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first != 0 && first <= last).then_some((first, last))
}

pub(super) fn expose(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    let (ports, protocol) = protocol(text)?;
    let (first, last) = range(ports).ok_or("it is PORT[/udp], or a range as 8000-8010")?;
    if usize::from(last - first) >= MOST_PORTS {
        return Err(format!("a range has {MOST_PORTS} ports at most"));
    }
    Ok((first..=last).map(|port| (port, protocol)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Publish {
        let mut list = publish(text).unwrap();
        assert_eq!(list.len(), 1, "{text}");
        list.remove(0)
    }

    #[test]
    fn a_published_port_has_an_address_a_port_of_the_host_and_a_protocol_or_not() {
        let of = |ip: Option<&str>, host, guest, protocol| Publish {
            ip: ip.map(|ip| ip.parse().unwrap()),
            host,
            guest,
            protocol,
        };
        assert_eq!(one("80"), of(None, (0, 0), 80, Protocol::Tcp));
        assert_eq!(one("8080:80"), of(None, (8080, 8080), 80, Protocol::Tcp));
        assert_eq!(one("8080:80/udp"), of(None, (8080, 8080), 80, Protocol::Udp));
        assert_eq!(one("127.0.0.1:8080:80/TCP"), of(Some("127.0.0.1"), (8080, 8080), 80, Protocol::Tcp));
        assert_eq!(one("127.0.0.1::80"), of(Some("127.0.0.1"), (0, 0), 80, Protocol::Tcp));
        assert_eq!(one("[::1]:8080:80"), of(Some("::1"), (8080, 8080), 80, Protocol::Tcp));
        // The first free one of several.
        assert_eq!(one("8000-8010:80"), of(None, (8000, 8010), 80, Protocol::Tcp));
    }

    #[test]
    fn ranges_of_one_length_are_published_port_by_port() {
        let list = publish("8000-8002:90-92/udp").unwrap();
        let ports: Vec<_> = list.iter().map(|one| (one.host.0, one.guest)).collect();
        assert_eq!(ports, [(8000, 90), (8001, 91), (8002, 92)]);
        assert_eq!(publish("90-92").unwrap().len(), 3);
        for bad in [
            "8000-8001:90-92",
            "90-80",
            "0:80",
            "80:0",
            "x:80",
            "80:",
            "80/sctp",
            "1.2.3:80:80",
            "1-9999",
            "+8:80",
        ] {
            assert!(publish(bad).is_err(), "{bad}");
        }
        assert_eq!(expose("70-71/udp").unwrap(), [(70, Protocol::Udp), (71, Protocol::Udp)]);
    }
}
