//! What the container's disk held: all of it, or the blocks that differ from what it held in the parent.
//!
//! `disk` is a sparse file with every byte in its place. Where the snapshot has a parent, `disk.changes` says which blocks
//! of 4 KiB it has; everything else of it is a hole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use servin_devices::state::{self, State};
use servin_vmm::memory::Pages;

use crate::container::disk::copy;
use crate::{Error, Result};

/// What the container's disk held.
const DISK: &str = "disk";
/// The blocks that it has, in a snapshot with a parent.
const CHANGES: &str = "disk.changes";
const BLOCK: usize = 4 << 10;
/// Disks are compared in pieces of this size.
const PIECE: usize = 64 << 10;

/// The blocks of a disk that changed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changes {
    /// Bytes of the disk.
    length: u64,
    blocks: Vec<Pages>,
}

impl State for Changes {
    const NAME: &'static str = "the blocks of the disk that changed";
    const VERSION: u16 = 1;
}

/// A disk as a chain of snapshots tells it.
#[derive(Debug)]
struct View {
    base: File,
    length: u64,
    /// What changed since, the latest last.
    layers: Vec<(File, Vec<Pages>)>,
}

/// Writes what a container's disk holds while its machine stands still; `below` are the directories of the parent and of
/// those that it builds on.
pub(crate) fn keep(dir: &Path, below: &[PathBuf], disk: &File) -> Result<()> {
    let path = dir.join(DISK);
    let failed = |source| Error::io("write", &path, source);
    let file = File::create_new(&path).map_err(failed)?;
    if below.is_empty() {
        return copy(disk, &file).map_err(failed);
    }
    let view = View::open(below)?;
    let changes = view.write_changes(disk, &file).map_err(failed)?;
    let bytes = state::encode(&changes).map_err(|error| failed(io::Error::other(error)))?;
    let path = dir.join(CHANGES);
    fs::write(&path, bytes).map_err(|source| Error::io("write", &path, source))
}

/// Opens what the container's disk held in a whole snapshot.
pub(crate) fn open(dir: &Path) -> Result<File> {
    let path = dir.join(DISK);
    File::open(&path).map_err(|source| Error::io("open", &path, source))
}

/// Writes what the container's disk held in the last of a chain of snapshots into an empty file.
pub(crate) fn write(chain: &[PathBuf], to: &File) -> io::Result<()> {
    View::open(chain).map_err(io::Error::other)?.copy_to(to)
}

impl View {
    fn open(chain: &[PathBuf]) -> Result<Self> {
        let mut dirs = chain.iter();
        let base = open(dirs.next().map_or(Path::new(""), PathBuf::as_path))?;
        let length = base.metadata().map_err(|source| Error::io("look at", DISK, source))?.len();
        let mut layers = Vec::new();
        for dir in dirs {
            let path = dir.join(CHANGES);
            let failed = |source| Error::io("read", &path, source);
            let bytes = fs::read(&path).map_err(failed)?;
            let changes: Changes = state::decode(&bytes).map_err(|error| failed(io::Error::other(error)))?;
            if !changes.fits(length) {
                return Err(failed(io::Error::other("it does not fit the disk of the snapshot's parent")));
            }
            layers.push((open(dir)?, changes.blocks));
        }
        Ok(View { base, length, layers })
    }

    /// Reads a piece that begins with a block.
    fn read(&self, at: u64, piece: &mut [u8]) -> io::Result<()> {
        self.base.read_exact_at(piece, at)?;
        let first = at / BLOCK as u64;
        let end = first + piece.len().div_ceil(BLOCK) as u64;
        for (file, runs) in &self.layers {
            let from = runs.partition_point(|run| u64::from(run.first) + u64::from(run.count) <= first);
            for run in runs.iter().skip(from).take_while(|run| u64::from(run.first) < end) {
                let behind = u64::from(run.first) + u64::from(run.count);
                let (start, stop) = (u64::from(run.first).max(first), behind.min(end));
                let (start, stop) = ((start - first) as usize * BLOCK, (stop - first) as usize * BLOCK);
                let stop = stop.min(piece.len());
                let part = piece.get_mut(start..stop).ok_or(io::ErrorKind::InvalidData)?;
                file.read_exact_at(part, at + start as u64)?;
            }
        }
        Ok(())
    }

    /// Writes the blocks of a disk that are not as it was here.
    fn write_changes(&self, disk: &File, to: &File) -> io::Result<Changes> {
        if disk.metadata()?.len() != self.length {
            return Err(io::Error::other("the disk has another size than in the snapshot's parent"));
        }
        to.set_len(self.length)?;
        let mut places = BTreeSet::new();
        for file in [disk, &self.base].into_iter().chain(self.layers.iter().map(|(file, _)| file)) {
            data(file, &mut places)?;
        }
        let (mut now, mut before) = (vec![0; PIECE], vec![0; PIECE]);
        let mut blocks = Vec::<Pages>::new();
        for place in places {
            let at = place * PIECE as u64;
            let most = usize::try_from(self.length - at).unwrap_or(PIECE).min(PIECE);
            let (now, before) = (now.split_at_mut(most).0, before.split_at_mut(most).0);
            disk.read_exact_at(now, at)?;
            self.read(at, before)?;
            if now == before {
                continue;
            }
            let pairs = now.chunks(BLOCK).zip(before.chunks(BLOCK));
            for (index, (now, _)) in (0_u64..).zip(pairs).filter(|(_, (now, before))| now != before) {
                let at = at + index * BLOCK as u64;
                let block = u32::try_from(at / BLOCK as u64).map_err(io::Error::other)?;
                match blocks.last_mut() {
                    Some(run) if run.first + run.count == block => run.count += 1,
                    _ => blocks.push(Pages { first: block, count: 1 }),
                }
                if now.iter().any(|byte| *byte != 0) {
                    to.write_all_at(now, at)?;
                }
            }
        }
        Ok(Changes { length: self.length, blocks })
    }

    fn copy_to(&self, to: &File) -> io::Result<()> {
        copy(&self.base, to)?;
        let mut piece = vec![0; PIECE];
        for (file, runs) in &self.layers {
            for run in runs {
                let mut at = u64::from(run.first) * BLOCK as u64;
                let end = (at + u64::from(run.count) * BLOCK as u64).min(self.length);
                while at < end {
                    let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                    let part = piece.split_at_mut(most).0;
                    file.read_exact_at(part, at)?;
                    to.write_all_at(part, at)?;
                    at += most as u64;
                }
            }
        }
        Ok(())
    }
}

impl Changes {
    /// The blocks are in order and within a disk of this length.
    fn fits(&self, length: u64) -> bool {
        let mut end = 0;
        let ordered = self.blocks.iter().all(|run| {
            let begins = u64::from(run.first) >= end && run.count > 0;
            end = u64::from(run.first) + u64::from(run.count);
            begins
        });
        ordered && self.length == length && end <= length.div_ceil(BLOCK as u64)
    }
}

/// Any bytes as the list of a disk of 33 blocks and a half: what is taken is read as it says, in pieces and whole. The body of
/// a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn fuzz(data: &[u8]) -> io::Result<()> {
    const LENGTH: usize = 33 * BLOCK + BLOCK / 2;
    let Ok(changes) = state::decode::<Changes>(data) else { return Ok(()) };
    if !changes.fits(LENGTH as u64) {
        return Ok(());
    }
    let filled = |byte| {
        let file = File::from(rustix::fs::memfd_create(c"disk", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all_at(&[byte; LENGTH], 0)?;
        Ok::<_, io::Error>(file)
    };
    let mut wanted = [1; LENGTH];
    for run in &changes.blocks {
        let first = run.first as usize * BLOCK;
        let part = wanted.get_mut(first..LENGTH.min(first + run.count as usize * BLOCK));
        part.ok_or(io::ErrorKind::InvalidData)?.fill(2);
    }
    let view = View { base: filled(1)?, length: changes.length, layers: vec![(filled(2)?, changes.blocks)] };
    for size in [BLOCK, PIECE, LENGTH] {
        let mut read = [0; LENGTH];
        for (index, piece) in read.chunks_mut(size).enumerate() {
            view.read((index * size) as u64, piece)?;
        }
        assert!(read == wanted, "in pieces of {size}: {:?}", view.layers);
    }
    Ok(())
}

/// Adds the pieces of a sparse file that are not holes.
fn data(file: &File, places: &mut BTreeSet<u64>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Behind the last data.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        places.extend(start / PIECE as u64..at.div_ceil(PIECE as u64));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn only_the_blocks_that_differ_are_written_and_a_chain_gives_the_disk_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = tempfile::tempfile().unwrap();
        // The last block is not whole.
        disk.set_len((64 << 20) + 512).unwrap();
        let chain: Vec<PathBuf> = ["one", "two", "three"].map(|name| dir.path().join(name)).to_vec();
        let write = |blocks: &[(u64, u8)]| {
            for (block, byte) in blocks {
                disk.write_all_at(&[*byte; 512], block * BLOCK as u64).unwrap();
            }
        };
        let steps: [&[(u64, u8)]; 3] =
            [&[(0, 1), (5, 5), (999, 9)], &[(5, 0), (6, 6), (16384, 8)], &[(6, 7), (9000, 1), (999, 9)]];
        for (at, step) in steps.into_iter().enumerate() {
            write(step);
            fs::create_dir(&chain[at]).unwrap();
            keep(&chain[at], &chain[..at], &disk).unwrap();
        }
        let blocks = |at: usize| -> Vec<(u32, u32)> {
            let changes: Changes = state::decode(&fs::read(chain[at].join(CHANGES)).unwrap()).unwrap();
            changes.blocks.iter().map(|run| (run.first, run.count)).collect()
        };
        assert_eq!((blocks(1), blocks(2)), (vec![(5, 2), (16384, 1)], vec![(6, 1), (9000, 1)]));
        assert!(fs::metadata(chain[2].join(DISK)).unwrap().blocks() * 512 <= 64 << 10);
        let back = tempfile::tempfile().unwrap();
        super::write(&chain, &back).unwrap();
        let all = |file: &File| {
            let mut bytes = vec![0; (64 << 20) + 512];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(all(&disk) == all(&back));
        // A list that does not fit is refused.
        let list = chain[1].join(CHANGES);
        for blocks in [vec![(9, 1), (8, 1)], vec![(16384, 2)], vec![(u32::MAX, u32::MAX)], vec![(1, 0)]] {
            let blocks = blocks.into_iter().map(|(first, count)| Pages { first, count }).collect();
            let changes = Changes { length: (64 << 20) + 512, blocks };
            fs::write(&list, state::encode(&changes).unwrap()).unwrap();
            assert!(super::write(&chain, &tempfile::tempfile().unwrap()).is_err());
        }
        fs::write(&list, b"").unwrap();
        assert!(super::write(&chain, &tempfile::tempfile().unwrap()).is_err());
    }
}
