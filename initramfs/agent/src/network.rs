//! The container's network card, set up by one batch of netlink messages (rtnetlink(7)).

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::{
    fd::AsFd as _,
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};
use servin_init::proto::Network;

use crate::{
    failure::{Doing as _, Failure},
    sys,
};

const CARD: &CStr = c"eth0";

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const REQUEST: u16 = 1;
const REPLACE_CREATE: u16 = 0x500;
const INET: u8 = 2;
const INET6: u8 = 10;
/// Not to be probed for a duplicate: there is nobody else.
const NO_DAD: u8 = 2;
const PERMANENT: u16 = 0x80;

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
        let fixed = [[0; 4], card.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()];
        self.add(SET_LINK, 0, fixed.as_flattened(), attributes);
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

    /// Adds or takes away the way to everywhere.
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

/// Brings the card up with the addresses of `network`, in place of those of `before`.
pub(crate) fn set_up(network: &Network, before: Option<&Network>) -> Result<(), Failure> {
    let control = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .doing("open a socket for the network card")?;
    let card = sys::interface_index(control.as_fd(), CARD).doing("find the network card")?;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .doing("open a netlink socket")?;
    let mut batch = Batch(Vec::with_capacity(512));
    if let Some(before) = before {
        // What the new one does not put in its place.
        if let Some(mac) = before.gateway_mac.as_ref().filter(|_| network.gateway_mac.is_none()) {
            gateways(before).for_each(|gateway| batch.neighbour(DELETE_NEIGHBOUR, 0, card, &gateway, mac));
        }
        if network.v6 != before.v6 {
            let v6 = gateways(before).filter(|gateway| gateway.family == INET6);
            v6.for_each(|gateway| batch.route(DELETE_ROUTE, 0, card, &gateway));
        }
        batch.addresses(DELETE_ADDRESS, 0, card, before);
    }
    if let Some(mac) = &network.mac {
        batch.link(card, 0, &[(1, mac)]);
    }
    // No address of the kernel's own making, and with it no search for routers:
    // AF_SPEC { AF_INET6 { ADDR_GEN_MODE: none } }.
    let mode: [u16; 6] = [12, 10, 5, 8, 1, 0];
    let mut spec = [0; 12];
    for (place, word) in spec.as_chunks_mut::<2>().0.iter_mut().zip(mode) {
        *place = word.to_ne_bytes();
    }
    batch.link(card, 0, &[(26, &spec)]);
    batch.link(card, 1, &[]);
    batch.addresses(NEW_ADDRESS, REPLACE_CREATE, card, network);
    for gateway in gateways(network) {
        if let Some(mac) = &network.gateway_mac {
            batch.neighbour(NEW_NEIGHBOUR, REPLACE_CREATE, card, &gateway, mac);
        }
        batch.route(NEW_ROUTE, REPLACE_CREATE, card, &gateway);
    }
    send(&socket, &batch.0, SendFlags::empty()).doing("set the network card up")?;
    // The kernel has done it all by now, and speaks only of what it could not do.
    let mut answer = [0; 64];
    match recv(&socket, &mut answer, RecvFlags::DONTWAIT) {
        Ok((count, _)) if count >= 20 => {
            let [.., w, x, y, z] = *answer.first_chunk::<20>().unwrap_or(&[0; 20]);
            let errno = i32::from_ne_bytes([w, x, y, z]).wrapping_neg();
            Err(Errno::from_raw_os_error(errno)).doing("set the network card up")
        }
        _ => Ok(()),
    }
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
