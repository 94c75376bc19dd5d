//! Events and timers on objects that the kernel signals, waited for together.
//!
//! All are of the kind that stays signalled until it is reset, so that a wait takes nothing away: level-triggered, as
//! elsewhere. A wait takes 64 of them at most, which is enough for doorbells and timers; all sockets of a poller signal
//! one, see `sockets`.

// A leaf that may use unsafe: objects are made, signalled and waited for by calls of the system.
#![allow(unsafe_code)]

mod sockets;

use std::io;
use std::os::windows::io::{
    AsHandle, AsRawHandle, BorrowedHandle, BorrowedSocket, FromRawHandle, OwnedHandle,
};
use std::ptr::null;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{HANDLE, WAIT_FAILED, WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows_sys::Win32::System::SystemServices::MAXIMUM_WAIT_OBJECTS;
use windows_sys::Win32::System::Threading::{
    CREATE_WAITABLE_TIMER_HIGH_RESOLUTION, CREATE_WAITABLE_TIMER_MANUAL_RESET, CancelWaitableTimer,
    CreateEventW, CreateWaitableTimerExW, INFINITE, ResetEvent, SetEvent, SetWaitableTimer, TIMER_ALL_ACCESS,
    WaitForMultipleObjects, WaitForSingleObject,
};

use self::sockets::Sockets;
use super::{Ready, Token};

/// A host source that a poller can watch.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// An object that stays signalled until it is reset.
    Object(BorrowedHandle<'a>),
    /// A socket. It does not block from the first time that it is watched, and one poller watches it at a time.
    Socket(BorrowedSocket<'a>),
}

impl<'a> From<BorrowedSocket<'a>> for Source<'a> {
    fn from(socket: BorrowedSocket<'a>) -> Self {
        Self::Socket(socket)
    }
}

/// An object that was made for us, or why there is none.
fn adopt(made: HANDLE) -> io::Result<OwnedHandle> {
    if made.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is new and ours.
    Ok(unsafe { OwnedHandle::from_raw_handle(made) })
}

fn is_signalled(object: &impl AsRawHandle) -> bool {
    // SAFETY: the handle is open; the call does not wait.
    unsafe { WaitForSingleObject(object.as_raw_handle(), 0) == WAIT_OBJECT_0 }
}

fn checked(done: i32) -> io::Result<()> {
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A doorbell: rung from any thread, any number of times, heard at least once by whoever waits on it.
#[derive(Debug, Clone)]
pub struct Event(Arc<OwnedHandle>);

impl Event {
    /// A doorbell that has not been rung.
    ///
    /// # Errors
    /// No handle is left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no name and no attributes; reset by hand, not signalled.
        adopt(unsafe { CreateEventW(null(), 1, 0, null()) }).map(|event| Self(Arc::new(event)))
    }

    /// Rings the doorbell. Never blocks.
    pub fn signal(&self) {
        // SAFETY: the handle is open, and of an event: there is no error.
        unsafe { SetEvent(self.0.as_raw_handle()) };
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        // One that rings between the two calls is heard by who takes: what it announces came before.
        let rang = is_signalled(&*self.0);
        if rang {
            // SAFETY: as in `signal`.
            unsafe { ResetEvent(self.0.as_raw_handle()) };
        }
        rang
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        Source::Object(self.0.as_handle())
    }
}

/// An alarm clock that rings once, to be watched as a host source: whoever has deadlines need not poll for them.
#[derive(Debug)]
pub struct Timer(OwnedHandle);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No handle is left.
    pub fn new() -> io::Result<Self> {
        let make = |flags| {
            // SAFETY: no name and no attributes.
            adopt(unsafe { CreateWaitableTimerExW(null(), null(), flags, TIMER_ALL_ACCESS) })
        };
        // Before Windows 10, version 1803, timers are as coarse as the system's tick.
        make(CREATE_WAITABLE_TIMER_MANUAL_RESET | CREATE_WAITABLE_TIMER_HIGH_RESOLUTION)
            .or_else(|_| make(CREATE_WAITABLE_TIMER_MANUAL_RESET))
            .map(Self)
    }

    /// Rings after `delay` (at once, when it is zero), or never for `None`. Replaces what was set before.
    ///
    /// # Errors
    /// The error of `SetWaitableTimer`.
    pub fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        // In units of 100 ns, negative from now on; rounded up.
        let due = delay.map(|delay| i64::try_from(delay.as_nanos().div_ceil(100)).unwrap_or(i64::MAX));
        let due = -due.unwrap_or(i64::MAX);
        // SAFETY: the handle is open, the time outlives the call, and there is nothing to call back. Setting a timer
        // takes its ringing away, cancelling does not.
        checked(unsafe { SetWaitableTimer(self.0.as_raw_handle(), &raw const due, 0, None, null(), 0) })?;
        if delay.is_none() {
            // SAFETY: the handle is open.
            checked(unsafe { CancelWaitableTimer(self.0.as_raw_handle()) })?;
        }
        Ok(())
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        is_signalled(&self.0) && self.set(None).is_ok()
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        Source::Object(self.0.as_handle())
    }
}

/// The objects that may be watched, without the one of the sockets.
const MOST: usize = MAXIMUM_WAIT_OBJECTS as usize - 1;

/// Waits for events and host sources, level-triggered.
#[derive(Debug, Default)]
pub struct Poller {
    /// Watched, in the order of [`Self::tokens`]. Whoever watches a source takes it away before it is closed.
    handles: Vec<HANDLE>,
    tokens: Vec<Token>,
    /// Once there was one.
    sockets: Option<Sockets>,
}

// SAFETY: a handle is a number that names an object of the whole process, from any thread.
unsafe impl Send for Poller {}

impl Poller {
    /// A poller that watches nothing yet.
    ///
    /// # Errors
    /// None here.
    pub fn new() -> io::Result<Self> {
        Ok(Self::default())
    }

    /// Starts watching `source` under `token`. A source is watched once; [`Self::unwatch`] it before it is closed.
    ///
    /// # Errors
    /// The source is watched already, there are too many objects, or more is asked of one than whether it is signalled
    /// (`Ready::READ`).
    pub fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        let object = match source {
            Source::Object(object) => object,
            Source::Socket(socket) => {
                if self.sockets.is_none() {
                    self.sockets = Some(Sockets::new()?);
                }
                let sockets = self.sockets.as_mut().ok_or(io::ErrorKind::NotFound)?;
                return sockets.watch(socket, token, interest);
            }
        };
        if self.find(object).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if interest != Ready::READ {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if self.handles.len() >= MOST {
            return Err(io::Error::other(format!(
                "a device cannot wait for more than {MOST} things besides sockets on Windows"
            )));
        }
        self.handles.push(object.as_raw_handle());
        self.tokens.push(token);
        Ok(())
    }

    /// Changes what is waited for on a watched source.
    ///
    /// # Errors
    /// The source is not watched, or more is asked than whether it is signalled.
    pub fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        if let (Source::Socket(socket), Some(sockets)) = (source, &mut self.sockets) {
            return sockets.rewatch(socket, token, interest);
        }
        self.unwatch(source)?;
        self.watch(source, token, interest)
    }

    /// Stops watching a source.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn unwatch(&mut self, source: Source<'_>) -> io::Result<()> {
        let object = match (source, &mut self.sockets) {
            (Source::Object(object), _) => object,
            (Source::Socket(socket), Some(sockets)) => return sockets.unwatch(socket),
            (Source::Socket(_), None) => return Err(io::ErrorKind::NotFound.into()),
        };
        let at = self.find(object).ok_or(io::ErrorKind::NotFound)?;
        self.handles.remove(at);
        self.tokens.remove(at);
        Ok(())
    }

    /// Waits until something is ready or `timeout` has passed (`None`: for ever) and replaces the contents of
    /// `ready`, which stays empty on a timeout.
    ///
    /// # Errors
    /// The wait itself failed: a host fault.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        ready.clear();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(sockets) = &mut self.sockets {
                sockets.ask(ready)?;
            }
            let left = match deadline {
                _ if !ready.is_empty() => Some(Duration::ZERO),
                deadline => deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            };
            self.wait_objects(left, ready)?;
            // Sockets may have signalled for what nobody waits for.
            if !ready.is_empty() || left == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    /// Waits for the objects, that of the sockets among them, and adds the others that are signalled.
    fn wait_objects(&self, timeout: Option<Duration>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        let milliseconds = timeout.map_or(INFINITE, |t| {
            // Rounded up, so that a short timeout does not become a busy loop.
            u32::try_from(t.as_nanos().div_ceil(1_000_000)).map_or(INFINITE - 1, |ms| ms.min(INFINITE - 1))
        });
        let mut all = self.handles.clone();
        all.extend(self.sockets.iter().map(|sockets| sockets.news().as_raw_handle()));
        let count = u32::try_from(all.len()).unwrap_or(MAXIMUM_WAIT_OBJECTS);
        // SAFETY: there are `count` handles; who watches keeps them open.
        let first = unsafe { WaitForMultipleObjects(count, all.as_ptr(), 0, milliseconds) };
        match first {
            WAIT_FAILED => return Err(io::Error::last_os_error()),
            WAIT_TIMEOUT => return Ok(()),
            _ => {}
        }
        // It names the first one only; the others are asked, so that none waits for those before it.
        let first = (first - WAIT_OBJECT_0) as usize;
        for (at, (handle, token)) in self.handles.iter().zip(&self.tokens).enumerate().skip(first) {
            // SAFETY: the handle is open, see above; the call does not wait.
            if at == first || unsafe { WaitForSingleObject(*handle, 0) } == WAIT_OBJECT_0 {
                ready.push((*token, Ready::READ));
            }
        }
        Ok(())
    }

    fn find(&self, object: BorrowedHandle<'_>) -> Option<usize> {
        self.handles.iter().position(|handle| *handle == object.as_raw_handle())
    }
}
