//! The entries of a directory, by its stream.

use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use super::super::super::vfs::DirEntry;
use super::super::convert;
use super::super::listing::Entries;
use super::{Result, ours};

impl Entries for Dir {
    fn of(dir: &OwnedFd) -> Result<Self> {
        ours(Self::read_from(dir))
    }

    fn next(&mut self) -> Result<Option<DirEntry>> {
        let Some(entry) = self.read() else { return Ok(None) };
        let entry = ours(entry)?;
        let (kind, name) = (convert::entry_kind(entry.file_type()), entry.file_name().to_bytes().to_vec());
        Ok(Some(DirEntry { ino: entry.ino(), next: 0, kind, name }))
    }
}
