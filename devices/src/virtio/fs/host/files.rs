//! Open files and directories of a passed-through directory.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::super::vfs::{DirEntry, Errno, Handle, NodeId, Seek};
use super::system::{OpenFile, Result, System, access, file_ref, placed};
use crate::virtio::{Reader, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    File,
    Directory,
}

#[derive(Debug)]
pub(super) struct Open<S: System> {
    pub(super) fd: OpenFile,
    pub(super) node: NodeId,
    /// Those of [`access`].
    pub(super) flags: u32,
    kind: Kind,
    listing: S::Listing,
}

impl<S: System> Open<S> {
    fn new(fd: OpenFile, node: NodeId, flags: u32, kind: Kind) -> Self {
        Self { fd, node, flags, kind, listing: S::Listing::default() }
    }
}

/// The table of handles.
#[derive(Debug)]
pub(super) struct Files<S: System> {
    map: HashMap<Handle, Open<S>>,
    next: Handle,
    max: usize,
}

impl<S: System> Files<S> {
    pub(super) fn new(max: usize) -> Self {
        Self { map: HashMap::new(), next: 1, max }
    }

    pub(super) fn insert(&mut self, fd: OpenFile, node: NodeId, flags: u32, kind: Kind) -> Result<Handle> {
        if self.map.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let handle = self.next;
        self.next += 1;
        self.map.insert(handle, Open::new(fd, node, flags, kind));
        Ok(handle)
    }

    pub(super) fn remove(&mut self, handle: Handle) {
        self.map.remove(&handle);
    }

    pub(super) fn clear(&mut self) {
        self.map.clear();
    }

    pub(super) fn any(&self, handle: Handle) -> Result<&Open<S>> {
        self.map.get(&handle).ok_or(Errno::BADF)
    }

    pub(super) fn node(&self, handle: Handle) -> Option<NodeId> {
        self.map.get(&handle).map(|open| open.node)
    }

    /// A descriptor of what the guest has open of a node, if it has.
    pub(super) fn of(&self, node: NodeId) -> Option<&OpenFile> {
        self.map.values().find(|open| open.node == node).map(|open| &open.fd)
    }

    pub(super) fn file(&self, handle: Handle) -> Result<&Open<S>> {
        self.any(handle).and_then(|open| if open.kind == Kind::File { Ok(open) } else { Err(Errno::ISDIR) })
    }

    /// A file that was opened for writing.
    pub(super) fn writable(&self, handle: Handle) -> Result<&Open<S>> {
        let open = self.file(handle)?;
        if access::mode(open.flags) != 0 { Ok(open) } else { Err(Errno::BADF) }
    }

    pub(super) fn read(
        &self,
        handle: Handle,
        offset: u64,
        count: usize,
        into: &mut Writer<'_>,
    ) -> Result<usize> {
        into.read_from_at(file_ref(&self.file(handle)?.fd), count, placed(0, offset)).map_err(errno)
    }

    pub(super) fn write(
        &self,
        handle: Handle,
        offset: u64,
        count: usize,
        from: &mut Reader<'_>,
    ) -> Result<usize> {
        let open = self.file(handle)?;
        from.write_to_at(file_ref(&open.fd), count, placed(open.flags, offset)).map_err(errno)
    }

    pub(super) fn fsync(&self, handle: Handle, data_only: bool) -> Result<()> {
        S::fsync(&self.file(handle)?.fd, data_only)
    }

    pub(super) fn fallocate(&self, handle: Handle, mode: u32, offset: u64, len: u64) -> Result<()> {
        S::fallocate(&self.writable(handle)?.fd, mode, offset, len)
    }

    pub(super) fn seek(&self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        S::seek(&self.file(handle)?.fd, offset, seek)
    }

    pub(super) fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64> {
        let (source, target) = (self.file(from.0)?, self.writable(to.0)?);
        S::copy_range((&source.fd, from.1), (&target.fd, to.1), len)
    }

    /// Lists entries from `offset` on; with `only`, no other one but `.` and `..`.
    pub(super) fn list(
        &mut self,
        handle: Handle,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        let open = self.map.get_mut(&handle).ok_or(Errno::BADF)?;
        if open.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        S::list(&open.fd, &mut open.listing, offset, room, only)
    }

    pub(super) fn save(&self) -> Vec<SavedHandle> {
        let handles = self.map.iter();
        handles
            .map(|(&handle, open)| SavedHandle {
                handle,
                node: open.node,
                flags: open.flags,
                kind: open.kind,
            })
            .collect()
    }

    pub(super) fn restore(&mut self, saved: &[SavedHandle], mut opened: HashMap<Handle, OpenFile>) {
        self.map.clear();
        for handle in saved {
            self.next = self.next.max(handle.handle.saturating_add(1));
            if let Some(fd) = opened.remove(&handle.handle) {
                self.map.insert(handle.handle, Open::new(fd, handle.node, handle.flags, handle.kind));
            }
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// An open file as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedHandle {
    pub(super) handle: Handle,
    pub(super) node: NodeId,
    flags: u32,
    pub(super) kind: Kind,
}

impl SavedHandle {
    /// How to open the file again: what happened once must not happen twice.
    pub(super) fn reopen_flags(&self) -> u32 {
        self.flags & !access::TRUNC
    }
}
