//! Locks on a passed-through directory, taken on the host, so that other guests and the host's processes see them.
//!
//! POSIX locks: one open file description for each owner and file, locked with `F_OFD_SETLK`; what conflicts, merges and
//! splits is decided by the host's kernel. `flock(2)` locks: on the description of the open file itself. Nothing waits.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::FlockOperation;

use super::super::locks::Table;
use super::super::vfs::{Errno, Handle, LAST_BYTE, Lock, LockKind, LockOwner, NodeId};
use super::Passthrough;
use super::files::Kind;
use super::system::{Result, System, access};
use crate::lock;

/// Open for reading alone.
const RDONLY: u32 = 0;

/// A description that carries the locks of one owner on one file.
#[derive(Debug)]
struct Description {
    fd: OwnedFd,
    /// What it may be locked for, of [`access`].
    access: u32,
}

impl Description {
    fn carries(&self, kind: LockKind) -> bool {
        self.access == access::RDWR || (self.access == access::WRONLY) == (kind == LockKind::Exclusive)
    }
}

/// The locks of a guest, with what holds them on the host.
#[derive(Debug, Default)]
pub(super) struct Locks {
    pub(super) table: Table,
    descriptions: HashMap<(NodeId, LockOwner), Description>,
}

impl Locks {
    /// An owner is done with a file: closing the description gives all of its locks up.
    pub(super) fn forget(&mut self, node: NodeId, owner: LockOwner) {
        self.table.unset(node, owner, 0, LAST_BYTE);
        self.descriptions.remove(&(node, owner));
    }

    /// An open file is closed.
    pub(super) fn release(&mut self, handle: Handle) {
        for key in self.table.release(handle) {
            self.descriptions.remove(&key);
        }
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.descriptions.clear();
    }
}

impl<S: System> Passthrough<S> {
    /// A lock that is in the way of `wish`, as `fcntl(F_GETLK)` tells it.
    pub(super) fn find_lock(&self, handle: Handle, owner: LockOwner, wish: &Lock) -> Result<Option<Lock>> {
        let open = self.files.file(handle)?;
        // An open file's own description never has locks of ranges: every lock is another's to it.
        let own = self.locks.descriptions.get(&(open.node, owner));
        let fd = own.map_or(open.fd.as_fd(), |own| own.fd.as_fd());
        let Some((range, kind)) = lock::test(fd, range(wish), convert(wish.kind)).map_err(errno)? else {
            return Ok(None);
        };
        let kind = if kind == lock::Kind::Shared { LockKind::Shared } else { LockKind::Exclusive };
        let found = Lock { kind, start: range.start, end: range.end, pid: 0 };
        // Only a process of this guest has a number that means anything to it.
        let ours = self.locks.table.conflict(open.node, owner, &Lock { kind: LockKind::Exclusive, ..found });
        Ok(Some(Lock { pid: ours.map_or(0, |ours| ours.pid), ..found }))
    }

    /// Takes a lock, or says EAGAIN.
    pub(super) fn take_lock(&mut self, handle: Handle, owner: LockOwner, wish: &Lock) -> Result<()> {
        let open = self.files.file(handle)?;
        let node = open.node;
        let access = access::mode(open.flags);
        // As the guest's kernel checks it: one cannot keep others away from what one may not do oneself.
        let refused = if wish.kind == LockKind::Exclusive { RDONLY } else { access::WRONLY };
        if access == refused {
            return Err(Errno::BADF);
        }
        self.locks.table.room(node, owner, self.options.max_locks)?;
        let key = (node, owner);
        match self.locks.descriptions.get(&key) {
            Some(own) if own.carries(wish.kind) => {
                lock::set(own.fd.as_fd(), range(wish), Some(convert(wish.kind))).map_err(errno)?;
            }
            own => {
                // A second description for an owner that has locks: it takes those over, which works while they are shared
                // ones, and the first goes when it has them.
                let wanted = if own.is_some() { access::RDWR } else { access };
                let new = self.open_description(handle, wanted)?;
                if !new.carries(wish.kind) {
                    return Err(Errno::NOLCK);
                }
                for have in self.locks.table.of(node, owner) {
                    lock::set(new.fd.as_fd(), range(&have), Some(convert(have.kind)))
                        .map_err(|_| Errno::NOLCK)?;
                }
                self.take_with(key, new, wish)?;
            }
        }
        self.locks.table.set(node, owner, handle, wish);
        Ok(())
    }

    /// Locks through a new description and keeps it. Shared locks of the old one are no obstacle to shared ones of the new,
    /// but they are to an exclusive one: the old one goes first, when nothing can fail any more but the wish itself.
    fn take_with(&mut self, key: (NodeId, LockOwner), new: Description, wish: &Lock) -> Result<()> {
        let had = self.locks.descriptions.remove(&key).is_some();
        let taken = lock::set(new.fd.as_fd(), range(wish), Some(convert(wish.kind))).map_err(errno);
        if taken.is_ok() || had {
            self.locks.descriptions.insert(key, new);
        }
        taken
    }

    fn open_description(&mut self, handle: Handle, access: u32) -> Result<Description> {
        let open = self.files.file(handle)?;
        let node = open.node;
        let again = self.system.again(&open.fd, access);
        let fd = again.unwrap_or_else(|| self.contents(node, Kind::File, access)).map_err(
            |errno| match errno {
                Errno::MFILE | Errno::NFILE => errno,
                // Its permissions have changed since it was opened, or its name is gone where that matters.
                _ => Errno::NOLCK,
            },
        )?;
        Ok(Description { fd, access })
    }

    /// Gives locks up.
    pub(super) fn drop_lock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()> {
        let node = self.files.file(handle)?.node;
        let Some(own) = self.locks.descriptions.get(&(node, owner)) else { return Ok(()) };
        self.locks.table.room_for_hole(node, owner, start, end)?;
        lock::set(own.fd.as_fd(), lock::Range { start, end }, None).map_err(errno)?;
        if self.locks.table.unset(node, owner, start, end) {
            self.locks.descriptions.remove(&(node, owner));
        }
        Ok(())
    }

    /// Takes, changes or gives up the lock of an open file, or says EAGAIN.
    pub(super) fn take_flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()> {
        let open = self.files.file(handle)?;
        let node = open.node;
        S::flock(&open.fd, operation(kind))?;
        self.locks.table.set_flock(node, handle, kind);
        Ok(())
    }

    /// Takes saved locks back on the host; says whose cannot be had.
    pub(super) fn restore_locks(&mut self, saved: &Table) -> std::result::Result<(), String> {
        self.locks.clear();
        for (node, owner, handle) in saved.owners() {
            for have in saved.of(node, owner) {
                match self.take_lock(handle, owner, &have) {
                    // The file is gone, and with it everybody who could meet the guest there.
                    Ok(()) | Err(Errno::BADF) => {}
                    Err(errno) => {
                        return Err(format!("process {} had locked a file of the share: {errno}", have.pid));
                    }
                }
            }
        }
        for (handle, kind) in saved.flocks() {
            match self.take_flock(handle, Some(kind)) {
                Ok(()) | Err(Errno::BADF) => {}
                Err(errno) => return Err(format!("a process had locked a file of the share: {errno}")),
            }
        }
        Ok(())
    }
}

fn operation(kind: Option<LockKind>) -> FlockOperation {
    match kind {
        None => FlockOperation::NonBlockingUnlock,
        Some(LockKind::Shared) => FlockOperation::NonBlockingLockShared,
        Some(LockKind::Exclusive) => FlockOperation::NonBlockingLockExclusive,
    }
}

fn range(lock: &Lock) -> lock::Range {
    lock::Range { start: lock.start, end: lock.end }
}

fn convert(kind: LockKind) -> lock::Kind {
    match kind {
        LockKind::Shared => lock::Kind::Shared,
        LockKind::Exclusive => lock::Kind::Exclusive,
    }
}

fn errno(error: std::io::Error) -> Errno {
    if error.kind() == std::io::ErrorKind::WouldBlock {
        return Errno::AGAIN;
    }
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
