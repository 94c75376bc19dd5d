//! The verbs about the whole data root, `servin system`, and `servin container prune`, as they were typed.

use clap::{Arg, ArgMatches, Command};

use super::{IN_GROUP, Verb, is_on, switch, text, texts, value, values};
use crate::error::{Error, Result};

/// A verb with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum System {
    /// `system df`
    Df { verbose: bool, format: Option<String> },
    /// `system prune`
    Prune { all: bool, volumes: bool, force: bool, filter: Vec<String> },
    /// `system info`
    Info { format: Option<String> },
    /// `system check`
    Check { repair: bool },
    /// `container prune`
    Containers { force: bool, filter: Vec<String> },
}

/// What docker's group has and this one not.
const UNBUILT: [&str; 1] = ["dial-stdio"];

/// Adds the groups, and `info`.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let force = || switch(long("force").short('f')).help("Do not ask");
    let filter = |help: &'static str| values(long("filter"), "KEY=VALUE").help(help);
    let format =
        || value(long("format").short('f'), "FORMAT").help("json, or a template such as '{{.Name}}'");
    let about = "Show where data is kept, how much there is, and what this host offers";
    let info = |name: &'static str| Command::new(name).about(about).arg(format());
    let mut system = Command::new("system")
        .about("The data root as a whole")
        .subcommand_required(true)
        .subcommand(
            Command::new("df")
                .about("Show what takes space")
                .arg(switch(long("verbose").short('v')).help("Show each image, container and template"))
                .arg(value(long("format"), "FORMAT").help("table, json, or a template such as '{{.Type}}'")),
        )
        .subcommand(
            Command::new("prune")
                .about("Remove containers that have ended, networks that no container is on, images without a name, and what nothing speaks of")
                .arg(
                    switch(long("all").short('a'))
                        .help("Also images that no container is made from, and templates"),
                )
                .arg(switch(long("volumes")).help("Also volumes without a name that no container uses"))
                .arg(force())
                .arg(filter("until=TIME, label=, label!=")),
        )
        .subcommand(info("info"))
        .subcommand(super::running::events())
        .subcommand(
            Command::new("check")
                .about("Check that the store and its files agree, reading every byte")
                .arg(switch(long("repair")).help("Remove what is broken, and make anew what can be")),
        );
    for name in UNBUILT {
        let rest = Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
        system = system.subcommand(Command::new(name).hide(true).disable_help_flag(true).arg(rest));
    }
    let container = Command::new("container")
        .about("The verbs of containers: servin container ls, inspect, run, stop, ...")
        .subcommand_required(true)
        .subcommands(in_group(&command))
        .subcommand(
            Command::new("prune")
                .about("Remove containers that have ended")
                .arg(force())
                .arg(filter("until=TIME, label=, label!=")),
        );
    command.subcommand(system).subcommand(container).subcommand(info("info"))
}

/// The verbs of containers, to be shown in their group. What is typed there is read as the verbs themselves.
fn in_group(command: &Command) -> Vec<Command> {
    let verbs = IN_GROUP.iter().filter_map(|name| command.find_subcommand(name).cloned());
    verbs
        .map(|verb| if verb.get_name() == "ps" { verb.name("ls").visible_alias("list") } else { verb })
        .collect()
}

/// Reads the verb, if it is one of these.
pub(super) fn read(verb: &str, matches: &ArgMatches) -> Result<Option<Verb>> {
    if !matches!(verb, "system" | "container" | "info") {
        return Ok(None);
    }
    let usage = |what: String| Error::Usage { what, verb: verb.to_owned() };
    let info =
        |matches: &ArgMatches| text(matches, "format").map_err(usage).map(|format| System::Info { format });
    let (name, matches) = match matches.subcommand() {
        Some(found) => found,
        None => return Ok(Some(Verb::System(info(matches)?))),
    };
    if name == "events" {
        return super::running::read(name, matches);
    }
    let on = |name| is_on(matches, name);
    let filter = || texts(matches, "filter").map_err(usage);
    Ok(Some(Verb::System(match (verb, name) {
        ("container", _) => System::Containers { force: on("force"), filter: filter()? },
        (_, "df") => System::Df { verbose: on("verbose"), format: text(matches, "format").map_err(usage)? },
        (_, "prune") => {
            System::Prune { all: on("all"), volumes: on("volumes"), force: on("force"), filter: filter()? }
        }
        (_, "info") => info(matches)?,
        (_, "check") => System::Check { repair: on("repair") },
        (_, other) => return Err(Error::NotBuilt { what: format!("system {other}"), code: 1 }),
    })))
}
