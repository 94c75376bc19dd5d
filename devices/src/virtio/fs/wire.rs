//! The FUSE wire format, protocol 7.38 (`include/uapi/linux/fuse.h`): arguments in, replies out.
//!
//! Arguments are read from bytes that were copied out of guest memory once. Everything is little-endian, as every
//! guest that we run is.

use super::vfs::{Attr, DirEntry, Entry, Errno, LAST_BYTE, Lock, LockKind, Name, SetAttr, StatFs, Time};

/// The major version of the protocol.
pub(super) const MAJOR: u32 = 7;
/// The greatest minor version that this server speaks.
pub(super) const MINOR: u32 = 38;
/// The smallest one it speaks: the form of INIT's reply has been the same since then.
pub(super) const MIN_MINOR: u32 = 27;

/// Bytes of `fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;

/// Requests (`enum fuse_opcode`).
pub(super) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
}

/// What client and server can agree on in INIT.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
}

/// Flags in replies to OPEN.
pub(super) mod open {
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const CACHE_DIR: u32 = 1 << 3;
}

/// `FUSE_ATTR_SUBMOUNT`: another file system is mounted here.
const ATTR_SUBMOUNT: u32 = 1;

/// `fuse_lk_in.lk_flags`: a lock of `flock(2)`.
const LK_FLOCK: u32 = 1;
/// `F_UNLCK`: in a request the end of locks, in a reply that no lock is in the way.
const UNLOCK: u32 = 2;

/// `fuse_lk_in`: what is asked of a lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct LockRequest {
    pub(super) handle: u64,
    pub(super) owner: u64,
    /// A lock of the open file (`flock(2)`), and not of a range of bytes.
    pub(super) flock: bool,
    /// None to give locks up.
    pub(super) kind: Option<LockKind>,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) pid: u32,
}

/// The arguments of a request, read from the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args<'a>(pub(super) &'a [u8]);

impl<'a> Args<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::INVAL)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string up to its NUL.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let string = self.bytes(end)?;
        self.bytes(1)?;
        Ok(string)
    }

    /// The name of a directory entry.
    pub(super) fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    /// `fuse_lk_in`.
    pub(super) fn lock(&mut self) -> Result<LockRequest, Errno> {
        let (handle, owner, start, end) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        let (kind, pid, flags) = (self.u32()?, self.u32()?, self.u32()?);
        let kind = match kind {
            0 => Some(LockKind::Shared),
            1 => Some(LockKind::Exclusive),
            UNLOCK => None,
            _ => return Err(Errno::INVAL),
        };
        if start > end || end > LAST_BYTE {
            return Err(Errno::INVAL);
        }
        Ok(LockRequest { handle, owner, flock: flags & LK_FLOCK != 0, kind, start, end, pid })
    }

    /// `fuse_setattr_in`: the handle, if one is meant, and what to change.
    pub(super) fn setattr(&mut self) -> Result<(Option<u64>, SetAttr), Errno> {
        let valid = self.u32()?;
        let has = |bit: u32| valid & 1 << bit != 0;
        self.u32()?;
        let handle = self.u64()?;
        let size = self.u64()?;
        self.u64()?;
        let seconds = [self.u64()?, self.u64()?];
        self.u64()?;
        let nanos = [self.u32()?, self.u32()?];
        self.u32()?;
        let mode = self.u32()?;
        self.u32()?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        self.u32()?;
        let [atime, mtime] = [0, 1].map(|index: usize| {
            let (set, now) = ([4, 5].get(index).copied(), [7, 8].get(index).copied());
            if !set.is_some_and(has) {
                return None;
            }
            if now.is_some_and(has) {
                return Some(Time::Now);
            }
            let seconds = seconds.get(index).copied().unwrap_or(0).cast_signed();
            Some(Time::At { seconds, nanos: nanos.get(index).copied().unwrap_or(0) })
        });
        let change = SetAttr {
            mode: has(0).then_some(mode),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            atime,
            mtime,
        };
        Ok((has(6).then_some(handle), change))
    }
}

/// The body of a reply, written to the end.
#[derive(Debug, Default)]
pub(super) struct Reply(pub(super) Vec<u8>);

impl Reply {
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// `fuse_attr`.
    fn attr(&mut self, attr: &Attr, submounts: bool) -> &mut Self {
        let times = [attr.atime, attr.mtime, attr.ctime];
        self.u64(attr.ino).u64(attr.size).u64(attr.blocks);
        for (seconds, _) in times {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanos) in times {
            self.u32(nanos);
        }
        let flags = if submounts && attr.submount { ATTR_SUBMOUNT } else { 0 };
        self.u32(attr.mode)
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(attr.blksize)
            .u32(flags)
    }

    /// `fuse_attr_out`.
    pub(super) fn attr_out(&mut self, attr: &Attr, valid_ms: u64, submounts: bool) -> &mut Self {
        let (seconds, nanos) = split_ms(valid_ms);
        self.u64(seconds).u32(nanos).u32(0).attr(attr, submounts)
    }

    /// `fuse_entry_out`. The node 0 says that there is no such entry, and that this may be remembered.
    pub(super) fn entry_out(&mut self, entry: &Entry, valid_ms: u64, submounts: bool) -> &mut Self {
        let (seconds, nanos) = split_ms(valid_ms);
        // Generation 0: node numbers are never used again.
        self.u64(entry.node).u64(0).u64(seconds).u64(seconds).u32(nanos).u32(nanos);
        self.attr(&entry.attr, submounts)
    }

    /// `fuse_open_out`.
    pub(super) fn open_out(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// `fuse_lk_out`: the lock that is in the way, if there is one.
    pub(super) fn lock_out(&mut self, found: Option<Lock>) -> &mut Self {
        let free = Lock { kind: LockKind::Shared, start: 0, end: 0, pid: 0 };
        let (lock, kind) = match found {
            None => (free, UNLOCK),
            Some(lock) => (lock, u32::from(lock.kind == LockKind::Exclusive)),
        };
        self.u64(lock.start).u64(lock.end).u32(kind).u32(lock.pid)
    }

    /// `fuse_statfs_out`.
    pub(super) fn statfs_out(&mut self, stat: &StatFs) -> &mut Self {
        self.u64(stat.blocks)
            .u64(stat.blocks_free)
            .u64(stat.blocks_available)
            .u64(stat.files)
            .u64(stat.files_free);
        self.u32(stat.block_size).u32(stat.name_max).u32(stat.fragment_size).u32(0);
        self.bytes(&[0; 24])
    }

    /// `fuse_dirent`, padded.
    pub(super) fn dirent(&mut self, entry: &DirEntry) -> &mut Self {
        let name_len = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
        self.u64(entry.ino).u64(entry.next).u32(name_len).u32(entry.kind).bytes(&entry.name);
        let padding = entry.name.len().next_multiple_of(8) - entry.name.len();
        self.0.resize(self.0.len() + padding, 0);
        self
    }
}

/// Bytes of a `fuse_dirent` with its name and padding.
pub(super) fn dirent_len(name: &[u8]) -> usize {
    24 + name.len().next_multiple_of(8)
}

/// Bytes of a `fuse_entry_out`.
pub(super) const ENTRY_OUT: usize = 128;

fn split_ms(ms: u64) -> (u64, u32) {
    (ms / 1000, u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000)
}
