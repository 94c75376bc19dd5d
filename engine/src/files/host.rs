//! Nodes to files of the host, and back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, linkat,
    mkdirat, openat, statat, symlinkat, unlinkat, utimensat,
};
use servin_init::proto::{FilesAsk, MAX_DATA, Node, NodeKind};

use super::{Client, Told, names};
use crate::{Error, Result, os};

/// Puts nodes below a directory of the host. No name and no symbolic link, of the guest's or of the host's, leads out of it:
/// every step goes by the directory's descriptor and follows nothing.
#[derive(Debug)]
pub struct Extract {
    root: OwnedFd,
    place: PathBuf,
    /// Owners, and setuid bits, are kept.
    owners: bool,
    file: Option<(File, Node, u64)>,
    directories: Vec<(OwnedFd, Node)>,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Extract {
    /// Into this directory, which is there.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn new(place: &Path, owners: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(place, flags, Mode::empty())
            .map_err(|error| Error::io("open", place, error.into()))?;
        Ok(Extract { root, place: place.to_path_buf(), owners, file: None, directories: Vec::new() })
    }

    /// Makes all nodes of an answer, each under the path that `name` gives it.
    ///
    /// # Errors
    /// A name leads out of the directory, something else is in the way, or the host refuses.
    pub fn receive(mut self, client: &mut Client, name: &dyn Fn(&[u8]) -> Vec<u8>) -> Result<()> {
        while let Some(told) = client.told()? {
            match told {
                Told::Node(mut node) => {
                    if node.kind == NodeKind::HardLink {
                        node.link = name(&node.link);
                    }
                    let path = name(&node.path);
                    self.node(Node { path, ..node })?;
                }
                Told::Data(data) => self.data(&data)?,
                Told::Change(..) => return Err(self.fail(b"", io::ErrorKind::InvalidData.into())),
            }
        }
        self.finish()
    }

    fn fail(&self, path: &[u8], source: io::Error) -> Error {
        Error::io("make", self.place.join(OsStr::from_bytes(path)), source)
    }

    /// The directory of a path, made as far as it is missing, and the name in it; `None` for the root itself.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<Option<(OwnedFd, &'a [u8])>> {
        let all = names(path)?;
        let Some((last, above)) = all.split_last() else { return Ok(None) };
        let fail = |error: rustix::io::Errno| match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => self
                .fail(path, io::Error::other("a symbolic link or a file stands where a directory should be")),
            error => self.fail(path, error.into()),
        };
        let mut at = self.root.try_clone().map_err(|source| self.fail(path, source))?;
        for name in above {
            at = match openat(&at, *name, DIRECTORY, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    mkdirat(&at, *name, Mode::from_raw_mode(0o755)).map_err(fail)?;
                    openat(&at, *name, DIRECTORY, Mode::empty()).map_err(fail)?
                }
                opened => opened.map_err(fail)?,
            };
        }
        Ok(Some((at, last)))
    }

    /// One node; [`Extract::data`] follows for a file that has any.
    pub(super) fn node(&mut self, node: Node) -> Result<()> {
        if self.file.is_some() {
            return Err(self.fail(&node.path, io::Error::other("the file before it has too little data")));
        }
        let Some((parent, name)) = self.parent(&node.path)? else {
            // The root is there; it keeps what it has.
            return match node.kind {
                NodeKind::Directory => Ok(()),
                _ => Err(self.fail(&node.path, io::Error::other("a directory is there"))),
            };
        };
        let name = name.to_vec();
        let name = name.as_slice();
        let fail = |error: rustix::io::Errno| self.fail(&node.path, error.into());
        let there = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode).is_dir()),
            Err(rustix::io::Errno::NOENT) => None,
            Err(error) => return Err(fail(error)),
        };
        match (there, node.kind) {
            (Some(true), NodeKind::Directory) | (None, _) => {}
            (Some(true), _) => return Err(self.fail(&node.path, io::Error::other("a directory is there"))),
            (Some(false), NodeKind::Directory) => {
                let why = "something that is no directory is there";
                return Err(self.fail(&node.path, io::Error::other(why)));
            }
            (Some(false), _) => unlinkat(&parent, name, AtFlags::empty()).map_err(fail)?,
        }
        let mode = Mode::from_raw_mode(0o600);
        match node.kind {
            NodeKind::Directory => {
                if there.is_none() {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o700)).map_err(fail)?;
                }
                let opened = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(fail)?;
                // One that was there keeps its mode.
                if there.is_none() {
                    self.directories.push((opened, node));
                }
                return Ok(());
            }
            NodeKind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(&parent, name, flags, mode).map_err(fail)?);
                let size = node.size;
                self.file = Some((file, node, size));
                return self.data(&[]);
            }
            NodeKind::Symlink => {
                symlinkat(OsStr::from_bytes(&node.link), &parent, name).map_err(fail)?;
            }
            NodeKind::HardLink => {
                let Some((from, old)) = self.parent(&node.link)? else {
                    return Err(self.fail(&node.path, io::Error::other("it is a link to a directory")));
                };
                // Of a symbolic link the link itself, never what it leads to.
                return linkat(&from, old, &parent, name, AtFlags::empty()).map_err(fail);
            }
            NodeKind::Fifo => os::make_node(&parent, name, FileType::Fifo, mode, (0, 0)).map_err(fail)?,
            NodeKind::Character | NodeKind::Block => {
                let kind = match node.kind {
                    NodeKind::Block => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                os::make_node(&parent, name, kind, mode, node.device).map_err(fail)?;
            }
        }
        if self.owners {
            let (uid, gid) = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
            chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        }
        utimensat(&parent, name, &times(&node), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// Data of the last file.
    pub(super) fn data(&mut self, data: &[u8]) -> Result<()> {
        let Some((mut file, node, left)) = self.file.take() else {
            return Err(self.fail(b"", io::Error::other("data belongs to no file")));
        };
        let Some(left) = left.checked_sub(data.len() as u64) else {
            return Err(self.fail(&node.path, io::Error::other("it has too much data")));
        };
        file.write_all(data).map_err(|source| self.fail(&node.path, source))?;
        if left > 0 {
            self.file = Some((file, node, left));
            return Ok(());
        }
        self.dress(&file, &node)
    }

    fn dress(&self, file: &impl AsFd, node: &Node) -> Result<()> {
        let fail = |error: rustix::io::Errno| self.fail(&node.path, error.into());
        let mut mode = node.mode & 0o1777;
        if self.owners {
            fchown(file, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid))).map_err(fail)?;
            mode = node.mode & 0o7777;
        }
        fchmod(file, Mode::from_raw_mode(os::raw_mode(mode))).map_err(fail)?;
        rustix::fs::futimens(file, &times(node)).map_err(fail)
    }

    /// Everything is there: directories get their modes and times.
    pub(super) fn finish(mut self) -> Result<()> {
        if let Some((_, node, _)) = &self.file {
            return Err(self.fail(&node.path, io::Error::other("it has too little data")));
        }
        while let Some((directory, node)) = self.directories.pop() {
            self.dress(&directory, &node)?;
        }
        Ok(())
    }
}

fn times(node: &Node) -> Timestamps {
    let time = Timespec { tv_sec: node.mtime.0, tv_nsec: i64::from(node.mtime.1.min(999_999_999)) };
    Timestamps { last_access: time, last_modification: time }
}

/// Sends a file or directory of the host as nodes, under the path `name`, between a [`FilesAsk::Write`] and a
/// [`FilesAsk::End`]. A symbolic link at its end is followed with `follow`; those inside never are. `shape` sees each node
/// as it is here, may change its owner and permissions, and says whether it is sent.
///
/// # Errors
/// Something cannot be read, or the other side is gone.
pub fn send_tree(
    client: &mut Client,
    source: &Path,
    name: &[u8],
    follow: bool,
    shape: &mut dyn FnMut(&Path, &mut Node) -> bool,
) -> Result<()> {
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::io("read", path, source)
    };
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut waiting = vec![(source.to_path_buf(), name.to_vec())];
    while let Some((path, name)) = waiting.pop() {
        let follow = follow && path == source;
        let meta = if follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let meta = meta.map_err(fail(&path))?;
        let kind = meta.file_type();
        let mut node = Node {
            path: name.clone(),
            kind: match kind {
                kind if kind.is_dir() => NodeKind::Directory,
                kind if kind.is_symlink() => NodeKind::Symlink,
                kind if kind.is_fifo() => NodeKind::Fifo,
                kind if kind.is_char_device() => NodeKind::Character,
                kind if kind.is_block_device() => NodeKind::Block,
                kind if kind.is_socket() => continue,
                _ => NodeKind::File,
            },
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
            size: if kind.is_file() { meta.len() } else { 0 },
            device: os::device_numbers(meta.rdev()),
            link: Vec::new(),
            xattrs: Vec::new(),
        };
        if !matches!(node.kind, NodeKind::Character | NodeKind::Block) {
            node.device = (0, 0);
        }
        if node.kind == NodeKind::Symlink {
            node.link = fs::read_link(&path).map_err(fail(&path))?.into_os_string().as_bytes().to_vec();
        }
        let sent = shape(&path, &mut node);
        if sent && node.kind != NodeKind::Directory && meta.nlink() > 1 {
            match first.get(&(meta.dev(), meta.ino())) {
                Some(known) => {
                    (node.kind, node.size) = (NodeKind::HardLink, 0);
                    node.link.clone_from(known);
                }
                None => {
                    first.insert((meta.dev(), meta.ino()), name.clone());
                }
            }
        }
        let (kind, size) = (node.kind, node.size);
        if sent {
            client.ask(&FilesAsk::Node(node))?;
        }
        match kind {
            NodeKind::File if sent && size > 0 => send_data(client, &path, size, follow)?,
            NodeKind::Directory => {
                for entry in fs::read_dir(&path).map_err(fail(&path))? {
                    let entry = entry.map_err(fail(&path))?;
                    let mut below = name.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(entry.file_name().as_bytes());
                    waiting.push((entry.path(), below));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Exactly `size` bytes: a file that has become shorter is filled with zeroes, as by tar.
fn send_data(client: &mut Client, path: &Path, size: u64, follow: bool) -> Result<()> {
    let fail = |source| Error::io("read", path, source);
    let flags = if follow { 0 } else { i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0) };
    let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(fail)?;
    let mut buffer = vec![0; MAX_DATA];
    let mut left = size;
    let mut ended = false;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
        let room = buffer.get_mut(..most).unwrap_or_default();
        let mut count = if ended { 0 } else { file.read(room).map_err(fail)? };
        if count == 0 {
            ended = true;
            room.fill(0);
            count = most;
        }
        client.ask(&FilesAsk::Data(buffer.get(..count).unwrap_or_default()))?;
        left -= count as u64;
    }
    Ok(())
}
