//! What a hostile image may do to the engine, from any bytes: bodies of fuzz targets (`fuzz/`), and a short run of them that
//! is the same every time. They panic only where a promise is broken: a crash, or a root file system that a second reader
//! finds malformed.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::erofs::{self, Layers, Tree, reader};
use crate::image::tar::{Entry, Kind, Tar};
use crate::image::{Digest, fuzz_archive};
use crate::{Error, Result};

/// Bytes of a file's data at most, so that a short input does not make a long run.
const DATA_MAX: u64 = 9000;

/// Bytes of the holes of all sparse files at most, which the second reader has in memory.
const ZEROS_MAX: u64 = 1 << 20;

/// The list of the blocks of a disk that changed since the parent of a snapshot.
pub fn disk_changes(data: &[u8]) {
    crate::snapshot::disk::fuzz(data).expect("what was taken can be read");
}

/// Layers as raw tars: whatever the reader takes becomes a tree, and the tree a file.
pub fn tar(data: &[u8]) {
    let mut tree = Tree::new();
    let mut tar = Tar::new(data);
    let mut zeros = ZEROS_MAX;
    while let Ok(Some(entry)) = tar.next_entry() {
        let stored = match &entry.map {
            Some(map) => map.pieces().iter().map(|piece| piece.size).sum(),
            None => entry.size,
        };
        let end = entry.data_offset.checked_add(stored);
        let left = zeros.checked_sub(entry.size - stored);
        if let Some(left) = left
            && end.is_some_and(|end| end <= data.len() as u64)
        {
            zeros = left;
            let _ = tree.apply(&entry);
        }
    }
    check(&tree, &Memory(data.to_vec()));
}

/// Layers as entries, made from a small alphabet so that they meet each other.
pub fn layers(data: &[u8]) {
    let mut input = Input(data);
    let mut tree = Tree::new();
    let mut layer = 0;
    while !input.0.is_empty() {
        if input.byte() % 8 == 0 {
            layer += 1;
            tree.begin_layer(layer);
        }
        // A refused entry refuses the image; the tree must stay whole all the same.
        let _ = tree.apply(&entry(&mut input));
    }
    check(&tree, &Pattern);
}

/// An archive of files; in them `@N` stands for the digest of file N, and `#N` for its size.
pub fn archive(data: &[u8]) {
    let mut input = Input(data);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while !input.0.is_empty() && files.len() < 20 {
        let name = input.byte();
        let length = usize::from(input.byte()) * 4;
        let content = expand(input.bytes(length), &files);
        let name = match name % 8 {
            0 => "index.json".into(),
            1 => "manifest.json".into(),
            2 => "repositories".into(),
            3 => "../out".into(),
            4 => format!("{}.json", Digest::of(&content).hex()),
            _ => format!("blobs/sha256/{}", Digest::of(&content).hex()),
        };
        files.push((name, content));
    }
    let scratch = Scratch::new();
    fuzz_archive(&files, &scratch.0);
}

/// Replaces `@N` and `#N`.
fn expand(content: &[u8], files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = content.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let file = bytes
            .peek()
            .filter(|digit| digit.is_ascii_digit())
            .and_then(|digit| files.get(usize::from(digit - b'0')));
        match (byte, file) {
            (b'@', Some((_, content))) => out.extend(Digest::of(content).to_string().into_bytes()),
            (b'#', Some((_, content))) => out.extend(content.len().to_string().into_bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}

/// Writes the tree and reads it with the second reader.
fn check(tree: &Tree, layers: &dyn Layers) {
    let scratch = Scratch::new();
    let path = scratch.0.join("root");
    match erofs::write(tree, layers, &Digest::of(b"fuzz"), &path) {
        Ok(()) => {
            let found = reader::read(&std::fs::read(&path).expect("the file was written"));
            assert_eq!(found.len(), tree.names(), "not every name came through");
        }
        Err(error) => panic!("{error}"),
    }
}

fn entry(input: &mut Input<'_>) -> Entry {
    let kind = match input.byte() % 10 {
        0 | 1 => Kind::File,
        2 | 3 => Kind::Directory,
        4 | 5 => Kind::Symlink,
        6 => Kind::HardLink,
        7 => Kind::CharDevice,
        8 => Kind::BlockDevice,
        _ => Kind::Fifo,
    };
    let path = path(input);
    let link = if matches!(kind, Kind::Symlink | Kind::HardLink) { self::path(input) } else { Vec::new() };
    let numbers = input.byte();
    let size = if kind == Kind::File { (u64::from(input.byte()) * 37) % DATA_MAX } else { 0 };
    let mut xattrs = Vec::new();
    for _ in 0..numbers % 3 {
        let name = [
            &b"user.a"[..],
            b"security.capability",
            b"trusted.overlay.opaque",
            b"system.posix_acl_access",
            b"x",
            b"user.b",
        ];
        let name = name.get(usize::from(input.byte()) % 6).copied().unwrap_or_default();
        let length = usize::from(input.byte()) * 40;
        xattrs.push((name.to_vec(), vec![numbers; length]));
    }
    Entry {
        path,
        kind,
        mode: u16::from(input.byte()) << 4,
        uid: u32::from(numbers) * 1000,
        gid: u32::from(numbers),
        size,
        map: None,
        mtime: (i64::from(numbers) - 9, u32::from(numbers) * 1000),
        link,
        xattrs,
        device: (u32::from(numbers) * 20, u32::from(numbers) * 5000),
        data_offset: u64::from(input.byte()) << 12,
    }
}

/// Up to five parts out of twelve.
fn path(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=input.byte() % 5 {
        let part = input.byte();
        match part % 14 {
            0 => out.extend(b".wh.a"),
            1 => out.extend(b".wh..wh..opq"),
            2 => out.extend(b".."),
            3 => out.extend(b"."),
            4 => out.extend(b".wh.b"),
            5 => out.extend(std::iter::repeat_n(b'l', usize::from(input.byte()))),
            other => out.push(b'a' + other % 4),
        }
        out.push(b'/');
    }
    if !input.byte().is_multiple_of(4) {
        out.pop();
    }
    out
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }
}

/// One layer in memory.
struct Memory(Vec<u8>);

impl Layers for Memory {
    fn open(&self, _: u32) -> Result<Box<dyn Read>> {
        Ok(Box::new(Cursor::new(self.0.clone())))
    }

    fn digest(&self, _: u32) -> Digest {
        Digest::of(b"")
    }
}

/// Layers of endless zeros.
struct Pattern;

impl Layers for Pattern {
    fn open(&self, _: u32) -> Result<Box<dyn Read>> {
        Ok(Box::new(std::io::repeat(0)))
    }

    fn digest(&self, _: u32) -> Digest {
        Digest::of(b"")
    }
}

/// A directory in memory where there is one: a sync costs nothing there.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("servin-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|source| Error::io("make", &path, source))
            .expect("a scratch directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same on every run; the fuzz targets look further.
    #[test]
    fn noise_keeps_every_promise() {
        let mut noise = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..1500 {
            let bytes: Vec<u8> = (0..40 + round % 400)
                .map(|_| {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    (noise >> 32) as u8
                })
                .collect();
            layers(&bytes);
            if round % 10 == 0 {
                archive(&bytes);
                tar(&bytes);
            }
        }
    }

    #[test]
    fn a_reference_in_an_archive_is_a_digest_or_a_size() {
        let files = [("x".to_owned(), b"abc".to_vec())];
        assert_eq!(expand(b"@0 #0 @9 @x", &files), format!("{} 3 @9 @x", Digest::of(b"abc")).into_bytes());
    }
}
