//! Messages of the file server: the agent run once more as a program ([`super::HostMessage::Files`]), which reads these from its
//! standard input and answers on its standard output. One question at a time; the server ends with its input.
//!
//! ```text
//!   Stat, Read, Changes, Layer, Export -->    <-- Node, Data* (of a file), Change, ...; Done or Failed
//!   Write, Node, Data*, ..., End       -->    <-- Done or Failed
//! ```

use alloc::{string::String, vec::Vec};

use super::{
    Encode, Error, Frame, kind,
    wire::{Reader, Writer},
};

/// What something in a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file; [`Node::size`] bytes of data follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to [`Node::link`].
    Symlink,
    /// One more name of the node at [`Node::link`], a path like [`Node::path`].
    HardLink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

impl NodeKind {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::HardLink,
        Self::Character,
        Self::Block,
        Self::Fifo,
    ];
}

/// A file, directory or the like, with everything that a tar archive says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Path below what was asked for, without a leading `/`; empty for that itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permissions, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of data that follow; 0 for all but files.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Where a link goes.
    pub link: Vec<u8>,
    /// Extended attributes by their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Node {
    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            path: r.c_bytes("node.path")?,
            kind: *NodeKind::ALL.get(usize::from(r.u8()?)).ok_or(Error::Invalid("node.kind"))?,
            mode: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            mtime: (r.u64()?.cast_signed(), r.u32()?),
            size: r.u64()?,
            device: (r.u32()?, r.u32()?),
            link: r.c_bytes("node.link")?,
            xattrs: r.list(8, |r| Ok((r.c_bytes("node.xattr")?, r.bytes()?)))?,
        })
    }

    fn write(&self, w: &mut Writer<'_>) {
        w.bytes(&self.path)
            .u8(self.kind as u8)
            .u32(self.mode)
            .u32(self.uid)
            .u32(self.gid)
            .u64(self.mtime.0.cast_unsigned())
            .u32(self.mtime.1)
            .u64(self.size)
            .u32(self.device.0)
            .u32(self.device.1)
            .bytes(&self.link)
            .list(&self.xattrs, |w, (name, value)| {
                w.bytes(name).bytes(value);
            });
    }
}

/// How the container's root differs from its image at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was there and is another now.
    Changed,
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
}

/// What the host asks of the server. Data is lent from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesAsk<'a> {
    /// What is there? Answered by one node, whose path is the one that was asked for.
    Stat {
        /// Absolute path in the container.
        path: Vec<u8>,
        /// Follow a symbolic link at its end.
        follow: bool,
    },
    /// Read it, with everything below it.
    Read {
        /// Absolute path in the container.
        path: Vec<u8>,
        /// Follow a symbolic link at its end.
        follow: bool,
    },
    /// Make the nodes that follow, below this directory, which is there. They replace what has their names, but no directory
    /// takes the place of something else, nor the other way round.
    Write {
        /// Absolute path in the container.
        path: Vec<u8>,
    },
    /// How does the container differ from its image?
    Changes,
    /// Read the differences as a layer of an image, deletions as whiteouts (OCI image specification, layer.md).
    Layer {
        /// The container's programs stand still meanwhile.
        pause: bool,
    },
    /// Read the whole root, without other mounts.
    Export,
    /// A node to be made.
    Node(Node),
    /// Data of the last node.
    Data(&'a [u8]),
    /// There are no more nodes.
    End,
}

/// What the server answers. Data is lent from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesTell<'a> {
    /// A node.
    Node(Node),
    /// Data of the last node.
    Data(&'a [u8]),
    /// A difference.
    Change {
        /// Which.
        kind: ChangeKind,
        /// Absolute path in the container.
        path: Vec<u8>,
    },
    /// All of it was done.
    Done,
    /// It was not done, or not to its end.
    Failed {
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What was being done, for people.
        message: String,
    },
}

impl Encode for FilesAsk<'_> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let path = |out: &mut Vec<u8>, kind, path: &[u8], follow: Option<bool>| {
            let mut w = Writer::new(out, kind);
            w.bytes(path);
            if let Some(follow) = follow {
                w.bool(follow);
            }
            w.finish()
        };
        match self {
            Self::Stat { path: at, follow } => path(out, kind::FILES_STAT, at, Some(*follow)),
            Self::Read { path: at, follow } => path(out, kind::FILES_READ, at, Some(*follow)),
            Self::Write { path: at } => path(out, kind::FILES_WRITE, at, None),
            Self::Changes => Writer::new(out, kind::FILES_CHANGES).finish(),
            Self::Layer { pause } => {
                let mut w = Writer::new(out, kind::FILES_LAYER);
                w.bool(*pause);
                w.finish()
            }
            Self::Export => Writer::new(out, kind::FILES_EXPORT).finish(),
            Self::Node(node) => {
                let mut w = Writer::new(out, kind::FILES_PUT_NODE);
                node.write(&mut w);
                w.finish()
            }
            Self::Data(data) => {
                let mut w = Writer::new(out, kind::FILES_PUT_DATA);
                w.raw(data);
                w.finish()
            }
            Self::End => Writer::new(out, kind::FILES_END).finish(),
        }
    }
}

/// An absolute path.
fn absolute(r: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    let path = r.c_bytes("files.path")?;
    if path.starts_with(b"/") { Ok(path) } else { Err(Error::Invalid("files.path")) }
}

impl<'a> FilesAsk<'a> {
    /// Decodes a frame of [`super::Channel::HostFiles`].
    ///
    /// # Errors
    /// If the body is not exactly one message of the frame's kind.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Error> {
        let mut r = Reader::new(frame.body);
        let message = match frame.kind {
            kind::FILES_PUT_DATA => return Ok(Self::Data(frame.body)),
            kind::FILES_STAT => Self::Stat { path: absolute(&mut r)?, follow: r.bool("files.follow")? },
            kind::FILES_READ => Self::Read { path: absolute(&mut r)?, follow: r.bool("files.follow")? },
            kind::FILES_WRITE => Self::Write { path: absolute(&mut r)? },
            kind::FILES_CHANGES => Self::Changes,
            kind::FILES_LAYER => Self::Layer { pause: r.bool("files.pause")? },
            kind::FILES_EXPORT => Self::Export,
            kind::FILES_PUT_NODE => Self::Node(Node::read(&mut r)?),
            kind::FILES_END => Self::End,
            other => return Err(Error::UnknownKind(other)),
        };
        r.end()?;
        Ok(message)
    }
}

impl Encode for FilesTell<'_> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Node(node) => {
                let mut w = Writer::new(out, kind::FILES_NODE);
                node.write(&mut w);
                w.finish()
            }
            Self::Data(data) => {
                let mut w = Writer::new(out, kind::FILES_DATA);
                w.raw(data);
                w.finish()
            }
            Self::Change { kind: change, path } => {
                let mut w = Writer::new(out, kind::FILES_CHANGE);
                w.u8(*change as u8).bytes(path);
                w.finish()
            }
            Self::Done => Writer::new(out, kind::FILES_DONE).finish(),
            Self::Failed { errno, message } => {
                let mut w = Writer::new(out, kind::FILES_FAILED);
                w.i32(*errno).bytes(super::control::cut(message).as_bytes());
                w.finish()
            }
        }
    }
}

impl<'a> FilesTell<'a> {
    /// Decodes a frame of [`super::Channel::GuestFiles`].
    ///
    /// # Errors
    /// If the body is not exactly one message of the frame's kind.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Error> {
        const KINDS: [ChangeKind; 3] = [ChangeKind::Changed, ChangeKind::Added, ChangeKind::Deleted];
        let mut r = Reader::new(frame.body);
        let message = match frame.kind {
            kind::FILES_DATA => return Ok(Self::Data(frame.body)),
            kind::FILES_NODE => Self::Node(Node::read(&mut r)?),
            kind::FILES_CHANGE => Self::Change {
                kind: *KINDS.get(usize::from(r.u8()?)).ok_or(Error::Invalid("files.change"))?,
                path: absolute(&mut r)?,
            },
            kind::FILES_DONE => Self::Done,
            kind::FILES_FAILED => Self::Failed { errno: r.i32()?, message: r.text("files.message")? },
            other => return Err(Error::UnknownKind(other)),
        };
        r.end()?;
        Ok(message)
    }
}
