//! `servin snapshot` and `servin restore`, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, all, is_on, switch, text, utf8, value, values};
use crate::error::{Error, Result};

/// A verb of snapshots with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Snapshot {
    /// `snapshot CONTAINER NAME`, or with a directory
    Make { container: String, name: Option<String>, output: Option<OsString>, stop: bool },
    /// `snapshot ls`
    List { quiet: bool, format: Option<String>, filter: Vec<String> },
    /// `snapshot inspect`
    Inspect { names: Vec<String>, format: Option<String> },
    /// `snapshot rm`
    Remove { names: Vec<String> },
    /// `restore`
    Restore(Restore),
}

/// `restore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Restore {
    /// Which.
    pub(crate) snapshot: OsString,
    /// Name of the container.
    pub(crate) name: Option<String>,
    /// Its host name.
    pub(crate) hostname: Option<String>,
    /// Ports, as typed.
    pub(crate) publish: Vec<OsString>,
    /// Do not watch the program.
    pub(crate) detach: bool,
    /// Remove the container when it ends.
    pub(crate) rm: bool,
    /// Pass signals on.
    pub(crate) sig_proxy: bool,
    /// Keys, as typed.
    pub(crate) detach_keys: Option<String>,
}

/// Adds the verbs.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| long(name).short(letter);
    let names =
        || value(Arg::new("names"), "SNAPSHOT").num_args(1..).required(true).allow_hyphen_values(false);
    let word = |name: &'static str, shown: &'static str| {
        Arg::new(name).value_name(shown).value_parser(value_parser!(OsString))
    };
    let snapshot = Command::new("snapshot")
        .about("Save a running container, memory and disk, to be continued by others")
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(value(both("output", 'o'), "DIR").help("Make this directory instead of a snapshot with a name"))
        .arg(switch(long("stop")).help("End the container once it is saved"))
        .arg(word("container", "CONTAINER").required(true))
        .arg(word("name", "NAME").required_unless_present("output").conflicts_with("output"))
        .subcommand(
            Command::new("ls")
                .about("List snapshots")
                .visible_alias("list")
                .arg(switch(both("quiet", 'q')).help("Print the names alone"))
                .arg(
                    values(both("filter", 'f'), "KEY=VALUE")
                        .help("name=, container=, image=, before=, since="),
                )
                .arg(value(long("format"), "FORMAT").help("table, json, or a template such as '{{.Name}}'")),
        )
        .subcommand(
            Command::new("inspect")
                .about("Print what is known of snapshots as JSON")
                .arg(value(both("format", 'f'), "FORMAT").help("A template such as '{{.Path}}'"))
                .arg(names()),
        )
        .subcommand(
            Command::new("rm")
                .about("Remove snapshots; containers that continue them keep what they need")
                .visible_alias("remove")
                .arg(names()),
        );
    let restore = Command::new("restore")
        .about("Continue a saved container as a new one")
        .disable_help_flag(true)
        .args_override_self(true)
        .arg(long("help").action(clap::ArgAction::Help).help("Print this help"))
        .arg(value(long("name"), "NAME").help("Name of the container [default: one is made up]"))
        .arg(
            value(both("hostname", 'h'), "NAME")
                .help("Host name [default: as \"run\" had it, or the short id]"),
        )
        .arg(
            values(both("publish", 'p'), "[[IP:]PORT:]PORT[/udp]").help("Publish a port, or a range of them"),
        )
        .arg(switch(both("detach", 'd')).help("Run in the background and print the container's id"))
        .arg(switch(long("rm")).help("Remove the container when it ends"))
        .arg(
            switch(long("sig-proxy"))
                .default_value("true")
                .help("Pass signals on to the program [default: true]"),
        )
        .arg(
            value(long("detach-keys"), "KEYS").help("Keys that detach the terminal [default: ctrl-p,ctrl-q]"),
        )
        .arg(
            word("snapshot", "SNAPSHOT|DIR").required(true).help("Its name, or with a / in it its directory"),
        );
    command.subcommand(snapshot).subcommand(restore)
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let text = |matches: &ArgMatches, name: &str| {
        text(matches, name).map_err(|what| usage(format!("{name}: {what}")))
    };
    let names = |matches: &ArgMatches| {
        all(matches, "names").iter().map(|word| utf8(word).map_err(usage)).collect::<Result<Vec<_>>>()
    };
    let typed = match (verb, matches.subcommand()) {
        ("snapshot", Some(("ls", matches))) => {
            let filter = super::texts(matches, "filter").map_err(usage)?;
            Snapshot::List { quiet: is_on(matches, "quiet"), format: text(matches, "format")?, filter }
        }
        ("snapshot", Some(("inspect", matches))) => {
            Snapshot::Inspect { names: names(matches)?, format: text(matches, "format")? }
        }
        ("snapshot", Some((_, matches))) => Snapshot::Remove { names: names(matches)? },
        ("snapshot", None) => Snapshot::Make {
            container: text(matches, "container")?.unwrap_or_default(),
            name: text(matches, "name")?,
            output: matches.get_one::<OsString>("output").cloned(),
            stop: is_on(matches, "stop"),
        },
        ("restore", _) => Snapshot::Restore(Restore {
            snapshot: matches.get_one::<OsString>("snapshot").cloned().unwrap_or_default(),
            name: text(matches, "name")?,
            hostname: text(matches, "hostname")?,
            publish: all(matches, "publish"),
            detach: is_on(matches, "detach"),
            rm: is_on(matches, "rm"),
            sig_proxy: is_on(matches, "sig-proxy"),
            detach_keys: text(matches, "detach-keys")?,
        }),
        _ => return Ok(None),
    };
    Ok(Some(Verb::Snapshot(typed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<Snapshot> {
        match parse(std::iter::once("servin").chain(words.iter().copied()).map(OsString::from))? {
            Typed::Verb(_, Verb::Snapshot(typed)) => Ok(typed),
            other => panic!("{words:?} is {other:?}"),
        }
    }

    #[test]
    fn snapshots_are_made_with_a_name_or_in_a_directory() {
        let made = |words: &[&str]| match verb(words).unwrap() {
            Snapshot::Make { container, name, output, stop } => (container, name, output, stop),
            other => panic!("{other:?}"),
        };
        let name = || Some("warm".to_owned());
        assert_eq!(made(&["snapshot", "box", "warm"]), ("box".into(), name(), None, false));
        assert_eq!(made(&["snapshot", "--stop", "box", "warm"]), ("box".into(), name(), None, true));
        assert_eq!(made(&["snapshot", "-o", "x/y", "box"]), ("box".into(), None, Some("x/y".into()), false));
        assert!(verb(&["snapshot", "box"]).is_err());
        assert!(verb(&["snapshot"]).is_err());
        assert!(verb(&["snapshot", "-o", "x", "box", "warm"]).is_err());
    }

    #[test]
    fn snapshots_are_listed_looked_at_and_removed() {
        let list = Snapshot::List { quiet: true, format: None, filter: vec!["name=x".into()] };
        assert_eq!(verb(&["snapshot", "ls", "-q", "-f", "name=x"]).unwrap(), list);
        let names = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(verb(&["snapshot", "rm", "a", "b"]).unwrap(), Snapshot::Remove { names: names.clone() });
        let inspect = verb(&["snapshot", "inspect", "-f", "{{.Name}}", "a", "b"]).unwrap();
        assert_eq!(inspect, Snapshot::Inspect { names, format: Some("{{.Name}}".into()) });
    }

    #[test]
    fn restore_takes_the_flags_of_a_start() {
        let words = ["restore", "-d", "--rm", "--name", "n", "-h", "box", "-p", "80", "-p", "90:9", "warm"];
        let Snapshot::Restore(typed) = verb(&words).unwrap() else { panic!() };
        assert!(typed.detach && typed.rm && typed.sig_proxy);
        assert_eq!((typed.name.as_deref(), typed.hostname.as_deref()), (Some("n"), Some("box")));
        assert_eq!((typed.publish.len(), typed.snapshot), (2, "warm".into()));
    }
}
