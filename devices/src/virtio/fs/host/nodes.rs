//! The nodes of a passed-through directory that the guest knows.
//!
//! A node is found again by its parent and name, one step at a time and never through a symbolic link, and is
//! believed only if the file there is still the same one. So descriptors are a cache: the least used are closed
//! when there are too many, and the table can be saved and restored. A node whose name is gone keeps its
//! descriptor until the guest forgets it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use serde::{Deserialize, Serialize};

use super::super::vfs::{Errno, Name, NodeId, ROOT};

/// The most nodes that one guest may know.
const MAX_NODES: usize = 1 << 22;

/// What makes a file the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileId {
    dev: (u32, u32),
    ino: u64,
    /// Birth time where the file system keeps one: inode numbers are used again.
    born: (i64, u32),
}

impl FileId {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        }
    }
}

/// One node.
#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// `None`: the root, or a file whose name is gone.
    name: Option<Vec<u8>>,
    id: FileId,
    /// `O_PATH`, not following links.
    fd: Option<Arc<OwnedFd>>,
    lookups: u64,
    /// Nodes that have this one as their parent.
    children: u64,
    /// When it was used last, by the table's own clock.
    used: u64,
    submount: bool,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Nodes {
    map: HashMap<NodeId, Node>,
    by_id: HashMap<FileId, NodeId>,
    next: NodeId,
    open: usize,
    max_open: usize,
    clock: u64,
}

/// A file that was just looked at: its descriptor and what it is.
pub(super) struct Found {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) stat: Statx,
}

/// Looks at one entry of a directory, without following it if it is a link.
pub(super) fn find(parent: impl AsFd, name: &[u8]) -> Result<Found, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = stat(&fd)?;
    Ok(Found { fd: Arc::new(fd), stat })
}

/// The attributes of what a descriptor names.
pub(super) fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, want)
}

impl Nodes {
    /// A table that knows the root only and keeps at most `max_open` descriptors that it can do without.
    pub(super) fn new(root: OwnedFd, max_open: usize) -> Result<Self, Errno> {
        let id = FileId::of(&stat(&root)?);
        let root = Node {
            parent: ROOT,
            name: None,
            id,
            fd: Some(Arc::new(root)),
            lookups: 1,
            children: 0,
            used: 0,
            submount: false,
        };
        Ok(Self {
            map: HashMap::from([(ROOT, root)]),
            by_id: HashMap::from([(id, ROOT)]),
            next: ROOT + 1,
            open: 1,
            max_open: max_open.max(2),
            clock: 0,
        })
    }

    /// The descriptor of a node, opened again if it was closed.
    pub(super) fn fd(&mut self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        // From the node up to the first ancestor that is open, then down again.
        let mut path = vec![node];
        let depth_limit = self.map.len();
        let mut fd = loop {
            let &last = path.last().ok_or(Errno::STALE)?;
            let found = self.map.get_mut(&last).ok_or(Errno::STALE)?;
            self.clock += 1;
            found.used = self.clock;
            match &found.fd {
                Some(fd) => break Arc::clone(fd),
                None if found.name.is_none() || path.len() > depth_limit => return Err(Errno::STALE),
                None => path.push(found.parent),
            }
        };
        path.pop();
        while let Some(child) = path.pop() {
            let entry = self.map.get(&child).ok_or(Errno::STALE)?;
            let name = entry.name.as_deref().ok_or(Errno::STALE)?;
            let found = find(&*fd, name).map_err(|_| Errno::STALE)?;
            if FileId::of(&found.stat) != entry.id {
                return Err(Errno::STALE);
            }
            fd = found.fd;
            self.keep_open(child, &fd);
        }
        Ok(fd)
    }

    /// Counts a found file once more; returns its node.
    pub(super) fn enter(&mut self, parent: NodeId, name: Name<'_>, found: &Found) -> Result<NodeId, Errno> {
        let id = FileId::of(&found.stat);
        if let Some(&node) = self.by_id.get(&id) {
            if let Some(known) = self.map.get_mut(&node) {
                known.lookups = known.lookups.saturating_add(1);
            }
            self.place(node, parent, Some(name));
            self.keep_open(node, &found.fd);
            return Ok(node);
        }
        if self.map.len() >= MAX_NODES {
            return Err(Errno::NOMEM);
        }
        let submount = match self.map.get_mut(&parent) {
            Some(parent) => {
                parent.children += 1;
                parent.id.dev != id.dev
            }
            None => return Err(Errno::STALE),
        };
        let node = self.next;
        self.next += 1;
        let name = Some(name.bytes().to_vec());
        self.map.insert(
            node,
            Node { parent, name, id, fd: None, lookups: 1, children: 0, used: self.clock, submount },
        );
        self.by_id.insert(id, node);
        self.keep_open(node, &found.fd);
        Ok(node)
    }

    pub(super) fn is_submount(&self, node: NodeId) -> bool {
        self.map.get(&node).is_some_and(|node| node.submount)
    }

    /// The guest forgets `count` lookups of a node.
    pub(super) fn forget(&mut self, node: NodeId, count: u64) {
        if node == ROOT {
            return;
        }
        if let Some(known) = self.map.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(count);
        }
        self.drop_unused(node);
    }

    /// A file got this name (a rename).
    pub(super) fn moved(&mut self, id: FileId, parent: NodeId, name: Name<'_>) {
        if let Some(&node) = self.by_id.get(&id) {
            self.place(node, parent, Some(name));
        }
    }

    /// A file is about to lose a name: the node, if the guest knows it, must not depend on that name any more.
    pub(super) fn pin(&mut self, found: &Found) {
        if let Some(&node) = self.by_id.get(&FileId::of(&found.stat))
            && let Some(known) = self.map.get_mut(&node)
            && known.fd.is_none()
        {
            known.fd = Some(Arc::clone(&found.fd));
            self.open += 1;
        }
    }

    /// A file lost the name `name` in `parent`.
    pub(super) fn unlinked(&mut self, id: FileId, parent: NodeId, name: Name<'_>) {
        if let Some(&node) = self.by_id.get(&id)
            && let Some(known) = self.map.get_mut(&node)
            && known.parent == parent
            && known.name.as_deref() == Some(name.bytes())
        {
            known.name = None;
        }
    }

    /// Forgets everything but the root.
    pub(super) fn clear(&mut self) {
        self.map.retain(|&node, _| node == ROOT);
        self.by_id.retain(|_, node| *node == ROOT);
        self.open = 1;
        if let Some(root) = self.map.get_mut(&ROOT) {
            root.children = 0;
        }
    }

    /// Changes where a node is found.
    fn place(&mut self, node: NodeId, parent: NodeId, name: Option<Name<'_>>) {
        if node == ROOT {
            return;
        }
        let Some(known) = self.map.get_mut(&node) else { return };
        known.name = name.map(|name| name.bytes().to_vec());
        let old = std::mem::replace(&mut known.parent, parent);
        if old != parent {
            if let Some(parent) = self.map.get_mut(&parent) {
                parent.children += 1;
            }
            self.release_parent(old);
        }
    }

    fn release_parent(&mut self, parent: NodeId) {
        if let Some(known) = self.map.get_mut(&parent) {
            known.children = known.children.saturating_sub(1);
        }
        self.drop_unused(parent);
    }

    /// Drops a node, and then its ancestors, as far as nobody needs them.
    fn drop_unused(&mut self, mut node: NodeId) {
        while node != ROOT {
            match self.map.get(&node) {
                Some(known) if known.lookups == 0 && known.children == 0 => {}
                _ => return,
            }
            let Some(gone) = self.map.remove(&node) else { return };
            if gone.fd.is_some() {
                self.open = self.open.saturating_sub(1);
            }
            if self.by_id.get(&gone.id) == Some(&node) {
                self.by_id.remove(&gone.id);
            }
            node = gone.parent;
            if let Some(parent) = self.map.get_mut(&node) {
                parent.children = parent.children.saturating_sub(1);
            }
        }
    }

    /// Caches a descriptor, and closes the least used quarter when there are too many.
    fn keep_open(&mut self, node: NodeId, fd: &Arc<OwnedFd>) {
        self.clock += 1;
        let clock = self.clock;
        let Some(known) = self.map.get_mut(&node) else { return };
        known.used = clock;
        if known.fd.is_none() {
            known.fd = Some(Arc::clone(fd));
            self.open += 1;
        }
        if self.open <= self.max_open {
            return;
        }
        let mut closable: Vec<(u64, NodeId)> = self
            .map
            .iter()
            .filter(|(id, node)| **id != ROOT && node.fd.is_some() && node.name.is_some())
            .map(|(&id, node)| (node.used, id))
            .collect();
        closable.sort_unstable();
        for (_, id) in closable.iter().take(self.max_open / 4 + 1) {
            if let Some(node) = self.map.get_mut(id) {
                node.fd = None;
                self.open -= 1;
            }
        }
    }

    pub(super) fn save(&self) -> SavedNodes {
        let known = self.map.iter().filter(|(id, node)| **id != ROOT && node.name.is_some());
        SavedNodes {
            next: self.next,
            nodes: known
                .map(|(&node, known)| SavedNode {
                    node,
                    parent: known.parent,
                    name: known.name.clone().unwrap_or_default(),
                    id: known.id,
                    lookups: known.lookups,
                    submount: known.submount,
                })
                .collect(),
        }
    }

    /// Takes saved nodes back. A file that is not there any more is stale when it is used.
    pub(super) fn restore(&mut self, saved: SavedNodes) {
        self.clear();
        self.next = saved.next.max(ROOT + 1);
        for SavedNode { node, parent, name, id, lookups, submount } in saved.nodes {
            if node == ROOT || Name::new(&name).is_err() || self.map.len() >= MAX_NODES {
                continue;
            }
            let name = Some(name);
            let known = Node { parent, name, id, fd: None, lookups, children: 0, used: 0, submount };
            self.next = self.next.max(node.saturating_add(1));
            self.by_id.insert(id, node);
            self.map.insert(node, known);
        }
        let parents: Vec<NodeId> =
            self.map.iter().filter(|(id, _)| **id != ROOT).map(|(_, node)| node.parent).collect();
        for parent in parents {
            if let Some(parent) = self.map.get_mut(&parent) {
                parent.children += 1;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.map.len(), self.open)
    }
}

/// The nodes that have names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedNodes {
    next: NodeId,
    nodes: Vec<SavedNode>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedNode {
    node: NodeId,
    parent: NodeId,
    name: Vec<u8>,
    id: FileId,
    lookups: u64,
    submount: bool,
}
