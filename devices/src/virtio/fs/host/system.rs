//! The seam between hosts: what a passed-through directory asks of the host's kernel.
//!
//! What differs most is how a file is held that the guest knows and nobody has open ([`System::Anchor`]): Linux has
//! descriptors that need no permission (`by_descriptor.rs`); on macOS there are the descriptors of directories, and names below
//! them (`by_name.rs`); Windows has handles that a file is opened by once more (`windows/by_handle.rs`). Everything above is the
//! same code. Flags and errors are Linux's, for they are the guest's.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

#[cfg(unix)]
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::super::vfs::{Attr, DirEntry, Errno, Seek, StatFs};

#[cfg(unix)]
pub(super) use super::unix::{OpenFile, Timestamps, file_ref, host_owners, name_bytes, placed, resize};
#[cfg(windows)]
pub(super) use super::windows::{OpenFile, Timestamps, file_ref, host_owners, name_bytes, placed, resize};

pub(super) type Result<T> = std::result::Result<T, Errno>;

/// File types, as the upper bits of a mode: the same numbers on all Unix systems.
pub(super) mod kind {
    pub(in super::super) const FIFO: u32 = 0o010_000;
    pub(in super::super) const CHARACTER_DEVICE: u32 = 0o020_000;
    pub(in super::super) const DIRECTORY: u32 = 0o040_000;
    pub(in super::super) const FILE: u32 = 0o100_000;
    pub(in super::super) const LINK: u32 = 0o120_000;
    pub(in super::super) const SOCKET: u32 = 0o140_000;

    /// The type in a mode.
    pub(in super::super) fn of(mode: u32) -> u32 {
        mode & 0o170_000
    }
}

/// Flags of `open(2)` as Linux numbers them on both architectures.
pub(super) mod access {
    pub(in super::super) const WRONLY: u32 = 0o1;
    pub(in super::super) const RDWR: u32 = 0o2;
    pub(in super::super) const EXCL: u32 = 0o200;
    pub(in super::super) const TRUNC: u32 = 0o1000;
    pub(in super::super) const APPEND: u32 = 0o2000;
    pub(in super::super) const DSYNC: u32 = 0o10_000;
    pub(in super::super) const SYNC: u32 = 0o4_010_000;

    /// The part that says what may be done.
    pub(in super::super) fn mode(flags: u32) -> u32 {
        flags & (WRONLY | RDWR)
    }
}

/// What makes a file the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileId {
    pub(super) dev: (u32, u32),
    pub(super) ino: u64,
    /// Birth time where the file system keeps one that nobody can set: inode numbers are used again.
    pub(super) born: (i64, u32),
}

/// What a file is: its owners as the host has them.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    pub(super) id: FileId,
    pub(super) attr: Attr,
}

/// A file that was just looked at.
#[derive(Debug)]
pub struct Found<S: System> {
    pub(super) anchor: Arc<S::Anchor>,
    pub(super) stat: Stat,
}

/// One way of holding files, and the calls of the host that go with it. An `Errno` of each function is the answer to the guest.
pub trait System: Debug + Send + Sized + 'static {
    /// How a file is held that the guest knows.
    type Anchor: Debug + Send + Sync;
    /// Where a listing of an open directory stands.
    type Listing: Debug + Send + Default;
    /// A new file gets the group of its directory, whoever makes it.
    const DIRECTORY_GIVES_GROUP: bool;

    /// What all calls need.
    fn new() -> Result<Self>;

    /// Holds the directory at `path`, which the host's user gave.
    fn root(path: &Path) -> Result<Self::Anchor>;

    /// Looks at one entry of a directory, without following it if it is a link.
    fn find(dir: &Arc<Self::Anchor>, name: &[u8]) -> Result<Found<Self>>;

    /// What a file is.
    fn stat(anchor: &Self::Anchor) -> Result<Stat>;

    /// What an open file is.
    fn stat_open(fd: &OpenFile) -> Result<Stat>;

    /// Whether a file can be used without its name.
    fn is_pinned(anchor: &Self::Anchor) -> bool;

    /// Holds a file so that it can be used without its name; `None` where this one cannot be held so.
    fn pin(found: &Found<Self>) -> Option<Arc<Self::Anchor>>;

    /// Whether an anchor still leads to its file when that got another name.
    fn moves_along(anchor: &Self::Anchor) -> bool;

    /// Opens a regular file for its contents, with flags of [`access`]. Never waits.
    fn open(&self, anchor: &Self::Anchor, flags: u32) -> Result<OpenFile>;

    /// Opens a directory for listing.
    fn open_directory(&self, anchor: &Self::Anchor) -> Result<OpenFile>;

    /// Opens an open file once more for its locks, with an open file description of its own; `None` where only its name leads to one.
    #[cfg(unix)]
    fn again(&self, fd: &OpenFile, flags: u32) -> Option<Result<OpenFile>>;

    /// Makes a file and opens it.
    fn create(dir: &Self::Anchor, name: &[u8], flags: u32, mode: u32) -> Result<OpenFile>;

    /// Changes permissions.
    fn chmod(&self, anchor: &Self::Anchor, mode: u32) -> Result<()>;

    /// Changes owners.
    fn chown(anchor: &Self::Anchor, uid: Option<u32>, gid: Option<u32>) -> Result<()>;

    /// Changes times.
    fn set_times(&self, anchor: &Self::Anchor, times: &Timestamps) -> Result<()>;

    /// The target of a symbolic link.
    fn readlink(anchor: &Self::Anchor) -> Result<Vec<u8>>;

    /// Makes a symbolic link.
    fn symlink(dir: &Self::Anchor, name: &[u8], target: &[u8]) -> Result<()>;

    /// Makes a file, a pipe, a socket or a whiteout (a character device of number 0), as the type in `mode` says.
    fn mknod(dir: &Self::Anchor, name: &[u8], mode: u32) -> Result<()>;

    /// Makes a directory.
    fn mkdir(dir: &Self::Anchor, name: &[u8], mode: u32) -> Result<()>;

    /// Removes a file.
    fn unlink(dir: &Self::Anchor, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(dir: &Self::Anchor, name: &[u8]) -> Result<()>;

    /// Renames an entry; `flags` as in `renameat2(2)`.
    fn rename(from: (&Self::Anchor, &[u8]), to: (&Self::Anchor, &[u8]), flags: u32) -> Result<()>;

    /// Makes a hard link.
    fn link(&self, anchor: &Self::Anchor, dir: &Self::Anchor, name: &[u8]) -> Result<()>;

    /// The value of an extended attribute.
    fn getxattr(anchor: &Self::Anchor, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of all extended attributes, each ended by NUL.
    fn listxattr(anchor: &Self::Anchor) -> Result<Vec<u8>>;

    /// Sets an extended attribute; `flags` as in `setxattr(2)` of Linux.
    fn setxattr(anchor: &Self::Anchor, name: &[u8], value: &[u8], flags: u32) -> Result<()>;

    /// Removes an extended attribute.
    fn removexattr(anchor: &Self::Anchor, name: &[u8]) -> Result<()>;

    /// The figures of the file system.
    fn statfs(anchor: &Self::Anchor) -> Result<StatFs>;

    /// Makes everything of the open directory's file system durable.
    fn sync(dir: &OpenFile) -> Result<()>;

    /// Makes an open file durable.
    fn fsync(fd: &OpenFile, data_only: bool) -> Result<()>;

    /// Changes the `flock(2)` lock of an open file.
    #[cfg(unix)]
    fn flock(fd: &OpenFile, operation: FlockOperation) -> Result<()>;

    /// Reserves or clears space; `mode` as in `fallocate(2)` of Linux.
    fn fallocate(fd: &OpenFile, mode: u32, offset: u64, len: u64) -> Result<()>;

    /// Finds data or a hole.
    fn seek(fd: &OpenFile, offset: u64, seek: Seek) -> Result<u64>;

    /// Copies between open files; returns the bytes copied.
    fn copy_range(from: (&OpenFile, u64), to: (&OpenFile, u64), len: u64) -> Result<u64>;

    /// Lists entries of an open directory from `offset` on; with `only`, no other one but `.` and `..`.
    fn list(
        fd: &OpenFile,
        listing: &mut Self::Listing,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>>;
}
