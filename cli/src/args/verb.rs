//! The verbs that are built, as they were typed.

use clap::{ArgMatches, Command};

use super::{Container, Image, Inspect, Run, Vm, container, image, run, vm};
use crate::error::Result;

/// A verb with its arguments.
#[derive(Debug)]
pub(crate) enum Verb {
    /// `servin run`
    Run(Box<Run>),
    /// `servin ps` and the like
    Container(Container),
    /// `servin images` and the like
    Image(Image),
    /// `servin inspect`
    Inspect(Inspect),
    /// `servin vm`
    Vm(Vm),
    /// `servin doctor`
    Doctor,
    /// `servin version`
    Version,
}

/// Adds the verbs to the command.
pub(super) fn add(command: Command) -> Command {
    vm::add(image::add(container::add(command.subcommand(run::command()))))
        .subcommand(Command::new("doctor").about("Say what this host offers, and what to do about it"))
        .subcommand(Command::new("version").about("Print the version of servin and what it was built for"))
}

/// Reads the verb `name`.
pub(super) fn read(name: &str, matches: &ArgMatches) -> Result<Verb> {
    if let Some(verb) = image::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = container::read(name, matches)? {
        return Ok(verb);
    }
    match name {
        "run" => Ok(Verb::Run(Box::new(run::read(matches)?))),
        "vm" => vm::read(matches),
        "doctor" => Ok(Verb::Doctor),
        "version" => Ok(Verb::Version),
        other => Err(crate::error::Error::NotBuilt { what: other.to_owned(), code: 1 }),
    }
}
