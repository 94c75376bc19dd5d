//! Some blocks that are kept back: on a full file system the database finds room in them, so that the store can be looked
//! at and tidied there.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The file.
const NAME: &str = "reserve";
/// Its size in bytes: the database's log and its index grow by some dozen KiB.
const LEN: u64 = 1 << 20;
/// It is given back when fewer bytes are free, ...
const LOW: u64 = 256 << 10;
/// ... and made when more are.
const ENOUGH: u64 = 64 << 20;

/// Gives the reserve back where the file system is full, and makes it where there is room. What fails here fails nothing.
pub(super) fn settle(root: &Path) {
    let Ok(space) = statvfs(root) else { return };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let path = root.join(NAME);
    let done = if free < LOW {
        fs::remove_file(&path)
    } else if free > ENOUGH && !path.exists() {
        make(&path)
    } else {
        Ok(())
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::info!("the reserve of the store: {error}");
        }
        _ => {}
    }
}

fn make(path: &Path) -> io::Result<()> {
    let file = match File::options().write(true).create_new(true).open(path) {
        Ok(file) => file,
        // Another command was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    };
    // A hole would hold nothing back.
    fallocate(&file, FallocateFlags::empty(), 0, LEN).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_reserve_has_blocks_and_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        settle(root.path());
        let path = root.path().join(NAME);
        let Ok(meta) = fs::metadata(&path) else {
            let space = statvfs(root.path()).unwrap();
            assert!(space.f_bavail * space.f_frsize <= ENOUGH, "there was room for it");
            return;
        };
        assert_eq!(meta.len(), LEN);
        assert!(meta.blocks() * 512 >= LEN, "{} blocks", meta.blocks());
        settle(root.path());
        assert_eq!(fs::metadata(&path).unwrap().ino(), meta.ino());
    }
}
