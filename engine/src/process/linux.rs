//! Linux: signals by signalfd, descriptors closed by range.

// signalfd(2), sigprocmask(2), close_range(2) and unshare(2) have no safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{empty_set, is_ignored, unblock_all};

/// Whether this is the process's only thread. The kernel tells when it is asked to take the thread out of its group, which is
/// nothing to do where it is alone (`EINVAL` else): that is hundreds of instructions, a look into /proc tens of thousands.
pub(super) fn has_one_thread() -> io::Result<bool> {
    // SAFETY: with this flag the call changes nothing: it fails, or there is nobody to part from.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    // Some containers refuse the call whatever it asks for.
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

pub(super) fn close_all_but(keep: &[OwnedFd]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first: u32 = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3).chain([u32::MAX]) {
        if let Some(last) = fd.checked_sub(1).filter(|last| *last >= first) {
            // SAFETY: only the forked child calls this, right after fork: what is closed belongs to objects of the
            // parent's stack that the child never touches or drops, as its caller leaves by exit.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// Gives all signals their usual effect again, after [`Signals`] that are dropped.
pub fn release_signals() {
    unblock_all();
}

/// Signals that arrive as readable events instead of by their usual effect.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes these signals over for the whole process; one that is ignored (as by `nohup`) stays ignored. Call it
    /// before threads are made: they inherit it.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        let mut set = empty_set();
        for &signal in signals.iter().filter(|signal| !is_ignored(**signal)) {
            // SAFETY: `set` is a valid set; a bad number is an error of the call and nothing else.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        // SAFETY: `set` is valid; -1 asks for a new descriptor, which is owned by nobody else.
        unsafe {
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal that arrived, by number.
    pub fn next_signal(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut info).ok()?;
        let number = info.first_chunk::<4>().filter(|_| read == info.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
