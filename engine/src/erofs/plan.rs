//! Where everything goes: all metadata is placed before the first byte of data is copied, so data is written once, into its
//! final place.
//!
//! ```text
//! block 0      superblock at 1024, inodes from 1152 on: breadth first, so the inodes of a directory stand together;
//!              behind an inode its xattrs and, up to 2 KiB, its data (small files, links, ends of directories)
//! then         the whole blocks of directories
//! then         files larger than that, each from the start of a block, in the order in which the layers hold them
//! ```
//! Larger files have no inline end, though the format allows it: it would cost a second request for half a page.

use std::collections::HashMap;

use super::format::{BLOCK, DIRENT, Inode, Layout, SLOT, SUPER_OFFSET, SUPER_SIZE, device, xattrs_size};
use super::tree::{Body, Id, Tree};
use crate::image::tar::Map;
use crate::{Error, Result};

/// Data up to this many bytes stands behind its inode.
const INLINE_MAX: u64 = 2048;

/// A placed inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) id: Id,
    pub(super) inode: Inode,
    /// Offset of the inode in the file.
    pub(super) offset: u64,
    /// Offset behind inode and xattrs: where inline data begins.
    pub(super) end: u64,
}

/// Data to copy: a range of a layer's uncompressed stream, and its place in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) layer: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) to: u64,
}

/// The whole plan.
#[derive(Debug)]
pub(super) struct Plan {
    /// By growing offset; the root is first.
    pub(super) inodes: Vec<Placed>,
    /// By layer and offset.
    pub(super) extents: Vec<Extent>,
    /// The most frequent time, that of compact inodes.
    pub(super) epoch: (i64, u32),
    /// Block of the first file that is not inline: metadata ends there.
    pub(super) files: u32,
    /// The length in blocks.
    pub(super) blocks: u32,
    /// Slot of each node's inode, by node; 0 for those not in the tree any more.
    slots: Vec<u64>,
}

impl Plan {
    /// Places what is reachable from the root.
    pub(super) fn new(tree: &Tree) -> Result<Self> {
        let (order, links) = reachable(tree);
        let epoch = most_frequent(order.iter().map(|id| tree.node(*id).mtime));
        let mut plan = Plan {
            inodes: Vec::with_capacity(order.len()),
            extents: Vec::new(),
            epoch,
            files: 0,
            blocks: 0,
            slots: vec![0; tree.len()],
        };
        let mut at = SUPER_OFFSET + SUPER_SIZE;
        for (number, id) in order.into_iter().enumerate() {
            let inode = describe(tree, id, links.get(id.index()).copied().unwrap_or(1), number);
            let placed = place(id, inode, epoch, &mut at);
            if let Some(slot) = plan.slots.get_mut(id.index()) {
                *slot = placed.offset / SLOT;
            }
            plan.inodes.push(placed);
        }
        let mut next = at.div_ceil(BLOCK);
        plan.place_own(tree, &mut next)?;
        plan.files = block(next)?;
        plan.place_files(tree, &mut next)?;
        plan.blocks = block(next)?;
        Ok(plan)
    }

    /// The inode number a directory entry refers to.
    pub(super) fn slot(&self, id: Id) -> u64 {
        self.slots.get(id.index()).copied().unwrap_or(0)
    }

    /// Gives blocks to what the tree itself holds: directories and long links.
    fn place_own(&mut self, tree: &Tree, next: &mut u64) -> Result<()> {
        for placed in &mut self.inodes {
            let own = matches!(tree.node(placed.id).body, Body::Directory { .. } | Body::Symlink(_));
            if own && whole_blocks(&placed.inode) > 0 {
                allocate(placed, next)?;
            }
        }
        Ok(())
    }

    /// Gives blocks to files, in the order of the layers' streams, so that both sides of the copy run forwards.
    fn place_files(&mut self, tree: &Tree, next: &mut u64) -> Result<()> {
        let mut files: Vec<(Extent, Option<&Map>, &mut Placed)> = Vec::new();
        for placed in &mut self.inodes {
            if let Body::File { layer, offset, size, map } = &tree.node(placed.id).body
                && *size > 0
            {
                let extent = Extent { layer: *layer, offset: *offset, size: *size, to: placed.end };
                files.push((extent, map.as_deref(), placed));
            }
        }
        files.sort_unstable_by_key(|(extent, ..)| (extent.layer, extent.offset));
        for (mut extent, map, placed) in files {
            if placed.inode.layout == Layout::Plain {
                extent.to = allocate(placed, next)? * BLOCK;
            }
            let Some(map) = map else {
                self.extents.push(extent);
                continue;
            };
            // What is between the pieces is never written: the file is new, so it is zeros.
            for piece in map.pieces() {
                self.extents.push(Extent { size: piece.size, to: extent.to + piece.at, ..extent });
                extent.offset += piece.size;
            }
        }
        Ok(())
    }
}

fn allocate(placed: &mut Placed, next: &mut u64) -> Result<u64> {
    let first = *next;
    placed.inode.address = block(first)?;
    *next += whole_blocks(&placed.inode);
    Ok(first)
}

/// The blocks of data outside the inode.
pub(super) fn whole_blocks(inode: &Inode) -> u64 {
    match inode.layout {
        Layout::Plain => inode.size.div_ceil(BLOCK),
        Layout::Inline => inode.size / BLOCK,
    }
}

fn block(number: u64) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| Error::Limit { what: "the root file system".into(), limit: "16 TiB".into() })
}

/// All nodes breadth first, each once, and the link count of each.
fn reachable(tree: &Tree) -> (Vec<Id>, Vec<u32>) {
    let mut links = vec![0u32; tree.len()];
    let mut order = vec![Id::ROOT];
    let mut count = |id: Id, by: u32| {
        let seen = links.get_mut(id.index());
        seen.is_some_and(|seen| std::mem::replace(seen, seen.saturating_add(by)) == 0)
    };
    count(Id::ROOT, 2);
    let mut at = 0;
    while let Some(&dir) = order.get(at) {
        at += 1;
        for child in tree.children(dir).into_iter().flat_map(|children| children.values()) {
            if matches!(tree.node(child.node).body, Body::Directory { .. }) {
                // Its name here and its own "."; and its ".." names this directory.
                count(child.node, 2);
                count(dir, 1);
                order.push(child.node);
            } else if count(child.node, 1) {
                order.push(child.node);
            }
        }
    }
    (order, links)
}

fn most_frequent(times: impl Iterator<Item = (i64, u32)>) -> (i64, u32) {
    let mut counts: HashMap<(i64, u32), usize> = HashMap::new();
    for time in times {
        *counts.entry(time).or_default() += 1;
    }
    // Of equally frequent ones the earliest, so that the same tree gives the same bytes.
    counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)))
        .map_or((0, 0), |(time, _)| time)
}

fn describe(tree: &Tree, id: Id, nlink: u32, number: usize) -> Inode {
    let node = tree.node(id);
    let (kind, size, address) = match &node.body {
        Body::Directory { .. } => (0o040_000, pack(&names(tree, id)).1, 0),
        Body::File { size, .. } => (0o100_000, *size, 0),
        Body::Symlink(target) => (0o120_000, target.len() as u64, 0),
        Body::CharDevice(major, minor) => (0o020_000, 0, device(*major, *minor)),
        Body::BlockDevice(major, minor) => (0o060_000, 0, device(*major, *minor)),
        Body::Fifo => (0o010_000, 0, 0),
    };
    let tail = match &node.body {
        Body::Directory { .. } => size % BLOCK,
        _ => size,
    };
    Inode {
        mode: kind | node.mode,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        nlink,
        size,
        layout: if (1..=INLINE_MAX).contains(&tail) { Layout::Inline } else { Layout::Plain },
        xattr_size: xattrs_size(&node.xattrs),
        address,
        ino: number as u32 + 1,
    }
}

fn place(id: Id, mut inode: Inode, epoch: (i64, u32), at: &mut u64) -> Placed {
    let head = inode.encoded_size(epoch);
    let tail = if inode.layout == Layout::Inline { inode.size % BLOCK } else { 0 };
    let before = head + inode.xattr_size as u64;
    let fits = |start: u64| {
        let data = start + before;
        start % BLOCK + head <= BLOCK && (tail == 0 || data % BLOCK + tail <= BLOCK)
    };
    if !fits(*at) {
        *at = at.next_multiple_of(BLOCK);
        if !fits(*at) {
            // Only large xattrs bring it here: the data takes a block of its own.
            inode.layout = Layout::Plain;
        }
    }
    let offset = *at;
    let end = offset + before;
    *at = (end + if inode.layout == Layout::Inline { tail } else { 0 }).next_multiple_of(SLOT);
    Placed { id, inode, offset, end }
}

/// The entries of a directory in the order of the format: by bytes, `.` and `..` among them.
pub(super) fn names(tree: &Tree, dir: Id) -> Vec<(&[u8], Id)> {
    let Body::Directory { parent, children } = &tree.node(dir).body else { return Vec::new() };
    let mut names: Vec<(&[u8], Id)> = vec![(b".", dir), (b"..", *parent)];
    names.extend(children.iter().map(|(name, child)| (&**name, child.node)));
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

/// Fills blocks with entries: how many go into each, and the size of the whole directory in bytes.
pub(super) fn pack(names: &[(&[u8], Id)]) -> (Vec<usize>, u64) {
    let (mut counts, mut count, mut used) = (Vec::new(), 0, 0u64);
    for (name, _) in names {
        let need = (DIRENT + name.len()) as u64;
        if used + need > BLOCK {
            counts.push(count);
            (count, used) = (0, 0);
        }
        count += 1;
        used += need;
    }
    let size = counts.len() as u64 * BLOCK + used;
    counts.push(count);
    (counts, size)
}
