//! What a container asks of its networks.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use servin_init::proto::{MOST_NETWORKS, Network};

use super::attachment::{Attachment, Mode};
use super::ports::{self, Protocol, Publish};
use super::{Change, NetworkError, Place};

/// What was asked for, and the networks that the container is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Networking {
    /// The networks, in the order in which it came to them; none is no card.
    pub attachments: Vec<Attachment>,
    /// Ports to be published.
    pub publish: Vec<Publish>,
    /// Publish every exposed port, each at a free one of the host.
    pub publish_all: bool,
    /// Exposed ports, besides the image's.
    pub expose: Vec<(u16, Protocol)>,
    /// Resolvers instead of the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains instead of the host's.
    pub dns_search: Vec<String>,
    /// Options of the resolver instead of the host's.
    pub dns_options: Vec<String>,
}

/// As it stands in records: those that were written when a container had one network have it beside the rest.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    attachments: Option<Vec<Attachment>>,
    mode: StoredMode,
    address: Option<Ipv4Addr>,
    mac: Option<[u8; 6]>,
    aliases: Vec<String>,
    place: Option<Place>,
    publish: Vec<Publish>,
    publish_all: bool,
    expose: Vec<(u16, Protocol)>,
    dns: Vec<IpAddr>,
    dns_search: Vec<String>,
    dns_options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StoredMode {
    On(Mode),
    Nowhere(Nowhere),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Nowhere {
    None,
}

impl Default for StoredMode {
    fn default() -> Self {
        Self::On(Mode::Own)
    }
}

impl From<Stored> for Networking {
    fn from(stored: Stored) -> Self {
        let Stored { address, mac, aliases, place, .. } = stored;
        let attachments = match (stored.attachments, stored.mode) {
            (Some(attachments), _) => attachments,
            (None, StoredMode::Nowhere(Nowhere::None)) => Vec::new(),
            (None, StoredMode::On(mode)) => {
                vec![Attachment { number: 0, mode, address, mac, aliases, place }]
            }
        };
        Self {
            attachments,
            publish: stored.publish,
            publish_all: stored.publish_all,
            expose: stored.expose,
            dns: stored.dns,
            dns_search: stored.dns_search,
            dns_options: stored.dns_options,
        }
    }
}

impl Default for Networking {
    fn default() -> Self {
        Self::on(Mode::Own)
    }
}

impl Networking {
    /// The most networks of one container.
    pub const MOST: usize = MOST_NETWORKS;

    /// On one network, with nothing more asked for.
    #[must_use]
    pub fn on(mode: Mode) -> Self {
        Self { attachments: vec![Attachment::new(mode)], ..Self::none() }
    }

    /// On none.
    #[must_use]
    pub fn none() -> Self {
        Self {
            attachments: Vec::new(),
            publish: Vec::new(),
            publish_all: false,
            expose: Vec::new(),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        }
    }

    /// Whether there is a card.
    #[must_use]
    pub fn has_card(&self) -> bool {
        !self.attachments.is_empty()
    }

    /// Whether it is on a network that containers share.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.attachments.iter().any(|one| matches!(one.mode, Mode::Shared(_)))
    }

    /// The network that leads out, and from which ports are published: the first that leads anywhere.
    #[must_use]
    pub fn primary(&self) -> Option<&Attachment> {
        self.attachments.iter().find(|one| !one.is_internal()).or(self.attachments.first())
    }

    /// Whether this is the network that leads out.
    #[must_use]
    pub fn is_primary(&self, attachment: &Attachment) -> bool {
        self.primary().is_some_and(|primary| primary.number == attachment.number)
    }

    /// One of its networks as the guest sees it.
    #[must_use]
    pub fn network(&self, attachment: &Attachment) -> Network {
        attachment.network(self.is_primary(attachment))
    }

    /// The one that is called so.
    #[must_use]
    pub fn find(&self, network: &str) -> Option<&Attachment> {
        self.attachments.iter().find(|one| one.mode.network() == network)
    }

    /// Whether ports can be published: from a network of ours that leads out.
    #[must_use]
    pub fn can_publish(&self) -> bool {
        self.primary().is_some_and(|primary| primary.mode.is_ours() && !primary.is_internal())
    }

    /// What a change makes of them, for the container that is called so. A network that it comes to is the last, without a
    /// place.
    pub(crate) fn changed(&self, container: &str, change: &Change) -> Result<Self, NetworkError> {
        let mut changed = self.clone();
        match change {
            Change::Connect { network, .. } if network == "none" => {
                let container = container.to_owned();
                return Err(NetworkError::Alone { container, other: "private (none)".into() });
            }
            Change::Connect { network, address, aliases } => {
                let mode = match network.as_str() {
                    "bridge" => Mode::Own,
                    name => Mode::Shared(name.to_owned()),
                };
                let (address, aliases) = (*address, aliases.clone());
                changed.add(container, Attachment { address, aliases, ..Attachment::new(mode) })?;
            }
            Change::Disconnect { network, .. } => {
                let is_meant = |one: &Attachment| one.mode.is_ours() && one.mode.network() == network;
                changed.attachments.retain(|one| !is_meant(one));
                if changed == *self {
                    let container = container.to_owned();
                    return Err(NetworkError::NotConnected { container, network: network.clone() });
                }
            }
        }
        Ok(changed)
    }

    fn add(&mut self, container: &str, new: Attachment) -> Result<(), NetworkError> {
        let container = || container.to_owned();
        let network = new.mode.network().to_owned();
        if self.find(&network).is_some() {
            return Err(NetworkError::Connected { container: container(), network });
        }
        let alone = |one: &&Attachment| !one.mode.is_ours();
        let elsewhere = self.attachments.iter().chain([&new]).find(alone).filter(|_| self.has_card());
        if let Some(other) = elsewhere {
            let other = other.mode.network().to_owned();
            return Err(NetworkError::Alone { container: container(), other });
        }
        if self.attachments.len() >= Self::MOST {
            return Err(NetworkError::Most { container: container(), most: Self::MOST });
        }
        self.push(new);
        Ok(())
    }

    /// Adds a network that can be added: behind the others, and with the lowest number that is free.
    pub fn push(&mut self, new: Attachment) {
        let is_free = |number: &u8| !self.attachments.iter().any(|one| one.number == *number);
        let number = (0..=u8::MAX).find(is_free).unwrap_or(u8::MAX);
        self.attachments.push(Attachment { number, ..new });
    }

    /// The numbers anew, without gaps: for a machine that is yet to be made.
    pub(crate) fn count_anew(&mut self) {
        self.attachments.iter_mut().zip(0..).for_each(|(one, number)| one.number = number);
    }

    /// What is published: what was asked for, and with `-P` what the image and the request expose.
    pub(crate) fn wanted(&self, exposed: &[String]) -> Vec<Publish> {
        if !self.can_publish() {
            return Vec::new();
        }
        let mut wanted = self.publish.clone();
        if self.publish_all {
            let image = exposed.iter().filter_map(|port| ports::parse(port));
            for (port, protocol) in image.chain(self.expose.iter().copied()) {
                if !wanted.iter().any(|other| other.guest == port && other.protocol == protocol) {
                    wanted.push(Publish { ip: None, host: (0, 0), guest: port, protocol });
                }
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(name: &str, number: u8) -> Attachment {
        Attachment { number, ..Attachment::new(Mode::Shared(name.into())) }
    }

    #[test]
    fn records_of_containers_with_one_network_are_read() {
        let read = |json: &str| serde_json::from_str::<Networking>(json).unwrap();
        assert_eq!(read("{}"), Networking::default());
        assert_eq!(read(r#"{"mode":"own","mac":null}"#), Networking::default());
        assert_eq!(read(r#"{"mode":"none","dns":["9.9.9.9"]}"#).attachments, []);
        let old = read(
            r#"{"mode":{"shared":"back"},"address":"10.1.0.9","aliases":["db"],"publish_all":true,
                "mac":[2,0,0,0,0,1],"place":null}"#,
        );
        let expected = Attachment {
            address: Some([10, 1, 0, 9].into()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            aliases: vec!["db".into()],
            ..shared("back", 0)
        };
        assert_eq!(old, Networking { attachments: vec![expected], publish_all: true, ..Networking::none() });
        let two = Networking { attachments: vec![shared("a", 0), shared("b", 1)], ..Networking::none() };
        for networking in [Networking::default(), Networking::none(), old, two] {
            assert_eq!(read(&serde_json::to_string(&networking).unwrap()), networking);
        }
    }

    #[test]
    fn a_network_comes_behind_the_others_with_the_lowest_number_that_is_free() {
        let mut networking = Networking::default();
        networking.add("box", shared("a", 9)).unwrap();
        networking.add("box", shared("b", 9)).unwrap();
        networking.attachments.remove(0);
        networking.add("box", shared("c", 9)).unwrap();
        let numbers = |networking: &Networking| {
            let one = |one: &Attachment| format!("{}{}", one.mode.network(), one.number);
            networking.attachments.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&networking), ["a1", "b2", "c0"]);
        networking.count_anew();
        assert_eq!(numbers(&networking), ["a0", "b1", "c2"]);
        let refused = |networking: &Networking, mode: Mode| {
            networking.clone().add("box", Attachment::new(mode)).unwrap_err().to_string()
        };
        assert!(refused(&networking, Mode::Shared("b".into())).contains("already connected to network b"));
        assert!(refused(&networking, Mode::Socket("/s".into())).contains("socket"));
        assert!(refused(&Networking::on(Mode::Socket("/s".into())), Mode::Own).contains("socket"));
        for number in networking.attachments.len()..Networking::MOST {
            networking.add("box", shared(&number.to_string(), 0)).unwrap();
        }
        assert!(refused(&networking, Mode::Own).contains("16"));
        let mut none = Networking::none();
        none.add("box", Attachment::new(Mode::Socket("/s".into()))).unwrap();
    }

    #[test]
    fn the_first_network_that_leads_anywhere_leads_out() {
        let place = |internal| Place { internal, ..Place::of_test("10.1.0.0/24") };
        let placed = |name: &str, number, internal| Attachment {
            place: Some(place(internal)),
            ..shared(name, number)
        };
        let mut networking = Networking { publish_all: true, ..Networking::none() };
        assert!(networking.primary().is_none() && !networking.can_publish());
        networking.attachments = vec![placed("in", 0, true), placed("deep", 1, true)];
        assert_eq!(networking.primary().map(|one| one.number), Some(0));
        assert!(!networking.can_publish() && networking.wanted(&["80/tcp".into()]).is_empty());
        networking.attachments.push(placed("out", 2, false));
        networking.attachments.push(Attachment { number: 3, ..Attachment::default() });
        assert_eq!(networking.primary().map(|one| one.number), Some(2));
        assert_eq!(networking.wanted(&["80/tcp".into()]).len(), 1);
        // Towards a gateway of its own there is IPv6 once.
        let six: Vec<_> =
            networking.attachments.iter().map(|one| networking.network(one).v6.is_some()).collect();
        assert_eq!(six, [false, false, true, false]);
        let macs: std::collections::BTreeSet<_> =
            networking.attachments.iter().filter(|one| one.place.is_none()).map(|one| one.mac().0).collect();
        assert_eq!(macs, [[2, 0x53, 0x56, 0, 1, 3]].into());
    }
}
