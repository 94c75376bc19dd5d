//! macOS tells of files that are open, by kqueue.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::files::Files;
use crate::os::Vnodes;

/// A directory whose log is watched.
#[derive(Debug)]
pub struct Watch(Files<Vnodes>);

impl Watch {
    /// Watches from now on.
    ///
    /// # Errors
    /// There is no such directory, or no descriptor is left.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Files::new(dir).map(Self)
    }

    /// Waits until something may have been written since the last time, or for as long as this.
    pub fn wait(&mut self, most: Duration) {
        self.0.wait(most);
    }
}
