//! The verbs that are built, as they were typed.

use clap::{Arg, ArgMatches, Command};

use super::{
    Bench, Build, Container, Files, Image, Inspect, Registry, Run, Running, SharedNetwork, Snapshot,
    Starting, System, Vm, Volume, bench, build, completion, container, files, image, registry, run, running,
    shared_network, snapshot, start, system, vm, volume,
};
use crate::error::Result;

/// A verb with its arguments.
#[derive(Debug)]
pub(crate) enum Verb {
    /// `servin run`
    Run(Box<Run>),
    /// `servin ps` and the like
    Container(Container),
    /// `servin stats` and the like
    Running(Running),
    /// `servin system` and the like
    System(System),
    /// `servin images` and the like
    Image(Image),
    /// `servin build`
    Build(Box<Build>),
    /// `servin pull` and the like
    Registry(Registry),
    /// `servin create`, `start` and the like
    Starting(Starting),
    /// `servin cp`, `commit` and the like
    Files(Files),
    /// `servin snapshot` and `restore`
    Snapshot(Snapshot),
    /// `servin inspect`
    Inspect(Inspect),
    /// `servin vm`
    Vm(Vm),
    /// `servin volume`
    Volume(Volume),
    /// `servin network`
    SharedNetwork(SharedNetwork),
    /// `servin bench boot`
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Bench(Box<Bench>),
    /// Our side of `servin bench boot --against`: kernel and initramfs, and words for the kernel
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    BareMonitor([std::ffi::OsString; 2], String),
    /// `servin doctor`
    Doctor,
    /// `servin version`
    Version {
        /// How to print.
        format: Option<String>,
    },
}

/// Adds the verbs to the command.
pub(super) fn add(command: Command) -> Command {
    let command = container::add(command.subcommand(run::command()));
    let command = system::add(image::add(running::add(files::add(start::add(command)))));
    bench::add(shared_network::add(volume::add(vm::add(registry::add(snapshot::add(command))))))
        .subcommand(build::command("build"))
        .subcommand(completion::command())
        .subcommand(Command::new("doctor").about("Say what this host offers, and what to do about it"))
        .subcommand(
            Command::new("version").about("Print the version of servin and what it was built for").arg(
                super::value(Arg::new("format").short('f').long("format"), "FORMAT")
                    .help("json, or a template such as '{{.Client.Version}}'"),
            ),
        )
}

/// Reads the verb `name`.
pub(super) fn read(name: &str, matches: &ArgMatches) -> Result<Verb> {
    if name == "build" {
        return Ok(Verb::Build(Box::new(build::read(matches)?)));
    }
    if let Some(verb) = image::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = registry::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = container::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = running::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = start::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = files::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = snapshot::read(name, matches)? {
        return Ok(verb);
    }
    if let Some(verb) = system::read(name, matches)? {
        return Ok(verb);
    }
    match name {
        "run" => Ok(Verb::Run(Box::new(run::read(matches)?))),
        "bench" => bench::read(matches),
        "vm" => vm::read(matches),
        "volume" => volume::read(matches),
        "network" => shared_network::read(matches),
        "doctor" => Ok(Verb::Doctor),
        "version" => {
            let usage = |what| crate::error::Error::Usage { what, verb: name.into() };
            Ok(Verb::Version { format: super::text(matches, "format").map_err(usage)? })
        }
        other => Err(crate::error::Error::NotBuilt { what: other.to_owned(), code: 1 }),
    }
}
