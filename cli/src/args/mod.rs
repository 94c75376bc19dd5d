//! What was typed: the command line as clap reads it, with docker's habits.
//!
//! * Flags stop at the first word that is none: everything after IMAGE belongs to the program.
//! * `--flag=false` works for every switch, a repeated flag of one value takes the last.
//! * A value may begin with `-`.
//!
//! What it means is `crate::spec`'s business.

mod bench;
mod build;
mod completion;
mod container;
mod files;
mod image;
mod limits;
mod network;
mod registry;
mod run;
mod running;
mod shared_network;
mod snapshot;
mod start;
mod system;
#[cfg(test)]
mod tests;
mod unbuilt;
mod verb;
mod vm;
mod volume;

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{BoolishValueParser, ValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

pub(crate) use bench::Bench;
pub(crate) use build::Build;
pub(crate) use container::{Attach, Container, Exec, Logs, Ps};
pub(crate) use files::{About, Commit, Files};
pub(crate) use image::{Image, Inspect, List};
pub(crate) use limits::Limits;
pub(crate) use network::Network;
pub(crate) use registry::Registry;
pub(crate) use run::Run;
pub(crate) use running::{Events, Running, Stats};
pub(crate) use shared_network::SharedNetwork;
pub(crate) use snapshot::{Restore, Snapshot};
pub(crate) use start::{Start, Starting};
pub(crate) use system::System;
pub(crate) use verb::Verb;
pub(crate) use vm::Vm;
pub(crate) use volume::Volume;

use crate::error::{Error, Result};

/// Flags that every verb has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Global {
    /// Where images and containers are, if not in the default place.
    pub(crate) data_root: Option<PathBuf>,
    /// What the log shows.
    pub(crate) log_level: log::LevelFilter,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Typed {
    /// A text to be printed: help, version, a completion.
    Text(String),
    /// Something to be done.
    Verb(Global, Verb),
}

/// Reads the command line.
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Typed> {
    let argv = ungroup(argv.into_iter().collect());
    if argv.len() < 2 {
        return Ok(Typed::Text(command().render_long_help().to_string()));
    }
    // `run` is on the way to a container's first byte: it does not pay for the other verbs, nor for flags that are
    // refused or not typed. What this reads, the whole command reads the same way; the rest, help and errors too, is left to that.
    let quick = (typed_first(&argv) == Some("run"))
        .then(|| frame().subcommand(run::typed(&argv)).try_get_matches_from(&argv).ok())
        .flatten();
    let matches = match quick.map_or_else(|| command().try_get_matches_from(&argv), Ok) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Typed::Text(error.render().to_string()));
        }
        Err(error) => return Err(usage(&error, &argv)),
    };
    let global = Global {
        data_root: matches.get_one::<PathBuf>("data-root").cloned(),
        log_level: match matches.get_one::<log::LevelFilter>("log-level") {
            Some(level) => *level,
            None if matches.get_flag("debug") => log::LevelFilter::Debug,
            None => log::LevelFilter::Error,
        },
    };
    let Some((name, matches)) = matches.subcommand() else {
        return Err(Error::Usage { what: "no command was given".into(), verb: String::new() });
    };
    if name == "completion" {
        return Ok(Typed::Text(completion::script(matches)));
    }
    unbuilt::refuse_verb(name)?;
    Ok(Typed::Verb(global, verb::read(name, matches)?))
}

/// The whole command.
fn command() -> Command {
    unbuilt::verbs(verb::add(frame()))
}

/// The command without its verbs.
fn frame() -> Command {
    Command::new("servin")
        .display_name("Servin")
        .about("Containers that are real virtual machines")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_subcommand(false)
        .args_override_self(true)
        .subcommand_value_name("COMMAND")
        .subcommand_help_heading("Commands")
        .arg(
            Arg::new("version")
                .short('v')
                .visible_short_alias('V')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        )
        .arg(
            Arg::new("data-root")
                .long("data-root")
                .value_name("DIR")
                .global(true)
                .value_parser(value_parser!(PathBuf))
                .help("Where images and containers are kept"),
        )
        .arg(
            Arg::new("debug")
                .short('D')
                .long("debug")
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Log what is being done to standard error"),
        )
        .arg(
            Arg::new("log-level")
                .long("log-level")
                .value_name("LEVEL")
                .global(true)
                .value_parser(level())
                .help("Log off, error (the default), warn, info, debug or trace"),
        )
}

/// Verbs that `servin container VERB` means too, as docker has it.
const IN_GROUP: &[&str] = &[
    "attach", "commit", "cp", "create", "diff", "exec", "export", "inspect", "kill", "logs", "pause", "port",
    "ps", "rename", "restart", "rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait",
];

/// `servin container ls` is `servin ps`, and so on.
fn ungroup(mut argv: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = first(&argv).filter(|at| argv.get(*at).is_some_and(|word| word == "container")) else {
        return argv;
    };
    let verb = match argv.get(at + 1).and_then(|word| word.to_str()) {
        Some("ls" | "list") => "ps",
        Some(verb) if IN_GROUP.contains(&verb) => verb,
        _ => return argv,
    };
    let mut words = vec![OsString::from(verb)];
    if verb == "inspect" {
        words.push("--type=container".into());
    }
    argv.splice(at..at + 2, words);
    argv
}

/// Where the first word is that is no global flag and no value of one.
fn first(argv: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        match argv.get(at)?.to_str()? {
            "--data-root" | "--log-level" => at += 2,
            flag if flag.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
}

/// The first word that is no global flag and no value of one: the verb.
pub(crate) fn typed_first(argv: &[OsString]) -> Option<&str> {
    argv.get(first(argv)?)?.to_str()
}

fn level() -> ValueParser {
    ValueParser::from(|text: &str| -> Result<log::LevelFilter, String> {
        text.parse().map_err(|_| "it is off, error, warn, info, debug or trace".to_owned())
    })
}

/// Makes a switch of an argument: `--x`, `--x=true`, `--x=false`.
fn switch(arg: Arg) -> Arg {
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .hide_default_value(true)
        .default_missing_value("true")
        .value_parser(BoolishValueParser::new())
        .hide_possible_values(true)
        .value_name("BOOL")
}

/// Makes an argument of one value; the last one typed counts.
fn value(arg: Arg, name: &'static str) -> Arg {
    arg.action(ArgAction::Set)
        .allow_hyphen_values(true)
        .value_name(name)
        .value_parser(value_parser!(OsString))
}

/// Makes an argument that may be repeated.
fn values(arg: Arg, name: &'static str) -> Arg {
    value(arg, name).action(ArgAction::Append)
}

/// Whether a switch is on. One that the verb does not have is off.
fn is_on(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or(false)
}

/// The value of a flag that must be text.
fn text(matches: &ArgMatches, name: &str) -> Result<Option<String>, String> {
    matches.try_get_one::<OsString>(name).ok().flatten().map(|value| utf8(value)).transpose()
}

/// A word that must be text.
fn utf8(value: &std::ffi::OsStr) -> Result<String, String> {
    value.to_str().map(str::to_owned).ok_or_else(|| format!("\"{}\" is not valid UTF-8", value.display()))
}

/// A flag's values, in the order they were typed.
fn all(matches: &ArgMatches, name: &str) -> Vec<OsString> {
    matches.try_get_many::<OsString>(name).ok().flatten().into_iter().flatten().cloned().collect()
}

/// A flag's values that must be text, in the order they were typed.
fn texts(matches: &ArgMatches, name: &str) -> Result<Vec<String>, String> {
    all(matches, name).iter().map(|value| utf8(value)).collect()
}

/// Says in one line what clap says in several.
fn usage(error: &clap::Error, argv: &[OsString]) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let whole = command();
    let (verb, command) = typed_verb(&whole, argv);
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let suggested = context(ContextKind::SuggestedArg);
            format!(
                "unknown flag {argument}{}",
                suggested.map_or(String::new(), |s| format!(" (did you mean {s}?)"))
            )
        }
        ErrorKind::UnknownArgument => format!("unexpected argument \"{argument}\""),
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let suggested = context(ContextKind::SuggestedSubcommand).or_else(|| {
                let known = command.get_subcommands().filter(|known| !known.is_hide_set());
                known.map(Command::get_name).find(|known| is_swapped(known, &name)).map(str::to_owned)
            });
            let suggested = suggested.map_or(String::new(), |s| format!(" (did you mean {s}?)"));
            let name = if verb.is_empty() { name } else { format!("{verb} {name}") };
            format!("unknown command \"{name}\"{suggested}")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let known = command.get_subcommands().filter(|known| !known.is_hide_set());
            let known: Vec<&str> = known.map(Command::get_name).filter(|name| *name != "help").collect();
            format!("\"servin {verb}\" needs a command: {}", known.join(", "))
        }
        ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("\"servin {verb}\" needs {argument}")
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => match context(ContextKind::InvalidValue) {
            Some(value) if !value.is_empty() => {
                let why = match (context(ContextKind::ValidValue), error.source()) {
                    (Some(known), _) => format!(": it is one of {known}"),
                    (None, Some(why)) if why.to_string() == NO_SWITCH => ": it is true or false".into(),
                    (None, Some(why)) => format!(": {why}"),
                    (None, None) => String::new(),
                };
                format!("invalid value \"{value}\" for {argument}{why}")
            }
            _ => format!("{argument} needs a value"),
        },
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".to_owned(),
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        }
    };
    Error::Usage { what, verb }
}

/// What clap says of a switch's value.
const NO_SWITCH: &str = "value was not a boolean";

/// The verb on a command line that could not be read, with its group, and what it is.
fn typed_verb<'a>(command: &'a Command, argv: &[OsString]) -> (String, &'a Command) {
    let (mut verb, mut command) = (Vec::new(), command);
    let mut words = argv.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        match command.find_subcommand(word) {
            _ if matches!(word, "--data-root" | "--log-level") => drop(words.next()),
            Some(found) => {
                verb.push(found.get_name());
                command = found;
            }
            None if word.starts_with('-') => {}
            None => break,
        }
    }
    (verb.join(" "), command)
}

/// Whether two neighbours changed places in a word, which no other likeness finds in a short one.
fn is_swapped(known: &str, typed: &str) -> bool {
    let (known, typed) = (known.as_bytes(), typed.as_bytes());
    let differs = known.iter().zip(typed).position(|(one, other)| one != other);
    known.len() == typed.len()
        && differs.is_some_and(|at| {
            let mut swapped = typed.to_vec();
            at + 1 < swapped.len() && {
                swapped.swap(at, at + 1);
                swapped == known
            }
        })
}
