//! The form that is reached by a path: a Unix socket, which Windows has too.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use super::DeviceEnd;
use crate::event::{self, Source};
use crate::os;

/// Programs that may wait to be accepted: as many as the system lets.
const BACKLOG: i32 = i32::MAX;

/// The listening socket of the path form. Its file goes with it.
#[derive(Debug)]
pub(in super::super) struct Bound {
    listener: OwnedFd,
    path: PathBuf,
}

impl Bound {
    pub(in super::super) fn new(path: PathBuf) -> io::Result<Self> {
        let address = os::unix_address(&path)?;
        let listener = socket()?;
        match rustix::net::bind(&listener, &address) {
            Err(Errno::ADDRINUSE) if is_left_over(&path) => {
                std::fs::remove_file(&path)?;
                rustix::net::bind(&listener, &address)?;
            }
            bound => bound?,
        }
        let bound = Self { listener, path };
        os::keep_to_owner(&bound.path)?;
        rustix::net::listen(&bound.listener, BACKLOG)?;
        Ok(bound)
    }

    /// To be watched.
    pub(in super::super) fn source(&self) -> Source<'_> {
        event::socket(&self.listener)
    }

    /// The next program that connected to the path.
    pub(in super::super) fn accept(&self) -> io::Result<DeviceEnd> {
        Ok(DeviceEnd::from(os::accept(&self.listener)?))
    }

    /// Connects to the program that listens for the guest on `port`.
    pub(in super::super) fn connect(&self, port: u32) -> io::Result<DeviceEnd> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        Ok(DeviceEnd::from(dial(Path::new(&path))?))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A connection to the Unix socket at a path.
pub(in super::super) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let address = os::unix_address(path)?;
    let socket = socket()?;
    os::connect_unix(&socket, &address)?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    os::socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(|error| match error {
        Errno::AFNOSUPPORT => {
            let why = "this system has no Unix sockets, by which a socket device is reached by a path: take Windows 10, \
                       version 1803, or newer, or use the device from the process that has it";
            io::Error::new(io::ErrorKind::Unsupported, why)
        }
        error => error.into(),
    })
}

/// A socket file that nobody listens on. Connecting to a file that is no socket is refused, too.
fn is_left_over(path: &Path) -> bool {
    os::is_unix_socket(path)
        && dial(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
