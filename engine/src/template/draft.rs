//! A template on its way.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{ABOUT, About, DISK, Key, LIMIT, NEW, Templates, make, remove};
use crate::{Error, Result, chain};

/// A template that is being made; dropped without [`Draft::finish`] nothing is left of it.
#[derive(Debug)]
pub(crate) struct Draft {
    templates: Templates,
    path: PathBuf,
    target: PathBuf,
    _lock: File,
}

impl Draft {
    pub(super) fn begin(templates: Templates, key: &Key, lock: File) -> Result<Self> {
        let target = templates.path(key);
        let path = target.with_extension(NEW.trim_start_matches('.'));
        make(&path)?;
        Ok(Draft { templates, path, target, _lock: lock })
    }

    /// Where the machine is to be saved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps what the machine's disk for changes holds while the machine stands still.
    pub(crate) fn keep_disk(&self, disk: &File) -> Result<()> {
        let path = self.path.join(DISK);
        let made = File::create_new(&path).and_then(|file| crate::container::disk::copy(disk, &file));
        made.map_err(|source| Error::io("write", &path, source))
    }

    /// It is whole: gives it its name. Nothing is forced to the disk; one that a power failure damages is refused by
    /// its checksums or the length of its memory.
    pub(crate) fn finish(self, about: &About) -> Result<()> {
        let path = self.path.join(ABOUT);
        let json = serde_json::to_vec(about)
            .map_err(|source| Error::Json { what: "a template's description".into(), source })?;
        fs::write(&path, json).map_err(|source| Error::io("write", &path, source))?;
        fs::rename(&self.path, &self.target).map_err(|source| Error::io("name", &self.path, source))?;
        self.templates.shrink(LIMIT)?;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone when it was finished.
        if let Err(error) = remove(&self.path) {
            log::info!("{}", chain(&error));
        }
    }
}
