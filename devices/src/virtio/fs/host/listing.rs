//! Listings where a directory's stream has no positions that outlive it: its entries are numbered.
//!
//! The guest goes on where it was almost always: the stream is kept, and of the entries that it gave the last batch, since the
//! guest may not have taken all of it. Another position is reached from the start.

use std::collections::VecDeque;

use super::super::vfs::DirEntry;
use super::super::wire;
use super::convert;
use super::system::{OpenFile, Result};

/// The entries of an open directory, one after the other.
pub trait Entries: Sized {
    /// From the first one on.
    fn of(dir: &OpenFile) -> Result<Self>;

    /// The next one; its number is the listing's business. `None` at the end.
    fn next(&mut self) -> Result<Option<DirEntry>>;
}

/// The most bytes of names in one batch: what is kept of an open directory.
const BATCH: usize = 64 * 1024;

/// See the module's description.
#[derive(Debug)]
pub struct Listing<E> {
    stream: Option<E>,
    /// Entries that the stream gave.
    given: u64,
    /// All of them from this number on are in `last`, but for those that are not listed.
    last_from: u64,
    last: VecDeque<DirEntry>,
}

impl<E> Default for Listing<E> {
    fn default() -> Self {
        Self { stream: None, given: 0, last_from: 0, last: VecDeque::new() }
    }
}

impl<E: Entries> Listing<E> {
    /// Lists entries from the number `offset` on.
    pub(super) fn list(
        &mut self,
        dir: &OpenFile,
        offset: u64,
        room: usize,
        only: Option<&[u8]>,
    ) -> Result<Vec<DirEntry>> {
        // The start is a new look at the directory.
        if offset == 0 || offset < self.last_from || self.stream.is_none() {
            *self = Self { stream: Some(E::of(dir)?), ..Self::default() };
        }
        while self.last.front().is_some_and(|entry| entry.next <= offset) {
            self.last.pop_front();
        }
        self.last_from = offset;
        let (mut entries, mut len, mut at) = (Vec::new(), 0, 0);
        loop {
            if self.last.get(at).is_none() && !self.read(offset, only)? {
                break;
            }
            let Some(entry) = self.last.get(at) else { continue };
            len += wire::dirent_len(&entry.name);
            if len > room.min(BATCH) {
                break;
            }
            entries.push(entry.clone());
            at += 1;
        }
        Ok(entries)
    }

    /// Reads one entry of the stream and keeps it if it is listed; false at the end.
    fn read(&mut self, offset: u64, only: Option<&[u8]>) -> Result<bool> {
        let Some(stream) = self.stream.as_mut() else { return Ok(false) };
        let Some(entry) = stream.next()? else { return Ok(false) };
        self.given += 1;
        if self.given > offset && convert::is_listed(&entry.name, only) {
            self.last.push_back(DirEntry { next: self.given, ..entry });
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::system::System;
    use super::*;

    #[cfg(unix)]
    type Native = super::super::by_name::ByName;
    #[cfg(windows)]
    type Native = super::super::Native;

    fn open(dir: &Path) -> (OpenFile, <Native as System>::Listing) {
        let fd = Native::new().unwrap().open_directory(&Native::root(dir).unwrap()).unwrap();
        (fd, Default::default())
    }

    #[test]
    fn a_listing_goes_on_from_wherever_it_was_and_starts_anew_at_its_start() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..100 {
            std::fs::write(dir.path().join(format!("entry-{n}")), b"").unwrap();
        }
        let (fd, mut listing) = open(dir.path());
        let mut list = |offset, room| listing.list(&fd, offset, room, None).unwrap();
        let mut all = Vec::new();
        // The guest takes half of each batch.
        loop {
            let mut batch = list(all.len() as u64, 400);
            if batch.is_empty() {
                break;
            }
            batch.truncate(batch.len().div_ceil(2));
            all.extend(batch);
        }
        assert_eq!(all.len(), 102);
        assert!(all.iter().enumerate().all(|(at, entry)| entry.next == at as u64 + 1));
        assert_eq!(list(10, 400)[0], all[10], "back");
        assert_eq!(list(90, 10_000), all[90..], "and forth");
        std::fs::write(dir.path().join("new"), b"").unwrap();
        assert_eq!(list(0, 1 << 20).len(), 103);
        assert_eq!(list(0, 10), []);
    }

    #[test]
    fn what_is_kept_of_a_listing_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..400 {
            std::fs::write(dir.path().join(format!("{n:0250}")), b"").unwrap();
        }
        let (fd, mut listing) = open(dir.path());
        let first = listing.list(&fd, 0, usize::MAX, None).unwrap();
        assert!(first.len() < 402 && listing.last.len() <= first.len() + 1);
        let rest = listing.list(&fd, first.len() as u64, usize::MAX, None).unwrap();
        assert_eq!(first.len() + rest.len(), 402);
        assert!(listing.last.len() <= rest.len() + 1);
        let only = listing.list(&fd, 0, usize::MAX, Some(b"none")).unwrap();
        assert_eq!(only.len(), 2, "`.` and `..`");
    }
}
