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
    /// IPv6 address, in a network of 64 bits.
    pub address6: [u8; 16],
    /// IPv6 address of the gateway.
    pub gateway6: [u8; 16],
    /// The gateway's address on the wire.
    pub gateway_mac: [u8; 6],
}

impl Network {
    /// The network of a container that shares it with nobody: every one of them has the same, so that a template has it
    /// already.
    pub const OWN: Self = Self {
        mac: None,
        address: [10, 0, 2, 15],
        prefix: 24,
        gateway: [10, 0, 2, 2],
        address6: [0xfd, 0x53, 0x72, 0x76, 0x69, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15],
        gateway6: [0xfd, 0x53, 0x72, 0x76, 0x69, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        gateway_mac: [2, 0x53, 0x56, 0, 0, 1],
    };

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let network = Self {
            mac: r.option("network.mac", array)?,
            address: array(r)?,
            prefix: r.u8()?,
            gateway: array(r)?,
            address6: array(r)?,
            gateway6: array(r)?,
            gateway_mac: array(r)?,
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
        .raw(&self.address6)
        .raw(&self.gateway6)
        .raw(&self.gateway_mac);
    }
}

fn array<const N: usize>(r: &mut Reader<'_>) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    for byte in &mut bytes {
        *byte = r.u8()?;
    }
    Ok(bytes)
}
