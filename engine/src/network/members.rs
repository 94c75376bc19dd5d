//! Who is on a network that containers share, and at which addresses.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt as _;

use rusqlite::{Connection, Row};
use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::{Mac, switch};

use super::Subnet;
use super::shared::{Networks, UserNetwork, database, directory, list};
use super::six::V6;
use crate::container::short;
use crate::events::Events;
use crate::store::Record;
use crate::{Error, Result};

/// A container's place on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The network's name.
    pub network: String,
    /// Its id.
    pub id: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// The gateway's.
    pub gateway: Ipv4Addr,
    /// The network's IPv6 addresses, where it has any.
    #[serde(default)]
    pub v6: Option<V6>,
    /// Nothing else is reached.
    pub internal: bool,
    /// The container's address.
    pub address: Ipv4Addr,
    /// The address of its card.
    pub mac: [u8; 6],
    /// Further names of it.
    pub aliases: Vec<String>,
}

impl Place {
    /// That of a member on its network.
    pub(super) fn new(network: UserNetwork, member: Member) -> Self {
        let UserNetwork { name, id, subnet, gateway, v6, internal, .. } = network;
        let Member { address, mac, aliases, .. } = member;
        Self { network: name, id, subnet, gateway, v6, internal, address, mac: mac.0, aliases }
    }

    /// The second address of a network of this subnet.
    #[cfg(test)]
    pub(super) fn of_test(subnet: &str) -> Self {
        let subnet: Subnet = subnet.parse().unwrap();
        let mut hosts = subnet.hosts();
        let (gateway, address) = (hosts.next().unwrap(), hosts.next().unwrap());
        let [a, b, c, d] = address.octets();
        Self {
            network: "net".into(),
            id: "ab".into(),
            subnet,
            gateway,
            v6: None,
            internal: false,
            address,
            mac: [2, 0x42, a, b, c, d],
            aliases: Vec::new(),
        }
    }
}

/// A member of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The container's id.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where the network has them.
    pub address6: Option<Ipv6Addr>,
    /// The address of its card.
    pub mac: Mac,
    /// Further names of it.
    pub aliases: Vec<String>,
}

impl Member {
    /// What it is called: its name, its short id, its further names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let own = [self.name.clone(), short(&self.container)];
        let mut names: Vec<String> =
            own.iter().chain(&self.aliases).map(|name| name.to_ascii_lowercase()).collect();
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

impl Networks<'_> {
    /// The members of a network by address.
    pub fn members(&self, name: &str) -> Result<Vec<Member>> {
        members(self.store.db(), name)
    }

    /// Gives a container another name, by which the others on its network find it from now on.
    ///
    /// # Errors
    /// As the change of the table.
    pub fn rename(&self, record: &Record, name: &str) -> Result<()> {
        self.store.write("rename the container", |db| {
            self.store.containers().rename(record, name)?;
            for network in networks_of(db, &record.id)? {
                self.write_members(db, &network)?;
            }
            Ok(())
        })?;
        let (old, renamed) =
            (format!("/{}", record.name), Record { name: name.to_owned(), ..record.clone() });
        Events::new(self.store.root()).container("rename", &renamed, &[("oldName", &old)]);
        Ok(())
    }

    /// Writes the list of a network's members, inside a transaction: so the last writer has seen all of them.
    pub(super) fn write_members(&self, db: &Connection, name: &str) -> Result<()> {
        let dir = directory(self.store.root(), name);
        let fail = |source| Error::io("write", dir.join(switch::MEMBERS), source);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(fail)?;
        let mut text = String::new();
        for one in members(db, name)? {
            let (address, mac, address6) = (one.address, one.mac, one.address6);
            let line = switch::Member { address, mac, address6, names: one.names() };
            let _ = writeln!(text, "{line}");
        }
        let new = dir.join("members.new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, dir.join(switch::MEMBERS))).map_err(fail)
    }
}

/// The names of the networks that a container is on.
fn networks_of(db: &Connection, container: &str) -> Result<Vec<String>> {
    let fail = database("look up the container's networks");
    let sql = "SELECT network FROM container_networks WHERE container = ?1";
    let mut statement = db.prepare(sql).map_err(&fail)?;
    let rows = statement.query_map([container], |row| row.get(0)).map_err(&fail)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&fail)
}

pub(super) fn members(db: &Connection, name: &str) -> Result<Vec<Member>> {
    let fail = database("list the network's members");
    let sql = "SELECT c.id, c.name, m.address, m.mac, m.aliases FROM container_networks m
               JOIN containers c ON c.id = m.container WHERE m.network = ?1 ORDER BY m.address";
    let network = list(db)?.into_iter().find(|one| one.name == name);
    let six = |v4| network.as_ref().and_then(|one| Some(one.v6?.address(v4, one.subnet)));
    let mut statement = db.prepare(sql).map_err(&fail)?;
    let read = |row: &Row<'_>| {
        let aliases: String = row.get(4)?;
        let address = Ipv4Addr::from_bits(row.get(2)?);
        Ok(Member {
            container: row.get(0)?,
            name: row.get(1)?,
            address,
            address6: six(address),
            mac: Mac(row.get(3)?),
            aliases: serde_json::from_str(&aliases).unwrap_or_default(),
        })
    };
    let rows = statement.query_map([name], read).map_err(&fail)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&fail)
}
