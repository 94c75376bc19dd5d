//! The few things about processes that need `unsafe`: forking without exec, signals as a descriptor, and freed memory.
//!
//! The command line forks its monitor (`crate::monitor`) and, with a terminal, a guard that restores it.

// fork(2), sigprocmask(2), signalfd(2), close_range(2) and malloc_trim(3) have no safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
    if !has_one_thread()? {
        return Err(io::Error::other("fork with several threads"));
    }
    // SAFETY: the process has one thread, checked above, so that no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let _ = rustix::process::setsid();
            unblock_all();
            close_all_but(&keep);
            Ok(Fork::Child(keep))
        }
        child => Ok(Fork::Parent(child)),
    }
}

/// Whether this is the process's only thread. The kernel tells when it is asked to take the thread out of its group, which is
/// nothing to do where it is alone (`EINVAL` else): that is hundreds of instructions, a look into /proc tens of thousands.
fn has_one_thread() -> io::Result<bool> {
    // SAFETY: with this flag the call changes nothing: it fails, or there is nobody to part from.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    // Some containers refuse the call whatever it asks for.
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
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

fn close_all_but(keep: &[OwnedFd]) {
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

fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction with no new action only fills `old`, which is plain data.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}
