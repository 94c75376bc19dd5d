//! A file system in memory: for tests and fuzzing, and for files that the host injects into a guest.
//!
//! Complete but for durability; its contents are part of its saved state. The guest can fill it up to a limit.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::locks::{MAX_OWNERS, Table};
use super::vfs::{
    Attr, Cache, Caller, Create, DirEntry, Entry, Errno, FileSystem, Handle, LAST_BYTE, Lock, LockKind,
    LockOwner, NAME_MAX, Name, NodeId, ROOT, Seek, SetAttr, StatFs, Time,
};
use super::wire;
use crate::state::{self, State, StateError};
use crate::virtio::{Reader, Writer};

mod nodes;

use nodes::{Body, Names, Node, now};

type Result<T> = std::result::Result<T, Errno>;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const O_RDONLY: u32 = 0;
const O_WRONLY: u32 = 1;
const O_ACCMODE: u32 = 3;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
const O_EXCL: u32 = 0o200;

/// See the module's description.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemFs {
    nodes: HashMap<NodeId, Node>,
    handles: HashMap<Handle, (NodeId, u32)>,
    locks: Table,
    next: u64,
    used: u64,
    limit: u64,
}

impl MemFs {
    /// An empty file system that takes up to `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let body = Body::Directory { names: Names::new(), parent: ROOT, next: 3 };
        let root = Node::new(S_IFDIR | 0o755, Caller::default(), body);
        let locks = Table::default();
        Self { nodes: HashMap::from([(ROOT, root)]), handles: HashMap::new(), locks, next: 2, used: 0, limit }
    }

    /// Puts a file, owned by root, into the root directory.
    ///
    /// # Errors
    /// The name is none or taken, or the limit is reached.
    pub fn put(&mut self, name: &str, contents: &[u8], mode: u32) -> Result<()> {
        let name = Name::new(name.as_bytes())?;
        self.charge(contents.len() as u64)?;
        let node = Node::new(S_IFREG | mode & 0o7777, Caller::default(), Body::File(contents.to_vec()));
        let entry = self.add(ROOT, name, node)?;
        self.forget(entry.node, 1);
        Ok(())
    }
}

impl FileSystem for MemFs {
    fn cache(&self) -> Cache {
        Cache::Always
    }

    fn writeback(&self) -> bool {
        false
    }

    fn lookup(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let node = self.find(parent, name)?;
        self.entry(node)
    }

    fn forget(&mut self, node: NodeId, count: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(count);
        }
        if node != ROOT {
            self.drop_unused(node);
        }
    }

    fn getattr(&mut self, node: NodeId, _: Option<Handle>) -> Result<Attr> {
        Ok(self.node(node)?.attr(node))
    }

    fn setattr(&mut self, node: NodeId, _: Option<Handle>, change: &SetAttr) -> Result<Attr> {
        if let Some(size) = change.size {
            self.resize(node, size)?;
        }
        let time = |time| match time {
            Time::Now => now(),
            Time::At { seconds, nanos } => (seconds, nanos),
        };
        let known = self.node_mut(node)?;
        known.mode = change.mode.map_or(known.mode, |mode| known.mode & S_IFMT | mode & 0o7777);
        known.uid = change.uid.unwrap_or(known.uid);
        known.gid = change.gid.unwrap_or(known.gid);
        known.atime = change.atime.map_or(known.atime, time);
        known.ctime = now();
        known.mtime = match (change.mtime, change.size) {
            (Some(mtime), _) => time(mtime),
            (None, Some(_)) => known.ctime,
            (None, None) => known.mtime,
        };
        Ok(known.attr(node))
    }

    fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        match &self.node(node)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    fn symlink(&mut self, parent: NodeId, name: Name<'_>, target: &[u8], caller: Caller) -> Result<Entry> {
        self.add(parent, name, Node::new(S_IFLNK | 0o777, caller, Body::Symlink(target.to_vec())))
    }

    fn mknod(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let body = match create.mode & S_IFMT {
            S_IFREG => Body::File(Vec::new()),
            S_IFDIR | S_IFLNK => return Err(Errno::INVAL),
            _ => Body::Special { rdev: create.rdev },
        };
        self.add(parent, name, Node::new(create.mode, create.caller, body))
    }

    fn mkdir(&mut self, parent: NodeId, name: Name<'_>, create: Create) -> Result<Entry> {
        let body = Body::Directory { names: Names::new(), parent, next: 3 };
        self.add(parent, name, Node::new(S_IFDIR | create.mode & 0o7777, create.caller, body))
    }

    fn unlink(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let node = self.find(parent, name)?;
        if matches!(self.node(node)?.body, Body::Directory { .. }) {
            return Err(Errno::ISDIR);
        }
        self.unname(parent, name)?;
        self.unlinked(node);
        Ok(())
    }

    fn rmdir(&mut self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let node = self.find(parent, name)?;
        if !self.names(node)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.unname(parent, name)?;
        self.unlinked(node);
        Ok(())
    }

    fn rename(&mut self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()> {
        const NOREPLACE: u32 = 1;
        const EXCHANGE: u32 = 2;
        let node = self.find(from.0, from.1)?;
        let target = self.find(to.0, to.1);
        // A directory cannot be moved below itself.
        let mut above = to.0;
        while above != ROOT {
            if above == node {
                return Err(Errno::INVAL);
            }
            let Body::Directory { parent, .. } = self.node(above)?.body else { return Err(Errno::NOTDIR) };
            above = parent;
        }
        match (flags, target) {
            (0, Ok(target)) if target == node => return Ok(()),
            (0, Ok(target)) => {
                let dirs = [node, target].map(|id| self.names(id).is_ok());
                match dirs {
                    [true, false] => return Err(Errno::NOTDIR),
                    [false, true] => return Err(Errno::ISDIR),
                    [true, true] => self.rmdir(to.0, to.1)?,
                    [false, false] => self.unlink(to.0, to.1)?,
                }
            }
            (0 | NOREPLACE, Err(_)) => drop(self.names(to.0)?),
            (NOREPLACE, Ok(_)) => return Err(Errno::EXIST),
            (EXCHANGE, Ok(target)) => {
                self.unname(to.0, to.1)?;
                self.unname(from.0, from.1)?;
                self.name(from.0, from.1, target)?;
                return self.name(to.0, to.1, node);
            }
            (EXCHANGE, Err(errno)) => return Err(errno),
            _ => return Err(Errno::INVAL),
        }
        self.unname(from.0, from.1)?;
        self.name(to.0, to.1, node)
    }

    fn link(&mut self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let known = self.node(node)?;
        if matches!(known.body, Body::Directory { .. }) {
            return Err(Errno::PERM);
        }
        // A file without a name is gone for good, as on a disk.
        if known.nlink == 0 {
            return Err(Errno::NOENT);
        }
        if self.names(parent)?.contains_key(name.bytes()) {
            return Err(Errno::EXIST);
        }
        self.name(parent, name, node)?;
        self.node_mut(node)?.nlink += 1;
        self.entry(node)
    }

    fn open(&mut self, node: NodeId, flags: u32) -> Result<Handle> {
        match self.node(node)?.body {
            Body::File(_) => {}
            Body::Directory { .. } => return Err(Errno::ISDIR),
            Body::Symlink(_) => return Err(Errno::LOOP),
            Body::Special { .. } => return Err(Errno::NXIO),
        }
        if flags & O_TRUNC != 0 {
            self.resize(node, 0)?;
        }
        self.open_node(node, flags)
    }

    fn create(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        create: Create,
        flags: u32,
    ) -> Result<(Entry, Handle)> {
        let entry = match self.mknod(parent, name, Create { mode: S_IFREG | create.mode & 0o7777, ..create })
        {
            Err(Errno::EXIST) if flags & O_EXCL == 0 => self.lookup(parent, name)?,
            made => made?,
        };
        Ok((entry, self.open(entry.node, flags)?))
    }

    fn read(&mut self, handle: Handle, offset: u64, count: usize, into: &mut Writer<'_>) -> Result<usize> {
        let (node, _) = self.file(handle)?;
        let Body::File(bytes) = &node.body else { return Err(Errno::ISDIR) };
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
        into.write(rest.get(..count).unwrap_or(rest)).map_err(|_| Errno::IO)
    }

    fn write(&mut self, handle: Handle, offset: u64, count: usize, from: &mut Reader<'_>) -> Result<usize> {
        let &(id, flags) = self.handles.get(&handle).ok_or(Errno::BADF)?;
        let Body::File(bytes) = &self.node(id)?.body else { return Err(Errno::ISDIR) };
        let old = bytes.len() as u64;
        let offset = if flags & O_APPEND != 0 { old } else { offset };
        let end = offset.checked_add(count as u64).ok_or(Errno::FBIG)?;
        if end > old {
            self.resize(id, end)?;
        }
        let (node, _) = self.file(handle)?;
        node.mtime = now();
        let Body::File(bytes) = &mut node.body else { return Err(Errno::ISDIR) };
        let start = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
        let place = bytes.get_mut(start..start.saturating_add(count)).ok_or(Errno::IO)?;
        from.read(place).map_err(|_| Errno::IO)
    }

    fn flush(&mut self, handle: Handle, owner: LockOwner) -> Result<()> {
        let node = self.opened(handle)?;
        self.locks.unset(node, owner, 0, LAST_BYTE);
        Ok(())
    }

    fn getlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<Option<Lock>> {
        Ok(self.locks.conflict(self.opened(handle)?, owner, lock))
    }

    fn setlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<()> {
        let node = self.opened(handle)?;
        let access = self.handles.get(&handle).map_or(0, |&(_, flags)| flags & O_ACCMODE);
        if access == if lock.kind == LockKind::Exclusive { O_RDONLY } else { O_WRONLY } {
            return Err(Errno::BADF);
        }
        if self.locks.conflict(node, owner, lock).is_some() {
            return Err(Errno::AGAIN);
        }
        self.locks.room(node, owner, MAX_OWNERS)?;
        self.locks.set(node, owner, handle, lock);
        Ok(())
    }

    fn unlock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()> {
        let node = self.opened(handle)?;
        self.locks.room_for_hole(node, owner, start, end)?;
        self.locks.unset(node, owner, start, end);
        Ok(())
    }

    fn flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()> {
        let node = self.opened(handle)?;
        if kind.is_some_and(|kind| self.locks.flock_conflict(node, handle, kind)) {
            return Err(Errno::AGAIN);
        }
        self.locks.set_flock(node, handle, kind);
        Ok(())
    }

    fn fsync(&mut self, handle: Handle, _: bool) -> Result<()> {
        self.file(handle).map(|_| ())
    }

    fn release(&mut self, handle: Handle) {
        self.locks.release(handle);
        if let Some((node, _)) = self.handles.remove(&handle) {
            if let Some(known) = self.nodes.get_mut(&node) {
                known.opens = known.opens.saturating_sub(1);
            }
            self.drop_unused(node);
        }
    }

    fn fallocate(&mut self, handle: Handle, mode: u32, offset: u64, len: u64) -> Result<()> {
        const KEEP_SIZE: u32 = 1;
        let &(id, _) = self.handles.get(&handle).ok_or(Errno::BADF)?;
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        let Body::File(bytes) = &self.node(id)?.body else { return Err(Errno::INVAL) };
        match mode {
            KEEP_SIZE => Ok(()),
            0 if end > bytes.len() as u64 => self.resize(id, end),
            0 => Ok(()),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn lseek(&mut self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        let (node, _) = self.file(handle)?;
        let Body::File(bytes) = &node.body else { return Err(Errno::INVAL) };
        let len = bytes.len() as u64;
        match seek {
            _ if offset >= len => Err(Errno::NXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(len),
        }
    }

    fn copy_range(&mut self, _: (Handle, u64), _: (Handle, u64), _: u64) -> Result<u64> {
        // The guest's kernel falls back to reading and writing.
        Err(Errno::OPNOTSUPP)
    }

    fn opendir(&mut self, node: NodeId) -> Result<Handle> {
        self.names(node)?;
        self.open_node(node, 0)
    }

    fn readdir(&mut self, handle: Handle, offset: u64, room: usize) -> Result<Vec<DirEntry>> {
        let &(id, _) = self.handles.get(&handle).ok_or(Errno::BADF)?;
        let Body::Directory { names, parent, .. } = &self.node(id)?.body else { return Err(Errno::NOTDIR) };
        let dots = [(&b"."[..], id, 1), (&b".."[..], *parent, 2)];
        let named = names.iter().map(|(name, &(node, place))| (name.as_slice(), node, place));
        let mut all: Vec<_> = dots.into_iter().chain(named).filter(|&(_, _, place)| place > offset).collect();
        all.sort_unstable_by_key(|&(_, _, place)| place);
        let (mut entries, mut len) = (Vec::new(), 0);
        for (name, node, next) in all {
            len += wire::dirent_len(name);
            if len > room {
                break;
            }
            let kind = self.nodes.get(&node).map_or(0, |node| (node.mode & S_IFMT) >> 12);
            entries.push(DirEntry { ino: node, next, kind, name: name.to_vec() });
        }
        Ok(entries)
    }

    fn fsyncdir(&mut self, handle: Handle) -> Result<()> {
        self.file(handle).map(|_| ())
    }

    fn releasedir(&mut self, handle: Handle) {
        self.release(handle);
    }

    fn getxattr(&mut self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.node(node)?.xattrs.get(name).cloned().ok_or(Errno::NODATA)
    }

    fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>> {
        Ok(self.node(node)?.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    fn setxattr(&mut self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        const CREATE: u32 = 1;
        const REPLACE: u32 = 2;
        let there = self.node(node)?.xattrs.contains_key(name);
        match flags {
            CREATE if there => return Err(Errno::EXIST),
            REPLACE if !there => return Err(Errno::NODATA),
            _ => {}
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Errno::RANGE);
        }
        self.charge((name.len() + value.len()) as u64)?;
        self.node_mut(node)?.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn removexattr(&mut self, node: NodeId, name: &[u8]) -> Result<()> {
        let value = self.node_mut(node)?.xattrs.remove(name).ok_or(Errno::NODATA)?;
        self.used = self.used.saturating_sub((name.len() + value.len()) as u64);
        Ok(())
    }

    fn statfs(&mut self, _: NodeId) -> Result<StatFs> {
        let free = self.limit.saturating_sub(self.used) / 4096;
        Ok(StatFs {
            blocks: self.limit / 4096,
            blocks_free: free,
            blocks_available: free,
            files: self.nodes.len() as u64,
            files_free: free,
            block_size: 4096,
            name_max: NAME_MAX as u32,
            fragment_size: 4096,
        })
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self) {
        self.handles.clear();
        self.locks.clear();
        self.nodes.retain(|&id, node| id == ROOT || node.nlink > 0);
        for node in self.nodes.values_mut() {
            node.lookups = 0;
            node.opens = 0;
        }
    }

    fn save(&self) -> std::result::Result<Vec<u8>, StateError> {
        state::encode(self)
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), StateError> {
        *self = state::decode(bytes)?;
        Ok(())
    }
}

impl State for MemFs {
    const NAME: &'static str = "file system in memory";
    const VERSION: u16 = 2;
}
