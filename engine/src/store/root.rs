//! The data root's directories.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where the data root is without `--data-root`: `$SERVIN_DATA_ROOT`; for root `/var/lib/servin`; else
/// `$XDG_DATA_HOME/servin` or `~/.local/share/servin`.
pub fn default_root() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    choose(variable, rustix::process::geteuid().is_root())
}

pub(super) fn choose(variable: impl Fn(&'static str) -> Option<PathBuf>, is_root: bool) -> Result<PathBuf> {
    if let Some(path) = variable("SERVIN_DATA_ROOT") {
        return Ok(path);
    }
    if is_root {
        return Ok(PathBuf::from("/var/lib/servin"));
    }
    // The base directory specification ignores relative paths.
    if let Some(path) = variable("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
        return Ok(path.join("servin"));
    }
    variable("HOME").map(|home| home.join(".local/share/servin")).ok_or(Error::NoDataRoot)
}

/// Makes the root and its directories where they are missing, and returns its absolute path.
pub(super) fn prepare(root: &Path) -> Result<PathBuf> {
    let root = std::path::absolute(root).map_err(|source| Error::io("find", root, source))?;
    let bad = |why: String| Error::BadDataRoot { path: root.clone(), why };
    match fs::metadata(&root) {
        Ok(meta) if !meta.is_dir() => return Err(bad("it is not a directory".into())),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            return Err(bad(format!("it belongs to user {}", meta.uid())));
        }
        Ok(_) if root.join("tmp").is_dir() => return Ok(root),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = root.parent() {
                fs::create_dir_all(parent).map_err(|source| Error::io("make", parent, source))?;
            }
            make(&root)?;
        }
        Err(source) => return Err(Error::io("open", &root, source)),
    }
    // "tmp" is last: where it is, everything is.
    for name in ["blobs", "blobs/sha256", "roots", "containers", "tmp"] {
        make(&root.join(name))?;
    }
    Ok(root)
}

fn make(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", path, error)),
        _ => Ok(()),
    }
}

/// Removes the files of a directory whose names are not to be kept; returns the freed bytes.
pub(super) fn sweep(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<u64> {
    let fail = |source| Error::io("sweep", dir, source);
    let mut freed = 0;
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_str().is_some_and(&keep) {
            continue;
        }
        let size = entry.metadata().map_or(0, |meta| meta.blocks() * 512);
        fs::remove_file(entry.path()).map_err(|source| Error::io("remove", entry.path(), source))?;
        freed += size;
    }
    Ok(freed)
}
