//! `servin build`, as it was typed.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{is_on, switch, text, texts, value, values};
use crate::error::{Error, Result};

/// The flags of `build`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Build {
    /// `-t`: names for the image.
    pub(crate) tags: Vec<String>,
    /// `-f`: the Dockerfile; `-` is standard input.
    pub(crate) file: Option<PathBuf>,
    /// `--build-arg NAME=value`, or `NAME` for the environment's value.
    pub(crate) args: Vec<String>,
    /// `--label NAME=value`.
    pub(crate) labels: Vec<String>,
    /// The stage to build, instead of the last one.
    pub(crate) target: Option<String>,
    /// `--iidfile`: where the image's id is written.
    pub(crate) iidfile: Option<PathBuf>,
    /// Memory limit of the steps.
    pub(crate) memory: Option<String>,
    /// Network of the steps.
    pub(crate) network: Option<String>,
    pub(crate) no_cache: bool,
    /// Ask for newer base images.
    pub(crate) pull: bool,
    pub(crate) quiet: bool,
    /// The context: a directory, or `-` for a Dockerfile on standard input and no context.
    pub(crate) context: PathBuf,
}

/// Flags of docker's `build` that are refused by name.
const UNBUILT: &[&str] = &[
    "add-host",
    "allow",
    "annotation",
    "attest",
    "build-context",
    "builder",
    "cache-from",
    "cache-to",
    "cgroup-parent",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "isolation",
    "memory-swap",
    "metadata-file",
    "no-cache-filter",
    "output",
    "platform",
    "progress",
    "provenance",
    "sbom",
    "secret",
    "security-opt",
    "shm-size",
    "ssh",
    "ulimit",
];
/// The same, without a value.
const UNBUILT_SWITCHES: &[&str] = &["compress", "force-rm", "load", "push", "rm", "squash"];

/// The verb, by its name in this place.
pub(super) fn command(name: &'static str) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let path = |arg: Arg, what: &'static str| arg.value_name(what).value_parser(value_parser!(PathBuf));
    let mut command = Command::new(name)
        .about("Make an image as a Dockerfile says")
        .args_override_self(true)
        .arg(values(long("tag").short('t'), "NAME[:TAG]").help("Name the image; can be repeated"))
        .arg(
            path(long("file").short('f'), "FILE")
                .help("The Dockerfile [default: PATH/Dockerfile]; - is standard input"),
        )
        .arg(values(long("build-arg"), "NAME[=VALUE]").help("Set an ARG of the Dockerfile"))
        .arg(values(long("label"), "NAME=VALUE").help("Label the image"))
        .arg(value(long("target"), "STAGE").help("Build this stage and those that it needs"))
        .arg(path(long("iidfile"), "FILE").help("Write the image's id to a file"))
        .arg(value(long("memory").short('m'), "SIZE").help("Memory limit of the steps"))
        .arg(value(long("network"), "MODE").help("Network of the steps: default or none"))
        .arg(switch(long("no-cache")).help("Do every step, also those that were done before"))
        .arg(switch(long("pull")).help("Ask the registry for newer base images"))
        .arg(switch(long("quiet").short('q')).help("Print the image's id alone"))
        .arg(
            path(Arg::new("context"), "PATH")
                .required(true)
                .help("The directory that COPY takes files from; - for none"),
        );
    for name in UNBUILT {
        command = command.arg(value(long(name), "VALUE").hide(true));
    }
    for name in UNBUILT_SWITCHES {
        command = command.arg(switch(long(name)).hide(true));
    }
    command
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Build> {
    let typed = |name: &&&str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
    if let Some(name) = UNBUILT.iter().chain(UNBUILT_SWITCHES).find(typed) {
        return Err(Error::NotBuilt { what: format!("build --{name}"), code: 1 });
    }
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let fail = |what: String| Error::Usage { what, verb: "build".into() };
    let lines = |name: &str| texts(matches, name).map_err(|what| fail(format!("--{name}: {what}")));
    let text = |name: &str| text(matches, name).map_err(|what| fail(format!("--{name}: {what}")));
    Ok(Build {
        tags: lines("tag")?,
        file: path("file"),
        args: lines("build-arg")?,
        labels: lines("label")?,
        target: text("target")?,
        iidfile: path("iidfile"),
        memory: text("memory")?,
        network: text("network")?,
        no_cache: is_on(matches, "no-cache"),
        pull: is_on(matches, "pull"),
        quiet: is_on(matches, "quiet"),
        context: path("context").unwrap_or_default(),
    })
}
