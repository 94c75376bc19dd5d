//! What the verbs about files share: a file server in the container, whether it runs or not.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use servin_engine::files::Client;
use servin_engine::monitor::{Launch, What};
use servin_engine::store::{Record, State};

use super::containers::open;
use crate::args::Global;
use crate::error::{Error, Result};

/// Speaks with a file server in the container, for which a machine is started if it does not run. Call it while the process
/// has one thread, and no store open.
pub(crate) fn server(global: &Global, began: Instant, name: &str) -> Result<(Record, Client)> {
    let record = {
        let store = open(global)?;
        let record = store.containers().find(name)?;
        if matches!(record.state, State::Running | State::Paused | State::Restarting) {
            let client = Client::beside(&store, &record)?;
            return Ok((record, client));
        }
        record
    };
    let launch = Launch {
        data_root: Some(super::data_root(global)?),
        size: None,
        began,
        keep_stderr: global.log_level >= log::LevelFilter::Debug,
        warm: true,
        trace: None,
        what: What::Files(record.id.clone()),
    };
    Ok((record, Client::over(launch.fork()?)))
}

/// Writes an archive to standard output, or to a file that appears whole or not at all.
pub(crate) fn to_output(
    verb: &str,
    output: Option<&OsStr>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = output.filter(|output| *output != "-").map(Path::new) else {
        if io::stdout().is_terminal() {
            let what = "standard output is a terminal: name a file, or redirect it".into();
            return Err(Error::Usage { what, verb: verb.into() });
        }
        return write(&mut BufWriter::with_capacity(1 << 18, io::stdout().lock()));
    };
    let fail = |source| Error::Host { what: format!("write {}", path.display()), source, code: 1 };
    let special = fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    let part = if special { path.to_path_buf() } else { part_of(path) };
    let open = if special { File::options().write(true).open(&part) } else { File::create_new(&part) };
    let mut out = BufWriter::with_capacity(1 << 18, open.map_err(fail)?);
    let written = write(&mut out).and_then(|()| {
        let done = out.flush().and_then(|()| if special { Ok(()) } else { fs::rename(&part, path) });
        done.map_err(fail)
    });
    if written.is_err() && !special {
        let _ = fs::remove_file(&part);
    }
    written
}

/// A name beside the file's.
fn part_of(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}
