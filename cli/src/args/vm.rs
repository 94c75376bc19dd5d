//! The verbs of machines, `servin vm`, as they were typed.

use clap::{Arg, ArgMatches, Command};

use super::{Verb, is_on, switch, text, value};
use crate::error::{Error, Result};

/// A verb of machines with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vm {
    /// `vm images list`
    Images { quiet: bool, no_trunc: bool, format: Option<String> },
    /// `vm images prune`
    Prune { keep: Option<String> },
}

/// What is refused by name in the group, and in `vm images`.
const UNBUILT: [&str; 2] = ["config", "status"];
const UNBUILT_IMAGES: [&str; 2] = ["pull", "update"];

/// Adds the group.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let list = |command: Command| {
        command
            .arg(switch(long("quiet").short('q')).help("Print the keys alone"))
            .arg(switch(long("no-trunc")).help("Print keys in full"))
            .arg(value(long("format"), "FORMAT").help("table, json, or a template such as {{.Image}}"))
    };
    let images = list(Command::new("images"))
        .about("Templates: saved machines that later runs of an image clone")
        .args_conflicts_with_subcommands(true)
        .subcommand(
            list(Command::new("list").about("List the templates, the one used last first"))
                .visible_alias("ls"),
        )
        .subcommand(
            Command::new("prune").about("Remove templates; the next run of an image makes a new one").arg(
                value(long("keep"), "SIZE").help("Keep those used last, up to this size [default: none]"),
            ),
        );
    let vm = Command::new("vm").about("The machines that containers run in").subcommand_required(true);
    let vm = refused(vm.subcommand(refused(images, &UNBUILT_IMAGES)), &UNBUILT);
    command.subcommand(vm)
}

fn refused(mut command: Command, names: &[&'static str]) -> Command {
    for &name in names {
        let rest = Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
        command = command.subcommand(Command::new(name).hide(true).disable_help_flag(true).arg(rest));
    }
    command
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Verb> {
    let not_built = |what: &str| Err(Error::NotBuilt { what: format!("vm {what}"), code: 1 });
    let images = match matches.subcommand() {
        Some(("images", images)) => images,
        Some((other, _)) => return not_built(other),
        None => return not_built(""),
    };
    let text = |matches: &ArgMatches, name: &str| {
        text(matches, name)
            .map_err(|what| Error::Usage { what: format!("--{name}: {what}"), verb: "vm".into() })
    };
    let list = |matches: &ArgMatches| -> Result<Vm> {
        Ok(Vm::Images {
            quiet: is_on(matches, "quiet"),
            no_trunc: is_on(matches, "no-trunc"),
            format: text(matches, "format")?,
        })
    };
    Ok(Verb::Vm(match images.subcommand() {
        None => list(images)?,
        Some(("list", matches)) => list(matches)?,
        Some(("prune", matches)) => Vm::Prune { keep: text(matches, "keep")? },
        Some((other, _)) => return not_built(&format!("images {other}")),
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
    fn what_is_not_built_is_refused_by_name() {
        let refused = verb(&["vm", "images", "pull", "x"]).unwrap_err();
        assert_eq!(refused.to_string(), "vm images pull is not built yet in this version of servin");
        assert!(verb(&["vm", "status"]).unwrap_err().to_string().starts_with("vm status is not built"));
        assert!(verb(&["vm"]).is_err());
    }
}
