//! The card of a machine: what is on the other end of its wire, as often as a machine is made, and while it runs.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use servin_devices::virtio::net::nat::{self, Addresses, Forward, Nat};
use servin_devices::virtio::net::stream::Stream;
use servin_devices::virtio::net::switch::{self, Directories, Switch};
use servin_devices::virtio::net::trunk::{Plug, Trunk, Wire};
use servin_devices::virtio::net::{Backend, Mac, Net, tap};
use servin_init::proto::{Network, NetworkV6};

use super::attachment::{MAC, Mode};
use super::networking::Networking;
use super::ports::{Bound, Publish, Published, bind};
use super::{RESOLV_CONF, shared};
use crate::{Error, Result, chain};

/// See the module's description. A clone has the same ports.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    /// The data root.
    root: PathBuf,
    /// The published ports, bound.
    bound: Arc<Vec<Bound>>,
    ends: Vec<End>,
    /// Somebody else's network in place of ours: a socket or a tap.
    elsewhere: Option<Mode>,
    /// Where the members of its networks stand.
    directories: Directories,
}

/// One network as it is on the card's wire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    number: u8,
    mac: Mac,
    network: Network,
    /// Of a network that is shared.
    directory: Option<PathBuf>,
    internal: bool,
    /// It has the published ports.
    publishes: bool,
    resolvers: Vec<IpAddr>,
}

/// What is on the other ends of a card.
fn ends(networking: &Networking, root: &Path) -> Vec<End> {
    let ours = networking.attachments.iter().filter(|one| one.mode.is_ours());
    let end = |one: &super::Attachment| End {
        number: one.number,
        mac: one.mac(),
        network: networking.network(one),
        directory: one.place.as_ref().map(|place| shared::directory(root, &place.network)),
        internal: one.is_internal(),
        publishes: networking.is_primary(one) && !one.is_internal(),
        resolvers: networking.dns.clone(),
    };
    ours.map(end).collect()
}

impl Card {
    /// A card with these ports published; `root` is the data root.
    pub(crate) fn new(bound: Vec<Bound>, root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            bound: Arc::new(bound),
            ends: Vec::new(),
            elsewhere: None,
            directories: Directories::new(),
        }
    }

    /// Whether ports of the host are published.
    pub(crate) fn publishes(&self) -> bool {
        !self.bound.is_empty()
    }

    /// Whether the network is ours: the same for every machine, which opens sockets itself.
    pub(crate) fn is_ours(&self) -> bool {
        self.elsewhere.is_none()
    }

    /// Plugs it in where the container has its places.
    pub(crate) fn plug(&mut self, networking: &Networking) {
        self.elsewhere =
            networking.attachments.iter().map(|one| &one.mode).find(|mode| !mode.is_ours()).cloned();
        self.ends = ends(networking, &self.root);
    }

    /// The device, and what changes its networks where these are ours. Nothing of the host's network is touched but the bound
    /// sockets.
    pub(crate) fn device(&self) -> Result<(Net, Option<Plug>)> {
        let other: Box<dyn Backend> = match &self.elsewhere {
            Some(Mode::Tap(device)) => Box::new(tap::Tap::new(device.open()?)),
            Some(Mode::Socket(path)) => {
                let path = path.as_path();
                let stream = UnixStream::connect(path).and_then(Stream::new);
                let fail = |source| Error::io("connect to the network's socket", path, source);
                Box::new(stream.map_err(fail)?)
            }
            _ => {
                self.ends.iter().try_for_each(|end| self.name_members(end))?;
                let first = self.ends.iter().find(|end| end.number == 0);
                let first = first.map(|end| self.wire(end)).transpose()?;
                let (trunk, plug) = Trunk::new(first).map_err(Error::Card)?;
                for end in self.ends.iter().filter(|end| end.number > 0) {
                    let refused = plug.connect(end.number.into(), self.wire(end)?);
                    refused.map_err(|why| Error::Card(std::io::Error::other(why)))?;
                }
                return Ok((Net::new(MAC, Box::new(trunk)), Some(plug)));
            }
        };
        Ok((Net::new(MAC, other), None))
    }

    /// Moves the card to the networks where the container has its places now, and gives the ports that are published then. With a
    /// plug the running machine's card moves; what is the same is not touched. After a failure some have moved: the way back is
    /// another move.
    ///
    /// # Errors
    /// Why a network cannot be there.
    pub(crate) fn rewire(
        &mut self,
        networking: &Networking,
        wanted: &[Publish],
        plug: Option<&Plug>,
    ) -> Result<Vec<Published>, String> {
        if wanted.is_empty() {
            self.bound = Arc::default();
        } else if self.bound.is_empty() {
            self.bound = Arc::new(bind(wanted).map_err(|error| chain(&error))?);
        }
        let new = ends(networking, &self.root);
        for gone in self.ends.extract_if(.., |end| !new.iter().any(|new| new.number == end.number)) {
            if let Some(plug) = plug {
                plug.disconnect(gone.number.into());
            }
            if let Some(directory) = &gone.directory {
                self.directories.remove(directory);
            }
        }
        for end in new {
            if self.ends.contains(&end) {
                continue;
            }
            self.name_members(&end).map_err(|error| chain(&error))?;
            // Until the new one is there, the number counts as free.
            for old in self.ends.extract_if(.., |old| old.number == end.number) {
                if let Some(directory) = old.directory.filter(|old| Some(old) != end.directory.as_ref()) {
                    self.directories.remove(&directory);
                }
            }
            if let Some(plug) = plug {
                let wire = self.wire(&end).map_err(|error| chain(&error))?;
                plug.connect(end.number.into(), wire).map_err(|why| chain(&why))?;
            }
            self.ends.push(end);
        }
        Ok(self.bound.iter().map(|bound| bound.published.clone()).collect())
    }

    /// Every gateway of the container knows the names of the members of all its networks.
    fn name_members(&self, end: &End) -> Result<()> {
        let Some(directory) = &end.directory else { return Ok(()) };
        self.directories.add(directory).map_err(|source| Error::io("open", directory, source))
    }

    fn wire(&self, end: &End) -> Result<Wire> {
        let forwards = self
            .bound
            .iter()
            .filter(|_| end.publishes)
            .map(|bound| Ok(Forward { listener: bound.listener()?, port: bound.published.guest }))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(Error::Card)?;
        let Network { address, prefix, gateway, v6, .. } = end.network;
        let v6 = v6.unwrap_or(NetworkV6 { address: [0; 16], gateway: [0; 16] });
        let nat = nat::Config {
            addresses: Addresses {
                guest: address.into(),
                gateway: gateway.into(),
                prefix,
                guest6: v6.address.into(),
                gateway6: v6.gateway.into(),
            },
            mac: end.mac,
            resolv_conf: Path::new(RESOLV_CONF).to_path_buf(),
            resolvers: end.resolvers.clone(),
            names: Some(Box::new(self.directories.clone())),
            forwards,
            aliases: Vec::new(),
            outside: !end.internal,
        };
        let backend: Box<dyn Backend> = match &end.directory {
            None => Box::new(Nat::new(nat)),
            Some(directory) => {
                let config = switch::Config { nat, directory: directory.clone() };
                Box::new(Switch::new(config).map_err(|source| Error::io("use", directory, source))?)
            }
        };
        Ok(Wire { mac: end.mac, backend })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::{Attachment, Place, Protocol};
    use super::*;

    const A: &str = "networks/a/02420a070002";
    const B: &str = "networks/b/02420a080002";

    fn shared(number: u8, name: &str, subnet: &str, internal: bool) -> Attachment {
        let place = Place { network: name.into(), internal, ..Place::of_test(subnet) };
        Attachment { number, place: Some(place), ..Attachment::new(Mode::Shared(name.into())) }
    }

    fn on(attachments: &[&Attachment]) -> Networking {
        Networking { attachments: attachments.iter().copied().cloned().collect(), ..Networking::none() }
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir_all(root.path().join("networks").join(name)).unwrap();
            std::fs::write(root.path().join("networks").join(name).join(switch::MEMBERS), "").unwrap();
        }
        root
    }

    #[test]
    fn a_card_comes_to_networks_and_leaves_them_and_the_others_are_not_touched() {
        let root = root();
        let inode =
            |path: &str| std::fs::symlink_metadata(root.path().join(path)).ok().map(|meta| meta.ino());
        let (a, b) = (shared(0, "a", "10.7.0.0/24", false), shared(1, "b", "10.8.0.0/24", false));
        let mut card = Card::new(Vec::new(), root.path());
        card.plug(&on(&[&a]));
        let (device, plug) = card.device().unwrap();
        let first = inode(A);
        assert!(first.is_some() && inode(B).is_none());
        card.rewire(&on(&[&a, &b]), &[], plug.as_ref()).unwrap();
        assert!(inode(A) == first && inode(B).is_some());
        // Another one has its address on the wire: that is refused, and the way back is another move.
        let mut same = shared(2, "b", "10.8.0.0/24", false);
        same.place.as_mut().unwrap().mac = [2, 0x42, 10, 7, 0, 2];
        let refused = card.rewire(&on(&[&a, &same]), &[], plug.as_ref()).unwrap_err();
        assert!(refused.contains("02:42:0a:07:00:02"), "{refused}");
        card.rewire(&on(&[&a, &b]), &[], plug.as_ref()).unwrap();
        assert!(inode(A) == first && inode(B).is_some());
        card.rewire(&on(&[&b]), &[], plug.as_ref()).unwrap();
        assert!(inode(A).is_none() && inode(B).is_some());
        // The next machine has what there is now.
        drop((device, plug));
        assert!(inode(B).is_none());
        let (_device, plug) = card.device().unwrap();
        assert!(inode(A).is_none() && inode(B).is_some());
        card.rewire(&on(&[]), &[], plug.as_ref()).unwrap();
        assert!(inode(B).is_none());
    }

    #[test]
    fn published_ports_go_with_the_network_that_leads_out() {
        let root = root();
        let wanted =
            [Publish { ip: Some([127, 0, 0, 1].into()), host: (0, 0), guest: 80, protocol: Protocol::Tcp }];
        let (inner, outer) = (shared(0, "a", "10.7.0.0/24", true), shared(1, "b", "10.8.0.0/24", false));
        let own = Attachment { number: 2, ..Attachment::default() };
        let mut card = Card::new(bind(&wanted).unwrap(), root.path());
        let all = on(&[&inner, &outer, &own]);
        card.plug(&all);
        let publishing = |card: &Card| {
            card.ends.iter().filter(|end| end.publishes).map(|end| end.number).collect::<Vec<_>>()
        };
        assert_eq!(publishing(&card), [1]);
        let (_device, plug) = card.device().unwrap();
        let ports = card.rewire(&all, &wanted, plug.as_ref()).unwrap();
        // They stay the same ports.
        assert_eq!(card.rewire(&on(&[&inner, &own]), &wanted, plug.as_ref()).unwrap(), ports);
        assert_eq!(publishing(&card), [2]);
        let at = (std::net::Ipv4Addr::LOCALHOST, ports[0].host);
        assert!(std::net::TcpListener::bind(at).is_err());
        // From where nothing leads out there are none, and nobody is kept waiting.
        assert_eq!(card.rewire(&on(&[&inner]), &[], plug.as_ref()).unwrap(), []);
        assert!(publishing(&card).is_empty() && !card.publishes());
        std::net::TcpListener::bind(at).unwrap();
    }
}
