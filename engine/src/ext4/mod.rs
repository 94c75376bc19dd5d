//! An empty ext4 file system, written without host tools: the disk that takes a container's changes.
//!
//! (Linux, Documentation/filesystems/ext4.) Four kilobyte blocks, 32-bit group descriptors with checksums, so that the bitmaps
//! and inode tables of all groups but the first need not be written (they are holes of the file), a journal in the first
//! group, and no backups of the superblock: the file lies on a file system of the host. It has `lost+found`, which e2fsck
//! wants, and the directories `upper` and `work` for overlayfs.

mod format;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use format::{LEAST_SIZE, MOST_SIZE};

/// Makes `file`, which is empty, an ext4 file system of at most `size` bytes. `uuid` is its name and `now` the time, in
/// seconds since 1970. Returns the size of the file, which has holes nearly everywhere.
///
/// # Errors
/// A size out of [`LEAST_SIZE`] to [`MOST_SIZE`] is `InvalidInput`; errors of the file are passed on.
pub fn format(file: &File, size: u64, uuid: [u8; 16], now: u32) -> io::Result<u64> {
    let plan = format::Plan::new(size, uuid, now)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no size of an ext4 file system"))?;
    file.set_len(plan.bytes())?;
    for (offset, bytes) in plan.pieces() {
        file.write_all_at(&bytes, offset)?;
    }
    Ok(plan.bytes())
}
