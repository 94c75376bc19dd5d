//! The container's networks, set up by batches of netlink messages (rtnetlink(7)): one is the card itself, `eth0`, others are
//! macvlan interfaces on it, `ethN`, each with an address of its own on the card's wire.

use alloc::{ffi::CString, format, vec::Vec};

use rustix::{
    fd::{AsFd as _, OwnedFd},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};
use servin_init::proto::{Card, Network};

use crate::{
    failure::{Doing as _, Failure},
    sys,
};

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const REQUEST: u16 = 1;
const REPLACE_CREATE: u16 = 0x500;
const CREATE_NEW: u16 = 0x600;
const INET: u8 = 2;
const INET6: u8 = 10;
/// Not to be probed for a duplicate: there is nobody else.
const NO_DAD: u8 = 2;
const PERMANENT: u16 = 0x80;

/// INFO_KIND "macvlan", INFO_DATA { MODE: private }: interfaces of one card do not hear each other.
const MACVLAN: [u8; 24] = *b"\x0b\0\x01\0macvlan\0\x0c\0\x02\0\x08\0\x01\0\x01\0\0\0";

/// The fixed part of a message about an interface, with flags to be set.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    for (place, word) in fixed.as_chunks_mut::<4>().0.iter_mut().skip(1).zip([index, flags, flags]) {
        *place = word.to_ne_bytes();
    }
    fixed
}

/// Netlink messages, one behind the other.
struct Batch(Vec<u8>);

impl Batch {
    /// A message with this fixed part and these attributes.
    fn add(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.0.extend_from_slice(&[0; 8]);
        self.0.extend_from_slice(fixed);
        for (kind, value) in attributes {
            self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
            self.0.extend_from_slice(&kind.to_ne_bytes());
            self.0.extend_from_slice(value);
            self.0.resize(self.0.len().next_multiple_of(4), 0);
        }
        let len = (self.0.len() - start) as u32;
        if let Some(place) = self.0.get_mut(start..start + 4) {
            place.copy_from_slice(&len.to_ne_bytes());
        }
    }

    fn link(&mut self, card: u32, flags: u32, attributes: &[(u16, &[u8])]) {
        self.add(SET_LINK, 0, &link(card, flags), attributes);
    }

    /// Adds or takes away the addresses of a network.
    fn addresses(&mut self, kind: u16, flags: u16, card: u32, network: &Network) {
        let [a, b, c, d] = card.to_ne_bytes();
        let address = &network.address;
        let v4 = [INET, network.prefix, 0, 0, a, b, c, d];
        self.add(kind, flags, &v4, &[(1, address), (2, address)]);
        if let Some(v6) = &network.v6 {
            self.add(kind, flags, &[INET6, 64, NO_DAD, 0, a, b, c, d], &[(1, &v6.address)]);
        }
    }

    /// Adds or takes away the gateway's known address on the wire.
    fn neighbour(&mut self, kind: u16, flags: u16, card: u32, gateway: &Gateway<'_>, mac: &[u8; 6]) {
        let [a, b, c, d] = card.to_ne_bytes();
        let [s, t] = PERMANENT.to_ne_bytes();
        let fixed = [gateway.family, 0, 0, 0, a, b, c, d, s, t, 0, 0];
        self.add(kind, flags, &fixed, &[(1, gateway.address), (2, mac)]);
    }

    /// Adds or takes away a way to everywhere.
    fn route(&mut self, kind: u16, flags: u16, card: u32, gateway: &Gateway<'_>) {
        // Main table, static, to everywhere, unicast.
        let fixed = [gateway.family, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        self.add(kind, flags, &fixed, &[(5, gateway.address), (4, &card.to_ne_bytes())]);
    }
}

/// A way out of the network.
struct Gateway<'n> {
    family: u8,
    address: &'n [u8],
}

/// The gateways of a network, one of each family that it has.
fn gateways(network: &Network) -> impl Iterator<Item = Gateway<'_>> {
    let v4 = Gateway { family: INET, address: &network.gateway };
    let v6 = network.v6.as_ref().map(|v6| Gateway { family: INET6, address: &v6.gateway });
    core::iter::once(v4).chain(v6)
}

/// The sockets for it.
struct Kernel {
    control: OwnedFd,
    netlink: OwnedFd,
}

impl Kernel {
    fn open() -> Result<Self, Failure> {
        let open = |family, kind| socket_with(family, kind, SocketFlags::CLOEXEC, None);
        Ok(Self {
            control: open(AddressFamily::INET, SocketType::DGRAM)
                .doing("open a socket for the network card")?,
            netlink: open(AddressFamily::NETLINK, SocketType::RAW).doing("open a netlink socket")?,
        })
    }

    /// The interface of this number as the kernel knows it.
    fn index(&self, number: u8) -> Result<u32, Failure> {
        let name = CString::new(format!("eth{number}")).unwrap_or_default();
        sys::interface_index(self.control.as_fd(), &name)
            .doing(format_args!("find the network card eth{number}"))
    }

    /// Has a batch carried out, and empties it. What should be taken away and is not there is not missed.
    fn carry_out(&self, batch: &mut Batch) -> rustix::io::Result<()> {
        if batch.0.is_empty() {
            return Ok(());
        }
        send(&self.netlink, &batch.0, SendFlags::empty())?;
        batch.0.clear();
        // The kernel has done it all by now, and speaks only of what it could not do.
        let mut failed = Ok(());
        let mut answer = [0; 64];
        while let Ok((36.., _)) = recv(&self.netlink, &mut answer, RecvFlags::DONTWAIT) {
            // Behind the header, the error and the head of the message that it is about: length and kind.
            let (_, [a, b, c, d, _, _, _, _, kind, ..]) = answer.split_at(16) else { break };
            let errno = i32::from_ne_bytes([*a, *b, *c, *d]).wrapping_neg();
            if !matches!(u16::from(*kind), DELETE_LINK | DELETE_ADDRESS | DELETE_ROUTE | DELETE_NEIGHBOUR) {
                failed = failed.and(Err(Errno::from_raw_os_error(errno)));
            }
        }
        failed
    }

    /// Takes a network away: an interface of its own, or what the card was set up with.
    fn take_away(&self, batch: &mut Batch, card: &Card) {
        // One that is gone, the container's programs may have taken away.
        let Ok(index) = self.index(card.number) else { return };
        if card.number > 0 {
            batch.add(DELETE_LINK, 0, &link(index, 0), &[]);
            return;
        }
        for gateway in gateways(&card.network) {
            batch.route(DELETE_ROUTE, 0, index, &gateway);
            if let Some(mac) = &card.network.gateway_mac {
                batch.neighbour(DELETE_NEIGHBOUR, 0, index, &gateway, mac);
            }
        }
        batch.addresses(DELETE_ADDRESS, 0, index, &card.network);
        if card.network.mac.is_some() {
            // Nothing else may have that address from now on; another interface may.
            batch.link(index, 0, &[(1, &Network::CARD)]);
        }
    }

    /// Adds or takes away the ways to everywhere.
    fn lead_out(&self, batch: &mut Batch, kind: u16, flags: u16, card: &Card) -> Result<(), Failure> {
        let index = self.index(card.number)?;
        gateways(&card.network).for_each(|gateway| batch.route(kind, flags, index, &gateway));
        Ok(())
    }

    /// Brings an interface up with its addresses; all but the card itself is made for that.
    fn set_up(&self, batch: &mut Batch, card: &Card) -> Result<(), Failure> {
        let Card { number, network, .. } = card;
        if *number > 0 {
            let wire = self.index(0)?.to_ne_bytes();
            let name = format!("eth{number}\0");
            // IFNAME, LINK, LINKINFO.
            batch.add(NEW_LINK, CREATE_NEW, &link(0, 0), &[(3, name.as_bytes()), (5, &wire), (18, &MACVLAN)]);
            self.carry_out(batch).doing(format_args!("make the network card eth{number}"))?;
        }
        let index = self.index(*number)?;
        if let Some(mac) = &network.mac {
            batch.link(index, 0, &[(1, mac)]);
        }
        // No address of the kernel's own making, and with it no search for routers:
        // AF_SPEC { AF_INET6 { ADDR_GEN_MODE: none } }.
        batch.link(index, 0, &[(26, &[12, 0, 10, 0, 8, 0, 8, 0, 1, 0, 0, 0])]);
        batch.link(index, 1, &[]);
        batch.addresses(NEW_ADDRESS, REPLACE_CREATE, index, network);
        for gateway in gateways(network) {
            if let Some(mac) = &network.gateway_mac {
                batch.neighbour(NEW_NEIGHBOUR, REPLACE_CREATE, index, &gateway, mac);
            }
        }
        if card.leads_out {
            self.lead_out(batch, NEW_ROUTE, REPLACE_CREATE, card)?;
        }
        self.carry_out(batch).doing(format_args!("set up the network card eth{number}"))
    }
}

/// Makes `wanted` of `cards`, which are what is set up; also where it fails. What is the same is left alone.
pub(crate) fn change(cards: &mut Vec<Card>, wanted: &[Card]) -> Result<(), Failure> {
    if cards == wanted {
        return Ok(());
    }
    let kernel = Kernel::open()?;
    let mut batch = Batch(Vec::with_capacity(512));
    // All that goes before anything comes: addresses, and the ways to everywhere, are there once.
    cards.retain_mut(|card| {
        let same = wanted.iter().find(|new| (new.number, new.network) == (card.number, card.network));
        match same {
            None => kernel.take_away(&mut batch, card),
            Some(new) if card.leads_out && !new.leads_out => {
                card.leads_out = false;
                // One that is gone leads nowhere.
                let _ = kernel.lead_out(&mut batch, DELETE_ROUTE, 0, card);
            }
            Some(_) => {}
        }
        same.is_some()
    });
    for new in wanted {
        let known = cards.iter_mut().find(|card| card.number == new.number);
        match known {
            Some(card) if card.leads_out == new.leads_out => {}
            Some(card) => {
                kernel.lead_out(&mut batch, NEW_ROUTE, REPLACE_CREATE, new)?;
                kernel.carry_out(&mut batch).doing(format_args!("lead out by eth{}", new.number))?;
                card.leads_out = true;
            }
            None => {
                if let Err(failure) = kernel.set_up(&mut batch, new) {
                    batch.0.clear();
                    kernel.take_away(&mut batch, new);
                    let _ = kernel.carry_out(&mut batch);
                    return Err(failure);
                }
                cards.push(*new);
            }
        }
    }
    kernel.carry_out(&mut batch).doing("take a network away")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_length_and_attributes_are_padded() {
        let mut batch = Batch(Vec::new());
        batch.add(NEW_ADDRESS, 0, &[9; 8], &[(1, &[1, 2, 3, 4, 5])]);
        let length = 16 + 8 + 4 + 8;
        assert_eq!(batch.0.len(), length);
        assert_eq!(batch.0[..6], [length as u8, 0, 0, 0, 20, 0]);
        assert_eq!(batch.0[24..], [9, 0, 1, 0, 1, 2, 3, 4, 5, 0, 0, 0]);
    }
}
