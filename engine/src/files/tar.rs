//! Nodes as a tar (POSIX ustar with pax headers where ustar has no room), and a tar as nodes.

use std::io::{self, Read, Write};

use servin_init::proto::{FilesAsk, MAX_DATA, Node, NodeKind};

use super::{Client, Told, names};
use crate::image::tar::{Kind, Tar};
use crate::{Error, Result};

const BLOCK: usize = 512;

/// Writes a tar.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
    /// Bytes of data that the last file is still to have, and those after it up to a block.
    left: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// Begins.
    pub fn new(out: W) -> Self {
        TarWriter { out, left: 0, padding: 0 }
    }

    /// Writes all nodes of an answer, each under the path that `name` gives it; one without a path is left out. Gives how many
    /// there were.
    ///
    /// # Errors
    /// The answer is no tree of files, or cannot be written.
    pub fn receive(&mut self, client: &mut Client, name: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Result<u64> {
        let fail = |source| Error::io("write", "the archive", source);
        let mut skipped = 0_u64;
        let mut count = 0;
        while let Some(told) = client.told()? {
            match told {
                Told::Node(mut node) => {
                    names(&node.path)?;
                    if node.kind == NodeKind::HardLink {
                        names(&node.link)?;
                        node.link = name(&node.link).unwrap_or_default();
                    }
                    match name(&node.path) {
                        Some(path) => {
                            self.node(&Node { path, ..node }).map_err(fail)?;
                            count += 1;
                        }
                        None => skipped = node.size,
                    }
                }
                Told::Data(data) if skipped > 0 => skipped = skipped.saturating_sub(data.len() as u64),
                Told::Data(data) => self.data(&data).map_err(fail)?,
                Told::Change(..) => return Err(fail(io::ErrorKind::InvalidData.into())),
            }
        }
        Ok(count)
    }

    /// One entry; [`TarWriter::data`] follows for a file that has any.
    ///
    /// # Errors
    /// The writer's, and `InvalidData` if the last file lacks data.
    pub fn node(&mut self, node: &Node) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file has too little data"));
        }
        let mut path = node.path.clone();
        if node.kind == NodeKind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut records = Vec::new();
        if path.len() > 100 {
            record(&mut records, b"path", &path);
        }
        if node.link.len() > 100 {
            record(&mut records, b"linkpath", &node.link);
        }
        for (name, value, most) in [
            ("size", node.size, 0o777_7777_7777),
            ("uid", node.uid.into(), 0o777_7777),
            ("gid", node.gid.into(), 0o777_7777),
        ] {
            if value > most {
                record(&mut records, name.as_bytes(), value.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = node.mtime;
        if !(0..=0o777_7777_7777).contains(&seconds) || nanos != 0 {
            let text = if nanos == 0 { seconds.to_string() } else { format!("{seconds}.{nanos:09}") };
            record(&mut records, b"mtime", text.as_bytes());
        }
        for (name, value) in &node.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let extension = Node { path: b"pax".to_vec(), mode: 0o644, ..empty() };
            self.out.write_all(&header(b'x', &extension, b"pax", records.len() as u64))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let kind = match node.kind {
            NodeKind::File => b'0',
            NodeKind::HardLink => b'1',
            NodeKind::Symlink => b'2',
            NodeKind::Character => b'3',
            NodeKind::Block => b'4',
            NodeKind::Directory => b'5',
            NodeKind::Fifo => b'6',
        };
        let size = if node.kind == NodeKind::File { node.size } else { 0 };
        self.out.write_all(&header(kind, node, &path, size))?;
        self.left = size;
        self.padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        Ok(())
    }

    /// Data of the last file.
    ///
    /// # Errors
    /// The writer's, and `InvalidData` for more than the file has.
    pub fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(data.len() as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file has too much data"))?;
        self.out.write_all(data)?;
        if self.left == 0 {
            self.out.write_all([0; BLOCK].get(..std::mem::take(&mut self.padding)).unwrap_or_default())?;
        }
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.out.write_all([0; BLOCK].get(..rest).unwrap_or_default())
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// The writer's, and `InvalidData` if the last file lacks data.
    pub fn finish(mut self) -> io::Result<W> {
        if self.left > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file has too little data"));
        }
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn empty() -> Node {
    Node {
        path: Vec::new(),
        kind: NodeKind::File,
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

/// `LENGTH name=value\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(name);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Numbers without room are zero: they stand in a pax record.
fn header(kind: u8, node: &Node, path: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, most: usize, value: &[u8]| {
        block.iter_mut().skip(at).take(most).zip(value).for_each(|(to, from)| *to = *from);
    };
    let octal = |value: u64, digits: usize| {
        let text = format!("{value:0digits$o}");
        if text.len() > digits { "0".repeat(digits) } else { text }.into_bytes()
    };
    put(0, 100, path);
    put(100, 7, &octal(node.mode.into(), 7));
    put(108, 7, &octal(node.uid.into(), 7));
    put(116, 7, &octal(node.gid.into(), 7));
    put(124, 11, &octal(size, 11));
    put(136, 11, &octal(u64::try_from(node.mtime.0).unwrap_or(0), 11));
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, &node.link);
    put(257, 8, b"ustar\x0000");
    put(329, 7, &octal(node.device.0.into(), 7));
    put(337, 7, &octal(node.device.1.into(), 7));
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    block.iter_mut().skip(148).zip(sum.as_bytes()).for_each(|(to, from)| *to = *from);
    block
}

/// Sends the entries of a tar as nodes, between a [`FilesAsk::Write`] and a [`FilesAsk::End`].
///
/// # Errors
/// The archive is none, has a name that leads out of it, or the other side is gone.
pub fn send_tar(client: &mut Client, source: &mut dyn Read) -> Result<()> {
    let fail = |source| Error::Files { what: "read the archive".into(), source };
    let mut tar = Tar::new(source);
    let mut buffer = vec![0; MAX_DATA];
    while let Some(entry) = tar.next_entry().map_err(fail)? {
        let clean = |path: &[u8]| -> Result<Vec<u8>> { Ok(names(path)?.join(&b'/')) };
        let kind = match entry.kind {
            Kind::File => NodeKind::File,
            Kind::HardLink => NodeKind::HardLink,
            Kind::Symlink => NodeKind::Symlink,
            Kind::CharDevice => NodeKind::Character,
            Kind::BlockDevice => NodeKind::Block,
            Kind::Directory => NodeKind::Directory,
            Kind::Fifo => NodeKind::Fifo,
        };
        let node = Node {
            path: clean(&entry.path)?,
            kind,
            mode: entry.mode.into(),
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            device: entry.device,
            link: if kind == NodeKind::HardLink { clean(&entry.link)? } else { entry.link },
            xattrs: entry.xattrs,
        };
        client.ask(&FilesAsk::Node(node))?;
        let mut left = entry.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
            let count = tar.read(buffer.get_mut(..most).unwrap_or_default()).map_err(fail)?;
            if count == 0 {
                return Err(fail(io::ErrorKind::UnexpectedEof.into()));
            }
            client.ask(&FilesAsk::Data(buffer.get(..count).unwrap_or_default()))?;
            left -= count as u64;
        }
    }
    Ok(())
}
