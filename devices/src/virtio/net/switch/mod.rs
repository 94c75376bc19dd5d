//! A network that several guests share, each with a gateway of its own.
//!
//! ```text
//! guest ── Ethernet ──┬── gateway: a Nat of this process, and out
//!                     └── DIRECTORY/MAC: a datagram socket for each member that runs
//! ```
//!
//! A frame to another member is a datagram to its socket, with the card's header before it, so that long segments stay
//! whole and checksums unfinished. IPv4 crosses, groups and broadcasts among it, and IPv6 where the members have it. Who has
//! an address, ARP and neighbour discovery, is answered here from the list of members, and so are names: a member that
//! does not run is not there.
//!
//! What a guest sends is copied once and checked then: it has the member's own addresses, or it is dropped. What comes
//! is checked again: from the addresses of a member, to this one, with offloads that fit the frame. Nobody waits for
//! anybody: what a slow member does not take is kept up to a bound and lost then.

mod directories;
mod frame;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod members;
mod peers;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

pub use directories::Directories;
pub use members::Member;

use super::super::Error;
use super::header::HEADER_LEN;
use super::nat::{self, GATEWAY_MAC, Nat};
use super::wire::{self, ETHERNET, Ethernet, Link, Mac};
use super::{Backend, Delivery, Frame, MAX_FRAME, Offloads, Outgoing, Port};
use crate::event::{Ready, Token};
use members::{Directory, MemberNames, Members};
use peers::Peers;

/// The file in a network's directory that lists its [`Member`]s, a line for each.
pub const MEMBERS: &str = Directory::MEMBERS;

/// Above the gateway's tokens.
const SOCKET: Token = 0x0800_0000;
const PEERS: Token = SOCKET + 1;
/// Frames taken from the socket in one call.
const BATCH: usize = 64;
/// The longest datagram.
const LONGEST: usize = HEADER_LEN + MAX_FRAME;
/// What is looked at of a frame: an ARP message, or a neighbour solicitation without its options.
const HEAD: usize = ETHERNET + 40 + 24;

/// What a [`Switch`] is made from.
pub struct Config {
    /// The gateway; its guest is the member. Names are those of the members where it has none.
    pub nat: nat::Config,
    /// The network's directory.
    pub directory: PathBuf,
}

/// See the module's description.
pub struct Switch {
    nat: Nat,
    addresses: nat::Addresses,
    mac: Mac,
    members: Arc<Members>,
    socket: UnixDatagram,
    /// The socket's file, to be removed if it is still ours.
    inode: Option<u64>,
    peers: Peers,
    /// What is sent, and what came; made when they are first needed.
    outbox: Vec<u8>,
    inbox: Vec<u8>,
    /// A frame that came and for which the guest has no room yet.
    pending: Option<Vec<u8>>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("nat", &self.nat).field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl Switch {
    /// A place on the network: from now on the others find this member.
    ///
    /// # Errors
    /// The directory or the socket in it cannot be opened.
    pub fn new(config: Config) -> io::Result<Self> {
        let Config { mut nat, directory } = config;
        let members = Arc::new(Members::new(Directory::open(&directory)?));
        let path = members.directory.socket(nat.mac);
        // What a process that was killed left.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        if nat.names.is_none() {
            nat.names = Some(Box::new(MemberNames(Arc::clone(&members))));
        }
        Ok(Self {
            addresses: nat.addresses.clone(),
            mac: nat.mac,
            nat: Nat::new(nat),
            inode: fs::symlink_metadata(&path).map(|meta| meta.ino()).ok(),
            members,
            socket,
            peers: Peers::default(),
            outbox: Vec::new(),
            inbox: Vec::new(),
            pending: None,
        })
    }

    /// Answers who has an address, if somebody is there.
    fn arp(&mut self, message: &[u8], port: &mut Port<'_>) -> Result<(), Error> {
        let Some((asker, ip)) = wire::arp_request(message) else { return Ok(()) };
        let Some(link) = self.link_of(ip.into()) else { return Ok(()) };
        let reply = link.arp_reply(ip, asker);
        port.deliver(&Outgoing { head: &reply, ..Outgoing::default() }).map(|_| ())
    }

    /// Answers which neighbour is where.
    fn discover(&mut self, asker: Ipv6Addr, target: Ipv6Addr, port: &mut Port<'_>) -> Result<(), Error> {
        let Some(link) = self.link_of(target.into()).filter(|_| !asker.is_unspecified()) else {
            return Ok(());
        };
        let reply = link.icmp(target.into(), asker.into(), &frame::advertisement(target, link.src));
        port.deliver(&Outgoing { head: &reply, ..Outgoing::default() }).map(|_| ())
    }

    /// The wire from another member that runs and has this address.
    fn link_of(&self, address: IpAddr) -> Option<Link> {
        let src = self.members.mac_of(address).filter(|mac| *mac != self.mac)?;
        self.members.is_there(src).then_some(Link { dst: self.mac, src })
    }

    /// Passes an IP frame on to another member, or to all of them.
    fn forward(&mut self, to: Mac, frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let Frame { header, mut data } = frame;
        // The guest can change its memory at any time: what is sent is what was looked at.
        let mut outbox = std::mem::take(&mut self.outbox);
        outbox.resize(LONGEST, 0);
        let len = HEADER_LEN + data.len();
        let mut sent = Ok(());
        if let Some((head, place)) =
            outbox.get_mut(..len).and_then(|all| all.split_first_chunk_mut::<HEADER_LEN>())
        {
            *head = header.to_bytes();
            let is_whole = data.read(place).is_ok_and(|count| count == place.len());
            let datagram = outbox.get(..len).unwrap_or_default();
            if is_whole && self.is_own(datagram, to) {
                sent = self.spread(to, datagram, port);
            }
        }
        self.outbox = outbox;
        sent
    }

    /// Whether a frame says truly who sends it, in the copy that is sent.
    fn is_own(&self, datagram: &[u8], to: Mac) -> bool {
        let frame = datagram.get(HEADER_LEN..).unwrap_or_default();
        Ethernet::read(frame).is_some_and(|ethernet| (ethernet.dst, ethernet.src) == (to, self.mac))
            && frame::ends(frame).is_some_and(|(src, _)| match src {
                IpAddr::V4(src) => src == self.addresses.guest,
                // Where there is no IPv6 among the members, all have one address towards their gateways.
                IpAddr::V6(own) => own == self.addresses.guest6 && self.members.is_pair(src, self.mac),
            })
    }

    fn spread(&mut self, to: Mac, datagram: &[u8], port: &mut Port<'_>) -> Result<(), Error> {
        if !to.is_group() {
            return self.peers.send(&self.members.directory, to, datagram, (PEERS, port));
        }
        let others: Vec<Mac> = self.members.look(|list| list.iter().map(|one| one.mac).collect());
        for mac in others.into_iter().filter(|mac| *mac != self.mac) {
            self.peers.send(&self.members.directory, mac, datagram, (PEERS, port))?;
        }
        Ok(())
    }

    /// Takes what the others sent, until there is no more or the guest has no room.
    fn receive(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        let mut inbox = std::mem::take(&mut self.inbox);
        // One byte more than there may be, so that a longer one is known.
        inbox.resize(LONGEST + 1, 0);
        let mut done = Ok(());
        for _ in 0..BATCH {
            let count = match self.socket.recv(&mut inbox) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let taken = inbox.get(..count).unwrap_or_default();
            match self.give(taken, port) {
                Ok(Delivery::Done) => {}
                Ok(Delivery::NoRoom) => {
                    self.pending = Some(taken.to_vec());
                    done = self.listen(Ready::NONE, port);
                    break;
                }
                Err(error) => {
                    done = Err(error);
                    break;
                }
            }
        }
        self.inbox = inbox;
        done
    }

    fn listen(&self, interest: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        port.rewatch(self.socket.as_fd(), SOCKET, interest)
            .map_err(|source| Error::Host { doing: "watching the socket of a network", source })
    }

    /// Gives the guest a frame, if it is one for it from another member.
    fn give(&self, datagram: &[u8], port: &mut Port<'_>) -> Result<Delivery, Error> {
        let Some(arrived) = frame::arrived(datagram).filter(|_| datagram.len() <= LONGEST) else {
            return Ok(Delivery::Done);
        };
        let (Ethernet { dst, src, .. }, from) = (arrived.ethernet, arrived.src);
        let is_ours = dst == self.mac || dst.is_group();
        let is_foreign = src != self.mac && src != GATEWAY_MAC && !self.addresses.is_guest(from);
        let is_inside = self.addresses.is_inside(from) && !self.addresses.is_gateway(from);
        if !(is_ours && is_foreign && is_inside && self.members.is_pair(from, src)) {
            return Ok(Delivery::Done);
        }
        if arrived.outgoing.segments.is_some_and(|long| port.segment(long.v6, 0) == 0) {
            log::debug!("a long segment is lost: the guest takes none");
            return Ok(Delivery::Done);
        }
        port.deliver(&arrived.outgoing)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let path = self.members.directory.socket(self.mac);
        // A machine that takes this one's place may have its own there already.
        if self.inode.is_some() && fs::symlink_metadata(&path).map(|meta| meta.ino()).ok() == self.inode {
            let _ = fs::remove_file(&path);
        }
    }
}

impl Backend for Switch {
    fn offloads(&self) -> Offloads {
        self.nat.offloads()
    }

    fn start(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        self.nat.start(port)?;
        port.watch(self.socket.as_fd(), SOCKET, Ready::READ)
            .map_err(|source| Error::Host { doing: "watching the socket of a network", source })
    }

    fn is_ready(&self) -> bool {
        self.nat.is_ready()
    }

    fn transmit(&mut self, frame: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let mut head = [0; HEAD];
        // Guest memory that was checked gives all that is there.
        let count = frame.data.clone().read(&mut head).unwrap_or(0);
        let head = head.get(..count).unwrap_or_default();
        let Some(ethernet) = Ethernet::read(head) else { return Ok(()) };
        match (ethernet.kind, ethernet.dst) {
            (wire::ARP, _) if asks_for(head) != Some(self.addresses.gateway) => self.arp(head, port),
            (wire::IPV4, to) if to != GATEWAY_MAC => self.forward(to, frame, port),
            (wire::IPV6, to) if to != GATEWAY_MAC => match frame::solicitation(head, frame.data.len()) {
                Some((_, target)) if target == self.addresses.gateway6 => self.nat.transmit(frame, port),
                Some((asker, target)) => self.discover(asker, target, port),
                None => self.forward(to, frame, port),
            },
            // The gateway's.
            _ => self.nat.transmit(frame, port),
        }
    }

    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        if let Some(datagram) = self.pending.take() {
            match self.give(&datagram, port)? {
                Delivery::Done => self.listen(Ready::READ, port)?,
                Delivery::NoRoom => self.pending = Some(datagram),
            }
        }
        self.nat.settle(port)
    }

    fn on_host(&mut self, token: Token, ready: Ready, port: &mut Port<'_>) -> Result<(), Error> {
        match token.checked_sub(PEERS) {
            Some(slot) => {
                self.peers.flush(usize::try_from(slot).unwrap_or(usize::MAX), port);
                Ok(())
            }
            None if token == SOCKET && self.pending.is_none() => self.receive(port),
            None if token == SOCKET => Ok(()),
            None => self.nat.on_host(token, ready, port),
        }
    }

    fn stop(&mut self, port: &mut Port<'_>) {
        self.nat.stop(port);
        port.unwatch(self.socket.as_fd());
        self.peers.clear(port);
        self.pending = None;
    }
}

/// Which address an ARP request asks for.
fn asks_for(message: &[u8]) -> Option<Ipv4Addr> {
    wire::arp_request(message).map(|(_, ip)| ip)
}
