//! Memory that the system commits when it is mapped. A saved one is read: the mappings of files that the memory crate makes
//! here are shared with the file.

use std::fs::File;
use std::io;

use servin_devices::mem::{GuestRam, Mem};
use servin_devices::os::read_exact_at;
use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::{Pages, Region, map};
use crate::error::Error;

/// Bytes that are read from a file at once.
const PIECE: usize = 1 << 20;

/// Maps zeroed RAM of `mem_mib`.
///
/// # Errors
/// The size is out of range, or the host has no memory left.
pub fn anonymous(mem_mib: u64) -> Result<Mem, Error> {
    map(mem_mib, Region::new)
}

/// Maps RAM of `mem_mib` with the contents of `file`, region after region from `offset` on. What the guest writes stays
/// private to it.
///
/// # Errors
/// As [`anonymous`], or the file is too short.
#[allow(clippy::needless_pass_by_value)]
pub fn private(mem_mib: u64, file: File, offset: u64) -> Result<Mem, Error> {
    let mem = anonymous(mem_mib)?;
    fill(&mem, &file, offset).map_err(|source| Error::Memory { mib: mem_mib, source })?;
    Ok(mem)
}

fn fill(ram: &GuestRam, file: &File, mut offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let zeroes = vec![0; PIECE];
    for region in ram.iter() {
        let mut at = 0;
        while at < region.len() {
            let (piece, _) =
                buffer.split_at_mut(usize::try_from(region.len() - at).unwrap_or(PIECE).min(PIECE));
            read_exact_at(file, piece, offset)?;
            // Memory that is all zero is not touched.
            if zeroes.get(..piece.len()) != Some(&*piece) {
                region.write_slice(piece, MemoryRegionAddress(at)).map_err(io::Error::other)?;
            }
            at += piece.len() as u64;
            offset += piece.len() as u64;
        }
    }
    Ok(())
}

/// The pages of a [`private`] mapping that were written since it was made: the host does not tell.
///
/// # Errors
/// Always.
pub fn written(_: &GuestRam) -> io::Result<Vec<Pages>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is nothing to copy early: the memory is its own from the start.
pub fn populate(_: &GuestRam, _: &[Pages]) {}

/// Pages that devices write are not counted on Windows.
pub fn count_written(_: &GuestRam) {}

/// They are not counted.
pub fn take_written(_: &GuestRam) -> Option<Vec<Vec<u64>>> {
    None
}
