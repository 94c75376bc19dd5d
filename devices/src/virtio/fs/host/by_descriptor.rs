//! Files held by descriptors that open nothing (`O_PATH`), as Linux has them.
//!
//! Contents are opened through `/proc/self/fd` from such a descriptor, so that nothing depends on a name once it was looked at.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags, RawDir, SeekFrom, Timestamps, Uid,
    XattrFlags,
};

use super::super::vfs::{DirEntry, Errno, Seek, StatFs};
use super::super::wire;
use super::convert::{self, XATTR_MAX};
use super::linux;
use super::system::{Found, Result, Stat, System, kind};

/// Bytes of a batch of directory entries from the kernel.
const LIST_BUFFER: usize = 16 * 1024;

/// See the module's description.
#[derive(Debug)]
pub struct ByDescriptor {
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
}

impl ByDescriptor {
    fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(&self.descriptors, fd.as_raw_fd().to_string(), flags, Mode::empty())
    }
}

/// The attributes of what a descriptor names.
fn stat(fd: impl AsFd) -> Result<Stat> {
    linux::stat(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

/// Extended attributes are reached by the descriptor's link in /proc, which works for `O_PATH` ones. There are none on
/// links and special files.
fn xattr_path(fd: &OwnedFd) -> Result<String> {
    match kind::of(stat(fd)?.attr.mode) {
        kind::FILE | kind::DIRECTORY => Ok(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        _ => Err(Errno::OPNOTSUPP),
    }
}

impl System for ByDescriptor {
    type Anchor = OwnedFd;
    type Listing = ();
    const DIRECTORY_GIVES_GROUP: bool = false;

    fn new() -> Result<Self> {
        Ok(Self { descriptors: Self::root(Path::new("/proc/self/fd"))? })
    }

    fn root(path: &Path) -> Result<OwnedFd> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    fn find(dir: &Arc<OwnedFd>, name: &[u8]) -> Result<Found<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&**dir, name, flags, Mode::empty())?;
        let stat = stat(&fd)?;
        Ok(Found { anchor: Arc::new(fd), stat })
    }

    fn stat(fd: &OwnedFd) -> Result<Stat> {
        stat(fd)
    }

    fn stat_open(fd: &OwnedFd) -> Result<Stat> {
        stat(fd)
    }

    fn is_pinned(_: &OwnedFd) -> bool {
        true
    }

    fn pin(found: &Found<Self>) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&found.anchor))
    }

    fn moves_along(_: &OwnedFd) -> bool {
        true
    }

    fn open(&self, fd: &OwnedFd, flags: u32) -> Result<OwnedFd> {
        self.reopen(fd, OFlags::from_bits_retain(flags) | OFlags::NONBLOCK)
    }

    fn open_directory(&self, fd: &OwnedFd) -> Result<OwnedFd> {
        self.reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn again(&self, fd: &OwnedFd, flags: u32) -> Option<Result<OwnedFd>> {
        Some(self.open(fd, flags))
    }

    fn create(dir: &OwnedFd, name: &[u8], flags: u32, mode: u32) -> Result<OwnedFd> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, OFlags::from_bits_retain(flags) | new, Mode::from_raw_mode(mode))
    }

    fn chmod(&self, fd: &OwnedFd, mode: u32) -> Result<()> {
        let link = fd.as_raw_fd().to_string();
        rustix::fs::chmodat(&self.descriptors, link, Mode::from_raw_mode(mode), AtFlags::empty())
    }

    fn chown(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        rustix::fs::chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
    }

    fn set_times(&self, fd: &OwnedFd, times: &Timestamps) -> Result<()> {
        rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH).or_else(|_| {
            let link = fd.as_raw_fd().to_string();
            rustix::fs::utimensat(&self.descriptors, link, times, AtFlags::empty())
        })
    }

    fn readlink(fd: &OwnedFd) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes())
    }

    fn symlink(dir: &OwnedFd, name: &[u8], target: &[u8]) -> Result<()> {
        rustix::fs::symlinkat(target, dir, name)
    }

    fn mknod(dir: &OwnedFd, name: &[u8], mode: u32) -> Result<()> {
        let kind = FileType::from_raw_mode(mode);
        rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), 0)
    }

    fn mkdir(dir: &OwnedFd, name: &[u8], mode: u32) -> Result<()> {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
    }

    fn unlink(dir: &OwnedFd, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())
    }

    fn rmdir(dir: &OwnedFd, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    }

    fn rename(from: (&OwnedFd, &[u8]), to: (&OwnedFd, &[u8]), flags: u32) -> Result<()> {
        if flags == 0 {
            return rustix::fs::renameat(from.0, from.1, to.0, to.1);
        }
        let flags = rustix::fs::RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags)
    }

    fn link(&self, fd: &OwnedFd, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        // Through the descriptor's link in /proc: linking a bare descriptor needs a capability.
        let link = fd.as_raw_fd().to_string();
        rustix::fs::linkat(&self.descriptors, link, dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn getxattr(fd: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; XATTR_MAX];
        let len = rustix::fs::getxattr(xattr_path(fd)?, name, value.as_mut_slice())?;
        value.truncate(len);
        Ok(value)
    }

    fn listxattr(fd: &OwnedFd) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_MAX];
        let len = rustix::fs::listxattr(xattr_path(fd)?, names.as_mut_slice())?;
        names.truncate(len);
        Ok(names)
    }

    fn setxattr(fd: &OwnedFd, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::setxattr(xattr_path(fd)?, name, value, flags)
    }

    fn removexattr(fd: &OwnedFd, name: &[u8]) -> Result<()> {
        rustix::fs::removexattr(xattr_path(fd)?, name)
    }

    fn statfs(fd: &OwnedFd) -> Result<StatFs> {
        linux::statfs(fd)
    }

    fn sync(dir: &OwnedFd) -> Result<()> {
        rustix::fs::syncfs(dir)
    }

    fn fsync(fd: &OwnedFd, data_only: bool) -> Result<()> {
        if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
    }

    fn flock(fd: &OwnedFd, operation: FlockOperation) -> Result<()> {
        rustix::fs::flock(fd, operation)
    }

    fn fallocate(fd: &OwnedFd, mode: u32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(fd, mode, offset, len)
    }

    fn seek(fd: &OwnedFd, offset: u64, seek: Seek) -> Result<u64> {
        rustix::fs::seek(fd, convert::seek_from(offset, seek))
    }

    fn copy_range(from: (&OwnedFd, u64), to: (&OwnedFd, u64), len: u64) -> Result<u64> {
        let (mut from_at, mut to_at) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(from.0, Some(&mut from_at), to.0, Some(&mut to_at), len)?;
        Ok(copied as u64)
    }

    fn list(
        fd: &OwnedFd,
        (): &mut (),
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        rustix::fs::seek(fd, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); LIST_BUFFER];
        let mut dir = RawDir::new(fd, &mut buffer);
        let (mut entries, mut len) = (Vec::new(), 0);
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !convert::is_listed(name, only) {
                continue;
            }
            len += wire::dirent_len(name);
            if len > room {
                break;
            }
            entries.push(DirEntry {
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: convert::entry_kind(entry.file_type()),
                name: name.to_vec(),
            });
        }
        Ok(entries)
    }
}
