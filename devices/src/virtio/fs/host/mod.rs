//! A directory of the host, passed through.
//!
//! The guest never leaves it: every step is one name below a directory descriptor, without following links; `..`
//! and slashes are no names. Contents are opened only of regular files and directories: pipes, sockets and devices live in
//! the guest's kernel, and opening one on the host could block or worse. Device nodes cannot be made (but for overlay
//! whiteouts): on the host they would be real ones.
//!
//! What the host's kernel is asked for stands behind `system::System`. On Linux files are held by descriptors
//! (`by_descriptor.rs`); on macOS directories are, and other files by a name below one (`by_name.rs`, which tests run on Linux
//! too); on Windows by handles (`windows`), and locks are the guest's own there (`guest_locks.rs`).
//!
//! Why not a crate: the kept-up ones are tied to another version of vm-memory, switch credentials with raw system
//! calls per thread, and keep a descriptor for every file that the guest has ever seen.

#[cfg(target_os = "linux")]
mod by_descriptor;
#[cfg(any(target_os = "macos", all(test, unix)))]
#[cfg_attr(not(target_os = "macos"), allow(unreachable_pub))]
mod by_name;
mod convert;
#[cfg(any(target_os = "macos", windows, test))]
mod copy;
mod files;
#[cfg(windows)]
mod guest_locks;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "macos", windows, test))]
#[cfg_attr(target_os = "linux", allow(unreachable_pub))]
mod listing;
#[cfg(unix)]
mod locks;
mod nodes;
mod system;
#[cfg(unix)]
mod unix;
#[cfg(any(windows, test))]
mod windows;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::locks::MAX_OWNERS;
use super::vfs::{
    Attr, Cache, Caller, Create, DirEntry, Entry, Errno, FileSystem, Handle, Lock, LockKind, LockOwner, Name,
    NodeId, ROOT, Seek, SetAttr, StatFs,
};
use crate::state::{self, State, StateError};
use crate::virtio::{Reader, Writer};
use files::{Files, Kind};
#[cfg(windows)]
use guest_locks::Locks;
#[cfg(unix)]
use locks::Locks;
use nodes::{Nodes, SavedNodes};
use system::{FileId, Found, OpenFile, Result, Stat, System, access, host_owners, kind, name_bytes, resize};

#[cfg(target_os = "linux")]
pub use by_descriptor::ByDescriptor as Native;
#[cfg(target_os = "macos")]
pub use by_name::ByName as Native;
#[cfg(windows)]
pub use windows::ByHandle as Native;

/// How a directory is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How much the guest may remember.
    pub cache: Cache,
    /// The guest may keep writes for a while; the host does not see them at once.
    pub writeback: bool,
    /// Descriptors kept for files that the guest knows, at most (on macOS twice as many). More are opened and closed as
    /// needed.
    pub max_nodes_open: usize,
    /// Files and directories that the guest may have open at once (on macOS and Windows a directory that is listed takes
    /// two).
    pub max_handles: usize,
    /// Owners of locks on a file that the guest may have at once; each takes a descriptor (but on Windows).
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

/// `RENAME_EXCHANGE` of Linux.
const RENAME_EXCHANGE: u32 = 2;

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
    #[cfg_attr(windows, allow(dead_code, reason = "Windows has no owners by number"))]
    Kept,
    /// We are a user, who is root inside; everybody else is nobody.
    Squashed { uid: u32, gid: u32 },
}

/// A directory of this host, passed through.
pub type HostFs = Passthrough<Native>;

/// See the module's description.
#[derive(Debug)]
pub struct Passthrough<S: System> {
    system: S,
    nodes: Nodes<S>,
    files: Files<S>,
    locks: Locks,
    owners: Owners,
    /// The only entry of the root, if one file is shared.
    only: Option<Vec<u8>>,
    options: Options,
}

impl<S: System> Passthrough<S> {
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
        let fail = |source| OpenError { path: path.display().to_string(), source };
        let path = std::fs::canonicalize(path).map_err(fail)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(fail(std::io::ErrorKind::IsADirectory.into()));
        };
        let name = name_bytes(name).ok_or_else(|| fail(std::io::ErrorKind::InvalidInput.into()))?;
        Self::open(parent, Some(name), options)
    }

    fn open(path: &Path, only: Option<Vec<u8>>, options: Options) -> std::result::Result<Self, OpenError> {
        let opened = (|| {
            let (system, root) = (S::new()?, S::root(path)?);
            let owners = host_owners();
            let nodes = Nodes::new(root, options.max_nodes_open)?;
            let (files, locks) = (Files::new(options.max_handles), Locks::default());
            Ok(Self { system, nodes, files, locks, owners, only, options })
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

    fn attr(&self, node: NodeId, stat: &Stat) -> Attr {
        convert::attr(stat, self.owners, self.nodes.is_submount(node))
    }

    fn enter(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let dir = self.nodes.anchor(parent)?;
        let found = S::find(&dir, name.bytes())?;
        let node = self.nodes.enter(parent, name, &found)?;
        Ok(Entry { node, attr: self.attr(node, &found.stat) })
    }

    /// Opens what a node names, for its contents. Only regular files and directories; `flags` are for files.
    fn contents(&mut self, node: NodeId, wanted: Kind, flags: u32) -> Result<OpenFile> {
        let anchor = self.nodes.anchor(node)?;
        match kind::of(S::stat(&anchor)?.attr.mode) {
            kind::DIRECTORY if wanted == Kind::File => return Err(Errno::ISDIR),
            kind::FILE | kind::DIRECTORY => {}
            kind::LINK => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        match wanted {
            Kind::File => self.system.open(&anchor, flags),
            Kind::Directory => self.system.open_directory(&anchor),
        }
    }

    /// Gives a node that was just made its owner and, if the host's umask took bits, its mode; then enters it.
    fn adopt(&mut self, parent: NodeId, name: Name<'_>, caller: Caller, mode: Option<u32>) -> Result<Entry> {
        let dir = self.nodes.anchor(parent)?;
        let found = S::find(&dir, name.bytes())?;
        self.give_owners(&dir, &found, caller)?;
        let made = found.stat.attr.mode & 0o7777;
        if let Some(mode) = mode.map(|mode| mode & 0o7777 | made & 0o2000)
            && mode != made
        {
            self.system.chmod(&found.anchor, mode)?;
        }
        self.enter(parent, name)
    }

    /// Gives what was just made in a directory the owners that it has on Linux. A set-group-ID directory gives its group to
    /// what is made in it.
    fn give_owners(&self, dir: &S::Anchor, made: &Found<S>, caller: Caller) -> Result<()> {
        let inherits = || -> Result<bool> { Ok(S::stat(dir)?.attr.mode & 0o2000 != 0) };
        match self.owners {
            Owners::Kept => {
                let group = if inherits()? { None } else { Some(caller.gid) };
                chown::<S>(&made.anchor, Some(caller.uid), group)
            }
            Owners::Squashed { gid, .. } => {
                if S::DIRECTORY_GIVES_GROUP && made.stat.attr.gid != gid && !inherits()? {
                    // So that the guest sees its own group. It is the file's owner also where this cannot be had.
                    let _ = S::chown(&made.anchor, None, Some(gid));
                }
                Ok(())
            }
        }
    }

    /// Looks at an entry that is about to lose its name, and keeps its node usable.
    fn before_removal(&mut self, parent: NodeId, name: Name<'_>) -> Result<(Arc<S::Anchor>, FileId)> {
        self.visible(parent, name)?;
        self.changeable(parent)?;
        let dir = self.nodes.anchor(parent)?;
        let found = S::find(&dir, name.bytes())?;
        self.nodes.pin(&found);
        Ok((dir, found.stat.id))
    }

    /// A new entry may be made here; returns the directory.
    fn dir_for_new(&mut self, parent: NodeId) -> Result<Arc<S::Anchor>> {
        self.changeable(parent)?;
        self.nodes.anchor(parent)
    }
}

/// Changes the owners that are given.
fn chown<S: System>(anchor: &S::Anchor, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    // The largest number stands for none.
    let (uid, gid) = (uid.filter(|&id| id != u32::MAX), gid.filter(|&id| id != u32::MAX));
    if uid.is_none() && gid.is_none() { Ok(()) } else { S::chown(anchor, uid, gid) }
}

impl<S: System> FileSystem for Passthrough<S> {
    fn cache(&self) -> Cache {
        self.options.cache
    }

    fn writeback(&self) -> bool {
        self.options.writeback
    }

    fn lookup(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.visible(parent, name)?;
        self.enter(parent, name)
    }

    fn forget(&mut self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&mut self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        let stat = match handle.and_then(|handle| self.files.any(handle).ok()) {
            Some(open) => S::stat_open(&open.fd)?,
            None => match self.nodes.anchor(node).and_then(|anchor| S::stat(&anchor)) {
                // The guest has it open, and asks without saying so.
                Err(Errno::STALE) => S::stat_open(self.files.of(node).ok_or(Errno::STALE)?)?,
                stat => stat?,
            },
        };
        Ok(self.attr(node, &stat))
    }

    fn setattr(&mut self, node: NodeId, handle: Option<Handle>, change: &SetAttr) -> Result<Attr> {
        // In this order: a new size or owner takes the set-user-ID bit.
        if let Some(size) = change.size {
            match handle.and_then(|handle| self.files.writable(handle).ok()) {
                Some(open) => resize(&open.fd, size)?,
                None => resize(&self.contents(node, Kind::File, access::WRONLY)?, size)?,
            }
        }
        let anchor = self.nodes.anchor(node)?;
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = convert::owners_to_host(self.owners, change)?;
            chown::<S>(&anchor, uid, gid)?;
        }
        if let Some(mode) = change.mode {
            self.system.chmod(&anchor, mode & 0o7777)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.system.set_times(&anchor, &convert::timestamps(change)?)?;
        }
        self.getattr(node, None)
    }

    fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        S::readlink(&*self.nodes.anchor(node)?)
    }

    fn symlink(&mut self, parent: NodeId, name: Name<'_>, target: &[u8], caller: Caller) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        S::symlink(&dir, name.bytes(), target)?;
        self.adopt(parent, name, caller, None)
    }

    fn mknod(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        match kind::of(create.mode) {
            kind::FILE | kind::FIFO | kind::SOCKET => {}
            kind::CHARACTER_DEVICE if create.rdev == 0 => {}
            _ => return Err(Errno::PERM),
        }
        S::mknod(&dir, name.bytes(), create.mode)?;
        self.adopt(parent, name, create.caller, Some(create.mode))
    }

    fn mkdir(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        S::mkdir(&dir, name.bytes(), create.mode & 0o7777)?;
        self.adopt(parent, name, create.caller, Some(create.mode))
    }

    fn unlink(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let (dir, id) = self.before_removal(parent, name)?;
        S::unlink(&dir, name.bytes())?;
        self.nodes.unlinked(id, parent, &dir, name);
        Ok(())
    }

    fn rmdir(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let (dir, id) = self.before_removal(parent, name)?;
        S::rmdir(&dir, name.bytes())?;
        self.nodes.unlinked(id, parent, &dir, name);
        Ok(())
    }

    fn rename(&mut self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()> {
        let (old_dir, id) = self.before_removal(from.0, from.1)?;
        let new_dir = self.dir_for_new(to.0)?;
        let replaced = S::find(&new_dir, to.1.bytes()).ok();
        if let Some(replaced) = &replaced {
            self.nodes.pin(replaced);
        }
        #[cfg(windows)]
        if kind::of(S::find(&old_dir, from.1.bytes())?.stat.attr.mode) == kind::DIRECTORY {
            // What is held below a directory would keep it in its place.
            self.nodes.let_go();
        }
        S::rename((&*old_dir, from.1.bytes()), (&*new_dir, to.1.bytes()), flags)?;
        if let Some(replaced) = replaced.map(|found| found.stat.id) {
            if flags & RENAME_EXCHANGE != 0 {
                self.nodes.moved(replaced, from.0, from.1);
            } else if replaced != id {
                self.nodes.unlinked(replaced, to.0, &new_dir, to.1);
            }
        }
        self.nodes.moved(id, to.0, to.1);
        Ok(())
    }

    fn link(&mut self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let dir = self.dir_for_new(parent)?;
        let anchor = self.nodes.anchor(node)?;
        self.system.link(&anchor, &dir, name.bytes())?;
        self.enter(parent, name)
    }

    fn open(&mut self, node: NodeId, flags: u32) -> Result<Handle> {
        let flags = convert::open_flags(flags, self.options.writeback);
        let fd = self.contents(node, Kind::File, flags)?;
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
        match S::create(&dir, name.bytes(), open, create.mode & 0o7777) {
            Ok(fd) => {
                let entry = self.adopt(parent, name, create.caller, Some(create.mode))?;
                Ok((entry, self.files.insert(fd, entry.node, open, Kind::File)?))
            }
            Err(Errno::EXIST) if flags & access::EXCL == 0 => {
                let entry = self.enter(parent, name)?;
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
        let fd = self.contents(node, Kind::Directory, 0)?;
        self.files.insert(fd, node, 0, Kind::Directory)
    }

    fn readdir(&mut self, handle: Handle, offset: u64, room: usize) -> Result<Vec<DirEntry>> {
        let only = self.only.as_deref().filter(|_| self.files.node(handle) == Some(ROOT));
        self.files.list(handle, offset, room, only)
    }

    fn fsyncdir(&mut self, handle: Handle) -> Result<()> {
        S::fsync(&self.files.any(handle)?.fd, false)
    }

    fn releasedir(&mut self, handle: Handle) {
        self.files.remove(handle);
    }

    fn getxattr(&mut self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        convert::check_xattr(name)?;
        S::getxattr(&*self.nodes.anchor(node)?, name)
    }

    fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>> {
        Ok(convert::passing_xattrs(&S::listxattr(&*self.nodes.anchor(node)?)?))
    }

    fn setxattr(&mut self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        convert::check_xattr(name)?;
        S::setxattr(&*self.nodes.anchor(node)?, name, value, flags)
    }

    fn removexattr(&mut self, node: NodeId, name: &[u8]) -> Result<()> {
        convert::check_xattr(name)?;
        S::removexattr(&*self.nodes.anchor(node)?, name)
    }

    fn statfs(&mut self, node: NodeId) -> Result<StatFs> {
        S::statfs(&*self.nodes.anchor(node)?)
    }

    fn sync(&mut self) -> Result<()> {
        S::sync(&self.contents(ROOT, Kind::Directory, 0)?)
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
            if let Ok(fd) = self.contents(handle.node, handle.kind, handle.reopen_flags()) {
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

/// Shares a directory in one of the ways in which this host can hold files.
#[cfg(test)]
pub(super) type Share = fn(&Path, Options) -> Box<dyn FileSystem>;

/// All of those ways.
#[cfg(test)]
#[cfg(unix)]
pub(super) const WAYS: [Share; 2] = [share::<Native>, share::<by_name::ByName>];
#[cfg(all(test, windows))]
pub(super) const WAYS: [Share; 1] = [share::<Native>];

#[cfg(test)]
fn share<S: System>(path: &Path, options: Options) -> Box<dyn FileSystem> {
    Box::new(Passthrough::<S>::directory(path, options).unwrap())
}

#[cfg(test)]
mod tests;
