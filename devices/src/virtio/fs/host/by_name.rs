//! Files held by the descriptor of their directory and their name in it, for hosts without descriptors that open nothing.
//!
//! macOS opens nothing without permission for its contents, and has no `/proc/self/fd`. So a directory is held by a
//! descriptor, and everything else by its directory's and one name, which is looked at again before each call and believed
//! only if the same file is there: a file that the host moved is stale (ESTALE) and the guest looks it up anew. What was
//! opened is compared before anything is done to it. Between look and call the host may put another file under the name;
//! it is one of the same directory, never one outside, for no call follows a link.
//!
//! A regular file is opened for a moment longer, so that it lives on when it loses its name while the guest knows it.
//! Links, pipes and sockets are not, nor files that may be neither read nor written: those are stale from then on.

#[cfg(not(target_os = "macos"))]
mod linux;
#[cfg(not(target_os = "macos"))]
use linux as sys;
mod entries;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as sys;
mod space;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, RenameFlags, Timestamps, Uid, XattrFlags};

use super::super::vfs::{DirEntry, Errno, Seek, StatFs};
use super::convert::XATTR_MAX;
use super::listing::Listing;
use super::system::{FileId, Found, Result, Stat, System, access, kind};

/// See the module's description.
#[derive(Debug)]
pub struct ByName(());

/// How a file is held: by a descriptor, or else by a name.
#[derive(Debug)]
pub struct Anchor {
    id: FileId,
    is_directory: bool,
    /// Of a directory, or of a file that is about to lose its name.
    fd: Option<OwnedFd>,
    /// Where it is found. A directory that has its descriptor needs none.
    place: Option<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    dir: Arc<Anchor>,
    name: CString,
}

/// What a call is about.
enum Target<'a> {
    Descriptor(BorrowedFd<'a>),
    Entry(BorrowedFd<'a>, &'a CStr),
}

/// The flags of all descriptors: never through a link, without waiting, and no other program inherits them.
const QUIET: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The result of a call of the host's, in the guest's terms.
fn ours<T>(result: rustix::io::Result<T>) -> Result<T> {
    result.map_err(sys::errno)
}

/// A name that led to a file and leads nowhere: the file is stale, not missing.
fn stale(errno: Errno) -> Errno {
    if errno == Errno::NOENT { Errno::STALE } else { errno }
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode((bits & 0o7777) as rustix::fs::RawMode)
}

/// The host's flags of an open.
fn host_flags(flags: u32) -> OFlags {
    let mut host = match access::mode(flags) {
        0 => OFlags::RDONLY,
        access::WRONLY => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    for (flag, same) in [
        (access::APPEND, OFlags::APPEND),
        (access::TRUNC, OFlags::TRUNC),
        (access::DSYNC, OFlags::DSYNC),
        (access::SYNC, OFlags::SYNC),
    ] {
        if flags & flag == flag {
            host.insert(same);
        }
    }
    host
}

/// Opens a directory, for search alone if it may not be listed.
fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | QUIET;
    match ours(rustix::fs::openat(dir, name, flags, Mode::empty())) {
        Err(Errno::ACCESS | Errno::PERM) => sys::open_for_search(dir, name),
        opened => opened,
    }
}

impl Anchor {
    /// The descriptor of a directory.
    fn directory(&self) -> Result<BorrowedFd<'_>> {
        match &self.fd {
            _ if !self.is_directory => Err(Errno::NOTDIR),
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Errno::ACCESS),
        }
    }

    /// Where the file is found by name, which is not looked at.
    fn entry(&self) -> Result<(BorrowedFd<'_>, &CStr)> {
        let place = self.place.as_ref().ok_or(Errno::STALE)?;
        Ok((place.dir.directory()?, &place.name))
    }

    /// What to call something about, looked at if it is a name.
    fn target(&self) -> Result<Target<'_>> {
        if let Some(fd) = &self.fd {
            return Ok(Target::Descriptor(fd.as_fd()));
        }
        self.looked_at()?;
        let (dir, name) = self.entry()?;
        Ok(Target::Entry(dir, name))
    }

    /// What is under the name, which must be this file.
    fn looked_at(&self) -> Result<Stat> {
        let (dir, name) = self.entry()?;
        let stat = sys::stat_at(dir, name).map_err(stale)?;
        if stat.id == self.id { Ok(stat) } else { Err(Errno::STALE) }
    }

    /// Opens the file, and nothing else that has its name by now.
    fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let (dir, name) = self.entry()?;
        // A file is emptied when it is known to be the one.
        let kept = flags.difference(OFlags::TRUNC);
        let fd = ours(rustix::fs::openat(dir, name, kept | QUIET, Mode::empty())).map_err(stale)?;
        if sys::stat(fd.as_fd())?.id != self.id {
            return Err(Errno::STALE);
        }
        if flags.contains(OFlags::TRUNC) {
            if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
                ours(rustix::fs::ftruncate(&fd, 0))?;
            } else {
                self.open(OFlags::WRONLY | OFlags::TRUNC)?;
            }
        }
        Ok(fd)
    }

    /// Opens the file for whatever is allowed.
    fn open_anyhow(&self) -> Result<OwnedFd> {
        match self.open(OFlags::RDONLY) {
            Err(Errno::ACCESS) => self.open(OFlags::WRONLY),
            opened => opened,
        }
    }

    /// Calls something with a descriptor of a regular file or a directory, for which extended attributes are.
    fn with_attributes<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>) -> Result<T> {
        if let Some(fd) = &self.fd {
            return ours(call(fd.as_fd()));
        }
        match kind::of(self.looked_at()?.attr.mode) {
            kind::FILE => ours(call(self.open_anyhow()?.as_fd())),
            kind::DIRECTORY => Err(Errno::ACCESS),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

impl System for ByName {
    type Anchor = Anchor;
    type Listing = Listing<rustix::fs::Dir>;
    const DIRECTORY_GIVES_GROUP: bool = sys::DIRECTORY_GIVES_GROUP;

    fn new() -> Result<Self> {
        Ok(Self(()))
    }

    fn root(path: &Path) -> Result<Anchor> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = ours(rustix::fs::open(path, flags, Mode::empty()))?;
        let id = sys::stat(fd.as_fd())?.id;
        Ok(Anchor { id, is_directory: true, fd: Some(fd), place: None })
    }

    fn find(parent: &Arc<Anchor>, name: &[u8]) -> Result<Found<Self>> {
        let (dir, name) = (parent.directory()?, c_string(name)?);
        let stat = sys::stat_at(dir, &name)?;
        let is_directory = kind::of(stat.attr.mode) == kind::DIRECTORY;
        if is_directory {
            match open_directory(dir, &name) {
                Ok(fd) => {
                    let stat = sys::stat(fd.as_fd())?;
                    let anchor = Anchor { id: stat.id, is_directory, fd: Some(fd), place: None };
                    return Ok(Found { anchor: Arc::new(anchor), stat });
                }
                // It can be seen, and that is all.
                Err(Errno::ACCESS | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        let place = Some(Place { dir: Arc::clone(parent), name });
        let anchor = Anchor { id: stat.id, is_directory, fd: None, place };
        Ok(Found { anchor: Arc::new(anchor), stat })
    }

    fn stat(anchor: &Anchor) -> Result<Stat> {
        match &anchor.fd {
            Some(fd) => sys::stat(fd.as_fd()),
            None => anchor.looked_at(),
        }
    }

    fn stat_open(fd: &OwnedFd) -> Result<Stat> {
        sys::stat(fd.as_fd())
    }

    fn is_pinned(anchor: &Anchor) -> bool {
        anchor.fd.is_some()
    }

    fn pin(found: &Found<Self>) -> Option<Arc<Anchor>> {
        let anchor = &found.anchor;
        if anchor.fd.is_some() {
            return Some(Arc::clone(anchor));
        }
        if kind::of(found.stat.attr.mode) != kind::FILE {
            return None;
        }
        let fd = Some(anchor.open_anyhow().ok()?);
        Some(Arc::new(Anchor { id: anchor.id, is_directory: false, fd, place: anchor.place.clone() }))
    }

    fn moves_along(anchor: &Anchor) -> bool {
        anchor.is_directory && anchor.fd.is_some()
    }

    fn open(&self, anchor: &Anchor, flags: u32) -> Result<OwnedFd> {
        anchor.open(host_flags(flags))
    }

    fn open_directory(&self, anchor: &Anchor) -> Result<OwnedFd> {
        let dir = anchor.directory()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        ours(rustix::fs::openat(dir, c".", flags, Mode::empty()))
    }

    fn again(&self, _: &OwnedFd, _: u32) -> Option<Result<OwnedFd>> {
        None
    }

    fn create(dir: &Anchor, name: &[u8], flags: u32, bits: u32) -> Result<OwnedFd> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        ours(rustix::fs::openat(dir.directory()?, name, host_flags(flags) | new, mode(bits)))
    }

    fn chmod(&self, anchor: &Anchor, bits: u32) -> Result<()> {
        match anchor.target()? {
            Target::Descriptor(fd) => ours(rustix::fs::fchmod(fd, mode(bits))),
            Target::Entry(dir, name) => sys::chmod_at(dir, name, mode(bits)),
        }
    }

    fn chown(anchor: &Anchor, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match anchor.target()? {
            Target::Descriptor(fd) => ours(rustix::fs::fchown(fd, uid, gid)),
            Target::Entry(dir, name) => {
                ours(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            }
        }
    }

    fn set_times(&self, anchor: &Anchor, times: &Timestamps) -> Result<()> {
        match anchor.target()? {
            Target::Descriptor(fd) => ours(rustix::fs::futimens(fd, times)),
            Target::Entry(dir, name) => {
                ours(rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW))
            }
        }
    }

    fn readlink(anchor: &Anchor) -> Result<Vec<u8>> {
        match anchor.target()? {
            Target::Descriptor(_) => Err(Errno::INVAL),
            Target::Entry(dir, name) => Ok(ours(rustix::fs::readlinkat(dir, name, Vec::new()))?.into_bytes()),
        }
    }

    fn symlink(dir: &Anchor, name: &[u8], target: &[u8]) -> Result<()> {
        ours(rustix::fs::symlinkat(target, dir.directory()?, name))
    }

    fn mknod(dir: &Anchor, name: &[u8], bits: u32) -> Result<()> {
        match kind::of(bits) {
            kind::FILE => Self::create(dir, name, access::WRONLY, bits).map(drop),
            kind::FIFO => sys::make_fifo(dir.directory()?, &c_string(name)?, mode(bits)),
            // Sockets are only made by binding one to a path, devices only by the superuser.
            _ => Err(Errno::PERM),
        }
    }

    fn mkdir(dir: &Anchor, name: &[u8], bits: u32) -> Result<()> {
        ours(rustix::fs::mkdirat(dir.directory()?, name, mode(bits)))
    }

    fn unlink(dir: &Anchor, name: &[u8]) -> Result<()> {
        ours(rustix::fs::unlinkat(dir.directory()?, name, AtFlags::empty()))
    }

    fn rmdir(dir: &Anchor, name: &[u8]) -> Result<()> {
        ours(rustix::fs::unlinkat(dir.directory()?, name, AtFlags::REMOVEDIR))
    }

    fn rename(from: (&Anchor, &[u8]), to: (&Anchor, &[u8]), flags: u32) -> Result<()> {
        let (old, new) = (from.0.directory()?, to.0.directory()?);
        let flags = match flags {
            0 => return ours(rustix::fs::renameat(old, from.1, new, to.1)),
            1 => RenameFlags::NOREPLACE,
            2 => RenameFlags::EXCHANGE,
            // A whiteout is a device.
            _ => return Err(Errno::INVAL),
        };
        let renamed = ours(rustix::fs::renameat_with(old, from.1, new, to.1, flags));
        // As Linux says it of a file system that cannot.
        renamed.map_err(|errno| if errno == Errno::OPNOTSUPP { Errno::INVAL } else { errno })
    }

    fn link(&self, anchor: &Anchor, dir: &Anchor, name: &[u8]) -> Result<()> {
        anchor.looked_at()?;
        let (old, old_name) = anchor.entry()?;
        ours(rustix::fs::linkat(old, old_name, dir.directory()?, name, AtFlags::empty()))
    }

    fn getxattr(anchor: &Anchor, name: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; XATTR_MAX];
        let len = anchor.with_attributes(|fd| rustix::fs::fgetxattr(fd, name, value.as_mut_slice()))?;
        value.truncate(len);
        Ok(value)
    }

    fn listxattr(anchor: &Anchor) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_MAX];
        let len = anchor.with_attributes(|fd| rustix::fs::flistxattr(fd, names.as_mut_slice()))?;
        names.truncate(len);
        Ok(names)
    }

    fn setxattr(anchor: &Anchor, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let flags = match flags {
            0 => XattrFlags::empty(),
            1 => XattrFlags::CREATE,
            2 => XattrFlags::REPLACE,
            _ => return Err(Errno::INVAL),
        };
        anchor.with_attributes(|fd| rustix::fs::fsetxattr(fd, name, value, flags))
    }

    fn removexattr(anchor: &Anchor, name: &[u8]) -> Result<()> {
        anchor.with_attributes(|fd| rustix::fs::fremovexattr(fd, name))
    }

    fn statfs(anchor: &Anchor) -> Result<StatFs> {
        match &anchor.fd {
            Some(fd) => sys::statfs(fd.as_fd()),
            None => sys::statfs(anchor.entry()?.0),
        }
    }

    fn sync(dir: &OwnedFd) -> Result<()> {
        sys::sync(dir.as_fd())
    }

    fn fsync(fd: &OwnedFd, data_only: bool) -> Result<()> {
        sys::fsync(fd.as_fd(), data_only)
    }

    fn flock(fd: &OwnedFd, operation: FlockOperation) -> Result<()> {
        ours(rustix::fs::flock(fd, operation))
    }

    fn fallocate(fd: &OwnedFd, mode: u32, offset: u64, len: u64) -> Result<()> {
        space::fallocate(fd.as_fd(), mode, offset, len)
    }

    fn seek(fd: &OwnedFd, offset: u64, seek: Seek) -> Result<u64> {
        space::seek(fd.as_fd(), offset, seek)
    }

    fn copy_range(from: (&OwnedFd, u64), to: (&OwnedFd, u64), len: u64) -> Result<u64> {
        space::copy_range((from.0.as_fd(), from.1), (to.0.as_fd(), to.1), len)
    }

    fn list(
        fd: &OwnedFd,
        listing: &mut Self::Listing,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        listing.list(fd, offset, room, only)
    }
}

#[cfg(test)]
mod tests;
