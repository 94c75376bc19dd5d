//! The addresses of a network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network, 8 to 29 bits long: the first and the last of its addresses are nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// Where subnets are chosen from.
    pub(super) fn choices() -> impl Iterator<Item = Self> {
        (0..=255).map(|third| Self { address: Ipv4Addr::new(10, 89, third, 0), prefix: 24 })
    }

    /// Bits of its addresses that are all the same.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// The addresses that members and the gateway can have.
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.address.to_bits();
        (first + 1..first | !self.mask()).map(Ipv4Addr::from_bits)
    }

    /// Whether a member or the gateway can have this address.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        let (bits, first) = (address.to_bits(), self.address.to_bits());
        bits & self.mask() == first && bits != first && bits != first | !self.mask()
    }

    /// Which of its addresses this is; the first is 0.
    pub(super) fn number(self, address: Ipv4Addr) -> u32 {
        address.to_bits() & !self.mask()
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        (self.address.to_bits() ^ other.address.to_bits()) & mask == 0
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is an IPv4 network of 8 to 29 bits, as 10.89.0.0/24";
        let (address, prefix) = text.split_once('/').ok_or(FORM)?;
        let address: Ipv4Addr = address.parse().map_err(|_| FORM)?;
        let prefix = prefix.bytes().all(|byte| byte.is_ascii_digit()).then_some(prefix).ok_or(FORM)?;
        let prefix = prefix.parse().ok().filter(|prefix| (8..=29).contains(prefix)).ok_or(FORM)?;
        let given = Self { address, prefix };
        let subnet = Self { address: Ipv4Addr::from_bits(address.to_bits() & given.mask()), prefix };
        if subnet != given {
            return Err(format!("its first address is {}", subnet.address));
        }
        if address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 224 {
            return Err("no host can have its addresses".into());
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

/// The networks that the host itself has routes to, of those that are no larger than a subnet can be.
pub(super) fn of_host(networks: Vec<(Ipv4Addr, u8)>) -> Vec<Subnet> {
    let large = networks.into_iter().filter(|(_, prefix)| *prefix >= 8);
    large.map(|(address, prefix)| Subnet { address, prefix: prefix.min(32) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_hosts_between_its_first_and_its_last_address() {
        let subnet: Subnet = "10.1.2.8/29".parse().unwrap();
        let hosts: Vec<String> = subnet.hosts().map(|host| host.to_string()).collect();
        assert_eq!(hosts.len(), 6);
        assert_eq!((hosts[0].as_str(), hosts[5].as_str()), ("10.1.2.9", "10.1.2.14"));
        let has = |text: &str| subnet.has_host(text.parse().unwrap());
        assert!(has("10.1.2.9") && !has("10.1.2.8") && !has("10.1.2.15") && !has("10.1.2.16"));
        assert_eq!(subnet.to_string(), "10.1.2.8/29");
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for bad in
            ["10.0.0.0", "10.0.0.0/30", "10.0.0.0/7", "10.0.0.1/24", "x/24", "fd00::/64", "127.0.0.0/8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        for bad in ["0.0.0.0/8", "224.0.0.0/8", "10.0.0.0/+24", "10.0.0.0/24/24", "10.0.0.0/"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_overlap_where_one_holds_the_other() {
        let overlap = |a: &str, b: &str| a.parse::<Subnet>().unwrap().overlaps(b.parse().unwrap());
        assert!(overlap("10.0.0.0/8", "10.89.3.0/24") && overlap("10.89.3.0/24", "10.0.0.0/8"));
        assert!(!overlap("10.89.3.0/24", "10.89.4.0/24"));
    }
}
