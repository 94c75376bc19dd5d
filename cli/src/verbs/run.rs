//! `servin run`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::spec;

/// Runs a program in a new container and gives its exit code.
pub(crate) fn run(_global: &Global, typed: args::Run) -> Result<u8> {
    let spec: spec::Run = spec::run(typed, &Here)?;
    log::debug!("{spec:?}");
    Err(Error::NotBuilt { what: "run".into(), code: 125 })
}

/// This host.
struct Here;

impl spec::Host for Here {
    fn cwd(&self) -> io::Result<PathBuf> {
        std::env::current_dir()
    }
    fn variable(&self, name: &OsStr) -> Option<OsString> {
        std::env::var_os(name)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
    fn input_is_terminal(&self) -> bool {
        io::stdin().is_terminal()
    }
}
