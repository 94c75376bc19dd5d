//! Windows.

// A leaf that may use unsafe: random bytes come from a call that takes a pointer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::windows::fs::FileExt as _;
use std::ptr::null_mut;

use windows_sys::Win32::Security::Cryptography::{BCRYPT_USE_SYSTEM_PREFERRED_RNG, BCryptGenRandom};

/// Fills `bytes` with random ones, of the quality that keys need.
///
/// # Errors
/// The system has none.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    for part in bytes.chunks_mut(1 << 20) {
        let len = u32::try_from(part.len()).unwrap_or(0);
        // SAFETY: the part has `len` bytes, and the system's generator needs no handle.
        let status =
            unsafe { BCryptGenRandom(null_mut(), part.as_mut_ptr(), len, BCRYPT_USE_SYSTEM_PREFERRED_RNG) };
        if status < 0 {
            return Err(io::Error::other(format!("BCryptGenRandom gave {status:#x}")));
        }
    }
    Ok(())
}

/// Gives the blocks of a range back, so that it reads as zeroes; false where that cannot be done. Here it cannot: a
/// range of a file that is not sparse would be written with zeroes.
pub(crate) fn punch_hole(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Zeroes a range and keeps its blocks; false where that cannot be done but by writing.
pub(crate) fn zero_range(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Reads exactly `into` from `file` at `offset`.
///
/// # Errors
/// The error of `ReadFile`, or the file is too short.
pub fn read_exact_at(file: &File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        let done = file.seek_read(into, offset)?;
        let rest = into.get_mut(done..).filter(|_| done > 0);
        into = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        offset += done as u64;
    }
    Ok(())
}

/// Writes all of `from` to `file` at `offset`.
///
/// # Errors
/// The error of `WriteFile`.
pub fn write_all_at(file: &File, mut from: &[u8], mut offset: u64) -> io::Result<()> {
    while !from.is_empty() {
        let done = file.seek_write(from, offset)?;
        let rest = from.get(done..).filter(|_| done > 0);
        from = rest.ok_or(io::ErrorKind::WriteZero)?;
        offset += done as u64;
    }
    Ok(())
}
