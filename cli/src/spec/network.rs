//! What the flags about the network mean.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use servin_engine::network::{Attachment, Mode, Networking, Publish, Subnet, Tap};

use super::port::{expose, publish};
use super::run::value;
use crate::args;
use crate::error::{Error, Result};

/// Why there is no network of the host's.
pub(crate) const NO_HOST_NETWORK: &str = "a container is a virtual machine and has a kernel of its own, so that it cannot have the host's network; publish ports with -p";

/// Why a name is no use.
const NO_ALIAS: &str = "--network-alias needs a network that containers share: see \"servin network create\"";

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
    let mut networking = Networking { attachments: attachments(typed)?, ..Networking::none() };
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
    if !networking.has_card() {
        let useless = [
            ("-p, --publish", !networking.publish.is_empty()),
            ("-P, --publish-all", networking.publish_all),
            ("--dns", !networking.dns.is_empty()),
            ("--dns-search", !networking.dns_search.is_empty()),
            ("--dns-option", !networking.dns_options.is_empty()),
            ("--mac-address", typed.mac_address.is_some()),
            ("--ip", typed.ip.is_some()),
        ];
        if let Some((flag, _)) = useless.iter().find(|(_, given)| *given) {
            return Err(usage(format!("{flag} needs a network, and --network none is none")));
        }
    }
    if !networking.publish.is_empty() || networking.publish_all {
        let others = match networking.attachments.first().map(|one| &one.mode) {
            Some(Mode::Socket(_)) => "with --network socket:PATH whoever listens there publishes",
            Some(Mode::Tap(_)) => "on a tap the container is reached at its own address",
            _ => return Ok(networking),
        };
        return Err(usage(format!("-p and -P are for networks of servin's: {others}")));
    }
    Ok(networking)
}

fn usage(what: String) -> Error {
    Error::Usage { what, verb: "run".into() }
}

fn utf8<'a>(flag: &'static str, word: &'a OsString) -> Result<&'a str> {
    word.to_str().ok_or_else(|| value(flag, word)("it is not valid UTF-8".into()))
}

/// The networks, in the order in which they were named. What other flags say is about the first of them.
fn attachments(typed: &args::Network) -> Result<Vec<Attachment>> {
    let words = typed.network.iter().map(|word| utf8("--network", word)).collect::<Result<Vec<_>>>()?;
    let words = if words.is_empty() { vec!["default"] } else { words };
    let mut networking = Networking::none();
    let is_alone = words.len() == 1;
    for (index, word) in words.iter().enumerate() {
        let mut asked = Asked::read(word)?;
        if index == 0 {
            asked.add_flags(typed)?;
        }
        match asked.attachment(is_alone)? {
            Some(one) if networking.find(one.mode.network()).is_some() => {
                return Err(usage(format!("network \"{}\" is specified multiple times", one.mode.network())));
            }
            Some(one) => networking.push(one),
            None if is_alone => {}
            None => return Err(usage(many("private (none)"))),
        }
    }
    if words.len() > Networking::MOST {
        let most = Networking::MOST;
        return Err(usage(format!(
            "a container is on {most} networks at most, and {} were given",
            words.len()
        )));
    }
    Ok(networking.attachments)
}

/// In docker's words.
fn many(mode: &str) -> String {
    format!("container cannot be connected to multiple networks with one of the networks in {mode} mode")
}

/// What is asked of one network.
#[derive(Default)]
struct Asked<'a> {
    /// The network, as it was written.
    name: &'a str,
    /// The address, and the flag that says it.
    ip: Option<(&'static str, &'a str)>,
    mac: Option<(&'static str, &'a str)>,
    aliases: Vec<&'a str>,
}

impl<'a> Asked<'a> {
    /// A network's name, or docker's long form: `name=NAME[,ip=IP][,alias=NAME][,mac-address=MAC]`.
    fn read(word: &'a str) -> Result<Self> {
        let is_long = word.contains('=') && !word.starts_with("tap:") && !word.starts_with("socket:");
        if !is_long {
            return Ok(Self { name: word, ..Self::default() });
        }
        let bad = |why: &str| value("--network", word)(why.to_owned());
        let mut asked = Self::default();
        for part in word.split(',') {
            match part.split_once('=') {
                Some(("name", name)) => asked.name = name,
                Some(("ip", ip)) => asked.ip = Some(("--network", ip)),
                Some(("mac-address", mac)) => asked.mac = Some(("--network", mac)),
                Some(("alias", alias)) => asked.aliases.push(alias),
                Some((key @ ("ip6" | "link-local-ip" | "driver-opt" | "gw-priority"), _)) => {
                    return Err(Error::NotBuilt { what: format!("run --network {key}=..."), code: 125 });
                }
                _ => return Err(bad("it is NAME, or name=NAME[,ip=IP][,alias=NAME][,mac-address=MAC]")),
            }
        }
        if asked.name.is_empty() { Err(bad("network name/id is not specified")) } else { Ok(asked) }
    }

    /// Adds what the flags say that are about the first network.
    fn add_flags(&mut self, typed: &'a args::Network) -> Result<()> {
        let twice = |flag, what| {
            usage(format!("conflicting options: cannot specify both {flag} and per-network {what}"))
        };
        if let Some(ip) = &typed.ip
            && self.ip.replace(("--ip", ip)).is_some()
        {
            return Err(twice("--ip", "IPv4 address"));
        }
        if let Some(mac) = &typed.mac_address
            && self.mac.replace(("--mac-address", mac)).is_some()
        {
            return Err(twice("--mac-address", "MAC address"));
        }
        if !self.aliases.is_empty() && !typed.aliases.is_empty() {
            return Err(twice("--network-alias", "alias"));
        }
        for word in &typed.aliases {
            self.aliases.push(utf8("--network-alias", word)?);
        }
        Ok(())
    }

    /// The network, if it is one; others can be beside it if it is not alone.
    fn attachment(self, is_alone: bool) -> Result<Option<Attachment>> {
        let Some(mode) = mode(self.name)? else {
            return match self.aliases.is_empty() {
                true => Ok(None),
                false => Err(usage(NO_ALIAS.into())),
            };
        };
        if !is_alone && !mode.is_ours() {
            return Err(usage(many(mode.network())));
        }
        let mut one = Attachment::new(mode);
        if let Some((flag, text)) = self.mac {
            one.mac = Some(mac(text).map_err(value(flag, text))?);
        }
        if let Some((flag, text)) = self.ip {
            // Of a network that is shared the store knows the addresses.
            let any = |text: &str| text.parse().map_err(|_| "it is an IPv4 address".to_owned());
            let read = match &one.mode {
                Mode::Shared(_) => any(text),
                Mode::Tap(tap) => any(text).and_then(|address| on_tap(tap, address)),
                _ => address(text),
            };
            one.address = Some(read.map_err(value(flag, text))?);
        }
        if let Mode::Tap(tap) = &one.mode
            && one.address.is_none()
            && let Err(why) = on_tap(tap, Ipv4Addr::from(one.network(true).address))
        {
            let what = format!("--network tap:{} needs --ip with this subnet and gateway: {why}", tap.name);
            return Err(usage(what));
        }
        if !self.aliases.is_empty() && !matches!(one.mode, Mode::Shared(_)) {
            return Err(usage(NO_ALIAS.into()));
        }
        one.aliases = self.aliases.into_iter().map(str::to_owned).collect();
        Ok(Some(one))
    }
}

/// Which network a word means; none for `none`.
fn mode(name: &str) -> Result<Option<Mode>> {
    Ok(Some(match name {
        "default" | "bridge" => Mode::Own,
        "none" => return Ok(None),
        "host" => return Err(value("--network", name)(NO_HOST_NETWORK.to_owned())),
        other if other.starts_with("socket:") => match other.split_at("socket:".len()).1 {
            path if path.starts_with('/') => Mode::Socket(path.into()),
            _ => {
                let why = "it is socket:PATH, and PATH begins with /";
                return Err(value("--network", other)(why.to_owned()));
            }
        },
        other if other.starts_with("tap:") => {
            tap(other.split_at("tap:".len()).1).map(Mode::Tap).map_err(value("--network", other))?
        }
        other if other.contains([':', '=', ',']) => {
            return Err(Error::NotBuilt { what: format!("run --network {other}"), code: 125 });
        }
        name => Mode::Shared(name.to_owned()),
    }))
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

    #[test]
    fn addresses_are_checked() {
        assert_eq!(mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        assert!(mac("01:42:ac:11:00:02").is_err() && mac("02:42:ac:11:00").is_err());
        assert!(address("10.0.2.77").is_ok() && address("10.0.2.2").is_err() && address("10.0.3.7").is_err());
    }

    fn typed(networks: &[&str]) -> args::Network {
        args::Network { network: networks.iter().map(Into::into).collect(), ..args::Network::default() }
    }

    fn refused(typed: &args::Network) -> String {
        networking(typed).unwrap_err().to_string()
    }

    #[test]
    fn without_a_network_nothing_is_published() {
        let publishing = |network| args::Network { publish: vec!["80".into()], ..typed(&[network]) };
        assert!(refused(&publishing("none")).contains("--network none"));
        assert_eq!(networking(&typed(&["none"])).unwrap(), Networking::none());
        assert_eq!(networking(&typed(&["bridge"])).unwrap(), Networking::default());
        assert_eq!(networking(&typed(&[])).unwrap(), Networking::default());
        let on = |network| networking(&typed(&[network])).unwrap();
        assert_eq!(on("mine"), Networking::on(Mode::Shared("mine".into())));
        assert_eq!(on("socket:/run/p"), Networking::on(Mode::Socket("/run/p".into())));
        assert!(refused(&publishing("socket:/run/p")).contains("publishes"));
        assert!(refused(&typed(&["socket:p"])).contains("begins with /"));
        assert!(matches!(networking(&typed(&["container:x"])), Err(Error::NotBuilt { .. })));
        assert!(refused(&typed(&["host"])).contains("a kernel of its own"));
    }

    #[test]
    fn a_tap_has_the_addresses_that_were_said_or_the_usual_ones() {
        let typed = |network: &str, ip: Option<&str>| {
            let typed = args::Network { ip: ip.map(Into::into), ..typed(&[network]) };
            networking(&typed)
                .map(|networking| networking.attachments[0].network(true))
                .map_err(|error| error.to_string())
        };
        let usual = typed("tap:tap0", None).unwrap();
        assert_eq!((usual.address, usual.prefix, usual.gateway), ([10, 0, 2, 15], 24, [10, 0, 2, 2]));
        assert_eq!((usual.mac, usual.gateway_mac, usual.v6), (Some([2, 0x42, 10, 0, 2, 15]), None, None));
        let said = typed("tap:br0-tap1,subnet=192.168.0.0/16,gateway=192.168.7.1", Some("192.168.9.3"));
        let said = said.unwrap();
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
        let publishes =
            args::Network { network: vec!["tap:t".into()], publish: vec!["80".into()], ..Default::default() };
        assert!(refused(&publishes).contains("its own address"));
    }

    #[test]
    fn names_and_addresses_of_a_network_that_is_shared() {
        let typed = |network: &str, ip: Option<&str>, aliases: &[&str]| args::Network {
            ip: ip.map(Into::into),
            aliases: aliases.iter().map(Into::into).collect(),
            ..typed(&[network])
        };
        let asked = networking(&typed("mine", Some("10.89.0.7"), &["db"])).unwrap().attachments.remove(0);
        assert_eq!((asked.address, asked.aliases), (Some([10, 89, 0, 7].into()), vec!["db".to_owned()]));
        assert!(networking(&typed("mine", Some("x"), &[])).is_err());
        assert!(networking(&typed("bridge", Some("10.89.0.7"), &[])).is_err());
        for network in ["bridge", "none"] {
            assert!(refused(&typed(network, None, &["db"])).contains("--network-alias"), "{network}");
        }
    }

    #[test]
    fn several_networks_are_in_the_order_of_their_flags_which_are_about_the_first() {
        let long = "name=back,ip=10.89.0.7,alias=db,alias=store,mac-address=02:00:00:00:00:07";
        let flags = args::Network { ip: Some("10.88.0.5".into()), aliases: vec!["web".into()], ..typed(&[]) };
        let asked = args::Network { network: vec!["front".into(), long.into(), "bridge".into()], ..flags };
        let asked = networking(&asked).unwrap().attachments;
        let front = Attachment {
            address: Some([10, 88, 0, 5].into()),
            aliases: vec!["web".into()],
            ..Attachment::new(Mode::Shared("front".into()))
        };
        let back = Attachment {
            number: 1,
            address: Some([10, 89, 0, 7].into()),
            mac: Some([2, 0, 0, 0, 0, 7]),
            aliases: vec!["db".into(), "store".into()],
            ..Attachment::new(Mode::Shared("back".into()))
        };
        assert_eq!(asked, [front, back, Attachment { number: 2, ..Attachment::default() }]);
        for (networks, why) in [
            (&["a", "none"][..], "networks in private (none) mode"),
            (&["a", "socket:/s"], "networks in socket mode"),
            (&["tap:t", "a"], "networks in tap mode"),
            (&["a", "b", "a"], "network \"a\" is specified multiple times"),
            (&["bridge", "default"], "\"bridge\" is specified multiple times"),
            (&["ip=10.0.0.1"], "name/id is not specified"),
            (&["name=a,mtu=9"], "name=NAME"),
            (&["name=a,ip6=fd00::1"], "ip6= is not built"),
            (&["name=a,ip=x"], "IPv4 address"),
            (&["name=bridge,alias=x"], "containers share"),
        ] {
            let error = refused(&typed(networks)).replace("=... is", "= is");
            assert!(error.contains(why), "{networks:?}: {error}");
        }
        let both = args::Network { ip: Some("10.89.0.8".into()), ..typed(&["name=a,ip=10.89.0.7"]) };
        assert!(refused(&both).contains("both --ip and per-network IPv4 address"));
        let names: Vec<String> = (0..17).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(refused(&typed(&names)).contains("16 networks at most"));
    }
}
