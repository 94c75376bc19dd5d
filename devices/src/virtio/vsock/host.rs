//! The host's side of a virtio socket: ports in this process, and Unix sockets in the form that Firecracker's
//! users know.
//!
//! - **In process.** [`VsockHost::listen`] takes the connections that the guest makes to a port of the host;
//!   [`VsockHost::dial`] and [`VsockHost::connect`] make connections to a port of the guest. Either way the
//!   caller holds one end of a socket pair ([`HostStream`]), which can be polled together with anything else.
//! - **By path** ([`VsockHost::at`]). A host program connects to the socket at the path, writes
//!   `CONNECT <guest port>\n`, and reads `OK <host port>\n` once the guest has accepted. When the guest connects to
//!   a port of the host that nobody in this process listens on, `<path>_<port>` is connected to.
//!
//! A handle is cheap to clone and may be used from any thread; the device hears of it by an [`Event`].
//!
//! The guest's end of data is an end of file, and so is its reset: a socket pair knows no other way to end.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::socket::{self, Bound, HostStream};
use super::stream::Stream;
use crate::event::{Event, Source};

/// Connections of the guest that wait in a [`Listener`]; further ones are refused.
const BACKLOG: usize = 128;

/// The host's side of one virtio socket device.
#[derive(Debug, Clone)]
pub struct VsockHost {
    shared: Arc<Shared>,
}

/// What the handles, the listeners and the device share.
#[derive(Debug)]
pub(super) struct Shared {
    ports: Mutex<Ports>,
    /// Rung when there is something in `Ports::dials`.
    wake: Event,
    bound: Option<Bound>,
}

#[derive(Debug, Default)]
struct Ports {
    listeners: HashMap<u32, Arc<Accepts>>,
    dials: VecDeque<Dial>,
    gone: bool,
}

/// A connection that somebody on the host asks for.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) port: u32,
    pub(super) stream: Stream,
    pub(super) caller: Caller,
}

/// Who hears that the guest accepted.
#[derive(Debug)]
pub(super) enum Caller {
    /// Nobody: the guest's own connection, or a [`VsockHost::dial`].
    Nobody,
    /// The other end of the stream: `OK <host port>\n`.
    Line,
    /// A [`VsockHost::connect`]. Dropped unanswered, it says that the connection was reset.
    Waiter(Waiter),
}

/// The answer to a [`VsockHost::connect`].
#[derive(Debug)]
pub(super) struct Waiter(Arc<Answer>);

#[derive(Debug, Default)]
struct Answer {
    given: Mutex<Option<Result<(), io::ErrorKind>>>,
    changed: Condvar,
}

impl Waiter {
    /// Answers, the first time.
    pub(super) fn answer(&self, answer: Result<(), io::ErrorKind>) {
        lock(&self.0.given).get_or_insert(answer);
        self.0.changed.notify_all();
    }

    /// Nobody waits any more.
    fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.answer(Err(io::ErrorKind::ConnectionReset));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VsockHost {
    /// A host side for use in this process only.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Self::build(None)
    }

    /// A host side that is also reached by a Unix socket at `path`. Only its owner may connect; on Windows, whom the folder
    /// lets write its files. The file is removed with the last handle; one left by a process that was killed is replaced.
    ///
    /// # Errors
    /// The socket cannot be made: somebody listens there, the folder is missing, the path has more than about 100
    /// bytes. `Unsupported` on a Windows before 10, version 1803, which has no Unix sockets.
    pub fn at(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::build(Some(Bound::new(path.into())?))
    }

    fn build(bound: Option<Bound>) -> io::Result<Self> {
        let shared = Shared { ports: Mutex::default(), wake: Event::new()?, bound };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Takes the guest's connections to `port` of the host (context id 2) from now on, until the listener is
    /// dropped.
    ///
    /// # Errors
    /// `AddrInUse` when the port has a listener; or no descriptor is left.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let accepts =
            Arc::new(Accepts { inner: Mutex::default(), changed: Condvar::new(), event: Event::new()? });
        let mut ports = lock(&self.shared.ports);
        if ports.listeners.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        if ports.gone {
            accepts.close();
        }
        ports.listeners.insert(port, Arc::clone(&accepts));
        drop(ports);
        Ok(Listener { port, accepts, shared: Arc::clone(&self.shared) })
    }

    /// Connects to `port` of the guest without waiting: what is written goes to the guest once it has accepted.
    /// When it refuses, the stream ends. The stream is nonblocking.
    ///
    /// # Errors
    /// `NotConnected` when the device is gone; or no descriptor is left.
    pub fn dial(&self, port: u32) -> io::Result<HostStream> {
        self.shared.dial(port, Caller::Nobody)
    }

    /// Connects to `port` of the guest and waits until it has accepted, `timeout` at most. The stream is
    /// nonblocking.
    ///
    /// # Errors
    /// `ConnectionRefused` when the guest refuses, `TimedOut` when it does not answer, `ConnectionReset` when its
    /// driver resets the device or the VM ends, `NotConnected` when the device is gone already.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<HostStream> {
        let answer = Arc::<Answer>::default();
        let stream = self.shared.dial(port, Caller::Waiter(Waiter(Arc::clone(&answer))))?;
        let (given, _) = answer
            .changed
            .wait_timeout_while(lock(&answer.given), timeout, |given| given.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match *given {
            Some(Ok(())) => Ok(stream),
            Some(Err(kind)) => Err(kind.into()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Shared {
    fn dial(&self, port: u32, caller: Caller) -> io::Result<HostStream> {
        let (ours, theirs) = pair()?;
        let mut ports = lock(&self.ports);
        if ports.gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        ports.dials.push_back(Dial { port, stream: ours, caller });
        drop(ports);
        self.wake.signal();
        Ok(theirs)
    }

    /// Rung when there are dials.
    pub(super) fn wake(&self) -> &Event {
        &self.wake
    }

    /// The dials since the last call, without those that nobody waits for any more.
    pub(super) fn take_dials(&self) -> VecDeque<Dial> {
        let mut dials = std::mem::take(&mut lock(&self.ports).dials);
        dials.retain(|dial| !matches!(&dial.caller, Caller::Waiter(waiter) if waiter.is_abandoned()));
        dials
    }

    /// The listening socket of the path form.
    pub(super) fn listener(&self) -> Option<Source<'_>> {
        self.bound.as_ref().map(Bound::source)
    }

    /// The next host program that connected to the path.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        let Some(bound) = &self.bound else { return Err(io::ErrorKind::WouldBlock.into()) };
        Stream::new(bound.accept()?)
    }

    /// Connects the guest to `port` of the host.
    ///
    /// # Errors
    /// Nobody listens there, or its queue is full.
    pub(super) fn offer(&self, port: u32) -> io::Result<Stream> {
        if let Some(accepts) = lock(&self.ports).listeners.get(&port) {
            return accepts.offer();
        }
        let Some(bound) = &self.bound else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        Stream::new(bound.connect(port)?)
    }

    /// The device is gone: nobody is to wait for it any more.
    pub(super) fn close(&self) {
        let mut ports = lock(&self.ports);
        ports.gone = true;
        let dials = std::mem::take(&mut ports.dials);
        ports.listeners.values().for_each(|accepts| accepts.close());
        drop(ports);
        drop(dials);
    }
}

fn pair() -> io::Result<(Stream, HostStream)> {
    let (ours, theirs) = socket::pair()?;
    Ok((Stream::new(ours)?, theirs))
}

/// The connections of the guest that wait for [`Listener::accept`].
#[derive(Debug)]
struct Accepts {
    inner: Mutex<Waiting>,
    changed: Condvar,
    /// Rings while streams wait, or the device is gone.
    event: Event,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: VecDeque<HostStream>,
    gone: bool,
}

impl Accepts {
    fn offer(&self) -> io::Result<Stream> {
        let mut waiting = lock(&self.inner);
        if waiting.streams.len() >= BACKLOG {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = pair()?;
        waiting.streams.push_back(theirs);
        self.event.signal();
        self.changed.notify_one();
        Ok(ours)
    }

    fn close(&self) {
        lock(&self.inner).gone = true;
        self.event.signal();
        self.changed.notify_all();
    }
}

/// Takes the guest's connections to one port of the host.
///
/// Its source (on Unix its descriptor) is readable while a connection waits, and for ever when the device is gone.
#[derive(Debug)]
pub struct Listener {
    port: u32,
    accepts: Arc<Accepts>,
    shared: Arc<Shared>,
}

impl Listener {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits for the guest's next connection, `timeout` at most (`None`: for ever). The stream is nonblocking.
    ///
    /// # Errors
    /// `TimedOut`, or `NotConnected` when the device is gone.
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<HostStream> {
        let nothing = |waiting: &mut Waiting| waiting.streams.is_empty() && !waiting.gone;
        let waiting = lock(&self.accepts.inner);
        let changed = &self.accepts.changed;
        let waiting = match timeout {
            None => changed.wait_while(waiting, nothing).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                changed
                    .wait_timeout_while(waiting, timeout, nothing)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        self.next(waiting)?.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// The guest's next connection, if one waits. The stream is nonblocking.
    ///
    /// # Errors
    /// `NotConnected` when the device is gone.
    pub fn try_accept(&self) -> io::Result<Option<HostStream>> {
        self.next(lock(&self.accepts.inner))
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        self.accepts.event.source()
    }

    fn next(&self, mut waiting: MutexGuard<'_, Waiting>) -> io::Result<Option<HostStream>> {
        let stream = waiting.streams.pop_front();
        if stream.is_none() && waiting.gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if waiting.streams.is_empty() && !waiting.gone {
            self.accepts.event.take();
        }
        Ok(stream)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.accepts.event.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.shared.ports).listeners.remove(&self.port);
    }
}
