//! The few things about processes that need `unsafe`: forking without exec, signals as a descriptor, and freed memory.
//!
//! The command line forks its monitor (`crate::monitor`) and, with a terminal, a guard that restores it.

// fork(2), sigprocmask(2), sigaction(2) and malloc_trim(3) have no safe wrapper among our dependencies.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as host;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as host;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

pub use host::{Signals, release_signals};

/// Gives the pages of freed memory back to the host.
pub(crate) fn give_memory_back() {
    // SAFETY: it takes no pointer, and takes the allocator's locks as every allocation does.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The caller; the child's process id.
    Parent(i32),
    /// The new process, with the descriptors it kept.
    Child(Vec<OwnedFd>),
}

/// Forks without exec. The child leads a session and process group of its own, has default signal handling and no
/// descriptor but `keep` and the standard three; in the parent `keep` is closed. The child must end by
/// [`std::process::exit`] and never return into the parent's work.
///
/// # Errors
/// If this process has more than one thread (the others would be missing in the child with their locks held), or the
/// system refuses.
pub fn fork(keep: Vec<OwnedFd>) -> io::Result<Fork> {
    if !host::has_one_thread()? {
        return Err(io::Error::other("fork with several threads"));
    }
    // SAFETY: the process has one thread, checked above, so that no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let _ = rustix::process::setsid();
            release_signals();
            host::close_all_but(&keep);
            Ok(Fork::Child(keep))
        }
        child => Ok(Fork::Parent(child)),
    }
}

/// Makes of a process that was executed for it, and has opened nothing yet, what [`fork`] makes of a forked one.
#[cfg(any(target_os = "macos", test))]
pub(crate) fn stand_alone(keep: &OwnedFd) {
    let _ = rustix::process::setsid();
    unblock_all();
    host::close_all_but(std::slice::from_ref(keep));
}

/// Ends the standard streams of a forked process: input and output are /dev/null, errors go to `log` or nowhere.
///
/// # Errors
/// If /dev/null cannot be opened.
pub fn leave_terminal(log: Option<&File>) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(log.unwrap_or(&null))?;
    Ok(())
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and sigemptyset makes any bytes a valid set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        set
    }
}

fn unblock_all() {
    let set = empty_set();
    // SAFETY: `set` is a valid set, and no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction with no new action only fills `old`, which is plain data.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}
