//! Who is on a network that containers share, and at which addresses.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt as _;

use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::{Mac, nat::GATEWAY_MAC, switch};

use super::shared::{Networks, UserNetwork, database, directory, find, is_built_in, list};
use super::six::V6;
use super::{Mode, NetworkError, Networking, Subnet};
use crate::container::{Config, RunDir, short};
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

/// Whether a container can be looked up by a name.
fn is_alias(alias: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    alias.len() <= 253 && alias.split('.').all(is_label)
}

impl Networks<'_> {
    /// The members of a network by address.
    pub fn members(&self, name: &str) -> Result<Vec<Member>> {
        members(self.store.db(), name)
    }

    /// The place of a container that is to start, from the tables; the list of its network's members is written anew.
    pub(crate) fn place(&self, container: &str, name: &str) -> Result<Place> {
        self.store.write("look up the container's network", |db| {
            let network = find(db, name)?;
            let member = members(db, &network.name)?.into_iter().find(|one| one.container == container);
            let missing =
                || NetworkError::NotConnected { container: short(container), network: name.to_owned() };
            let member = member.ok_or_else(missing)?;
            self.write_members(db, &network.name)?;
            Ok(place(network, member))
        })
    }

    /// Gives a container its place on the network that it asks for. Inside a transaction, and after its row.
    pub(crate) fn attach(
        &self,
        db: &Connection,
        record: &Record,
        asked: &Networking,
    ) -> Result<Option<Place>> {
        let Mode::Shared(name) = &asked.mode else { return Ok(None) };
        let network = find(db, name)?;
        if network.internal && (!asked.publish.is_empty() || asked.publish_all) {
            return Err(NetworkError::Internal { network: network.name }.into());
        }
        if let Some(alias) = asked.aliases.iter().find(|alias| !is_alias(alias)) {
            return Err(NetworkError::Alias { alias: alias.clone() }.into());
        }
        let others = members(db, &network.name)?;
        let refuse = |address: String, why| {
            Error::from(NetworkError::Address { address, network: network.name.clone(), why })
        };
        let is_free = |address: &Ipv4Addr| {
            *address != network.gateway && !others.iter().any(|one| one.address == *address)
        };
        let address = match asked.address {
            Some(address) if !network.subnet.has_host(address) => {
                return Err(refuse(address.to_string(), "it is none of the network's"));
            }
            Some(address) if !is_free(&address) => {
                return Err(refuse(address.to_string(), "it is in use"));
            }
            Some(address) => address,
            None => network.subnet.hosts().find(is_free).ok_or_else(|| NetworkError::Full {
                network: network.name.clone(),
                subnet: network.subnet.to_string(),
            })?,
        };
        let [a, b, c, d] = address.octets();
        let mac = Mac(asked.mac.unwrap_or([2, 0x42, a, b, c, d]));
        if mac == GATEWAY_MAC || others.iter().any(|one| one.mac == mac) {
            return Err(refuse(mac.to_string(), "it is in use; choose another with --mac-address"));
        }
        let aliases = serde_json::to_string(&asked.aliases)
            .map_err(|source| Error::Json { what: "the container's names".into(), source })?;
        db.execute(
            "INSERT INTO container_networks VALUES (?1, ?2, ?3, ?4, ?5)",
            (&record.id, &network.name, address.to_bits(), mac.0, aliases),
        )
        .map_err(database("record the container's network"))?;
        self.write_members(db, &network.name)?;
        let member = Member {
            container: record.id.clone(),
            name: record.name.clone(),
            address,
            address6: network.v6.map(|v6| v6.address(address, network.subnet)),
            mac,
            aliases: asked.aliases.clone(),
        };
        Ok(Some(place(network, member)))
    }

    /// Puts a container that does not run on a network.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn connect(
        &self,
        record: &Record,
        text: &str,
        address: Option<Ipv4Addr>,
        aliases: Vec<String>,
    ) -> Result<()> {
        let mode = match text {
            "bridge" | "default" => Mode::Own,
            "none" | "host" => return Err(NetworkError::BuiltIn { name: text.to_owned() }.into()),
            text => Mode::Shared(self.find(text)?.name),
        };
        self.change(record, |db, record, asked| {
            match &asked.mode {
                Mode::Shared(network) => {
                    let (container, network) = (record.name.clone(), network.clone());
                    return Err(NetworkError::Connected { container, network }.into());
                }
                Mode::Own if mode == Mode::Own => {
                    let (container, network) = (record.name.clone(), "bridge".into());
                    return Err(NetworkError::Connected { container, network }.into());
                }
                Mode::Own | Mode::None | Mode::Socket(_) | Mode::Tap(_) => {}
            }
            (asked.mode, asked.address, asked.aliases) = (mode.clone(), address, aliases.clone());
            asked.place = self.attach(db, record, asked)?;
            Ok(())
        })
    }

    /// Takes a container that does not run off a network.
    ///
    /// # Errors
    /// [`NetworkError::NotConnected`], [`NetworkError::Running`].
    pub fn disconnect(&self, record: &Record, text: &str) -> Result<()> {
        let name = match text {
            "bridge" | "default" => "bridge".to_owned(),
            text if is_built_in(text) => text.to_owned(),
            text => self.find(text)?.name,
        };
        self.change(record, |db, record, asked| {
            let is_there = match &asked.mode {
                Mode::Own => name == "bridge",
                Mode::None | Mode::Socket(_) | Mode::Tap(_) => false,
                Mode::Shared(network) => *network == name,
            };
            if !is_there {
                let (container, network) = (record.name.clone(), name.clone());
                return Err(NetworkError::NotConnected { container, network }.into());
            }
            db.execute("DELETE FROM container_networks WHERE container = ?1", [&record.id])
                .map_err(database("disconnect the container"))?;
            if let Mode::Shared(network) = &asked.mode {
                self.write_members(db, network)?;
            }
            (asked.mode, asked.address, asked.place) = (Mode::None, None, None);
            asked.aliases.clear();
            Ok(())
        })
    }

    /// Changes what a container that does not run asks of the network, in one step with the tables.
    fn change(
        &self,
        record: &Record,
        change: impl FnOnce(&Connection, &Record, &mut Networking) -> Result<()>,
    ) -> Result<()> {
        // Nobody starts it meanwhile.
        let run = match RunDir::create(self.store.root(), &record.id) {
            Err(Error::Busy { .. }) => {
                return Err(NetworkError::Running { container: record.name.clone() }.into());
            }
            run => run?,
        };
        run.serves_files()?;
        let changed = self.store.write("change the container's network", |db| {
            let gone = || Error::NoSuchContainer { name: record.name.clone() };
            let mut record = self.store.containers().get(&record.id)?.ok_or_else(gone)?;
            let json = |source| Error::Json { what: "the container's record".into(), source };
            let mut config: Config = serde_json::from_str(&record.config).map_err(json)?;
            change(db, &record, &mut config.request.network)?;
            record.config = serde_json::to_string(&config).map_err(json)?;
            self.store.containers().update(&record)
        });
        run.remove()?;
        changed
    }

    /// Gives a container another name, by which the others on its network find it from now on.
    ///
    /// # Errors
    /// As the change of the table.
    pub fn rename(&self, record: &Record, name: &str) -> Result<()> {
        self.store.write("rename the container", |db| {
            self.store.containers().rename(record, name)?;
            let sql = "SELECT network FROM container_networks WHERE container = ?1";
            let network: Option<String> = db
                .query_row(sql, [&record.id], |row| row.get(0))
                .optional()
                .map_err(database("rename the container"))?;
            network.map_or(Ok(()), |network| self.write_members(db, &network))
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

fn place(network: UserNetwork, member: Member) -> Place {
    let UserNetwork { name, id, subnet, gateway, v6, internal, .. } = network;
    let Member { address, mac, aliases, .. } = member;
    Place { network: name, id, subnet, gateway, v6, internal, address, mac: mac.0, aliases }
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
