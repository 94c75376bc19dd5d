//! The verbs of volumes, `servin volume`, as they were typed.

use clap::{Arg, ArgMatches, Command};

use super::{Verb, all, is_on, switch, text, utf8, value, values};
use crate::error::{Error, Result};

/// A verb of volumes with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Volume {
    /// `volume create`
    Create { name: Option<String>, labels: Vec<String> },
    /// `volume ls`
    List { quiet: bool, format: Option<String>, filter: Vec<String> },
    /// `volume inspect`
    Inspect { names: Vec<String>, format: Option<String> },
    /// `volume rm`
    Remove { names: Vec<String>, force: bool },
    /// `volume prune`
    Prune { all: bool, force: bool, filter: Vec<String> },
}

/// Flags of `volume create` that are refused by name, and whether a value stands in for none.
const UNBUILT: [&str; 8] =
    ["availability", "group", "limit-bytes", "opt", "required-bytes", "scope", "secret", "type"];

/// Adds the group.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| long(name).short(letter);
    let names = |name: &'static str| {
        value(Arg::new("names"), name).num_args(1..).required(true).allow_hyphen_values(false)
    };
    let filter = || values(both("filter", 'f'), "FILTER");
    let format = |help: &'static str| value(long("format"), "FORMAT").help(help);
    let mut create = Command::new("create")
        .about("Make a volume, unless there is one of this name")
        .arg(values(long("label"), "NAME[=VALUE]").help("Label of the volume"))
        .arg(value(both("driver", 'd'), "DRIVER").help("The only one there is: local"))
        .arg(value(Arg::new("name"), "NAME").allow_hyphen_values(false).help("[default: one is made up]"));
    for name in UNBUILT {
        let arg = values(Arg::new(name).long(name).hide(true), "VALUE");
        create = create.arg(if name == "opt" { arg.short('o') } else { arg });
    }
    let volume = Command::new("volume")
        .about("Volumes: directories with a name, which outlive containers")
        .subcommand_required(true)
        .subcommand(create)
        .subcommand(
            Command::new("ls")
                .about("List volumes")
                .visible_alias("list")
                .arg(switch(both("quiet", 'q')).help("Print the names alone"))
                .arg(format("table, json, or a template such as '{{.Name}}'"))
                .arg(filter().help("name=..., label=NAME[=VALUE], dangling=true or false")),
        )
        .subcommand(
            Command::new("inspect")
                .about("Print what is known of volumes as JSON")
                .arg(value(both("format", 'f'), "FORMAT").help("A template such as '{{.Mountpoint}}'"))
                .arg(names("VOLUME")),
        )
        .subcommand(
            Command::new("rm")
                .about("Remove volumes that no container uses, with their files")
                .visible_alias("remove")
                .arg(switch(both("force", 'f')).help("No error for a volume that is not there"))
                .arg(names("VOLUME")),
        )
        .subcommand(
            Command::new("prune")
                .about("Remove volumes without a name that no container uses")
                .arg(switch(both("all", 'a')).help("Those with a name too"))
                .arg(switch(both("force", 'f')).help("Do not ask"))
                .arg(values(long("filter"), "FILTER").help("label=NAME[=VALUE], label!=NAME[=VALUE]")),
        );
    command.subcommand(volume)
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Verb> {
    let Some((verb, matches)) = matches.subcommand() else {
        return Err(Error::Usage { what: "no command was given".into(), verb: "volume".into() });
    };
    let usage = |what: String| Error::Usage { what, verb: format!("volume {verb}") };
    let one = |name: &str| text(matches, name).map_err(|what| usage(format!("--{name}: {what}")));
    let many = |name: &str| {
        let words = all(matches, name);
        words.iter().map(|word| utf8(word).map_err(usage)).collect::<Result<Vec<_>>>()
    };
    Ok(Verb::Volume(match verb {
        "create" => {
            let typed =
                |name: &&str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
            if let Some(name) = UNBUILT.iter().find(|name| typed(name)) {
                return Err(Error::NotBuilt { what: format!("volume create --{name}"), code: 1 });
            }
            if let Some(other) = one("driver")?.filter(|driver| driver != "local") {
                return Err(usage(format!("--driver: there is no driver \"{other}\", only local")));
            }
            Volume::Create { name: one("name")?, labels: many("label")? }
        }
        "ls" => {
            Volume::List { quiet: is_on(matches, "quiet"), format: one("format")?, filter: many("filter")? }
        }
        "inspect" => Volume::Inspect { names: many("names")?, format: one("format")? },
        "rm" => Volume::Remove { names: many("names")?, force: is_on(matches, "force") },
        _ => Volume::Prune {
            all: is_on(matches, "all"),
            force: is_on(matches, "force"),
            filter: many("filter")?,
        },
    }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::args::{Typed, parse};

    fn verb(words: &[&str]) -> Result<Volume> {
        let words = ["servin", "volume"].iter().chain(words).map(OsString::from);
        match parse(words)? {
            Typed::Verb(_, Verb::Volume(volume)) => Ok(volume),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_verbs_are_read_with_dockers_flags() {
        let create = |name: Option<&str>, labels: &[&str]| Volume::Create {
            name: name.map(Into::into),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        assert_eq!(verb(&["create"]).unwrap(), create(None, &[]));
        assert_eq!(
            verb(&["create", "-d", "local", "--label", "a=b", "--label", "c", "data"]).unwrap(),
            create(Some("data"), &["a=b", "c"])
        );
        assert_eq!(verb(&["ls", "-q"]).unwrap(), verb(&["list", "--quiet"]).unwrap());
        let filter = vec!["dangling=true".to_owned()];
        assert_eq!(
            verb(&["ls", "-f", "dangling=true", "--format", "json"]).unwrap(),
            Volume::List { quiet: false, format: Some("json".into()), filter }
        );
        assert_eq!(
            verb(&["rm", "-f", "a", "b"]).unwrap(),
            Volume::Remove { names: vec!["a".into(), "b".into()], force: true }
        );
        assert_eq!(
            verb(&["prune", "-af", "--filter", "label=x"]).unwrap(),
            Volume::Prune { all: true, force: true, filter: vec!["label=x".into()] }
        );
        assert!(verb(&["inspect"]).is_err() && verb(&["rm"]).is_err() && verb(&[]).is_err());
    }

    #[test]
    fn drivers_and_their_options_are_refused_by_name() {
        let refused = |words: &[&str]| verb(words).unwrap_err().to_string();
        assert!(refused(&["create", "-d", "nfs", "x"]).contains("nfs"));
        assert_eq!(
            refused(&["create", "-o", "type=nfs", "x"]),
            "volume create --opt is not built yet in this version of servin"
        );
    }
}
