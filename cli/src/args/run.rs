//! `servin run`: its flags as they were typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{all, is_on, switch, text, unbuilt, value, values};
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
    pub(crate) no_warm: bool,
    pub(crate) sig_proxy: bool,
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
    pub(crate) tmpfs: Vec<OsString>,
    pub(crate) label: Vec<OsString>,
    /// IMAGE and the program's words; with `--rootfs` the program's alone.
    pub(crate) words: Vec<OsString>,
}

/// The verb's part of the command.
pub(super) fn command() -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let both = |name: &'static str, letter| Arg::new(name).long(name).short(letter);
    let command = Command::new("run")
        .about("Run a program in a new container")
        .override_usage("servin run [FLAGS] IMAGE [COMMAND [ARG...]]\n       servin run [FLAGS] --rootfs DIR COMMAND [ARG...]")
        .disable_help_flag(true)
        .args_override_self(true)
        .arg(long("help").action(clap::ArgAction::Help).help("Print this help"))
        .arg(switch(both("interactive", 'i')).help("Give the program the standard input"))
        .arg(switch(both("tty", 't')).help("Give the program a terminal"))
        .arg(switch(both("detach", 'd')).help("Run in the background and print the container's id"))
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
            values(both("volume", 'v'), "HOST:CONTAINER[:ro]")
                .help("Show a directory or file of the host in the container"),
        )
        .arg(value(long("entrypoint"), "PROGRAM").help("Program instead of the image's; empty for none"))
        .arg(switch(long("read-only")).help("The root file system cannot be written"))
        .arg(values(long("tmpfs"), "DIR[:OPTIONS]").help("A file system in memory at this place"))
        .arg(values(both("label", 'l'), "NAME[=VALUE]").help("Label of the container"))
        .arg(value(long("cidfile"), "FILE").help("Write the container's id to a new file"))
        .arg(value(long("stop-signal"), "SIGNAL").help("Signal that \"servin stop\" sends"))
        .arg(value(long("stop-timeout"), "SECONDS").help("Seconds until \"servin stop\" kills [default: 10]"))
        .arg(switch(long("sig-proxy")).default_value("true").help("Pass signals on to the program [default: true]"))
        .arg(value(long("detach-keys"), "KEYS").help("Keys that detach the terminal [default: ctrl-p,ctrl-q]"))
        .arg(switch(long("timing")).help("Print when each step of the start was reached"))
        .arg(switch(long("no-warm")).help("Boot the guest kernel, and neither use nor leave a template"))
        .arg(value(long("kernel"), "FILE").help("Guest kernel instead of the installed one"))
        .arg(value(long("rootfs"), "DIR").help("Directory of the host as root file system instead of an image"))
        .arg(
            Arg::new("words")
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .value_name("IMAGE")
                .value_parser(value_parser!(OsString))
                .help("The image, the program and its arguments"),
        );
    unbuilt::run_flags(command)
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Run> {
    unbuilt::refuse_run_flags(matches)?;
    let text = |name| {
        text(matches, name)
            .map_err(|what| Error::Usage { what: format!("--{name}: {what}"), verb: "run".into() })
    };
    let one = |name: &str| matches.get_one::<OsString>(name).cloned();
    Ok(Run {
        interactive: is_on(matches, "interactive"),
        tty: is_on(matches, "tty"),
        detach: is_on(matches, "detach"),
        rm: is_on(matches, "rm"),
        read_only: is_on(matches, "read-only"),
        timing: is_on(matches, "timing"),
        no_warm: is_on(matches, "no-warm"),
        sig_proxy: is_on(matches, "sig-proxy"),
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
        tmpfs: all(matches, "tmpfs"),
        label: all(matches, "label"),
        words: all(matches, "words"),
    })
}
