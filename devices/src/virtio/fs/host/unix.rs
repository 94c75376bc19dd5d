//! What Linux and macOS say alike of files, in the terms of both sides.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

pub(super) use rustix::fs::Timestamps;
use rustix::fs::{FileType, SeekFrom, Timespec, UTIME_NOW, UTIME_OMIT};

use super::super::vfs::{Errno, Seek, SetAttr, Time};
use super::Owners;
use super::system::Result;
use crate::mem::FileRef;

/// An open file or directory.
pub(super) type OpenFile = OwnedFd;

/// An open file, as reads and writes take it.
pub(super) fn file_ref(fd: &OwnedFd) -> FileRef<'_> {
    fd.as_fd()
}

/// Where a read or a write goes to in a file that was opened with these flags: the kernel knows of those that are appended to.
pub(super) fn placed(_: u32, offset: u64) -> u64 {
    offset
}

/// Changes the size of an open file.
pub(super) fn resize(fd: &OwnedFd, size: u64) -> Result<()> {
    rustix::fs::ftruncate(fd, size)?;
    Ok(())
}

/// The name that the guest knows a name of the host by.
pub(super) fn name_bytes(name: &OsStr) -> Option<Vec<u8>> {
    Some(name.as_bytes().to_vec())
}

/// How owners look from inside: for root as they are.
pub(super) fn host_owners() -> Owners {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() { Owners::Kept } else { Owners::Squashed { uid: uid.as_raw(), gid: gid.as_raw() } }
}

/// The 32-bit form of a device number (`new_encode_dev`).
pub(super) fn encode_dev(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
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

pub(super) fn seek_from(offset: u64, seek: Seek) -> SeekFrom {
    match seek {
        Seek::Data => SeekFrom::Data(offset),
        Seek::Hole => SeekFrom::Hole(offset),
    }
}

/// A file type as `d_type` has it; 0 where the host does not know.
pub(super) fn entry_kind(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}
