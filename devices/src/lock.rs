//! Locks of byte ranges that belong to an open file description (`F_OFD_SETLK`, fcntl(2)): they conflict with those of
//! every other description and process, and end with the last descriptor of their own. Windows has none.

// A leaf that may use unsafe: fcntl's lock commands take a structure by pointer, which no crate of ours offers.
#![allow(unsafe_code)]

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::{AsRawFd as _, BorrowedFd};

// The type of these numbers is another one in each system's header.
#[cfg(unix)]
const UNLOCK: libc::c_short = libc::F_UNLCK as libc::c_short;
#[cfg(unix)]
const READ: libc::c_short = libc::F_RDLCK as libc::c_short;
#[cfg(unix)]
const WRITE: libc::c_short = libc::F_WRLCK as libc::c_short;

/// What a lock keeps away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exclusive locks of others.
    Shared,
    /// Every lock of others.
    Exclusive,
}

/// The last byte that a lock can name: a lock up to there goes on to the end of the file, however far that grows.
pub const LAST: u64 = i64::MAX.cast_unsigned();

/// The bytes `start` to `end`, both among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The last byte, at most [`LAST`].
    pub end: u64,
}

/// Takes a lock for the description behind `file`, in place of what it has there; gives up what it has for `None`. Never
/// waits.
///
/// # Errors
/// `WouldBlock` while another has a lock that conflicts; the error of `fcntl(2)`.
#[cfg(unix)]
pub fn set(file: BorrowedFd<'_>, range: Range, kind: Option<Kind>) -> io::Result<()> {
    let mut lock = encode(range, kind);
    // SAFETY: `lock` is a valid flock structure for the call, which only reads it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // POSIX lets a system say either.
    if error.raw_os_error() == Some(libc::EACCES) {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Err(error)
    }
}

/// A lock of another that keeps the description behind `file` from taking this one, if there is one.
///
/// # Errors
/// The error of `fcntl(2)`.
#[cfg(unix)]
pub fn test(file: BorrowedFd<'_>, range: Range, kind: Kind) -> io::Result<Option<(Range, Kind)>> {
    let mut lock = encode(range, Some(kind));
    // SAFETY: `lock` is a valid flock structure for the call, which fills it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = match lock.l_type {
        UNLOCK => return Ok(None),
        READ => Kind::Shared,
        _ => Kind::Exclusive,
    };
    let start = u64::try_from(lock.l_start).unwrap_or(0);
    let len = u64::try_from(lock.l_len).unwrap_or(0);
    let end = if len == 0 { LAST } else { start.saturating_add(len - 1).min(LAST) };
    Ok(Some((Range { start, end }, kind)))
}

#[cfg(unix)]
fn encode(range: Range, kind: Option<Kind>) -> libc::flock {
    let end = range.end.min(LAST);
    // The length 0 means up to the end, however far.
    let len = if end == LAST { 0 } else { end.saturating_sub(range.start) + 1 };
    let kind = match kind {
        None => UNLOCK,
        Some(Kind::Shared) => READ,
        Some(Kind::Exclusive) => WRITE,
    };
    libc::flock {
        l_type: kind,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start.min(LAST).cast_signed(),
        l_len: len.cast_signed(),
        l_pid: 0,
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn descriptions_keep_each_other_out_and_are_told_of_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (file.reopen().unwrap(), file.reopen().unwrap());
        let range = |start, end| Range { start, end };
        set(one.as_fd(), range(10, 19), Some(Kind::Exclusive)).unwrap();
        let refused = set(two.as_fd(), range(0, LAST), Some(Kind::Shared)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let found = test(two.as_fd(), range(15, LAST), Kind::Shared).unwrap();
        assert_eq!(found, Some((range(10, 19), Kind::Exclusive)));
        assert_eq!(
            test(one.as_fd(), range(0, LAST), Kind::Exclusive).unwrap(),
            None,
            "one's own is no obstacle"
        );
        set(two.as_fd(), range(20, LAST), Some(Kind::Exclusive)).unwrap();
        assert_eq!(
            test(one.as_fd(), range(20, 20), Kind::Shared).unwrap(),
            Some((range(20, LAST), Kind::Exclusive))
        );
        set(one.as_fd(), range(0, LAST), None).unwrap();
        drop(two);
        set(one.as_fd(), range(0, LAST), Some(Kind::Exclusive)).unwrap();
    }
}
