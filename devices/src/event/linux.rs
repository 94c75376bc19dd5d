//! Events on eventfd, polling by the `event-manager` crate.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use rustix::event::EventfdFlags;
use rustix::time::{TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use vmm_sys_util::epoll::EventSet;

use super::{Ready, Token};

/// A host source that a poller can watch.
pub type Source<'a> = BorrowedFd<'a>;

/// A doorbell: rung from any thread, any number of times, heard at least once by whoever waits on it.
#[derive(Debug, Clone)]
pub struct Event(Arc<rustix::fd::OwnedFd>);

impl Event {
    /// A doorbell that has not been rung.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Rings the doorbell. Never blocks.
    pub fn signal(&self) {
        // The only error is a full counter, and then it is already ringing.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// To be watched by a poller.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An alarm clock that rings once, to be watched as a host source: whoever has deadlines need not poll for them.
#[derive(Debug)]
pub struct Timer(rustix::fd::OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Rings after `delay` (at once, when it is zero), or never for `None`. Replaces what was set before.
    ///
    /// # Errors
    /// The error of `timerfd_settime(2)`.
    pub fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        let none = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = match delay {
            // All zeroes would unset the timer.
            Some(delay) => rustix::time::Timespec::try_from(delay.max(Duration::from_nanos(1)))
                .map_err(|_| io::ErrorKind::InvalidInput)?,
            None => none,
        };
        let value = rustix::time::Itimerspec { it_interval: none, it_value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Takes the ringing away; true when it was ringing.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
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

/// Collects what the event manager found ready.
#[derive(Default)]
struct Found(Vec<(Token, Ready)>);

impl MutEventSubscriber for Found {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let set = events.event_set();
        let ready = Ready {
            read: set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR),
            write: set.contains(EventSet::OUT),
            hang_up: set.intersects(EventSet::HANG_UP | EventSet::ERROR),
        };
        self.0.push((events.data(), ready));
    }

    fn init(&mut self, _: &mut EventOps<'_>) {}
}

/// Waits for events and host sources, level-triggered.
pub struct Poller {
    manager: EventManager<Found>,
    id: SubscriberId,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

impl Poller {
    /// A poller that watches nothing yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let mut manager = EventManager::new_with_capacity(64).map_err(io::Error::other)?;
        let id = manager.add_subscriber(Found::default());
        Ok(Self { manager, id })
    }

    /// Starts watching `source` for `interest` under `token`. A source is watched once; [`Self::unwatch`] it
    /// before it is closed.
    ///
    /// # Errors
    /// The source is watched already or cannot be waited for (a regular file).
    pub fn watch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        self.ops()?.add(events(source, token, interest)).map_err(io::Error::other)
    }

    /// Changes what is waited for on a watched source.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn rewatch(&mut self, source: Source<'_>, token: Token, interest: Ready) -> io::Result<()> {
        self.ops()?.modify(events(source, token, interest)).map_err(io::Error::other)
    }

    /// Stops watching a source.
    ///
    /// # Errors
    /// The source is not watched.
    pub fn unwatch(&mut self, source: Source<'_>) -> io::Result<()> {
        self.ops()?.remove(events(source, 0, Ready::NONE)).map_err(io::Error::other)
    }

    /// Waits until something is ready or `timeout` has passed (`None`: for ever) and replaces the contents of
    /// `ready`, which stays empty on a timeout or an interrupted wait.
    ///
    /// # Errors
    /// The wait itself failed: a host fault.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        let milliseconds = timeout.map_or(-1, |t| {
            // Rounded up, so that a short timeout does not become a busy loop.
            i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        ready.clear();
        self.manager.run_with_timeout(milliseconds).map_err(io::Error::other)?;
        let found = self.manager.subscriber_mut(self.id).map_err(io::Error::other)?;
        ready.append(&mut found.0);
        Ok(())
    }

    fn ops(&mut self) -> io::Result<EventOps<'_>> {
        self.manager.event_ops(self.id).map_err(io::Error::other)
    }
}

fn events(source: Source<'_>, token: Token, interest: Ready) -> Events {
    let mut set = EventSet::empty();
    set.set(EventSet::IN | EventSet::READ_HANG_UP, interest.read);
    set.set(EventSet::OUT, interest.write);
    Events::with_data_raw(source.as_raw_fd(), token, set)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_source_is_ready_for_what_was_asked_and_for_hang_up() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.watch(a.as_fd(), 1, Ready::WRITE).unwrap();
        let mut ready = Vec::new();
        poller.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [(1, Ready::WRITE)]);
        poller.rewatch(a.as_fd(), 1, Ready::NONE).unwrap();
        drop(b);
        poller.wait(None, &mut ready).unwrap();
        assert!(ready[0].1.hang_up && ready[0].1.read);
        poller.unwatch(a.as_fd()).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
