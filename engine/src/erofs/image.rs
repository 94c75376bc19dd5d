//! Reads the images that this crate writes, on the host: by path, and as a copy of a part into a directory.
//!
//! An image comes from layers of strangers. Every number of it is checked before it is used, and a copy is made in a
//! directory that nobody else can reach.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags};

use super::format::{BLOCK, DIRENT, SLOT, SUPER_OFFSET};
use crate::os;

/// Links that are followed on the way to a path, as the kernel counts them.
const MOST_LINKS: usize = 40;
/// The most bytes of one directory that are read.
const MOST_ENTRIES: u64 = 64 << 20;
/// Bytes that are copied at once.
const STEP: usize = 1 << 20;

type Result<T> = io::Result<T>;

/// An image, open for reading.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    root: u64,
    /// The time of compact inodes.
    epoch: (i64, u32),
}

/// One inode.
#[derive(Debug, Clone)]
struct Node {
    nid: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    nlink: u32,
    size: u64,
    /// First block of the data, or the device number.
    address: u32,
    /// Where the last part of the data lies if not in a block.
    inline: Option<u64>,
    xattrs: (u64, usize),
}

impl Node {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(os::raw_mode(self.mode))
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image is damaged: {what}"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| damaged("it ends early"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let mut raw = [0; 128];
        file.read_exact_at(&mut raw, SUPER_OFFSET)?;
        if u32_at(&raw, 0)? != 0xe0f5_e1e2 || raw.get(12) != Some(&12) || u32_at(&raw, 80)? != 0 {
            return Err(damaged("no superblock of ours"));
        }
        let epoch = (u64_at(&raw, 24)?.cast_signed(), u32_at(&raw, 32)?);
        Ok(Self { root: u16_at(&raw, 14)?.into(), epoch, file })
    }

    fn node(&self, nid: u64) -> Result<Node> {
        let at = nid.checked_mul(SLOT).ok_or_else(|| damaged("an inode's number"))?;
        let mut raw = [0; 64];
        self.file.read_exact_at(raw.get_mut(..32).unwrap_or(&mut []), at)?;
        let format = u16_at(&raw, 0)?;
        let compact = format & 1 == 0;
        if !compact {
            self.file.read_exact_at(&mut raw, at)?;
        }
        let count = usize::from(u16_at(&raw, 2)?);
        let xattr_size = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let head = at + if compact { 32 } else { 64 };
        let (size, uid, gid, nlink, mtime) = if compact {
            let ids = (u32::from(u16_at(&raw, 24)?), u32::from(u16_at(&raw, 26)?));
            (u32_at(&raw, 8)?.into(), ids.0, ids.1, u16_at(&raw, 6)?.into(), self.epoch)
        } else {
            let mtime = (u64_at(&raw, 32)?.cast_signed(), u32_at(&raw, 40)?);
            (u64_at(&raw, 8)?, u32_at(&raw, 24)?, u32_at(&raw, 28)?, u32_at(&raw, 44)?, mtime)
        };
        Ok(Node {
            nid,
            mode: u16_at(&raw, 4)?.into(),
            uid,
            gid,
            mtime: (mtime.0, mtime.1.min(999_999_999)),
            nlink,
            size,
            address: u32_at(&raw, 16)?,
            inline: match format >> 1 {
                0 => None,
                2 => Some(head + xattr_size as u64),
                _ => return Err(damaged("an unknown layout of data")),
            },
            xattrs: (head, xattr_size),
        })
    }

    /// The pieces of a node's data: where in the file, and how long.
    fn pieces(node: &Node) -> Result<[(u64, u64); 2]> {
        let start = u64::from(node.address) * BLOCK;
        let whole = if node.inline.is_some() { node.size / BLOCK * BLOCK } else { node.size };
        if start.checked_add(whole).is_none() {
            return Err(damaged("the size of a file"));
        }
        Ok([(start, whole), (node.inline.unwrap_or(0), node.size - whole)])
    }

    /// How many bytes of the image's file are a hole from here on, and so zeros, and how many after them are none. Sparse
    /// files of layers leave such.
    fn hole(&self, from: u64) -> Result<(u64, u64)> {
        let seek = |to| match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(Some(self.file.metadata()?.len())),
            // A file system that does not know.
            Err(rustix::io::Errno::INVAL | os::NOT_SUPPORTED) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let data = seek(SeekFrom::Data(from))?.unwrap_or(from);
        let end = seek(SeekFrom::Hole(data))?.unwrap_or(u64::MAX);
        Ok((data.saturating_sub(from), end.saturating_sub(data)))
    }

    /// All data of a small node.
    fn data(&self, node: &Node, most: u64) -> Result<Vec<u8>> {
        if node.size > most {
            return Err(damaged("the size of a directory or link"));
        }
        let mut data = Vec::new();
        for (start, len) in Self::pieces(node)? {
            let at = data.len();
            data.resize(at + usize::try_from(len).map_err(|_| damaged("a size"))?, 0);
            self.file.read_exact_at(data.get_mut(at..).unwrap_or(&mut []), start)?;
        }
        Ok(data)
    }

    /// The entries of a directory without `.` and `..`.
    fn entries(&self, node: &Node) -> Result<Vec<(Vec<u8>, u64)>> {
        let data = self.data(node, MOST_ENTRIES)?;
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK as usize) {
            let count = usize::from(u16_at(block, 8)?) / DIRENT;
            for index in 0..count {
                let at = index * DIRENT;
                let start = usize::from(u16_at(block, at + 8)?);
                let end =
                    if index + 1 < count { u16_at(block, at + DIRENT + 8)?.into() } else { block.len() };
                let name = block.get(start..end).ok_or_else(|| damaged("a name in a directory"))?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                if name.is_empty() || name.contains(&b'/') {
                    return Err(damaged("a name in a directory"));
                }
                entries.push((name.to_vec(), u64_at(block, at)?));
            }
        }
        Ok(entries)
    }

    fn child(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>> {
        let found = self.entries(dir)?.into_iter().find(|(entry, _)| entry == name);
        found.map(|(_, nid)| self.node(nid)).transpose()
    }

    /// The directory at an absolute path, links on the way followed inside the image. `None` if there is no directory.
    fn directory(&self, path: &[u8]) -> Result<Option<Node>> {
        let mut walked = vec![self.node(self.root)?];
        let mut rest: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if walked.len() > 1 {
                        walked.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(here) = walked.last().filter(|here| here.kind() == FileType::Directory) else {
                return Ok(None);
            };
            let Some(next) = self.child(here, &name)? else { return Ok(None) };
            if next.kind() != FileType::Symlink {
                walked.push(next);
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Ok(None);
            }
            let target = self.data(&next, BLOCK)?;
            if target.starts_with(b"/") {
                walked.truncate(1);
            }
            rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(walked.pop().filter(|found| found.kind() == FileType::Directory))
    }

    /// Copies what is in the directory at `path` into `into`, and gives `into` that directory's owner and permissions.
    /// Says whether there was such a directory. Without root's rights everything belongs to us, and device nodes are left
    /// out, as a tar unpacked by such a user would be.
    pub(crate) fn copy_directory(&self, path: &[u8], into: &OwnedFd) -> Result<bool> {
        let Some(top) = self.directory(path)? else { return Ok(false) };
        let mut copy = Copy {
            image: self,
            into: into.as_fd(),
            is_root: rustix::process::geteuid().is_root(),
            names: HashMap::new(),
            above: HashSet::new(),
        };
        copy.run(top)?;
        Ok(true)
    }
}

/// A copy that is being made.
struct Copy<'a> {
    image: &'a Image,
    into: BorrowedFd<'a>,
    is_root: bool,
    /// Files with several names, by number: the first name.
    names: HashMap<u64, Vec<u8>>,
    /// Directories that were copied: one that is met again would be copied for ever.
    above: HashSet<u64>,
}

impl Copy<'_> {
    fn run(&mut self, top: Node) -> Result<()> {
        let mut todo = vec![(b".".to_vec(), top.clone())];
        let mut made = Vec::new();
        while let Some((path, dir)) = todo.pop() {
            if !self.above.insert(dir.nid) {
                return Err(damaged("a directory that contains itself"));
            }
            for (name, nid) in self.image.entries(&dir)? {
                let node = self.image.node(nid)?;
                let path = [path.as_slice(), b"/", &name].concat();
                self.make(&path, &node)?;
                if node.kind() == FileType::Directory {
                    todo.push((path, node));
                }
            }
            made.push((path, dir));
        }
        // Permissions and times when nothing is written into them any more: what is below first.
        for (path, dir) in made.iter().rev() {
            let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.dress(&fd, path, dir)?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        Ok(rustix::fs::openat(self.into, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn make(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let kind = node.kind();
        if kind != FileType::Directory && node.nlink > 1 {
            if let Some(first) = self.names.get(&node.nid) {
                rustix::fs::linkat(self.into, first.as_slice(), self.into, path, AtFlags::empty())?;
                return Ok(());
            }
            self.names.insert(node.nid, path.to_vec());
        }
        match kind {
            FileType::Directory => rustix::fs::mkdirat(self.into, path, Mode::RWXU)?,
            FileType::RegularFile => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(self.into, path, flags, Mode::RUSR | Mode::WUSR)?;
                self.fill(&file, node)?;
                return self.dress(&file, path, node);
            }
            FileType::Symlink => {
                let target = self.image.data(node, BLOCK)?;
                rustix::fs::symlinkat(target, self.into, path)?;
                self.own(path, node)?;
                return self.date(path, node);
            }
            FileType::Fifo | FileType::Socket => {
                match os::make_node(self.into, path, kind, mode(node), (0, 0)) {
                    Err(os::NOT_SUPPORTED) => return Ok(()),
                    made => made?,
                }
                self.own(path, node)?;
                self.chmod(path, node)?;
                return self.date(path, node);
            }
            FileType::CharacterDevice | FileType::BlockDevice if self.is_root => {
                let (major, minor) =
                    (node.address >> 8 & 0xfff, node.address & 0xff | node.address >> 12 & 0xf_ff00);
                os::make_node(self.into, path, kind, mode(node), (major, minor))?;
                self.own(path, node)?;
                self.chmod(path, node)?;
                return self.date(path, node);
            }
            FileType::CharacterDevice | FileType::BlockDevice => {}
            _ => return Err(damaged("a file of no known kind")),
        }
        Ok(())
    }

    fn fill(&self, file: &OwnedFd, node: &Node) -> Result<()> {
        let mut to = 0;
        for (mut from, len) in Image::pieces(node)? {
            let end = to + len;
            while to < end {
                let (hole, data) = self.image.hole(from)?;
                let hole = hole.min(end - to);
                (from, to) = (from + hole, to + hole);
                let step = usize::try_from(data.min(end - to)).unwrap_or(usize::MAX).min(STEP);
                if step == 0 {
                    break;
                }
                let done = os::copy_range(&self.image.file, &mut from, file, &mut to, step);
                match done {
                    Ok(0) => return Err(damaged("a file ends early")),
                    Ok(_) => {}
                    // Other file systems, or kernels, that cannot: by hand.
                    Err(rustix::io::Errno::XDEV | os::NOT_SUPPORTED | rustix::io::Errno::INVAL) => {
                        let mut bytes = vec![0; step];
                        self.image.file.read_exact_at(&mut bytes, from)?;
                        let written = rustix::io::pwrite(file, &bytes, to)?;
                        from += written as u64;
                        to += written as u64;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        // A file may end in a hole.
        Ok(rustix::fs::ftruncate(file, node.size)?)
    }

    /// Owner, attributes, permissions and time of a file or directory, in the order in which none undoes another.
    fn dress(&self, fd: &OwnedFd, path: &[u8], node: &Node) -> Result<()> {
        self.own(path, node)?;
        for (name, value) in self.xattrs(node)? {
            match rustix::fs::fsetxattr(fd, name.as_slice(), &value, XattrFlags::empty()) {
                // What this user or this file system may not have.
                Err(rustix::io::Errno::PERM | os::NOT_SUPPORTED) => {}
                done => done?,
            }
        }
        rustix::fs::fchmod(fd, mode(node))?;
        Ok(rustix::fs::futimens(fd, &times(node))?)
    }

    fn own(&self, path: &[u8], node: &Node) -> Result<()> {
        if !self.is_root {
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        Ok(rustix::fs::chownat(self.into, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn chmod(&self, path: &[u8], node: &Node) -> Result<()> {
        Ok(rustix::fs::chmodat(self.into, path, mode(node), AtFlags::empty())?)
    }

    fn date(&self, path: &[u8], node: &Node) -> Result<()> {
        Ok(rustix::fs::utimensat(self.into, path, &times(node), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The extended attributes of a node that a volume can have.
    fn xattrs(&self, node: &Node) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (start, size) = node.xattrs;
        let mut area = vec![0; size];
        self.image.file.read_exact_at(&mut area, start)?;
        let mut found = Vec::new();
        let mut at = 12;
        while at < area.len() {
            let (name_len, index) = (usize::from(number::<1>(&area, at)?[0]), number::<1>(&area, at + 1)?[0]);
            let value_len = usize::from(u16_at(&area, at + 2)?);
            let part = |from: usize, len: usize| {
                area.get(from..).and_then(|rest| rest.get(..len)).ok_or_else(|| damaged("an attribute"))
            };
            let (name, value) = (part(at + 4, name_len)?, part(at + 4 + name_len, value_len)?);
            let prefix: Option<&[u8]> = match index {
                1 => Some(b"user."),
                2 => Some(b"system.posix_acl_access"),
                3 => Some(b"system.posix_acl_default"),
                6 => Some(b"security."),
                _ => None,
            };
            if let Some(prefix) = prefix {
                found.push(([prefix, name].concat(), value.to_vec()));
            }
            at += (4 + name_len + value_len).next_multiple_of(4);
        }
        Ok(found)
    }
}

fn mode(node: &Node) -> Mode {
    Mode::from_raw_mode(os::raw_mode(node.mode & 0o7777))
}

fn times(node: &Node) -> Timestamps {
    let time = Timespec { tv_sec: node.mtime.0, tv_nsec: node.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
