//! What can be wrong with networks that containers share.

use std::net::IpAddr;

/// See the module's description.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A name that no network can have.
    #[error(
        "\"{name}\" is no name for a network: it has letters, digits, \"_\", \".\" and \"-\", begins with a letter or digit, and is no longer than 128 bytes"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// A network that is always there.
    #[error("the network \"{name}\" is always there: it is neither made nor removed")]
    BuiltIn {
        /// Its name.
        name: String,
    },
    /// There is one of this name.
    #[error("there is a network \"{name}\" already: remove it, or choose another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none.
    #[error("no such network: {name} (see \"servin network ls\")")]
    None {
        /// What was asked for.
        name: String,
    },
    /// Several ids begin so.
    #[error("the id {prefix} is that of {count} networks: give more digits")]
    Ambiguous {
        /// The digits.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// A subnet that cannot be used.
    #[error("the subnet {text} cannot be used: {why}")]
    Subnet {
        /// What was asked for.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// No subnet is left to be chosen.
    #[error("all subnets from 10.89.0.0/24 to 10.89.255.0/24 are in use: name one with --subnet")]
    NoSubnet,
    /// An address that a container cannot have.
    #[error("the container cannot have the address {address} in network {network}: {why}")]
    Address {
        /// What was asked for.
        address: String,
        /// The network.
        network: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Every address is taken.
    #[error(
        "network {network} has no free address in {subnet}: remove containers of it, or make a larger network"
    )]
    Full {
        /// The network.
        network: String,
        /// Its addresses.
        subnet: String,
    },
    /// It has members.
    #[error("network {name} is used by: {users}. Remove these, or disconnect them, first")]
    InUse {
        /// The network.
        name: String,
        /// Names of containers.
        users: String,
    },
    /// Ports cannot be published from it.
    #[error("network {network} is internal: no port can be published from it")]
    Internal {
        /// The network.
        network: String,
    },
    /// Something else is done with a container.
    #[error(
        "container {container} is being started, or its files are in use: wait until that is over, and try again"
    )]
    Running {
        /// The container.
        container: String,
    },
    /// It is on that network.
    #[error("container {container} is already connected to network {network}")]
    Connected {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// Its card is somebody else's, as a whole.
    #[error(
        "container {container} cannot be connected to multiple networks with one of the networks in {other} mode: its card is what is behind that"
    )]
    Alone {
        /// The container.
        container: String,
        /// The network that is alone.
        other: String,
    },
    /// It is on as many as there can be.
    #[error(
        "container {container} is on {most} networks, and more a container cannot be on: disconnect it from one first"
    )]
    Most {
        /// The container.
        container: String,
        /// How many there can be.
        most: usize,
    },
    /// Two networks of one container would be the same to it.
    #[error("a container cannot be on the networks {network} and {with} at once: {what}")]
    Clash {
        /// The network.
        network: String,
        /// The other one.
        with: String,
        /// What they have in common.
        what: String,
    },
    /// It is not on that network.
    #[error("container {container} is not on network {network}")]
    NotConnected {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// A name for a container that cannot be looked up.
    #[error(
        "\"{alias}\" is no name that can be looked up: it has letters, digits, \"_\", \".\" and \"-\", and at most 63 of them between dots"
    )]
    Alias {
        /// What was asked for.
        alias: String,
    },
    /// A tap of the host's that the card cannot be attached to.
    #[error("cannot attach the container to tap {name}: {why}")]
    Tap {
        /// The device.
        name: String,
        /// What is wrong, and what helps.
        why: String,
        /// The reason.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The gateway of a new network.
    #[error("{gateway} cannot be the gateway of {subnet}: it is no address of a host there")]
    Gateway {
        /// What was asked for.
        gateway: IpAddr,
        /// The network.
        subnet: String,
    },
}
