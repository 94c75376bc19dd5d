//! RAM in a file: a header of 16 KiB, then the regions one after the other, with holes where everything is zero.
//!
//! The file of a snapshot that has a parent is laid out the same way. It has the pages that changed, each in its place;
//! which ones they are says the state, and everything else of it is a hole.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use servin_devices::mem::{self, GuestRam, Mem};
use servin_devices::os::{read_exact_at, write_all_at};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::changes::{self, PAGE};
use crate::error::Error;
use crate::layout::{self, GRANULE};
use crate::memory::{self, Pages};

const MAGIC: &[u8; 8] = b"SERVINRM";
/// Pages begin here, so that they are aligned for every host.
const HEADER: u64 = GRANULE;
/// RAM is looked at in pieces of this size: one that is all zero becomes a hole.
const PIECE: usize = 64 << 10;

type Region = <GuestRam as GuestMemoryBackend>::R;

/// RAM as an open file tells it, and those of the snapshots that build on it.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    memory_mib: u64,
    /// What changed since, the latest last.
    layers: Vec<Layer>,
}

/// The pages that changed between two snapshots.
#[derive(Debug)]
struct Layer {
    file: File,
    pages: Vec<Pages>,
}

impl MemoryFile {
    /// Writes all of `mem`.
    pub(crate) fn write(path: &Path, id: &[u8; 16], mem: &Mem) -> Result<(), Error> {
        write(path, id, mem).map_err(Error::host("writing the memory of a snapshot"))
    }

    /// Writes those of the pages of `mem` that are not as this file says, and tells which ones they are.
    pub(crate) fn write_changes(
        &self,
        path: &Path,
        id: &[u8; 16],
        mem: &Mem,
        pages: &[Pages],
    ) -> Result<Vec<Pages>, Error> {
        write_changes(path, id, mem, pages, self).map_err(Error::host("writing the memory of a snapshot"))
    }

    /// Opens the file and checks that it belongs to the snapshot `id`.
    pub(crate) fn open(path: &Path, id: &[u8; 16], memory_mib: u64) -> Result<Self, Error> {
        Ok(Self { file: open(path, id, memory_mib)?, memory_mib, layers: Vec::new() })
    }

    /// Opens the file of the snapshot `id`, which builds on this one, and has these pages.
    pub(crate) fn add(&mut self, path: &Path, id: &[u8; 16], pages: Vec<Pages>) -> Result<(), Error> {
        self.layers.push(Layer { file: open(path, id, self.memory_mib)?, pages });
        Ok(())
    }

    /// Maps it: what the guest writes stays private. What changed since the first snapshot is copied.
    pub(crate) fn map(&self) -> Result<Mem, Error> {
        let file = self.file.try_clone().map_err(Error::host("opening the memory of a snapshot again"))?;
        let mem = memory::private(self.memory_mib, file, HEADER)?;
        self.layers
            .iter()
            .try_for_each(|layer| copy(layer, &mem))
            .map_err(Error::host("reading the memory of a snapshot"))?;
        Ok(mem)
    }

    /// What it says of a page.
    fn read(&self, page: u32, bytes: &mut [u8]) -> io::Result<()> {
        let layer = self.layers.iter().rev().find(|layer| changes::has(&layer.pages, page));
        read_exact_at(layer.map_or(&self.file, |layer| &layer.file), bytes, place(page))
    }
}

/// Where a page is in a file.
fn place(page: u32) -> u64 {
    HEADER + u64::from(page) * PAGE
}

fn open(path: &Path, id: &[u8; 16], memory_mib: u64) -> Result<File, Error> {
    let failed = |why: String| Error::Snapshot(format!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut header = [0; 24];
    file.read_exact(&mut header).map_err(|e| failed(e.to_string()))?;
    let (magic, number) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(failed("not the memory of a snapshot".to_owned()));
    }
    if number != id {
        return Err(failed("it belongs to another snapshot".to_owned()));
    }
    let bytes: u64 = layout::ram(memory_mib)?.iter().map(|(_, len)| len).sum();
    let len = file.metadata().map_err(|e| failed(e.to_string()))?.len();
    if len != HEADER + bytes {
        return Err(failed(format!("{len} bytes long instead of {}", HEADER + bytes)));
    }
    Ok(file)
}

/// Hands out each of the pages, with where it is in which region.
fn each_page(
    ram: &GuestRam,
    pages: &[Pages],
    mut act: impl FnMut(u32, &Region, MemoryRegionAddress) -> io::Result<()>,
) -> io::Result<()> {
    let mut base = 0;
    for region in ram.iter() {
        let end = base + region.len() / PAGE;
        for run in pages {
            let (first, behind) = (u64::from(run.first), u64::from(run.first) + u64::from(run.count));
            for page in first.max(base)..behind.min(end) {
                let at = MemoryRegionAddress((page - base) * PAGE);
                let page = u32::try_from(page).map_err(io::Error::other)?;
                act(page, region, at)?;
            }
        }
        base = end;
    }
    Ok(())
}

fn copy(layer: &Layer, ram: &GuestRam) -> io::Result<()> {
    let mut bytes = [0; PAGE as usize];
    each_page(ram, &layer.pages, |page, region, at| {
        read_exact_at(&layer.file, &mut bytes, place(page))?;
        region.write_slice(&bytes, at).map_err(io::Error::other)
    })
}

fn write_changes(
    path: &Path,
    id: &[u8; 16],
    ram: &GuestRam,
    pages: &[Pages],
    parent: &MemoryFile,
) -> io::Result<Vec<Pages>> {
    let file = File::create(path)?;
    write_all_at(&file, &[&MAGIC[..], id].concat(), 0)?;
    file.set_len(HEADER + ram.iter().map(GuestMemoryRegion::len).sum::<u64>())?;
    let (mut now, mut before) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut changed = Vec::new();
    each_page(ram, pages, |page, region, at| {
        region.read_slice(&mut now, at).map_err(io::Error::other)?;
        parent.read(page, &mut before)?;
        if now == before {
            return Ok(());
        }
        changes::push(&mut changed, page);
        if now != [0; PAGE as usize] {
            write_all_at(&file, &now, place(page))?;
        }
        Ok(())
    })?;
    Ok(changed)
}

fn write(path: &Path, id: &[u8; 16], ram: &GuestRam) -> io::Result<()> {
    let file = File::create(path)?;
    write_all_at(&file, &[&MAGIC[..], id].concat(), 0)?;
    let mut at = HEADER;
    let mut buffer = vec![0; PIECE];
    let zeroes = vec![0; PIECE];
    for region in ram.iter() {
        let len = region.len();
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
            let (bytes, _) = buffer.split_at_mut(piece);
            region.read_slice(bytes, MemoryRegionAddress(done)).map_err(io::Error::other)?;
            // Slices are compared word by word.
            if zeroes.get(..piece) != Some(&*bytes) {
                let slice = region.get_slice(MemoryRegionAddress(done), piece).map_err(io::Error::other)?;
                write_all(&file, &slice, at + done)?;
            }
            done += piece as u64;
        }
        at += len;
    }
    file.set_len(at)
}

fn write_all(file: &File, slice: &mem::Slice<'_>, mut at: u64) -> io::Result<()> {
    let mut rest = *slice;
    loop {
        let done = mem::write_at(mem::file_ref(file), std::slice::from_ref(&rest), at)?;
        if done == rest.len() {
            return Ok(());
        }
        if done == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = rest.offset(done).map_err(io::Error::other)?;
        at += done as u64;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn memory_comes_back_and_zero_pages_take_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let ram = memory::anonymous(64).unwrap();
        let at = GuestAddress(crate::layout::ram(64).unwrap()[0].0 + 0x123_4567);
        ram.write_slice(b"here", at).unwrap();
        MemoryFile::write(&path, &[7; 16], &ram).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), HEADER + (64 << 20));
        #[cfg(unix)]
        {
            let blocks = std::os::unix::fs::MetadataExt::blocks(&meta);
            assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
        }

        let back = MemoryFile::open(&path, &[7; 16], 64).unwrap().map().unwrap();
        let mut bytes = [0; 4];
        back.read_slice(&mut bytes, at).unwrap();
        assert_eq!(&bytes, b"here");
        assert!(MemoryFile::open(&path, &[8; 16], 64).is_err());
        assert!(MemoryFile::open(&path, &[7; 16], 32).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_changes_has_the_pages_that_differ_and_reads_through_the_ones_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let ram = memory::anonymous(32).unwrap();
        let base = crate::layout::ram(32).unwrap()[0].0;
        let page = |page: u64| GuestAddress(base + page * PAGE);
        for at in [3, 4, 5] {
            ram.write_obj(at, page(at)).unwrap();
        }
        MemoryFile::write(&path("one"), &[1; 16], &ram).unwrap();
        let mut file = MemoryFile::open(&path("one"), &[1; 16], 32).unwrap();
        // One page changes, one becomes zero, one is written as it was, and one is new.
        ram.write_obj(44_u64, page(4)).unwrap();
        ram.write_obj(0_u64, page(5)).unwrap();
        ram.write_obj(9_u64, page(9)).unwrap();
        let pages = |runs: &[(u32, u32)]| -> Vec<Pages> {
            runs.iter().map(|(first, count)| Pages { first: *first, count: *count }).collect()
        };
        let told = file.write_changes(&path("two"), &[2; 16], &ram, &pages(&[(2, 8)])).unwrap();
        assert_eq!(told, pages(&[(4, 2), (9, 1)]));
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path("two")).unwrap());
        assert!(blocks * 512 <= 16 << 10, "{blocks} blocks");
        file.add(&path("two"), &[2; 16], told).unwrap();
        ram.write_obj(4_u64, page(4)).unwrap();
        let told = file.write_changes(&path("three"), &[3; 16], &ram, &pages(&[(0, 10)])).unwrap();
        assert_eq!(told, pages(&[(4, 1)]));
        assert!(file.add(&path("three"), &[2; 16], told.clone()).is_err());
        file.add(&path("three"), &[3; 16], told).unwrap();
        let back = file.map().unwrap();
        for at in 0..10 {
            assert_eq!(back.read_obj::<u64>(page(at)).unwrap(), ram.read_obj::<u64>(page(at)).unwrap());
        }
    }
}
