//! Events on pipes, polling and timers by kqueue.
//!
//! kqueue tells reading and writing apart, and the end of each direction with it. What is not asked for is watched all the
//! same, with a low-water mark that no amount of data reaches: then only the end is told.

// A leaf that may use unsafe: kevent takes arrays by pointer.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::FdFlags;

use super::{Ready, Token};

/// A host source that a poller can watch.
pub type Source<'a> = BorrowedFd<'a>;

/// The most events that one wait takes.
const EVENTS: usize = 64;
/// A low-water mark that is never reached.
const NEVER: isize = i32::MAX as isize;

fn kqueue() -> io::Result<OwnedFd> {
    // SAFETY: no arguments.
    let fd = unsafe { libc::kqueue() };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Hands changes over and takes events, waiting for as long as `timeout`.
fn kevent(
    queue: &OwnedFd,
    changes: &[libc::kevent],
    events: &mut [libc::kevent],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let limit = timeout.as_ref().map_or(null(), |timeout| &raw const *timeout);
    let count = |len: usize| libc::c_int::try_from(len).unwrap_or(libc::c_int::MAX);
    // SAFETY: both arrays have as many items as is said, and the time outlives the call.
    let found = unsafe {
        libc::kevent(
            queue.as_raw_fd(),
            changes.as_ptr(),
            count(changes.len()),
            events.as_mut_ptr(),
            count(events.len()),
            limit,
        )
    };
    usize::try_from(found).map_err(|_| io::Error::last_os_error())
}

fn change(ident: usize, filter: i16, flags: u16, fflags: u32, data: isize, token: Token) -> libc::kevent {
    // The token travels as a pointer that is never followed.
    libc::kevent {
        ident,
        filter,
        flags,
        fflags,
        data,
        udata: std::ptr::without_provenance_mut(token as usize),
    }
}

const NONE: libc::kevent =
    libc::kevent { ident: 0, filter: 0, flags: 0, fflags: 0, data: 0, udata: null_mut() };

/// A doorbell: rung from any thread, any number of times, heard at least once by whoever waits on it.
#[derive(Debug, Clone)]
pub struct Event(Arc<(OwnedFd, OwnedFd)>);

impl Event {
    /// A doorbell that has not been rung.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe()?;
        for end in [&reader, &writer] {
            rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Self(Arc::new((reader, writer))))
    }

    /// Rings the doorbell. Never blocks.
    pub fn signal(&self) {
        // The only error is a full pipe, and then it is already ringing.
        let _ = rustix::io::write(&self.0.1, &[1]);
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        let mut bytes = [0; 512];
        let mut rang = false;
        while let Ok(count @ 1..) = rustix::io::read(&self.0.0, &mut bytes) {
            rang = true;
            if count < bytes.len() {
                break;
            }
        }
        rang
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        self.0.0.as_fd()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// An alarm clock that rings once, to be watched as a host source: whoever has deadlines need not poll for them.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        kqueue().map(Self)
    }

    /// Rings after `delay` (at once, when it is zero), or never for `None`. Replaces what was set before.
    ///
    /// # Errors
    /// The error of `kevent(2)`.
    pub fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        // What rang and what is set goes first; there may be neither.
        self.take();
        let delete = change(0, libc::EVFILT_TIMER, libc::EV_DELETE, 0, 0, 0);
        let _ = kevent(&self.0, &[delete], &mut [], Some(Duration::ZERO));
        let Some(delay) = delay else { return Ok(()) };
        let nanos = isize::try_from(delay.as_nanos().max(1)).unwrap_or(isize::MAX);
        let flags = libc::EV_ADD | libc::EV_ONESHOT;
        let add = change(0, libc::EVFILT_TIMER, flags, libc::NOTE_NSECONDS, nanos, 0);
        kevent(&self.0, &[add], &mut [], Some(Duration::ZERO)).map(drop)
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        matches!(kevent(&self.0, &[], &mut [NONE], Some(Duration::ZERO)), Ok(1))
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for events and host sources, level-triggered.
#[derive(Debug)]
pub struct Poller {
    queue: OwnedFd,
    /// The watched ones, and whether they can be written at all.
    sources: HashMap<RawFd, bool>,
}

impl Poller {
    /// A poller that watches nothing yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: kqueue()?, sources: HashMap::new() })
    }

    /// Starts watching `source` for `interest` under `token`. A source is watched once; [`Self::unwatch`] it
    /// before it is closed.
    ///
    /// # Errors
    /// The source is watched already or cannot be waited for.
    pub fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        if self.sources.contains_key(&source.as_raw_fd()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.register(source.as_raw_fd(), token, interest)
    }

    /// Changes what is waited for on a watched source.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        if !self.sources.contains_key(&source.as_raw_fd()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.register(source.as_raw_fd(), token, interest)
    }

    /// Stops watching a source.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn unwatch(&mut self, source: Source<'_>) -> io::Result<()> {
        let fd = source.as_raw_fd();
        if self.sources.remove(&fd).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for filter in [libc::EVFILT_READ, libc::EVFILT_WRITE] {
            let delete = change(fd as usize, filter, libc::EV_DELETE, 0, 0, 0);
            // One of them may never have been there.
            let _ = kevent(&self.queue, &[delete], &mut [], Some(Duration::ZERO));
        }
        Ok(())
    }

    /// Waits until something is ready or `timeout` has passed (`None`: for ever) and replaces the contents of
    /// `ready`, which stays empty on a timeout or an interrupted wait.
    ///
    /// # Errors
    /// The wait itself failed: a host fault.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        ready.clear();
        let mut events = [NONE; EVENTS];
        let found = match kevent(&self.queue, &[], &mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        };
        for event in events.iter().take(found) {
            let token = event.udata.addr() as Token;
            let ended = event.flags & (libc::EV_EOF | libc::EV_ERROR) != 0;
            let reads = event.filter == libc::EVFILT_READ;
            let writable =
                RawFd::try_from(event.ident).ok().and_then(|fd| self.sources.get(&fd)) == Some(&true);
            let new = Ready {
                read: reads || ended,
                write: !reads && !ended,
                // The end of what can only be read is the end of it.
                hang_up: ended && (!reads || !writable),
            };
            match ready.iter_mut().find(|(known, _)| *known == token) {
                Some((_, known)) => {
                    known.read |= new.read;
                    known.write |= new.write;
                    known.hang_up |= new.hang_up;
                }
                None => ready.push((token, new)),
            }
        }
        Ok(())
    }

    fn register(&mut self, fd: RawFd, token: Token, interest: Ready) -> io::Result<()> {
        let add = |filter, wanted: bool| {
            let (fflags, mark) = if wanted { (0, 0) } else { (libc::NOTE_LOWAT, NEVER) };
            let add = change(fd as usize, filter, libc::EV_ADD, fflags, mark, token);
            kevent(&self.queue, &[add], &mut [], Some(Duration::ZERO))
        };
        let read = add(libc::EVFILT_READ, interest.read);
        let write = add(libc::EVFILT_WRITE, interest.write);
        // What can be read or written only has one filter; the one that was asked for must be there.
        match (read, write) {
            (Err(error), _) if interest.read => return Err(error),
            (_, Err(error)) if interest.write => return Err(error),
            (Err(error), Err(_)) => return Err(error),
            (_, write) => self.sources.insert(fd, write.is_ok()),
        };
        Ok(())
    }
}
