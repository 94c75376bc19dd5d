//! Calls of macOS that no crate offers in safe Rust.

// A leaf that may use unsafe: fcntl takes structures by pointer, and one function is looked up at run time.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::Mode;

use super::super::super::super::vfs::Errno;
use super::super::super::system::Result;

fn last_error() -> Errno {
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        // So says a file system that does not know the command.
        Some(Errno::NOTTY) => Errno::OPNOTSUPP,
        errno => errno.unwrap_or(Errno::IO),
    }
}

fn offset(value: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| Errno::FBIG)
}

/// Reserves `len` bytes behind the end of a file, all or none; with `keep`, beyond the time that it is open.
pub(in super::super) fn reserve(fd: BorrowedFd<'_>, len: u64, keep: bool) -> Result<()> {
    let mut wish = libc::fstore_t {
        fst_flags: libc::F_ALLOCATEALL | if keep { libc::F_ALLOCATEPERSIST } else { 0 },
        fst_posmode: libc::F_PEOFPOSMODE,
        fst_offset: 0,
        fst_length: offset(len)?,
        fst_bytesalloc: 0,
    };
    // SAFETY: `wish` is a valid structure of this command for the call, which reads it and fills in what was allocated.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_PREALLOCATE, &raw mut wish) };
    if done == -1 { Err(last_error()) } else { Ok(()) }
}

/// Gives whole blocks of a file back, so that they read as zeroes.
pub(in super::super) fn punch(fd: BorrowedFd<'_>, at: u64, len: u64) -> Result<()> {
    let mut hole =
        libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset: offset(at)?, fp_length: offset(len)? };
    // SAFETY: `hole` is a valid structure of this command for the call, which only reads it.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_PUNCHHOLE, &raw mut hole) };
    if done == -1 { Err(last_error()) } else { Ok(()) }
}

/// Makes a pipe. The call is looked up, for macOS has it since version 13; before, this says that it cannot be done.
pub(in super::super) fn make_fifo(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<()> {
    type Call = unsafe extern "C" fn(libc::c_int, *const libc::c_char, libc::mode_t) -> libc::c_int;
    // SAFETY: the name is a C string; the call only looks it up among the libraries that are loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mkfifoat".as_ptr()) };
    if found.is_null() {
        return Err(Errno::PERM);
    }
    // SAFETY: the system's function of this name has this type.
    let call = unsafe { std::mem::transmute::<*mut libc::c_void, Call>(found) };
    // SAFETY: the descriptor is open and the name a C string for the call, which keeps neither.
    let done = unsafe { call(dir.as_raw_fd(), name.as_ptr(), mode.bits()) };
    if done == -1 { Err(last_error()) } else { Ok(()) }
}
