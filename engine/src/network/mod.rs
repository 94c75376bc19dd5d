//! The networks of a container: what was asked for, the ports that are published, and what the guest is told.

mod attachment;
mod card;
mod error;
mod files;
mod joining;
mod members;
mod networking;
mod ports;
mod shared;
mod six;
mod subnet;
mod tap;
#[cfg(test)]
mod tests;
mod told;

pub use attachment::{Attachment, Mode};
pub(crate) use card::Card;
pub use error::NetworkError;
pub(crate) use files::resolv_conf;
pub use joining::Change;
pub use members::{Member, Place};
pub use networking::Networking;
pub(crate) use ports::bind;
pub use ports::{Protocol, Publish, Published};
pub use shared::{Networks, NewNetwork, UserNetwork, built_in_id, is_built_in};
pub use six::{Subnet6, V6};
pub use subnet::Subnet;
pub use tap::Tap;
pub(crate) use told::NetworkPlan;

/// The host's list of resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
