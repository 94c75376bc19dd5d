//! Where the system tells of a directory's names alone, the file that is written to is watched beside it: `log`, which gets
//! another name when it is full, so that a new one takes its place.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often is looked when the system refuses to tell.
const TURN: Duration = Duration::from_millis(100);

/// What the system tells of files that are open.
pub(crate) trait Changes: Sized {
    /// Tells of no file yet.
    fn new() -> io::Result<Self>;

    /// Tells of writes to a file, of new, lost and other names of it or in it, from now on until it is closed.
    fn add(&self, file: &File) -> io::Result<()>;

    /// Waits until there was such a change since the last time, or for as long as this.
    fn wait(&self, most: Duration) -> io::Result<()>;
}

/// A directory whose log is watched.
#[derive(Debug)]
pub(super) struct Files<C> {
    changes: C,
    log: PathBuf,
    /// What is at `log`.
    watched: Option<File>,
    /// Open for as long as it is told of.
    _dir: File,
}

impl<C: Changes> Files<C> {
    /// Watches from now on.
    ///
    /// # Errors
    /// There is no such directory, or no descriptor is left.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let (changes, log) = (C::new()?, dir.join("log"));
        let dir = File::open(dir)?;
        changes.add(&dir)?;
        let mut files = Self { changes, log, watched: None, _dir: dir };
        files.turn()?;
        Ok(files)
    }

    /// Waits until something may have been written since the last time, or for as long as this.
    pub(super) fn wait(&mut self, most: Duration) {
        let done = match self.turn() {
            // It was written to before it was watched, or not: who waits looks.
            Ok(true) => Ok(()),
            Ok(false) => self.changes.wait(most),
            Err(error) => Err(error),
        };
        if done.is_err() {
            std::thread::sleep(most.min(TURN));
        }
    }

    /// Turns to the file that is the log now; whether it is another one than before.
    fn turn(&mut self) -> io::Result<bool> {
        let now = match std::fs::metadata(&self.log) {
            // Not yet, or no more: the directory tells when there is one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            now => now?,
        };
        if let Some(file) = &self.watched {
            // An open file's number is given to no other.
            let before = file.metadata()?;
            if (before.dev(), before.ino()) == (now.dev(), now.ino()) {
                return Ok(false);
            }
        }
        let file = match File::open(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        self.changes.add(&file)?;
        self.watched = Some(file);
        Ok(true)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write as _;
    use std::os::fd::{AsRawFd as _, OwnedFd};

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    use super::*;

    /// What macOS tells, by what Linux tells: of a directory its names alone.
    #[derive(Debug)]
    struct Told(OwnedFd);

    impl Told {
        /// Takes what was told; whether there was anything.
        fn take(&self) -> bool {
            let mut any = false;
            while rustix::io::read(&self.0, &mut [0; 4096]).is_ok_and(|count| count > 0) {
                any = true;
            }
            any
        }
    }

    impl Changes for Told {
        fn new() -> io::Result<Self> {
            Ok(Self(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?))
        }

        fn add(&self, file: &File) -> io::Result<()> {
            let of_itself = WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF;
            let of_it = if file.metadata()?.is_dir() {
                WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE
            } else {
                WatchFlags::MODIFY
            };
            inotify::add_watch(&self.0, format!("/proc/self/fd/{}", file.as_raw_fd()), of_itself | of_it)?;
            Ok(())
        }

        fn wait(&self, most: Duration) -> io::Result<()> {
            rustix::event::poll(
                &mut [PollFd::new(&self.0, PollFlags::IN)],
                Timespec::try_from(most).ok().as_ref(),
            )?;
            self.take();
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    /// A wait, which is to end before its time.
    fn expect(watch: &mut Files<Told>, what: &str) {
        let began = std::time::Instant::now();
        watch.wait(LONG);
        assert!(began.elapsed() < LONG, "{what}");
    }

    fn log(dir: &Path) -> File {
        File::options().create(true).append(true).open(dir.join("log")).unwrap()
    }

    #[test]
    fn every_write_is_told_of_also_to_the_file_that_takes_the_place_of_a_full_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Files::<Told>::new(dir.path()).unwrap();
        let mut file = log(dir.path());
        expect(&mut watch, "a new log");
        for round in 0..3 {
            // What making the file and turning to it told.
            watch.changes.take();
            for _ in 0..2 {
                file.write_all(b"a").unwrap();
                expect(&mut watch, "a write");
                assert!(!watch.changes.take(), "taken by the wait");
            }
            std::fs::rename(dir.path().join("log"), dir.path().join(format!("log.{round}"))).unwrap();
            file = log(dir.path());
            expect(&mut watch, "the log in its place");
        }
        assert_eq!(watch.watched.as_ref().unwrap().metadata().unwrap().ino(), file.metadata().unwrap().ino());
    }

    #[test]
    fn a_log_that_was_there_is_watched_from_the_start_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = File::create(dir.path().join("disk")).unwrap();
        let mut file = log(dir.path());
        let mut watch = Files::<Told>::new(dir.path()).unwrap();
        disk.write_all(b"much").unwrap();
        assert!(!watch.changes.take(), "a write to another file");
        file.write_all(b"a").unwrap();
        expect(&mut watch, "a write");
    }

    #[test]
    fn the_end_of_the_directory_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let _file = log(dir.path());
        let mut watch = Files::<Told>::new(dir.path()).unwrap();
        let path = dir.path().to_path_buf();
        drop(dir);
        expect(&mut watch, "a removed directory");
        assert!(Files::<Told>::new(&path).is_err());
    }
}
