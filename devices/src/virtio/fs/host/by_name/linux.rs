//! What macOS says differently, said by Linux: so that tests run all the rest there.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FallocateFlags, FileType, Mode, OFlags};

use super::super::super::vfs::{Errno, StatFs};
use super::super::linux;
use super::super::system::{Result, Stat};

pub(super) const DIRECTORY_GIVES_GROUP: bool = false;

/// Opens a directory that may be searched.
pub(super) fn open_for_search(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    // This descriptor needs no permission.
    rustix::fs::accessat(&fd, c".", Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(fd)
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    errno
}

pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    linux::stat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Stat> {
    linux::stat(fd, c"", AtFlags::EMPTY_PATH)
}

/// Linux of today would follow a link; the tests have no one who puts one there meanwhile.
pub(super) fn chmod_at(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<()> {
    rustix::fs::chmodat(dir, name, mode, AtFlags::empty())
}

pub(super) fn make_fifo(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<()> {
    rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0)
}

pub(super) fn statfs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    linux::statfs(fd)
}

pub(super) fn sync(dir: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::syncfs(dir)
}

pub(super) fn fsync(fd: BorrowedFd<'_>, _: bool) -> Result<()> {
    rustix::fs::fsync(fd)
}

/// Reserves `len` bytes behind the end of a file.
pub(super) fn reserve(fd: BorrowedFd<'_>, len: u64, _: bool) -> Result<()> {
    let size = stat(fd)?.attr.size;
    rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, size, len)
}

/// Gives whole blocks back, and says as macOS does that others are wrong.
pub(super) fn punch(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    let block = u64::from(statfs(fd)?.block_size);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) || offset + len > stat(fd)?.attr.size {
        return Err(Errno::INVAL);
    }
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}
