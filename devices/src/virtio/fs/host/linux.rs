//! What Linux says of files and file systems, as the server has it.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, StatxTimestamp};

use super::super::vfs::{Attr, NAME_MAX, StatFs};
use super::convert::encode_dev;
use super::system::{FileId, Result, Stat};

/// The attributes of what a name in a directory names, or with `AT_EMPTY_PATH` of what the descriptor does.
pub(super) fn stat(dir: impl AsFd, name: &CStr, flags: AtFlags) -> Result<Stat> {
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |time: &StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let dev = (stat.stx_dev_major, stat.stx_dev_minor);
    Ok(Stat {
        id: FileId { dev, ino: stat.stx_ino, born: time(&stat.stx_btime) },
        attr: Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(&stat.stx_atime),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            submount: false,
        },
    })
}

/// What the file system is and has left.
pub(super) fn statfs(fd: impl AsFd) -> Result<StatFs> {
    let stat = rustix::fs::fstatvfs(fd)?;
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(StatFs {
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        block_size: small(stat.f_bsize),
        name_max: small(stat.f_namemax).min(NAME_MAX as u32),
        fragment_size: small(stat.f_frsize),
    })
}
