//! The container's network, as the guest sets its card up. There is no DHCP: the host knows all of it.

use super::{
    Error,
    wire::{Reader, Writer},
};

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
