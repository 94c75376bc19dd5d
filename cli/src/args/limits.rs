//! The flags of `run` that say what a container may use and do, how it is checked, and what is kept of its output.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command};

use super::{all, is_on, switch, value, values};

/// The typed flags. Values are not checked yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Flags of one value as they are documented (`--pids-limit`), in the order of [`VALUES`].
    pub(crate) one: Vec<(&'static str, OsString)>,
    /// Flags that may be repeated, in the order of [`LISTS`].
    pub(crate) many: Vec<(&'static str, OsString)>,
    pub(crate) privileged: bool,
    pub(crate) init: bool,
    pub(crate) no_healthcheck: bool,
}

/// Flags of one value: name, letter, what it is called, help.
const VALUES: &[(&str, Option<char>, &str, &str)] = &[
    ("--pids-limit", None, "N", "Most processes and threads; -1 for no limit"),
    ("--shm-size", None, "SIZE", "Size of /dev/shm [default: 64m]"),
    ("--memory-swap", None, "SIZE", "Memory and swap together; the machine has no swap"),
    ("--memory-reservation", None, "SIZE", "Memory that is taken from the container last"),
    ("--cpu-shares", Some('c'), "N", "Weight among other containers [default: 1024]"),
    ("--cpu-quota", None, "MICROSECONDS", "Processor time in each period, as --cpus says it in one number"),
    ("--cpu-period", None, "MICROSECONDS", "Period of --cpu-quota [default: 100000]"),
    ("--oom-score-adj", None, "N", "Readiness to be killed for want of memory, -1000 to 1000"),
    ("--domainname", None, "NAME", "Domain name of the container"),
    (
        "--log-driver",
        None,
        "DRIVER",
        "json-file or local, which are the same here, or none [default: json-file]",
    ),
    ("--health-cmd", None, "COMMAND", "Check the container with this line for its shell"),
    ("--health-interval", None, "TIME", "Time between two checks [default: 30s]"),
    ("--health-timeout", None, "TIME", "Longest that a check may take [default: 30s]"),
    ("--health-retries", None, "N", "Failures in a row that make it unhealthy [default: 3]"),
    ("--health-start-period", None, "TIME", "Time to start in, whose failures do not count [default: 0s]"),
    ("--health-start-interval", None, "TIME", "Time between two checks while it starts [default: 5s]"),
];

/// Flags that may be repeated.
const LISTS: &[(&str, &str, &str)] = &[
    ("--ulimit", "NAME=SOFT[:HARD]", "Limit of each process, as nofile=1024"),
    ("--cap-add", "NAME", "Add a capability, or ALL"),
    ("--cap-drop", "NAME", "Drop a capability, or ALL"),
    (
        "--security-opt",
        "OPTION",
        "no-new-privileges; seccomp=unconfined and apparmor=unconfined say what is so anyway",
    ),
    ("--sysctl", "NAME=VALUE", "Setting of the container's kernel"),
    ("--group-add", "GROUP", "Further group of the user"),
    ("--add-host", "NAME:ADDRESS", "Line of /etc/hosts"),
    ("--label-file", "FILE", "Read labels from a file"),
    ("--log-opt", "NAME=VALUE", "max-size and max-file of the log"),
];

/// Adds the flags.
pub(super) fn add(mut command: Command) -> Command {
    for &(flag, short, name, help) in VALUES {
        let long = long(flag);
        let mut arg = value(Arg::new(long).long(long), name).help(help);
        if let Some(short) = short {
            arg = arg.short(short);
        }
        command = command.arg(arg);
    }
    for &(flag, name, help) in LISTS {
        let long = long(flag);
        command = command.arg(values(Arg::new(long).long(long), name).help(help));
    }
    let on = |name: &'static str| switch(Arg::new(name).long(name));
    command
        .arg(on("privileged").help("Every capability, and a writable /sys and /proc"))
        .arg(on("init").help("Run the program under an init that reaps processes and passes signals on"))
        .arg(on("no-healthcheck").help("Do not check the container, whatever the image says"))
}

fn long(flag: &'static str) -> &'static str {
    flag.trim_start_matches('-')
}

/// What was typed.
pub(super) fn read(matches: &ArgMatches) -> Limits {
    let one = |name: &'static str| {
        Some((name, matches.try_get_one::<OsString>(long(name)).ok().flatten()?.clone()))
    };
    let many = |name: &'static str| all(matches, long(name)).into_iter().map(move |value| (name, value));
    Limits {
        one: VALUES.iter().filter_map(|(name, ..)| one(name)).collect(),
        many: LISTS.iter().flat_map(|(name, ..)| many(name)).collect(),
        privileged: is_on(matches, "privileged"),
        init: is_on(matches, "init"),
        no_healthcheck: is_on(matches, "no-healthcheck"),
    }
}
