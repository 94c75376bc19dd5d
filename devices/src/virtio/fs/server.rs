//! The FUSE server: takes one request apart, asks the file system, puts the reply together.
//!
//! Reads and writes go straight between the chain and the file; everything else is copied out of guest memory once
//! and bounded. What a guest may get wrong is answered with an errno; a request that has no room for its reply
//! breaks the device.

use std::io::{Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::vfs::{Cache, Caller, Create, Errno, FileSystem, Lock, LockKind, NodeId, Seek};
use super::wire::{self, Args, LockRequest, Reply, init, op, open};
use crate::state::{self, State, StateError};
use crate::virtio::{Error, Reader, Writer};

/// The most bytes in one read or write: 256 pages, what a Linux guest asks for at most.
const MAX_TRANSFER: u32 = 1 << 20;
/// The most argument bytes in any other request: an extended attribute of 64 KiB and names.
const MAX_ARGS: usize = 80 * 1024;
/// The longest reply that is not a read: a directory listing.
const MAX_REPLY: usize = MAX_TRANSFER as usize;
/// How long names and attributes are believed, in milliseconds.
const AUTO_MS: u64 = 1_000;
const ALWAYS_MS: u64 = 86_400_000;

/// What was agreed on in INIT.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Session {
    flags: u64,
}

/// A FUSE server over one file system.
pub(super) struct Server {
    fs: Box<dyn FileSystem>,
    session: Option<Session>,
    /// Locks were given up since [`Self::take_unlocked`].
    unlocked: bool,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("session", &self.session).finish_non_exhaustive()
    }
}

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy)]
struct Header {
    opcode: u32,
    unique: u64,
    node: NodeId,
    caller: Caller,
}

/// What to answer.
enum Answer {
    /// Nothing: the guest does not wait for a reply.
    Silent,
    /// These bytes.
    Body(Reply),
    /// So many bytes, which are in the chain already, behind the header.
    Written(usize),
    /// Nothing yet: the lock is another's.
    Wait(LockRequest),
    /// Nothing: the guest gives up another request.
    Interrupt(u64),
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is answered, in so many bytes.
    Answered(u32),
    /// It waits for a lock; its chain is kept, and asked about again with [`Server::retry`].
    Waits {
        /// Names the request.
        unique: u64,
        /// What it asks for.
        lock: LockRequest,
    },
    /// The guest gives up waiting for the request of this name. Has no reply.
    Interrupts(u64),
}

type Result<T> = std::result::Result<T, Errno>;

impl Server {
    pub(super) fn new(fs: Box<dyn FileSystem>) -> Self {
        Self { fs, session: None, unlocked: false }
    }

    /// Serves one request.
    pub(super) fn serve(
        &mut self,
        mut request: Reader<'_>,
        mut reply: Writer<'_>,
    ) -> std::result::Result<Outcome, Error> {
        let Some((header, len)) = read_header(&mut request) else {
            return Err(Error::Guest("file system request without a header".into()));
        };
        let body = reply.len().checked_sub(wire::OUT_HEADER);
        let mut body_writer = body.map(|_| reply.split_off(wire::OUT_HEADER));
        let answer = match &mut body_writer {
            _ if len != wire::IN_HEADER + request.len() => Err(Errno::INVAL),
            Some(writer) => self.dispatch(header, request, writer),
            None => self.dispatch(header, request, &mut Writer::default()),
        };
        let (error, length) = match answer {
            Ok(Answer::Silent) => return Ok(Outcome::Answered(0)),
            Ok(Answer::Interrupt(unique)) => return Ok(Outcome::Interrupts(unique)),
            Ok(Answer::Wait(lock)) if body.is_some() => {
                return Ok(Outcome::Waits { unique: header.unique, lock });
            }
            Ok(Answer::Wait(_)) => (0, 0),
            Ok(Answer::Written(length)) => (0, length),
            Ok(Answer::Body(bytes)) => match &mut body_writer {
                Some(writer) if writer.len() >= bytes.0.len() => {
                    // Writing to guest memory that was checked does not fail.
                    let _ = writer.write(&bytes.0);
                    (0, bytes.0.len())
                }
                _ => (Errno::INVAL.raw_os_error(), 0),
            },
            Err(errno) => (errno.raw_os_error(), 0),
        };
        if body.is_none() {
            return Err(Error::Guest(format!(
                "file system request {} has no room for a reply",
                header.opcode
            )));
        }
        Ok(Outcome::Answered(reply_header(&mut reply, header.unique, error, length)))
    }

    /// Asks once more about a request that waits; returns the bytes of its reply when the wait is over.
    pub(super) fn retry(&mut self, unique: u64, lock: &LockRequest, mut reply: Writer<'_>) -> Option<u32> {
        let error = match self.try_lock(lock) {
            Err(Errno::AGAIN) => return None,
            Err(errno) => errno.raw_os_error(),
            Ok(()) => 0,
        };
        Some(reply_header(&mut reply, unique, error, 0))
    }

    /// Whether locks were given up since it was asked last: those who wait may have them.
    pub(super) fn take_unlocked(&mut self) -> bool {
        std::mem::take(&mut self.unlocked)
    }

    /// The guest is gone or was reset.
    pub(super) fn clear(&mut self) {
        self.session = None;
        self.unlocked = true;
        self.fs.clear();
    }

    fn dispatch(
        &mut self,
        header: Header,
        mut request: Reader<'_>,
        writer: &mut Writer<'_>,
    ) -> Result<Answer> {
        match header.opcode {
            op::INIT => {}
            _ if self.session.is_none() => return Err(Errno::IO),
            op::READ => return self.read(request, writer),
            op::WRITE => return self.write(request),
            _ => {}
        }
        if request.len() > MAX_ARGS {
            return Err(Errno::TOOBIG);
        }
        let mut bytes = Vec::with_capacity(request.len());
        // Reading from guest memory that was checked does not fail.
        let _ = request.read_to_end(&mut bytes);
        let args = Args(&bytes);
        match header.opcode {
            op::INIT => self.init(args),
            op::DESTROY => {
                self.clear();
                Ok(Answer::Body(Reply::default()))
            }
            op::FORGET | op::BATCH_FORGET => self.forget(header, args),
            op::INTERRUPT => {
                let mut args = args;
                Ok(args.u64().map_or(Answer::Silent, Answer::Interrupt))
            }
            op::GETLK | op::SETLK | op::SETLKW => self.lock(header, args),
            op::OPEN
            | op::OPENDIR
            | op::CREATE
            | op::RELEASE
            | op::RELEASEDIR
            | op::FLUSH
            | op::FSYNC
            | op::FSYNCDIR
            | op::FALLOCATE
            | op::LSEEK
            | op::COPY_FILE_RANGE => self.handles(header, args),
            op::READDIR | op::READDIRPLUS => self.readdir(header, args, writer.len()),
            op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR => self.xattrs(header, args),
            _ => self.names(header, args),
        }
    }

    fn init(&mut self, mut args: Args<'_>) -> Result<Answer> {
        let (major, minor) = (args.u32()?, args.u32()?);
        let mut reply = Reply::default();
        if major > wire::MAJOR {
            // The guest tries again with ours.
            reply.u32(wire::MAJOR).u32(wire::MINOR).bytes(&[0; 56]);
            return Ok(Answer::Body(reply));
        }
        if major < wire::MAJOR || minor < wire::MIN_MINOR {
            return Err(Errno::PROTO);
        }
        let (max_readahead, offered) = (args.u32()?, u64::from(args.u32()?));
        let mut wanted = init::ASYNC_READ
            | init::POSIX_LOCKS
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::FLOCK_LOCKS
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::SUBMOUNTS;
        if self.fs.cache() == Cache::Always {
            wanted |= init::CACHE_SYMLINKS;
        }
        if self.fs.writeback() {
            wanted |= init::WRITEBACK_CACHE;
        }
        let flags = offered & wanted;
        self.session = Some(Session { flags });
        reply.u32(wire::MAJOR).u32(wire::MINOR).u32(max_readahead).u32(flags as u32);
        // max_background, congestion_threshold; max_write; time_gran; max_pages, map_alignment; flags2, unused.
        reply.u16(64).u16(48).u32(MAX_TRANSFER).u32(1).u16((MAX_TRANSFER / 4096) as u16).u16(0);
        reply.u32(0).bytes(&[0; 28]);
        Ok(Answer::Body(reply))
    }

    fn forget(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer> {
        if header.opcode == op::FORGET {
            if let Ok(count) = args.u64() {
                self.fs.forget(header.node, count);
            }
        } else if let (Ok(count), Ok(_)) = (args.u32(), args.u32()) {
            for _ in 0..count {
                let (Ok(node), Ok(count)) = (args.u64(), args.u64()) else { break };
                self.fs.forget(node, count);
            }
        }
        Ok(Answer::Silent)
    }

    fn read(&mut self, mut request: Reader<'_>, writer: &mut Writer<'_>) -> Result<Answer> {
        let mut bytes = [0; 40];
        request.read_exact(&mut bytes).map_err(|_| Errno::INVAL)?;
        let mut args = Args(&bytes);
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let count = (size.min(MAX_TRANSFER) as usize).min(writer.len());
        let mut done = 0;
        while done < count {
            match self.fs.read(handle, offset.saturating_add(done as u64), count - done, writer) {
                Ok(0) => break,
                Ok(step) => done += step,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(Answer::Written(done))
    }

    fn write(&mut self, mut request: Reader<'_>) -> Result<Answer> {
        let mut bytes = [0; 40];
        request.read_exact(&mut bytes).map_err(|_| Errno::INVAL)?;
        let mut args = Args(&bytes);
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let count = size as usize;
        if size > MAX_TRANSFER || count > request.len() {
            return Err(Errno::INVAL);
        }
        let mut done = 0;
        while done < count {
            match self.fs.write(handle, offset.saturating_add(done as u64), count - done, &mut request) {
                Ok(0) => break,
                Ok(step) => done += step,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        let mut reply = Reply::default();
        reply.u32(u32::try_from(done).unwrap_or(u32::MAX)).u32(0);
        Ok(Answer::Body(reply))
    }

    /// Requests that make, open, close and work on open files.
    fn handles(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer> {
        let mut reply = Reply::default();
        match header.opcode {
            op::OPEN => {
                let flags = args.u32()?;
                let handle = self.fs.open(header.node, flags)?;
                reply.open_out(handle, self.keep_cache());
            }
            op::OPENDIR => {
                let handle = self.fs.opendir(header.node)?;
                let flags =
                    if self.fs.cache() == Cache::Always { open::CACHE_DIR | open::KEEP_CACHE } else { 0 };
                reply.open_out(handle, flags);
            }
            op::CREATE => {
                let (flags, mode, _umask, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
                let create = Create { mode, rdev: 0, caller: header.caller };
                let (entry, handle) = self.fs.create(header.node, args.name()?, create, flags)?;
                let (valid, submounts) = self.validity();
                reply.entry_out(&entry, valid, submounts).open_out(handle, self.keep_cache());
            }
            op::RELEASE => {
                self.fs.release(args.u64()?);
                self.unlocked = true;
            }
            op::RELEASEDIR => self.fs.releasedir(args.u64()?),
            op::FLUSH => {
                let (handle, _) = (args.u64()?, args.u64()?);
                self.fs.flush(handle, args.u64()?)?;
                self.unlocked = true;
            }
            op::FSYNC => {
                let (handle, flags) = (args.u64()?, args.u32()?);
                self.fs.fsync(handle, flags & 1 != 0)?;
            }
            op::FSYNCDIR => self.fs.fsyncdir(args.u64()?)?,
            op::FALLOCATE => {
                let (handle, offset, len, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()?);
                self.fs.fallocate(handle, mode, offset, len)?;
            }
            // Linux asks without having written what it keeps: a hole here may be data there. It then takes all for data.
            op::LSEEK if self.fs.writeback() => return Err(Errno::NOSYS),
            op::LSEEK => {
                let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
                let seek = match whence {
                    3 => Seek::Data,
                    4 => Seek::Hole,
                    _ => return Err(Errno::INVAL),
                };
                reply.u64(self.fs.lseek(handle, offset, seek)?);
            }
            _ => {
                let (from, from_at, _, to, to_at) =
                    (args.u64()?, args.u64()?, args.u64()?, args.u64()?, args.u64()?);
                let (len, _flags) = (args.u64()?, args.u64()?);
                let len = len.min(u64::from(u32::MAX) & !4095);
                let copied = self.fs.copy_range((from, from_at), (to, to_at), len)?;
                reply.u32(u32::try_from(copied).unwrap_or(u32::MAX)).u32(0);
            }
        }
        Ok(Answer::Body(reply))
    }

    fn lock(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer> {
        let request = args.lock()?;
        if header.opcode == op::GETLK {
            let kind = request.kind.filter(|_| !request.flock).ok_or(Errno::INVAL)?;
            let wish = Lock { kind, start: request.start, end: request.end, pid: request.pid };
            let mut reply = Reply::default();
            reply.lock_out(self.fs.getlk(request.handle, request.owner, &wish)?);
            return Ok(Answer::Body(reply));
        }
        match self.try_lock(&request) {
            Err(Errno::AGAIN) if header.opcode == op::SETLKW => Ok(Answer::Wait(request)),
            tried => tried.map(|()| Answer::Body(Reply::default())),
        }
    }

    fn try_lock(&mut self, request: &LockRequest) -> Result<()> {
        let &LockRequest { handle, owner, flock, kind, start, end, pid } = request;
        match kind {
            _ if flock => self.fs.flock(handle, kind)?,
            Some(kind) => self.fs.setlk(handle, owner, &Lock { kind, start, end, pid })?,
            None => self.fs.unlock(handle, owner, start, end)?,
        }
        // An exclusive lock that became a shared one lets others in as well.
        self.unlocked |= kind != Some(LockKind::Exclusive);
        Ok(())
    }

    /// Requests about names and attributes.
    fn names(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer> {
        let (valid, submounts) = self.validity();
        let (node, caller) = (header.node, header.caller);
        let mut reply = Reply::default();
        let entry = match header.opcode {
            op::LOOKUP => self.fs.lookup(node, args.name()?)?,
            op::SYMLINK => {
                let name = args.name()?;
                self.fs.symlink(node, name, args.string()?, caller)?
            }
            op::MKNOD => {
                let (mode, rdev, _umask, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
                self.fs.mknod(node, args.name()?, Create { mode, rdev, caller })?
            }
            op::MKDIR => {
                let (mode, _umask) = (args.u32()?, args.u32()?);
                self.fs.mkdir(node, args.name()?, Create { mode, rdev: 0, caller })?
            }
            op::LINK => {
                let old = args.u64()?;
                self.fs.link(old, node, args.name()?)?
            }
            op::GETATTR => {
                let (flags, _, handle) = (args.u32()?, args.u32()?, args.u64()?);
                let attr = self.fs.getattr(node, (flags & 1 != 0).then_some(handle))?;
                reply.attr_out(&attr, valid, submounts);
                return Ok(Answer::Body(reply));
            }
            op::SETATTR => {
                let (handle, change) = args.setattr()?;
                let attr = self.fs.setattr(node, handle, &change)?;
                reply.attr_out(&attr, valid, submounts);
                return Ok(Answer::Body(reply));
            }
            op::READLINK => {
                reply.bytes(&self.fs.readlink(node)?);
                return Ok(Answer::Body(reply));
            }
            op::STATFS => {
                reply.statfs_out(&self.fs.statfs(node)?);
                return Ok(Answer::Body(reply));
            }
            op::UNLINK => {
                self.fs.unlink(node, args.name()?)?;
                return Ok(Answer::Body(reply));
            }
            op::RMDIR => {
                self.fs.rmdir(node, args.name()?)?;
                return Ok(Answer::Body(reply));
            }
            op::RENAME | op::RENAME2 => {
                let to = args.u64()?;
                let flags = if header.opcode == op::RENAME2 { args.u32()? } else { 0 };
                if header.opcode == op::RENAME2 {
                    args.u32()?;
                }
                let (old, new) = (args.name()?, args.name()?);
                self.fs.rename((node, old), (to, new), flags)?;
                return Ok(Answer::Body(reply));
            }
            op::SYNCFS => {
                self.fs.sync()?;
                return Ok(Answer::Body(reply));
            }
            // Polling, ioctl and block maps stay in the guest's kernel; so do access checks.
            _ => return Err(Errno::NOSYS),
        };
        reply.entry_out(&entry, valid, submounts);
        Ok(Answer::Body(reply))
    }

    fn xattrs(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer> {
        let mut reply = Reply::default();
        match header.opcode {
            op::SETXATTR => {
                let (size, flags) = (args.u32()?, args.u32()?);
                let name = args.string()?;
                let value = args.bytes(size as usize)?;
                self.fs.setxattr(header.node, name, value, flags)?;
            }
            op::REMOVEXATTR => self.fs.removexattr(header.node, args.string()?)?,
            _ => {
                let (size, _) = (args.u32()?, args.u32()?);
                let value = if header.opcode == op::GETXATTR {
                    self.fs.getxattr(header.node, args.string()?)?
                } else {
                    self.fs.listxattr(header.node)?
                };
                if size == 0 {
                    reply.u32(u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?).u32(0);
                } else if value.len() > size as usize {
                    return Err(Errno::RANGE);
                } else {
                    reply.bytes(&value);
                }
            }
        }
        Ok(Answer::Body(reply))
    }

    fn readdir(&mut self, header: Header, mut args: Args<'_>, room: usize) -> Result<Answer> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let room = (size as usize).min(room).min(MAX_REPLY);
        let plus = header.opcode == op::READDIRPLUS;
        let (valid, submounts) = self.validity();
        let mut reply = Reply::default();
        for entry in self.fs.readdir(handle, offset, room)? {
            let len = wire::dirent_len(&entry.name) + if plus { wire::ENTRY_OUT } else { 0 };
            if reply.0.len() + len > room {
                break;
            }
            if plus {
                // `.` and `..` are not counted as lookups; a name that is gone meanwhile is listed without its node.
                let found =
                    super::vfs::Name::new(&entry.name).ok().and_then(|n| self.fs.lookup(header.node, n).ok());
                match found {
                    Some(found) => reply.entry_out(&found, valid, submounts),
                    None => reply.bytes(&[0; wire::ENTRY_OUT]),
                };
            }
            reply.dirent(&entry);
        }
        Ok(Answer::Body(reply))
    }

    /// How long entries and attributes are believed, in milliseconds, and whether submounts may be told.
    fn validity(&self) -> (u64, bool) {
        let valid = match self.fs.cache() {
            Cache::Never => 0,
            Cache::Auto => AUTO_MS,
            Cache::Always => ALWAYS_MS,
        };
        (valid, self.session.is_some_and(|session| session.flags & init::SUBMOUNTS != 0))
    }

    fn keep_cache(&self) -> u32 {
        if self.fs.cache() == Cache::Always { open::KEEP_CACHE } else { 0 }
    }

    pub(super) fn save(&self) -> std::result::Result<Vec<u8>, StateError> {
        state::encode(&ServerState { session: self.session, fs: self.fs.save()? })
    }

    pub(super) fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), StateError> {
        let saved: ServerState = state::decode(bytes)?;
        self.fs.restore(&saved.fs)?;
        self.session = saved.session;
        Ok(())
    }
}

/// Writes the header of a reply in front of `length` bytes; returns how long the whole is.
pub(super) fn reply_header(reply: &mut Writer<'_>, unique: u64, error: i32, length: usize) -> u32 {
    let total = u32::try_from(wire::OUT_HEADER + length).unwrap_or(u32::MAX);
    let mut out = Reply::default();
    out.u32(total).u32((-error).cast_unsigned()).u64(unique);
    // Writing to guest memory that was checked does not fail.
    let _ = reply.write(&out.0);
    total
}

/// The header and the length that the request claims to have.
fn read_header(request: &mut Reader<'_>) -> Option<(Header, usize)> {
    let mut bytes = [0; wire::IN_HEADER];
    request.read_exact(&mut bytes).ok()?;
    let mut args = Args(&bytes);
    let (len, opcode) = (args.u32().ok()?, args.u32().ok()?);
    let (unique, node) = (args.u64().ok()?, args.u64().ok()?);
    let caller = Caller { uid: args.u32().ok()?, gid: args.u32().ok()? };
    Some((Header { opcode, unique, node, caller }, len as usize))
}

/// The session and the file system's own state.
#[derive(Debug, Serialize, Deserialize)]
struct ServerState {
    session: Option<Session>,
    fs: Vec<u8>,
}

impl State for ServerState {
    const NAME: &'static str = "virtio-fs";
    const VERSION: u16 = 1;
}
