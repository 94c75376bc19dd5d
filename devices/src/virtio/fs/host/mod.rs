//! A directory of the host, passed through.
//!
//! The guest never leaves it: every step is one name below a directory descriptor, without following links; `..`
//! and slashes are no names. Contents are opened through `/proc/self/fd` from a descriptor that is known already,
//! and only of regular files and directories: pipes, sockets and devices live in the guest's kernel, and opening one
//! on the host could block or worse. Device nodes cannot be made (but for overlay whiteouts): on the host they would
//! be real ones.
//!
//! Why not a crate: the kept-up ones are tied to another version of vm-memory, switch credentials with raw system
//! calls per thread, and keep a descriptor for every file that the guest has ever seen.

mod convert;
mod files;
mod locks;
mod nodes;

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx};
use serde::{Deserialize, Serialize};

use super::locks::MAX_OWNERS;
use super::vfs::{
    Attr, Cache, Caller, Create, DirEntry, Entry, Errno, FileSystem, Handle, Lock, LockKind, LockOwner, Name,
    NodeId, ROOT, Seek, SetAttr, StatFs,
};
use crate::state::{self, State, StateError};
use crate::virtio::{Reader, Writer};
use files::{Files, Kind};
use locks::Locks;
use nodes::{FileId, Found, Nodes, SavedNodes, find};

type Result<T> = std::result::Result<T, Errno>;

/// How a directory is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How much the guest may remember.
    pub cache: Cache,
    /// The guest may keep writes for a while; the host does not see them at once.
    pub writeback: bool,
    /// Descriptors kept for files that the guest knows, at most. More are opened and closed as needed.
    pub max_nodes_open: usize,
    /// Files and directories that the guest may have open at once.
    pub max_handles: usize,
    /// Owners of locks on a file that the guest may have at once; each takes a descriptor.
    pub max_locks: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: Cache::Auto,
            writeback: false,
            max_nodes_open: 256,
            max_handles: 512,
            max_locks: MAX_OWNERS,
        }
    }
}

/// A share cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("sharing {path}")]
pub struct OpenError {
    path: String,
    source: std::io::Error,
}

/// How owners look from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owners {
    /// As they are: we are root on the host.
    Kept,
    /// We are a user, who is root inside; everybody else is nobody.
    Squashed { uid: u32, gid: u32 },
}

/// See the module's description.
#[derive(Debug)]
pub struct HostFs {
    nodes: Nodes,
    files: Files,
    locks: Locks,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    owners: Owners,
    /// The only entry of the root, if one file is shared.
    only: Option<Vec<u8>>,
    options: Options,
}

impl HostFs {
    /// Shares the directory at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is no directory.
    pub fn directory(path: &Path, options: Options) -> std::result::Result<Self, OpenError> {
        Self::open(path, None, options)
    }

    /// Shares the one file at `path`: the root of the share has it as its only entry, under its own name, and nothing
    /// beside it can be seen or made.
    ///
    /// # Errors
    /// It does not exist, or has no name.
    pub fn file(path: &Path, options: Options) -> std::result::Result<Self, OpenError> {
        use std::os::unix::ffi::OsStrExt as _;
        let fail = |source| OpenError { path: path.display().to_string(), source };
        let path = std::fs::canonicalize(path).map_err(fail)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(fail(std::io::ErrorKind::IsADirectory.into()));
        };
        Self::open(parent, Some(name.as_bytes().to_vec()), options)
    }

    fn open(path: &Path, only: Option<Vec<u8>>, options: Options) -> std::result::Result<Self, OpenError> {
        let opened = (|| {
            let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(path, dir, Mode::empty())?;
            let descriptors = rustix::fs::open(c"/proc/self/fd", dir, Mode::empty())?;
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let owners = if uid.is_root() {
                Owners::Kept
            } else {
                Owners::Squashed { uid: uid.as_raw(), gid: gid.as_raw() }
            };
            let nodes = Nodes::new(root, options.max_nodes_open)?;
            let (files, locks) = (Files::new(options.max_handles), Locks::default());
            Ok(Self { nodes, files, locks, descriptors, owners, only, options })
        })();
        opened.map_err(|errno: Errno| OpenError { path: path.display().to_string(), source: errno.into() })
    }

    /// The only entry that the root may have hides every other one.
    fn visible(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        match &self.only {
            Some(only) if parent == ROOT && only != name.bytes() => Err(Errno::NOENT),
            _ => Ok(()),
        }
    }

    /// Whether entries of `parent` may be made, removed or renamed.
    fn changeable(&self, parent: NodeId) -> Result<()> {
        if self.only.is_some() && parent == ROOT { Err(Errno::BUSY) } else { Ok(()) }
    }

    fn attr(&self, node: NodeId, stat: &Statx) -> Attr {
        convert::attr(stat, self.owners, self.nodes.is_submount(node))
    }

    fn enter(&mut self, parent: NodeId, name: Name<'_>) -> Result<(Entry, Found)> {
        let dir = self.nodes.fd(parent)?;
        let found = find(&*dir, name.bytes())?;
        let node = self.nodes.enter(parent, name, &found)?;
        Ok((Entry { node, attr: self.attr(node, &found.stat) }, found))
    }

    /// Opens what a node names, for its contents. Only regular files and directories.
    fn reopen(&mut self, node: NodeId, flags: OFlags) -> Result<OwnedFd> {
        let fd = self.nodes.fd(node)?;
        let kind = FileType::from_raw_mode(nodes::stat(&*fd)?.stx_mode.into());
        match kind {
            FileType::Directory if !flags.contains(OFlags::DIRECTORY) => return Err(Errno::ISDIR),
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        self.open_descriptor(&fd, flags)
    }

    fn open_descriptor(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(&self.descriptors, fd.as_raw_fd().to_string(), flags, Mode::empty())
    }

    /// Gives a node that was just made its owner and, if the host's umask took bits, its mode; then enters it.
    fn adopt(&mut self, parent: NodeId, name: Name<'_>, caller: Caller, mode: Option<u32>) -> Result<Entry> {
        let dir = self.nodes.fd(parent)?;
        let found = find(&*dir, name.bytes())?;
        if self.owners == Owners::Kept {
            convert::chown(&found.fd, Some(caller.uid), inherited_group(&dir, caller)?)?;
        }
        let made = u32::from(found.stat.stx_mode) & 0o7777;
        if let Some(mode) = mode.map(|mode| mode & 0o7777 | made & 0o2000)
            && mode != made
        {
            self.chmod(&found.fd, mode)?;
        }
        Ok(self.enter(parent, name)?.0)
    }

    fn chmod(&self, fd: &OwnedFd, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(&self.descriptors, fd.as_raw_fd().to_string(), mode, AtFlags::empty())
    }

    /// Looks at an entry that is about to lose its name, and keeps its node usable.
    fn before_removal(&mut self, parent: NodeId, name: Name<'_>) -> Result<(Arc<OwnedFd>, FileId)> {
        self.visible(parent, name)?;
        self.changeable(parent)?;
        let dir = self.nodes.fd(parent)?;
        let found = find(&*dir, name.bytes())?;
        self.nodes.pin(&found);
        Ok((dir, FileId::of(&found.stat)))
    }

    fn remove(&mut self, parent: NodeId, name: Name<'_>, flags: AtFlags) -> Result<()> {
        let (dir, id) = self.before_removal(parent, name)?;
        rustix::fs::unlinkat(&*dir, name.bytes(), flags)?;
        self.nodes.unlinked(id, parent, name);
        Ok(())
    }

    /// A new entry may be made here; returns the directory.
    fn dir_for_new(&mut self, parent: NodeId) -> Result<Arc<OwnedFd>> {
        self.changeable(parent)?;
        self.nodes.fd(parent)
    }
}

/// A set-group-ID directory gives its group to what is made in it.
fn inherited_group(dir: &OwnedFd, caller: Caller) -> Result<Option<u32>> {
    let stat = nodes::stat(dir)?;
    Ok(if stat.stx_mode & 0o2000 != 0 { None } else { Some(caller.gid) })
}

impl FileSystem for HostFs {
    fn cache(&self) -> Cache {
        self.options.cache
    }

    fn writeback(&self) -> bool {
        self.options.writeback
    }

    fn lookup(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.visible(parent, name)?;
        self.enter(parent, name).map(|(entry, _)| entry)
    }

    fn forget(&mut self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&mut self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        let stat = match handle.and_then(|handle| self.files.any(handle).ok()) {
            Some(open) => nodes::stat(&open.fd)?,
            None => nodes::stat(&*self.nodes.fd(node)?)?,
        };
        Ok(self.attr(node, &stat))
    }

    fn setattr(&mut self, node: NodeId, handle: Option<Handle>, change: &SetAttr) -> Result<Attr> {
        let fd = self.nodes.fd(node)?;
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = convert::owners_to_host(self.owners, change)?;
            convert::chown(&fd, uid, gid)?;
        }
        if let Some(mode) = change.mode {
            self.chmod(&fd, mode)?;
        }
        if let Some(size) = change.size {
            match handle.and_then(|handle| self.files.writable(handle).ok()) {
                Some(open) => rustix::fs::ftruncate(&open.fd, size)?,
                None => rustix::fs::ftruncate(self.reopen(node, OFlags::WRONLY | OFlags::NONBLOCK)?, size)?,
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = convert::timestamps(change)?;
            rustix::fs::utimensat(&*fd, c"", &times, AtFlags::EMPTY_PATH).or_else(|_| {
                let link = fd.as_raw_fd().to_string();
                rustix::fs::utimensat(&self.descriptors, link, &times, AtFlags::empty())
            })?;
        }
        self.getattr(node, None)
    }

    fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        let fd = self.nodes.fd(node)?;
        Ok(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes())
    }

    fn symlink(&mut self, parent: NodeId, name: Name<'_>, target: &[u8], caller: Caller) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        rustix::fs::symlinkat(target, &*dir, name.bytes())?;
        self.adopt(parent, name, caller, None)
    }

    fn mknod(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        let kind = FileType::from_raw_mode(create.mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if create.rdev == 0 => {}
            _ => return Err(Errno::PERM),
        }
        rustix::fs::mknodat(&*dir, name.bytes(), kind, Mode::from_raw_mode(create.mode & 0o7777), 0)?;
        self.adopt(parent, name, create.caller, Some(create.mode))
    }

    fn mkdir(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        rustix::fs::mkdirat(&*dir, name.bytes(), Mode::from_raw_mode(create.mode & 0o7777))?;
        self.adopt(parent, name, create.caller, Some(create.mode))
    }

    fn unlink(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(&mut self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()> {
        let flags = rustix::fs::RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let (old_dir, id) = self.before_removal(from.0, from.1)?;
        let new_dir = self.dir_for_new(to.0)?;
        let replaced = find(&*new_dir, to.1.bytes()).ok();
        if let Some(replaced) = &replaced {
            self.nodes.pin(replaced);
        }
        let (old, new) = (from.1.bytes(), to.1.bytes());
        if flags.is_empty() {
            rustix::fs::renameat(&*old_dir, old, &*new_dir, new)?;
        } else {
            rustix::fs::renameat_with(&*old_dir, old, &*new_dir, new, flags)?;
        }
        if let Some(replaced) = replaced.map(|found| FileId::of(&found.stat)) {
            if flags.contains(rustix::fs::RenameFlags::EXCHANGE) {
                self.nodes.moved(replaced, from.0, from.1);
            } else if replaced != id {
                self.nodes.unlinked(replaced, to.0, to.1);
            }
        }
        self.nodes.moved(id, to.0, to.1);
        Ok(())
    }

    fn link(&mut self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        let fd = self.nodes.fd(node)?;
        // Through the descriptor's link in /proc: linking a bare descriptor needs a capability.
        let link = fd.as_raw_fd().to_string();
        rustix::fs::linkat(&self.descriptors, link, &*dir, name.bytes(), AtFlags::SYMLINK_FOLLOW)?;
        self.enter(parent, name).map(|(entry, _)| entry)
    }

    fn open(&mut self, node: NodeId, flags: u32) -> Result<Handle> {
        let flags = convert::open_flags(flags, self.options.writeback);
        let fd = self.reopen(node, flags | OFlags::NONBLOCK)?;
        self.files.insert(fd, node, flags, Kind::File)
    }

    fn create(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        create: Create,
        flags: u32,
    ) -> Result<(Entry, Handle)> {
        let dir = self.dir_for_new(parent)?;
        let open = convert::open_flags(flags, self.options.writeback);
        let mode = Mode::from_raw_mode(create.mode & 0o7777);
        let new = open | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        match rustix::fs::openat(&*dir, name.bytes(), new, mode) {
            Ok(fd) => {
                let entry = self.adopt(parent, name, create.caller, Some(create.mode))?;
                Ok((entry, self.files.insert(fd, entry.node, open, Kind::File)?))
            }
            Err(Errno::EXIST) if !exclusive => {
                let (entry, _) = self.enter(parent, name)?;
                Ok((entry, self.open(entry.node, flags)?))
            }
            Err(errno) => Err(errno),
        }
    }

    fn read(&mut self, handle: Handle, offset: u64, count: usize, into: &mut Writer<'_>) -> Result<usize> {
        self.files.read(handle, offset, count, into)
    }

    fn write(&mut self, handle: Handle, offset: u64, count: usize, from: &mut Reader<'_>) -> Result<usize> {
        self.files.write(handle, offset, count, from)
    }

    fn flush(&mut self, handle: Handle, owner: LockOwner) -> Result<()> {
        // Every write has reached the host's kernel already.
        let node = self.files.file(handle)?.node;
        self.locks.forget(node, owner);
        Ok(())
    }

    fn getlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<Option<Lock>> {
        self.find_lock(handle, owner, lock)
    }

    fn setlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<()> {
        self.take_lock(handle, owner, lock)
    }

    fn unlock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()> {
        self.drop_lock(handle, owner, start, end)
    }

    fn flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()> {
        self.take_flock(handle, kind)
    }

    fn fsync(&mut self, handle: Handle, data_only: bool) -> Result<()> {
        self.files.fsync(handle, data_only)
    }

    fn release(&mut self, handle: Handle) {
        self.locks.release(handle);
        self.files.remove(handle);
    }

    fn fallocate(&mut self, handle: Handle, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.files.fallocate(handle, mode, offset, len)
    }

    fn lseek(&mut self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        self.files.seek(handle, offset, seek)
    }

    fn copy_range(&mut self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64> {
        self.files.copy_range(from, to, len)
    }

    fn opendir(&mut self, node: NodeId) -> Result<Handle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.reopen(node, flags)?;
        self.files.insert(fd, node, flags, Kind::Directory)
    }

    fn readdir(&mut self, handle: Handle, offset: u64, room: usize) -> Result<Vec<DirEntry>> {
        let only = self.only.as_deref().filter(|_| self.files.node(handle) == Some(ROOT));
        self.files.list(handle, offset, room, only)
    }

    fn fsyncdir(&mut self, handle: Handle) -> Result<()> {
        rustix::fs::fsync(&self.files.any(handle)?.fd)
    }

    fn releasedir(&mut self, handle: Handle) {
        self.files.remove(handle);
    }

    fn getxattr(&mut self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        convert::getxattr(&*self.nodes.fd(node)?, name)
    }

    fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>> {
        convert::listxattr(&*self.nodes.fd(node)?)
    }

    fn setxattr(&mut self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        convert::setxattr(&*self.nodes.fd(node)?, name, value, flags)
    }

    fn removexattr(&mut self, node: NodeId, name: &[u8]) -> Result<()> {
        convert::removexattr(&*self.nodes.fd(node)?, name)
    }

    fn statfs(&mut self, node: NodeId) -> Result<StatFs> {
        Ok(convert::statfs(&rustix::fs::fstatvfs(&*self.nodes.fd(node)?)?))
    }

    fn sync(&mut self) -> Result<()> {
        rustix::fs::syncfs(self.reopen(ROOT, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    fn clear(&mut self) {
        self.locks.clear();
        self.files.clear();
        self.nodes.clear();
    }

    fn save(&self) -> std::result::Result<Vec<u8>, StateError> {
        let (nodes, handles) = (self.nodes.save(), self.files.save());
        state::encode(&HostState { nodes, handles, locks: self.locks.table.clone() })
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), StateError> {
        let saved: HostState = state::decode(bytes)?;
        self.files.clear();
        self.nodes.restore(saved.nodes);
        let mut opened = HashMap::new();
        for handle in &saved.handles {
            // A file that is gone leaves its handle unusable; the guest gets EBADF.
            if let Ok(fd) = self.reopen(handle.node, handle.reopen_flags()) {
                opened.insert(handle.handle, fd);
            }
        }
        self.files.restore(&saved.handles, opened);
        // A guest that believes in a lock that another has by now must not run.
        self.restore_locks(&saved.locks).map_err(|why| StateError::Mismatch { what: HostState::NAME, why })
    }
}

/// What the guest knows of the share.
#[derive(Debug, Serialize, Deserialize)]
struct HostState {
    nodes: SavedNodes,
    handles: Vec<files::SavedHandle>,
    locks: super::locks::Table,
}

impl State for HostState {
    const NAME: &'static str = "shared directory";
    const VERSION: u16 = 2;
}

#[cfg(test)]
mod tests;
