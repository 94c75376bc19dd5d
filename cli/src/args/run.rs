//! `servin run`: its flags as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::network::{self, Network};
use super::{Limits, all, is_on, limits, switch, text, unbuilt, value, values};
use crate::error::{Error, Result};

/// The typed flags of `run`. Values are not checked yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
    pub(crate) detach: bool,
    pub(crate) rm: bool,
    pub(crate) read_only: bool,
    pub(crate) timing: bool,
    pub(crate) trace: Option<OsString>,
    pub(crate) no_warm: bool,
    pub(crate) sig_proxy: bool,
    pub(crate) quiet: bool,
    pub(crate) pull: Option<String>,
    pub(crate) platform: Option<String>,
    pub(crate) detach_keys: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) cpus: Option<String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) stop_timeout: Option<String>,
    pub(crate) cidfile: Option<OsString>,
    pub(crate) workdir: Option<OsString>,
    pub(crate) entrypoint: Option<OsString>,
    pub(crate) kernel: Option<OsString>,
    pub(crate) rootfs: Option<OsString>,
    pub(crate) env: Vec<OsString>,
    pub(crate) env_file: Vec<OsString>,
    pub(crate) volume: Vec<OsString>,
    pub(crate) mount: Vec<OsString>,
    pub(crate) volumes_from: Vec<OsString>,
    pub(crate) tmpfs: Vec<OsString>,
    pub(crate) label: Vec<OsString>,
    pub(crate) limits: Limits,
    pub(crate) network: Network,
    pub(crate) restart: Option<String>,
    pub(crate) storage_opt: Vec<OsString>,
    /// IMAGE and the program's words; with `--rootfs` the program's alone.
    pub(crate) words: Vec<OsString>,
}

/// The verb's part of the command.
pub(super) fn command() -> Command {
    unbuilt::run_flags(built())
}

/// The same without the flags that are refused by name: fewer to build, and what is left out here is not read but told by
/// the whole.
pub(super) fn built() -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    shared("run", "Run a program in a new container")
        .arg(switch(both("detach", 'd')).help("Run in the background and print the container's id"))
        .arg(
            switch(long("sig-proxy"))
                .default_value("true")
                .help("Pass signals on to the program [default: true]"),
        )
        .arg(
            value(long("detach-keys"), "KEYS").help("Keys that detach the terminal [default: ctrl-p,ctrl-q]"),
        )
        .arg(switch(long("timing")).help("Print when each step of the start was reached"))
        .arg(value(long("trace"), "FILE").help("Boot, and write the start as a trace that Perfetto opens"))
        .arg(switch(long("no-warm")).help("Boot the guest kernel, and neither use nor leave a template"))
}

/// The same with those flags alone that this command line can mean: any whose name or letter is in a word that begins with
/// a dash, be it a flag or not. A command of seventy flags costs a start more than reading the words.
pub(super) fn typed(argv: &[OsString]) -> Command {
    let dashed: Vec<&str> = argv.iter().filter_map(|word| word.to_str()?.strip_prefix('-')).collect();
    let is_long = |name: &str| {
        dashed
            .iter()
            .any(|word| word.strip_prefix('-').is_some_and(|long| long.split('=').next() == Some(name)))
    };
    let is_meant = |arg: &Arg| {
        let name = arg.get_long().is_none_or(is_long);
        let others = arg.get_all_aliases().into_iter().flatten().any(is_long);
        let is_typed = |letter| dashed.iter().any(|word| !word.starts_with('-') && word.contains(letter));
        let letter = arg.get_short().is_some_and(is_typed);
        // One that is on where it is not typed has to be there.
        let on = arg.get_default_values().iter().any(|value| value != "false");
        name || others || letter || on
    };
    let whole = built();
    Command::new("run")
        .disable_help_flag(true)
        .args_override_self(true)
        .args(whole.get_arguments().filter(|arg| is_meant(arg)).cloned())
}

/// `servin create`: the same without what is about the start.
pub(super) fn create() -> Command {
    shared("create", "Make a container without starting it, and print its id")
}

fn shared(name: &'static str, about: &'static str) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    let usage = format!(
        "servin {name} [FLAGS] IMAGE [COMMAND [ARG...]]\n       servin {name} [FLAGS] --rootfs DIR COMMAND [ARG...]"
    );
    let command = Command::new(name)
        .about(about)
        .override_usage(usage)
        .disable_help_flag(true)
        .args_override_self(true)
        .arg(long("help").action(clap::ArgAction::Help).help("Print this help"))
        .arg(switch(both("interactive", 'i')).help("Give the program the standard input"))
        .arg(switch(both("tty", 't')).help("Give the program a terminal"))
        .arg(value(long("name"), "NAME").help("Name of the container [default: one is made up]"))
        .arg(switch(long("rm")).help("Remove the container when it ends"))
        .arg(values(both("env", 'e'), "NAME[=VALUE]").help("Set a variable, or pass it on from here"))
        .arg(values(long("env-file"), "FILE").help("Read variables from a file"))
        .arg(value(both("workdir", 'w'), "DIR").help("Working directory in the container"))
        .arg(value(both("user", 'u'), "USER[:GROUP]").help("User and group by name or number"))
        .arg(value(both("hostname", 'h'), "NAME").help("Host name [default: the container's short id]"))
        .arg(value(both("memory", 'm'), "SIZE").help("Memory limit of the container [default: 512m]"))
        .arg(value(long("cpus"), "N").help("Processors, also a fraction [default: 1]"))
        .arg(
            values(both("volume", 'v'), "HOST|NAME:CONTAINER[:ro]")
                .help("Show a directory or file of the host, or a volume, in the container"),
        )
        .arg(
            values(long("mount"), "type=TYPE,...")
                .help("The same in fields: type=bind|volume|tmpfs,source=...,target=...[,readonly]"),
        )
        .arg(
            values(long("volumes-from"), "CONTAINER[:ro]")
                .help("Show what another container mounts of the host and of volumes, in the same places"),
        )
        .arg(value(long("entrypoint"), "PROGRAM").help("Program instead of the image's; empty for none"))
        .arg(switch(long("read-only")).help("The root file system cannot be written"))
        .arg(values(long("tmpfs"), "DIR[:OPTIONS]").help("A file system in memory at this place"))
        .arg(values(both("label", 'l'), "NAME[=VALUE]").help("Label of the container"))
        .arg(value(long("cidfile"), "FILE").help("Write the container's id to a new file"))
        .arg(value(long("stop-signal"), "SIGNAL").help("Signal that \"servin stop\" sends"))
        .arg(value(long("stop-timeout"), "SECONDS").help("Seconds until \"servin stop\" kills [default: 10]"))
        .arg(
            value(long("pull"), "WHEN")
                .help("Get the image from its registry: always, missing or never [default: missing]"),
        )
        .arg(
            value(long("platform"), "OS/CPU")
                .help("Which image of several to get [default: that of this host]"),
        )
        .arg(switch(both("quiet", 'q')).help("Show no progress of a pull"))
        .arg(
            value(long("restart"), "POLICY").help(
                "Start it again when it ends: no, on-failure[:N], always, unless-stopped [default: no]",
            ),
        )
        .arg(
            values(long("storage-opt"), "size=SIZE").help("Most that the container may write [default: 32g]"),
        )
        .arg(value(long("kernel"), "FILE").help("Guest kernel instead of the installed one"))
        .arg(
            value(long("rootfs"), "DIR")
                .help("Directory of the host as root file system instead of an image"),
        )
        .arg(
            Arg::new("words")
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .value_name("IMAGE")
                .value_parser(value_parser!(OsString))
                .help("The image, the program and its arguments"),
        );
    network::flags(limits::add(command))
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Run> {
    unbuilt::refuse_run_flags(matches)?;
    let text = |name| {
        text(matches, name)
            .map_err(|what| Error::Usage { what: format!("--{name}: {what}"), verb: "run".into() })
    };
    // One that the command was read without was not typed.
    let one = |name: &str| matches.try_get_one::<OsString>(name).ok().flatten().cloned();
    Ok(Run {
        interactive: is_on(matches, "interactive"),
        tty: is_on(matches, "tty"),
        detach: is_on(matches, "detach"),
        rm: is_on(matches, "rm"),
        read_only: is_on(matches, "read-only"),
        timing: is_on(matches, "timing"),
        trace: one("trace"),
        no_warm: is_on(matches, "no-warm"),
        sig_proxy: is_on(matches, "sig-proxy"),
        quiet: is_on(matches, "quiet"),
        pull: text("pull")?,
        platform: text("platform")?,
        detach_keys: text("detach-keys")?,
        name: text("name")?,
        hostname: text("hostname")?,
        user: text("user")?,
        memory: text("memory")?,
        cpus: text("cpus")?,
        stop_signal: text("stop-signal")?,
        stop_timeout: text("stop-timeout")?,
        cidfile: one("cidfile"),
        workdir: one("workdir"),
        entrypoint: one("entrypoint"),
        kernel: one("kernel"),
        rootfs: one("rootfs"),
        env: all(matches, "env"),
        env_file: all(matches, "env-file"),
        volume: all(matches, "volume"),
        volumes_from: all(matches, "volumes-from"),
        mount: all(matches, "mount"),
        tmpfs: all(matches, "tmpfs"),
        label: all(matches, "label"),
        limits: limits::read(matches),
        network: network::read(matches).map_err(|what| Error::Usage { what, verb: "run".into() })?,
        restart: text("restart")?,
        storage_opt: all(matches, "storage-opt"),
        words: all(matches, "words"),
    })
}
