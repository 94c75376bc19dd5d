//! The tree of a root file system: layers applied one above the other, metadata only. File data stays where it is, and the
//! tree remembers where: layer, offset in its uncompressed stream, length.
//!
//! Nothing is unpacked on the host, so a hostile entry has nowhere to escape to; it can only build a strange tree. The
//! rules are those that a Linux user sees with docker's overlay driver:
//!
//! * A whiteout hides what *lower* layers have, never what its own layer has, in whatever order the two stand in the tar
//!   (OCI image specification, `layer.md`, "Whiteouts").
//! * A parent that is a symbolic link of the same layer is followed, inside the root. One of a lower layer is replaced by a
//!   directory, as an overlay's upper layer does.
//! * Later entries replace earlier ones; a directory over a directory keeps the children and takes the attributes.
//! * Missing parents appear, owned by root, mode 0755.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::image::tar::{Entry, Kind, Map};

/// Most nodes in one tree.
const NODES_MAX: usize = 4_000_000;
/// Most bytes of names, link targets, attributes and maps of sparse files in one tree.
const METADATA_MAX: usize = 1 << 30;
/// Longest path of an entry and longest target of a link in bytes (Linux's PATH_MAX).
const PATH_MAX: usize = 4096;
/// Longest name in bytes (EROFS_NAME_LEN).
const NAME_MAX: usize = 255;
/// Most symbolic links on one path (Linux's MAXSYMLINKS).
const LINKS_MAX: usize = 40;
/// Most steps on one path with its links resolved, and so the greatest depth.
const STEPS_MAX: usize = 2048;
/// Most names that all whiteouts of one image may look at.
const HIDDEN_MAX: usize = 200_000_000;
/// Most bytes of extended attributes of one entry.
const XATTRS_MAX: usize = 60_000;
/// Bytes that a piece of a sparse file takes, here and in the plan.
const PIECE_SIZE: usize = 48;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Index of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u32);

impl Id {
    pub(crate) const ROOT: Id = Id(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file, a directory, or anything else with an inode.
#[derive(Debug)]
pub(crate) struct Node {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Full names and values.
    pub(crate) xattrs: Xattrs,
    pub(crate) body: Body,
}

/// Extended attributes, sorted by name; `None` where there are none, as on nearly every node.
pub(crate) type Xattrs = Option<Box<[Xattr]>>;

/// A name and a value.
pub(crate) type Xattr = (Box<[u8]>, Box<[u8]>);

/// What a node is.
#[derive(Debug)]
pub(crate) enum Body {
    Directory {
        parent: Id,
        children: BTreeMap<Box<[u8]>, Child>,
    },
    /// Data: `size` bytes at `offset` of the uncompressed stream of layer `layer`; of a sparse file its pieces are there, one
    /// behind the other.
    File {
        layer: u32,
        offset: u64,
        size: u64,
        map: Option<Arc<Map>>,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) node: Id,
    /// The last layer that has an entry for this name.
    layer: u32,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    metadata: usize,
    hidden: usize,
}

/// What the walk along a path does with what is not there.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    /// Make directories, also in place of what lower layers have.
    Make((i64, u32)),
    /// Give up.
    Stop,
}

impl Tree {
    /// A tree with an empty root, before the first layer.
    pub(crate) fn new() -> Self {
        let root = Node {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: None,
            body: Body::Directory { parent: Id::ROOT, children: BTreeMap::new() },
        };
        Tree { nodes: vec![root], layer: 0, metadata: 0, hidden: 0 }
    }

    /// The entries that follow belong to the layer with this index; indexes only grow.
    pub(crate) fn begin_layer(&mut self, index: u32) {
        self.layer = index;
    }

    /// The number of nodes, replaced ones included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The number of names, the root's included: what a reader of the whole tree must find.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn names(&self) -> usize {
        let (mut count, mut todo) = (1, vec![Id::ROOT]);
        while let Some(children) = todo.pop().and_then(|dir| self.children(dir)) {
            count += children.len();
            let is_dir = |child: &&Child| matches!(self.node(child.node).body, Body::Directory { .. });
            todo.extend(children.values().filter(is_dir).map(|child| child.node));
        }
        count
    }

    /// A node.
    #[allow(clippy::indexing_slicing)] // Ids are made by this tree alone, and nodes are never removed from the vector.
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.index()]
    }

    #[allow(clippy::indexing_slicing)] // As above.
    fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Applies one entry of the current layer.
    ///
    /// # Errors
    /// Why the entry cannot be part of a root file system.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        let path = normalise(&entry.path)?;
        let Some((name, parents)) = path.split_last() else {
            return self.apply_root(entry);
        };
        if *name == OPAQUE {
            if let Some(dir) = self.walk(parents, Missing::Stop)? {
                self.hide_lower(dir)?;
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parents, hidden);
        }
        if entry.kind == Kind::HardLink {
            return self.link(entry, parents, name);
        }
        let node = self.make(entry)?;
        let dir = self.walk(parents, Missing::Make(entry.mtime))?.ok_or("its directory cannot be made")?;
        self.place(dir, name, node)
    }

    fn apply_root(&mut self, entry: &Entry) -> Result<(), String> {
        if entry.kind != Kind::Directory {
            return Err("the root must be a directory".into());
        }
        let xattrs = self.xattrs(entry)?;
        let root = self.node_mut(Id::ROOT);
        (root.mode, root.uid, root.gid, root.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        root.xattrs = xattrs;
        Ok(())
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8]) -> Result<(), String> {
        // AUFS kept its own files under names like `.wh..wh.plnk`; they mean nothing here.
        if hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("this whiteout names no file".into());
        }
        let Some(dir) = self.walk(parents, Missing::Stop)? else { return Ok(()) };
        let Some(child) = self.child(dir, hidden) else { return Ok(()) };
        let mut keep = child.layer == self.layer;
        if matches!(self.node(child.node).body, Body::Directory { .. }) {
            self.hide_lower(child.node)?;
            keep |= self.children(child.node).is_some_and(|children| !children.is_empty());
        }
        if !keep {
            self.unlink(dir, hidden);
        }
        Ok(())
    }

    /// Removes everything below a directory that only lower layers have.
    fn hide_lower(&mut self, top: Id) -> Result<(), String> {
        let mut directories = vec![top];
        let mut at = 0;
        while let Some(&dir) = directories.get(at) {
            at += 1;
            let Some(children) = self.children(dir) else { continue };
            let looked_at = children.len();
            for child in children.values() {
                if matches!(self.node(child.node).body, Body::Directory { .. }) {
                    directories.push(child.node);
                }
            }
            self.hidden += looked_at;
            if self.hidden > HIDDEN_MAX {
                return Err("the whiteouts of this image hide too much".into());
            }
        }
        // Parents stand before their children in the list, so backwards every directory is settled before its parent.
        for dir in directories.into_iter().rev() {
            let gone: Vec<_> = self
                .children(dir)
                .into_iter()
                .flatten()
                .filter(|(_, child)| {
                    child.layer != self.layer && self.children(child.node).is_none_or(BTreeMap::is_empty)
                })
                .map(|(name, _)| name.clone())
                .collect();
            for name in gone {
                self.unlink(dir, &name);
            }
        }
        Ok(())
    }

    fn link(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<(), String> {
        let target = normalise(&entry.link).map_err(|why| format!("its target: {why}"))?;
        let (last, target_parents) = target.split_last().ok_or("a hard link to the root")?;
        let found = self.walk(target_parents, Missing::Stop)?.and_then(|dir| self.child(dir, last));
        let found = found.ok_or_else(|| {
            format!("a hard link to \"{}\", which is not there", String::from_utf8_lossy(&entry.link))
        })?;
        if matches!(self.node(found.node).body, Body::Directory { .. }) {
            return Err("a hard link to a directory".into());
        }
        let dir = self.walk(parents, Missing::Make(entry.mtime))?.ok_or("its directory cannot be made")?;
        let layer = self.layer;
        self.charge(name.len())?;
        if let Body::Directory { children, .. } = &mut self.node_mut(dir).body {
            children.insert(name.into(), Child { node: found.node, layer });
        }
        Ok(())
    }

    /// The node of an entry, its parent not yet known.
    fn make(&mut self, entry: &Entry) -> Result<Node, String> {
        let body = match entry.kind {
            Kind::Directory => Body::Directory { parent: Id::ROOT, children: BTreeMap::new() },
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err("a symbolic link needs a target without NUL".into());
                }
                if entry.link.len() >= PATH_MAX {
                    return Err("the target of the link is longer than 4095 bytes".into());
                }
                self.charge(entry.link.len())?;
                Body::Symlink(entry.link.as_slice().into())
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = entry.device;
                // The kernel's dev_t has 12 bits for the major and 20 for the minor number.
                if major >= 1 << 12 || minor >= 1 << 20 {
                    return Err(format!("the device {major}:{minor} does not exist on Linux"));
                }
                if entry.kind == Kind::CharDevice {
                    Body::CharDevice(major, minor)
                } else {
                    Body::BlockDevice(major, minor)
                }
            }
            Kind::Fifo => Body::Fifo,
            Kind::File | Kind::HardLink => {
                let map = entry.map.clone();
                self.charge(map.as_ref().map_or(0, |map| map.pieces().len()) * PIECE_SIZE)?;
                Body::File { layer: self.layer, offset: entry.data_offset, size: entry.size, map }
            }
        };
        let xattrs = self.xattrs(entry)?;
        // On Linux a link has all permissions, whatever the tar says.
        let mode = if entry.kind == Kind::Symlink { 0o777 } else { entry.mode };
        let (uid, gid, mtime) = (entry.uid, entry.gid, entry.mtime);
        Ok(Node { mode, uid, gid, mtime, xattrs, body })
    }

    fn xattrs(&mut self, entry: &Entry) -> Result<Xattrs, String> {
        if entry.xattrs.is_empty() {
            return Ok(None);
        }
        let total: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        if total > XATTRS_MAX {
            return Err(format!("its extended attributes have {total} bytes, and {XATTRS_MAX} are possible"));
        }
        self.charge(total)?;
        let mut xattrs: Vec<Xattr> = entry
            .xattrs
            .iter()
            .filter(|(name, _)| super::format::xattr_name(name).is_some())
            .map(|(name, value)| (name.as_slice().into(), value.as_slice().into()))
            .collect();
        xattrs.sort();
        Ok((!xattrs.is_empty()).then(|| xattrs.into()))
    }

    /// Puts a node under a name; a directory over a directory keeps the children.
    fn place(&mut self, dir: Id, name: &[u8], mut node: Node) -> Result<(), String> {
        let layer = self.layer;
        if let (Body::Directory { .. }, Some(existing)) = (&node.body, self.child(dir, name))
            && let Body::Directory { children, .. } = &mut self.node_mut(existing.node).body
        {
            let children = std::mem::take(children);
            node.body = Body::Directory { parent: dir, children };
            *self.node_mut(existing.node) = node;
            if let Body::Directory { children, .. } = &mut self.node_mut(dir).body
                && let Some(child) = children.get_mut(name)
            {
                child.layer = layer;
            }
            return Ok(());
        }
        if let Body::Directory { parent, .. } = &mut node.body {
            *parent = dir;
        }
        self.add(dir, name, node).map(|_| ())
    }

    fn add(&mut self, dir: Id, name: &[u8], node: Node) -> Result<Id, String> {
        self.charge(name.len())?;
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("the image has more than {NODES_MAX} files"));
        }
        let id = u32::try_from(self.nodes.len()).map(Id).map_err(|_| "too many files")?;
        self.nodes.push(node);
        let layer = self.layer;
        if let Body::Directory { children, .. } = &mut self.node_mut(dir).body {
            children.insert(name.into(), Child { node: id, layer });
        }
        Ok(id)
    }

    /// The directory at the end of a path; links of the current layer are followed.
    fn walk(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Id>, String> {
        let mut rest: Vec<Box<[u8]>> = path.iter().rev().map(|part| Box::from(*part)).collect();
        let (mut dir, mut links, mut steps) = (Id::ROOT, 0, 0);
        while let Some(name) = rest.pop() {
            steps += 1;
            if steps > STEPS_MAX {
                return Err(format!("its path has more than {STEPS_MAX} parts"));
            }
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if let Body::Directory { parent, .. } = self.node(dir).body {
                        dir = parent;
                    }
                    continue;
                }
                _ if name.len() > NAME_MAX => {
                    return Err("a name on its path is longer than 255 bytes".into());
                }
                _ => {}
            }
            let child = self.child(dir, &name);
            let lower = child.is_none_or(|child| child.layer != self.layer);
            match child.map(|child| (child.node, &self.node(child.node).body)) {
                Some((node, Body::Directory { .. })) => dir = node,
                Some((_, Body::Symlink(target))) if !lower || missing == Missing::Stop => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err("too many symbolic links on its path".into());
                    }
                    if target.starts_with(b"/") {
                        dir = Id::ROOT;
                    }
                    rest.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                Some(_) if !lower => return Err("a part of its path is not a directory".into()),
                _ => {
                    let Missing::Make(mtime) = missing else { return Ok(None) };
                    let body = Body::Directory { parent: dir, children: BTreeMap::new() };
                    let node = Node { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: None, body };
                    dir = self.add(dir, &name, node)?;
                }
            }
        }
        Ok(Some(dir))
    }

    pub(crate) fn children(&self, dir: Id) -> Option<&BTreeMap<Box<[u8]>, Child>> {
        match &self.node(dir).body {
            Body::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    fn child(&self, dir: Id, name: &[u8]) -> Option<Child> {
        self.children(dir)?.get(name).copied()
    }

    fn unlink(&mut self, dir: Id, name: &[u8]) {
        if let Body::Directory { children, .. } = &mut self.node_mut(dir).body {
            children.remove(name);
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.metadata += bytes;
        if self.metadata > METADATA_MAX {
            return Err(
                "the names, attributes and maps of sparse files of the image have more than 1 GiB".into()
            );
        }
        Ok(())
    }
}

/// The parts of a path, `.` and `..` resolved by the text alone. A leading `/` means nothing: the root is the root.
fn normalise(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.contains(&0) {
        return Err("a path with a NUL".into());
    }
    if path.len() > PATH_MAX {
        return Err("the path is longer than 4096 bytes".into());
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or("the path leaves the root")?;
            }
            _ if part.len() > NAME_MAX => return Err("a name is longer than 255 bytes".into()),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
