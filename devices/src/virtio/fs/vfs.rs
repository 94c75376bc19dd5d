//! The file system behind a share: what a FUSE request means, without its wire form.
//!
//! A file system hands out [`NodeId`]s, each with a count of how often the guest was told of it; the guest gives
//! the counts back with [`FileSystem::forget`]. Node 1 is the root and lives for ever. Names are single entries of
//! a directory, never paths: [`Name`] refuses everything else, so no file system ever sees a slash.

use serde::{Deserialize, Serialize};

use crate::state::StateError;
use crate::virtio::{Reader, Writer};

#[cfg(not(target_os = "linux"))]
pub use super::errno::Errno;
#[cfg(target_os = "linux")]
pub use rustix::io::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// Names a file or directory between guest and server.
pub type NodeId = u64;

/// The root of a share.
pub const ROOT: NodeId = 1;

/// Names an open file or directory.
pub type Handle = u64;

/// The longest name of a directory entry in bytes.
pub const NAME_MAX: usize = 255;

/// The name of one directory entry: not empty, not `.` or `..`, without `/` and NUL, at most 255 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// ENAMETOOLONG, or EINVAL for what is no name of an entry.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let bad = matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|&byte| byte == b'/' || byte == 0);
        if bad { Err(Errno::INVAL) } else { Ok(Self(bytes)) }
    }

    /// The bytes of the name.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Who asks: the guest process's credentials. The guest's kernel has checked its permissions already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// User, as the guest numbers it.
    pub uid: u32,
    /// Group, as the guest numbers it.
    pub gid: u32,
}

/// The attributes of a node, as `stat(2)` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Size in blocks of 512 bytes.
    pub blocks: u64,
    /// Last access: seconds since 1970, nanoseconds.
    pub atime: (i64, u32),
    /// Last change of the contents.
    pub mtime: (i64, u32),
    /// Last change of the attributes.
    pub ctime: (i64, u32),
    /// File type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form, of a device node.
    pub rdev: u32,
    /// Best size of a transfer.
    pub blksize: u32,
    /// Another file system of the host is mounted here.
    pub submount: bool,
}

/// What a lookup found, counted once more on the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node; 0 when there is no such entry.
    pub node: NodeId,
    /// Its attributes.
    pub attr: Attr,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The host's time.
    Now,
    /// This time.
    At {
        /// Seconds since 1970.
        seconds: i64,
        /// Nanoseconds, below 10^9.
        nanos: u32,
    },
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change.
    pub mtime: Option<Time>,
}

/// What a new node shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// File type and permissions, the umask already applied by the guest's kernel.
    pub mode: u32,
    /// Device number, in the kernel's 32-bit form, for a device node.
    pub rdev: u32,
    /// Who makes it.
    pub caller: Caller,
}

/// One entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the listing goes on behind this entry.
    pub next: u64,
    /// File type as in `d_type`.
    pub kind: u32,
    /// The name; `.` and `..` occur here.
    pub name: Vec<u8>,
}

/// The figures of `statvfs(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub name_max: u32,
    pub fragment_size: u32,
}

/// Where `lseek(2)` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// Whose a lock is: a process of the guest, or an open file, as its kernel names it.
pub type LockOwner = u64;

/// The last byte that a lock can name; one up to there goes on to the end of the file, however far that grows.
pub const LAST_BYTE: u64 = crate::lock::LAST;

/// What a lock keeps away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Exclusive locks of others.
    Shared,
    /// Every lock of others.
    Exclusive,
}

/// A lock of a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// What it keeps away.
    pub kind: LockKind,
    /// The first byte.
    pub start: u64,
    /// The last byte, not before the first and at most [`LAST_BYTE`].
    pub end: u64,
    /// The process of this guest that has it; 0 for another's.
    pub pid: u32,
}

/// How much the guest may remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// Names and attributes are asked for every time.
    Never,
    /// Names and attributes are believed for a second, contents while the modification time stays.
    #[default]
    Auto,
    /// The share does not change but through this guest: everything is believed for as long as memory lasts.
    Always,
}

/// A file system that can be shared with a guest. Called by one thread at a time. Every error is the answer to one
/// request; nothing that a guest asks for may panic.
pub trait FileSystem: Send {
    /// How much the guest may remember.
    fn cache(&self) -> Cache;

    /// Whether the guest may keep writes in its page cache for a while.
    fn writeback(&self) -> bool;

    /// Finds an entry and counts it once more.
    fn lookup(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// The guest forgets `count` of the times it was told of `node`.
    fn forget(&mut self, node: NodeId, count: u64);

    /// The attributes of a node.
    fn getattr(&mut self, node: NodeId, handle: Option<Handle>) -> Result<Attr>;

    /// Changes attributes and returns all of them.
    fn setattr(&mut self, node: NodeId, handle: Option<Handle>, change: &SetAttr) -> Result<Attr>;

    /// The target of a symbolic link.
    fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>>;

    /// Makes a symbolic link.
    fn symlink(&mut self, parent: NodeId, name: Name<'_>, target: &[u8], caller: Caller) -> Result<Entry>;

    /// Makes a file, a pipe, a socket or a device node.
    fn mknod(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry>;

    /// Makes a directory.
    fn mkdir(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry>;

    /// Removes an entry that is no directory.
    fn unlink(&mut self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&mut self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Renames an entry; `flags` as in `renameat2(2)`.
    fn rename(&mut self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()>;

    /// Makes a hard link to `node`.
    fn link(&mut self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Opens a file; `flags` as in `open(2)` on Linux x86-64.
    fn open(&mut self, node: NodeId, flags: u32) -> Result<Handle>;

    /// Makes a file and opens it.
    fn create(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        create: Create,
        flags: u32,
    ) -> Result<(Entry, Handle)>;

    /// Reads up to `count` bytes at `offset`; fewer only at the end of the file.
    fn read(&mut self, handle: Handle, offset: u64, count: usize, into: &mut Writer<'_>) -> Result<usize>;

    /// Writes up to `count` bytes at `offset`.
    fn write(&mut self, handle: Handle, offset: u64, count: usize, from: &mut Reader<'_>) -> Result<usize>;

    /// One of the guest's descriptors of an open file is closed: the time for late errors. Its process gives up all of
    /// its locks on the file, as POSIX has it.
    fn flush(&mut self, handle: Handle, owner: LockOwner) -> Result<()>;

    /// A lock that keeps `owner` from taking this one, if there is one.
    fn getlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<Option<Lock>>;

    /// Takes a lock in place of what `owner` has there. EAGAIN while another has a lock that conflicts; never waits.
    fn setlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<()>;

    /// Gives up what `owner` has between two bytes, both among them.
    fn unlock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()>;

    /// Changes the lock of an open file as `flock(2)` does; EAGAIN while another has one that conflicts.
    fn flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()>;

    /// Makes an open file durable; only its contents with `data_only`.
    fn fsync(&mut self, handle: Handle, data_only: bool) -> Result<()>;

    /// Closes a file, and gives up the locks that were taken through it.
    fn release(&mut self, handle: Handle);

    /// Reserves or clears space; `mode` as in `fallocate(2)`.
    fn fallocate(&mut self, handle: Handle, mode: u32, offset: u64, len: u64) -> Result<()>;

    /// Finds data or a hole from `offset` on.
    fn lseek(&mut self, handle: Handle, offset: u64, seek: Seek) -> Result<u64>;

    /// Copies between open files; returns the bytes copied.
    fn copy_range(&mut self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64>;

    /// Opens a directory.
    fn opendir(&mut self, node: NodeId) -> Result<Handle>;

    /// Lists a directory from `offset` (0, or a [`DirEntry::next`]) on, at most about `room` bytes of names.
    fn readdir(&mut self, handle: Handle, offset: u64, room: usize) -> Result<Vec<DirEntry>>;

    /// Makes a directory durable.
    fn fsyncdir(&mut self, handle: Handle) -> Result<()>;

    /// Closes a directory.
    fn releasedir(&mut self, handle: Handle);

    /// The value of an extended attribute.
    fn getxattr(&mut self, node: NodeId, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of all extended attributes, each ended by NUL.
    fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>>;

    /// Sets an extended attribute; `flags` as in `setxattr(2)`.
    fn setxattr(&mut self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()>;

    /// Removes an extended attribute.
    fn removexattr(&mut self, node: NodeId, name: &[u8]) -> Result<()>;

    /// The figures of the file system.
    fn statfs(&mut self, node: NodeId) -> Result<StatFs>;

    /// Makes everything durable.
    fn sync(&mut self) -> Result<()>;

    /// The guest unmounted the share or is gone: forget every node but the root, close every handle.
    fn clear(&mut self);

    /// The nodes and handles that the guest knows.
    ///
    /// # Errors
    /// See [`StateError`].
    fn save(&self) -> std::result::Result<Vec<u8>, StateError>;

    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// See [`StateError`].
    fn restore(&mut self, state: &[u8]) -> std::result::Result<(), StateError>;
}
