//! The nodes of a passed-through directory that the guest knows.
//!
//! A node is found again by its parent and name, one step at a time and never through a symbolic link, and is
//! believed only if the file there is still the same one. So descriptors are a cache: the least used are closed
//! when there are too many, and the table can be saved and restored. A node whose name is gone keeps its
//! descriptor until the guest forgets it.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::vfs::{Errno, Name, NodeId, ROOT};
use super::system::{FileId, Found, System};

/// The most nodes that one guest may know.
const MAX_NODES: usize = 1 << 22;

/// One node.
#[derive(Debug)]
struct Node<S: System> {
    parent: NodeId,
    /// `None`: the root, or a file whose name is gone.
    name: Option<Vec<u8>>,
    id: FileId,
    /// What holds it on the host, not following links.
    anchor: Option<Arc<S::Anchor>>,
    lookups: u64,
    /// Nodes that have this one as their parent.
    children: u64,
    /// When it was used last, by the table's own clock.
    used: u64,
    submount: bool,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Nodes<S: System> {
    map: HashMap<NodeId, Node<S>>,
    by_id: HashMap<FileId, NodeId>,
    next: NodeId,
    open: usize,
    max_open: usize,
    clock: u64,
}

impl<S: System> Nodes<S> {
    /// A table that knows the root only and keeps at most `max_open` anchors that it can do without.
    pub(super) fn new(root: S::Anchor, max_open: usize) -> Result<Self, Errno> {
        let id = S::stat(&root)?.id;
        let root = Node {
            parent: ROOT,
            name: None,
            id,
            anchor: Some(Arc::new(root)),
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

    /// What holds a node; it is looked up again if its anchor was let go.
    pub(super) fn anchor(&mut self, node: NodeId) -> Result<Arc<S::Anchor>, Errno> {
        // From the node up to the first ancestor that is held, then down again.
        let mut path = vec![node];
        let depth_limit = self.map.len();
        let mut anchor = loop {
            let &last = path.last().ok_or(Errno::STALE)?;
            let found = self.map.get_mut(&last).ok_or(Errno::STALE)?;
            self.clock += 1;
            found.used = self.clock;
            match &found.anchor {
                Some(anchor) => break Arc::clone(anchor),
                None if found.name.is_none() || path.len() > depth_limit => return Err(Errno::STALE),
                None => path.push(found.parent),
            }
        };
        path.pop();
        while let Some(child) = path.pop() {
            let entry = self.map.get(&child).ok_or(Errno::STALE)?;
            let name = entry.name.as_deref().ok_or(Errno::STALE)?;
            let found = S::find(&anchor, name).map_err(|_| Errno::STALE)?;
            if found.stat.id != entry.id {
                return Err(Errno::STALE);
            }
            anchor = found.anchor;
            self.keep(child, &anchor);
        }
        Ok(anchor)
    }

    /// Counts a found file once more; returns its node.
    pub(super) fn enter(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        found: &Found<S>,
    ) -> Result<NodeId, Errno> {
        let id = found.stat.id;
        if let Some(&node) = self.by_id.get(&id) {
            if let Some(known) = self.map.get_mut(&node) {
                known.lookups = known.lookups.saturating_add(1);
            }
            self.place(node, parent, Some(name));
            self.keep(node, &found.anchor);
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
            Node { parent, name, id, anchor: None, lookups: 1, children: 0, used: self.clock, submount },
        );
        self.by_id.insert(id, node);
        self.keep(node, &found.anchor);
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
    pub(super) fn pin(&mut self, found: &Found<S>) {
        if let Some(&node) = self.by_id.get(&found.stat.id)
            && let Some(known) = self.map.get_mut(&node)
            && !known.anchor.as_deref().is_some_and(S::is_pinned)
            && let Some(anchor) = S::pin(found)
            && known.anchor.replace(anchor).is_none()
        {
            self.open += 1;
        }
    }

    /// A file lost the name `name` in `parent`, which `dir` holds.
    pub(super) fn unlinked(&mut self, id: FileId, parent: NodeId, dir: &Arc<S::Anchor>, name: Name<'_>) {
        let Some(known) = self.by_id.get(&id).and_then(|node| self.map.get_mut(node)) else { return };
        let lost = match known.name.as_deref() {
            Some(_) if known.parent != parent => false,
            // The name that we know may be another one of the file, or, where case does not matter, the same.
            Some(old) if old != name.bytes() => !S::find(dir, old).is_ok_and(|found| found.stat.id == id),
            _ => true,
        };
        if lost {
            known.name = None;
        } else if known.anchor.take_if(|anchor| !S::moves_along(anchor)).is_some() {
            // It was held by the name that is gone; it is found again by the other.
            self.open -= 1;
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

    /// Lets every file go that is found again by its name.
    #[cfg(windows)]
    pub(super) fn let_go(&mut self) {
        for (&id, node) in &mut self.map {
            if id != ROOT && node.name.is_some() && node.anchor.take().is_some() {
                self.open -= 1;
            }
        }
    }

    /// Changes where a node is found.
    fn place(&mut self, node: NodeId, parent: NodeId, name: Option<Name<'_>>) {
        if node == ROOT {
            return;
        }
        let Some(known) = self.map.get_mut(&node) else { return };
        let name = name.map(|name| name.bytes().to_vec());
        let moves = known.parent != parent || known.name != name;
        if moves && known.anchor.take_if(|anchor| !S::moves_along(anchor)).is_some() {
            self.open -= 1;
        }
        known.name = name;
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
            if gone.anchor.is_some() {
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

    /// Caches an anchor, and lets the least used quarter go when there are too many.
    fn keep(&mut self, node: NodeId, anchor: &Arc<S::Anchor>) {
        self.clock += 1;
        let clock = self.clock;
        let Some(known) = self.map.get_mut(&node) else { return };
        known.used = clock;
        if known.anchor.is_none() {
            known.anchor = Some(Arc::clone(anchor));
            self.open += 1;
        }
        if self.open <= self.max_open {
            return;
        }
        let mut closable: Vec<(u64, NodeId)> = self
            .map
            .iter()
            .filter(|(id, node)| **id != ROOT && node.anchor.is_some() && node.name.is_some())
            .map(|(&id, node)| (node.used, id))
            .collect();
        closable.sort_unstable();
        for (_, id) in closable.iter().take(self.max_open / 4 + 1) {
            if let Some(node) = self.map.get_mut(id) {
                node.anchor = None;
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
            let known = Node { parent, name, id, anchor: None, lookups, children: 0, used: 0, submount };
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
