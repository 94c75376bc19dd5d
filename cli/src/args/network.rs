//! The flags of `run` about the network, and `servin port`, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command};

use super::{all, is_on, switch, text, value, values};

/// Typed flags. Values are not checked yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) network: Vec<OsString>,
    pub(crate) publish: Vec<OsString>,
    pub(crate) publish_all: bool,
    pub(crate) expose: Vec<OsString>,
    pub(crate) dns: Vec<OsString>,
    pub(crate) dns_search: Vec<OsString>,
    pub(crate) dns_option: Vec<OsString>,
    pub(crate) mac_address: Option<String>,
    pub(crate) ip: Option<String>,
    pub(crate) aliases: Vec<OsString>,
}

/// Adds the flags.
pub(super) fn flags(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    command
        .arg(
            values(long("network").alias("net"), "NETWORK").help(
                "Network: one that was made, default, none, socket:PATH or tap:NAME [default: default]; several, or \
                 name=NAME[,ip=IP][,alias=NAME][,mac-address=MAC], where containers share them",
            ),
        )
        .arg(
            values(long("publish").short('p'), "[[IP:]PORT:]PORT[/udp]")
                .help("Publish a port, or a range of them, at the host"),
        )
        .arg(
            switch(long("publish-all").short('P'))
                .help("Publish every exposed port at a free one of the host"),
        )
        .arg(values(long("expose"), "PORT[/udp]").help("Expose a port, or a range of them"))
        .arg(values(long("dns"), "IP").help("Resolver instead of the host's"))
        .arg(values(long("dns-search"), "DOMAIN").help("Search domain instead of the host's; . for none"))
        .arg(
            values(long("dns-option").visible_alias("dns-opt"), "OPTION")
                .help("Option of the resolver instead of the host's"),
        )
        .arg(value(long("mac-address"), "MAC").help("Address of the network card, on the first network"))
        .arg(value(long("ip"), "IP").help("IPv4 address of the container in its first network"))
        .arg(
            values(long("network-alias").alias("net-alias"), "NAME")
                .help("A further name of the container in its first network"),
        )
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Network, String> {
    let text = |name: &str| text(matches, name).map_err(|what| format!("--{name}: {what}"));
    Ok(Network {
        network: all(matches, "network"),
        publish: all(matches, "publish"),
        publish_all: is_on(matches, "publish-all"),
        expose: all(matches, "expose"),
        dns: all(matches, "dns"),
        dns_search: all(matches, "dns-search"),
        dns_option: all(matches, "dns-option"),
        mac_address: text("mac-address")?,
        ip: text("ip")?,
        aliases: all(matches, "network-alias"),
    })
}

/// `servin port`
pub(super) fn port() -> Command {
    let word = |name: &'static str| Arg::new(name).value_parser(clap::value_parser!(OsString));
    Command::new("port")
        .about("Print where a container's ports are published")
        .args_override_self(true)
        .arg(word("name").required(true).value_name("CONTAINER"))
        .arg(word("port").value_name("PORT[/PROTOCOL]"))
}
