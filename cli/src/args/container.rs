//! The verbs about containers but `run`, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, all, is_on, switch, utf8, value, values};
use crate::error::{Error, Result};

/// A verb about containers with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Container {
    /// `servin exec`
    Exec(Exec),
    /// `servin attach`
    Attach(Attach),
    /// `servin ps`
    Ps(Ps),
    /// `servin rm`
    Rm {
        /// Kill one that runs.
        force: bool,
        /// Also the volumes that were made for it alone.
        volumes: bool,
        /// Which.
        names: Vec<String>,
    },
    /// `servin logs`
    Logs(Logs),
    /// `servin port`
    Port {
        /// Which.
        name: String,
        /// This port alone.
        port: Option<String>,
    },
    /// `servin wait`
    Wait(Vec<String>),
    /// `servin stop`
    Stop {
        /// Seconds, as typed.
        time: Option<String>,
        /// The signal, as typed.
        signal: Option<String>,
        /// Which.
        names: Vec<String>,
    },
    /// `servin kill`
    Kill {
        /// The signal, as typed.
        signal: Option<String>,
        /// Which.
        names: Vec<String>,
    },
}

/// `ps`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ps {
    /// Those that have ended too.
    pub(crate) all: bool,
    /// Ids alone.
    pub(crate) quiet: bool,
    /// Whole ids and commands.
    pub(crate) no_trunc: bool,
    /// How to print.
    pub(crate) format: Option<String>,
    /// Conditions.
    pub(crate) filter: Vec<String>,
    /// So many of those made last, in any state.
    pub(crate) last: Option<String>,
    /// With what they take on disk.
    pub(crate) size: bool,
}

/// `logs`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Logs {
    /// Go on while the container lives.
    pub(crate) follow: bool,
    /// With the time of each line.
    pub(crate) timestamps: bool,
    /// Lines from the end, as typed.
    pub(crate) tail: Option<String>,
    /// Nothing older than this, as typed.
    pub(crate) since: Option<String>,
    /// Nothing newer than this, as typed.
    pub(crate) until: Option<String>,
    /// Which.
    pub(crate) name: String,
}

/// `attach`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attach {
    /// Give no input.
    pub(crate) no_stdin: bool,
    /// Pass signals on.
    pub(crate) sig_proxy: bool,
    /// Keys, as typed.
    pub(crate) detach_keys: Option<String>,
    /// Which.
    pub(crate) name: String,
}

/// `exec`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exec {
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
    pub(crate) detach: bool,
    pub(crate) privileged: bool,
    pub(crate) detach_keys: Option<String>,
    pub(crate) env: Vec<OsString>,
    pub(crate) env_file: Vec<OsString>,
    pub(crate) workdir: Option<OsString>,
    pub(crate) user: Option<String>,
    /// The container, the program and its arguments.
    pub(crate) words: Vec<OsString>,
}

/// Help of `--since`.
const MOMENT: &str =
    "Nothing older than this: a time (2026-01-31T12:00:00Z), seconds since 1970, or how long ago (10m)";

/// Adds the verbs to the command.
pub(super) fn add(command: Command) -> Command {
    command
        .subcommand(exec())
        .subcommand(
            verb("attach", "Watch a running container's program")
                .arg(switch(Arg::new("no-stdin").long("no-stdin")).help("Do not pass the standard input on"))
                .arg(
                    switch(Arg::new("sig-proxy").long("sig-proxy"))
                        .default_value("true")
                        .help("Pass signals on [default: true]"),
                )
                .arg(detach_keys())
                .arg(name()),
        )
        .subcommand(
            verb("ps", "List containers")
                .arg(switch(both("all", 'a')).help("Show those that have ended too"))
                .arg(switch(both("quiet", 'q')).help("Print ids alone"))
                .arg(switch(Arg::new("no-trunc").long("no-trunc")).help("Print whole ids and commands"))
                .arg(values(both("filter", 'f'), "KEY=VALUE").help(
                    "id=, name=, label=, status=, exited=, ancestor=, before=, since=, volume=, network=, health=, publish=, expose=, restart-policy=",
                ))
                .arg(value(both("last", 'n'), "N").help("Show the N that were made last, in any state"))
                .arg(switch(both("latest", 'l')).help("Show the one that was made last, in any state"))
                .arg(switch(both("size", 's')).help("Show what they take on disk"))
                .arg(
                    value(Arg::new("format").long("format"), "FORMAT")
                        .help("json, table, or a template as {{.Names}}"),
                ),
        )
        .subcommand(
            verb("rm", "Remove containers")
                .arg(switch(both("force", 'f')).help("Kill a container that runs"))
                .arg(switch(both("volumes", 'v')).help("Also the volumes without a name that it uses"))
                .arg(names()),
        )
        .subcommand(
            verb("logs", "Print what a container's program wrote")
                .arg(switch(both("follow", 'f')).help("Go on while the container runs"))
                .arg(switch(both("timestamps", 't')).help("Print the time of each line"))
                .arg(value(both("tail", 'n'), "LINES").help("Only so many lines from the end, or all"))
                .arg(value(Arg::new("since").long("since"), "TIME").help(MOMENT))
                .arg(value(Arg::new("until").long("until"), "TIME").help("Nothing newer than this"))
                .arg(name()),
        )
        .subcommand(super::network::port())
        .subcommand(verb("wait", "Wait until containers end, and print their exit codes").arg(names()))
        .subcommand(
            verb("stop", "Stop containers")
                .arg(
                    value(both("time", 't').visible_alias("timeout"), "SECONDS")
                        .help("Seconds until it is killed, -1 for never [default: the container's own, 10]"),
                )
                .arg(
                    value(both("signal", 's'), "SIGNAL")
                        .help("Signal to send [default: the container's own, TERM]"),
                )
                .arg(names()),
        )
        .subcommand(
            verb("kill", "Send a signal to containers")
                .arg(value(both("signal", 's'), "SIGNAL").help("The signal [default: KILL]"))
                .arg(names()),
        )
}

fn verb(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).args_override_self(true)
}

fn both(name: &'static str, letter: char) -> Arg {
    Arg::new(name).long(name).short(letter)
}

fn name() -> Arg {
    Arg::new("name").required(true).value_name("CONTAINER").value_parser(value_parser!(OsString))
}

fn names() -> Arg {
    Arg::new("names")
        .required(true)
        .num_args(1..)
        .value_name("CONTAINER")
        .value_parser(value_parser!(OsString))
}

fn detach_keys() -> Arg {
    value(Arg::new("detach-keys").long("detach-keys"), "KEYS")
        .help("Keys that detach the terminal [default: ctrl-p,ctrl-q]")
}

fn exec() -> Command {
    verb("exec", "Run one more program in a running container")
        .override_usage("servin exec [FLAGS] CONTAINER COMMAND [ARG...]")
        .arg(switch(both("interactive", 'i')).help("Give the program the standard input"))
        .arg(switch(both("tty", 't')).help("Give the program a terminal"))
        .arg(switch(both("detach", 'd')).help("Run in the background"))
        .arg(switch(Arg::new("privileged").long("privileged")).help("Give the program every capability"))
        .arg(values(both("env", 'e'), "NAME[=VALUE]").help("Set a variable, or pass it on from here"))
        .arg(values(Arg::new("env-file").long("env-file"), "FILE").help("Read variables from a file"))
        .arg(value(both("workdir", 'w'), "DIR").help("Working directory in the container"))
        .arg(value(both("user", 'u'), "USER[:GROUP]").help("User and group by name or number"))
        .arg(detach_keys())
        .arg(
            Arg::new("words")
                .num_args(2..)
                .required(true)
                .trailing_var_arg(true)
                .value_names(["CONTAINER", "COMMAND"])
                .value_parser(value_parser!(OsString))
                .help("The container, the program and its arguments"),
        )
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let text = |name: &str| super::text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let needed = |name: &str| text(name).map(Option::unwrap_or_default);
    let names =
        || all(matches, "names").iter().map(|word| utf8(word).map_err(usage)).collect::<Result<Vec<_>>>();
    let on = |name| is_on(matches, name);
    Ok(Some(Verb::Container(match verb {
        "exec" => Container::Exec(Exec {
            interactive: on("interactive"),
            tty: on("tty"),
            detach: on("detach"),
            privileged: on("privileged"),
            detach_keys: text("detach-keys")?,
            env: all(matches, "env"),
            env_file: all(matches, "env-file"),
            workdir: matches.get_one::<OsString>("workdir").cloned(),
            user: text("user")?,
            words: all(matches, "words"),
        }),
        "attach" => Container::Attach(Attach {
            no_stdin: on("no-stdin"),
            sig_proxy: on("sig-proxy"),
            detach_keys: text("detach-keys")?,
            name: needed("name")?,
        }),
        "ps" => Container::Ps(Ps {
            all: on("all"),
            quiet: on("quiet"),
            no_trunc: on("no-trunc"),
            format: text("format")?,
            filter: super::texts(matches, "filter").map_err(usage)?,
            last: if on("latest") { Some("1".into()) } else { text("last")? },
            size: on("size"),
        }),
        "rm" => Container::Rm { force: on("force"), volumes: on("volumes"), names: names()? },
        "logs" => Container::Logs(Logs {
            follow: on("follow"),
            timestamps: on("timestamps"),
            tail: text("tail")?,
            since: text("since")?,
            until: text("until")?,
            name: needed("name")?,
        }),
        "port" => Container::Port { name: needed("name")?, port: text("port")? },
        "wait" => Container::Wait(names()?),
        "stop" => Container::Stop { time: text("time")?, signal: text("signal")?, names: names()? },
        "kill" => Container::Kill { signal: text("signal")?, names: names()? },
        _ => return Ok(None),
    })))
}
