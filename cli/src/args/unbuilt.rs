//! What docker's users may type and this version does not do yet. All of it is recognised, so that it can be refused
//! by name before anything is changed.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::{Error, Result};

/// A flag that takes no value.
const SWITCH: bool = false;
/// A flag that takes one.
const VALUE: bool = true;

/// Flags of `run` by their long name, with their letter, and whether they take a value.
const RUN_FLAGS: &[(&str, Option<char>, bool)] = &[
    ("annotation", None, VALUE),
    ("attach", Some('a'), VALUE),
    ("blkio-weight", None, VALUE),
    ("blkio-weight-device", None, VALUE),
    ("cgroup-parent", None, VALUE),
    ("cgroupns", None, VALUE),
    ("cpu-rt-period", None, VALUE),
    ("cpu-rt-runtime", None, VALUE),
    ("cpuset-cpus", None, VALUE),
    ("cpuset-mems", None, VALUE),
    ("device", None, VALUE),
    ("device-cgroup-rule", None, VALUE),
    ("device-read-bps", None, VALUE),
    ("device-read-iops", None, VALUE),
    ("device-write-bps", None, VALUE),
    ("device-write-iops", None, VALUE),
    ("disable-content-trust", None, SWITCH),
    ("gpus", None, VALUE),
    ("ip6", None, VALUE),
    ("ipc", None, VALUE),
    ("isolation", None, VALUE),
    ("kernel-memory", None, VALUE),
    ("link", None, VALUE),
    ("link-local-ip", None, VALUE),
    ("memory-swappiness", None, VALUE),
    ("oom-kill-disable", None, SWITCH),
    ("pid", None, VALUE),
    ("runtime", None, VALUE),
    ("snapshot", None, VALUE),
    ("userns", None, VALUE),
    ("uts", None, VALUE),
    ("volume-driver", None, VALUE),
];

/// Values of them that ask for what is so anyway: each container has a kernel of its own.
const NO_CHANGE: &[(&str, &str)] = &[("ipc", "private"), ("cgroupns", "private"), ("isolation", "default")];

/// Verbs.
const VERBS: &[&str] = &["search"];

/// Adds the flags of `run`, hidden.
pub(super) fn run_flags(mut command: Command) -> Command {
    for &(long, short, value) in RUN_FLAGS {
        let mut arg = Arg::new(long).long(long).hide(true);
        arg = if value {
            arg.action(ArgAction::Append)
                .allow_hyphen_values(true)
                .value_parser(clap::value_parser!(std::ffi::OsString))
        } else {
            super::switch(arg)
        };
        if let Some(short) = short {
            arg = arg.short(short);
        }
        command = command.arg(arg);
    }
    command
}

/// Adds the verbs, hidden; whatever follows them is taken as it is.
pub(super) fn verbs(mut command: Command) -> Command {
    for &name in VERBS {
        let rest = Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
        command = command.subcommand(Command::new(name).hide(true).disable_help_flag(true).arg(rest));
    }
    command
}

/// Refuses the first flag of `run` that was typed and is not built.
pub(super) fn refuse_run_flags(matches: &ArgMatches) -> Result<()> {
    let typed = |name: &str| {
        // Not there at all where `run` was read by itself.
        matches.try_contains_id(name).is_ok_and(|there| there)
            && matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
            && !changes_nothing(matches, name)
    };
    match RUN_FLAGS.iter().find(|(name, ..)| typed(name)) {
        Some((name, ..)) => Err(Error::NotBuilt { what: format!("run --{name}"), code: 125 }),
        None => Ok(()),
    }
}

fn changes_nothing(matches: &ArgMatches, name: &str) -> bool {
    let known = |value: &std::ffi::OsString| {
        NO_CHANGE.iter().any(|(flag, harmless)| *flag == name && *value == **harmless)
    };
    NO_CHANGE.iter().any(|(flag, _)| *flag == name) && super::all(matches, name).iter().all(known)
}

/// Refuses a verb that is not built.
pub(super) fn refuse_verb(name: &str) -> Result<()> {
    match VERBS.contains(&name) {
        true => Err(Error::NotBuilt { what: name.to_owned(), code: 1 }),
        false => Ok(()),
    }
}
