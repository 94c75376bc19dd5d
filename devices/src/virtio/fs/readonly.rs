//! Refuses every change to another file system with EROFS, on the host's side, whatever the guest mounted.

use super::vfs::{
    Attr, Cache, Caller, Create, DirEntry, Entry, Errno, FileSystem, Handle, Lock, LockKind, LockOwner, Name,
    NodeId, Seek, SetAttr, StatFs,
};
use crate::state::StateError;
use crate::virtio::{Reader, Writer};

type Result<T> = std::result::Result<T, Errno>;

/// Access mode, `O_TRUNC` and `O_APPEND` of `open(2)`: anything but reading.
const WRITING: u32 = 0o3 | 0o1000 | 0o2000;

/// See the module's description.
#[derive(Debug)]
pub struct ReadOnly<F>(pub F);

impl<F: FileSystem> FileSystem for ReadOnly<F> {
    fn cache(&self) -> Cache {
        self.0.cache()
    }
    fn writeback(&self) -> bool {
        false
    }
    fn lookup(&mut self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.0.lookup(parent, name)
    }
    fn forget(&mut self, node: NodeId, count: u64) {
        self.0.forget(node, count);
    }
    fn getattr(&mut self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        self.0.getattr(node, handle)
    }
    fn setattr(&mut self, _: NodeId, _: Option<Handle>, _: &SetAttr) -> Result<Attr> {
        Err(Errno::ROFS)
    }
    fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        self.0.readlink(node)
    }
    fn symlink(&mut self, _: NodeId, _: Name<'_>, _: &[u8], _: Caller) -> Result<Entry> {
        Err(Errno::ROFS)
    }
    fn mknod(&mut self, _: NodeId, _: Name<'_>, _: Create) -> Result<Entry> {
        Err(Errno::ROFS)
    }
    fn mkdir(&mut self, _: NodeId, _: Name<'_>, _: Create) -> Result<Entry> {
        Err(Errno::ROFS)
    }
    fn unlink(&mut self, _: NodeId, _: Name<'_>) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn rmdir(&mut self, _: NodeId, _: Name<'_>) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn rename(&mut self, _: (NodeId, Name<'_>), _: (NodeId, Name<'_>), _: u32) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn link(&mut self, _: NodeId, _: NodeId, _: Name<'_>) -> Result<Entry> {
        Err(Errno::ROFS)
    }
    fn open(&mut self, node: NodeId, flags: u32) -> Result<Handle> {
        if flags & WRITING == 0 { self.0.open(node, flags) } else { Err(Errno::ROFS) }
    }
    fn create(&mut self, _: NodeId, _: Name<'_>, _: Create, _: u32) -> Result<(Entry, Handle)> {
        Err(Errno::ROFS)
    }
    fn read(&mut self, handle: Handle, offset: u64, count: usize, into: &mut Writer<'_>) -> Result<usize> {
        self.0.read(handle, offset, count, into)
    }
    fn write(&mut self, _: Handle, _: u64, _: usize, _: &mut Reader<'_>) -> Result<usize> {
        Err(Errno::ROFS)
    }
    fn flush(&mut self, handle: Handle, owner: LockOwner) -> Result<()> {
        self.0.flush(handle, owner)
    }
    // A lock changes nothing of the file system; an exclusive one of a range wants a file that is open for writing, and
    // there is none.
    fn getlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<Option<Lock>> {
        self.0.getlk(handle, owner, lock)
    }
    fn setlk(&mut self, handle: Handle, owner: LockOwner, lock: &Lock) -> Result<()> {
        self.0.setlk(handle, owner, lock)
    }
    fn unlock(&mut self, handle: Handle, owner: LockOwner, start: u64, end: u64) -> Result<()> {
        self.0.unlock(handle, owner, start, end)
    }
    fn flock(&mut self, handle: Handle, kind: Option<LockKind>) -> Result<()> {
        self.0.flock(handle, kind)
    }
    fn fsync(&mut self, handle: Handle, data_only: bool) -> Result<()> {
        self.0.fsync(handle, data_only)
    }
    fn release(&mut self, handle: Handle) {
        self.0.release(handle);
    }
    fn fallocate(&mut self, _: Handle, _: u32, _: u64, _: u64) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn lseek(&mut self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        self.0.lseek(handle, offset, seek)
    }
    fn copy_range(&mut self, _: (Handle, u64), _: (Handle, u64), _: u64) -> Result<u64> {
        Err(Errno::ROFS)
    }
    fn opendir(&mut self, node: NodeId) -> Result<Handle> {
        self.0.opendir(node)
    }
    fn readdir(&mut self, handle: Handle, offset: u64, room: usize) -> Result<Vec<DirEntry>> {
        self.0.readdir(handle, offset, room)
    }
    fn fsyncdir(&mut self, handle: Handle) -> Result<()> {
        self.0.fsyncdir(handle)
    }
    fn releasedir(&mut self, handle: Handle) {
        self.0.releasedir(handle);
    }
    fn getxattr(&mut self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.0.getxattr(node, name)
    }
    fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>> {
        self.0.listxattr(node)
    }
    fn setxattr(&mut self, _: NodeId, _: &[u8], _: &[u8], _: u32) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn removexattr(&mut self, _: NodeId, _: &[u8]) -> Result<()> {
        Err(Errno::ROFS)
    }
    fn statfs(&mut self, node: NodeId) -> Result<StatFs> {
        self.0.statfs(node)
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
    fn clear(&mut self) {
        self.0.clear();
    }
    fn save(&self) -> std::result::Result<Vec<u8>, StateError> {
        self.0.save()
    }
    fn restore(&mut self, state: &[u8]) -> std::result::Result<(), StateError> {
        self.0.restore(state)
    }
}
