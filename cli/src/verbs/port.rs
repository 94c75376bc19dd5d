//! `servin port`, and how published ports are shown.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};
use servin_engine::network::Published;

use super::containers::{config, open};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::output;

/// Prints where the container's ports, or one of them, are published.
pub(crate) fn run(global: &Global, name: &str, port: Option<&str>) -> Result<u8> {
    let store = open(global)?;
    let record = store.containers().find(name)?;
    let ports = config(&record)?.plan.ports;
    let living = record.pid.is_some();
    let ports: &[Published] = if living { &ports } else { &[] };
    let wanted = port.map(|port| if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") });
    let mut text = String::new();
    for one in ports {
        let key = format!("{}/{}", one.guest, one.protocol);
        let at = SocketAddr::new(one.ip, one.host);
        match &wanted {
            None => text.push_str(&format!("{key} -> {at}\n")),
            Some(wanted) if *wanted == key => text.push_str(&format!("{at}\n")),
            Some(_) => {}
        }
    }
    if let (Some(wanted), true) = (wanted, text.is_empty()) {
        let what = format!("no port {wanted} of container {name} is published");
        return Err(Error::Usage { what, verb: "port".into() });
    }
    output::text(&text);
    Ok(0)
}

/// For a column: `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 53/udp`.
pub(super) fn column(ports: &[Published], exposed: &[String]) -> String {
    let published = ports
        .iter()
        .map(|one| format!("{}->{}/{}", SocketAddr::new(one.ip, one.host), one.guest, one.protocol));
    let others = exposed.iter().filter(|port| !ports.iter().any(|one| is_of(one, port))).cloned();
    published.chain(others).collect::<Vec<_>>().join(", ")
}

/// As docker inspects them: `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": null}`.
pub(super) fn map(ports: &[Published], exposed: &[String]) -> Value {
    let mut map = Map::new();
    for port in exposed {
        let bindings: Vec<Value> = ports
            .iter()
            .filter(|one| is_of(one, port))
            .map(|one| json!({ "HostIp": one.ip.to_string(), "HostPort": one.host.to_string() }))
            .collect();
        map.insert(port.clone(), if bindings.is_empty() { Value::Null } else { bindings.into() });
    }
    map.into()
}

fn is_of(one: &Published, port: &str) -> bool {
    port.split_once('/').is_some_and(|(number, protocol)| {
        number == one.guest.to_string() && protocol == one.protocol.to_string()
    })
}

#[cfg(test)]
mod tests {
    use servin_engine::network::Protocol;

    use super::*;

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        let of =
            |ip: &str| Published { ip: ip.parse().unwrap(), host: 8080, guest: 80, protocol: Protocol::Tcp };
        let exposed = ["53/udp".to_owned(), "80/tcp".to_owned()];
        let ports = [of("0.0.0.0"), of("::")];
        assert_eq!(column(&ports, &exposed), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 53/udp");
        let map = map(&ports, &exposed);
        assert_eq!(map["80/tcp"][1], json!({ "HostIp": "::", "HostPort": "8080" }));
        assert_eq!(map["53/udp"], Value::Null);
    }
}
