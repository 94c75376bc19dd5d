//! Networks that containers share.
//!
//! ```text
//! ROOT/networks/NAME/members     a line for each member: address, address on the wire, names
//! ROOT/networks/NAME/MAC         where the member with this address on the wire receives, while it runs
//! ```
//!
//! The tables say who is a member and at which addresses, and change in one transaction with the file, which the members'
//! monitors read. A line of a container that is gone means nothing: nobody receives there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, types::Type};

use super::NetworkError;
use super::members::members;
use super::six::{Subnet6, V6};
use super::subnet::{self, Subnet};
use crate::container::new_id;
use crate::events::Events;
use crate::image::Digest;
use crate::store::{Store, now_ns};
use crate::{Error, Result, os};

/// The longest name of a network.
const NAME_MAX: usize = 128;
/// Names that mean something else.
const BUILT_IN: [&str; 4] = ["bridge", "default", "host", "none"];

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetwork {
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// The one of them that every member's own gateway has.
    pub gateway: Ipv4Addr,
    /// Its IPv6 addresses, where it has any.
    pub v6: Option<V6>,
    /// Nothing but the members is reached from it.
    pub internal: bool,
    /// What its maker wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
}

/// A network to be made.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses; chosen if not given.
    pub subnet: Option<String>,
    /// The gateway; the subnet's first address if not given.
    pub gateway: Option<Ipv4Addr>,
    /// Whether it has IPv6 addresses.
    pub ipv6: bool,
    /// These; chosen if not given.
    pub subnet6: Option<String>,
    /// Their gateway; the first address if not given.
    pub gateway6: Option<Ipv6Addr>,
    /// Nothing but the members is reached from it.
    pub internal: bool,
    /// What its maker writes on it.
    pub labels: BTreeMap<String, String>,
}

/// The networks of a data root.
#[derive(Clone, Copy, Debug)]
pub struct Networks<'a> {
    pub(super) store: &'a Store,
}

/// Whether a name is that of something that is always there.
#[must_use]
pub fn is_built_in(name: &str) -> bool {
    BUILT_IN.contains(&name)
}

/// The id of a network that is always there, the same everywhere.
#[must_use]
pub fn built_in_id(name: &str) -> String {
    Digest::of(format!("servin network {name}").as_bytes()).hex()
}

/// Whether a name can be a network's: docker's rule.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && name.len() <= NAME_MAX
}

pub(super) fn database(what: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::database(what, source)
}

/// Where a network's files are.
pub(super) fn directory(root: &Path, name: &str) -> PathBuf {
    root.join("networks").join(name)
}

impl<'a> Networks<'a> {
    /// Those of `store`.
    #[must_use]
    pub fn new(store: &'a Store) -> Self {
        Networks { store }
    }

    /// Makes a network.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn create(&self, new: &NewNetwork) -> Result<UserNetwork> {
        let name = new.name.clone();
        if is_built_in(&name) {
            return Err(NetworkError::BuiltIn { name }.into());
        }
        if !is_name(&name) {
            return Err(NetworkError::Name { name }.into());
        }
        let asked = |text: &String| {
            text.parse::<Subnet>().map_err(|why| NetworkError::Subnet { text: text.clone(), why })
        };
        let asked = new.subnet.as_ref().map(asked).transpose()?;
        let id = new_id()?;
        let v6 = new.ipv6.then(|| six(new, &id)).transpose()?;
        let network = self.store.write("make the network", |db| {
            let others = list(db)?;
            if others.iter().any(|other| other.name == name) {
                return Err(NetworkError::Exists { name: name.clone() }.into());
            }
            let taken = |subnet: Subnet| others.iter().find(|other| other.subnet.overlaps(subnet));
            let subnet = match asked {
                Some(subnet) => match taken(subnet) {
                    None => subnet,
                    Some(other) => {
                        let why = format!("network {} has {}", other.name, other.subnet);
                        return Err(NetworkError::Subnet { text: subnet.to_string(), why }.into());
                    }
                },
                None => {
                    let host = subnet::of_host(os::networks());
                    let is_free = |subnet: &Subnet| {
                        taken(*subnet).is_none() && !host.iter().any(|other| other.overlaps(*subnet))
                    };
                    Subnet::choices().find(is_free).ok_or(NetworkError::NoSubnet)?
                }
            };
            if let Some(V6 { subnet, .. }) = &v6
                && let Some(other) = others.iter().find(|one| one.v6.is_some_and(|v6| v6.subnet == *subnet))
            {
                let why = format!("network {} has it", other.name);
                return Err(NetworkError::Subnet { text: subnet.to_string(), why }.into());
            }
            let gateway = match new.gateway {
                Some(gateway) if !subnet.has_host(gateway) => {
                    let gateway = gateway.into();
                    return Err(NetworkError::Gateway { gateway, subnet: subnet.to_string() }.into());
                }
                Some(gateway) => gateway,
                None => subnet.hosts().next().ok_or(NetworkError::NoSubnet)?,
            };
            let network = UserNetwork {
                name: name.clone(),
                id: id.clone(),
                subnet,
                gateway,
                v6,
                internal: new.internal,
                labels: new.labels.clone(),
                created_ns: now_ns(),
            };
            let labels = serde_json::to_string(&network.labels)
                .map_err(|source| Error::Json { what: "the network's labels".into(), source })?;
            // The rest of one whose removal was cut.
            remove_tree(&directory(self.store.root(), &name))?;
            db.execute(
                "INSERT INTO networks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                (
                    &name,
                    &id,
                    subnet.to_string(),
                    gateway.to_string(),
                    network.internal,
                    labels,
                    network.created_ns,
                    v6.map(|v6| v6.subnet.to_string()),
                    v6.map(|v6| v6.gateway.to_string()),
                ),
            )
            .map_err(database("make the network"))?;
            self.write_members(db, &name)?;
            Ok(network)
        })?;
        self.tell("create", &network.name, &network.id, &[]);
        Ok(network)
    }

    /// Tells what happened to a network.
    pub(super) fn tell(&self, action: &str, name: &str, id: &str, attributes: &[(&str, &str)]) {
        let own = [("name", name), ("type", "bridge")];
        Events::new(self.store.root()).add("network", action, id, &[&own, attributes].concat());
    }

    /// The network that a user means: name, full id, or an unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`NetworkError::None`], [`NetworkError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<UserNetwork> {
        let mut all = list(self.store.db())?;
        if let Some(at) = all.iter().position(|one| one.name == text || one.id == text) {
            return Ok(all.swap_remove(at));
        }
        all.retain(|one| !text.is_empty() && one.id.starts_with(text));
        match (all.len(), all.pop()) {
            (1, Some(only)) => Ok(only),
            (0, _) => Err(NetworkError::None { name: text.to_owned() }.into()),
            (count, _) => Err(NetworkError::Ambiguous { prefix: text.to_owned(), count }.into()),
        }
    }

    /// All networks by name.
    pub fn list(&self) -> Result<Vec<UserNetwork>> {
        list(self.store.db())
    }

    /// Removes a network that has no members.
    ///
    /// # Errors
    /// [`NetworkError::InUse`], [`NetworkError::BuiltIn`], and as [`Self::find`].
    pub fn remove(&self, text: &str) -> Result<UserNetwork> {
        if is_built_in(text) {
            return Err(NetworkError::BuiltIn { name: text.to_owned() }.into());
        }
        let network = self.find(text)?;
        self.store.write("remove the network", |db| {
            let users = members(db, &network.name)?;
            if !users.is_empty() {
                let users = users.into_iter().map(|one| one.name).collect::<Vec<_>>().join(", ");
                return Err(NetworkError::InUse { name: network.name.clone(), users }.into());
            }
            db.execute("DELETE FROM networks WHERE name = ?1", [&network.name])
                .map_err(database("remove the network"))?;
            remove_tree(&directory(self.store.root(), &network.name))
        })?;
        self.tell("destroy", &network.name, &network.id, &[]);
        Ok(network)
    }

    /// Removes the networks that have no members, but those that `keep` wants. Returns their names.
    pub fn prune(&self, keep: impl Fn(&UserNetwork) -> bool) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        for network in self.list()?.into_iter().filter(|network| !keep(network)) {
            match self.remove(&network.name) {
                Ok(network) => gone.push(network.name),
                // Taken into use, or removed by another, since it was listed.
                Err(Error::Network(NetworkError::InUse { .. } | NetworkError::None { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }
}

/// The IPv6 addresses of a new network.
fn six(new: &NewNetwork, id: &str) -> Result<V6> {
    let subnet = match &new.subnet6 {
        Some(text) => text.parse().map_err(|why| NetworkError::Subnet { text: text.clone(), why })?,
        None => Subnet6::of_id(id),
    };
    V6::new(subnet, new.gateway6).map_err(|subnet| {
        // Only one that was given can be wrong.
        let gateway = new.gateway6.unwrap_or(Ipv6Addr::UNSPECIFIED).into();
        NetworkError::Gateway { gateway, subnet: subnet.to_string() }.into()
    })
}

pub(super) fn find(db: &Connection, name: &str) -> Result<UserNetwork> {
    let found = list(db)?.into_iter().find(|one| one.name == name);
    found.ok_or_else(|| NetworkError::None { name: name.to_owned() }.into())
}

pub(super) fn list(db: &Connection) -> Result<Vec<UserNetwork>> {
    let fail = database("list networks");
    let sql = "SELECT name, id, subnet, gateway, internal, labels, created_ns, subnet6, gateway6 FROM networks ORDER BY name";
    let mut statement = db.prepare(sql).map_err(&fail)?;
    let rows = statement.query_map((), read).map_err(&fail)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&fail)
}

fn read(row: &Row<'_>) -> rusqlite::Result<UserNetwork> {
    fn parse<T>(row: &Row<'_>, column: usize, read: impl Fn(&str) -> Option<T>) -> rusqlite::Result<T> {
        let text: String = row.get(column)?;
        let bad =
            || rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("bad {text:?}").into());
        read(&text).ok_or_else(bad)
    }
    let v6 = match row.get::<_, Option<String>>(7)? {
        None => None,
        Some(_) => Some(V6 {
            subnet: parse(row, 7, |text| text.parse().ok())?,
            gateway: parse(row, 8, |text| text.parse().ok())?,
        }),
    };
    Ok(UserNetwork {
        name: row.get(0)?,
        id: row.get(1)?,
        subnet: parse(row, 2, |text| text.parse().ok())?,
        gateway: parse(row, 3, |text| text.parse().ok())?,
        v6,
        internal: row.get(4)?,
        labels: parse(row, 5, |text| serde_json::from_str(text).ok())?,
        created_ns: row.get(6)?,
    })
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, source)),
        _ => Ok(()),
    }
}
