//! Containers come to networks and leave them, in one step with the tables.

use std::net::Ipv4Addr;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::{Mac, nat::GATEWAY_MAC};
use servin_init::proto::Network;

use super::attachment::{Attachment, Mode};
use super::members::{Member, Place, members};
use super::networking::Networking;
use super::shared::{Networks, UserNetwork, built_in_id, database, find, is_built_in};
use super::six::V6;
use super::{NetworkError, Subnet};
use crate::container::{Config, RunDir, short};
use crate::store::Record;
use crate::{Error, Result};

/// Whether a container can be looked up by a name.
fn is_alias(alias: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    alias.len() <= 253 && alias.split('.').all(is_label)
}

/// What is to become of a container's networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It comes to a network.
    Connect {
        /// The network's name.
        network: String,
        /// Its address there; chosen without.
        address: Option<Ipv4Addr>,
        /// Further names of it there.
        aliases: Vec<String>,
    },
    /// It leaves a network.
    Disconnect {
        /// The network's name.
        network: String,
        /// Whatever its guest says to that.
        force: bool,
    },
}

impl Change {
    /// The network.
    #[must_use]
    pub fn network(&self) -> &str {
        match self {
            Self::Connect { network, .. } | Self::Disconnect { network, .. } => network,
        }
    }

    /// What happens, as events call it.
    fn action(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Disconnect { .. } => "disconnect",
        }
    }
}

/// The container's own network, as [`Network::OWN`] says.
fn own_subnet() -> Option<Subnet> {
    let [a, b, c, _] = Network::OWN.address;
    format!("{a}.{b}.{c}.0/{}", Network::OWN.prefix).parse().ok()
}

/// Whether a network has the IPv6 addresses by which the other one, which has none itself, may lead out.
fn takes_own_v6(one: &Attachment, other: &Attachment) -> bool {
    let v6 = |one: &Attachment| one.place.as_ref().and_then(|place| place.v6);
    let is_own = |v6: V6| Network::OWN.v6.is_some_and(|own| v6.subnet.has_host(own.gateway.into()));
    v6(one).is_some_and(is_own) && v6(other).is_none()
}

/// Refuses a network whose addresses another one of the container's has: its guest would not know which is meant.
fn must_differ(networking: &Networking, own: usize) -> Result<(), NetworkError> {
    let Some(new) = networking.attachments.get(own) else { return Ok(()) };
    let subnet = |one: &Attachment| match &one.place {
        Some(place) => Some(place.subnet),
        None => own_subnet().filter(|_| one.mode == Mode::Own),
    };
    let others = networking.attachments.iter().enumerate().filter(|(index, _)| *index != own);
    for (_, other) in others {
        let (network, with) = (new.mode.network().to_owned(), other.mode.network().to_owned());
        let Some((ours, theirs)) = subnet(new).zip(subnet(other)) else { continue };
        if ours.overlaps(theirs) {
            let what = format!("its addresses {ours} are those of {with}, too ({theirs})");
            return Err(NetworkError::Clash { network, with, what });
        }
        if takes_own_v6(new, other) || takes_own_v6(other, new) {
            let what =
                "the IPv6 addresses of one are those that networks without IPv6 have towards their gateways";
            return Err(NetworkError::Clash { network, with, what: what.into() });
        }
        if new.mac() == other.mac() {
            let what = format!("both would have the address {} on the wire", new.mac());
            return Err(NetworkError::Clash { network, with, what });
        }
    }
    Ok(())
}

fn add_row(db: &Connection, member: &Member, network: &str) -> Result<()> {
    let aliases = serde_json::to_string(&member.aliases)
        .map_err(|source| Error::Json { what: "the container's names".into(), source })?;
    let row = (&member.container, network, member.address.to_bits(), member.mac.0, aliases);
    let sql = "INSERT INTO container_networks VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(sql, row).map(drop).map_err(database("record the container's network"))
}

impl Networks<'_> {
    /// What a user calls a network, as [`Change`] has it.
    ///
    /// # Errors
    /// As [`Networks::find`].
    pub fn meant(&self, text: &str) -> Result<String> {
        match text {
            "bridge" | "default" => Ok("bridge".into()),
            text if is_built_in(text) => Ok(text.to_owned()),
            text => Ok(self.find(text)?.name),
        }
    }

    /// The places of a container that is to start, from the tables; the lists of its networks' members are written anew.
    pub(crate) fn take_places(&self, container: &str, networking: &mut Networking) -> Result<()> {
        if !networking.is_shared() {
            return Ok(());
        }
        self.store.write("look up the container's networks", |db| {
            for one in &mut networking.attachments {
                let Mode::Shared(name) = &one.mode else { continue };
                let network = find(db, name)?;
                let member = members(db, name)?.into_iter().find(|member| member.container == container);
                let missing =
                    || NetworkError::NotConnected { container: short(container), network: name.clone() };
                one.place = Some(Place::new(network, member.ok_or_else(missing)?));
                self.write_members(db, name)?;
            }
            Ok(())
        })
    }

    /// Gives a new container its places on the networks that it asks for. Inside a transaction, and after its row.
    pub(crate) fn attach(&self, db: &Connection, record: &Record, asked: &mut Networking) -> Result<()> {
        for index in 0..asked.attachments.len() {
            self.attach_one(db, record, asked, index)?;
        }
        if let Some(primary) = asked.primary()
            && primary.is_internal()
            && (!asked.publish.is_empty() || asked.publish_all)
        {
            return Err(NetworkError::Internal { network: primary.mode.network().to_owned() }.into());
        }
        // Nothing is refused any more.
        for one in &asked.attachments {
            if let Mode::Shared(network) = &one.mode {
                self.write_members(db, network)?;
            }
        }
        Ok(())
    }

    fn attach_one(
        &self,
        db: &Connection,
        record: &Record,
        asked: &mut Networking,
        index: usize,
    ) -> Result<()> {
        let Some(one) = asked.attachments.get_mut(index) else { return Ok(()) };
        if let Mode::Shared(name) = &one.mode {
            let network = find(db, name)?;
            let (name, member) = (network.name.clone(), self.choose(db, record, one, &network)?);
            one.place = Some(Place::new(network, member.clone()));
            must_differ(asked, index)?;
            return add_row(db, &member, &name);
        }
        Ok(must_differ(asked, index)?)
    }

    /// A free place on a network.
    fn choose(
        &self,
        db: &Connection,
        record: &Record,
        asked: &Attachment,
        network: &UserNetwork,
    ) -> Result<Member> {
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
        Ok(Member {
            container: record.id.clone(),
            name: record.name.clone(),
            address,
            address6: network.v6.map(|v6| v6.address(address, network.subnet)),
            mac,
            aliases: asked.aliases.clone(),
        })
    }

    /// Changes a container that does not run.
    ///
    /// # Errors
    /// See [`NetworkError`]; [`NetworkError::Running`] for one that has a monitor.
    pub fn change(&self, record: &Record, change: &Change) -> Result<()> {
        // Nobody starts it meanwhile.
        let run = match RunDir::create(self.store.root(), &record.id) {
            Err(Error::Busy { .. }) => {
                return Err(NetworkError::Running { container: record.name.clone() }.into());
            }
            run => run?,
        };
        run.serves_files()?;
        let gone = || Error::NoSuchContainer { name: record.name.clone() };
        let found = self.store.containers().get(&record.id).and_then(|found| found.ok_or_else(gone));
        let changed = found.and_then(|mut record| self.apply(&mut record, change));
        run.remove()?;
        changed
    }

    /// Changes a container's row and the tables in one transaction; the record follows.
    pub(crate) fn apply(&self, record: &mut Record, change: &Change) -> Result<()> {
        let json = |source| Error::Json { what: "the container's record".into(), source };
        let name = change.network();
        let id;
        (*record, id) = self.store.write("change the container's networks", |db| {
            let mut row = record.clone();
            let mut config: Config = serde_json::from_str(&row.config).map_err(json)?;
            let networking = &mut config.request.network;
            *networking = networking.changed(&row.name, change)?;
            match change {
                Change::Connect { .. } => {
                    let last = networking.attachments.len().saturating_sub(1);
                    self.attach_one(db, &row, networking, last)?;
                }
                Change::Disconnect { network, .. } => {
                    let sql = "DELETE FROM container_networks WHERE container = ?1 AND network = ?2";
                    db.execute(sql, (&row.id, network)).map_err(database("disconnect the container"))?;
                }
            }
            row.config = serde_json::to_string(&config).map_err(json)?;
            self.store.containers().update(&row)?;
            if !is_built_in(name) {
                self.write_members(db, name)?;
            }
            let id = if is_built_in(name) { built_in_id(name) } else { find(db, name)?.id };
            Ok((row, id))
        })?;
        self.tell(change.action(), name, &id, &[("container", &record.id)]);
        Ok(())
    }
}
