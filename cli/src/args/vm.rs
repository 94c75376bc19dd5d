//! The verbs of machines, `servin vm`, as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command};

use super::{Run, Verb, is_on, switch, text, value};
use crate::error::{Error, Result};

/// A verb of machines with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vm {
    /// `vm images list`
    Images { quiet: bool, no_trunc: bool, format: Option<String> },
    /// `vm images prune`
    Prune { keep: Option<String> },
    /// `vm images pull`: of a `run` that nothing runs in.
    Pull(Box<Run>),
    /// `vm images update`
    Update,
    /// `vm status`
    Status { quiet: bool, no_trunc: bool, format: Option<String> },
    /// `vm config`
    Config { format: Option<String> },
}

/// Adds the group.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let list = |command: Command, quiet: &'static str, whole: &'static str, format: &'static str| {
        command
            .arg(switch(long("quiet").short('q')).help(quiet))
            .arg(switch(long("no-trunc")).help(whole))
            .arg(value(long("format"), "FORMAT").help(format))
    };
    let templates = |command: Command| {
        let format = "table, json, or a template such as '{{.Image}}'";
        list(command, "Print the keys alone", "Print keys in full", format)
    };
    let images = templates(Command::new("images"))
        .about("Templates: saved machines that later runs of an image clone")
        .args_conflicts_with_subcommands(true)
        .subcommand(
            templates(Command::new("list").about("List the templates, the one used last first"))
                .visible_alias("ls"),
        )
        .subcommand(
            Command::new("prune").about("Remove templates; the next run of an image makes a new one").arg(
                value(long("keep"), "SIZE").help("Keep those used last, up to this size [default: none]"),
            ),
        )
        .subcommand(
            Command::new("pull")
                .about("Make the template of an image before anybody waits for it, and get the image where it is missing")
                .arg(value(Arg::new("image"), "IMAGE").required(true))
                .arg(value(long("memory").short('m'), "SIZE").help("Memory of the machines that will clone it"))
                .arg(value(long("cpus"), "N").help("Their processors"))
                .arg(value(long("kernel"), "FILE").help("Their kernel"))
                .arg(value(long("network"), "NETWORK").help("Their network"))
                .arg(value(long("platform"), "OS/ARCH").help("Which image of several to get"))
                .arg(value(long("pull"), "WHEN").help("When to get it: always, missing, never [default: missing]"))
                .arg(switch(long("quiet").short('q')).help("Print the key alone")),
        )
        .subcommand(
            Command::new("update")
                .about("Make templates anew for today's servin, guest kernel and images, and remove the old ones"),
        );
    let format = "table, json, or a template such as '{{.Name}}'";
    let status = list(Command::new("status"), "Print the containers' ids alone", "Print whole ids", format)
        .about("The machines that run: their monitor's process, memory and processors");
    let config = Command::new("config")
        .about("What machines are made of where nothing else is said, and what changes that")
        .arg(value(long("format"), "FORMAT").help("table, json, or a template such as '{{.Value}}'"));
    let vm = Command::new("vm").about("The machines that containers run in").subcommand_required(true);
    command.subcommand(vm.subcommand(images).subcommand(status).subcommand(config))
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Verb> {
    let text = |matches: &ArgMatches, name: &str| {
        text(matches, name)
            .map_err(|what| Error::Usage { what: format!("--{name}: {what}"), verb: "vm".into() })
    };
    let quiet = |matches: &ArgMatches| is_on(matches, "quiet");
    let no_trunc = |matches: &ArgMatches| is_on(matches, "no-trunc");
    let list = |matches: &ArgMatches| -> Result<Vm> {
        Ok(Vm::Images {
            quiet: quiet(matches),
            no_trunc: no_trunc(matches),
            format: text(matches, "format")?,
        })
    };
    let images = |images: &ArgMatches| -> Result<Vm> {
        Ok(match images.subcommand() {
            Some(("list", matches)) => list(matches)?,
            Some(("prune", matches)) => Vm::Prune { keep: text(matches, "keep")? },
            Some(("pull", matches)) => {
                let path = |name| matches.get_one::<OsString>(name).cloned();
                let mut run = Run {
                    rm: true,
                    quiet: quiet(matches),
                    memory: text(matches, "memory")?,
                    cpus: text(matches, "cpus")?,
                    platform: text(matches, "platform")?,
                    pull: text(matches, "pull")?,
                    kernel: path("kernel"),
                    words: path("image").into_iter().collect(),
                    ..Run::default()
                };
                run.network.network = path("network").into_iter().collect();
                Vm::Pull(Box::new(run))
            }
            Some(("update", _)) => Vm::Update,
            _ => list(images)?,
        })
    };
    Ok(Verb::Vm(match matches.subcommand() {
        Some(("status", matches)) => {
            let format = text(matches, "format")?;
            Vm::Status { quiet: quiet(matches), no_trunc: no_trunc(matches), format }
        }
        Some(("config", matches)) => Vm::Config { format: text(matches, "format")? },
        Some((_, matches)) => images(matches)?,
        None => return Err(Error::Usage { what: "a verb is missing".into(), verb: "vm".into() }),
    }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<Verb> {
        match parse(std::iter::once("servin").chain(words.iter().copied()).map(OsString::from))? {
            Typed::Verb(_, verb) => Ok(verb),
            Typed::Text(text) => panic!("{words:?} printed {text}"),
        }
    }

    fn vm(words: &[&str]) -> Vm {
        match verb(words).unwrap() {
            Verb::Vm(vm) => vm,
            other => panic!("{words:?} is {other:?}"),
        }
    }

    #[test]
    fn templates_are_listed_and_pruned() {
        assert_eq!(vm(&["vm", "images", "-q"]), vm(&["vm", "images", "list", "--quiet"]));
        assert_eq!(vm(&["vm", "images", "prune"]), Vm::Prune { keep: None });
        assert_eq!(vm(&["vm", "images", "prune", "--keep", "1g"]), Vm::Prune { keep: Some("1g".into()) });
    }

    #[test]
    fn a_template_is_made_of_what_a_run_is_made_of() {
        let Vm::Pull(run) = vm(&["vm", "images", "pull", "-m", "64m", "--cpus", "2", "alpine"]) else {
            panic!("no pull")
        };
        assert_eq!((run.memory.as_deref(), run.cpus.as_deref()), (Some("64m"), Some("2")));
        assert_eq!(run.words, ["alpine"]);
        assert!(run.rm && !run.quiet);
        assert_eq!(vm(&["vm", "images", "update"]), Vm::Update);
        assert!(verb(&["vm", "images", "pull"]).is_err());
        assert!(verb(&["vm", "images", "pull", "alpine", "sh"]).is_err(), "no program runs");
    }

    #[test]
    fn the_help_of_each_listing_speaks_of_what_it_lists() {
        let help = |words: &[&str]| match parse(words.iter().map(OsString::from)) {
            Ok(Typed::Text(text)) => text,
            other => panic!("{words:?} gave {other:?}"),
        };
        let status = help(&["servin", "vm", "status", "--help"]);
        assert!(status.contains("containers' ids") && !status.contains("keys"), "{status}");
        assert!(help(&["servin", "vm", "images", "ls", "--help"]).contains("Print the keys alone"));
    }

    #[test]
    fn machines_and_settings_are_listed() {
        let status = Vm::Status { quiet: true, no_trunc: false, format: None };
        assert_eq!(vm(&["vm", "status", "-q"]), status);
        assert_eq!(vm(&["vm", "config", "--format", "json"]), Vm::Config { format: Some("json".into()) });
        assert!(verb(&["vm"]).is_err());
    }
}
