//! Waiting for something to be written in a directory.

#[cfg(target_os = "linux")]
pub(crate) use linux::Watch;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Watch;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    /// A directory that is watched.
    #[derive(Debug)]
    pub(crate) struct Watch(OwnedFd);

    impl Watch {
        /// Watches the files of a directory from now on.
        pub(crate) fn new(dir: &Path) -> io::Result<Self> {
            let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE_SELF;
            inotify::add_watch(&watch, dir, flags)?;
            Ok(Watch(watch))
        }

        /// Waits until something was written since the last time, or for as long as this.
        pub(crate) fn wait(&self, most: Duration) {
            let most = Timespec::try_from(most).ok();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, most.as_ref());
            let mut events = [0; 4096];
            while rustix::io::read(&self.0, &mut events).is_ok_and(|count| count > 0) {}
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    /// How often is looked. kqueue tells of a directory's names, and of no writing to its files.
    const TURN: Duration = Duration::from_millis(100);

    /// A directory that is looked at again and again.
    #[derive(Debug)]
    pub(crate) struct Watch;

    impl Watch {
        /// Watches the files of a directory from now on.
        pub(crate) fn new(dir: &Path) -> io::Result<Self> {
            std::fs::read_dir(dir).map(|_| Watch)
        }

        /// Waits until something may have been written, or for as long as this.
        pub(crate) fn wait(&self, most: Duration) {
            std::thread::sleep(most.min(TURN));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Watch;

    #[test]
    fn what_was_written_is_heard_of_and_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::new(dir.path()).unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, "a").unwrap();
        let (began, most) = (Instant::now(), Duration::from_secs(600));
        watch.wait(most);
        std::fs::write(&file, "ab").unwrap();
        watch.wait(most);
        assert!(began.elapsed() < most);
        assert!(Watch::new(&dir.path().join("not")).is_err());
    }
}
