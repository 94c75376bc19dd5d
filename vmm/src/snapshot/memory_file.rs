//! RAM in a file: a header of 16 KiB, then the regions one after the other, with holes where everything is zero.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use servin_devices::mem::{self, GuestRam, Mem};
use servin_devices::os::write_all_at;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::error::Error;
use crate::layout::{self, GRANULE};
use crate::memory;

const MAGIC: &[u8; 8] = b"SERVINRM";
/// Pages begin here, so that they are aligned for every host.
const HEADER: u64 = GRANULE;
/// RAM is looked at in pieces of this size: one that is all zero becomes a hole.
const PIECE: usize = 64 << 10;

/// An open memory file.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    memory_mib: u64,
}

impl MemoryFile {
    /// Writes all of `mem`.
    pub(crate) fn write(path: &Path, id: &[u8; 16], mem: &Mem) -> Result<(), Error> {
        write(path, id, mem).map_err(Error::host("writing the memory of a snapshot"))
    }

    /// Opens the file and checks that it belongs to the snapshot `id`.
    pub(crate) fn open(path: &Path, id: &[u8; 16], memory_mib: u64) -> Result<Self, Error> {
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
        Ok(Self { file, memory_mib })
    }

    /// Maps it: what the guest writes stays private.
    pub(crate) fn map(&self, track_dirty: bool) -> Result<Mem, Error> {
        let file = self.file.try_clone().map_err(Error::host("opening the memory of a snapshot again"))?;
        memory::private(self.memory_mib, file, HEADER, track_dirty)
    }
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
        let ram = memory::anonymous(64, false).unwrap();
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

        let back = MemoryFile::open(&path, &[7; 16], 64).unwrap().map(false).unwrap();
        let mut bytes = [0; 4];
        back.read_slice(&mut bytes, at).unwrap();
        assert_eq!(&bytes, b"here");
        assert!(MemoryFile::open(&path, &[8; 16], 64).is_err());
        assert!(MemoryFile::open(&path, &[7; 16], 32).is_err());
    }
}
