//! Templates: machines that were saved when the guest's agent was ready and nothing of a container was in them. A run
//! that finds one for its machine clones it instead of booting a kernel.
//!
//! The first cold start of a machine leaves the template; the machine is paused for it for as long as writing what the
//! guest has touched takes, which was measured to be less than a second machine in the background would cost
//! everybody else.
//!
//! ```text
//! templates/.lock         held while one is made or removed
//! templates/KEY/          state, memory, early (servin-vmm's snapshot), about.json, and `disk`, what its disk for
//!                         changes held when the machine was saved, if it was mounted
//! templates/KEY.new/      one that is being made; without a holder of the lock it is left-over
//! ```
//! A template is only ever a shortcut: whatever is wrong with it, it is thrown away and the machine boots.

mod draft;
mod key;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, utimensat};
use serde::{Deserialize, Serialize};
use servin_vmm::Snapshot;

use crate::store::Store;
use crate::{Error, Result, chain};

pub(crate) use draft::Draft;
pub(crate) use key::Key;

/// Most bytes on disk that all templates of a data root take; those that were used longest ago go first.
pub const LIMIT: u64 = 2 << 30;
/// What it was made of.
const ABOUT: &str = "about.json";
/// Its disk for changes.
const DISK: &str = "disk";
/// Ending of a directory that is not whole yet.
const NEW: &str = ".new";

/// What a template is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The image as it was named.
    pub image: String,
    /// Memory of the machine in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// When it was made: nanoseconds since 1970.
    pub created_ns: i64,
}

/// A template in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its key: 64 hexadecimal digits.
    pub key: String,
    /// What it is.
    pub about: About,
    /// Bytes on disk.
    pub size: u64,
    /// When it was used last: nanoseconds since 1970.
    pub used_ns: i64,
}

/// The templates of a data root.
#[derive(Debug, Clone)]
pub struct Templates {
    dir: PathBuf,
}

impl Templates {
    /// The templates of this store.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self::at(store.root())
    }

    fn at(root: &Path) -> Self {
        Templates { dir: root.join("templates") }
    }

    /// Opens the template of a machine, if there is a whole one.
    pub(crate) fn open(&self, key: &Key) -> Option<Snapshot> {
        let dir = self.path(key);
        match Snapshot::open(&dir) {
            Ok(snapshot) => {
                // The time of the last use, by which old ones go.
                let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
                let times = Timestamps { last_access: now, last_modification: now };
                let _ = utimensat(CWD, &dir, &times, AtFlags::empty());
                Some(snapshot)
            }
            Err(error) if dir.exists() => {
                log::info!("the template {} cannot be used: {}", key.as_str(), chain(&error));
                self.discard(key);
                None
            }
            Err(_) => {
                log::info!("there is no template {}", key.as_str());
                None
            }
        }
    }

    /// Opens the disk that the memory of a template fits.
    pub(crate) fn disk(&self, key: &Key) -> Result<File> {
        let path = self.path(key).join(DISK);
        File::open(&path).map_err(|source| Error::io("open", &path, source))
    }

    /// Throws a template away. A machine that runs from it keeps its open files.
    pub(crate) fn discard(&self, key: &Key) {
        if let Err(error) = remove(&self.path(key)) {
            log::info!("{}", chain(&error));
        }
    }

    /// Begins to make the template of a machine; `None` while somebody else makes one, or if it is there.
    pub(crate) fn draft(&self, key: &Key) -> Result<Option<Draft>> {
        make(&self.dir)?;
        let Some(lock) = self.lock(FlockOperation::NonBlockingLockExclusive)? else { return Ok(None) };
        if self.path(key).exists() {
            return Ok(None);
        }
        self.sweep()?;
        Draft::begin(self.clone(), key, lock).map(Some)
    }

    /// Every whole template, the one used last first.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Template>> {
        let mut found = Vec::new();
        for name in self.names()? {
            if name.ends_with(NEW) {
                continue;
            }
            let dir = self.dir.join(&name);
            let about = fs::read(dir.join(ABOUT)).ok().and_then(|json| serde_json::from_slice(&json).ok());
            // One that somebody removes now is not there any more.
            if let (Some(about), Ok(meta)) = (about, fs::metadata(&dir)) {
                let used_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
                found.push(Template { key: name, about, size: disk_size(&dir), used_ns });
            }
        }
        found.sort_by_key(|template| std::cmp::Reverse(template.used_ns));
        Ok(found)
    }

    /// Removes templates, those used longest ago first, until they take at most `keep` bytes, and what was left of
    /// unfinished ones. Gives what was removed.
    ///
    /// # Errors
    /// If a directory cannot be removed.
    pub fn prune(&self, keep: u64) -> Result<Vec<Template>> {
        if !self.dir.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        self.sweep()?;
        self.shrink(keep)
    }

    /// Removes templates that nobody used since then (nanoseconds since 1970). Gives what was removed.
    ///
    /// # Errors
    /// If a directory cannot be removed.
    pub fn prune_unused(&self, since_ns: i64) -> Result<Vec<Template>> {
        if !self.dir.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let old: Vec<_> = self.list()?.into_iter().filter(|template| template.used_ns < since_ns).collect();
        for template in &old {
            remove(&self.dir.join(&template.key))?;
        }
        Ok(old)
    }

    /// The lock is held.
    fn shrink(&self, keep: u64) -> Result<Vec<Template>> {
        let mut total = 0_u64;
        let mut gone = Vec::new();
        for template in self.list()? {
            total = total.saturating_add(template.size);
            if total > keep {
                remove(&self.dir.join(&template.key))?;
                gone.push(template);
            }
        }
        Ok(gone)
    }

    /// Removes what makers left that were killed. The lock is held.
    fn sweep(&self) -> Result<()> {
        for name in self.names()?.into_iter().filter(|name| name.ends_with(NEW)) {
            remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::io("read", &self.dir, source)),
        };
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect())
    }

    fn lock(&self, how: FlockOperation) -> Result<Option<File>> {
        let path = self.dir.join(".lock");
        let mut options = File::options();
        let lock = options.write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|source| Error::io("open", &path, source))?;
        loop {
            match flock(&lock, how) {
                Ok(()) => return Ok(Some(lock)),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", &path, error.into())),
            }
        }
    }

    /// Where the template with this key is, if it is.
    pub(crate) fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.as_str())
    }
}

fn make(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", dir, source)),
        _ => Ok(()),
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, source)),
        _ => Ok(()),
    }
}

/// Bytes that the files of a directory take on disk: holes take none.
fn disk_size(dir: &Path) -> u64 {
    let sizes = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
    sizes.map(|meta| meta.blocks().saturating_mul(512)).sum()
}
