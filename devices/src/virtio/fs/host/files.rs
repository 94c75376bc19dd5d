//! Open files and directories of a passed-through directory.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FallocateFlags, OFlags, RawDir, SeekFrom};
use serde::{Deserialize, Serialize};

use super::super::vfs::{DirEntry, Errno, Handle, NodeId, Seek};
use super::super::wire;
use crate::virtio::{Reader, Writer};

type Result<T> = std::result::Result<T, Errno>;

/// Bytes of a batch of directory entries from the kernel.
const LIST_BUFFER: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    File,
    Directory,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    pub(super) node: NodeId,
    pub(super) flags: OFlags,
    kind: Kind,
}

/// The table of handles.
#[derive(Debug)]
pub(super) struct Files {
    map: HashMap<Handle, Open>,
    next: Handle,
    max: usize,
}

impl Files {
    pub(super) fn new(max: usize) -> Self {
        Self { map: HashMap::new(), next: 1, max }
    }

    pub(super) fn insert(&mut self, fd: OwnedFd, node: NodeId, flags: OFlags, kind: Kind) -> Result<Handle> {
        if self.map.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let handle = self.next;
        self.next += 1;
        self.map.insert(handle, Open { fd, node, flags, kind });
        Ok(handle)
    }

    pub(super) fn remove(&mut self, handle: Handle) {
        self.map.remove(&handle);
    }

    pub(super) fn clear(&mut self) {
        self.map.clear();
    }

    pub(super) fn any(&self, handle: Handle) -> Result<&Open> {
        self.map.get(&handle).ok_or(Errno::BADF)
    }

    pub(super) fn node(&self, handle: Handle) -> Option<NodeId> {
        self.map.get(&handle).map(|open| open.node)
    }

    pub(super) fn file(&self, handle: Handle) -> Result<&Open> {
        self.any(handle).and_then(|open| if open.kind == Kind::File { Ok(open) } else { Err(Errno::ISDIR) })
    }

    /// A file that was opened for writing.
    pub(super) fn writable(&self, handle: Handle) -> Result<&Open> {
        let open = self.file(handle)?;
        if open.flags.intersects(OFlags::WRONLY | OFlags::RDWR) { Ok(open) } else { Err(Errno::BADF) }
    }

    pub(super) fn read(
        &self,
        handle: Handle,
        offset: u64,
        count: usize,
        into: &mut Writer<'_>,
    ) -> Result<usize> {
        into.read_from_at(self.file(handle)?.fd.as_fd(), count, offset).map_err(errno)
    }

    pub(super) fn write(
        &self,
        handle: Handle,
        offset: u64,
        count: usize,
        from: &mut Reader<'_>,
    ) -> Result<usize> {
        from.write_to_at(self.file(handle)?.fd.as_fd(), count, offset).map_err(errno)
    }

    pub(super) fn fsync(&self, handle: Handle, data_only: bool) -> Result<()> {
        let open = self.file(handle)?;
        if data_only { rustix::fs::fdatasync(&open.fd) } else { rustix::fs::fsync(&open.fd) }
    }

    pub(super) fn fallocate(&self, handle: Handle, mode: u32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(&self.writable(handle)?.fd, mode, offset, len)
    }

    pub(super) fn seek(&self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        let from = match seek {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&self.file(handle)?.fd, from)
    }

    pub(super) fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64> {
        let (source, target) = (self.file(from.0)?, self.writable(to.0)?);
        let (mut from_at, mut to_at) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(&source.fd, Some(&mut from_at), &target.fd, Some(&mut to_at), len)?;
        Ok(copied as u64)
    }

    /// Lists entries from `offset` on; with `only`, no other one but `.` and `..`.
    pub(super) fn list(
        &self,
        handle: Handle,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        let open = self.any(handle)?;
        if open.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        rustix::fs::seek(&open.fd, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); LIST_BUFFER];
        let mut dir = RawDir::new(&open.fd, &mut buffer);
        let (mut entries, mut len) = (Vec::new(), 0);
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if only.is_some_and(|only| name != only && name != b"." && name != b"..") {
                continue;
            }
            len += wire::dirent_len(name);
            if len > room {
                break;
            }
            entries.push(DirEntry {
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                // `d_type` is the type part of a mode, shifted.
                kind: entry.file_type().as_raw_mode() >> 12,
                name: name.to_vec(),
            });
        }
        Ok(entries)
    }

    pub(super) fn save(&self) -> Vec<SavedHandle> {
        let handles = self.map.iter();
        handles
            .map(|(&handle, open)| SavedHandle {
                handle,
                node: open.node,
                flags: open.flags.bits(),
                kind: open.kind,
            })
            .collect()
    }

    pub(super) fn restore(&mut self, saved: &[SavedHandle], mut opened: HashMap<Handle, OwnedFd>) {
        self.map.clear();
        for handle in saved {
            self.next = self.next.max(handle.handle.saturating_add(1));
            if let Some(fd) = opened.remove(&handle.handle) {
                let flags = OFlags::from_bits_retain(handle.flags);
                self.map.insert(handle.handle, Open { fd, node: handle.node, flags, kind: handle.kind });
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
    kind: Kind,
}

impl SavedHandle {
    /// How to open the file again: what happened once must not happen twice.
    pub(super) fn reopen_flags(&self) -> OFlags {
        OFlags::from_bits_retain(self.flags).difference(OFlags::TRUNC | OFlags::CREATE | OFlags::EXCL)
            | OFlags::NONBLOCK
    }
}
