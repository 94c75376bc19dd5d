//! From files to nodes.

use alloc::{collections::BTreeMap, format, vec, vec::Vec};
use core::mem::MaybeUninit;

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, major, minor, openat, readlinkat, statat},
    io::Errno,
};
use servin_init::proto::{FilesTell, Node, NodeKind};

use super::{Result, Server, at, enter, join, shown};
use crate::failure::{Doing as _, Failure};

/// Attributes that say how an overlay lies over its image, and nothing of the file.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// The node that `stat` describes, told as `path` and found at `place`; `None` for a socket, which nobody can copy.
pub(super) fn node(path: &[u8], place: &[u8], stat: &Stat) -> Result<Option<Node>> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => NodeKind::File,
        FileType::Directory => NodeKind::Directory,
        FileType::Symlink => NodeKind::Symlink,
        FileType::CharacterDevice => NodeKind::Character,
        FileType::BlockDevice => NodeKind::Block,
        FileType::Fifo => NodeKind::Fifo,
        _ => return Ok(None),
    };
    let link = match kind {
        NodeKind::Symlink => {
            readlinkat(CWD, at(place), Vec::new()).doing(format!("read {}", shown(place)))?.into_bytes()
        }
        _ => Vec::new(),
    };
    Ok(Some(Node {
        path: path.to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        size: if kind == NodeKind::File { stat.st_size as u64 } else { 0 },
        device: match kind {
            NodeKind::Character | NodeKind::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
            _ => (0, 0),
        },
        link,
        xattrs: xattrs(place).unwrap_or_default(),
    }))
}

/// The extended attributes of what is at `place`. A file system may have none at all.
fn xattrs(place: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0_u8; 1024];
    let length = loop {
        match rustix::fs::llistxattr(at(place), names.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 16 => names = vec![0; names.len() * 8],
            Err(errno) => return Err(errno),
        }
    };
    let names = names.get(..length).unwrap_or_default();
    let mut list = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(OVERLAY)) {
        let mut value = vec![0_u8; 1 << 16];
        // One that is gone meanwhile, or may not be read, is left out.
        if let Ok(length) = rustix::fs::lgetxattr(at(place), name, value.as_mut_slice()) {
            value.truncate(length);
            list.push((name.to_vec(), value));
        }
    }
    Ok(list)
}

/// The value of one of the overlay's attributes.
pub(super) fn overlay_attribute(place: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; 4096];
    let length = rustix::fs::lgetxattr(at(place), [OVERLAY, name].concat(), value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

/// The names in a directory, in the order that the file system gives them: who wants another sorts them on the host.
pub(super) fn names(place: &[u8]) -> Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = openat(CWD, at(place), flags, Mode::empty()).doing(format!("open {}", shown(place)))?;
    let mut names = Vec::new();
    let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.doing(format!("read {}", shown(place)))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

impl Server {
    /// Tells what is at an absolute path, and everything below it.
    pub(super) fn read(&mut self, path: &[u8], follow: bool) -> Result<()> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = statat(CWD, path, flags).doing(shown(path))?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = openat(CWD, path, flags, Mode::empty()).doing(format!("open {}", shown(path)))?;
            enter(&directory)?;
            return self.walk(b"", true, &mut |_, _| true);
        }
        let node = node(b"", path, &stat)?;
        let Some(node) = node else { return Err(Failure::new(format!("{} is a socket", shown(path)))) };
        let size = node.size;
        self.tell(&FilesTell::Node(node))?;
        if size > 0 { self.data(path, size, follow) } else { Ok(()) }
    }

    /// Tells everything below `start` of the working directory, and that itself if `with_start`. What `keep` refuses is left
    /// out with everything below it.
    pub(super) fn walk(
        &mut self,
        start: &[u8],
        with_start: bool,
        keep: &mut dyn FnMut(&[u8], &Stat) -> bool,
    ) -> Result<()> {
        let mut first_names: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        let mut waiting = vec![start.to_vec()];
        while let Some(path) = waiting.pop() {
            let is_start = path == start;
            let stat = match statat(CWD, at(&path), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It was removed while we were looking.
                Err(Errno::NOENT) if !is_start => continue,
                Err(errno) => return Err(errno).doing(shown(&path)),
            };
            if !is_start && !keep(&path, &stat) {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if !is_start || with_start {
                let Some(mut node) = node(&path, &path, &stat)? else { continue };
                if !is_directory && stat.st_nlink > 1 {
                    match first_names.get(&(stat.st_dev, stat.st_ino)) {
                        Some(first) => {
                            (node.kind, node.size) = (NodeKind::HardLink, 0);
                            node.link.clone_from(first);
                        }
                        None => {
                            first_names.insert((stat.st_dev, stat.st_ino), path.clone());
                        }
                    }
                }
                let size = node.size;
                self.tell(&FilesTell::Node(node))?;
                if size > 0 {
                    self.data(&path, size, false)?;
                }
            }
            if is_directory {
                waiting.extend(names(&path)?.iter().map(|name| join(&path, name)));
            }
        }
        Ok(())
    }

    /// Tells exactly `size` bytes of a file: one that has become shorter is filled with zeroes, as by tar.
    fn data(&mut self, path: &[u8], size: u64, follow: bool) -> Result<()> {
        let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        flags.set(OFlags::NOFOLLOW, !follow);
        let file: OwnedFd = openat(CWD, path, flags, Mode::empty()).doing(format!("open {}", shown(path)))?;
        let mut buffer = core::mem::take(&mut self.buffer);
        let mut left = size;
        let mut ended = false;
        let mut done = Ok(());
        while left > 0 && done.is_ok() {
            let most = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            let count = if ended { 0 } else { rustix::io::read(&file, &mut *room).unwrap_or(0) };
            let count = if count == 0 {
                ended = true;
                room.fill(0);
                most
            } else {
                count
            };
            left -= count as u64;
            done = self.tell(&FilesTell::Data(buffer.get(..count).unwrap_or_default()));
        }
        self.buffer = buffer;
        done
    }
}
