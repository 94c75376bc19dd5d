//! macOS: signals by kqueue, descriptors closed one by one.

// kqueue(2), kevent(2), sigaction(2) and close(2) by number have no safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::FdFlags;

use super::{is_ignored, unblock_all};

/// Whether this is the process's only thread.
pub(super) fn has_one_thread() -> io::Result<bool> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    Ok(crate::os::task(own)?.pti_threadnum == 1)
}

pub(super) fn close_all_but(keep: &[OwnedFd]) {
    // One of them is the directory's own, and is closed by then.
    let Ok(open) = std::fs::read_dir("/dev/fd") else { return };
    let open: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd >= 3 && keep.iter().all(|kept| kept.as_raw_fd() != *fd)) {
        // SAFETY: only the forked child calls this, right after fork: what is closed belongs to objects of the parent's
        // stack that the child never touches or drops, as its caller leaves by exit.
        unsafe { libc::close(fd) };
    }
}

/// The signals that were taken over, as bits.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Takes a signal and does nothing: the queue hears of it all the same, and a program that is executed has its usual effect
/// again, which it would not have of one that is ignored.
extern "C" fn take_it(_: libc::c_int) {}

fn handle(signal: i32, action: libc::sighandler_t) {
    // SAFETY: the actions that are used here are the default one and a function that does nothing; a bad number is an error
    // of the call and nothing else.
    unsafe { libc::signal(signal, action) };
}

/// Gives all signals their usual effect again, after [`Signals`] that are dropped.
pub fn release_signals() {
    let taken = TAKEN.swap(0, Ordering::Relaxed);
    (1..32).filter(|signal| taken & 1 << signal != 0).for_each(|signal| handle(signal, libc::SIG_DFL));
    unblock_all();
}

/// Signals that arrive as readable events instead of by their usual effect.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes these signals over for the whole process; one that is ignored (as by `nohup`) stays ignored.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: no arguments; the descriptor was made for us.
        let queue = unsafe {
            let fd = libc::kqueue();
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        rustix::io::fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
        for &signal in signals.iter().filter(|signal| !is_ignored(**signal)) {
            let ident = usize::try_from(signal).map_err(io::Error::other)?;
            let wanted = libc::kevent {
                ident,
                filter: libc::EVFILT_SIGNAL,
                flags: libc::EV_ADD | libc::EV_CLEAR,
                fflags: 0,
                data: 0,
                udata: null_mut(),
            };
            // SAFETY: one change is given, and no event is asked for.
            if unsafe { libc::kevent(queue.as_raw_fd(), &raw const wanted, 1, null_mut(), 0, null()) } < 0 {
                return Err(io::Error::last_os_error());
            }
            TAKEN.fetch_or(1_u32.unbounded_shl(signal.cast_unsigned()), Ordering::Relaxed);
            handle(signal, take_it as extern "C" fn(libc::c_int) as libc::sighandler_t);
        }
        Ok(Signals(queue))
    }

    /// The next signal that arrived, by number.
    pub fn next_signal(&self) -> Option<i32> {
        let mut event = libc::kevent { ident: 0, filter: 0, flags: 0, fflags: 0, data: 0, udata: null_mut() };
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: no change is given, and there is room for one event.
        let count =
            unsafe { libc::kevent(self.0.as_raw_fd(), null(), 0, &raw mut event, 1, &raw const at_once) };
        (count == 1).then(|| i32::try_from(event.ident).ok()).flatten()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
