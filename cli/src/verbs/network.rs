//! `servin network`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};

use serde_json::{Map, Value, json};
use servin_engine::Error as Failure;
use servin_engine::container::{is_living, short};
use servin_engine::monitor::wire::Ask;
use servin_engine::network::{
    Change, NetworkError, Networks, NewNetwork, UserNetwork, built_in_id, is_built_in,
};
use servin_engine::store::{Record, Store};
use servin_engine::time::rfc3339;

use super::containers::{done, each, open};
use crate::args::{Global, SharedNetwork};
use crate::error::{Error, Result};
use crate::listing::{Format, Labelled};
use crate::{output, spec};

const COLUMNS: &[(&str, &str)] =
    &[("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope")];
/// Networks that are always there, with docker's drivers.
const BUILT_IN: [(&str, &str); 2] = [("bridge", "bridge"), ("none", "null")];

/// Does what was asked.
pub(crate) fn run(global: &Global, typed: &SharedNetwork) -> Result<u8> {
    let store = open(global)?;
    let networks = Networks::new(&store);
    match typed {
        SharedNetwork::Create { name, subnets, gateways, ipv6, internal, labels } => {
            let labels = labels
                .iter()
                .map(|label| super::volume::label(label, "network create"))
                .collect::<Result<BTreeMap<_, _>>>()?;
            let [subnet, subnet6] = families("--subnet", subnets, *ipv6)?;
            let [gateway, gateway6] = families("--gateway", gateways, *ipv6)?;
            let gateway = gateway.as_deref().map(|text| address("--gateway", text)).transpose()?;
            let gateway6 = gateway6.as_deref().map(|text| address("--gateway", text)).transpose()?;
            let (name, ipv6, internal) = (name.clone(), *ipv6, *internal);
            let new = NewNetwork { name, subnet, gateway, ipv6, subnet6, gateway6, internal, labels };
            let made = networks.create(&new)?;
            output::text(&format!("{}\n", made.id));
        }
        SharedNetwork::List { quiet, format, filter, no_trunc } => {
            let format = Format::new(format.as_deref(), *quiet, "network ls")?;
            let filters = filter.iter().map(|text| Filter::parse(text, true)).collect::<Result<Vec<_>>>()?;
            let rows: Vec<Labelled> = all(&networks)?
                .iter()
                .filter(|(seen, _)| matches(seen, &filters))
                .map(|(seen, network)| row(seen, network.as_ref(), *no_trunc))
                .collect();
            output::text(&format.show(&rows, COLUMNS, "ID")?);
        }
        SharedNetwork::Inspect { names, format } => return inspect(&store, names, format.as_deref()),
        SharedNetwork::Remove { names, force } => {
            return each(names, |name| match networks.remove(name) {
                Err(Failure::Network(NetworkError::None { .. })) if *force => Ok(name.to_owned()),
                done => Ok(done.map(|_| name.to_owned())?),
            });
        }
        SharedNetwork::Connect { network, container, ip, aliases } => {
            refuse_host(network)?;
            let ip = ip.as_deref().map(|text| address("--ip", text)).transpose()?;
            if is_built_in(network) && (ip.is_some() || !aliases.is_empty()) {
                let what =
                    format!("--ip and --alias need a network that was made, and {network} is always there");
                return Err(Error::Usage { what, verb: "network connect".into() });
            }
            let record = store.containers().find(container)?;
            let (network, aliases) = (networks.meant(network)?, aliases.clone());
            change(&store, &record, &Change::Connect { network, address: ip, aliases })?;
        }
        SharedNetwork::Disconnect { network, container, force } => {
            let record = store.containers().find(container)?;
            let network = networks.meant(network)?;
            change(&store, &record, &Change::Disconnect { network, force: *force })?;
        }
        SharedNetwork::Prune { force, filter } => return prune(&networks, *force, filter),
    }
    Ok(0)
}

/// Changes a container's networks: its monitor does where it has one.
fn change(store: &Store, record: &Record, change: &Change) -> Result<()> {
    if is_living(store, &record.id) {
        match done(store, record, &Ask::Networks(Box::new(change.clone()))) {
            // It has ended just now, or only its files are served.
            Err(Error::Engine { error: Failure::NotRunning { .. }, .. }) => {}
            done => return done,
        }
    }
    Ok(Networks::new(store).change(record, change)?)
}

fn refuse_host(network: &str) -> Result<()> {
    if network == "host" {
        let what = spec::NO_HOST_NETWORK.to_owned();
        return Err(Error::Usage { what, verb: "network".into() });
    }
    Ok(())
}

fn address<T: std::str::FromStr>(flag: &'static str, text: &str) -> Result<T> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    let why = format!("it is an {family} address");
    text.parse().map_err(|_| Error::Value { flag, value: text.to_owned(), why, code: 1 })
}

/// What a flag says of IPv4 and of IPv6, once each.
fn families(flag: &'static str, words: &[String], ipv6: bool) -> Result<[Option<String>; 2]> {
    let mut said = [None, None];
    for word in words {
        let bad = |why: &str| Error::Value { flag, value: word.clone(), why: why.into(), code: 1 };
        let is_v6 = word.contains(':');
        if is_v6 && !ipv6 {
            return Err(bad("it is of IPv6, which the network has with --ipv6"));
        }
        let [four, six] = &mut said;
        if (if is_v6 { six } else { four }).replace(word.clone()).is_some() {
            return Err(bad("a network has one of each family"));
        }
    }
    Ok(said)
}

fn prune(networks: &Networks<'_>, force: bool, filter: &[String]) -> Result<u8> {
    let filters = filter.iter().map(|text| Filter::parse(text, false)).collect::<Result<Vec<_>>>()?;
    let what = "This removes all networks that no container is on";
    if !force {
        if !io::stdin().is_terminal() {
            let what = format!("{}: say --force where nobody can be asked", what.replacen('T', "t", 1));
            return Err(Error::Usage { what, verb: "network prune".into() });
        }
        eprint!("{what}. Continue? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|source| Error::Host { what: "read the answer".into(), source, code: 1 })?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(0);
        }
    }
    let keep = |network: &UserNetwork| {
        let seen = Seen { labels: network.labels.clone(), ..Seen::default() };
        !filters.iter().all(|filter| filter.fits(&seen))
    };
    let gone = networks.prune(keep)?;
    if !gone.is_empty() {
        output::text(&format!("Deleted Networks:\n{}\n\n", gone.join("\n")));
    }
    Ok(0)
}

fn inspect(store: &Store, names: &[String], format: Option<&str>) -> Result<u8> {
    super::inspect::show("network inspect", names, format, |name| known(store, name))
}

/// The network of this name, as `servin inspect` shows it.
pub(super) fn known(store: &Store, name: &str) -> Result<Value> {
    refuse_host(name)?;
    let name = if name == "default" { "bridge" } else { name };
    let built_in = BUILT_IN.iter().find(|(known, _)| *known == name || built_in_id(known) == name);
    if let Some((name, driver)) = built_in {
        return Ok(json!({
            "Name": name, "Id": built_in_id(name), "Created": "0001-01-01T00:00:00Z", "Scope": "local",
            "Driver": driver, "EnableIPv4": true, "EnableIPv6": *name == "bridge",
            "IPAM": { "Driver": "default", "Options": null, "Config": [] },
            "Internal": false, "Attachable": false, "Ingress": false, "ConfigOnly": false,
            // Each container has one of its own.
            "Containers": {}, "Options": {}, "Labels": {},
        }));
    }
    let networks = Networks::new(store);
    let network = networks.find(name)?;
    let prefix = network.subnet.prefix();
    // As with docker, those that run.
    let members: Map<String, Value> = networks
        .members(&network.name)?
        .into_iter()
        .filter(|one| is_living(store, &one.container))
        .map(|one| {
            let about = json!({
                "Name": one.name, "EndpointID": "", "MacAddress": one.mac.to_string(),
                "IPv4Address": format!("{}/{prefix}", one.address),
                "IPv6Address": one.address6.map_or(String::new(), |address| format!("{address}/64")),
            });
            (one.container, about)
        })
        .collect();
    let mut addresses =
        vec![json!({ "Subnet": network.subnet.to_string(), "Gateway": network.gateway.to_string() })];
    addresses.extend(network.v6.map(|v6| json!({ "Subnet": v6.subnet.to_string(), "Gateway": v6.gateway })));
    Ok(json!({
        "Name": network.name, "Id": network.id, "Created": rfc3339(network.created_ns), "Scope": "local",
        "Driver": "bridge", "EnableIPv4": true, "EnableIPv6": network.v6.is_some(),
        "IPAM": { "Driver": "default", "Options": {}, "Config": addresses },
        "Internal": network.internal, "Attachable": false, "Ingress": false, "ConfigOnly": false,
        "Containers": members, "Options": {}, "Labels": network.labels,
    }))
}

/// What filters look at.
#[derive(Debug, Default)]
struct Seen {
    name: String,
    id: String,
    driver: &'static str,
    is_built_in: bool,
    is_used: bool,
    labels: BTreeMap<String, String>,
}

/// All networks by name, those that are always there among them.
fn all(networks: &Networks<'_>) -> Result<Vec<(Seen, Option<UserNetwork>)>> {
    let mut all = Vec::new();
    for (name, driver) in BUILT_IN {
        let (id, labels) = (built_in_id(name), BTreeMap::new());
        all.push((Seen { name: name.into(), id, driver, is_built_in: true, is_used: true, labels }, None));
    }
    for network in networks.list()? {
        let seen = Seen {
            name: network.name.clone(),
            id: network.id.clone(),
            driver: "bridge",
            is_built_in: false,
            is_used: !networks.members(&network.name)?.is_empty(),
            labels: network.labels.clone(),
        };
        all.push((seen, Some(network)));
    }
    all.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    Ok(all)
}

fn row(seen: &Seen, network: Option<&UserNetwork>, no_trunc: bool) -> Labelled {
    let fields = json!({
        "ID": if no_trunc { seen.id.clone() } else { short(&seen.id) },
        "Name": seen.name,
        "Driver": seen.driver,
        "Scope": "local",
        "IPv6": (seen.name == "bridge" || network.is_some_and(|network| network.v6.is_some())).to_string(),
        "Internal": network.is_some_and(|network| network.internal).to_string(),
        "CreatedAt": rfc3339(network.map_or(0, |network| network.created_ns)),
    });
    Labelled::new(fields, &seen.labels)
}

/// One `--filter`.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    /// A part of the name.
    Name(String),
    /// The beginning of the id.
    Id(String),
    /// The driver.
    Driver(String),
    /// A label, with this value or any, that is there or is not.
    Label { name: String, value: Option<String>, there: bool },
    /// No container is on it.
    Dangling(bool),
    /// It is always there.
    BuiltIn(bool),
    /// The only scope there is, or not.
    Scope(bool),
}

impl Filter {
    fn parse(text: &str, listing: bool) -> Result<Self> {
        let bad = |why: &str| Error::Usage {
            what: format!("invalid value \"{text}\" for --filter: {why}"),
            verb: if listing { "network ls" } else { "network prune" }.into(),
        };
        let (name, value) = text.split_once('=').ok_or_else(|| bad("it is NAME=VALUE"))?;
        let label = |there| {
            let (name, value) = match value.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (value, None),
            };
            Filter::Label { name: name.to_owned(), value, there }
        };
        match name {
            "label" => Ok(label(true)),
            "label!" => Ok(label(false)),
            "name" if listing => Ok(Filter::Name(value.to_owned())),
            "id" if listing => Ok(Filter::Id(value.to_owned())),
            "driver" if listing => Ok(Filter::Driver(value.to_owned())),
            "scope" if listing => Ok(Filter::Scope(value == "local")),
            "type" if listing => match value {
                "builtin" => Ok(Filter::BuiltIn(true)),
                "custom" => Ok(Filter::BuiltIn(false)),
                _ => Err(bad("it is custom or builtin")),
            },
            "dangling" if listing => match value {
                "true" | "1" => Ok(Filter::Dangling(true)),
                "false" | "0" => Ok(Filter::Dangling(false)),
                _ => Err(bad("it is true or false")),
            },
            _ => Err(bad("there is no such filter here")),
        }
    }

    fn fits(&self, seen: &Seen) -> bool {
        match self {
            Filter::Name(part) => seen.name.contains(part),
            Filter::Id(start) => seen.id.starts_with(start),
            Filter::Driver(driver) => seen.driver == driver,
            Filter::Label { name, value, there } => {
                let found = seen.labels.get(name);
                let fits = found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found));
                fits == *there
            }
            Filter::Dangling(dangling) => *dangling != seen.is_used,
            Filter::BuiltIn(built_in) => *built_in == seen.is_built_in,
            Filter::Scope(local) => *local,
        }
    }
}

/// Whether a network fits: of several filters of one kind one is enough, as docker has it, but for labels, which all must.
fn matches(seen: &Seen, filters: &[Filter]) -> bool {
    let kind = std::mem::discriminant::<Filter>;
    filters.iter().all(|filter| match filter {
        Filter::Label { .. } => filter.fits(seen),
        _ => filters.iter().any(|other| kind(other) == kind(filter) && other.fits(seen)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_gateways_are_one_of_each_family() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let both = families("--subnet", &words(&["fd00::/64", "10.1.0.0/24"]), true).unwrap();
        assert_eq!(both, [Some("10.1.0.0/24".to_owned()), Some("fd00::/64".to_owned())]);
        let refused = |list: &[&str], ipv6| families("--subnet", &words(list), ipv6).unwrap_err().to_string();
        assert!(refused(&["fd00::/64"], false).contains("--ipv6"));
        assert!(refused(&["10.1.0.0/24", "10.2.0.0/24"], true).contains("one of each family"));
        assert!(
            address::<std::net::Ipv6Addr>("--gateway", "fd00::x").unwrap_err().to_string().contains("IPv6")
        );
    }

    #[test]
    fn filters_choose_by_what_a_network_is() {
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        let seen = Seen {
            name: "backend".into(),
            id: "abc123".into(),
            driver: "bridge",
            is_built_in: false,
            is_used: true,
            labels,
        };
        let fits = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| Filter::parse(text, true).unwrap()).collect();
            matches(&seen, &filters)
        };
        assert!(fits(&["name=end"]) && !fits(&["name=x"]) && fits(&["name=x", "name=back"]));
        assert!(
            fits(&["id=abc"]) && !fits(&["id=c1"]) && fits(&["driver=bridge"]) && !fits(&["driver=null"])
        );
        assert!(fits(&["type=custom"]) && !fits(&["type=builtin"]) && fits(&["dangling=false"]));
        assert!(fits(&["label=tier", "label=tier=db"]) && !fits(&["label=tier", "label=x"]));
        assert!(!fits(&["name=back", "dangling=true"]) && fits(&["scope=local"]) && !fits(&["scope=swarm"]));
        for bad in ["tier", "dangling=maybe", "size=1", "type=x"] {
            assert!(Filter::parse(bad, true).unwrap_err().to_string().contains(bad), "{bad}");
        }
        assert!(Filter::parse("name=x", false).is_err(), "prune chooses by label alone");
    }
}
