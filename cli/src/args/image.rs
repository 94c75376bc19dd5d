//! The verbs of images, `servin images` and `servin image ls` alike, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{Verb, all, build, files, is_on, registry, switch, text, value, values};
use crate::error::{Error, Result};

/// A verb of images with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Image {
    /// `load`
    Load {
        /// A file, or `-`, or nothing for standard input.
        input: Option<OsString>,
        quiet: bool,
        platform: Option<String>,
    },
    /// `images`
    List(List),
    /// `rmi`
    Remove { images: Vec<String>, force: bool },
    /// `tag`
    Tag { source: String, target: String },
    /// `save`
    Save { images: Vec<String>, output: Option<OsString> },
    /// `history`
    History { image: String, quiet: bool, no_trunc: bool, human: bool, format: Option<String> },
    /// `image prune`
    Prune { all: bool, force: bool, filter: Vec<String> },
}

/// The flags of `images`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) name: Option<String>,
    pub(crate) quiet: bool,
    pub(crate) no_trunc: bool,
    pub(crate) digests: bool,
    pub(crate) format: Option<String>,
    pub(crate) filter: Vec<String>,
}

/// The flags of `inspect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspect {
    pub(crate) names: Vec<String>,
    pub(crate) format: Option<String>,
    /// `image`, `container`, `volume`, or any.
    pub(crate) kind: Option<String>,
    /// With what a container takes on disk.
    pub(crate) size: bool,
}

impl Inspect {
    /// The verb as it was typed, or as it could have been.
    pub(crate) fn verb(&self) -> &'static str {
        match self.kind.as_deref() {
            Some("image") => "image inspect",
            _ => "inspect",
        }
    }
}

/// Top-level verbs of images, and how docker's `image` group calls the same ones.
const NAMES: [(&str, &str, &[&str]); 6] = [
    ("load", "load", &[]),
    ("images", "ls", &["list"]),
    ("rmi", "rm", &["remove"]),
    ("tag", "tag", &[]),
    ("save", "save", &[]),
    ("history", "history", &[]),
];

/// Adds the verbs.
pub(super) fn add(mut command: Command) -> Command {
    let mut group = Command::new("image").about("The verbs of images").subcommand_required(true);
    for (name, in_group, aliases) in NAMES {
        command = command.subcommand(one(name, Command::new(name)));
        group = group.subcommand(one(name, Command::new(in_group)).visible_aliases(aliases));
    }
    group = group.subcommand(build::command("build")).subcommand(files::import());
    group = group.subcommand(registry::pull(Command::new("pull")));
    group = group.subcommand(registry::push(Command::new("push")));
    let prune = Command::new("prune")
        .about("Remove images without a name")
        .arg(
            switch(Arg::new("all").short('a').long("all"))
                .help("Also those with a name that no container is made from"),
        )
        .arg(switch(Arg::new("force").short('f').long("force")).help("Do not ask"))
        .arg(values(Arg::new("filter").long("filter"), "KEY=VALUE").help("until=TIME, label=, label!="));
    let inspect = inspect(Command::new("inspect"), false);
    command
        .subcommand(group.subcommand(prune).subcommand(inspect))
        .subcommand(self::inspect(Command::new("inspect"), true))
}

fn one(name: &str, command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| long(name).short(letter);
    let no_trunc = || switch(long("no-trunc")).help("Do not shorten");
    let quiet = |help: &'static str| switch(both("quiet", 'q')).help(help);
    let format = || value(long("format"), "FORMAT").help("table, json, or a template such as '{{.ID}}'");
    match name {
        "load" => command
            .about("Load images from a \"docker save\" tar or an OCI layout")
            .arg(
                value(both("input", 'i'), "FILE")
                    .help("Tar, compressed tar or layout directory [default: standard input]"),
            )
            .arg(
                value(long("platform"), "OS/CPU").help("Which image of several [default: that of this host]"),
            )
            .arg(quiet("Show no progress")),
        "images" => command
            .about("List images")
            .arg(switch(both("all", 'a')).help("The same: images without a name are listed anyway"))
            .arg(switch(long("digests")).help("Show digests"))
            .arg(
                values(both("filter", 'f'), "KEY=VALUE")
                    .help("dangling=, reference=, label=, before=, since="),
            )
            .arg(format())
            .arg(no_trunc())
            .arg(quiet("Ids only"))
            .arg(Arg::new("name").value_name("NAME[:TAG]").value_parser(value_parser!(OsString))),
        "rmi" => command
            .about("Remove images")
            .arg(switch(both("force", 'f')).help("Also one with several names, by its id"))
            .arg(words("images", "IMAGE", 1)),
        "tag" => command.about("Give an image another name").arg(
            words("images", "IMAGE", 2)
                .num_args(2)
                .value_names(["IMAGE", "NAME[:TAG]"])
                .action(ArgAction::Set),
        ),
        "save" => command
            .about("Write images into a tar that docker and others load")
            .arg(value(both("output", 'o'), "FILE").help("File to write [default: standard output]"))
            .arg(words("images", "IMAGE", 1)),
        _ => command
            .about("Show how an image came to be")
            .arg(
                switch(both("human", 'H'))
                    .default_value("true")
                    .help("Sizes and times for people [default: true]"),
            )
            .arg(format())
            .arg(no_trunc())
            .arg(quiet("Ids only"))
            .arg(words("images", "IMAGE", 1).num_args(1).action(ArgAction::Set)),
    }
}

fn inspect(command: Command, typed: bool) -> Command {
    let command = command
        .about(if typed {
            "Show all about containers, images and volumes as JSON"
        } else {
            "Show all about images as JSON"
        })
        .arg(
            value(Arg::new("format").short('f').long("format"), "FORMAT")
                .help("json, or a template such as '{{.Id}}'"),
        )
        .arg(words("images", if typed { "NAME" } else { "IMAGE" }, 1));
    if typed {
        let size = Arg::new("size").short('s').long("size");
        command.arg(switch(size).help("Show what a container takes on disk")).arg(
            value(Arg::new("type").long("type"), "TYPE").help("image, container or volume [default: any]"),
        )
    } else {
        command
    }
}

fn words(name: &'static str, shown: &'static str, least: usize) -> Arg {
    Arg::new(name)
        .num_args(least..)
        .required(true)
        .action(ArgAction::Append)
        .value_name(shown)
        .value_parser(value_parser!(OsString))
}

/// Reads a verb of images; `None` if it is none.
pub(super) fn read(name: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    if name == "inspect" {
        return inspected(matches, None).map(Some);
    }
    if name == "image" {
        let Some((word, matches)) = matches.subcommand() else { return Ok(None) };
        if word == "import" {
            return files::read(word, matches);
        }
        if word == "build" {
            return Ok(Some(Verb::Build(Box::new(build::read(matches)?))));
        }
        if registry::IN_GROUP.contains(&word) {
            return registry::read(word, matches);
        }
        return match NAMES.iter().find(|(_, in_group, _)| *in_group == word) {
            Some((name, ..)) => image(name, matches).map(Some),
            None if word == "inspect" => inspected(matches, Some("image".into())).map(Some),
            None => {
                let usage = |what| Error::Usage { what, verb: "image prune".into() };
                Ok(Some(Verb::Image(Image::Prune {
                    all: is_on(matches, "all"),
                    force: is_on(matches, "force"),
                    filter: super::texts(matches, "filter").map_err(usage)?,
                })))
            }
        };
    }
    if NAMES.iter().any(|(known, ..)| *known == name) { image(name, matches).map(Some) } else { Ok(None) }
}

fn image(name: &str, matches: &ArgMatches) -> Result<Verb> {
    let fail = |what: String| Error::Usage { what, verb: name.to_owned() };
    let text = |flag: &str| text(matches, flag).map_err(|what| fail(format!("--{flag}: {what}")));
    let path = |flag: &str| matches.get_one::<OsString>(flag).cloned();
    let on = |flag: &str| is_on(matches, flag);
    let names = || -> Result<Vec<String>> {
        all(matches, "images").iter().map(|word| super::utf8(word)).collect::<Result<_, _>>().map_err(fail)
    };
    Ok(Verb::Image(match name {
        "load" => Image::Load { input: path("input"), quiet: on("quiet"), platform: text("platform")? },
        "images" => Image::List(List {
            name: text("name")?,
            quiet: on("quiet"),
            no_trunc: on("no-trunc"),
            digests: on("digests"),
            format: text("format")?,
            filter: all(matches, "filter")
                .iter()
                .map(|word| super::utf8(word))
                .collect::<Result<_, _>>()
                .map_err(fail)?,
        }),
        "rmi" => Image::Remove { images: names()?, force: on("force") },
        "tag" => {
            let mut names = names()?.into_iter();
            match (names.next(), names.next()) {
                (Some(source), Some(target)) => Image::Tag { source, target },
                _ => return Err(fail("an image and its new name are needed".into())),
            }
        }
        "save" => Image::Save { images: names()?, output: path("output") },
        _ => Image::History {
            image: names()?.into_iter().next().unwrap_or_default(),
            quiet: on("quiet"),
            no_trunc: on("no-trunc"),
            human: on("human"),
            format: text("format")?,
        },
    }))
}

fn inspected(matches: &ArgMatches, kind: Option<String>) -> Result<Verb> {
    let fail = |what: String| Error::Usage { what, verb: "inspect".into() };
    let typed = kind.is_none();
    let kind = match kind {
        Some(kind) => Some(kind),
        None => text(matches, "type").map_err(fail)?,
    };
    if let Some(other) =
        kind.as_deref().filter(|kind| !matches!(*kind, "image" | "container" | "volume" | "network" | ""))
    {
        return Err(fail(format!(
            "invalid value \"{other}\" for --type: it is image, container, volume or network"
        )));
    }
    Ok(Verb::Inspect(Inspect {
        names: all(matches, "images")
            .iter()
            .map(|word| super::utf8(word))
            .collect::<Result<_, _>>()
            .map_err(fail)?,
        format: text(matches, "format").map_err(fail)?,
        size: typed && is_on(matches, "size"),
        kind: kind.filter(|kind| !kind.is_empty()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<Verb> {
        match parse(std::iter::once("servin").chain(words.iter().copied()).map(OsString::from))? {
            Typed::Verb(_, verb) => Ok(verb),
            Typed::Text(text) => panic!("{words:?} printed {text}"),
        }
    }

    fn image(words: &[&str]) -> Image {
        match verb(words).unwrap() {
            Verb::Image(image) => image,
            other => panic!("{words:?} is {other:?}"),
        }
    }

    #[test]
    fn a_verb_and_its_form_in_the_group_are_the_same() {
        for (one, other) in [
            (&["load", "-i", "x", "-q"][..], &["image", "load", "--input=x", "--quiet"][..]),
            (&["images", "-q", "busybox"], &["image", "ls", "--quiet", "busybox"]),
            (&["images", "-f", "dangling=true"], &["image", "list", "--filter", "dangling=true"]),
            (&["rmi", "-f", "a", "b"], &["image", "rm", "a", "--force", "b"]),
            (&["tag", "a", "b"], &["image", "tag", "a", "b"]),
            (&["save", "a", "-o", "f"], &["image", "save", "-o", "f", "a"]),
            (&["history", "a"], &["image", "history", "a"]),
        ] {
            assert_eq!(image(one), image(other));
        }
        let filter = vec!["until=24h".to_owned()];
        let prune = Image::Prune { all: true, force: true, filter };
        assert_eq!(image(&["image", "prune", "-af", "--filter", "until=24h"]), prune);
    }

    #[test]
    fn inspect_takes_a_type_and_the_group_is_one() {
        let inspect = |words: &[&str]| match verb(words).unwrap() {
            Verb::Inspect(inspect) => inspect,
            other => panic!("{words:?} is {other:?}"),
        };
        let typed = inspect(&["inspect", "--type", "image", "-f", "{{.Id}}", "a", "b"]);
        assert_eq!(typed, inspect(&["image", "inspect", "--format={{.Id}}", "a", "b"]));
        assert_eq!((typed.names.len(), typed.kind.as_deref()), (2, Some("image")));
        assert_eq!(inspect(&["inspect", "a"]).kind, None);
    }

    #[test]
    fn what_is_missing_or_too_much_is_refused() {
        for bad in [
            &["rmi"][..],
            &["tag", "a"],
            &["tag", "a", "b", "c"],
            &["history", "a", "b"],
            &["save"],
            &["inspect"],
            &["inspect", "--type", "secret", "x"],
            &["images", "a", "b"],
            &["load", "x"],
            &["image"],
            &["image", "nonsense"],
        ] {
            assert!(verb(bad).is_err(), "{bad:?}");
        }
        let import = |words: &[&str]| format!("{:?}", verb(words).unwrap());
        assert_eq!(
            import(&["image", "import", "-m", "x", "f", "n:1"]),
            import(&["import", "-m", "x", "f", "n:1"])
        );
    }
}
