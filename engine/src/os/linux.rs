//! Linux.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawMode, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Uid;

/// What a file system says of a call that it does not have.
pub(crate) const NOT_SUPPORTED: Errno = Errno::OPNOTSUPP;

/// The mode of a file, as calls take it.
pub(crate) const fn raw_mode(mode: u32) -> RawMode {
    mode
}

/// Copies from one place to another without a way through this process, and moves both; gives the count.
///
/// # Errors
/// Also where this cannot be done between these two files.
pub(crate) fn copy_range(
    from: &File,
    read: &mut u64,
    to: impl AsFd,
    written: &mut u64,
    most: usize,
) -> Result<usize, Errno> {
    rustix::fs::copy_file_range(from, Some(read), to, Some(written), most)
}

/// Makes a FIFO, a socket's name or a device in a directory.
pub(crate) fn make_node(
    dir: impl AsFd,
    name: &[u8],
    kind: FileType,
    mode: Mode,
    (major, minor): (u32, u32),
) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, kind, mode, rustix::fs::makedev(major, minor))
}

/// Major and minor number of a device.
pub(crate) fn device_numbers(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// Takes the blocks of a range of a file now, where the file system can. The file keeps its size.
pub(crate) fn allocate(file: &File, start: u64, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), start, len) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// An error of the guest's, by its number there.
pub(crate) fn guest_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A socket that does not block and that no other program inherits.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Whose process made the other end of a connection.
pub(crate) fn peer_uid(stream: &UnixStream) -> io::Result<Uid> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid)
}

/// Does something with a path to `name` in `dir` that fits into a socket's address, which has at most 107 bytes: by way of
/// the directory's descriptor.
pub(crate) fn with_short_path<T>(
    dir: &Path,
    name: &str,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    act(Path::new(&format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))
}

/// Opens a directory in another, which must not be a mount point or a link, with all rights for us.
///
/// # Errors
/// `CrossesDevices` for a mount point.
pub(crate) fn enter(parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let open = |flags| {
        rustix::fs::openat2(
            parent,
            name,
            flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    };
    let handle = open(OFlags::PATH)?;
    let stat = rustix::fs::fstat(&handle)?;
    if stat.st_mode & 0o700 != 0o700 {
        // Through /proc, for a bare handle has no mode to change, and its name could be another's by now.
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::chmod(link, Mode::from_raw_mode(0o700))?;
    }
    Ok(open(OFlags::RDONLY)?)
}

/// Where something is mounted.
pub(crate) fn mounts() -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let points =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape(point)))).collect())
}

/// `\040` and the like are bytes in octal.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(u8::is_ascii_digit));
        match digits {
            Some(digits) => {
                out.push(
                    digits
                        .iter()
                        .fold(0, |value: u8, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// The IPv4 networks that this host has routes to: address, and length of the prefix.
pub(crate) fn networks() -> Vec<(Ipv4Addr, u8)> {
    routes(&std::fs::read_to_string("/proc/net/route").unwrap_or_default())
}

fn routes(table: &str) -> Vec<(Ipv4Addr, u8)> {
    let bits = |word: &str| u32::from_str_radix(word, 16).ok().map(u32::swap_bytes);
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (to, mask) = (bits(words.get(1)?)?, bits(words.get(7)?)?);
        Some((Ipv4Addr::from_bits(to), u8::try_from(mask.leading_ones()).ok()?))
    };
    table.lines().filter_map(route).collect()
}

/// The file of this program. It is a link that leads there.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn own_program() -> io::Result<PathBuf> {
    Ok(PathBuf::from("/proc/self/exe"))
}

/// A kernel that groups processes by session weighs the group, which has a niceness of its own.
pub(crate) fn weigh_session(niceness: i32) {
    let _ = std::fs::write("/proc/self/autogroup", niceness.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_routes_are_read() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(routes(table), [(Ipv4Addr::UNSPECIFIED, 0), (Ipv4Addr::new(10, 89, 0, 0), 24)]);
    }
}
