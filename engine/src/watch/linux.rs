//! Linux tells of a directory's files with it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A directory whose log is watched.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches from now on.
    ///
    /// # Errors
    /// There is no such directory, or no watch is left.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, dir, flags)?;
        Ok(Watch(watch))
    }

    /// Waits until something may have been written since the last time, or for as long as this.
    pub fn wait(&mut self, most: Duration) {
        let most = Timespec::try_from(most).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, most.as_ref());
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok_and(|count| count > 0) {}
    }
}
