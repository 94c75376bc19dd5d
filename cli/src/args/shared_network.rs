//! The verbs of networks, `servin network`, as they were typed.

use clap::{Arg, ArgMatches, Command};

use super::{Verb, all, is_on, switch, text, utf8, value, values};
use crate::error::{Error, Result};

/// A verb of networks with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SharedNetwork {
    /// `network create`
    Create {
        name: String,
        subnets: Vec<String>,
        gateways: Vec<String>,
        ipv6: bool,
        internal: bool,
        labels: Vec<String>,
    },
    /// `network ls`
    List { quiet: bool, format: Option<String>, filter: Vec<String>, no_trunc: bool },
    /// `network inspect`
    Inspect { names: Vec<String>, format: Option<String> },
    /// `network rm`
    Remove { names: Vec<String>, force: bool },
    /// `network connect`
    Connect { network: String, container: String, ip: Option<String>, aliases: Vec<String> },
    /// `network disconnect`
    Disconnect { network: String, container: String, force: bool },
    /// `network prune`
    Prune { force: bool, filter: Vec<String> },
}

/// Flags that are refused by name: of which verb, the flag, its letter, and whether it takes a value.
const UNBUILT: [(&str, &str, Option<char>, bool); 13] = [
    ("create", "attachable", None, false),
    ("create", "aux-address", None, true),
    ("create", "config-from", None, true),
    ("create", "config-only", None, false),
    ("create", "ingress", None, false),
    ("create", "ip-range", None, true),
    ("create", "ipam-driver", None, true),
    ("create", "ipam-opt", None, true),
    ("create", "opt", Some('o'), true),
    ("create", "scope", None, true),
    ("connect", "driver-opt", None, true),
    ("connect", "ip6", None, true),
    ("connect", "link", None, true),
];

/// Adds the group.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| long(name).short(letter);
    let word = |name: &'static str, title: &'static str| {
        value(Arg::new(name), title).required(true).allow_hyphen_values(false)
    };
    let names = || word("names", "NETWORK").num_args(1..);
    let verbs = [
        Command::new("create")
            .about("Make a network that containers share")
            .arg(values(long("subnet"), "SUBNET").help("Its addresses, as 10.89.0.0/24 [default: one that is free]"))
            .arg(values(long("gateway"), "IP").help("Address of the gateway [default: the subnet's first]"))
            .arg(switch(long("ipv6")).help("IPv6 addresses too; --subnet and --gateway once more say which"))
            .arg(switch(long("internal")).help("Nothing but its containers is reached from it"))
            .arg(values(long("label"), "NAME[=VALUE]").help("Label of the network"))
            .arg(value(both("driver", 'd'), "DRIVER").help("The only one there is: bridge"))
            .arg(word("name", "NAME")),
        Command::new("ls")
            .about("List networks")
            .visible_alias("list")
            .arg(switch(both("quiet", 'q')).help("Print the ids alone"))
            .arg(switch(long("no-trunc")).help("Print whole ids"))
            .arg(value(long("format"), "FORMAT").help("table, json, or a template such as '{{.Name}}'"))
            .arg(
                values(both("filter", 'f'), "FILTER")
                    .help("name=..., id=..., driver=..., type=custom or builtin, dangling=true or false, label=NAME[=VALUE]"),
            ),
        Command::new("inspect")
            .about("Print what is known of networks as JSON")
            .arg(value(both("format", 'f'), "FORMAT").help("A template such as '{{.Id}}'"))
            .arg(names()),
        Command::new("rm")
            .about("Remove networks that no container is on")
            .visible_alias("remove")
            .arg(switch(both("force", 'f')).help("No error for a network that is not there"))
            .arg(names()),
        Command::new("connect")
            .about("Put a container on a network, also while it runs")
            .arg(value(long("ip"), "IP").help("Its IPv4 address there"))
            .arg(values(long("alias"), "NAME").help("A further name of it there"))
            .arg(word("network", "NETWORK"))
            .arg(word("container", "CONTAINER")),
        Command::new("disconnect")
            .about("Take a container off a network, also while it runs")
            .arg(switch(both("force", 'f')).help("Whatever the container says to it"))
            .arg(word("network", "NETWORK"))
            .arg(word("container", "CONTAINER")),
        Command::new("prune")
            .about("Remove all networks that no container is on")
            .arg(switch(both("force", 'f')).help("Do not ask"))
            .arg(values(long("filter"), "FILTER").help("label=NAME[=VALUE], label!=NAME[=VALUE]")),
    ];
    let mut network =
        Command::new("network").about("Networks that containers share").subcommand_required(true);
    for mut verb in verbs {
        let of = verb.get_name().to_owned();
        for (_, name, letter, with_value) in UNBUILT.iter().filter(|(verb, ..)| *verb == of) {
            let mut arg = Arg::new(*name).long(*name).hide(true);
            arg = if *with_value { values(arg, "VALUE") } else { switch(arg) };
            verb = verb.arg(letter.map_or(arg.clone(), |letter| arg.short(letter)));
        }
        network = network.subcommand(verb);
    }
    command.subcommand(network)
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Verb> {
    let Some((verb, matches)) = matches.subcommand() else {
        return Err(Error::Usage { what: "no command was given".into(), verb: "network".into() });
    };
    let usage = |what: String| Error::Usage { what, verb: format!("network {verb}") };
    let typed = |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
    if let Some((_, name, ..)) = UNBUILT.iter().find(|(of, name, ..)| *of == verb && typed(name)) {
        return Err(Error::NotBuilt { what: format!("network {verb} --{name}"), code: 1 });
    }
    let one = |name: &str| text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let word = |name: &str| Ok::<_, Error>(one(name)?.unwrap_or_default());
    let many = |name: &str| {
        let words = all(matches, name);
        words.iter().map(|word| utf8(word).map_err(usage)).collect::<Result<Vec<_>>>()
    };
    Ok(Verb::SharedNetwork(match verb {
        "create" => {
            if let Some(other) = one("driver")?.filter(|driver| driver != "bridge") {
                return Err(usage(format!("--driver: there is no driver \"{other}\", only bridge")));
            }
            SharedNetwork::Create {
                name: word("name")?,
                subnets: many("subnet")?,
                gateways: many("gateway")?,
                ipv6: is_on(matches, "ipv6"),
                internal: is_on(matches, "internal"),
                labels: many("label")?,
            }
        }
        "ls" => SharedNetwork::List {
            quiet: is_on(matches, "quiet"),
            format: one("format")?,
            filter: many("filter")?,
            no_trunc: is_on(matches, "no-trunc"),
        },
        "inspect" => SharedNetwork::Inspect { names: many("names")?, format: one("format")? },
        "rm" => SharedNetwork::Remove { names: many("names")?, force: is_on(matches, "force") },
        "connect" => SharedNetwork::Connect {
            network: word("network")?,
            container: word("container")?,
            ip: one("ip")?,
            aliases: many("alias")?,
        },
        "disconnect" => {
            let (network, container) = (word("network")?, word("container")?);
            SharedNetwork::Disconnect { network, container, force: is_on(matches, "force") }
        }
        _ => SharedNetwork::Prune { force: is_on(matches, "force"), filter: many("filter")? },
    }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<SharedNetwork> {
        let words = ["servin", "network"].iter().chain(words).map(OsString::from);
        match parse(words)? {
            Typed::Verb(_, Verb::SharedNetwork(network)) => Ok(network),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_verbs_are_read_with_dockers_flags() {
        let words =
            ["create", "-d", "bridge", "--subnet", "10.1.0.0/16", "--internal", "--label", "a=b", "net"];
        assert_eq!(
            verb(&words).unwrap(),
            SharedNetwork::Create {
                name: "net".into(),
                subnets: vec!["10.1.0.0/16".into()],
                gateways: Vec::new(),
                ipv6: false,
                internal: true,
                labels: vec!["a=b".into()],
            }
        );
        assert_eq!(verb(&["ls", "-q"]).unwrap(), verb(&["list", "--quiet"]).unwrap());
        assert_eq!(
            verb(&["connect", "--ip", "10.1.0.9", "--alias", "db", "net", "box"]).unwrap(),
            SharedNetwork::Connect {
                network: "net".into(),
                container: "box".into(),
                ip: Some("10.1.0.9".into()),
                aliases: vec!["db".into()],
            }
        );
        assert_eq!(
            verb(&["disconnect", "-f", "net", "box"]).unwrap(),
            SharedNetwork::Disconnect { network: "net".into(), container: "box".into(), force: true }
        );
        assert_eq!(
            verb(&["rm", "-f", "a", "b"]).unwrap(),
            SharedNetwork::Remove { names: vec!["a".into(), "b".into()], force: true }
        );
        assert!(verb(&["create"]).is_err() && verb(&["connect", "net"]).is_err() && verb(&[]).is_err());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let refused = |words: &[&str]| verb(words).unwrap_err().to_string();
        assert!(refused(&["create", "-d", "macvlan", "x"]).contains("macvlan"));
        for (of, name, _, with_value) in UNBUILT {
            let flag = if with_value { format!("--{name}=x") } else { format!("--{name}") };
            let expected = format!("network {of} --{name} is not built yet in this version of servin");
            assert_eq!(refused(&[of, &flag, "net", "box"][..if of == "create" { 3 } else { 4 }]), expected);
        }
        assert!(refused(&["create", "-o", "a=b", "x"]).contains("network create --opt"));
    }
}
