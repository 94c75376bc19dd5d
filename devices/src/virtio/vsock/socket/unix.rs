//! Unix sockets: pairs, and the form that is reached by a path.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::event::{self, Source};

/// A program's end of a connection.
pub type HostStream = UnixStream;

/// The device's end of a connection.
pub(in super::super) type DeviceEnd = UnixStream;

/// Both ends of a connection; the program's does not block.
pub(in super::super) fn pair() -> io::Result<(DeviceEnd, HostStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

/// Whether the other end, which said its last byte, takes none either: here a hang-up says so.
pub(in super::super) fn is_gone(_: &DeviceEnd) -> bool {
    false
}

/// Ends one direction or both for the program at the other end.
pub(in super::super) fn shutdown(end: &DeviceEnd, how: Shutdown) {
    // It fails only when the other end is gone, and then there is nothing to end.
    let _ = end.shutdown(how);
}

/// The listening socket of the path form. Its file goes with it.
#[derive(Debug)]
pub(in super::super) struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Bound {
    pub(in super::super) fn new(path: PathBuf) -> io::Result<Self> {
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(&path) => {
                std::fs::remove_file(&path)?;
                UnixListener::bind(&path)?
            }
            bound => bound?,
        };
        let bound = Self { listener, path };
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&bound.path, owner_only)?;
        bound.listener.set_nonblocking(true)?;
        Ok(bound)
    }

    /// To be watched.
    pub(in super::super) fn source(&self) -> Source<'_> {
        event::socket(&self.listener)
    }

    /// The next program that connected to the path.
    pub(in super::super) fn accept(&self) -> io::Result<DeviceEnd> {
        Ok(self.listener.accept()?.0)
    }

    /// Connects to the program that listens for the guest on `port`.
    pub(in super::super) fn connect(&self, port: u32) -> io::Result<DeviceEnd> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let socket = crate::os::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        // A Unix socket is connected at once, or its queue is full (`EAGAIN`).
        rustix::net::connect(&socket, &SocketAddrUnix::new(Path::new(&path))?)?;
        Ok(UnixStream::from(socket))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket file that nobody listens on. Connecting to a file that is no socket is refused, too.
fn is_left_over(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;

    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
