//! The guest's side of a share, for tests, fuzz targets and benchmarks: FUSE requests over a [`Rig`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::Fs;
use super::vfs::{Errno, FileSystem, NodeId, ROOT};
use super::wire::{IN_HEADER, OUT_HEADER, op};
use crate::testing::Rig;

/// A FUSE client with its device.
#[derive(Debug)]
pub struct Client {
    /// The driver under it.
    pub rig: Rig,
    unique: u64,
    /// Who asks.
    pub uid: u32,
}

/// What a lookup told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stat {
    pub node: NodeId,
    pub ino: u64,
    pub size: u64,
    pub mtime: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A `fuse_attr`.
fn stat(node: NodeId, attr: &[u8]) -> Stat {
    Stat {
        node,
        ino: u64_at(attr, 0),
        size: u64_at(attr, 8),
        mtime: u64_at(attr, 32),
        mode: u32_at(attr, 60),
        nlink: u32_at(attr, 64),
        uid: u32_at(attr, 68),
        gid: u32_at(attr, 72),
        flags: u32_at(attr, 84),
    }
}

/// Arguments from words and strings.
#[derive(Debug, Default, Clone)]
pub struct Bytes(pub Vec<u8>);

#[allow(missing_docs)]
impl Bytes {
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// With its NUL.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self
    }
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

type Result<T> = std::result::Result<T, Errno>;

#[allow(missing_docs)]
impl Client {
    /// A client that has said INIT.
    #[must_use]
    pub fn new(fs: Box<dyn FileSystem>) -> Self {
        Self::silent(fs).greeted()
    }

    /// A client, which has said INIT, of a device on its own thread, as in a VM.
    #[must_use]
    pub fn threaded(fs: Box<dyn FileSystem>) -> Self {
        let mut rig = Rig::threaded(Box::new(Fs::new("share", fs).unwrap()));
        rig.init(u64::MAX);
        Self { rig, unique: 0, uid: 0 }.greeted()
    }

    fn greeted(mut self) -> Self {
        self.greet();
        self
    }

    fn greet(&mut self) {
        let init = self.call(op::INIT, 0, &Bytes::default().u32(7).u32(41).u32(1 << 17).u32(u32::MAX).0, 64);
        assert_eq!(u32_at(&init.unwrap(), 4), super::wire::MINOR);
    }

    /// Resets the device, agrees on what is in `features` and mounts the share again.
    pub fn reset(&mut self, features: u64) {
        self.rig.init(features);
        self.greet();
    }

    /// A client that has said nothing yet.
    #[must_use]
    pub fn silent(fs: Box<dyn FileSystem>) -> Self {
        Self { rig: Rig::started(Box::new(Fs::new("share", fs).unwrap())), unique: 0, uid: 0 }
    }

    /// One request; the body of its reply.
    pub fn call(&mut self, opcode: u32, node: NodeId, args: &[u8], room: usize) -> Result<Vec<u8>> {
        self.unique += 2;
        let len = u32::try_from(IN_HEADER + args.len()).unwrap();
        let header =
            Bytes::default().u32(len).u32(opcode).u64(self.unique).u64(node).u32(self.uid).u32(self.uid);
        let header = header.u32(1).u32(0).0;
        let used = self.rig.ask(1, &[&header, args], &[OUT_HEADER, room]);
        assert_eq!((u32_at(&used.data, 0), u64_at(&used.data, 8)), (used.len, self.unique));
        match u32_at(&used.data, 4) {
            0 => Ok(used.data[OUT_HEADER..used.len as usize].to_vec()),
            error => Err(Errno::from_raw_os_error(-error.cast_signed())),
        }
    }

    /// A request without a reply.
    pub fn tell(&mut self, opcode: u32, node: NodeId, args: &[u8]) {
        let len = u32::try_from(IN_HEADER + args.len()).unwrap();
        let header = Bytes::default().u32(len).u32(opcode).u64(0).u64(node).u64(0).u64(0).0;
        assert_eq!(self.rig.ask(0, &[&header, args], &[]).len, 0);
    }

    fn entry(&mut self, opcode: u32, node: NodeId, args: Bytes) -> Result<Stat> {
        let out = self.call(opcode, node, &args.0, 144)?;
        Ok(stat(u64_at(&out, 0), &out[40..]))
    }

    pub fn lookup(&mut self, parent: NodeId, name: &str) -> Result<Stat> {
        self.entry(op::LOOKUP, parent, Bytes::default().name(name))
    }

    /// Looks a path up, one name at a time.
    pub fn walk(&mut self, path: &str) -> Result<Stat> {
        let mut node = ROOT;
        let mut found = Err(Errno::INVAL);
        for name in path.split('/') {
            found = self.lookup(node, name);
            node = found?.node;
        }
        found
    }

    pub fn forget(&mut self, node: NodeId, count: u64) {
        self.tell(op::FORGET, node, &Bytes::default().u64(count).0);
    }

    pub fn getattr(&mut self, node: NodeId) -> Result<Stat> {
        let out = self.call(op::GETATTR, node, &[0; 16], 104)?;
        Ok(stat(node, &out[16..]))
    }

    /// `valid` and the fields of `fuse_setattr_in` that it names.
    pub fn setattr(
        &mut self,
        node: NodeId,
        valid: u32,
        size: u64,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Stat> {
        let args = Bytes::default().u32(valid).u32(0).u64(0).u64(size).u64(0);
        // atime and mtime are 1,000,000,000.5 seconds.
        let args = args.u64(1_000_000_000).u64(1_000_000_000).u64(0).u32(500_000_000).u32(500_000_000).u32(0);
        let args = args.u32(mode).u32(0).u32(owner.0).u32(owner.1).u32(0);
        let out = self.call(op::SETATTR, node, &args.0, 104)?;
        Ok(stat(node, &out[16..]))
    }

    pub fn mkdir(&mut self, parent: NodeId, name: &str, mode: u32) -> Result<Stat> {
        self.entry(op::MKDIR, parent, Bytes::default().u32(mode).u32(0).name(name))
    }

    pub fn mknod(&mut self, parent: NodeId, name: &str, mode: u32, rdev: u32) -> Result<Stat> {
        self.entry(op::MKNOD, parent, Bytes::default().u32(mode).u32(rdev).u32(0).u32(0).name(name))
    }

    pub fn symlink(&mut self, parent: NodeId, name: &str, target: &str) -> Result<Stat> {
        self.entry(op::SYMLINK, parent, Bytes::default().name(name).name(target))
    }

    pub fn link(&mut self, node: NodeId, parent: NodeId, name: &str) -> Result<Stat> {
        self.entry(op::LINK, parent, Bytes::default().u64(node).name(name))
    }

    pub fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        self.call(op::READLINK, node, &[], 4096)
    }

    pub fn unlink(&mut self, parent: NodeId, name: &str) -> Result<()> {
        self.call(op::UNLINK, parent, &Bytes::default().name(name).0, 0).map(drop)
    }

    pub fn rmdir(&mut self, parent: NodeId, name: &str) -> Result<()> {
        self.call(op::RMDIR, parent, &Bytes::default().name(name).0, 0).map(drop)
    }

    pub fn rename(&mut self, from: (NodeId, &str), to: (NodeId, &str), flags: u32) -> Result<()> {
        let args = Bytes::default().u64(to.0).u32(flags).u32(0).name(from.1).name(to.1);
        self.call(op::RENAME2, from.0, &args.0, 0).map(drop)
    }

    pub fn open(&mut self, node: NodeId, flags: u32) -> Result<u64> {
        Ok(u64_at(&self.call(op::OPEN, node, &Bytes::default().u32(flags).u32(0).0, 16)?, 0))
    }

    /// Makes and opens a file: its attributes and handle.
    pub fn create(&mut self, parent: NodeId, name: &str, flags: u32, mode: u32) -> Result<(Stat, u64)> {
        let args = Bytes::default().u32(flags).u32(mode).u32(0).u32(0).name(name);
        let out = self.call(op::CREATE, parent, &args.0, 144)?;
        Ok((stat(u64_at(&out, 0), &out[40..]), u64_at(&out, 128)))
    }

    pub fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let args = Bytes::default().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        self.call(op::READ, 0, &args.0, size as usize)
    }

    pub fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Result<u32> {
        let size = u32::try_from(bytes.len()).unwrap();
        let args = Bytes::default().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0).raw(bytes);
        Ok(u32_at(&self.call(op::WRITE, 0, &args.0, 8)?, 0))
    }

    /// `fuse_lk_in`; `kind` is 0 for a shared lock, 1 for an exclusive one, 2 for none.
    fn lock_args(handle: u64, owner: u64, kind: u32, range: (u64, u64), flock: bool) -> Vec<u8> {
        let args = Bytes::default().u64(handle).u64(owner).u64(range.0).u64(range.1).u32(kind);
        args.u32(u32::try_from(owner).unwrap()).u32(u32::from(flock)).u32(0).0
    }

    /// Tries to change an owner's locks of a range, both ends among it.
    pub fn setlk(&mut self, handle: u64, owner: u64, kind: u32, range: (u64, u64)) -> Result<()> {
        self.call(op::SETLK, 0, &Self::lock_args(handle, owner, kind, range, false), 0).map(drop)
    }

    /// Tries to change the lock of an open file.
    pub fn flock(&mut self, handle: u64, kind: u32) -> Result<()> {
        self.call(op::SETLK, 0, &Self::lock_args(handle, handle, kind, (0, u64::MAX >> 1), true), 0).map(drop)
    }

    /// The lock that is in the way of this one: kind (2: none), range and process.
    pub fn getlk(
        &mut self,
        handle: u64,
        owner: u64,
        kind: u32,
        range: (u64, u64),
    ) -> Result<(u32, (u64, u64), u32)> {
        let out = self.call(op::GETLK, 0, &Self::lock_args(handle, owner, kind, range, false), 24)?;
        Ok((u32_at(&out, 16), (u64_at(&out, 0), u64_at(&out, 8)), u32_at(&out, 20)))
    }

    /// Asks for a lock and does not wait for the reply; returns the request's name.
    pub fn ask_lock(&mut self, handle: u64, owner: u64, kind: u32, range: (u64, u64), flock: bool) -> u64 {
        let args = Self::lock_args(handle, owner, kind, range, flock);
        self.unique += 2;
        let len = u32::try_from(IN_HEADER + args.len()).unwrap();
        let header = Bytes::default().u32(len).u32(op::SETLKW).u64(self.unique).u64(0).u64(0).u64(0).0;
        self.rig.add(1, &[&header, &args], &[OUT_HEADER]);
        self.unique
    }

    /// The next reply to a request that was not waited for: its name and how it ended.
    pub fn answer(&mut self) -> (u64, Result<()>) {
        let used = self.rig.wait_used(1);
        Self::ended(&used.data)
    }

    /// As [`Self::answer`], if it is there already.
    pub fn answered(&mut self) -> Option<(u64, Result<()>)> {
        self.rig.used(1).map(|used| Self::ended(&used.data))
    }

    fn ended(reply: &[u8]) -> (u64, Result<()>) {
        let error = u32_at(reply, 4);
        let ended = if error == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-error.cast_signed())) };
        (u64_at(reply, 8), ended)
    }

    /// Gives up waiting for a request.
    pub fn interrupt(&mut self, unique: u64) {
        self.tell(op::INTERRUPT, 0, &Bytes::default().u64(unique).0);
    }

    /// A process closes one of its descriptors of an open file.
    pub fn flush(&mut self, handle: u64, owner: u64) -> Result<()> {
        self.call(op::FLUSH, 0, &Bytes::default().u64(handle).u64(0).u64(owner).0, 0).map(drop)
    }

    pub fn release(&mut self, handle: u64) -> Result<()> {
        self.call(op::RELEASE, 0, &Bytes::default().u64(handle).u64(0).u64(0).0, 0).map(drop)
    }

    pub fn fsync(&mut self, handle: u64) -> Result<()> {
        self.call(op::FSYNC, 0, &Bytes::default().u64(handle).u64(1).0, 0).map(drop)
    }

    pub fn fallocate(&mut self, handle: u64, mode: u32, offset: u64, len: u64) -> Result<()> {
        let args = Bytes::default().u64(handle).u64(offset).u64(len).u32(mode).u32(0);
        self.call(op::FALLOCATE, 0, &args.0, 0).map(drop)
    }

    pub fn lseek(&mut self, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        let args = Bytes::default().u64(handle).u64(offset).u32(whence).u32(0);
        Ok(u64_at(&self.call(op::LSEEK, 0, &args.0, 8)?, 0))
    }

    pub fn copy_range(&mut self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u32> {
        let args = Bytes::default().u64(from.0).u64(from.1).u64(0).u64(to.0).u64(to.1).u64(len).u64(0);
        Ok(u32_at(&self.call(op::COPY_FILE_RANGE, 0, &args.0, 8)?, 0))
    }

    pub fn setxattr(&mut self, node: NodeId, name: &str, value: &[u8]) -> Result<()> {
        let args = Bytes::default().u32(u32::try_from(value.len()).unwrap()).u32(0).name(name).raw(value);
        self.call(op::SETXATTR, node, &args.0, 0).map(drop)
    }

    pub fn getxattr(&mut self, node: NodeId, name: &str, size: u32) -> Result<Vec<u8>> {
        self.call(op::GETXATTR, node, &Bytes::default().u32(size).u32(0).name(name).0, size.max(8) as usize)
    }

    pub fn listxattr(&mut self, node: NodeId) -> Result<Vec<u8>> {
        self.call(op::LISTXATTR, node, &Bytes::default().u32(1000).u32(0).0, 1000)
    }

    /// All names of a directory in batches of `room` bytes, with the nodes that READDIRPLUS tells.
    pub fn list(&mut self, node: NodeId, room: u32, plus: bool) -> Result<Vec<(String, NodeId)>> {
        let handle = u64_at(&self.call(op::OPENDIR, node, &[0; 8], 16)?, 0);
        let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let args = Bytes::default().u64(handle).u64(offset).u32(room).u32(0).u64(0).u64(0);
            let out = self.call(opcode, node, &args.0, room as usize)?;
            let mut rest = &out[..];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let found = if plus { u64_at(rest, 0) } else { 0 };
                rest = &rest[if plus { 128 } else { 0 }..];
                offset = u64_at(rest, 8);
                let len = u32_at(rest, 16) as usize;
                all.push((String::from_utf8(rest[24..24 + len].to_vec()).unwrap(), found));
                rest = &rest[24 + len.next_multiple_of(8)..];
            }
        }
        self.call(op::RELEASEDIR, node, &Bytes::default().u64(handle).u64(0).u64(0).0, 0)?;
        Ok(all)
    }

    pub fn statfs(&mut self) -> Result<Vec<u8>> {
        self.call(op::STATFS, ROOT, &[], 80)
    }
}
