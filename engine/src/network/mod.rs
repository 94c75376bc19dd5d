//! The network of a container: what was asked for, the ports that are published, and what the guest is told.

mod error;
mod files;
mod members;
mod ports;
mod shared;
mod six;
mod subnet;
mod tap;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use servin_devices::virtio::net::nat::{Addresses, Config, Forward, Nat};
use servin_devices::virtio::net::stream::Stream;
use servin_devices::virtio::net::switch::{self, Switch};
use servin_devices::virtio::net::{Backend, Mac, Net, tap as frames};
use servin_init::proto::{Network, NetworkV6};

use crate::container::Text;
use crate::{Error, Result};

pub use error::NetworkError;
pub(crate) use files::resolv_conf;
pub use members::{Member, Place};
pub(crate) use ports::{Bound, bind};
pub use ports::{Protocol, Publish, Published};
pub use shared::{Networks, NewNetwork, UserNetwork, is_built_in};
pub use six::{Subnet6, V6};
pub use subnet::Subnet;
pub use tap::Tap;

/// The host's list of resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The address of every card: what another one is called, the guest sets itself.
const MAC: Mac = Mac([0x02, 0x53, 0x56, 0, 0, 0x15]);

/// Which network a container is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One of its own, behind a gateway to everywhere.
    #[default]
    Own,
    /// None: there is no card.
    None,
    /// The one of this name, which it shares with others.
    Shared(String),
    /// Whatever listens at this Unix socket: `passt`, or a switch of QEMU's kind. An absolute path.
    Socket(Text),
    /// A tap of the host's kernel.
    Tap(Tap),
}

impl Mode {
    /// As docker calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Shared(name) => name,
            Self::Own => "default",
            Self::None => "none",
            Self::Socket(_) => "socket",
            Self::Tap(_) => "tap",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Networking {
    /// Which network.
    pub mode: Mode,
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
    /// Address of the card.
    pub mac: Option<[u8; 6]>,
    /// The container's IPv4 address in its network.
    pub address: Option<Ipv4Addr>,
    /// Further names of it on a network that it shares.
    pub aliases: Vec<String>,
    /// What the store gave it on a network that it shares.
    pub place: Option<Place>,
}

impl Networking {
    /// Whether there is a card.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.mode != Mode::None
    }

    /// Whether ports can be published: on a network of ours.
    #[must_use]
    pub fn can_publish(&self) -> bool {
        matches!(self.mode, Mode::Own | Mode::Shared(_))
    }

    /// The network as the guest sees it.
    #[must_use]
    pub fn network(&self) -> Network {
        let own = Network::OWN;
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
                mac: self.mac,
                address: self.address.map_or(own.address, |address| address.octets()),
                ..own
            },
            Some(place) => Network {
                mac: Some(place.mac),
                address: place.address.octets(),
                prefix: place.subnet.prefix(),
                gateway: place.gateway.octets(),
                v6: place.v6.map_or(own.v6, |v6| {
                    let address = v6.address(place.address, place.subnet).octets();
                    Some(NetworkV6 { address, gateway: v6.gateway.octets() })
                }),
                ..own
            },
        }
    }

    /// What the agent is told, where it is not what every template has.
    pub(crate) fn told(&self) -> Option<Network> {
        Some(self.network()).filter(|network| self.has_card() && *network != Network::OWN)
    }

    /// The address of the card.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.network().mac.map_or(MAC, Mac)
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

/// The card of a machine: what it is made from, as often as a machine is made.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    network: Network,
    /// The published ports, bound.
    bound: std::sync::Arc<Vec<Bound>>,
    shared: Option<SharedWire>,
    /// Somebody else's network in place of ours: a socket or a tap.
    elsewhere: Option<Mode>,
}

/// The other end of a card on a network that is shared.
#[derive(Debug, Clone)]
struct SharedWire {
    directory: PathBuf,
    internal: bool,
    resolvers: Vec<IpAddr>,
}

impl Card {
    /// A card with these ports published.
    pub(crate) fn new(bound: Vec<Bound>) -> Self {
        Self { network: Network::OWN, bound: std::sync::Arc::new(bound), shared: None, elsewhere: None }
    }

    /// Whether ports of the host are published.
    pub(crate) fn publishes(&self) -> bool {
        !self.bound.is_empty()
    }

    /// Whether the network is ours: the same for every machine, which opens sockets itself.
    pub(crate) fn is_ours(&self) -> bool {
        self.elsewhere.is_none()
    }

    /// Plugs it in where the container has its place; `root` is the data root.
    pub(crate) fn plug(&mut self, networking: &Networking, root: &Path) {
        self.network = networking.network();
        if let Mode::Socket(_) | Mode::Tap(_) = networking.mode {
            self.elsewhere = Some(networking.mode.clone());
        }
        self.shared = networking.place.as_ref().map(|place| SharedWire {
            directory: shared::directory(root, &place.network),
            internal: place.internal,
            resolvers: networking.dns.clone(),
        });
    }

    /// The device. Nothing of the host's network is touched but the bound sockets.
    pub(crate) fn device(&self) -> Result<Net> {
        if let Some(Mode::Tap(tap)) = &self.elsewhere {
            return Ok(Net::new(MAC, Box::new(frames::Tap::new(tap.open()?))));
        }
        if let Some(Mode::Socket(path)) = &self.elsewhere {
            let path = path.as_path();
            let stream = UnixStream::connect(path).and_then(Stream::new);
            let stream =
                stream.map_err(|source| Error::io("connect to the network's socket", path, source))?;
            return Ok(Net::new(MAC, Box::new(stream)));
        }
        let forwards = self
            .bound
            .iter()
            .map(|bound| Ok(Forward { listener: bound.listener()?, port: bound.published.guest }))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(Error::Card)?;
        let Network { address, prefix, gateway, v6, .. } = self.network;
        let v6 = v6.unwrap_or(NetworkV6 { address: [0; 16], gateway: [0; 16] });
        let nat = Config {
            addresses: Addresses {
                guest: address.into(),
                gateway: gateway.into(),
                prefix,
                guest6: v6.address.into(),
                gateway6: v6.gateway.into(),
            },
            mac: self.network.mac.map_or(MAC, Mac),
            resolv_conf: Path::new(RESOLV_CONF).to_path_buf(),
            resolvers: self.shared.as_ref().map_or_else(Vec::new, |shared| shared.resolvers.clone()),
            names: None,
            forwards,
            aliases: Vec::new(),
            outside: self.shared.as_ref().is_none_or(|shared| !shared.internal),
        };
        let backend: Box<dyn Backend> = match &self.shared {
            None => Box::new(Nat::new(nat)),
            Some(SharedWire { directory, .. }) => {
                let config = switch::Config { nat, directory: directory.clone() };
                Box::new(Switch::new(config).map_err(|source| Error::io("use", directory, source))?)
            }
        };
        Ok(Net::new(MAC, backend))
    }
}
