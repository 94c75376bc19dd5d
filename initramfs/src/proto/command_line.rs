//! What the agent learns from the kernel command line, before the host has said anything.
//!
//! The kernel hands unknown `name=value` parameters **without a dot in the name** to PID 1 as environment, so the
//! agent needs no /proc to read them. (With a dot they would be parameters of a module, and dropped.)

use alloc::{format, string::String};
use core::fmt;

use super::{Lower, Root, Upper};

/// The agent's parameters on the kernel command line: `Display` writes them, [`BootOptions::parse`] reads them.
///
/// ```
/// use servin_init::proto::{BootOptions, Lower, Root, Upper};
///
/// let options = BootOptions {
///     root: Some(Root { lower: Lower::Virtiofs("root".into()), upper: Upper::Tmpfs }),
///     ..BootOptions::default()
/// };
/// assert_eq!(options.to_string(), "servin_root=virtiofs:root servin_upper=tmpfs");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BootOptions {
    /// Mounted before the agent says Hello; `None` waits for [`super::Configure::root`].
    pub root: Option<Root>,
    /// The card is set up as [`super::Network::OWN`] before the agent says Hello.
    pub network: bool,
    /// For tests without a virtual machine: the abstract Unix sockets `NAME/control` and `NAME/stream` take the
    /// place of the vsock ports, and the machine's power port is left alone.
    pub sockets: Option<String>,
}

impl fmt::Display for BootOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(root) = &self.root {
            match &root.lower {
                Lower::Virtiofs(tag) => write!(f, "servin_root=virtiofs:{tag}")?,
                Lower::Erofs(device) => write!(f, "servin_root=erofs:{device}")?,
                Lower::Directory(path) => write!(f, "servin_root=dir:{path}")?,
            }
            match &root.upper {
                Upper::None => f.write_str(" servin_upper=none")?,
                Upper::Tmpfs => f.write_str(" servin_upper=tmpfs")?,
                Upper::Ext4(device) => write!(f, " servin_upper=ext4:{device}")?,
            }
            separator = " ";
        }
        if self.network {
            write!(f, "{separator}servin_net=own")?;
            separator = " ";
        }
        if let Some(sockets) = &self.sockets {
            write!(f, "{separator}servin_sockets={sockets}")?;
        }
        Ok(())
    }
}

impl BootOptions {
    /// Picks the agent's parameters from `name=value` strings; others are ignored.
    ///
    /// # Errors
    /// A sentence that names the parameter whose value is not understood.
    pub fn parse<'a>(parameters: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let (mut lower, mut upper, mut sockets, mut network) = (None, None, None, false);
        for (name, value) in parameters.into_iter().filter_map(|p| p.split_once('=')) {
            match (name, value.split_once(':').unwrap_or((value, ""))) {
                ("servin_root", ("virtiofs", tag)) if !tag.is_empty() => {
                    lower = Some(Lower::Virtiofs(tag.into()));
                }
                ("servin_root", ("erofs", device)) if !device.is_empty() => {
                    lower = Some(Lower::Erofs(device.into()));
                }
                ("servin_root", ("dir", path)) if !path.is_empty() => {
                    lower = Some(Lower::Directory(path.into()));
                }
                ("servin_upper", ("none", "")) => upper = Some(Upper::None),
                ("servin_upper", ("tmpfs", "")) => upper = Some(Upper::Tmpfs),
                ("servin_upper", ("ext4", device)) if !device.is_empty() => {
                    upper = Some(Upper::Ext4(device.into()));
                }
                ("servin_net", ("own", "")) => network = true,
                ("servin_sockets", _) if !value.is_empty() => sockets = Some(value.into()),
                ("servin_root" | "servin_upper" | "servin_net" | "servin_sockets", _) => {
                    return Err(format!("kernel parameter {name}={value} is not understood"));
                }
                _ => {}
            }
        }
        let root = lower.map(|lower| Root { lower, upper: upper.unwrap_or(Upper::Tmpfs) });
        Ok(Self { root, network, sockets })
    }
}
