//! Datagrams: UDP, and echoes of ICMP by the kernel's ping sockets. One connected socket for each pair of ends, so that
//! answers come from there alone and a closed port is reported.

use std::net::SocketAddr;
use std::time::Instant;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::super::super::Error;
use super::super::wire::Link;
use super::super::{Outgoing, Port};
use super::tcp::Key;
use crate::{event, os};

/// Datagrams taken from one socket in one call.
const BATCH: usize = 64;

/// What the datagrams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Udp,
    /// Echoes; the ports of the ends are the identifier of the guest's requests.
    Echo,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) socket: OwnedFd,
    /// Removed when nothing was said until then.
    pub(super) expires: Instant,
    /// It asks the host's resolver, and has heard nothing yet.
    pub(super) asks: bool,
}

impl Flow {
    /// Passes answers to the guest. `Some` error of the socket: the other end refused.
    pub(super) fn receive(
        &mut self,
        link: Link,
        scratch: &mut [u8],
        port: &mut Port<'_>,
    ) -> Result<Option<Errno>, Error> {
        for _ in 0..BATCH {
            let count = match rustix::net::recv(&self.socket, &mut *scratch, os::RECEIVE) {
                Ok((count, _)) => count.min(scratch.len()),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Ok(Some(errno)),
            };
            self.asks = false;
            let data = scratch.get_mut(..count).unwrap_or_default();
            match self.kind {
                Kind::Udp => deliver(link, self.key.remote, self.key.guest, data, port)?,
                Kind::Echo => {
                    // The kernel counts requests by an identifier of its own.
                    let Some(id) = data.get_mut(4..6) else { continue };
                    id.copy_from_slice(&self.key.guest.port().to_be_bytes());
                    let frame = link.icmp(self.key.remote.ip(), self.key.guest.ip(), data);
                    port.deliver(&Outgoing { head: &frame, ..Outgoing::default() })?;
                }
            }
        }
        Ok(None)
    }

    /// Stops watching; the socket is closed with the value.
    pub(super) fn close(self, port: &mut Port<'_>) {
        port.unwatch(event::socket(&self.socket));
    }
}

/// Gives the guest a datagram. One for which there is no room is lost, as anywhere.
pub(super) fn deliver(
    link: Link,
    src: SocketAddr,
    dst: SocketAddr,
    data: &[u8],
    port: &mut Port<'_>,
) -> Result<(), Error> {
    let mut head = Vec::with_capacity(64);
    let checksum = link.udp(&mut head, src, dst, data.len());
    let outgoing = Outgoing { head: &head, payload: [data, &[]], checksum: Some(checksum), segments: None };
    port.deliver(&outgoing).map(|_| ())
}
