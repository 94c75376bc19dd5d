//! Locks on a passed-through directory of Windows: among the processes of one guest.
//!
//! The host has none that would do: its locks of ranges keep others from reading and writing, those of the same process too, and
//! go by handles. So neither other guests nor programs of the host see them.

use super::super::locks::Table;
use super::super::vfs::{Errno, Handle, LAST_BYTE, Lock, LockKind, LockOwner, NodeId};
use super::Passthrough;
use super::system::{Result, System, access};

/// The locks of a guest.
#[derive(Debug, Default)]
pub(super) struct Locks {
    pub(super) table: Table,
}

impl Locks {
    /// An owner is done with a file: all of its locks there end.
    pub(super) fn forget(&mut self, node: NodeId, owner: LockOwner) {
        self.table.unset(node, owner, 0, LAST_BYTE);
    }

    /// An open file is closed.
    pub(super) fn release(&mut self, handle: Handle) {
        self.table.release(handle);
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
    }
}

impl<S: System> Passthrough<S> {
    /// A lock that is in the way of `wish`.
    pub(super) fn find_lock(&self, handle: Handle, owner: LockOwner, wish: &Lock) -> Result<Option<Lock>> {
        Ok(self.locks.table.conflict(self.files.file(handle)?.node, owner, wish))
    }

    /// Takes a lock, or says EAGAIN.
    pub(super) fn take_lock(&mut self, handle: Handle, owner: LockOwner, wish: &Lock) -> Result<()> {
        let open = self.files.file(handle)?;
        // As the guest's kernel checks it: one cannot keep others away from what one may not do oneself.
        let refused = if wish.kind == LockKind::Exclusive { 0 } else { access::WRONLY };
        if access::mode(open.flags) == refused {
            return Err(Errno::BADF);
        }
        let (node, table) = (open.node, &mut self.locks.table);
        if table.conflict(node, owner, wish).is_some() {
            return Err(Errno::AGAIN);
        }
        table.room(node, owner, self.options.max_locks)?;
        table.set(node, owner, handle, wish);
        Ok(())
    }

    /// Gives locks up.
    pub(super) fn drop_lock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()> {
        let (node, table) = (self.files.file(handle)?.node, &mut self.locks.table);
        table.room_for_hole(node, owner, start, end)?;
        table.unset(node, owner, start, end);
        Ok(())
    }

    /// Takes, changes or gives up the lock of an open file, or says EAGAIN.
    pub(super) fn take_flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()> {
        let (node, table) = (self.files.file(handle)?.node, &mut self.locks.table);
        if kind.is_some_and(|kind| table.flock_conflict(node, handle, kind)) {
            return Err(Errno::AGAIN);
        }
        table.set_flock(node, handle, kind);
        Ok(())
    }

    /// Takes saved locks back, of files that are open still.
    #[allow(clippy::unnecessary_wraps, reason = "the host can refuse them elsewhere")]
    pub(super) fn restore_locks(&mut self, saved: &Table) -> std::result::Result<(), String> {
        self.locks.table = saved.clone();
        let owners = saved.owners().into_iter().map(|(_, _, handle)| handle);
        for handle in owners.chain(saved.flocks().into_iter().map(|(handle, _)| handle)) {
            if self.files.file(handle).is_err() {
                self.locks.table.release(handle);
            }
        }
        Ok(())
    }
}
