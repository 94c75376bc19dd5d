//! `/etc/resolv.conf` of a container.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::{Mode, Networking, RESOLV_CONF};

/// The content of `/etc/resolv.conf`: the gateway, which asks the host's resolvers, with the host's search list and
/// options; `None` without a card.
pub(crate) fn resolv_conf(networking: &Networking) -> Option<Vec<u8>> {
    if !networking.has_card() {
        return None;
    }
    let host = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    Some(from_host(networking, &host))
}

fn from_host(networking: &Networking, host: &str) -> Vec<u8> {
    let mut text = String::new();
    // On a network that is shared the gateway knows the others' names, and asks those resolvers itself.
    let is_shared = networking.is_shared();
    let primary = networking.primary();
    let gateway = primary.map(|primary| Ipv4Addr::from(networking.network(primary).gateway));
    let is_tap = primary.is_some_and(|primary| matches!(primary.mode, Mode::Tap(_)));
    match networking.dns.as_slice() {
        [] if is_tap && !resolvers(host).is_empty() => {
            resolvers(host).iter().for_each(|server| _ = writeln!(text, "nameserver {server}"));
        }
        servers if is_shared || servers.is_empty() => {
            gateway.iter().for_each(|gateway| _ = writeln!(text, "nameserver {gateway}"));
        }
        servers => servers.iter().for_each(|server| _ = writeln!(text, "nameserver {server}")),
    }
    let words = |name: &str, given: &[String]| match given {
        // As docker has it: a single dot is no search list at all.
        [one] if one == "." => None,
        [] => last_line(host, name),
        given => Some(given.join(" ")),
    };
    let options = |words: Option<String>| match words {
        // A name without a dot is looked up as it is first: it may be another container's.
        words if is_shared && networking.dns_options.is_empty() => {
            let words = words.unwrap_or_default();
            let kept = words.split(' ').filter(|word| !word.is_empty() && !word.starts_with("ndots:"));
            Some(kept.chain(["ndots:0"]).collect::<Vec<_>>().join(" "))
        }
        words => words,
    };
    for (name, given) in [("search", &networking.dns_search), ("options", &networking.dns_options)] {
        let words = words(name, given);
        if let Some(words) = if name == "options" { options(words) } else { words } {
            let _ = writeln!(text, "{name} {words}");
        }
    }
    text.into_bytes()
}

/// The host's resolvers that another machine reaches: on a tap there is no gateway of ours to ask them.
fn resolvers(host: &str) -> Vec<IpAddr> {
    let server = |line: &str| line.strip_prefix("nameserver")?.trim().parse().ok();
    host.lines().filter_map(server).filter(|server: &IpAddr| !server.is_loopback()).collect()
}

/// The words behind `name` where it last stands in a resolv.conf.
fn last_line(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '\t']))?;
    let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(words).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_resolves_with_the_hosts_search_list_unless_others_were_given() {
        let host = "nameserver 127.0.0.53\nsearch one\nsearch  a.example\tb.example\noptions edns0 trust-ad\nsearchx no\n";
        let text = |networking: &Networking| String::from_utf8(from_host(networking, host)).unwrap();
        assert_eq!(
            text(&Networking::default()),
            "nameserver 10.0.2.2\nsearch a.example b.example\noptions edns0 trust-ad\n"
        );
        let given = Networking {
            dns: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
            dns_search: vec![".".into()],
            dns_options: vec!["ndots:2".into(), "rotate".into()],
            ..Networking::default()
        };
        assert_eq!(text(&given), "nameserver 9.9.9.9\nnameserver 2620:fe::fe\noptions ndots:2 rotate\n");
        assert_eq!(resolv_conf(&Networking { attachments: Vec::new(), ..given.clone() }), None);
        // The gateway knows the names of a network that is shared, and is asked for them as they are.
        let shared = Networking::on(Mode::Shared("net".into()));
        assert_eq!(
            text(&shared),
            "nameserver 10.0.2.2\nsearch a.example b.example\noptions edns0 trust-ad ndots:0\n"
        );
        // On a tap there is no gateway of ours: the host's own resolvers, where they can be reached from it.
        let subnet = "192.168.5.0/24".parse().unwrap();
        let tap = super::super::Tap { name: "tap0".into(), subnet, gateway: [192, 168, 5, 1].into() };
        let tap = Networking::on(Mode::Tap(tap));
        assert!(text(&tap).starts_with("nameserver 192.168.5.1\nsearch"));
        let reached = from_host(&tap, "nameserver ::1\nnameserver 192.168.5.9\n");
        assert_eq!(String::from_utf8(reached).unwrap(), "nameserver 192.168.5.9\n");
        let given = Networking { attachments: shared.attachments, ..given };
        assert_eq!(text(&given), "nameserver 10.0.2.2\noptions ndots:2 rotate\n");
    }
}
