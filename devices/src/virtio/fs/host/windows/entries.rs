//! The entries of a directory, as the kernel hands them out: a batch at a time.

use std::fs::File;
use std::mem::offset_of;

use windows_sys::Wdk::Storage::FileSystem::{FILE_DIRECTORY_FILE, FILE_OPEN};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ID_BOTH_DIR_INFO, FILE_LIST_DIRECTORY, FILE_READ_ATTRIBUTES,
};

use super::super::super::vfs::{DirEntry, Errno};
use super::super::listing::Entries;
use super::super::system::{OpenFile, Result, kind};
use super::by_handle::{done, id_of};
use super::shape::Shape;
use super::{calls, names};

/// Words of 8 bytes for one batch.
const BATCH: usize = 8 << 10;

const RIGHTS: u32 = FILE_LIST_DIRECTORY | FILE_READ_ATTRIBUTES;

/// One entry as it is on the host.
struct Raw {
    name: Vec<u16>,
    shape: Shape,
    ino: u64,
    /// Where the next one is, behind this one; 0 for the last.
    next: usize,
}

/// See the module's description.
#[derive(Debug)]
pub struct Stream {
    dir: File,
    /// Of the two entries that every directory has for Linux, and on Windows not every one.
    dots: Vec<DirEntry>,
    started: bool,
    batch: Vec<u8>,
    /// The next entry of the batch; `None` when there is none left.
    at: Option<usize>,
}

impl Stream {
    fn raw(&mut self) -> Result<Option<Raw>> {
        if self.at.is_none() {
            let mut words = vec![0; BATCH];
            if !calls::entries(&self.dir, !self.started, &mut words)? {
                return Ok(None);
            }
            self.started = true;
            self.batch = words.into_iter().flat_map(u64::to_le_bytes).collect();
            self.at = Some(0);
        }
        let at = self.at.unwrap_or(0);
        let raw = self.batch.get(at..).and_then(parse).ok_or(Errno::IO)?;
        self.at = (raw.next != 0).then_some(at + raw.next);
        Ok(Some(raw))
    }

    /// Whether there are no entries, shown or not.
    pub(super) fn has_none(&mut self) -> Result<bool> {
        while let Some(raw) = self.raw()? {
            if !is_dots(&raw.name) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Entries for Stream {
    fn of(dir: &OpenFile) -> Result<Self> {
        let ino = id_of(dir)?.ino;
        let dot = |name: &[u8]| DirEntry { ino, next: 0, kind: kind::DIRECTORY >> 12, name: name.to_vec() };
        // By a handle of its own: the listing of another one goes on where it is. A directory whose name is gone has that alone.
        let again = calls::open_at(dir, &[], RIGHTS, FILE_OPEN, FILE_DIRECTORY_FILE);
        let dir = again.or_else(|_| done(dir.try_clone()))?;
        Ok(Self { dir, dots: vec![dot(b".."), dot(b".")], started: false, batch: Vec::new(), at: None })
    }

    fn next(&mut self) -> Result<Option<DirEntry>> {
        if let Some(entry) = self.dots.pop() {
            return Ok(Some(entry));
        }
        while let Some(raw) = self.raw()? {
            if is_dots(&raw.name) {
                continue;
            }
            // What no name of the guest's stands for is not there for it.
            if let Some(name) = names::decode(&raw.name) {
                return Ok(Some(DirEntry { ino: raw.ino, next: 0, kind: raw.shape.entry_kind(), name }));
            }
        }
        Ok(None)
    }
}

fn is_dots(name: &[u16]) -> bool {
    matches!(name, [0x2e] | [0x2e, 0x2e])
}

/// One entry at the start of `bytes`.
fn parse(bytes: &[u8]) -> Option<Raw> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = word(offset_of!(FILE_ID_BOTH_DIR_INFO, FileNameLength))? as usize;
    let start = offset_of!(FILE_ID_BOTH_DIR_INFO, FileName);
    let units = bytes.get(start..start + len)?.chunks_exact(2).filter_map(|unit| unit.try_into().ok());
    let ino = offset_of!(FILE_ID_BOTH_DIR_INFO, FileId);
    Some(Raw {
        name: units.map(u16::from_le_bytes).collect(),
        // Of a reparse point the size of its extended attributes is its tag.
        shape: Shape::of(
            word(offset_of!(FILE_ID_BOTH_DIR_INFO, FileAttributes))?,
            word(offset_of!(FILE_ID_BOTH_DIR_INFO, EaSize))?,
        ),
        ino: u64::from_le_bytes(bytes.get(ino..ino + 8)?.try_into().ok()?),
        next: word(offset_of!(FILE_ID_BOTH_DIR_INFO, NextEntryOffset))? as usize,
    })
}
