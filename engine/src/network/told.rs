//! What a container's networks are to its machine and its guest.

use servin_init::proto::{Card, Configure, Network, Networks};

use super::attachment::{Attachment, MAC};
use super::networking::Networking;
use super::ports::Publish;

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetworkPlan {
    /// The networks.
    pub(crate) networking: Networking,
    /// Ports to be published.
    pub(crate) publish: Vec<Publish>,
    /// Content of /etc/hosts.
    pub(crate) hosts: Vec<u8>,
    /// Content of /etc/resolv.conf, where there is a network.
    pub(crate) resolv_conf: Option<Vec<u8>>,
}

impl NetworkPlan {
    /// Says it to a guest that is to start. One network is told alone, and not at all where it is what every template has.
    pub(crate) fn tell(&self, configure: &mut Configure) {
        configure.hosts = Some(self.hosts.clone());
        configure.resolv_conf.clone_from(&self.resolv_conf);
        match self.networking.attachments.as_slice() {
            [] => {}
            [only] if only.number == 0 => {
                let network = self.networking.network(only);
                configure.network = Some(network).filter(|network| *network != Network::OWN);
            }
            _ => self.tell_all(configure),
        }
    }

    /// Says it to the next guest of one whose networks have changed.
    pub(crate) fn tell_all(&self, configure: &mut Configure) {
        configure.hosts = Some(self.hosts.clone());
        configure.resolv_conf.clone_from(&self.resolv_conf);
        configure.network = None;
        configure.networks = Some(Networks { cards: self.cards(), ..Networks::default() });
    }

    /// What a guest that runs is to move to, with the files that are others than `before`.
    pub(crate) fn moved(&self, before: &Self) -> Networks {
        Networks {
            cards: self.cards(),
            resolv_conf: self.resolv_conf.clone().filter(|_| self.resolv_conf != before.resolv_conf),
            hosts: (self.hosts != before.hosts).then(|| self.hosts.clone()),
        }
    }

    /// The guest's interfaces.
    fn cards(&self) -> Vec<Card> {
        let card = |one: &Attachment| {
            let network = self.networking.network(one);
            Card {
                number: one.number,
                // Whatever the card was called before.
                network: Network { mac: network.mac.or(Some(MAC.0)), ..network },
                leads_out: self.networking.is_primary(one),
            }
        };
        self.networking.attachments.iter().map(card).collect()
    }
}
