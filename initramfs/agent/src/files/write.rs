//! From nodes to files.

use alloc::{ffi::CString, format, string::String, vec::Vec};

use rustix::{
    fd::OwnedFd,
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, linkat,
        makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use servin_init::proto::{FilesAsk, Node, NodeKind};

use super::{Asked, Result, Server, at, enter, shown};
use crate::{
    boot::{make_directories, parent},
    failure::{Doing as _, Failure},
};

/// What is being written.
#[derive(Default)]
struct Work {
    /// The open file, and how many bytes are still to come.
    file: Option<(OwnedFd, Node, u64)>,
    /// Directories get their mode and times when everything is in them.
    directories: Vec<Node>,
}

impl Server {
    /// Makes what follows. The outer error is of the connection, the inner one of the files; after that everything up to the
    /// end is thrown away.
    pub(super) fn write(&mut self, path: &[u8]) -> Result<Result<()>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).doing(shown(path));
        let mut done = opened.and_then(|directory| enter(&directory));
        let mut work = Work::default();
        loop {
            match self.next()? {
                None => return Err(Failure::new("the host stopped in the middle")),
                Some(Asked::Question(FilesAsk::End)) => break,
                Some(Asked::Question(FilesAsk::Node(node))) => {
                    if done.is_ok() {
                        done = work.node(node);
                    }
                }
                Some(Asked::Data(length)) => {
                    if done.is_ok() {
                        done = work.data(self.buffer.get(..length).unwrap_or_default());
                    }
                }
                Some(Asked::Question(_)) => return Err(Failure::new("a question in the middle of another")),
            }
        }
        Ok(done.and_then(|()| work.finish()))
    }
}

impl Work {
    fn node(&mut self, node: Node) -> Result<()> {
        if self.file.is_some() {
            return Err(Failure::new("a file has too little data"));
        }
        let there = match statat(CWD, at(&node.path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode).is_dir()),
            Err(_) => None,
        };
        let is_directory = node.kind == NodeKind::Directory;
        // A link to a directory serves as one: what is in it goes where programs of the container would find it.
        let leads_to_directory = is_directory
            && statat(CWD, at(&node.path), AtFlags::empty())
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
        match there {
            Some(true) if !is_directory => {
                return Err(Failure { doing: refused(&node, "a directory is there"), errno: 0 });
            }
            Some(false) if is_directory && !leads_to_directory => {
                return Err(Failure {
                    doing: refused(&node, "something that is no directory is there"),
                    errno: 0,
                });
            }
            // A file that is mounted cannot be removed, but it can be written.
            Some(false) if !is_directory => match unlinkat(CWD, &*node.path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY) if node.kind == NodeKind::File => {}
                Err(errno) => return Err(errno).doing(doing(&node)),
            },
            Some(_) => {}
            None => make_directories(parent_of(&node.path)).doing(doing(&node))?,
        }
        let path = node.path.as_slice();
        let mode = Mode::from_raw_mode(0o600);
        match node.kind {
            NodeKind::Directory => {
                if there.is_none() {
                    mkdirat(CWD, at(path), Mode::from_raw_mode(0o700)).doing(doing(&node))?;
                }
                self.directories.push(node);
                return Ok(());
            }
            NodeKind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(CWD, path, flags, mode).doing(doing(&node))?;
                let size = node.size;
                self.file = Some((file, node, size));
                return self.data(&[]);
            }
            NodeKind::Symlink => symlinkat(&*node.link, CWD, path),
            NodeKind::HardLink => {
                return linkat(CWD, &*node.link, CWD, path, AtFlags::empty()).doing(doing(&node));
            }
            NodeKind::Fifo => mknodat(CWD, path, FileType::Fifo, mode, 0),
            NodeKind::Character | NodeKind::Block => {
                let kind = match node.kind {
                    NodeKind::Block => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                mknodat(CWD, path, kind, mode, makedev(node.device.0, node.device.1))
            }
        }
        .doing(doing(&node))?;
        dress(&node)
    }

    fn data(&mut self, mut data: &[u8]) -> Result<()> {
        let Some((file, node, left)) = &mut self.file else {
            return if data.is_empty() { Ok(()) } else { Err(Failure::new("data belongs to no file")) };
        };
        *left = left
            .checked_sub(data.len() as u64)
            .ok_or_else(|| Failure::new(format!("{} has too much data", shown(&node.path))))?;
        while !data.is_empty() {
            match rustix::io::write(&*file, data) {
                Ok(count) => data = data.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing(format!("write {}", shown(&node.path))),
            }
        }
        if *left > 0 {
            return Ok(());
        }
        match self.file.take() {
            Some((_, node, _)) => dress(&node),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<()> {
        if self.file.is_some() {
            return Err(Failure::new("a file has too little data"));
        }
        // The inner ones first: what they do changes the time of the outer ones.
        while let Some(node) = self.directories.pop() {
            dress(&node)?;
        }
        Ok(())
    }
}

fn doing(node: &Node) -> String {
    format!("make {}", shown(&node.path))
}

fn refused(node: &Node, why: &str) -> String {
    format!("{}: {why}", doing(node))
}

fn parent_of(path: &[u8]) -> &[u8] {
    match parent(path) {
        b"" => b".",
        parent => parent,
    }
}

/// Owner, then mode (a change of owner takes setuid away), attributes, and time.
fn dress(node: &Node) -> Result<()> {
    let (path, is_link) = (at(&node.path), node.kind == NodeKind::Symlink);
    // A directory may be a link to one.
    let flags = if node.kind == NodeKind::Directory { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    chownat(CWD, path, Some(uid), Some(gid), flags).doing(format!("set the owner of {}", shown(path)))?;
    if !is_link {
        chmodat(CWD, path, Mode::from_raw_mode(node.mode & 0o7777), AtFlags::empty())
            .doing(format!("set the mode of {}", shown(path)))?;
    }
    for (name, value) in &node.xattrs {
        let name = CString::new(name.as_slice()).unwrap_or_default();
        // Not every file system has every attribute; the file is there without it, as with docker.
        let _ = rustix::fs::lsetxattr(path, &name, value, rustix::fs::XattrFlags::empty());
    }
    let time = Timespec { tv_sec: node.mtime.0, tv_nsec: i64::from(node.mtime.1.min(999_999_999)) };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, flags).doing(format!("set the time of {}", shown(path)))
}
