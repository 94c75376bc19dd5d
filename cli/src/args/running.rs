//! The verbs that watch or change running containers, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, all, is_on, switch, texts, utf8, value, values};
use crate::error::{Error, Result};

/// A verb with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Running {
    /// `servin pause`
    Pause(Vec<String>),
    /// `servin unpause`
    Unpause(Vec<String>),
    /// `servin top`
    Top {
        /// Which.
        name: String,
        /// Words for ps(1).
        options: Vec<String>,
    },
    /// `servin stats`
    Stats(Stats),
    /// `servin events`
    Events(Events),
    /// `servin update`
    Update {
        /// Flags as they are documented, with their values.
        flags: Vec<(&'static str, String)>,
        /// Which.
        names: Vec<String>,
    },
}

/// `stats`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Those that do not run too.
    pub(crate) all: bool,
    /// Once, and not again and again.
    pub(crate) no_stream: bool,
    /// Whole ids.
    pub(crate) no_trunc: bool,
    /// How to print.
    pub(crate) format: Option<String>,
    /// Which; empty for all.
    pub(crate) names: Vec<String>,
}

/// `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Events {
    /// Nothing older, as typed.
    pub(crate) since: Option<String>,
    /// Nothing newer, as typed.
    pub(crate) until: Option<String>,
    /// Conditions.
    pub(crate) filter: Vec<String>,
    /// How to print.
    pub(crate) format: Option<String>,
}

/// Flags of `update`: name, letter, what it is called, help.
const UPDATE: &[(&str, Option<char>, &str, &str)] = &[
    ("--memory", Some('m'), "SIZE", "Memory limit, up to what the machine was started with"),
    ("--cpus", None, "N", "Processors, up to what the machine was started with"),
    (
        "--cpu-quota",
        None,
        "MICROSECONDS",
        "Processor time in each period, as --cpus says it in one number; -1 for whole processors",
    ),
    ("--cpu-period", None, "MICROSECONDS", "Period of --cpu-quota [default: as before, or 100000]"),
    ("--pids-limit", None, "N", "Most processes and threads; -1 for no limit"),
    ("--memory-reservation", None, "SIZE", "Memory that is taken from the container last"),
    ("--memory-swap", None, "SIZE", "Memory and swap together; the machine has no swap"),
    ("--cpu-shares", Some('c'), "N", "Weight among other containers, from its next start"),
    (
        "--restart",
        None,
        "POLICY",
        "What happens when the program ends: no, on-failure[:N], always, unless-stopped",
    ),
];
/// Flags of docker's `update` that are refused by name.
const UPDATE_UNBUILT: &[&str] =
    &["blkio-weight", "cpu-rt-period", "cpu-rt-runtime", "cpuset-cpus", "cpuset-mems", "kernel-memory"];

/// Adds the verbs.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let format = || value(long("format"), "FORMAT").help("json, table, or a template as {{.Name}}");
    let names = |least: usize| {
        Arg::new("names")
            .required(least > 0)
            .num_args(least..)
            .value_name("CONTAINER")
            .value_parser(value_parser!(OsString))
    };
    let verb =
        |name: &'static str, about: &'static str| Command::new(name).about(about).args_override_self(true);
    let mut update = verb("update", "Change the limits and the restart policy of containers").arg(names(1));
    for &(flag, short, name, help) in UPDATE {
        let mut arg = value(long(flag.trim_start_matches('-')), name).help(help);
        if let Some(short) = short {
            arg = arg.short(short);
        }
        update = update.arg(arg);
    }
    for name in UPDATE_UNBUILT {
        update = update.arg(value(long(name), "VALUE").hide(true));
    }
    command
        .subcommand(verb("pause", "Stop the processors of containers").arg(names(1)))
        .subcommand(verb("unpause", "Let paused containers go on").arg(names(1)))
        .subcommand(
            verb("top", "Show the processes of a container")
                .override_usage("servin top CONTAINER [ps OPTIONS]")
                .arg(
                    Arg::new("words")
                        .num_args(1..)
                        .required(true)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true)
                        .value_name("CONTAINER")
                        .value_parser(value_parser!(OsString))
                        .help("The container, and aux, -ef or -o FIELD,... for ps [default: -ef]"),
                ),
        )
        .subcommand(
            verb("stats", "Show what containers use, again and again")
                .arg(switch(long("all").short('a')).help("Show those that do not run too"))
                .arg(switch(long("no-stream")).help("Show it once"))
                .arg(switch(long("no-trunc")).help("Print whole ids"))
                .arg(format())
                .arg(names(0)),
        )
        .subcommand(events())
        .subcommand(update)
}

/// `events`, alone and in the group of the system.
pub(super) fn events() -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    Command::new("events")
        .about("Show what happens to containers and images")
        .args_override_self(true)
        .arg(value(long("since"), "TIME").help("Also what happened from then on"))
        .arg(value(long("until"), "TIME").help("End with this time"))
        .arg(values(long("filter").short('f'), "KEY=VALUE").help("type=, event=, container=, image=, label="))
        .arg(value(long("format"), "FORMAT").help("json, or a template as {{.Action}}"))
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let text = |name: &str| super::text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let words = |name: &str| {
        all(matches, name).iter().map(|word| utf8(word)).collect::<Result<Vec<_>, _>>().map_err(usage)
    };
    let on = |name| is_on(matches, name);
    Ok(Some(Verb::Running(match verb {
        "pause" => Running::Pause(words("names")?),
        "unpause" => Running::Unpause(words("names")?),
        "top" => {
            let mut words = words("words")?.into_iter();
            Running::Top { name: words.next().unwrap_or_default(), options: words.collect() }
        }
        "stats" => Running::Stats(Stats {
            all: on("all"),
            no_stream: on("no-stream"),
            no_trunc: on("no-trunc"),
            format: text("format")?,
            names: words("names")?,
        }),
        "events" => Running::Events(Events {
            since: text("since")?,
            until: text("until")?,
            filter: texts(matches, "filter").map_err(usage)?,
            format: text("format")?,
        }),
        "update" => {
            if let Some(name) = UPDATE_UNBUILT.iter().find(|name| matches.contains_id(name)) {
                return Err(Error::NotBuilt { what: format!("update --{name}"), code: 1 });
            }
            let mut flags = Vec::new();
            for (flag, ..) in UPDATE {
                flags.extend(text(flag.trim_start_matches('-'))?.map(|value| (*flag, value)));
            }
            Running::Update { flags, names: words("names")? }
        }
        _ => return Ok(None),
    })))
}
