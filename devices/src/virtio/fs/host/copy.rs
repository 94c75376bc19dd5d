//! Copying between open files through a buffer, where the host has no `copy_file_range(2)`.

use super::super::vfs::Errno;
use super::system::Result;

/// The longest file.
pub(super) const MAX: u64 = i64::MAX.cast_unsigned();

/// The most bytes that one request copies, so that others are served in between.
pub(super) const COPY_MAX: u64 = 4 << 20;
const BUFFER: usize = 256 * 1024;

/// Copies `len` bytes from one offset to another by `read` and `write`, which are given a buffer and an offset and tell how
/// many bytes it was; `same` says that both are one file. Returns the bytes copied, which may be fewer than asked for.
pub(super) fn copy_range(
    from: u64,
    to: u64,
    len: u64,
    same: bool,
    read: impl Fn(&mut [u8], u64) -> Result<usize>,
    write: impl Fn(&[u8], u64) -> Result<usize>,
) -> Result<u64> {
    let ends = |at: u64| at.checked_add(len).filter(|&end| end <= MAX);
    let (from_end, to_end) = (ends(from).ok_or(Errno::FBIG)?, ends(to).ok_or(Errno::FBIG)?);
    if same && from < to_end && to < from_end {
        return Err(Errno::INVAL);
    }
    let len = len.min(COPY_MAX);
    let mut buffer = vec![0; BUFFER];
    let mut copied = 0;
    while copied < len {
        let most = usize::try_from(len - copied).unwrap_or(usize::MAX).min(BUFFER);
        let piece = buffer.get_mut(..most).ok_or(Errno::IO)?;
        let done = read(piece, from + copied)
            .and_then(|length| write_all(piece.get(..length).unwrap_or_default(), to + copied, &write));
        match done {
            Ok(0) => break,
            Ok(done) => copied += done,
            Err(_) if copied > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(copied)
}

/// Writes as much as there is room for.
fn write_all(data: &[u8], at: u64, write: impl Fn(&[u8], u64) -> Result<usize>) -> Result<u64> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match write(rest, at + done as u64) {
            Ok(0) => break,
            Ok(step) => done += step,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done as u64)
}
