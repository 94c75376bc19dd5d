//! Many sockets behind one object that the kernel signals.
//!
//! A socket can signal an object (`WSAEventSelect`), and a wait takes 64 of those at most. So all sockets of a poller
//! signal one, and before each wait they are asked what they are ready for (`WSAPoll`, which does not wait). That is
//! level-triggered as elsewhere. Nothing is missed: the object is reset before they are asked, and what happens after that
//! signals it again. A socket of which all was taken, or that took no more, signals the next time that it has some or
//! takes some; of one where it was not, asking tells.

// A leaf that may use unsafe, as the file above: sockets signal objects, and say what they are ready for, by calls of the
// system.
#![allow(unsafe_code)]

use std::io;
use std::os::windows::io::{AsHandle as _, AsRawHandle as _, AsRawSocket as _};
use std::os::windows::io::{BorrowedHandle, BorrowedSocket, OwnedHandle};
use std::ptr::null;

use windows_sys::Win32::Networking::WinSock::{
    FD_ACCEPT, FD_CLOSE, FD_CLOSE_BIT, FD_CONNECT, FD_CONNECT_BIT, FD_READ, FD_WRITE, POLLERR, POLLHUP,
    POLLNVAL, POLLRDNORM, POLLWRNORM, SOCKET, SOCKET_ERROR, WSAEVENT, WSAEnumNetworkEvents, WSAEventSelect,
    WSAGetLastError, WSANETWORKEVENTS, WSAPOLLFD, WSAPoll,
};
use windows_sys::Win32::System::Threading::{CreateEventW, ResetEvent};

use super::super::{Ready, Token};

/// What makes a socket signal. What of it is waited for is looked at when the sockets are asked.
const NEWS: u32 = FD_READ | FD_WRITE | FD_ACCEPT | FD_CONNECT | FD_CLOSE;

#[derive(Debug)]
struct Watched {
    socket: SOCKET,
    token: Token,
    interest: Ready,
    /// It could not be connected, or was reset: not every Windows says so when it is asked.
    failed: bool,
}

impl Watched {
    /// Nobody reads from it, or not only: who reads hears of a failure by that.
    fn is_silent(&self) -> bool {
        self.interest.write || !self.interest.read
    }
}

/// The watched sockets of a poller. Whoever watches one takes it away before it is closed.
#[derive(Debug)]
pub(super) struct Sockets {
    news: OwnedHandle,
    list: Vec<Watched>,
}

impl Sockets {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no name and no attributes; reset by hand, not signalled.
        let news = super::adopt(unsafe { CreateEventW(null(), 1, 0, null()) })?;
        Ok(Self { news, list: Vec::new() })
    }

    /// Signalled when a socket may have become ready.
    pub(super) fn news(&self) -> BorrowedHandle<'_> {
        self.news.as_handle()
    }

    pub(super) fn watch(
        &mut self,
        socket: BorrowedSocket<'_>,
        token: Token,
        interest: Ready,
    ) -> io::Result<()> {
        if self.find(socket).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let socket = socket.as_raw_socket() as SOCKET;
        // SAFETY: socket and object are open. The socket does not block from now on.
        checked(unsafe { WSAEventSelect(socket, self.news.as_raw_handle() as WSAEVENT, NEWS as i32) })?;
        self.list.push(Watched { socket, token, interest, failed: false });
        Ok(())
    }

    pub(super) fn rewatch(
        &mut self,
        socket: BorrowedSocket<'_>,
        token: Token,
        interest: Ready,
    ) -> io::Result<()> {
        let at = self.find(socket).ok_or(io::ErrorKind::NotFound)?;
        if let Some(watched) = self.list.get_mut(at) {
            (watched.token, watched.interest) = (token, interest);
            // What it noted while somebody read from it signals nothing any more.
            watched.failed |= watched.is_silent() && has_failed(watched.socket);
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, socket: BorrowedSocket<'_>) -> io::Result<()> {
        let at = self.find(socket).ok_or(io::ErrorKind::NotFound)?;
        let Watched { socket, .. } = self.list.swap_remove(at);
        // SAFETY: the socket is open. One that fails here signals nothing any more.
        unsafe { WSAEventSelect(socket, 0, 0) };
        Ok(())
    }

    /// Adds the sockets that are ready now.
    pub(super) fn ask(&mut self, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        if super::is_signalled(&self.news) {
            // SAFETY: the object is open.
            unsafe { ResetEvent(self.news.as_raw_handle()) };
            for watched in self.list.iter_mut().filter(|watched| watched.is_silent()) {
                watched.failed |= has_failed(watched.socket);
            }
        }
        let mut asked: Vec<WSAPOLLFD> = self.list.iter().map(question).collect();
        let count = u32::try_from(asked.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: there are `count` of them, whose sockets are kept open by those who watch them.
        checked(unsafe { WSAPoll(asked.as_mut_ptr(), count, 0) })?;
        ready.extend(self.list.iter().zip(&asked).filter_map(|(watched, asked)| {
            let found = answer(watched, asked.revents);
            (found != Ready::NONE).then_some((watched.token, found))
        }));
        Ok(())
    }

    fn find(&self, socket: BorrowedSocket<'_>) -> Option<usize> {
        let socket = socket.as_raw_socket() as SOCKET;
        self.list.iter().position(|watched| watched.socket == socket)
    }
}

fn question(watched: &Watched) -> WSAPOLLFD {
    let mut events = 0;
    if watched.interest.read {
        events |= POLLRDNORM;
    }
    if watched.interest.write {
        events |= POLLWRNORM;
    }
    WSAPOLLFD { fd: watched.socket, events, revents: 0 }
}

fn answer(watched: &Watched, found: i16) -> Ready {
    let has = |bits| found & bits != 0;
    let hang_up = watched.failed || has(POLLERR | POLLNVAL);
    Ready {
        // The end of what the other side says is said like the end of all.
        read: hang_up || has(POLLRDNORM) || (has(POLLHUP) && watched.interest.read),
        write: has(POLLWRNORM),
        hang_up,
    }
}

/// Whether a socket noted that it could not be connected, or was reset. What it noted is taken from it.
fn has_failed(socket: SOCKET) -> bool {
    let mut noted = WSANETWORKEVENTS::default();
    // SAFETY: the structure is there for the call to fill; no object is to be reset.
    if unsafe { WSAEnumNetworkEvents(socket, 0, &raw mut noted) } == SOCKET_ERROR {
        return true;
    }
    [(FD_CONNECT, FD_CONNECT_BIT), (FD_CLOSE, FD_CLOSE_BIT)].into_iter().any(|(event, bit)| {
        let code = noted.iErrorCode.get(bit as usize).copied().unwrap_or(0);
        noted.lNetworkEvents.cast_unsigned() & event != 0 && code != 0
    })
}

fn checked(done: i32) -> io::Result<()> {
    if done == SOCKET_ERROR {
        // SAFETY: nothing is passed.
        return Err(io::Error::from_raw_os_error(unsafe { WSAGetLastError() }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::super::Poller;
    use super::*;
    use crate::event::{Event, socket};

    const DEADLINE: Option<Duration> = Some(Duration::from_secs(20));

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn a_socket_is_ready_for_what_was_asked_for_as_long_as_it_is() {
        let (mut ours, mut theirs) = pair();
        let mut poller = Poller::new().unwrap();
        let mut ready = Vec::new();
        poller.watch(socket(&ours), 1, Ready::WRITE).unwrap();
        for _ in 0..2 {
            poller.wait(DEADLINE, &mut ready).unwrap();
            assert_eq!(ready, [(1, Ready::WRITE)]);
        }
        poller.rewatch(socket(&ours), 2, Ready::READ).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        theirs.write_all(b"ab").unwrap();
        for _ in 0..2 {
            poller.wait(DEADLINE, &mut ready).unwrap();
            assert_eq!(ready, [(2, Ready::READ)]);
            ours.read_exact(&mut [0]).unwrap();
        }
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty(), "all was taken");
        // The end is something to read, and no hang-up: the other way is open.
        drop(theirs);
        poller.wait(DEADLINE, &mut ready).unwrap();
        assert_eq!(ready, [(2, Ready::READ)]);
        poller.unwatch(socket(&ours)).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        assert!(poller.unwatch(socket(&ours)).is_err());
    }

    #[test]
    fn a_wait_ends_when_a_socket_becomes_ready_time_after_time() {
        let (mut ours, mut theirs) = pair();
        let mut poller = Poller::new().unwrap();
        poller.watch(socket(&ours), 1, Ready::READ).unwrap();
        let go = Event::new().unwrap();
        let writer = std::thread::spawn({
            let go = go.clone();
            move || {
                let mut start = Poller::new().unwrap();
                start.watch(go.source(), 0, Ready::READ).unwrap();
                for round in 0..200 {
                    start.wait(DEADLINE, &mut Vec::new()).unwrap();
                    go.take();
                    theirs.write_all(&[round]).unwrap();
                }
                theirs
            }
        });
        let mut ready = Vec::new();
        for round in 0..200 {
            go.signal();
            poller.wait(DEADLINE, &mut ready).unwrap();
            assert_eq!(ready, [(1, Ready::READ)], "round {round}");
            let mut got = [0];
            ours.read_exact(&mut got).unwrap();
            assert_eq!(got, [round]);
        }
        drop(writer.join().unwrap());
    }

    #[test]
    fn a_connection_that_is_refused_is_a_hang_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        let caller =
            crate::os::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                .unwrap();
        let mut poller = Poller::new().unwrap();
        match rustix::net::connect(&caller, &nobody) {
            Err(error) if error == crate::os::CONNECTING => {}
            // Refused at once.
            other => return assert_eq!(other, Err(rustix::io::Errno::CONNREFUSED)),
        }
        poller.watch(socket(&caller), 1, Ready::WRITE).unwrap();
        let mut ready = Vec::new();
        poller.wait(DEADLINE, &mut ready).unwrap();
        assert!(ready[0].1.hang_up, "{ready:?}");
        let why = rustix::net::sockopt::socket_error(&caller).unwrap();
        assert_eq!(why, Err(rustix::io::Errno::CONNREFUSED));
    }

    #[test]
    fn a_connection_that_was_reset_is_a_hang_up_for_who_waits_for_nothing_else() {
        let (mut ours, theirs) = pair();
        let mut poller = Poller::new().unwrap();
        poller.watch(socket(&ours), 1, Ready::NONE).unwrap();
        drop(theirs);
        // Nobody takes it: the other side's system resets.
        ours.write_all(b"x").unwrap();
        let mut ready = Vec::new();
        poller.wait(DEADLINE, &mut ready).unwrap();
        assert!(ready.first().is_some_and(|(token, ready)| *token == 1 && ready.hang_up), "{ready:?}");
    }

    #[test]
    fn more_sockets_are_watched_than_a_wait_takes_objects() {
        let pairs: Vec<_> = (0..200).map(|_| pair()).collect();
        let mut poller = Poller::new().unwrap();
        for ((ours, _), token) in pairs.iter().zip(0..) {
            poller.watch(socket(ours), token, Ready::READ).unwrap();
        }
        assert!(poller.watch(socket(&pairs[7].0), 999, Ready::READ).is_err(), "watched already");
        let mut ready = Vec::new();
        for at in [199, 0, 64] {
            (&pairs[at].1).write_all(b"x").unwrap();
            poller.wait(DEADLINE, &mut ready).unwrap();
            assert_eq!(ready, [(at as Token, Ready::READ)]);
            (&pairs[at].0).read_exact(&mut [0]).unwrap();
        }
    }
}
