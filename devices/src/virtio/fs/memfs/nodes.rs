//! The nodes of a file system in memory, their names, and what they cost.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::super::vfs::{Attr, Caller, Entry, Errno, Handle, Name, NodeId};
use super::{MemFs, Result};

/// What a node costs beside its contents.
const NODE_COST: u64 = 512;

/// Entries of a directory: name, then node and place in the listing.
pub(super) type Names = BTreeMap<Vec<u8>, (NodeId, u64)>;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Body {
    File(Vec<u8>),
    Directory { names: Names, parent: NodeId, next: u64 },
    Symlink(Vec<u8>),
    Special { rdev: u32 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) atime: (i64, u32),
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) lookups: u64,
    pub(super) opens: u64,
    pub(super) body: Body,
}

pub(super) fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

impl Node {
    pub(super) fn new(mode: u32, caller: Caller, body: Body) -> Self {
        let time = now();
        Self {
            mode,
            uid: caller.uid,
            gid: caller.gid,
            nlink: if matches!(body, Body::Directory { .. }) { 2 } else { 1 },
            atime: time,
            mtime: time,
            ctime: time,
            xattrs: BTreeMap::new(),
            lookups: 0,
            opens: 0,
            body,
        }
    }

    pub(super) fn attr(&self, ino: u64) -> Attr {
        let size = match &self.body {
            Body::File(bytes) | Body::Symlink(bytes) => bytes.len() as u64,
            Body::Directory { .. } | Body::Special { .. } => 0,
        };
        Attr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: if let Body::Special { rdev } = self.body { rdev } else { 0 },
            blksize: 4096,
            submount: false,
        }
    }
}

impl MemFs {
    pub(super) fn node(&self, node: NodeId) -> Result<&Node> {
        self.nodes.get(&node).ok_or(Errno::STALE)
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&node).ok_or(Errno::STALE)
    }

    pub(super) fn names(&self, dir: NodeId) -> Result<&Names> {
        match &self.node(dir)?.body {
            Body::Directory { names, .. } => Ok(names),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn find(&self, dir: NodeId, name: Name<'_>) -> Result<NodeId> {
        self.names(dir)?.get(name.bytes()).map(|&(node, _)| node).ok_or(Errno::NOENT)
    }

    pub(super) fn file(&mut self, handle: Handle) -> Result<(&mut Node, u32)> {
        let &(node, flags) = self.handles.get(&handle).ok_or(Errno::BADF)?;
        Ok((self.nodes.get_mut(&node).ok_or(Errno::BADF)?, flags))
    }

    /// The file behind a handle.
    pub(super) fn opened(&self, handle: Handle) -> Result<NodeId> {
        let &(node, _) = self.handles.get(&handle).ok_or(Errno::BADF)?;
        match self.node(node)?.body {
            Body::Directory { .. } => Err(Errno::ISDIR),
            _ => Ok(node),
        }
    }

    pub(super) fn charge(&mut self, bytes: u64) -> Result<()> {
        let used = self.used.checked_add(bytes).filter(|&used| used <= self.limit).ok_or(Errno::NOSPC)?;
        self.used = used;
        Ok(())
    }

    pub(super) fn entry(&mut self, node: NodeId) -> Result<Entry> {
        let known = self.node_mut(node)?;
        known.lookups = known.lookups.saturating_add(1);
        Ok(Entry { node, attr: known.attr(node) })
    }

    /// Names a node in a directory. The name must be free.
    pub(super) fn name(&mut self, dir: NodeId, name: Name<'_>, node: NodeId) -> Result<()> {
        let is_dir = matches!(self.node(node)?.body, Body::Directory { .. });
        let directory = self.node_mut(dir)?;
        let Body::Directory { names, next, .. } = &mut directory.body else { return Err(Errno::NOTDIR) };
        names.insert(name.bytes().to_vec(), (node, *next));
        *next += 1;
        directory.mtime = now();
        directory.nlink += u32::from(is_dir);
        if let Body::Directory { parent, .. } = &mut self.node_mut(node)?.body {
            *parent = dir;
        }
        Ok(())
    }

    /// Takes a name away; the node itself stays.
    pub(super) fn unname(&mut self, dir: NodeId, name: Name<'_>) -> Result<NodeId> {
        let node = self.find(dir, name)?;
        let is_dir = matches!(self.node(node)?.body, Body::Directory { .. });
        let directory = self.node_mut(dir)?;
        if let Body::Directory { names, .. } = &mut directory.body {
            names.remove(name.bytes());
        }
        directory.mtime = now();
        directory.nlink -= u32::from(is_dir).min(directory.nlink);
        Ok(node)
    }

    pub(super) fn add(&mut self, dir: NodeId, name: Name<'_>, node: Node) -> Result<Entry> {
        if self.names(dir)?.contains_key(name.bytes()) {
            return Err(Errno::EXIST);
        }
        self.charge(NODE_COST)?;
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.name(dir, name, id)?;
        self.entry(id)
    }

    /// A node lost a link.
    pub(super) fn unlinked(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            let all = if matches!(known.body, Body::Directory { .. }) { known.nlink } else { 1 };
            known.nlink = known.nlink.saturating_sub(all);
            known.ctime = now();
        }
        self.drop_unused(node);
    }

    pub(super) fn drop_unused(&mut self, node: NodeId) {
        let unused = |node: &Node| node.nlink == 0 && node.lookups == 0 && node.opens == 0;
        if self.nodes.get(&node).is_some_and(unused)
            && let Some(gone) = self.nodes.remove(&node)
        {
            let size = if let Body::File(bytes) = &gone.body { bytes.len() as u64 } else { 0 };
            self.used = self.used.saturating_sub(size + NODE_COST);
        }
    }

    pub(super) fn open_node(&mut self, node: NodeId, flags: u32) -> Result<Handle> {
        self.node_mut(node)?.opens += 1;
        let handle = self.next;
        self.next += 1;
        self.handles.insert(handle, (node, flags));
        Ok(handle)
    }

    pub(super) fn resize(&mut self, node: NodeId, size: u64) -> Result<()> {
        let Body::File(bytes) = &self.node(node)?.body else { return Err(Errno::INVAL) };
        let old = bytes.len() as u64;
        self.charge(size.saturating_sub(old))?;
        self.used = self.used.saturating_sub(old.saturating_sub(size));
        let size = usize::try_from(size).map_err(|_| Errno::FBIG)?;
        if let Body::File(bytes) = &mut self.node_mut(node)?.body {
            bytes.resize(size, 0);
        }
        Ok(())
    }
}
