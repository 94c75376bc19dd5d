//! `servin bench`, as it was typed.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, all, is_on, switch, text, value};
use crate::error::{Error, Result};

/// `servin bench boot` with its arguments. Values are not checked yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Bench {
    pub(crate) runs: Option<String>,
    pub(crate) start: Option<String>,
    pub(crate) concurrency: Option<String>,
    pub(crate) machines: Option<String>,
    pub(crate) budget: Option<String>,
    pub(crate) percentile: Option<String>,
    pub(crate) json: bool,
    pub(crate) svg: Option<OsString>,
    /// Other monitors to measure beside ours.
    pub(crate) against: Option<String>,
    /// The image; the base image without.
    pub(crate) image: Option<String>,
    /// Flags of `run`.
    pub(crate) flags: Vec<OsString>,
}

/// Adds the group.
pub(super) fn add(command: Command) -> Command {
    let long = |name: &'static str| Arg::new(name).long(name);
    let boot = Command::new("boot")
        .about("Measure how fast containers start here")
        .override_usage("servin bench boot [FLAGS] [IMAGE] [-- RUN-FLAGS...]")
        .arg(value(long("runs").short('n'), "N").help("Runs of each series [default: 20]"))
        .arg(value(long("start"), "HOW").help("warm, cold, both or none [default: both]"))
        .arg(value(long("concurrency"), "N,N,...").help("Runs at a time, a series for each [default: 1]"))
        .arg(value(long("machines"), "N").help("Containers to read the memory of, 0 for none [default: 4]"))
        .arg(value(long("budget"), "TIME").help("Fail when a first byte takes longer, as 25ms"))
        .arg(
            value(long("percentile"), "P")
                .help("What the budget is held against: 50, 95 or 99 [default: 95]"),
        )
        .arg(switch(long("json")).help("Print JSON instead of tables"))
        .arg(value(long("svg"), "FILE").help("Draw distribution and phases into a file"))
        .arg(
            value(long("against"), "MONITORS").help(
                "Boot our kernel on other monitors too: all on PATH, or firecracker,cloud-hypervisor,qemu",
            ),
        )
        .arg(
            Arg::new("image")
                .value_name("IMAGE")
                .help("The image, which needs echo and sleep [default: servin/base]"),
        )
        .arg(
            Arg::new("flags")
                .num_args(0..)
                .last(true)
                .value_name("RUN-FLAGS")
                .value_parser(value_parser!(OsString))
                .help("Flags of run, as -m 256m"),
        );
    let place = |name: &'static str| Arg::new(name).required(true).value_parser(value_parser!(OsString));
    // What `boot --against` runs as our side.
    let monitor = Command::new("monitor")
        .hide(true)
        .args([place("kernel"), place("initramfs")])
        .arg(Arg::new("words").required(true));
    let bench = Command::new("bench").about("Measure servin on this host").subcommand_required(true);
    command.subcommand(bench.subcommand(boot).subcommand(monitor))
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Result<Verb> {
    let matches = match matches.subcommand() {
        Some(("boot", matches)) => matches,
        Some(("monitor", matches)) => {
            let file = |name: &str| matches.get_one::<OsString>(name).cloned().unwrap_or_default();
            let words = matches.get_one::<String>("words").cloned().unwrap_or_default();
            return Ok(Verb::BareMonitor([file("kernel"), file("initramfs")], words));
        }
        _ => return Err(Error::NotBuilt { what: "bench".into(), code: 1 }),
    };
    let text = |name: &str| {
        text(matches, name)
            .map_err(|what| Error::Usage { what: format!("--{name}: {what}"), verb: "bench".into() })
    };
    Ok(Verb::Bench(Box::new(Bench {
        runs: text("runs")?,
        start: text("start")?,
        concurrency: text("concurrency")?,
        machines: text("machines")?,
        budget: text("budget")?,
        percentile: text("percentile")?,
        json: is_on(matches, "json"),
        against: text("against")?,
        svg: matches.get_one::<OsString>("svg").cloned(),
        image: matches.get_one::<String>("image").cloned(),
        flags: all(matches, "flags"),
    })))
}
