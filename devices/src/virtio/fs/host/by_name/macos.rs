//! What macOS says differently: attributes, errors, and the calls that others do not have.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::super::super::vfs::{Attr, Errno, NAME_MAX, StatFs};
use super::super::convert::encode_dev;
use super::super::system::{FileId, Result, Stat};
use super::{QUIET, ours};

mod calls;

pub(super) use calls::{make_fifo, punch, reserve};

pub(super) const DIRECTORY_GIVES_GROUP: bool = true;

/// Opens a directory that may be searched.
pub(super) fn open_for_search(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(libc::O_SEARCH.cast_unsigned()) | QUIET;
    ours(rustix::fs::openat(dir, name, flags, Mode::empty()))
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_macos(errno.raw_os_error())
}

pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    ours(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)).map(|stat| convert(&stat))
}

pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Stat> {
    ours(rustix::fs::fstat(fd)).map(|stat| convert(&stat))
}

fn convert(stat: &rustix::fs::Stat) -> Stat {
    let time = |seconds: i64, nanos: i64| (seconds, u32::try_from(nanos).unwrap_or(0));
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    Stat {
        id: FileId {
            dev: numbers(stat.st_dev),
            ino: stat.st_ino,
            // Not the birth time: setting an earlier time of change moves it. APFS uses no inode number again.
            born: (0, 0),
        },
        attr: Attr {
            ino: stat.st_ino,
            size: size(stat.st_size),
            blocks: size(stat.st_blocks),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode.into(),
            nlink: stat.st_nlink.into(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: {
                let (major, minor) = numbers(stat.st_rdev);
                encode_dev(major, minor)
            },
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            submount: false,
        },
    }
}

/// The major and the minor part of a device number.
fn numbers(dev: libc::dev_t) -> (u32, u32) {
    let dev = dev.cast_unsigned();
    (dev >> 24, dev & 0xff_ffff)
}

pub(super) fn chmod_at(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<()> {
    ours(rustix::fs::chmodat(dir, name, mode, AtFlags::SYMLINK_NOFOLLOW))
}

pub(super) fn statfs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    // Not fstatvfs, which has 32 bits for a number of blocks.
    let stat = ours(rustix::fs::fstatfs(fd))?;
    Ok(StatFs {
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        block_size: stat.f_bsize,
        name_max: NAME_MAX as u32,
        fragment_size: stat.f_bsize,
    })
}

/// There is no call for one file system: all are told to write, and this one's disk to keep what it got.
pub(super) fn sync(dir: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::sync();
    fsync(dir, false)
}

/// `fsync(2)` leaves data in the disk's cache. A file system that cannot have it emptied is asked for what it can do.
pub(super) fn fsync(fd: BorrowedFd<'_>, _: bool) -> Result<()> {
    match ours(rustix::fs::fcntl_fullfsync(fd)) {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => ours(rustix::fs::fsync(fd)),
        done => done,
    }
}
