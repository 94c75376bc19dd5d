//! macOS.

// getpeereid(3), getfsstat(2), getifaddrs(3), sysctlbyname(3), proc_pidinfo(3), mkfifo(2) by a descriptor and kevent(2) have no
// safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Uid;

use crate::watch::Changes;

/// What a file system says of a call that it does not have.
pub(crate) const NOT_SUPPORTED: Errno = Errno::NOTSUP;
/// The longest path in a socket's address.
const SOCKET_PATH: usize = 103;
/// The longest wait for a change of a file, in seconds: a year.
const LONGEST: libc::time_t = 365 * 24 * 60 * 60;

/// The mode of a file, as calls take it.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn raw_mode(mode: u32) -> RawMode {
    mode as RawMode
}

/// Nothing: there is no call for a range. Whoever asks copies by hand.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn copy_range(_: &File, _: &mut u64, _: impl AsFd, _: &mut u64, _: usize) -> Result<usize, Errno> {
    Err(NOT_SUPPORTED)
}

/// Nothing: before macOS 13 nothing but a path names the place of a FIFO, a socket or a device, and a path can be led
/// elsewhere.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn make_node(_: impl AsFd, _: &[u8], _: FileType, _: Mode, _: (u32, u32)) -> Result<(), Errno> {
    Err(NOT_SUPPORTED)
}

/// Major and minor number of a device.
pub(crate) fn device_numbers(device: u64) -> (u32, u32) {
    // The widened form of a number of 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let device = (device as u32).cast_signed();
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// Nothing: `fcntl(F_PREALLOCATE)` knows the end of a file and no other place. A disk that is too small is full later.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

/// An error of the guest's, by its number there.
pub(crate) fn guest_error(errno: i32) -> io::Error {
    /// `EAGAIN` of Linux: the one among the old numbers that means something else here.
    const AGAIN: i32 = 11;
    match errno {
        // As every Unix has them.
        1..=34 if errno != AGAIN => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(servin_devices::virtio::fs::vfs::Errno::from_raw_os_error(errno)),
    }
}

/// A socket that does not block and that no other program inherits.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket(family, kind, None)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Whose process made the other end of a connection.
pub(crate) fn peer_uid(stream: &UnixStream) -> io::Result<Uid> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: both numbers outlive the call, which fills them.
    if unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut uid, &raw mut gid) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Uid::from_raw(uid))
}

/// Does something with a path to `name` in `dir` that fits into a socket's address: by way of a symbolic link in the
/// user's directory of temporary files, which is there for as long as that takes.
pub(crate) fn with_short_path<T>(
    dir: &Path,
    name: &str,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let whole = dir.join(name);
    if whole.as_os_str().len() <= SOCKET_PATH {
        return act(&whole);
    }
    let dir = std::path::absolute(dir)?;
    let link = loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let link = std::env::temp_dir().join(format!("servin-{}-{number}", std::process::id()));
        match std::os::unix::fs::symlink(&dir, &link) {
            // Of a process that was killed, and had this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => {}
            made => break made.map(|()| link)?,
        }
    };
    let done = act(&link.join(name));
    let _ = std::fs::remove_file(&link);
    done
}

/// Opens a directory in another, which must not be a mount point or a link, with all rights for us. `name` is one name.
///
/// # Errors
/// `CrossesDevices` for a mount point.
pub(crate) fn enter(parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let above = rustix::fs::fstat(parent)?;
    let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !FileType::from_raw_mode(there.st_mode).is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    if there.st_dev != above.st_dev {
        return Err(Errno::XDEV.into());
    }
    if there.st_mode & 0o700 != 0o700 {
        // A link that took its place meanwhile is changed itself.
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // Something may have been mounted meanwhile.
    if rustix::fs::fstat(&dir)?.st_dev != above.st_dev {
        return Err(Errno::XDEV.into());
    }
    Ok(dir)
}

/// Where something is mounted.
pub(crate) fn mounts() -> io::Result<Vec<PathBuf>> {
    /// More may be there when they are read than when they were counted.
    const MORE: usize = 16;
    // SAFETY: without room the call only counts.
    let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut table: Vec<libc::statfs> = Vec::with_capacity(count + MORE);
    let bytes =
        libc::c_int::try_from(table.capacity() * size_of::<libc::statfs>()).map_err(io::Error::other)?;
    // SAFETY: the room is the table's, and as large as is said.
    let count = unsafe { libc::getfsstat(table.as_mut_ptr(), bytes, libc::MNT_NOWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: so many have been filled; no more than there is room for.
    unsafe { table.set_len(count.min(table.capacity())) };
    Ok(table
        .iter()
        .map(|mount| {
            let name = mount.f_mntonname.map(i8::cast_unsigned);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            PathBuf::from(OsStr::from_bytes(name))
        })
        .collect())
}

/// The IPv4 networks on this host's links: address, and length of the prefix.
pub(crate) fn networks() -> Vec<(Ipv4Addr, u8)> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer outlives the call, which makes a list and fills it in.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = first;
    // SAFETY: the list's items are whole, and stay until it is freed; it ends with null.
    while let Some(one) = unsafe { at.as_ref() } {
        // SAFETY: both are null or addresses of the list, which is there until the end of this turn.
        let (address, mask) = unsafe { (bytes(one.ifa_addr), bytes(one.ifa_netmask)) };
        if address.get(1).is_some_and(|family| i32::from(*family) == libc::AF_INET) && !mask.is_empty() {
            let (address, mask) = (v4(address), v4(mask));
            let prefix = u8::try_from(mask.leading_ones()).unwrap_or(32);
            found.push((Ipv4Addr::from_bits(address & mask), prefix));
        }
        at = one.ifa_next;
    }
    // SAFETY: it is the list from above, and nothing points into it any more.
    unsafe { libc::freeifaddrs(first) };
    found
}

/// The bytes of an address, as many as its first byte says: a mask may be cut short. None for null.
///
/// # Safety
/// It is null, or points to an address that stays for `'a`.
unsafe fn bytes<'a>(address: *const libc::sockaddr) -> &'a [u8] {
    if address.is_null() {
        return &[];
    }
    let first = address.cast::<u8>();
    // SAFETY: the caller's promise: every address begins with its length.
    unsafe { std::slice::from_raw_parts(first, usize::from(*first)) }
}

/// The bits of an IPv4 address or mask; what was cut off is zero.
fn v4(address: &[u8]) -> u32 {
    let mut bits = [0; 4];
    let there = address.get(std::mem::offset_of!(libc::sockaddr_in, sin_addr)..).unwrap_or_default();
    bits.iter_mut().zip(there).for_each(|(place, byte)| *place = *byte);
    u32::from_be_bytes(bits)
}

/// The file of this program.
pub(crate) fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Nothing: the system weighs no sessions.
pub(crate) fn weigh_session(_: i32) {}

/// A number of the system's, of 32 or 64 bits.
pub(crate) fn sysctl(name: &CStr) -> Option<u64> {
    let mut bytes = [0_u8; 8];
    let mut len = bytes.len();
    // SAFETY: the name ends with zero, and the call writes no more than `len` bytes into the room.
    let done = unsafe {
        libc::sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &raw mut len, std::ptr::null_mut(), 0)
    };
    match (done, len) {
        // Both kinds of Mac have the low byte first.
        (0, 4 | 8) => Some(u64::from_le_bytes(bytes)),
        _ => None,
    }
}

/// What the system counts of a process: its memory, its threads.
pub(crate) fn task(pid: i32) -> io::Result<libc::proc_taskinfo> {
    // SAFETY: it is plain data.
    let mut info: libc::proc_taskinfo = unsafe { std::mem::zeroed() };
    let size = libc::c_int::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: the room is as large as is said.
    let read = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTASKINFO, 0, (&raw mut info).cast(), size) };
    if read < size {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

/// What kqueue tells of files.
#[derive(Debug)]
pub(crate) struct Vnodes(OwnedFd);

impl Changes for Vnodes {
    fn new() -> io::Result<Self> {
        let queue = rustix::event::kqueue::kqueue()?;
        rustix::io::fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
        Ok(Self(queue))
    }

    fn add(&self, file: &File) -> io::Result<()> {
        let wanted = libc::kevent {
            ident: usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            filter: libc::EVFILT_VNODE,
            flags: libc::EV_ADD | libc::EV_CLEAR,
            fflags: libc::NOTE_WRITE | libc::NOTE_EXTEND | libc::NOTE_RENAME | libc::NOTE_DELETE,
            data: 0,
            udata: null_mut(),
        };
        // SAFETY: one change is given, and no event is asked for.
        if unsafe { libc::kevent(self.0.as_raw_fd(), &raw const wanted, 1, null_mut(), 0, null()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn wait(&self, most: Duration) -> io::Result<()> {
        // At most two files are watched, so that one call takes all that there is.
        let event = libc::kevent { ident: 0, filter: 0, flags: 0, fflags: 0, data: 0, udata: null_mut() };
        let mut events = [event; 4];
        let most = libc::timespec {
            // A longer wait is refused.
            tv_sec: libc::time_t::try_from(most.as_secs()).unwrap_or(LONGEST).min(LONGEST),
            tv_nsec: most.subsec_nanos().into(),
        };
        // SAFETY: no change is given, there is room for four events, and the time outlives the call.
        let found =
            unsafe { libc::kevent(self.0.as_raw_fd(), null(), 0, events.as_mut_ptr(), 4, &raw const most) };
        if found < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
