//! One network that a container is on.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::Mac;
use servin_init::proto::{Network, NetworkV6};

use super::{Place, Tap};
use crate::container::Text;

/// The address of every card: what another one is called, the guest sets itself.
pub(super) const MAC: Mac = Mac([0x02, 0x53, 0x56, 0, 0, 0x15]);

/// Which network it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One of the container's own, behind a gateway to everywhere.
    #[default]
    Own,
    /// The one of this name, which it shares with others.
    Shared(String),
    /// Whatever listens at this Unix socket: `passt`, or a switch of QEMU's kind. An absolute path.
    Socket(Text),
    /// A tap of the host's kernel.
    Tap(Tap),
}

impl Mode {
    /// As docker calls it where it tells of a container's mode.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Own => "default",
            other => other.network(),
        }
    }

    /// As `network ls` calls it.
    #[must_use]
    pub fn network(&self) -> &str {
        match self {
            Self::Shared(name) => name,
            Self::Own => "bridge",
            Self::Socket(_) => "socket",
            Self::Tap(_) => "tap",
        }
    }

    /// Whether the network is ours, so that the card can be on others as well.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Own | Self::Shared(_))
    }
}

/// A network that a container is on, or is to be on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// The guest's interface: `eth` and this number.
    pub number: u8,
    /// Which network.
    pub mode: Mode,
    /// The container's IPv4 address there, if one was asked for.
    pub address: Option<Ipv4Addr>,
    /// Address on the wire, if one was asked for.
    pub mac: Option<[u8; 6]>,
    /// Further names of it on a network that it shares.
    pub aliases: Vec<String>,
    /// What the store gave it on a network that it shares.
    pub place: Option<Place>,
}

impl Attachment {
    /// The first network of a container, with nothing more asked for.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Whether nothing else is reached from it, as far as its place says.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.internal)
    }

    /// The network as the guest sees it; `leads_out` for the one that its default routes lead to.
    #[must_use]
    pub fn network(&self, leads_out: bool) -> Network {
        let own = Network::OWN;
        // Towards their own gateways all have one address, which a guest can have once.
        let own_v6 = own.v6.filter(|_| leads_out);
        if let Mode::Tap(tap) = &self.mode {
            let address = self.address.map_or(own.address, |address| address.octets());
            let [a, b, c, d] = address;
            return Network {
                // Several can be on one bridge.
                mac: Some(self.mac.unwrap_or([2, 0x42, a, b, c, d])),
                address,
                prefix: tap.subnet.prefix(),
                gateway: tap.gateway.octets(),
                v6: None,
                gateway_mac: None,
            };
        }
        match &self.place {
            None => Network {
                mac: self.mac.or_else(|| self.of_number()),
                address: self.address.map_or(own.address, |address| address.octets()),
                v6: own_v6,
                ..own
            },
            Some(place) => Network {
                mac: Some(place.mac),
                address: place.address.octets(),
                prefix: place.subnet.prefix(),
                gateway: place.gateway.octets(),
                v6: place.v6.map_or(own_v6, |v6| {
                    let address = v6.address(place.address, place.subnet).octets();
                    Some(NetworkV6 { address, gateway: v6.gateway.octets() })
                }),
                ..own
            },
        }
    }

    /// The address of an interface beside the first, which cannot have the card's.
    fn of_number(&self) -> Option<[u8; 6]> {
        (self.number > 0).then_some([0x02, 0x53, 0x56, 0, 1, self.number])
    }

    /// Its address on the wire.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.network(false).mac.map_or(MAC, Mac)
    }
}
