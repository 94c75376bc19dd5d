//! What a container's networks are to its machine and its guest.

use servin_init::proto::{Card, Configure, Network, Networks};

use super::attachment::Attachment;
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
        let card = |one: &Attachment| Card {
            number: one.number,
            network: self.networking.network(one),
            leads_out: self.networking.is_primary(one),
        };
        self.networking.attachments.iter().map(card).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mode, Place};
    use super::*;

    fn plan(attachments: Vec<Attachment>) -> NetworkPlan {
        let networking = Networking { attachments, ..Networking::none() };
        NetworkPlan { networking, hosts: b"hosts".to_vec(), ..NetworkPlan::default() }
    }

    fn shared(number: u8) -> Attachment {
        let place = Some(Place::of_test("10.7.0.0/24"));
        Attachment { number, place, ..Attachment::new(Mode::Shared("net".into())) }
    }

    fn told(plan: &NetworkPlan) -> (Option<Network>, Option<Vec<(u8, bool)>>) {
        let mut configure = Configure::default();
        plan.tell(&mut configure);
        assert_eq!(configure.hosts.as_deref(), Some(&b"hosts"[..]));
        let cards = |networks: Networks| {
            networks.cards.iter().map(|card| (card.number, card.leads_out)).collect::<Vec<_>>()
        };
        (configure.network, configure.networks.map(cards))
    }

    #[test]
    fn a_guest_is_told_as_little_as_it_needs_at_its_start() {
        assert_eq!(told(&plan(Vec::new())), (None, None));
        assert_eq!(told(&plan(vec![Attachment::default()])), (None, None));
        let (network, all) = told(&plan(vec![shared(0)]));
        assert_eq!((network.map(|network| network.address), all), (Some([10, 7, 0, 2]), None));
        // A saved guest has it at its number still.
        assert_eq!(told(&plan(vec![shared(3)])), (None, Some(vec![(3, true)])));
        let both = plan(vec![Attachment::default(), shared(1)]);
        assert_eq!(told(&both), (None, Some(vec![(0, true), (1, false)])));
    }

    #[test]
    fn a_guest_that_runs_gets_the_files_that_are_others_than_before() {
        let before = plan(vec![Attachment::default()]);
        let mut after = plan(vec![Attachment::default(), shared(1)]);
        let moved = after.moved(&before);
        assert_eq!((moved.cards.len(), &moved.hosts, &moved.resolv_conf), (2, &None, &None));
        // The network that was there is to it what it was.
        assert_eq!(moved.cards[0].network, Network::OWN);
        (after.hosts, after.resolv_conf) = (b"more".to_vec(), Some(b"nameserver".to_vec()));
        let moved = after.moved(&before);
        assert_eq!((moved.hosts, moved.resolv_conf), (Some(b"more".to_vec()), Some(b"nameserver".to_vec())));
    }
}
