//! A tap of the host's as the other end of a card.

#[cfg(target_os = "linux")]
mod linux;

use std::fs::File;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Subnet;
use crate::Result;

/// A tap, and which of the addresses on its wire are whose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// The device's name, see [`Tap::is_name`].
    pub name: String,
    /// The network on its wire.
    pub subnet: Subnet,
    /// The way to everywhere else.
    pub gateway: Ipv4Addr,
}

impl Tap {
    /// Whether a network device can have this name.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let is_good = |byte: u8| byte.is_ascii_graphic() && !b"/:".contains(&byte);
        (1..libc::IFNAMSIZ).contains(&name.len()) && name.bytes().all(is_good) && name != "." && name != ".."
    }

    /// Opens the tap, which must be there: the kernel would make one for root, and nobody would be at its other end.
    #[cfg(target_os = "linux")]
    pub(super) fn open(&self) -> Result<File> {
        linux::open(self)
    }

    /// Refuses it: only Linux has taps.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn open(&self) -> Result<File> {
        let why = "this system has no taps; use the network that servin makes itself".into();
        Err(super::NetworkError::Tap { name: self.name.clone(), why, source: None }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(name: &str) -> Tap {
        Tap { name: name.into(), subnet: "10.0.2.0/24".parse().unwrap(), gateway: [10, 0, 2, 2].into() }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_no_tap_is_refused_by_its_kind() {
        let error = |name: &str| tap(name).open().unwrap_err().to_string();
        assert!(error("servin-no-tap").contains("ip tuntap add dev servin-no-tap mode tap"));
        assert!(error("lo").contains("another kind"), "{}", error("lo"));
        for bad in ["", "..", "a/b", "sixteen-bytes-in", "a b"] {
            assert!(!Tap::is_name(bad), "{bad}");
            assert!(error(bad).contains("there is none"), "{bad}");
        }
        assert!(Tap::is_name("tap0") && Tap::is_name("fifteen-bytes-x"));
    }
}
