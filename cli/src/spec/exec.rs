//! What `servin exec` means.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use servin_engine::container::Text;

use super::run::{checked_user, value, variables};
use super::{Host, keys, volume};
use crate::args;
use crate::error::{Error, Result};

/// A checked `servin exec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exec {
    /// Which container.
    pub(crate) container: String,
    /// Program and arguments.
    pub(crate) argv: Vec<Text>,
    /// Variables on top of the container's.
    pub(crate) env: Vec<Text>,
    /// Instead of the container's.
    pub(crate) cwd: Option<Text>,
    /// Instead of the container's.
    pub(crate) user: Option<String>,
    /// Give it input.
    pub(crate) stdin: bool,
    /// Give it a terminal.
    pub(crate) tty: bool,
    /// Leave after the start.
    pub(crate) detach: bool,
    /// With every capability.
    pub(crate) privileged: bool,
    /// Keys that detach.
    pub(crate) detach_keys: Vec<u8>,
}

/// Checks `servin exec`.
pub(crate) fn exec(typed: args::Exec, host: &dyn Host) -> Result<Exec> {
    let cwd = host.cwd().map_err(|source| Error::Host {
        what: "find the working directory".into(),
        source,
        code: 125,
    })?;
    let mut words = typed.words.into_iter();
    let container = words.next().unwrap_or_default();
    let container =
        container.into_string().map_err(|word| value("CONTAINER", &word)("it is not valid UTF-8".into()))?;
    if typed.tty && typed.interactive && !typed.detach && !host.input_is_terminal() {
        return Err(Error::Usage {
            what: "-t with -i needs a terminal as standard input, and there is none: leave -t out".into(),
            verb: "exec".into(),
        });
    }
    let workdir = match typed.workdir {
        Some(dir) if !dir.as_bytes().starts_with(b"/") => {
            return Err(value("-w, --workdir", &dir)("it must begin with /".into()));
        }
        Some(dir) => Some(Text::from(volume::clean(Path::new(&dir)))),
        None => None,
    };
    Ok(Exec {
        container,
        argv: words.map(Text::from).collect(),
        env: variables(&typed.env_file, &typed.env, &cwd, host)?,
        cwd: workdir,
        user: typed.user.map(|user| checked_user(&user)).transpose()?.flatten(),
        stdin: typed.interactive,
        tty: typed.tty,
        detach: typed.detach,
        privileged: typed.privileged,
        detach_keys: detach_keys(typed.detach_keys.as_deref(), 125)?,
    })
}

/// The keys that detach, the default ones without.
pub(crate) fn detach_keys(typed: Option<&str>, code: u8) -> Result<Vec<u8>> {
    let Some(text) = typed else { return Ok(keys::DEFAULT.to_vec()) };
    keys::sequence(text).map_err(|why| Error::Value {
        flag: "--detach-keys",
        value: text.to_owned(),
        why,
        code,
    })
}
