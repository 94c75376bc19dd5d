//! The verbs about a container's files, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, all, is_on, switch, value, values};
use crate::error::{Error, Result};

/// A verb about files with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// `servin cp`
    Copy {
        /// Owners are kept.
        archive: bool,
        /// A symbolic link as source is followed.
        follow: bool,
        /// `CONTAINER:PATH`, a path, or `-`.
        from: OsString,
        /// The same.
        to: OsString,
    },
    /// `servin diff`
    Diff(String),
    /// `servin commit`
    Commit(Commit),
    /// `servin export`
    Export {
        /// Where to; standard output without.
        output: Option<OsString>,
        /// Which container.
        name: String,
    },
    /// `servin import`
    Import {
        /// What the image says of itself.
        about: About,
        /// Of which platform the files are.
        platform: Option<String>,
        /// A file, or `-`.
        source: OsString,
        /// The image's name.
        reference: Option<String>,
    },
}

/// What a new image says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) author: Option<String>,
    pub(crate) message: Option<String>,
    /// Lines as of a Dockerfile.
    pub(crate) changes: Vec<OsString>,
}

/// `commit`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) about: About,
    pub(crate) pause: bool,
    pub(crate) name: String,
    pub(crate) reference: Option<String>,
}

const CHANGE: &str = "Change the configuration by a line of a Dockerfile";
const MESSAGE: &str = "A comment in the image's history";

/// Adds the verbs to the command.
pub(super) fn add(command: Command) -> Command {
    let verb =
        |name: &'static str, about: &'static str| Command::new(name).about(about).args_override_self(true);
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    let word = |name: &'static str, shown: &'static str| {
        Arg::new(name).required(true).value_name(shown).value_parser(value_parser!(OsString))
    };
    command
        .subcommand(
            verb("cp", "Copy files out of a container or into it")
                .override_usage(
                    "servin cp [FLAGS] CONTAINER:PATH PATH|-\n       servin cp [FLAGS] PATH|- CONTAINER:PATH",
                )
                .arg(switch(both("archive", 'a')).help("Keep owners"))
                .arg(switch(both("follow-link", 'L')).help("Copy what a symbolic link leads to"))
                .arg(switch(both("quiet", 'q')).help("Accepted: nothing is printed in any case"))
                .arg(word("from", "FROM"))
                .arg(word("to", "TO")),
        )
        .subcommand(
            verb("diff", "List what a container has added (A), changed (C) and deleted (D)")
                .arg(word("name", "CONTAINER")),
        )
        .subcommand(
            verb("commit", "Make an image of a container")
                .arg(value(both("author", 'a'), "NAME").help("Who made it"))
                .arg(values(both("change", 'c'), "LINE").help(CHANGE))
                .arg(value(both("message", 'm'), "TEXT").help(MESSAGE))
                .arg(
                    switch(both("pause", 'p'))
                        .default_value("true")
                        .help("Let the container's programs stand still meanwhile [default: true]"),
                )
                .arg(word("name", "CONTAINER"))
                .arg(word("reference", "IMAGE").required(false)),
        )
        .subcommand(
            verb("export", "Write a container's file system as a tar")
                .arg(value(both("output", 'o'), "FILE").help("Where to [default: standard output]"))
                .arg(word("name", "CONTAINER")),
        )
        .subcommand(import())
}

/// `import`, alone and in the group of images.
pub(super) fn import() -> Command {
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    let word = |name: &'static str, shown: &'static str| {
        Arg::new(name).value_name(shown).value_parser(value_parser!(OsString))
    };
    Command::new("import")
        .about("Make an image of a tar of files")
        .args_override_self(true)
        .arg(values(both("change", 'c'), "LINE").help(CHANGE))
        .arg(value(both("message", 'm'), "TEXT").help(MESSAGE))
        .arg(value(Arg::new("platform").long("platform"), "OS/CPU").help("Of which platform the files are"))
        .arg(word("source", "FILE|-").required(true))
        .arg(word("reference", "IMAGE"))
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let text = |name: &str| super::text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let needed = |name: &str| text(name).map(Option::unwrap_or_default);
    let word = |name: &str| matches.get_one::<OsString>(name).cloned().unwrap_or_default();
    let about = || -> Result<About> {
        Ok(About { author: text("author")?, message: text("message")?, changes: all(matches, "change") })
    };
    Ok(Some(Verb::Files(match verb {
        "cp" => Files::Copy {
            archive: is_on(matches, "archive"),
            follow: is_on(matches, "follow-link"),
            from: word("from"),
            to: word("to"),
        },
        "diff" => Files::Diff(needed("name")?),
        "commit" => Files::Commit(Commit {
            about: about()?,
            pause: is_on(matches, "pause"),
            name: needed("name")?,
            reference: text("reference")?,
        }),
        "export" => {
            Files::Export { output: matches.get_one::<OsString>("output").cloned(), name: needed("name")? }
        }
        "import" => Files::Import {
            about: about()?,
            platform: text("platform")?,
            source: word("source"),
            reference: text("reference")?,
        },
        _ => return Ok(None),
    })))
}
