//! The IPv6 addresses of a network.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Subnet;

/// An IPv6 network of 64 bits, which is what a card's addresses are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6(u64);

impl Subnet6 {
    /// The network that has this id in front: one of those that everybody may choose (RFC 4193), and nobody else has.
    pub(super) fn of_id(id: &str) -> Self {
        let digits = u64::from_str_radix(id.get(..14).unwrap_or_default(), 16).unwrap_or(1);
        Self(0xfd << 56 | digits)
    }

    fn host(self, number: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from(self.0) << 64 | u128::from(number))
    }

    /// Whether a member or the gateway can have this address.
    #[must_use]
    pub fn has_host(self, address: Ipv6Addr) -> bool {
        address.to_bits() >> 64 == u128::from(self.0) && address != self.host(0)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.host(0))
    }
}

impl FromStr for Subnet6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is an IPv6 network of 64 bits, as fd12:3456:789a:1::/64";
        let (address, prefix) = text.split_once('/').ok_or(FORM)?;
        let address: Ipv6Addr = address.parse().map_err(|_| FORM)?;
        if prefix != "64" {
            return Err(FORM.into());
        }
        let subnet = Self((address.to_bits() >> 64) as u64);
        if subnet.host(0) != address {
            return Err(format!("its first address is {}", subnet.host(0)));
        }
        // Loopback, IPv4 in IPv6, the link's own, groups.
        if address.segments()[0] == 0 || address.is_unicast_link_local() || address.is_multicast() {
            return Err("no host can have its addresses".into());
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> String {
        subnet.to_string()
    }
}

/// The IPv6 of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V6 {
    /// Its addresses.
    pub subnet: Subnet6,
    /// The one of them that every member's own gateway has.
    pub gateway: Ipv6Addr,
}

impl V6 {
    /// The one in `subnet` whose gateway is at `gateway`, or the first address.
    ///
    /// # Errors
    /// The subnet, where the gateway is none of its hosts.
    pub(super) fn new(subnet: Subnet6, gateway: Option<Ipv6Addr>) -> Result<Self, Subnet6> {
        let gateway = gateway.unwrap_or(subnet.host(1));
        if subnet.has_host(gateway) { Ok(Self { subnet, gateway }) } else { Err(subnet) }
    }

    /// The address of the member that has `v4`: the same number in its network, which nobody else has.
    #[must_use]
    pub fn address(&self, v4: Ipv4Addr, of: Subnet) -> Ipv6Addr {
        let number = u64::from(of.number(v4));
        match self.subnet.host(number) {
            taken if taken == self.gateway => self.subnet.host(1 << 63 | number),
            free => free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_subnet_has_64_bits_and_hosts() {
        let subnet: Subnet6 = "fd12:3456:789a:1::/64".parse().unwrap();
        assert_eq!(subnet.to_string(), "fd12:3456:789a:1::/64");
        let has = |text: &str| subnet.has_host(text.parse().unwrap());
        assert!(has("fd12:3456:789a:1::1") && !has("fd12:3456:789a:1::") && !has("fd12:3456:789a:2::1"));
        let bad =
            ["fd00::", "fd00::/48", "fd00::1/64", "fe80::/64", "ff02::/64", "::/64", "10.0.0.0/64", "x/64"];
        for bad in bad {
            assert!(bad.parse::<Subnet6>().is_err(), "{bad}");
        }
        let chosen = Subnet6::of_id("0123456789abcdef");
        assert_eq!(chosen.to_string(), "fd01:2345:6789:abcd::/64");
        assert_eq!(chosen.to_string().parse(), Ok(chosen));
    }

    #[test]
    fn a_member_has_the_number_of_its_ipv4_address_unless_that_is_the_gateways() {
        let of: Subnet = "10.89.0.0/16".parse().unwrap();
        let six =
            |gateway: &str| V6::new("fd00:1::/64".parse().unwrap(), Some(gateway.parse().unwrap())).unwrap();
        let address = |six: V6, v4: [u8; 4]| six.address(v4.into(), of).to_string();
        assert_eq!(address(six("fd00:1::1"), [10, 89, 1, 2]), "fd00:1::102");
        assert_eq!(address(six("fd00:1::102"), [10, 89, 1, 2]), "fd00:1::8000:0:0:102");
        assert!(V6::new("fd00:1::/64".parse().unwrap(), Some("fd00:2::1".parse().unwrap())).is_err());
    }
}
