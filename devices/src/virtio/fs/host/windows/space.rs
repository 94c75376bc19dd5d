//! Space in files: what a file that is not sparse has to its end, holes where the file system makes them, copies through a buffer.

use std::fs::File;
use std::os::windows::fs::FileExt as _;

use windows_sys::Win32::System::Ioctl::{
    FSCTL_QUERY_ALLOCATED_RANGES, FSCTL_SET_SPARSE, FSCTL_SET_ZERO_DATA,
};

use super::super::super::vfs::{Errno, Seek};
use super::super::copy::{self, MAX};
use super::super::system::Result;
use super::by_handle::{done, id_of, resize};
use super::calls;
use super::shape::attribute;

/// `FALLOC_FL_KEEP_SIZE` and `FALLOC_FL_PUNCH_HOLE` of Linux.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;

/// Ranges that are asked for at once.
const RANGES: usize = 64;

fn size(file: &File) -> Result<u64> {
    Ok(u64::try_from(calls::standard(file)?.EndOfFile).unwrap_or(0))
}

pub(super) fn fallocate(file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
    if len == 0 {
        return Err(Errno::INVAL);
    }
    let end = offset.checked_add(len).filter(|&end| end <= MAX).ok_or(Errno::FBIG)?;
    let size = size(file)?;
    let sparse = calls::basic(file)?.FileAttributes & attribute::SPARSE != 0;
    match mode {
        // A longer file that is not sparse has its space; what is behind the end Windows takes back at the close.
        0 if sparse => Err(Errno::OPNOTSUPP),
        0 if end > size => resize(file, end),
        0 => Ok(()),
        _ if mode == PUNCH_HOLE | KEEP_SIZE => clear(file, offset, end.min(size)),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Makes the bytes up to `end` read as zeroes; the file is sparse from then on.
fn clear(file: &File, offset: u64, end: u64) -> Result<()> {
    if offset >= end {
        return Ok(());
    }
    calls::control(file, FSCTL_SET_SPARSE, &[], &mut [])?;
    calls::control(file, FSCTL_SET_ZERO_DATA, &pair(offset, end), &mut []).map(drop)
}

fn pair(one: u64, two: u64) -> [u8; 16] {
    (u128::from(two) << 64 | u128::from(one)).to_le_bytes()
}

/// Finds data or a hole. A file system that does not know has data up to the end of the file.
pub(super) fn seek(file: &File, offset: u64, seek: Seek) -> Result<u64> {
    let size = size(file)?;
    if offset >= size {
        return Err(Errno::NXIO);
    }
    match seek {
        Seek::Data => match ranges(file, offset, size)? {
            None => Ok(offset),
            Some(ranges) => ranges.first().map(|&(start, _)| start.max(offset)).ok_or(Errno::NXIO),
        },
        Seek::Hole => {
            let mut end = offset;
            loop {
                let Some(ranges) = ranges(file, end, size)? else { return Ok(size) };
                let before = end;
                for &(start, len) in &ranges {
                    if start > end {
                        return Ok(end);
                    }
                    end = start.saturating_add(len).max(end);
                }
                if end >= size || end == before {
                    return Ok(end.min(size));
                }
            }
        }
    }
}

/// The first ranges with data from `offset` on: start and length of each. `None`: they are not known.
fn ranges(file: &File, offset: u64, size: u64) -> Result<Option<Vec<(u64, u64)>>> {
    let mut found = vec![0; 16 * RANGES];
    match calls::control(file, FSCTL_QUERY_ALLOCATED_RANGES, &pair(offset, size - offset), &mut found) {
        Ok(len) => {
            found.truncate(len);
            let ranges = found.chunks_exact(16).filter_map(|range| range.try_into().ok());
            let ranges = ranges.map(u128::from_le_bytes).map(|range| (range as u64, (range >> 64) as u64));
            Ok(Some(ranges.collect()))
        }
        // Also of a file that may not be read.
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Copies between open files; returns the bytes copied, which may be fewer than asked for.
pub(super) fn copy_range(from: (&File, u64), to: (&File, u64), len: u64) -> Result<u64> {
    let same = id_of(from.0)? == id_of(to.0)?;
    let read = |piece: &mut [u8], at| done(from.0.seek_read(piece, at));
    copy::copy_range(from.1, to.1, len, same, read, |rest, at| done(to.0.seek_write(rest, at)))
}
