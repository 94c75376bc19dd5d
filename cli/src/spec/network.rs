//! What the flags about the network mean.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use servin_engine::network::{Mode, Networking, Protocol, Publish, Subnet, Tap};

use super::run::value;
use crate::args;
use crate::error::{Error, Result};

/// Why there is no network of the host's.
pub(crate) const NO_HOST_NETWORK: &str = "a container is a virtual machine and has a kernel of its own, so that it cannot have the host's network; publish ports with -p";
/// The most ports that one range names: each is a socket.
const MOST_PORTS: usize = 256;

/// Checks ports alone.
pub(crate) fn published(words: &[OsString]) -> Result<Vec<Publish>> {
    let mut list = Vec::new();
    for word in words {
        let text = utf8("-p, --publish", word)?;
        list.extend(publish(text).map_err(value("-p, --publish", word))?);
    }
    Ok(list)
}

/// Checks the flags.
pub(super) fn networking(typed: &args::Network) -> Result<Networking> {
    let mut networking = Networking { mode: mode(typed.network.as_deref())?, ..Networking::default() };
    networking.publish = published(&typed.publish)?;
    networking.publish_all = typed.publish_all;
    for word in &typed.expose {
        let text = utf8("--expose", word)?;
        networking.expose.extend(expose(text).map_err(value("--expose", word))?);
    }
    for word in &typed.dns {
        let ip = utf8("--dns", word)?.parse();
        networking.dns.push(ip.map_err(|_| value("--dns", word)("it is an IP address".into()))?);
    }
    for (words, list, flag) in [
        (&typed.dns_search, &mut networking.dns_search, "--dns-search"),
        (&typed.dns_option, &mut networking.dns_options, "--dns-option"),
    ] {
        for word in words {
            let text = utf8(flag, word)?;
            if text.is_empty() || text.chars().any(|char| char.is_whitespace() || char.is_control()) {
                return Err(value(flag, word)("it is one word".into()));
            }
            list.push(text.to_owned());
        }
    }
    if let Some(text) = &typed.mac_address {
        networking.mac = Some(mac(text).map_err(value("--mac-address", text))?);
    }
    let is_shared = matches!(networking.mode, Mode::Shared(_));
    if let Some(text) = &typed.ip {
        // Of a network that is shared the store knows the addresses.
        let any = |text: &str| text.parse().map_err(|_| "it is an IPv4 address".to_owned());
        let read = match &networking.mode {
            Mode::Shared(_) => any(text),
            Mode::Tap(tap) => any(text).and_then(|address| on_tap(tap, address)),
            _ => address(text),
        };
        networking.address = Some(read.map_err(value("--ip", text))?);
    }
    if let Mode::Tap(tap) = &networking.mode
        && networking.address.is_none()
        && let Err(why) = on_tap(tap, Ipv4Addr::from(networking.network().address))
    {
        let what = format!("--network tap:{} needs --ip with this subnet and gateway: {why}", tap.name);
        return Err(Error::Usage { what, verb: "run".into() });
    }
    for word in &typed.aliases {
        networking.aliases.push(utf8("--network-alias", word)?.to_owned());
    }
    if !networking.aliases.is_empty() && !is_shared {
        let what = "--network-alias needs a network that containers share: see \"servin network create\"";
        return Err(Error::Usage { what: what.into(), verb: "run".into() });
    }
    if networking.mode == Mode::None {
        let useless = [
            ("-p, --publish", !networking.publish.is_empty()),
            ("-P, --publish-all", networking.publish_all),
            ("--dns", !networking.dns.is_empty()),
            ("--dns-search", !networking.dns_search.is_empty()),
            ("--dns-option", !networking.dns_options.is_empty()),
            ("--mac-address", networking.mac.is_some()),
            ("--ip", networking.address.is_some()),
        ];
        if let Some((flag, _)) = useless.iter().find(|(_, given)| *given) {
            let what = format!("{flag} needs a network, and --network none is none");
            return Err(Error::Usage { what, verb: "run".into() });
        }
    }
    if !networking.publish.is_empty() || networking.publish_all {
        let others = match &networking.mode {
            Mode::Socket(_) => "with --network socket:PATH whoever listens there publishes",
            Mode::Tap(_) => "on a tap the container is reached at its own address",
            _ => return Ok(networking),
        };
        let what = format!("-p and -P are for networks of servin's: {others}");
        return Err(Error::Usage { what, verb: "run".into() });
    }
    Ok(networking)
}

fn utf8<'a>(flag: &'static str, word: &'a OsString) -> Result<&'a str> {
    word.to_str().ok_or_else(|| value(flag, word)("it is not valid UTF-8".into()))
}

fn mode(name: Option<&str>) -> Result<Mode> {
    match name {
        None | Some("default" | "bridge") => Ok(Mode::Own),
        Some("none") => Ok(Mode::None),
        Some("host") => Err(value("--network", &OsString::from("host"))(NO_HOST_NETWORK.to_owned())),
        Some(other) if other.starts_with("socket:") => match other.split_at("socket:".len()).1 {
            path if path.starts_with('/') => Ok(Mode::Socket(path.into())),
            _ => Err(value("--network", &OsString::from(other))(
                "it is socket:PATH, and PATH begins with /".to_owned(),
            )),
        },
        Some(other) if other.starts_with("tap:") => {
            tap(other.split_at("tap:".len()).1).map(Mode::Tap).map_err(value("--network", other))
        }
        Some(other) if other.contains([':', '=', ',']) => {
            Err(Error::NotBuilt { what: format!("run --network {other}"), code: 125 })
        }
        Some(name) => Ok(Mode::Shared(name.to_owned())),
    }
}

/// `NAME[,subnet=SUBNET][,gateway=IP]`: without them the addresses are those of a container's own network.
fn tap(text: &str) -> Result<Tap, String> {
    const FORM: &str =
        "it is tap:NAME[,subnet=SUBNET][,gateway=IP], and NAME is that of a device, of 15 bytes at most";
    let mut parts = text.split(',');
    let name = parts.next().filter(|name| Tap::is_name(name)).ok_or(FORM)?.to_owned();
    let (mut subnet, mut gateway): (Option<Subnet>, Option<Ipv4Addr>) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("subnet", text)) => subnet = Some(text.parse()?),
            Some(("gateway", text)) => {
                gateway = Some(text.parse().map_err(|_| "the gateway is an IPv4 address")?)
            }
            _ => return Err(FORM.into()),
        }
    }
    let (subnet, usual) = match subnet {
        Some(subnet) => (subnet, subnet.hosts().next().ok_or(FORM)?),
        None => ("10.0.2.0/24".parse()?, Ipv4Addr::new(10, 0, 2, 2)),
    };
    let gateway = gateway.unwrap_or(usual);
    if !subnet.has_host(gateway) {
        return Err(format!("the gateway {gateway} is no address of a host in {subnet}"));
    }
    Ok(Tap { name, subnet, gateway })
}

/// Whether a container can have this address on a tap.
fn on_tap(tap: &Tap, address: Ipv4Addr) -> Result<Ipv4Addr, String> {
    match address {
        address if address == tap.gateway => Err(format!("{address} is the gateway's")),
        address if !tap.subnet.has_host(address) => {
            Err(format!("{address} is no address of a host in {}", tap.subnet))
        }
        address => Ok(address),
    }
}

/// `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, where HOST and CONTAINER may be ranges.
fn publish(text: &str) -> Result<Vec<Publish>, String> {
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

fn expose(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    let (ports, protocol) = protocol(text)?;
    let (first, last) = range(ports).ok_or("it is PORT[/udp], or a range as 8000-8010")?;
    if usize::from(last - first) >= MOST_PORTS {
        return Err(format!("a range has {MOST_PORTS} ports at most"));
    }
    Ok((first..=last).map(|port| (port, protocol)).collect())
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    const FORM: &str = "it is six bytes as 02:42:ac:11:00:02, the first of them even";
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(FORM)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| FORM)?;
    }
    let is_good = parts.next().is_none() && mac.first().is_some_and(|first| first & 1 == 0) && mac != [0; 6];
    is_good.then_some(mac).ok_or_else(|| FORM.to_owned())
}

/// An address in the container's own network, which is 10.0.2.0/24 with its gateway at 2.
fn address(text: &str) -> Result<Ipv4Addr, String> {
    const FORM: &str = "it is an address of 10.0.2.0/24, from 10.0.2.3 to 10.0.2.254";
    let address: Ipv4Addr = text.parse().map_err(|_| FORM)?;
    match address.octets() {
        [10, 0, 2, 3..=254] => Ok(address),
        _ => Err(FORM.into()),
    }
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
    }

    #[test]
    fn addresses_and_exposed_ports_are_checked() {
        assert_eq!(mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        assert!(mac("01:42:ac:11:00:02").is_err() && mac("02:42:ac:11:00").is_err());
        assert!(address("10.0.2.77").is_ok() && address("10.0.2.2").is_err() && address("10.0.3.7").is_err());
        assert_eq!(expose("70-71/udp").unwrap(), [(70, Protocol::Udp), (71, Protocol::Udp)]);
    }

    #[test]
    fn without_a_network_nothing_is_published() {
        let typed = |network: &str| args::Network {
            network: Some(network.into()),
            publish: vec!["80".into()],
            ..args::Network::default()
        };
        assert!(networking(&typed("none")).unwrap_err().to_string().contains("--network none"));
        assert_eq!(networking(&typed("bridge")).unwrap().mode, Mode::Own);
        assert_eq!(networking(&typed("mine")).unwrap().mode, Mode::Shared("mine".into()));
        let socket = args::Network { network: Some("socket:/run/p".into()), ..args::Network::default() };
        assert_eq!(networking(&socket).unwrap().mode, Mode::Socket("/run/p".into()));
        assert!(networking(&typed("socket:/run/p")).unwrap_err().to_string().contains("publishes"));
        assert!(networking(&typed("socket:p")).unwrap_err().to_string().contains("begins with /"));
        assert!(matches!(networking(&typed("container:x")), Err(Error::NotBuilt { .. })));
        assert!(networking(&typed("host")).unwrap_err().to_string().contains("a kernel of its own"));
    }

    #[test]
    fn a_tap_has_the_addresses_that_were_said_or_the_usual_ones() {
        let typed = |network: &str, ip: Option<&str>| {
            let typed =
                args::Network { network: Some(network.into()), ip: ip.map(Into::into), ..Default::default() };
            networking(&typed).map_err(|error| error.to_string())
        };
        let usual = typed("tap:tap0", None).unwrap().network();
        assert_eq!((usual.address, usual.prefix, usual.gateway), ([10, 0, 2, 15], 24, [10, 0, 2, 2]));
        assert_eq!((usual.mac, usual.gateway_mac, usual.v6), (Some([2, 0x42, 10, 0, 2, 15]), None, None));
        let said = typed("tap:br0-tap1,subnet=192.168.0.0/16,gateway=192.168.7.1", Some("192.168.9.3"));
        let said = said.unwrap().network();
        assert_eq!((said.address, said.prefix, said.gateway), ([192, 168, 9, 3], 16, [192, 168, 7, 1]));
        for (network, ip, why) in [
            ("tap:", None, "15 bytes"),
            ("tap:sixteen-bytes-in", None, "15 bytes"),
            ("tap:t,mtu=9000", None, "subnet=SUBNET"),
            ("tap:t,subnet=1.2.3.4", None, "IPv4 network"),
            ("tap:t,gateway=10.0.3.1", None, "10.0.3.1 is no address of a host in 10.0.2.0/24"),
            ("tap:t,subnet=192.168.5.0/24", None, "needs --ip"),
            ("tap:t,gateway=10.0.2.15", None, "needs --ip"),
            ("tap:t,subnet=192.168.5.0/24", Some("192.168.5.1"), "is the gateway's"),
            ("tap:t", Some("10.0.3.1"), "10.0.3.1 is no address"),
        ] {
            let error = typed(network, ip).unwrap_err();
            assert!(error.contains(why), "{network}: {error}");
        }
        let publishes = args::Network { publish: vec!["80".into()], ..Default::default() };
        let publishes = args::Network { network: Some("tap:t".into()), ..publishes };
        assert!(networking(&publishes).unwrap_err().to_string().contains("its own address"));
    }

    #[test]
    fn names_and_addresses_of_a_network_that_is_shared() {
        let typed = |network: &str, ip: Option<&str>, aliases: &[&str]| args::Network {
            network: Some(network.into()),
            ip: ip.map(Into::into),
            aliases: aliases.iter().map(Into::into).collect(),
            ..args::Network::default()
        };
        let asked = networking(&typed("mine", Some("10.89.0.7"), &["db"])).unwrap();
        assert_eq!((asked.address, asked.aliases), (Some([10, 89, 0, 7].into()), vec!["db".to_owned()]));
        assert!(networking(&typed("mine", Some("x"), &[])).is_err());
        assert!(networking(&typed("bridge", Some("10.89.0.7"), &[])).is_err());
        let alone = networking(&typed("bridge", None, &["db"])).unwrap_err().to_string();
        assert!(alone.contains("--network-alias"), "{alone}");
    }
}
