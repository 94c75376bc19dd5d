//! A snapshot on its way.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::lineage::{self, Held};
use super::{ABOUT, About, Place, Snapshots, sums};
use crate::store::{Scratch, Store};
use crate::{Error, Result};

/// A snapshot that is being made; dropped without [`Draft::finish`] nothing is left of it.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Locked, so that the next process removes it if this one is killed.
    _scratch: Scratch,
    path: PathBuf,
    target: PathBuf,
    /// What it builds on.
    parent: Option<Held>,
    follow: bool,
}

impl Draft {
    /// With numbers of snapshots, it builds on the first of them that is there.
    pub(super) fn begin(store: &Store, target: PathBuf, known: Option<&[String]>) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            return Err(Error::SnapshotExists { path: target });
        }
        let scratch = store.scratch()?;
        let path = scratch.path().join("snapshot");
        make(&path)?;
        let parent = known.and_then(|known| lineage::hold(Snapshots::new(store), known));
        Ok(Draft { _scratch: scratch, path, target, parent, follow: known.is_some() })
    }

    /// Where and how the machine is to be saved.
    pub(crate) fn place(&self) -> Place {
        Place {
            dir: self.path.clone(),
            below: self.parent.as_ref().map(|held| held.chain.clone()).unwrap_or_default(),
            follow: self.follow,
        }
    }

    /// It is whole: gives it its name. Nothing is forced to the disk; one that a power failure damages is refused by its
    /// checksums.
    pub(crate) fn finish(self, about: &About) -> Result<()> {
        let path = self.path.join(ABOUT);
        let about = About {
            number: servin_vmm::Snapshot::id_of(&self.path).ok().map(|id| id.to_string()),
            parent: self.parent.as_ref().map(|held| held.parent.clone()),
            ..about.clone()
        };
        let json = serde_json::to_vec_pretty(&about)
            .map_err(|source| Error::Json { what: "a snapshot's description".into(), source })?;
        fs::write(&path, json).map_err(|source| Error::io("write", &path, source))?;
        sums::write(&self.path)?;
        match name(&self.path, &self.target) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::CrossesDevices => self.carry(),
            done => done,
        }
    }

    /// Copies it to another file system. What is left there by one who is killed on the way is removed by the next.
    fn carry(&self) -> Result<()> {
        let mut new = self.target.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        remove(&new)?;
        let done = make(&new).and_then(|()| {
            let fail = |source| Error::io("write", &new, source);
            for entry in fs::read_dir(&self.path).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                let from = File::open(entry.path()).map_err(fail)?;
                let to = File::create_new(new.join(entry.file_name())).map_err(fail)?;
                crate::container::disk::copy(&from, &to).map_err(fail)?;
            }
            name(&new, &self.target)
        });
        if done.is_err() {
            remove(&new)?;
        }
        done
    }
}

fn make(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(|source| Error::io("make", path, source))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, source)),
        _ => Ok(()),
    }
}

/// Gives a directory its name, unless there is something of that name.
fn name(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(Error::SnapshotExists { path: to.to_path_buf() }),
        Err(error) => Err(Error::io("make", to, error.into())),
    }
}
