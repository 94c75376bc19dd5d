//! The verbs that make containers and start those that are there, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Run, Verb, all, is_on, run, switch, utf8, value};
use crate::error::{Error, Result};

/// A verb that makes or starts a container, with its arguments.
#[derive(Debug)]
pub(crate) enum Starting {
    /// `servin create`
    Create(Box<Run>),
    /// `servin start`
    Start(Start),
    /// `servin restart`
    Restart {
        /// Seconds, as typed.
        time: Option<String>,
        /// Which.
        names: Vec<String>,
    },
    /// `servin rename`
    Rename {
        /// Which.
        from: String,
        /// Its new name.
        to: String,
    },
}

/// `start`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Watch the program.
    pub(crate) attach: bool,
    /// Give it the standard input.
    pub(crate) interactive: bool,
    /// Pass signals on.
    pub(crate) sig_proxy: bool,
    /// Keys, as typed.
    pub(crate) detach_keys: Option<String>,
    /// Those that do not run and fit, besides.
    pub(crate) filter: Vec<String>,
    /// Which.
    pub(crate) names: Vec<String>,
}

/// Adds the verbs to the command.
pub(super) fn add(command: Command) -> Command {
    let names = || {
        Arg::new("names")
            .required(true)
            .num_args(1..)
            .value_name("CONTAINER")
            .value_parser(value_parser!(OsString))
    };
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    let verb =
        |name: &'static str, about: &'static str| Command::new(name).about(about).args_override_self(true);
    command
        .subcommand(run::create())
        .subcommand(
            verb("start", "Start containers that were made or have ended")
                .arg(switch(both("attach", 'a')).help("Watch the program, and give back its exit code"))
                .arg(switch(both("interactive", 'i')).help("Give the program the standard input"))
                .arg(
                    switch(Arg::new("sig-proxy").long("sig-proxy"))
                        .default_value("true")
                        .help("Pass signals on [default: true]"),
                )
                .arg(
                    value(Arg::new("detach-keys").long("detach-keys"), "KEYS")
                        .help("Keys that detach the terminal [default: ctrl-p,ctrl-q]"),
                )
                .arg(
                    super::values(both("filter", 'f'), "KEY=VALUE")
                        .help("Start those that do not run and fit, as with ps: restart-policy=always"),
                )
                .arg(names().required(false).required_unless_present("filter")),
        )
        .subcommand(
            verb("restart", "Stop containers and start them again")
                .arg(
                    value(both("time", 't').visible_alias("timeout"), "SECONDS")
                        .help("Seconds until it is killed [default: the container's own, 10]"),
                )
                .arg(names()),
        )
        .subcommand(
            verb("rename", "Give a container another name")
                .arg(
                    Arg::new("from")
                        .required(true)
                        .value_name("CONTAINER")
                        .value_parser(value_parser!(OsString)),
                )
                .arg(Arg::new("to").required(true).value_name("NAME").value_parser(value_parser!(OsString))),
        )
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let text = |name: &str| super::text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let needed = |name: &str| text(name).map(Option::unwrap_or_default);
    let names =
        || all(matches, "names").iter().map(|word| utf8(word).map_err(usage)).collect::<Result<Vec<_>>>();
    Ok(Some(Verb::Starting(match verb {
        "create" => Starting::Create(Box::new(run::read(matches)?)),
        "start" => Starting::Start(Start {
            attach: is_on(matches, "attach"),
            interactive: is_on(matches, "interactive"),
            sig_proxy: is_on(matches, "sig-proxy"),
            detach_keys: text("detach-keys")?,
            filter: super::texts(matches, "filter").map_err(usage)?,
            names: names()?,
        }),
        "restart" => Starting::Restart { time: text("time")?, names: names()? },
        "rename" => Starting::Rename { from: needed("from")?, to: needed("to")? },
        _ => return Ok(None),
    })))
}
