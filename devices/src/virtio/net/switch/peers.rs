//! The way to the others: a connected socket for each of them, and what waits for room in theirs.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use rustix::net::sockopt;

use super::super::super::Error;
use super::super::Port;
use super::super::wire::Mac;
use super::members::Directory;
use crate::event::{Ready, Token};

/// Sockets that are kept open.
const MOST: usize = 64;
/// Bytes that wait for one of the others: what comes when there are more is lost, as on any wire, and TCP slows down.
const MOST_WAITING: usize = 1 << 20;
/// Bytes on the way in a socket; the system gives less where it has a limit.
const SEND_BUFFER: usize = 4 << 20;

#[derive(Debug)]
struct Peer {
    mac: Mac,
    socket: UnixDatagram,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    used: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    uses: u64,
}

impl Peers {
    /// Sends to `mac`, if somebody is there.
    pub(super) fn send(
        &mut self,
        directory: &Directory,
        mac: Mac,
        datagram: &[u8],
        (first, port): (Token, &mut Port<'_>),
    ) -> Result<(), Error> {
        // A second time for one that has been started again since: it has another socket now.
        for _ in 0..2 {
            let Some(slot) = self.slot(directory, mac, port) else { return Ok(()) };
            let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
            let has_room = peer.bytes + datagram.len() <= MOST_WAITING;
            let waits = !peer.waiting.is_empty();
            let sent =
                if waits { Err(ErrorKind::WouldBlock.into()) } else { peer.socket.send(datagram).map(drop) };
            match sent.map_err(|error: io::Error| error.kind()) {
                Err(ErrorKind::WouldBlock) if has_room => {
                    peer.bytes += datagram.len();
                    peer.waiting.push_back(datagram.to_vec());
                    if !waits {
                        let token = first + Token::try_from(slot).unwrap_or(0);
                        port.watch(peer.socket.as_fd(), token, Ready::WRITE).map_err(|source| {
                            Error::Host { doing: "watching the socket of another container", source }
                        })?;
                    }
                }
                Err(ErrorKind::ConnectionRefused | ErrorKind::NotConnected | ErrorKind::BrokenPipe) => {
                    self.close(slot, port);
                    continue;
                }
                // Sent, or lost.
                _ => {}
            }
            return Ok(());
        }
        Ok(())
    }

    /// There is room at the peer of this slot.
    pub(super) fn flush(&mut self, slot: usize, port: &mut Port<'_>) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        while let Some(datagram) = peer.waiting.front() {
            match peer.socket.send(datagram).map_err(|error| error.kind()) {
                Err(ErrorKind::WouldBlock) => return,
                Err(ErrorKind::ConnectionRefused | ErrorKind::NotConnected | ErrorKind::BrokenPipe) => {
                    return self.close(slot, port);
                }
                _ => {}
            }
            peer.bytes = peer.bytes.saturating_sub(datagram.len());
            peer.waiting.pop_front();
        }
        port.unwatch(peer.socket.as_fd());
    }

    /// Closes all.
    pub(super) fn clear(&mut self, port: &mut Port<'_>) {
        for slot in 0..self.slots.len() {
            self.close(slot, port);
        }
        self.slots.clear();
    }

    fn close(&mut self, slot: usize, port: &mut Port<'_>) {
        if let Some(peer) = self.slots.get_mut(slot).and_then(Option::take)
            && !peer.waiting.is_empty()
        {
            port.unwatch(peer.socket.as_fd());
        }
    }

    /// Where the socket towards `mac` is, opened if there is none yet; `None` if nobody receives there.
    fn slot(&mut self, directory: &Directory, mac: Mac, port: &mut Port<'_>) -> Option<usize> {
        self.uses += 1;
        let uses = self.uses;
        let known = self.slots.iter().position(|peer| peer.as_ref().is_some_and(|peer| peer.mac == mac));
        if let Some(peer) = known.and_then(|slot| self.slots.get_mut(slot)?.as_mut()) {
            peer.used = uses;
            return known;
        }
        let socket = connect(directory, mac).ok()?;
        let peer = Peer { mac, socket, waiting: VecDeque::new(), bytes: 0, used: uses };
        let free = self.slots.iter().position(Option::is_none);
        let slot = match free {
            Some(slot) => slot,
            None if self.slots.len() < MOST => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => {
                let used = |slot: &Option<Peer>| slot.as_ref().map_or(0, |peer| peer.used);
                let (oldest, _) = self.slots.iter().enumerate().min_by_key(|(_, slot)| used(slot))?;
                self.close(oldest, port);
                oldest
            }
        };
        *self.slots.get_mut(slot)? = Some(peer);
        Some(slot)
    }
}

fn connect(directory: &Directory, mac: Mac) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    socket.connect(directory.socket(mac))?;
    Ok(socket)
}
