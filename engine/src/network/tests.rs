//! Networks in the store, with containers of a root directory and no machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;
use crate::container::{self, Config, Request, RootSource};
use crate::store::{Record, Store};
use crate::{Error, Result};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    (dir, store)
}

fn make(store: &Store, name: &str, subnet: Option<&str>) -> UserNetwork {
    let new = NewNetwork { name: name.into(), subnet: subnet.map(Into::into), ..NewNetwork::default() };
    Networks::new(store).create(&new).unwrap()
}

fn request(name: &str, change: impl FnOnce(&mut Networking)) -> Request {
    let mut request = Request::new(RootSource::Directory("/".into()));
    (request.name, request.args) = (Some(name.into()), vec!["true".into()]);
    change(&mut request.network);
    request
}

fn on(network: &str) -> impl FnOnce(&mut Networking) {
    let networking = Networking::on(Mode::Shared(network.into()));
    |asked| asked.attachments = networking.attachments
}

fn on_all(networks: &[&str]) -> impl FnOnce(&mut Networking) {
    let networks: Vec<String> = networks.iter().map(|name| (*name).to_owned()).collect();
    move |asked| {
        asked.attachments.clear();
        networks.into_iter().for_each(|name| {
            asked.push(Attachment::new(if name == "bridge" { Mode::Own } else { Mode::Shared(name) }));
        });
    }
}

/// The networks with the numbers and addresses there.
fn shown(networking: &Networking) -> Vec<String> {
    let one = |one: &Attachment| {
        let address = Ipv4Addr::from(networking.network(one).address);
        format!("{} {} {address}", one.number, one.mode.network())
    };
    networking.attachments.iter().map(one).collect()
}

fn connect(network: &str) -> Change {
    Change::Connect { network: network.into(), address: None, aliases: Vec::new() }
}

fn disconnect(network: &str) -> Change {
    Change::Disconnect { network: network.into(), force: false }
}

/// The first of a container's networks as the guest sees it.
fn first(networking: &Networking) -> servin_init::proto::Network {
    networking.network(&networking.attachments[0])
}

fn container(store: &Store, name: &str, network: &str) -> Record {
    container::create(store, &request(name, on(network))).unwrap()
}

fn networking(store: &Store, record: &Record) -> Networking {
    let record = store.containers().get(&record.id).unwrap().unwrap();
    serde_json::from_str::<Config>(&record.config).unwrap().request.network
}

fn lines(store: &Store, network: &str) -> Vec<String> {
    let file = store.root().join("networks").join(network).join("members");
    std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

fn error<T: std::fmt::Debug>(done: Result<T>) -> String {
    done.unwrap_err().to_string()
}

#[test]
fn networks_have_subnets_of_their_own_and_names_that_can_be_names() {
    let (_dir, store) = store();
    let networks = Networks::new(&store);
    let (one, two) = (make(&store, "one", None), make(&store, "two", None));
    assert!(!one.subnet.overlaps(two.subnet) && one.subnet.to_string().starts_with("10.89."));
    assert!(one.subnet.has_host(one.gateway) && one.id.len() == 64 && one.id != two.id);
    let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
    let new = NewNetwork {
        name: "own".into(),
        subnet: Some("172.30.0.0/16".into()),
        gateway: Some([172, 30, 9, 9].into()),
        internal: true,
        labels,
        ..NewNetwork::default()
    };
    let own = networks.create(&new).unwrap();
    assert_eq!(networks.list().unwrap(), [one.clone(), own.clone(), two]);
    assert_eq!(networks.find(&own.id[..20]).unwrap(), own);
    let refused = |name: &str, subnet: Option<&str>, gateway: Option<Ipv4Addr>| {
        let subnet = subnet.map(Into::into);
        error(networks.create(&NewNetwork { name: name.into(), subnet, gateway, ..NewNetwork::default() }))
    };
    assert!(refused("one", None, None).contains("already"));
    for name in ["bridge", "host", "none", "default"] {
        assert!(refused(name, None, None).contains("always there"), "{name}");
    }
    for name in ["", "-x", "../x", "a b", &"x".repeat(129)] {
        assert!(refused(name, None, None).contains("no name"), "{name}");
    }
    assert!(refused("x", Some("172.30.7.0/24"), None).contains("network own has 172.30.0.0/16"));
    assert!(refused("x", Some("10.1.1.1/24"), None).contains("10.1.1.0"));
    assert!(refused("x", Some("10.1.1.0/24"), Some([10, 1, 2, 1].into())).contains("gateway"));
    assert!(matches!(networks.find("zero"), Err(Error::Network(NetworkError::None { .. }))));
}

#[test]
fn every_container_has_addresses_of_its_own_and_gives_them_back() {
    let (_dir, store) = store();
    make(&store, "net", Some("10.7.0.0/29"));
    let a = container(&store, "a", "net");
    let asked = request("b", |asked| {
        on("net")(asked);
        let asked = &mut asked.attachments[0];
        (asked.address, asked.mac) = (Some([10, 7, 0, 5].into()), Some([2, 0, 0, 0, 0, 9]));
        asked.aliases = vec!["DB".into(), "b".into()];
    });
    let b = container::create(&store, &asked).unwrap();
    let c = container(&store, "c", "net");
    assert_eq!(
        lines(&store, "net"),
        [
            format!("10.7.0.2 02:42:0a:07:00:02 a {}", container::short(&a.id)),
            format!("10.7.0.3 02:42:0a:07:00:03 c {}", container::short(&c.id)),
            format!("10.7.0.5 02:00:00:00:00:09 b {} db", container::short(&b.id)),
        ]
    );
    let network = first(&networking(&store, &b));
    assert_eq!((network.address, network.prefix, network.gateway), ([10, 7, 0, 5], 29, [10, 7, 0, 1]));
    assert_eq!(network.mac, Some([2, 0, 0, 0, 0, 9]));
    let refused = |change: &dyn Fn(&mut Attachment)| {
        let asked = request("d", |asked| {
            on("net")(asked);
            change(&mut asked.attachments[0]);
        });
        let refused = error(container::create(&store, &asked));
        // Nothing of it is left.
        assert_eq!(store.containers().list().unwrap().len(), 3, "{refused}");
        refused
    };
    assert!(refused(&|asked| asked.address = Some([10, 7, 0, 5].into())).contains("in use"));
    assert!(refused(&|asked| asked.address = Some([10, 7, 0, 1].into())).contains("in use"));
    assert!(refused(&|asked| asked.address = Some([10, 7, 1, 1].into())).contains("none of the network's"));
    assert!(refused(&|asked| asked.mac = Some([2, 0, 0, 0, 0, 9])).contains("in use"));
    assert!(refused(&|asked| asked.mac = Some([2, 0x53, 0x56, 0, 0, 1])).contains("in use"));
    assert!(refused(&|asked| asked.aliases = vec!["a b".into()]).contains("looked up"));
    assert!(refused(&|asked| asked.mode = Mode::Shared("other".into())).contains("no such network: other"));
    container(&store, "d", "net");
    container(&store, "e", "net");
    assert!(error(container::create(&store, &request("f", on("net")))).contains("no free address"));
    container::remove(&store, &a, false).unwrap();
    let f = container(&store, "f", "net");
    assert_eq!(first(&networking(&store, &f)).address, [10, 7, 0, 2]);
}

#[test]
fn a_network_with_members_stays_and_one_without_goes_with_its_directory() {
    let (_dir, store) = store();
    let networks = Networks::new(&store);
    make(&store, "used", None);
    make(&store, "free", None);
    make(&store, "kept", None);
    let a = container(&store, "a", "used");
    assert!(error(networks.remove("used")).contains("used by: a"));
    assert!(error(networks.remove("bridge")).contains("always there"));
    assert_eq!(networks.prune(|network| network.name == "kept").unwrap(), ["free"]);
    assert!(!store.root().join("networks/free").exists() && store.root().join("networks/used").exists());
    container::remove(&store, &a, false).unwrap();
    let id = networks.remove("used").unwrap().id;
    assert_eq!(networks.list().unwrap().len(), 1);
    assert_eq!(crate::events::told(store.root()).pop().unwrap(), format!("network destroy {id}"));
}

#[test]
fn a_container_that_does_not_run_comes_to_networks_and_leaves_them() {
    let (_dir, store) = store();
    let networks = Networks::new(&store);
    make(&store, "one", Some("10.7.0.0/24"));
    make(&store, "two", Some("10.8.0.0/24"));
    let a = container::create(&store, &request("a", |_| ())).unwrap();
    let change = |change: &Change| networks.change(&a, change);
    assert!(error(change(&disconnect("one"))).contains("not on network one"));
    assert!(error(change(&connect("bridge"))).contains("already connected to network bridge"));
    assert!(error(change(&connect("none"))).contains("private (none) mode"));
    let (address, aliases) = (Some([10, 7, 0, 77].into()), vec!["db".into()]);
    change(&Change::Connect { network: "one".into(), address, aliases }).unwrap();
    assert_eq!(shown(&networking(&store, &a)), ["0 bridge 10.0.2.15", "1 one 10.7.0.77"]);
    assert!(error(change(&connect("one"))).contains("already connected to network one"));
    assert_eq!(lines(&store, "one").len(), 1);
    change(&connect("two")).unwrap();
    networks.rename(&a, "renamed").unwrap();
    let id = container::short(&a.id);
    assert_eq!(lines(&store, "one"), [format!("10.7.0.77 02:42:0a:07:00:4d renamed {id} db")]);
    assert_eq!(lines(&store, "two"), [format!("10.8.0.2 02:42:0a:08:00:02 renamed {id}")]);
    assert!(error(networks.remove("two")).contains("used by: renamed"));
    change(&disconnect("bridge")).unwrap();
    assert_eq!(shown(&networking(&store, &a)), ["1 one 10.7.0.77", "2 two 10.8.0.2"]);
    // The next machine has them without a gap, wherever they have gone since.
    let mut places = networking(&store, &a);
    places.count_anew();
    places.attachments.iter_mut().for_each(|one| one.place = None);
    networks.take_places(&a.id, &mut places).unwrap();
    assert_eq!(shown(&places), ["0 one 10.7.0.77", "1 two 10.8.0.2"]);
    change(&disconnect("one")).unwrap();
    change(&disconnect("two")).unwrap();
    assert!(lines(&store, "one").is_empty() && !networking(&store, &a).has_card());
    change(&connect("bridge")).unwrap();
    assert_eq!(networking(&store, &a), Networking::default());
    let ids = ["one", "two"].map(|name| networks.find(name).unwrap().id);
    let said = |action: &str, id: &str| format!("network {action} {id}");
    let mut expected = ids.each_ref().map(|id| said("create", id)).to_vec();
    expected.push(format!("container create {}", a.id));
    expected.extend(ids.each_ref().map(|id| said("connect", id)));
    expected.push(format!("container rename {}", a.id));
    expected.push(said("disconnect", &built_in_id("bridge")));
    expected.extend(ids.each_ref().map(|id| said("disconnect", id)));
    expected.push(said("connect", &built_in_id("bridge")));
    assert_eq!(crate::events::told(store.root()), expected);
    // Its monitor alone changes one that runs.
    let run = container::RunDir::create(store.root(), &a.id).unwrap();
    assert!(error(change(&connect("one"))).contains("is being started"));
    run.remove().unwrap();
}

#[test]
fn a_container_is_made_on_several_networks_or_on_none() {
    let (_dir, store) = store();
    make(&store, "one", Some("10.7.0.0/24"));
    make(&store, "two", Some("10.8.0.0/24"));
    make(&store, "like-bridge", Some("10.0.0.0/16"));
    let a = container::create(&store, &request("a", on_all(&["two", "bridge", "one"]))).unwrap();
    assert_eq!(shown(&networking(&store, &a)), ["0 two 10.8.0.2", "1 bridge 10.0.2.15", "2 one 10.7.0.2"]);
    let refused = |networks: &[&str], change: &dyn Fn(&mut Networking)| {
        let asked = request("b", |asked| {
            on_all(networks)(asked);
            change(asked);
        });
        let refused = error(container::create(&store, &asked));
        assert_eq!(store.containers().list().unwrap().len(), 1, "{refused}");
        assert_eq!(lines(&store, "one").len() + lines(&store, "two").len(), 2, "{refused}");
        refused
    };
    assert!(refused(&["one", "other"], &|_| ()).contains("no such network: other"));
    let clash = refused(&["like-bridge", "bridge"], &|_| ());
    assert!(clash.contains("like-bridge and bridge") && clash.contains("10.0.0.0/16"), "{clash}");
    let same = refused(&["one", "two"], &|asked| {
        asked.attachments.iter_mut().for_each(|one| one.mac = Some([2, 0, 0, 0, 0, 7]));
    });
    assert!(same.contains("two and one") && same.contains("02:00:00:00:00:07"), "{same}");
    // What is wrong with a network that comes later changes nothing.
    let networks = Networks::new(&store);
    assert!(error(networks.change(&a, &connect("like-bridge"))).contains("bridge"));
    assert!(lines(&store, "like-bridge").is_empty());
    container::remove(&store, &a, false).unwrap();
    networks.remove("one").unwrap();
    networks.remove("two").unwrap();
}

#[test]
fn an_internal_network_publishes_nothing() {
    let (_dir, store) = store();
    let new = NewNetwork { name: "in".into(), internal: true, ..NewNetwork::default() };
    Networks::new(&store).create(&new).unwrap();
    let publishing = |change: fn(&mut Networking)| {
        request("a", |asked| {
            on("in")(asked);
            change(asked);
        })
    };
    let port = |asked: &mut Networking| {
        asked.publish.push(Publish { ip: None, host: (0, 0), guest: 80, protocol: Protocol::Tcp });
    };
    assert!(error(container::create(&store, &publishing(port))).contains("in is internal"));
    assert!(
        error(container::create(&store, &publishing(|asked| asked.publish_all = true))).contains("internal")
    );
    container::create(&store, &publishing(|_| ())).unwrap();
    // With another beside it the other one publishes.
    make(&store, "out", None);
    let both = request("b", |asked| {
        on_all(&["in", "out"])(asked);
        port(asked);
    });
    let both = networking(&store, &container::create(&store, &both).unwrap());
    assert_eq!(both.primary().map(|one| one.mode.network()), Some("out"));
    assert_eq!(both.wanted(&[]).len(), 1);
}

#[test]
fn a_network_with_ipv6_has_a_subnet_of_it_and_its_members_addresses_there() {
    let (_dir, store) = store();
    let networks = Networks::new(&store);
    let new = |name: &str, subnet6: Option<&str>, gateway6: Option<&str>| NewNetwork {
        name: name.into(),
        subnet: Some("10.7.0.0/24".into()),
        ipv6: true,
        subnet6: subnet6.map(Into::into),
        gateway6: gateway6.map(|text| text.parse().unwrap()),
        ..NewNetwork::default()
    };
    let six = networks.create(&new("six", Some("fd00:7::/64"), None)).unwrap();
    assert_eq!(six.v6.map(|v6| v6.gateway.to_string()), Some("fd00:7::1".into()));
    assert_eq!(networks.find("six").unwrap(), six);
    let other = NewNetwork { subnet: None, ..new("other", None, None) };
    let chosen = networks.create(&other).unwrap().v6.unwrap().subnet.to_string();
    assert!(chosen.starts_with("fd") && chosen.ends_with("::/64"), "{chosen}");
    let refused = |subnet6: &str, gateway6: Option<&str>| {
        error(networks.create(&NewNetwork { subnet: None, ..new("x", Some(subnet6), gateway6) }))
    };
    assert!(refused("fd00:7::/64", None).contains("network six has it"));
    assert!(refused("fd00:8::/48", None).contains("64 bits"));
    assert!(refused("fd00:8::/64", Some("fd00:7::9")).contains("fd00:7::9 cannot be the gateway"));
    let a = container(&store, "a", "six");
    let line = format!("10.7.0.2 02:42:0a:07:00:02 fd00:7::2 a {}", container::short(&a.id));
    assert_eq!(lines(&store, "six"), [line]);
    assert_eq!(networks.members("six").unwrap()[0].address6, Some("fd00:7::2".parse().unwrap()));
    let v6 = first(&networking(&store, &a)).v6.unwrap();
    assert_eq!(
        (v6.address, v6.gateway),
        ([0xfd, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], {
            let mut gateway = v6.address;
            gateway[15] = 1;
            gateway
        })
    );
    // Those that lead out of networks without IPv6 are no network's beside such.
    let fixed = NewNetwork { subnet: None, ..new("fixed", Some("fd53:7276:696e::/64"), None) };
    networks.create(&fixed).unwrap();
    let refused = error(container::create(&store, &request("c", on_all(&["bridge", "fixed"]))));
    assert!(refused.contains("bridge and fixed") || refused.contains("fixed and bridge"), "{refused}");
    container::create(&store, &request("c", on_all(&["six", "fixed"]))).unwrap();
    // Where there is none, the container has that towards its own gateway alone.
    make(&store, "four", Some("10.8.0.0/24"));
    let b = container(&store, "b", "four");
    assert_eq!(first(&networking(&store, &b)).v6, servin_init::proto::Network::OWN.v6);
}
