//! From the host's terms to the guest's and back: attributes, owners, times, flags, extended attributes.

use super::super::vfs::{Attr, Errno, SetAttr};
use super::Owners;
use super::system::{Result, Stat, access, kind};
#[cfg(unix)]
pub(super) use super::unix::{encode_dev, entry_kind, seek_from, timestamps};
#[cfg(windows)]
pub(super) use super::windows::timestamps;

/// Whom a squashed owner is shown as: nobody.
const NOBODY: u32 = 65_534;

/// The longest value of an extended attribute, or list of their names (`XATTR_SIZE_MAX`).
#[cfg(unix)]
pub(super) const XATTR_MAX: usize = 64 * 1024;

pub(super) fn attr(stat: &Stat, owners: Owners, submount: bool) -> Attr {
    let attr = stat.attr;
    let (uid, gid) = match owners {
        Owners::Kept => (attr.uid, attr.gid),
        Owners::Squashed { uid, gid } => {
            (if attr.uid == uid { 0 } else { NOBODY }, if attr.gid == gid { 0 } else { NOBODY })
        }
    };
    Attr { uid, gid, submount: submount && kind::of(attr.mode) == kind::DIRECTORY, ..attr }
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

/// The flags of an open that matter on the host. O_DIRECT does not: the guest's buffers may be aligned otherwise than
/// the host's disk wants. With writeback the guest reads files that it writes, and keeps the end of the file itself.
pub(super) fn open_flags(flags: u32, writeback: bool) -> u32 {
    use access::{APPEND, DSYNC, RDWR, SYNC, TRUNC, WRONLY};
    let mut flags = flags & (RDWR | WRONLY | APPEND | TRUNC | SYNC | DSYNC);
    if writeback {
        flags &= !APPEND;
        if flags & WRONLY != 0 {
            flags = flags & !WRONLY | RDWR;
        }
    }
    flags
}

/// Whether an entry is in a listing of a share; with `only`, no other one but `.` and `..` is.
pub(super) fn is_listed(name: &[u8], only: Option<&[u8]>) -> bool {
    only.is_none_or(|only| name == only || name == b"." || name == b"..")
}

/// The attributes that pass: those of users, and file capabilities. The host's own (`trusted`, labels) do not.
pub(super) fn check_xattr(name: &[u8]) -> Result<()> {
    if name.starts_with(b"user.") || name == b"security.capability" { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// Those of a list of names, each ended by NUL, that pass.
pub(super) fn passing_xattrs(names: &[u8]) -> Vec<u8> {
    let kept = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| check_xattr(name.strip_suffix(&[0]).unwrap_or(name)).is_ok());
    kept.flatten().copied().collect()
}
