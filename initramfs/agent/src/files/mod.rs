//! The file server: this program run once more, as a process beside the container's. It reads questions from its standard
//! input and answers on its standard output ([`servin_init::proto::FilesAsk`]).
//!
//! It works in the container's root, so that a symbolic link leads where it leads the container's programs and nowhere else;
//! what it finds of the machine's own lies behind descriptor 3, the initramfs. A container that changes its files meanwhile
//! gives answers as confused as any `tar` would.

mod changes;
mod read;
mod write;

use alloc::{format, string::String, vec, vec::Vec};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, statat},
    io::Errno,
    mount::{UnmountFlags, mount_bind, unmount},
    process::fchdir,
};
use servin_init::proto::{
    Capabilities, Channel, Encode as _, Exec, FilesAsk, FilesTell, Frames, MAX_DATA, Node,
};

use crate::{
    failure::{Doing as _, Failure},
    sys,
};

/// What it is called: the first word of its arguments, by which it knows what it is.
pub(crate) const NAME: &core::ffi::CStr = c"servin-files";
/// How the child that is to become it finds it, in the initramfs.
pub(crate) const PATH: &core::ffi::CStr = c"./init";
/// The descriptor that the initramfs is under.
pub(crate) const INITRAMFS: i32 = 3;
/// Answers are written when this much waits.
const BATCH: usize = 32 * 1024;

type Result<T> = core::result::Result<T, Failure>;

/// The file server as a program of the initramfs.
pub(crate) fn exec(id: u32) -> Exec {
    Exec {
        id,
        argv: vec![NAME.to_bytes().to_vec()],
        stdin: true,
        capabilities: Capabilities(u64::MAX),
        main: false,
        ..Exec::default()
    }
}

/// Serves until the input ends.
pub(crate) fn serve() -> ! {
    let mut server =
        Server { frames: Frames::new(Channel::HostFiles), out: Vec::new(), buffer: vec![0; MAX_DATA] };
    let code = loop {
        match server.turn() {
            Ok(true) => {}
            Ok(false) => break 0,
            // The host is gone, or speaks another language: there is nobody to tell.
            Err(_) => break 1,
        }
    };
    sys::exit_now(code)
}

struct Server {
    frames: Frames,
    /// Answers that were not written yet.
    out: Vec<u8>,
    /// Data of files on its way.
    buffer: Vec<u8>,
}

/// An owned question: data is left in the buffer, by its length.
enum Asked {
    Question(FilesAsk<'static>),
    Data(usize),
}

impl Server {
    /// Answers one question; false at the end of the input.
    fn turn(&mut self) -> Result<bool> {
        let asked = match self.next()? {
            None => return Ok(false),
            Some(Asked::Question(ask)) => ask,
            Some(Asked::Data(_)) => return Err(Failure::new("data belongs to no node")),
        };
        let done = match asked {
            FilesAsk::Stat { path, follow } => self.stat(&path, follow),
            FilesAsk::Read { path, follow } => self.read(&path, follow),
            FilesAsk::Write { path } => self.write(&path)?,
            FilesAsk::Changes => self.changes(),
            FilesAsk::Layer { pause } => self.layer(pause),
            FilesAsk::Export => self.export(),
            FilesAsk::Node(_) | FilesAsk::Data(_) | FilesAsk::End => {
                return Err(Failure::new("nothing is being written"));
            }
        };
        let _ = rustix::process::chdir(c"/");
        match done {
            Ok(()) => self.tell(&FilesTell::Done)?,
            Err(Failure { doing, errno }) => self.tell(&FilesTell::Failed { errno, message: doing })?,
        }
        self.flush()?;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Asked>> {
        let Self { frames, buffer, .. } = self;
        loop {
            if let Some(frame) = frames.next_frame()? {
                return Ok(Some(match FilesAsk::decode(frame)? {
                    FilesAsk::Data(data) => {
                        let room =
                            buffer.get_mut(..data.len()).ok_or_else(|| Failure::new("too much data"))?;
                        room.copy_from_slice(data);
                        Asked::Data(data.len())
                    }
                    FilesAsk::Stat { path, follow } => Asked::Question(FilesAsk::Stat { path, follow }),
                    FilesAsk::Read { path, follow } => Asked::Question(FilesAsk::Read { path, follow }),
                    FilesAsk::Write { path } => Asked::Question(FilesAsk::Write { path }),
                    FilesAsk::Changes => Asked::Question(FilesAsk::Changes),
                    FilesAsk::Layer { pause } => Asked::Question(FilesAsk::Layer { pause }),
                    FilesAsk::Export => Asked::Question(FilesAsk::Export),
                    FilesAsk::Node(node) => Asked::Question(FilesAsk::Node(node)),
                    FilesAsk::End => Asked::Question(FilesAsk::End),
                }));
            }
            match rustix::io::read(sys::borrow(0), frames.space()) {
                Ok(0) => return Ok(None),
                Ok(count) => frames.advance(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing("read the host's words"),
            }
        }
    }

    fn tell(&mut self, tell: &FilesTell<'_>) -> Result<()> {
        tell.encode(&mut self.out)?;
        if self.out.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(sys::borrow(1), rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing("answer the host"),
            }
        }
        self.out.clear();
        Ok(())
    }

    fn stat(&mut self, path: &[u8], follow: bool) -> Result<()> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = statat(CWD, path, flags).doing(shown(path))?;
        let node = read::node(path, path, &stat)?;
        let Some(node) = node else { return Err(Failure::new(format!("{} is a socket", shown(path)))) };
        self.tell(&FilesTell::Node(node))
    }

    fn export(&mut self) -> Result<()> {
        enter(&merged()?)?;
        self.walk(b"", false, &mut |_, _| true)
    }
}

/// A path for people.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(if path.is_empty() { b"/" } else { path }).into_owned()
}

/// The machine's own root directory.
fn initramfs() -> BorrowedFd<'static> {
    sys::borrow(INITRAMFS)
}

/// A directory of the machine's own.
fn machine(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(initramfs(), path, flags, Mode::empty()).doing(format!("open the container's {path}"))
}

/// The container's root without what is mounted in it.
fn merged() -> Result<OwnedFd> {
    enter(&initramfs())?;
    match mkdirat(initramfs(), c"peek", Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing("make a mount point"),
    }
    mount_bind(c"/", c"peek").doing("bind the root")?;
    let opened = machine("peek");
    unmount(c"peek", UnmountFlags::DETACH).doing("let go of the root")?;
    opened
}

/// Relative paths begin here from now on.
fn enter(directory: &impl AsFd) -> Result<()> {
    fchdir(directory).doing("enter a directory")
}

/// `directory` and `name`, joined.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The path for a system call: of the working directory itself it is `.`.
fn at(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// A node of this path with nothing in it.
fn empty_file(path: Vec<u8>) -> Node {
    Node {
        path,
        kind: servin_init::proto::NodeKind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 0,
        device: (0, 0),
        link: Vec::new(),
        xattrs: Vec::new(),
    }
}
