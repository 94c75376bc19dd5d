//! Names of several networks, for the gateways of a guest that is on all of them.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::nat::Names;
use super::members::{Directory, MemberNames, Members};

/// The directories of a guest's networks, whose members any of its gateways can name. They come and go while it runs; a
/// clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Directories(Arc<Mutex<Vec<(PathBuf, MemberNames)>>>);

impl Directories {
    /// No network yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a network's directory, as the last to be asked. One that is there already stays.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn add(&self, directory: &Path) -> io::Result<()> {
        let members = Members::new(Directory::open(directory)?);
        let mut list = self.list();
        if !list.iter().any(|(known, _)| known == directory) {
            list.push((directory.to_path_buf(), MemberNames(Arc::new(members))));
        }
        Ok(())
    }

    /// Takes a network's directory away.
    pub fn remove(&self, directory: &Path) {
        self.list().retain(|(known, _)| known != directory);
    }

    fn list(&self) -> MutexGuard<'_, Vec<(PathBuf, MemberNames)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names for Directories {
    /// The addresses on all networks, those of the first before others.
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        let found: Vec<IpAddr> =
            self.list().iter().filter_map(|(_, names)| names.lookup(name)).flatten().collect();
        Some(found).filter(|found| !found.is_empty())
    }
}
