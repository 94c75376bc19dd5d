//! The disk that takes a container's changes: an ext4 file system in a sparse file of the container's directory.
//!
//! A new container has none until its guest writes: a clone of a template reads the template's disk, which its memory
//! fits, and the first write makes the container's own (`Blk::copy_on_write`). So a container that changes nothing
//! leaves nothing, and starts again as a new one would.
//!
//! The file is locked as long as a machine has it, so that the next start waits for the last machine to be gone.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, SeekFrom, flock, seek};

use super::random;
use crate::store::now_ns;
use crate::{Error, Result, ext4, os};

/// Bytes of a disk that was not given a size. It is sparse: this is a limit and takes nothing.
pub const DEFAULT_DISK: u64 = 32 << 30;
/// Name of the file in the container's directory.
const NAME: &str = "disk";
/// Data is copied in pieces of this size where the host cannot copy within itself.
const PIECE: usize = 64 << 10;

/// A container's disk, whether or not it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    path: PathBuf,
    /// Greatest size in bytes.
    pub(crate) size: u64,
}

impl Disk {
    /// The disk of the container that this directory belongs to.
    pub(crate) fn new(container: &Path, size: u64) -> Self {
        Disk { path: container.join(NAME), size }
    }

    /// Whether the container has changed anything yet.
    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Opens it for a machine, and waits until no other has it.
    pub(crate) fn open(&self) -> Result<File> {
        let file = File::options().read(true).write(true).open(&self.path);
        file.and_then(locked).map_err(|source| Error::io("open", &self.path, source))
    }

    /// Opens it to be read, whoever has it.
    pub(crate) fn look(&self) -> Result<File> {
        File::open(&self.path).map_err(|source| Error::io("open", &self.path, source))
    }

    /// Makes an empty one.
    pub(crate) fn create(&self) -> Result<File> {
        let uuid = random::<16>()?;
        let now = u32::try_from(now_ns() / 1_000_000_000).unwrap_or_default();
        let made = self.make(|file| ext4::format(file, self.size, uuid, now).map(drop));
        made.map_err(|source| Error::io("make", &self.path, source))
    }

    /// Makes one with the bytes of another.
    pub(crate) fn copy_of(&self, base: &File) -> io::Result<File> {
        self.make(|file| copy(base, file))
    }

    /// Makes one that is filled in some other way.
    pub(crate) fn write(&self, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<File> {
        self.make(fill).map_err(|source| Error::io("make", &self.path, source))
    }

    /// Whole or not at all, and locked before it has its name.
    fn make(&self, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
        let new = self.path.with_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new)?;
        let file = locked(file)?;
        fill(&file)?;
        std::fs::rename(&new, &self.path)?;
        Ok(file)
    }
}

fn locked(file: File) -> io::Result<File> {
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Copies a sparse file; `to` is empty.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Behind the last data.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?.min(length);
        copy_range(from, to, start, end)?;
        at = end;
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).unwrap_or(usize::MAX);
        match os::copy_range(from, &mut read, to, &mut written, left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // Not between these file systems, or not on this kernel.
            Err(_) => break,
        }
    }
    let mut piece = vec![0; PIECE];
    while read < end {
        let most = usize::try_from(end - read).unwrap_or(PIECE).min(PIECE);
        let count = from.read_at(piece.get_mut(..most).unwrap_or_default(), read)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(piece.get(..count).unwrap_or_default(), read)?;
        read += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_disk_is_made_sparse_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), DEFAULT_DISK);
        assert!(!disk.exists());
        drop(disk.create().unwrap());
        assert!(disk.exists());
        let meta = disk.open().unwrap().metadata().unwrap();
        assert_eq!(meta.len(), DEFAULT_DISK);
        assert!(meta.blocks() * 512 < 1 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1 << 30);
        let base = disk.create().unwrap();
        base.write_all_at(b"here", 700 << 20).unwrap();
        let other = tempfile::tempdir().unwrap();
        let copied = Disk::new(other.path(), 1 << 30).copy_of(&base).unwrap();
        let (a, b) = (base.metadata().unwrap(), copied.metadata().unwrap());
        assert_eq!(a.len(), b.len());
        assert!(b.blocks() <= a.blocks() + 256, "{} and {} blocks", a.blocks(), b.blocks());
        for at in [1024, 4096, 700 << 20] {
            let (mut left, mut right) = ([0; 512], [0; 512]);
            base.read_exact_at(&mut left, at).unwrap();
            copied.read_exact_at(&mut right, at).unwrap();
            assert_eq!(left, right);
        }
    }

    #[test]
    fn a_disk_that_a_machine_has_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1 << 30);
        let first = disk.create().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            let second = disk.open().unwrap();
            sender.send(()).unwrap();
            second
        });
        assert!(receiver.try_recv().is_err());
        drop(first);
        receiver.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        waits.join().unwrap();
    }
}
