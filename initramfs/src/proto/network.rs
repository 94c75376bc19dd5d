//! The container's network, as the guest sets its card up. There is no DHCP: the host knows all of it.

use alloc::vec::Vec;

use super::{
    Error,
    wire::{Reader, Writer},
};

/// Networks of a container, at most.
pub const MOST_NETWORKS: usize = 16;

/// All of the container's networks, as they are to be from now on: what is not among them is taken away.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Networks {
    /// The interfaces, each number once.
    pub cards: Vec<Card>,
    /// Content of /etc/resolv.conf; `None` leaves it as it is.
    pub resolv_conf: Option<Vec<u8>>,
    /// Content of /etc/hosts, but for lines that are none of what the host said before: those stay. `None` leaves it as it
    /// is.
    pub hosts: Option<Vec<u8>>,
}

/// A network and the interface that leads to it. Number 0 is the card `eth0`; others are `ethN`, with an address of their
/// own on the card's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Less than [`MOST_NETWORKS`].
    pub number: u8,
    /// The addresses. `mac` is given where the number is not 0.
    pub network: Network,
    /// The way to everywhere is by this one's gateways.
    pub leads_out: bool,
}

impl Card {
    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let card = Self { number: r.u8()?, network: Network::read(r)?, leads_out: r.bool("card.leads_out")? };
        if usize::from(card.number) >= MOST_NETWORKS {
            return Err(Error::Invalid("card.number"));
        }
        if card.number > 0 && card.network.mac.is_none() {
            return Err(Error::Invalid("card.network.mac"));
        }
        Ok(card)
    }
}

impl Networks {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let cards = r.list(14, Card::read)?;
        let is_twice =
            |(at, card): (usize, &Card)| cards.iter().skip(at + 1).any(|b| b.number == card.number);
        if cards.iter().enumerate().any(is_twice) {
            return Err(Error::Invalid("card.number"));
        }
        if cards.iter().filter(|card| card.leads_out).count() > 1 {
            return Err(Error::Invalid("card.leads_out"));
        }
        Ok(Self {
            cards,
            resolv_conf: r.option("networks.resolv_conf", Reader::bytes)?,
            hosts: r.option("networks.hosts", Reader::bytes)?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.list(&self.cards, |w, card| {
            w.u8(card.number);
            card.network.write(w);
            w.bool(card.leads_out);
        })
        .option(self.resolv_conf.as_ref(), |w, conf| {
            w.bytes(conf);
        })
        .option(self.hosts.as_ref(), |w, hosts| {
            w.bytes(hosts);
        });
    }
}

/// The card `eth0`: its addresses, and the gateway that leads everywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Address of the card; `None` leaves it as it is.
    pub mac: Option<[u8; 6]>,
    /// IPv4 address.
    pub address: [u8; 4],
    /// Bits of the IPv4 network, at most 32.
    pub prefix: u8,
    /// IPv4 address of the gateway.
    pub gateway: [u8; 4],
    /// IPv6, where there is any.
    pub v6: Option<NetworkV6>,
    /// The gateway's address on the wire; without it the guest asks, as on any wire.
    pub gateway_mac: Option<[u8; 6]>,
}

/// The card's IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkV6 {
    /// Its address, in a network of 64 bits.
    pub address: [u8; 16],
    /// Address of the gateway.
    pub gateway: [u8; 16],
}

impl Network {
    /// The network of a container that shares it with nobody: every one of them has the same, so that a template has it
    /// already.
    pub const OWN: Self = Self {
        mac: None,
        address: [10, 0, 2, 15],
        prefix: 24,
        gateway: [10, 0, 2, 2],
        v6: Some(NetworkV6 {
            address: [0xfd, 0x53, 0x72, 0x76, 0x69, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15],
            gateway: [0xfd, 0x53, 0x72, 0x76, 0x69, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        }),
        gateway_mac: Some([2, 0x53, 0x56, 0, 0, 1]),
    };

    /// The address on the wire that the card has by itself.
    pub const CARD: [u8; 6] = [2, 0x53, 0x56, 0, 0, 0x15];

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let network = Self {
            mac: r.option("network.mac", array)?,
            address: array(r)?,
            prefix: r.u8()?,
            gateway: array(r)?,
            v6: r.option("network.v6", |r| Ok(NetworkV6 { address: array(r)?, gateway: array(r)? }))?,
            gateway_mac: r.option("network.gateway_mac", array)?,
        };
        if network.prefix > 32 {
            return Err(Error::Invalid("network.prefix"));
        }
        Ok(network)
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.option(self.mac.as_ref(), |w, mac| {
            w.raw(mac);
        })
        .raw(&self.address)
        .u8(self.prefix)
        .raw(&self.gateway)
        .option(self.v6.as_ref(), |w, v6| {
            w.raw(&v6.address).raw(&v6.gateway);
        })
        .option(self.gateway_mac.as_ref(), |w, mac| {
            w.raw(mac);
        });
    }
}

fn array<const N: usize>(r: &mut Reader<'_>) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    for byte in &mut bytes {
        *byte = r.u8()?;
    }
    Ok(bytes)
}
