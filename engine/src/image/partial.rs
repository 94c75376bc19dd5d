//! Blobs on their way in: `partial/HEX` in the data root. Who writes one has its `flock`; others wait for that and use what was
//! brought. A pull that was cut leaves its files here, and the next one goes on with them.
//!
//! A file that was found whole is only ever linked to from elsewhere, never written again; one that is not whole has no other
//! link. The directory has a bound: the oldest files that nobody works on make room.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::Digest;
use crate::registry::Cancel;
use crate::{Error, Result};

/// Most bytes that unfinished pulls keep.
const BYTES_MAX: u64 = 8 << 30;
/// How long they are kept.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a lock that another process has is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Partials {
    dir: PathBuf,
}

/// A file of the directory, locked.
#[derive(Debug)]
pub(super) struct Partial {
    /// To be read and written.
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Partials {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let dir = root.join("partial");
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", &dir, error)),
            _ => Ok(Partials { dir }),
        }
    }

    /// Takes the lock of a blob that is to be brought.
    pub(super) fn blob(&self, digest: &Digest, cancel: &Cancel, wait: &dyn Fn()) -> Result<Partial> {
        self.take(digest.hex(), cancel, wait)
    }

    /// Takes the lock of an image that is to be pulled, by its manifest.
    pub(super) fn image(&self, manifest: &Digest, cancel: &Cancel, wait: &dyn Fn()) -> Result<Partial> {
        self.take(format!("{}.image", manifest.hex()), cancel, wait)
    }

    /// `wait` is called once if another process has the lock.
    fn take(&self, name: String, cancel: &Cancel, wait: &dyn Fn()) -> Result<Partial> {
        let path = self.dir.join(name);
        let fail = |source| Error::io("open", &path, source);
        let mut waits = false;
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(fail)?;
            while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
                if error != rustix::io::Errno::WOULDBLOCK {
                    return Err(Error::io("lock", &path, error.into()));
                }
                if !std::mem::replace(&mut waits, true) {
                    wait();
                }
                cancel.wait(LOOK)?;
            }
            // Its last owner may have removed it: then a new file has the name.
            let mine = file.metadata().map_err(fail)?.ino();
            if fs::metadata(&path).is_ok_and(|meta| meta.ino() == mine) {
                return Ok(Partial { file, path });
            }
        }
    }

    /// Makes room for another pull.
    pub(super) fn prune(&self) -> Result<u64> {
        self.prune_to(BYTES_MAX, AGE_MAX)
    }

    /// Removes all that nobody works on.
    pub(super) fn prune_all(&self) -> Result<u64> {
        self.prune_to(0, Duration::ZERO)
    }

    fn prune_to(&self, bytes: u64, age: Duration) -> Result<u64> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|source| Error::io("read", &self.dir, source))? {
            let Ok(entry) = entry else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            files.push((
                meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                meta.blocks() * 512,
                entry.path(),
            ));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        let (mut freed, now) = (0, SystemTime::now());
        for (modified, size, path) in files {
            let is_old = now.duration_since(modified).unwrap_or_default() >= age;
            if total <= bytes && !is_old {
                break;
            }
            let Ok(file) = File::open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
                total = total.saturating_sub(size);
                freed += size;
            }
        }
        Ok(freed)
    }
}

impl Partial {
    /// Removes the file, which nobody needs any more; the lock goes with it.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_second_waits_for_the_first_and_finds_what_it_brought() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path()).unwrap();
        let (digest, cancel) = (Digest::of(b"x"), Cancel::default());
        let first = partials.blob(&digest, &cancel, &|| panic!("nobody has it")).unwrap();
        let (told, waits) = mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| partials.blob(&digest, &cancel, &|| told.send(()).unwrap()).unwrap());
            waits.recv_timeout(Duration::from_secs(20)).unwrap();
            fs::write(&first.path, b"brought").unwrap();
            drop(first);
            assert_eq!(fs::read(second.join().unwrap().path).unwrap(), b"brought");
        });
    }

    #[test]
    fn a_file_that_was_removed_meanwhile_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path()).unwrap();
        let (digest, cancel) = (Digest::of(b"x"), Cancel::default());
        let first = partials.blob(&digest, &cancel, &|| {}).unwrap();
        let (told, waits) = mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| partials.blob(&digest, &cancel, &|| told.send(()).unwrap()).unwrap());
            waits.recv_timeout(Duration::from_secs(20)).unwrap();
            first.remove();
            let second = second.join().unwrap();
            assert!(second.path.exists(), "the lock is that of a file without a name");
        });
    }

    #[test]
    fn the_oldest_make_room_and_one_in_work_stays() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path()).unwrap();
        let cancel = Cancel::default();
        let mut paths = Vec::new();
        let mut held = None;
        for (age, text) in [(30, b"old"), (20, b"mid"), (10, b"new")] {
            let one = partials.blob(&Digest::of(text), &cancel, &|| {}).unwrap();
            fs::write(&one.path, vec![1; 8192]).unwrap();
            one.file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            paths.push(one.path.clone());
            held.get_or_insert(one);
        }
        partials.prune_to(16384, Duration::from_secs(3600)).unwrap();
        assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, false, true]);
        drop(held);
        assert!(partials.prune_all().unwrap() >= 16384);
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
