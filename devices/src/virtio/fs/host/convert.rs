//! From the host's terms to the guest's and back: attributes, owners, times, flags, extended attributes.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, StatVfs, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    XattrFlags,
};

use super::super::vfs::{Attr, Errno, NAME_MAX, SetAttr, StatFs, Time};
use super::Owners;

type Result<T> = std::result::Result<T, Errno>;

/// Whom a squashed owner is shown as: nobody.
const NOBODY: u32 = 65_534;

pub(super) fn attr(stat: &Statx, owners: Owners, submount: bool) -> Attr {
    let time = |time: &rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let (uid, gid) = match owners {
        Owners::Kept => (stat.stx_uid, stat.stx_gid),
        Owners::Squashed { uid, gid } => {
            (if stat.stx_uid == uid { 0 } else { NOBODY }, if stat.stx_gid == gid { 0 } else { NOBODY })
        }
    };
    Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid,
        gid,
        rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
        submount: submount && FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory,
    }
}

/// The 32-bit form of a device number (`new_encode_dev`).
fn encode_dev(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The owners to set on the host.
pub(super) fn owners_to_host(owners: Owners, change: &SetAttr) -> Result<(Option<u32>, Option<u32>)> {
    match owners {
        Owners::Kept => Ok((change.uid, change.gid)),
        // The only owner we can give is ourselves, who is there already.
        Owners::Squashed { .. } if change.uid.unwrap_or(0) == 0 && change.gid.unwrap_or(0) == 0 => {
            Ok((None, None))
        }
        Owners::Squashed { .. } => Err(Errno::PERM),
    }
}

pub(super) fn chown(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    let id = |id: Option<u32>| id.filter(|&id| id != u32::MAX);
    rustix::fs::chownat(fd, c"", id(uid).map(Uid::from_raw), id(gid).map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

pub(super) fn timestamps(change: &SetAttr) -> Result<Timestamps> {
    let time = |time: Option<Time>| match time {
        None => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
        Some(Time::Now) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
        Some(Time::At { seconds, nanos }) if nanos < 1_000_000_000 => {
            Ok(Timespec { tv_sec: seconds, tv_nsec: nanos.into() })
        }
        Some(_) => Err(Errno::INVAL),
    };
    Ok(Timestamps { last_access: time(change.atime)?, last_modification: time(change.mtime)? })
}

/// The flags of an open that matter on the host. O_DIRECT does not: the guest's buffers may be aligned otherwise than
/// the host's disk wants. With writeback the guest reads files that it writes, and keeps the end of the file itself.
pub(super) fn open_flags(flags: u32, writeback: bool) -> OFlags {
    let kept = OFlags::RDWR | OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    let mut flags = OFlags::from_bits_retain(flags) & kept;
    if writeback {
        flags.remove(OFlags::APPEND);
        if flags.contains(OFlags::WRONLY) {
            flags.remove(OFlags::WRONLY);
            flags.insert(OFlags::RDWR);
        }
    }
    flags
}

pub(super) fn statfs(stat: &StatVfs) -> StatFs {
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    StatFs {
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        block_size: small(stat.f_bsize),
        name_max: small(stat.f_namemax).min(NAME_MAX as u32),
        fragment_size: small(stat.f_frsize),
    }
}

/// The attributes that pass: those of users, and file capabilities. The host's own (`trusted`, labels) do not.
fn passes(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

/// Extended attributes are reached by the descriptor's link in /proc, which works for `O_PATH` ones. There are none on
/// links and special files.
fn path(fd: &OwnedFd) -> Result<String> {
    match FileType::from_raw_mode(super::nodes::stat(fd)?.stx_mode.into()) {
        FileType::RegularFile | FileType::Directory => Ok(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The longest value or list of names (`XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 * 1024;

pub(super) fn getxattr(fd: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
    if !passes(name) {
        return Err(Errno::OPNOTSUPP);
    }
    let mut value = vec![0; XATTR_MAX];
    let len = rustix::fs::getxattr(path(fd)?, name, value.as_mut_slice())?;
    value.truncate(len);
    Ok(value)
}

pub(super) fn listxattr(fd: &OwnedFd) -> Result<Vec<u8>> {
    let mut names = vec![0; XATTR_MAX];
    let len = rustix::fs::listxattr(path(fd)?, names.as_mut_slice())?;
    names.truncate(len);
    let kept = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| passes(name.strip_suffix(&[0]).unwrap_or(name)));
    Ok(kept.flatten().copied().collect())
}

pub(super) fn setxattr(fd: &OwnedFd, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    if !passes(name) {
        return Err(Errno::OPNOTSUPP);
    }
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    rustix::fs::setxattr(path(fd)?, name, value, flags)
}

pub(super) fn removexattr(fd: &OwnedFd, name: &[u8]) -> Result<()> {
    if !passes(name) {
        return Err(Errno::OPNOTSUPP);
    }
    rustix::fs::removexattr(path(fd)?, name)
}
