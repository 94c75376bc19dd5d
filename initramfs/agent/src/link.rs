//! Connections to the host: a socket that never blocks, what waits to be sent, and what arrived.

use alloc::{format, vec::Vec};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, IoSlice},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        connect, recv, send, sendmsg, socket_with,
    },
};
use servin_init::proto::{CONTROL_PORT, Channel, Encode, Frames, STREAM_PORT};

use crate::sys;

/// The host's vsock address.
const HOST_CID: u32 = 2;

/// How the host is reached.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// vsock, port by port.
    Vsock,
    /// Abstract Unix sockets below this name, for tests without a virtual machine.
    Unix(alloc::string::String),
}

/// One connection to the host.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// Frames that are on their way out, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    /// The host took less than there was: wait until it takes more.
    stuck: bool,
    pub(crate) frames: Frames,
    /// The host will send nothing more.
    pub(crate) ended: bool,
}

impl Link {
    /// Starts to connect; the first send finds out how it went.
    pub(crate) fn connect(transport: &Transport, channel: Channel) -> rustix::io::Result<Self> {
        let (port, name) = match channel {
            Channel::HostControl | Channel::GuestControl => (CONTROL_PORT, "control"),
            _ => (STREAM_PORT, "stream"),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = match transport {
            Transport::Vsock => AddressFamily::VSOCK,
            Transport::Unix(_) => AddressFamily::UNIX,
        };
        let socket = above_stdio(socket_with(family, SocketType::STREAM, flags, None)?)?;
        let connected = match transport {
            Transport::Vsock => sys::connect_vsock(socket.as_fd(), HOST_CID, port),
            Transport::Unix(base) => {
                let address = SocketAddrUnix::new_abstract_name(format!("{base}/{name}").as_bytes())?;
                connect(&socket, &address)
            }
        };
        match connected {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        Ok(Self {
            socket,
            pending: Vec::new(),
            sent: 0,
            stuck: false,
            frames: Frames::new(channel),
            ended: false,
        })
    }

    /// Queues a message; [`Link::flush`] sends it.
    pub(crate) fn queue(&mut self, message: &impl Encode) -> Result<(), servin_init::proto::Error> {
        message.encode(&mut self.pending)
    }

    /// True if something waits to be sent.
    pub(crate) fn has_pending(&self) -> bool {
        self.sent < self.pending.len()
    }

    /// True if the host does not take what waits: more should not be produced.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Sends what waits, as far as the host takes it.
    pub(crate) fn flush(&mut self) -> rustix::io::Result<()> {
        while let Some(rest) = self.pending.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                // NOTCONN: the connection is still being made, or failed, which poll shows as an error.
                Err(Errno::AGAIN | Errno::NOTCONN) => {
                    self.stuck = true;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.pending.clear();
        self.sent = 0;
        self.stuck = false;
        Ok(())
    }

    /// Sends one frame from two pieces, without copying them if nothing waits before it, and keeps what the host
    /// does not take now.
    pub(crate) fn send_pieces(&mut self, head: &[u8], body: &[u8]) -> rustix::io::Result<()> {
        let sent = if self.has_pending() {
            0
        } else {
            let pieces = [IoSlice::new(head), IoSlice::new(body)];
            let mut none = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &pieces, &mut none, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.stuck = sent < head.len() + body.len();
                    sent
                }
                Err(Errno::AGAIN | Errno::NOTCONN) => {
                    self.stuck = true;
                    0
                }
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno),
            }
        };
        let body_sent = sent.saturating_sub(head.len());
        self.pending.extend_from_slice(head.get(sent..).unwrap_or_default());
        self.pending.extend_from_slice(body.get(body_sent..).unwrap_or_default());
        Ok(())
    }

    /// Reads once. [`Link::ended`] is set at the end of the stream.
    pub(crate) fn receive(&mut self) -> rustix::io::Result<()> {
        match recv(&self.socket, self.frames.space(), RecvFlags::empty()) {
            Ok((_, 0)) => self.ended = true,
            Ok((_, count)) => self.frames.advance(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// What poll meant with an error: the pending one of the socket, or a reset.
    pub(crate) fn error(&self) -> Errno {
        match rustix::net::sockopt::socket_error(&self.socket) {
            Ok(Err(errno)) | Err(errno) => errno,
            Ok(Ok(())) => Errno::CONNRESET,
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The same open file under a number above 2. The kernel starts PID 1 without descriptors 0 to 2 if it has no
/// console, and those numbers belong to the programs.
pub(crate) fn above_stdio(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    use rustix::fd::AsRawFd as _;
    if fd.as_raw_fd() > 2 { Ok(fd) } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3) }
}
