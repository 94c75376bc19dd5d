//! Space in files where the host has no `fallocate(2)` and no `copy_file_range(2)`: reserved at the end, cleared by whole
//! blocks and zeroes, copied through a buffer.

use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;

use super::super::super::vfs::{Errno, Seek};
use super::super::convert;
use super::super::copy::{self, MAX};
use super::{Result, ours, sys};

/// `FALLOC_FL_KEEP_SIZE` and `FALLOC_FL_PUNCH_HOLE` of Linux.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;

pub(super) fn fallocate(fd: BorrowedFd<'_>, mode: u32, offset: u64, len: u64) -> Result<()> {
    if len == 0 {
        return Err(Errno::INVAL);
    }
    let end = offset.checked_add(len).filter(|&end| end <= MAX).ok_or(Errno::FBIG)?;
    let size = sys::stat(fd)?.attr.size;
    match mode {
        0 | KEEP_SIZE => reserve(fd, offset, end, size, mode == KEEP_SIZE),
        _ if mode == PUNCH_HOLE | KEEP_SIZE => clear(fd, offset, end.min(size)),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Reserves space behind the end of a file of `size` bytes. Holes inside it cannot be filled but by writing, which is the guest's to do.
fn reserve(fd: BorrowedFd<'_>, offset: u64, end: u64, size: u64, keep_size: bool) -> Result<()> {
    if offset < size && seek(fd, offset, Seek::Hole)? < end.min(size) {
        return Err(Errno::OPNOTSUPP);
    }
    if end <= size {
        return Ok(());
    }
    sys::reserve(fd, end - size, keep_size)?;
    if keep_size { Ok(()) } else { ours(rustix::fs::ftruncate(fd, end)) }
}

/// Makes the bytes up to `end` read as zeroes: whole blocks are given back, what is around them is written.
fn clear(fd: BorrowedFd<'_>, offset: u64, end: u64) -> Result<()> {
    if offset >= end {
        return Ok(());
    }
    let block = u64::from(sys::statfs(fd)?.block_size).max(512);
    let (first, last) = (offset.next_multiple_of(block), end / block * block);
    if first >= last {
        return write_zeroes(fd, offset, end);
    }
    sys::punch(fd, first, last - first)?;
    write_zeroes(fd, offset, first)?;
    write_zeroes(fd, last, end)
}

/// Writes zeroes where they belong also in a file that is open for appending.
fn write_zeroes(fd: BorrowedFd<'_>, mut offset: u64, end: u64) -> Result<()> {
    if offset >= end {
        return Ok(());
    }
    let flags = ours(rustix::fs::fcntl_getfl(fd))?;
    let appends = flags.contains(OFlags::APPEND);
    if appends {
        ours(rustix::fs::fcntl_setfl(fd, flags.difference(OFlags::APPEND)))?;
    }
    let zeroes = [0; 4096];
    let mut written = Ok(());
    while offset < end && written.is_ok() {
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(zeroes.len());
        let piece = zeroes.get(..len).unwrap_or(&zeroes);
        match ours(rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, piece, offset))) {
            Ok(0) => written = Err(Errno::IO),
            Ok(done) => offset += done as u64,
            Err(errno) => written = Err(errno),
        }
    }
    if appends {
        ours(rustix::fs::fcntl_setfl(fd, flags))?;
    }
    written
}

/// Finds data or a hole. A file system that does not know has data up to the end of the file.
pub(super) fn seek(fd: BorrowedFd<'_>, offset: u64, seek: Seek) -> Result<u64> {
    if offset > MAX {
        return Err(Errno::NXIO);
    }
    match ours(rustix::fs::seek(fd, convert::seek_from(offset, seek))) {
        Err(Errno::INVAL | Errno::NOTTY | Errno::OPNOTSUPP) => {
            let size = sys::stat(fd)?.attr.size;
            all_data(size, offset, seek)
        }
        found => found,
    }
}

fn all_data(size: u64, offset: u64, seek: Seek) -> Result<u64> {
    match seek {
        _ if offset >= size => Err(Errno::NXIO),
        Seek::Data => Ok(offset),
        Seek::Hole => Ok(size),
    }
}

/// Copies between open files; returns the bytes copied, which may be fewer than asked for.
pub(super) fn copy_range(from: (BorrowedFd<'_>, u64), to: (BorrowedFd<'_>, u64), len: u64) -> Result<u64> {
    if ours(rustix::fs::fcntl_getfl(to.0))?.contains(OFlags::APPEND) {
        return Err(Errno::BADF);
    }
    let same = sys::stat(from.0)?.id == sys::stat(to.0)?.id;
    let read =
        |piece: &mut [u8], at| ours(rustix::io::retry_on_intr(|| rustix::io::pread(from.0, &mut *piece, at)));
    let write = |rest: &[u8], at| ours(rustix::io::retry_on_intr(|| rustix::io::pwrite(to.0, rest, at)));
    copy::copy_range(from.1, to.1, len, same, read, write)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::super::super::copy::COPY_MAX;
    use super::*;

    #[test]
    fn a_hole_has_whole_blocks_and_zeroes_around_them_even_in_a_file_that_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let old: Vec<u8> = (0..100_000_u32).map(|n| (n % 250) as u8 + 1).collect();
        for (append, offset, len) in [
            (false, 5000, 60_000),
            (true, 5000, 60_000),
            (true, 100, 7),
            (false, 4096, 8192),
            (true, 99_000, 1 << 40),
        ] {
            std::fs::write(&path, &old).unwrap();
            let file = OpenOptions::new().read(true).write(!append).append(append).open(&path).unwrap();
            let blocks = file.metadata().unwrap().blocks();
            fallocate(file.as_fd(), PUNCH_HOLE | KEEP_SIZE, offset, len).unwrap();
            let mut wanted = old.clone();
            let end = usize::try_from((offset + len).min(100_000)).unwrap();
            wanted[usize::try_from(offset).unwrap()..end].fill(0);
            assert!(std::fs::read(&path).unwrap() == wanted, "{offset} {len}");
            assert!(len != 60_000 || file.metadata().unwrap().blocks() < blocks);
            assert_eq!(rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::APPEND), append);
        }
    }

    #[test]
    fn space_is_reserved_behind_the_end_and_holes_are_left_to_the_guest() {
        let file = tempfile::tempfile().unwrap();
        fallocate(file.as_fd(), KEEP_SIZE, 0, 1 << 16).unwrap();
        assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks() > 0), (0, true));
        fallocate(file.as_fd(), 0, 1 << 20, 1 << 16).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (1 << 20) + (1 << 16));
        file.set_len(4 << 20).unwrap();
        assert_eq!(fallocate(file.as_fd(), 0, 3 << 20, 1 << 16), Err(Errno::OPNOTSUPP));
        assert_eq!(fallocate(file.as_fd(), 0, 0, 0), Err(Errno::INVAL));
        assert_eq!(fallocate(file.as_fd(), 0, 1, u64::MAX), Err(Errno::FBIG));
        assert_eq!(fallocate(file.as_fd(), 0x10, 0, 1), Err(Errno::OPNOTSUPP), "zeroed in place");
    }

    #[test]
    fn where_holes_are_not_known_all_is_data() {
        assert_eq!(all_data(10, 3, Seek::Data), Ok(3));
        assert_eq!(all_data(10, 3, Seek::Hole), Ok(10));
        assert_eq!(all_data(10, 10, Seek::Hole), Err(Errno::NXIO));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(seek(file.as_fd(), u64::MAX, Seek::Data), Err(Errno::NXIO));
    }

    #[test]
    fn copies_are_cut_and_never_overlap() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(COPY_MAX + 10).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&from, b"end", COPY_MAX + 7).unwrap();
        let (source, target) = (from.as_fd(), to.as_fd());
        assert_eq!(copy_range((source, 10), (target, 0), 1 << 30), Ok(COPY_MAX));
        assert_eq!(copy_range((source, COPY_MAX + 10), (target, COPY_MAX), 1 << 30), Ok(0));
        assert_eq!(copy_range((source, 0), (source, 5), 6), Err(Errno::INVAL));
        assert_eq!(copy_range((source, 0), (source, 5), 5), Ok(5));
        assert_eq!(copy_range((source, u64::MAX), (target, 0), 5), Err(Errno::FBIG));
        let mut copy = Vec::new();
        to.read_to_end(&mut copy).unwrap();
        assert!(copy.len() as u64 == COPY_MAX && copy.ends_with(b"end"));
    }
}
