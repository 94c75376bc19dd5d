//! Unfinished work: a directory in `tmp/` whose `flock` says that its owner lives. The kernel drops the lock when the
//! owner dies, however it dies, and the next process to open the store removes the directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A locked directory under `tmp/`. Dropping it removes it with everything inside.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(super) fn new(root: &Path) -> Result<Self> {
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = root.join("tmp").join(format!("{}-{number}", std::process::id()));
            let fail = |source| Error::io("make", &path, source);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(fail(error)),
            }
            // Between mkdir and flock a cleaner may have taken the directory for an abandoned one: then try again.
            let Ok(lock) = File::open(&path) else { continue };
            flock(&lock, FlockOperation::LockExclusive).map_err(|errno| fail(errno.into()))?;
            let mine = lock.metadata().map_err(fail)?.ino();
            if fs::metadata(&path).is_ok_and(|meta| meta.ino() == mine) {
                return Ok(Scratch { path, _lock: lock });
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes the scratch directories of dead processes.
pub(super) fn clean(root: &Path) -> Result<()> {
    let tmp = root.join("tmp");
    let fail = |source| Error::io("clean", &tmp, source);
    for entry in fs::read_dir(&tmp).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        // Whatever fails here fails because someone else is at it; the directory is seen again at the next opening.
        let Ok(lock) = File::open(&path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            log::debug!("removing the abandoned {}", path.display());
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
