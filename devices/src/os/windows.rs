//! Windows.

// A leaf that may use unsafe: random bytes, the host's resolvers, addresses of Unix sockets and what kind a file is go by
// calls that take pointers, and a socket is kept from other programs by a call that takes a handle.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::windows::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::windows::io::{AsRawHandle as _, AsRawSocket as _};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Once;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType};
use windows_sys::Win32::Foundation::{
    ERROR_BUFFER_OVERFLOW, ERROR_SUCCESS, HANDLE, HANDLE_FLAG_INHERIT, SetHandleInformation,
};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    GAA_FLAG_SKIP_ANYCAST, GAA_FLAG_SKIP_FRIENDLY_NAME, GAA_FLAG_SKIP_MULTICAST, GAA_FLAG_SKIP_UNICAST,
    GetAdaptersAddresses, IF_TYPE_SOFTWARE_LOOPBACK, IP_ADAPTER_ADDRESSES_LH,
};
use windows_sys::Win32::NetworkManagement::Ndis::IfOperStatusUp;
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, SOCKADDR_IN, SOCKADDR_IN6, SOCKADDR_UN, SOCKET_ADDRESS,
};
use windows_sys::Win32::Security::Cryptography::{BCRYPT_USE_SYSTEM_PREFERRED_RNG, BCryptGenRandom};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_TAG_INFO, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_READ_ATTRIBUTES,
    FileAttributeTagInfo, GetFileInformationByHandleEx,
};
use windows_sys::Win32::System::SystemServices::IO_REPARSE_TAG_AF_UNIX;

/// Fills `bytes` with random ones, of the quality that keys need.
///
/// # Errors
/// The system has none.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    for part in bytes.chunks_mut(1 << 20) {
        let len = u32::try_from(part.len()).unwrap_or(0);
        // SAFETY: the part has `len` bytes, and the system's generator needs no handle.
        let status =
            unsafe { BCryptGenRandom(null_mut(), part.as_mut_ptr(), len, BCRYPT_USE_SYSTEM_PREFERRED_RNG) };
        if status < 0 {
            return Err(io::Error::other(format!("BCryptGenRandom gave {status:#x}")));
        }
    }
    Ok(())
}

/// Nothing of each send: a socket of ours never waits, and there are no signals.
pub(crate) const SEND: SendFlags = SendFlags::empty();
/// Nothing of each receive, either.
pub(crate) const RECEIVE: RecvFlags = RecvFlags::empty();
/// What connecting a socket says that does not wait for it.
pub(crate) const CONNECTING: Errno = Errno::WOULDBLOCK;

/// A socket that does not block and that no other program inherits. There are none that ask for a protocol of their own:
/// pings need a raw socket, which is the administrator's.
pub(crate) fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    static START: Once = Once::new();
    if protocol.is_some() {
        return Err(Errno::ACCESS);
    }
    // Where it fails, so does the next call, which says why.
    START.call_once(|| {
        let _ = rustix::net::wsa_startup();
    });
    let socket = rustix::net::socket(family, kind, None)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    keep_from_children(&socket);
    Ok(socket)
}

/// The next connection to a listening socket, which no other program inherits.
pub(crate) fn accept<Fd: AsFd>(socket: Fd) -> Result<OwnedFd, Errno> {
    let accepted = rustix::net::accept(socket)?;
    keep_from_children(&accepted);
    Ok(accepted)
}

fn keep_from_children(socket: &OwnedFd) {
    // SAFETY: the socket is open, and is a handle. Should it fail, a program that is started would have the socket too.
    unsafe { SetHandleInformation(socket.as_raw_socket() as HANDLE, HANDLE_FLAG_INHERIT, 0) };
}

/// Where a Unix socket is found.
#[derive(Clone, Copy)]
pub(crate) struct UnixAddress(SOCKADDR_UN);

// SAFETY: what is passed lies there as long as the call, is as long as is said, and is an address of its family: its path
// ends with a zero.
unsafe impl SocketAddrArg for UnixAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), size_of::<SOCKADDR_UN>() as SocketAddrLen)
    }
}

/// Where the Unix socket at a path is found.
///
/// # Errors
/// The path is empty, too long, or not Unicode.
pub(crate) fn unix_address(path: &Path) -> io::Result<UnixAddress> {
    let mut address = SOCKADDR_UN { sun_family: AF_UNIX, ..SOCKADDR_UN::default() };
    let most = address.sun_path.len() - 1;
    let bytes = path.to_str().map(str::as_bytes).filter(|bytes| (1..=most).contains(&bytes.len()));
    let bytes = bytes.filter(|bytes| !bytes.contains(&0)).ok_or_else(|| {
        let why = format!("the path of a Unix socket is Unicode of 1 to {most} bytes: take a shorter one");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(UnixAddress(address))
}

/// How long the system may take to find a Unix socket's listener, which does nothing for it.
const CONNECT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Connects a socket to the Unix socket at an address. Should the system not do it at once, it is waited for, briefly.
///
/// # Errors
/// Nobody listens there, or there was no answer in time.
pub(crate) fn connect_unix(socket: &OwnedFd, address: &UnixAddress) -> io::Result<()> {
    connect_soon(socket, address)
}

fn connect_soon(socket: &OwnedFd, address: &impl SocketAddrArg) -> io::Result<()> {
    match rustix::net::connect(socket, address) {
        Err(error) if error == CONNECTING => {}
        done => return Ok(done?),
    }
    let mut asked = [PollFd::new(socket, PollFlags::OUT)];
    if rustix::event::poll(&mut asked, Some(&CONNECT))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(rustix::net::sockopt::socket_error(socket)??)
}

/// Whether the file is a Unix socket, and no link to one.
pub(crate) fn is_unix_socket(path: &Path) -> bool {
    // Not what it stands for: nobody can open that of a socket.
    let flags = FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS;
    let Ok(file) = OpenOptions::new().access_mode(FILE_READ_ATTRIBUTES).custom_flags(flags).open(path) else {
        return false;
    };
    let mut found = FILE_ATTRIBUTE_TAG_INFO::default();
    // SAFETY: the file is open, and the structure is there for the call to fill, as long as is said.
    let done = unsafe {
        GetFileInformationByHandleEx(
            file.as_raw_handle(),
            FileAttributeTagInfo,
            (&raw mut found).cast(),
            size_of::<FILE_ATTRIBUTE_TAG_INFO>() as u32,
        )
    };
    done != 0 && found.ReparseTag == IO_REPARSE_TAG_AF_UNIX
}

/// Nothing: who may connect to a Unix socket is what the folder hands on to its files.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn keep_to_owner(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes sends on a socket raise no signal: there are none.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn quiet<Fd: AsFd>(_: Fd) -> io::Result<()> {
    Ok(())
}

/// Whether a socket's error says that nobody listens there. A datagram that was sent to a
/// closed port resets its socket.
pub(crate) fn is_closed_port(errno: Errno) -> bool {
    matches!(errno, Errno::CONNREFUSED | Errno::CONNRESET)
}

/// Whether a socket's error says that it is not allowed.
pub(crate) fn is_forbidden(errno: Errno) -> bool {
    errno == Errno::ACCESS
}

/// Room for the adapters of a host with many.
const ADAPTERS: u32 = 16 << 10;
/// Asked again so often, when adapters came meanwhile.
const ATTEMPTS: u32 = 4;

/// The resolvers of the host's adapters that are up, without those that are reached by naming an adapter, and those that
/// Windows names where there is none (`fec0:0:0:ffff::1`).
pub(crate) fn name_servers() -> Vec<IpAddr> {
    let flags =
        GAA_FLAG_SKIP_UNICAST | GAA_FLAG_SKIP_ANYCAST | GAA_FLAG_SKIP_MULTICAST | GAA_FLAG_SKIP_FRIENDLY_NAME;
    let mut size = ADAPTERS;
    for _ in 0..ATTEMPTS {
        // Of words, for the structures are aligned.
        let mut room = vec![0_u64; (size as usize).div_ceil(8)];
        let first: *mut IP_ADAPTER_ADDRESSES_LH = room.as_mut_ptr().cast();
        // SAFETY: there are `size` bytes of room, aligned for the structure; nothing else is passed.
        match unsafe { GetAdaptersAddresses(AF_UNSPEC.into(), flags, null(), first, &raw mut size) } {
            // SAFETY: the call filled the room with a list that begins there, and the room is not moved.
            ERROR_SUCCESS => return unsafe { collect(first) },
            ERROR_BUFFER_OVERFLOW => {}
            _ => break,
        }
    }
    Vec::new()
}

/// # Safety
/// `adapter` is null or the first of a list that `GetAdaptersAddresses` made, all of which is still there.
unsafe fn collect(mut adapter: *const IP_ADAPTER_ADDRESSES_LH) -> Vec<IpAddr> {
    let mut all = Vec::new();
    // SAFETY: as the caller promised, for every pointer of the list.
    unsafe {
        while let Some(this) = adapter.as_ref() {
            adapter = this.Next;
            if this.OperStatus != IfOperStatusUp || this.IfType == IF_TYPE_SOFTWARE_LOOPBACK {
                continue;
            }
            let mut server = this.FirstDnsServerAddress.cast_const();
            while let Some(one) = server.as_ref() {
                server = one.Next;
                all.extend(address(&one.Address).filter(is_usable).filter(|address| !all.contains(address)));
            }
        }
    }
    all
}

/// # Safety
/// The address lies where and is as long as it says.
unsafe fn address(at: &SOCKET_ADDRESS) -> Option<IpAddr> {
    let len = usize::try_from(at.iSockaddrLength).ok()?;
    // SAFETY: as the caller promised; each is read only where there is as much, whatever its alignment.
    unsafe {
        match at.lpSockaddr.as_ref()?.sa_family {
            AF_INET if len >= size_of::<SOCKADDR_IN>() => {
                let v4: SOCKADDR_IN = at.lpSockaddr.cast::<SOCKADDR_IN>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.S_un.S_addr)).into())
            }
            AF_INET6 if len >= size_of::<SOCKADDR_IN6>() => {
                let v6: SOCKADDR_IN6 = at.lpSockaddr.cast::<SOCKADDR_IN6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.u.Byte).into())
            }
            _ => None,
        }
    }
}

fn is_usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => {
            let [first, ..] = address.segments();
            // Neither link-local nor site-local.
            !address.is_unspecified() && first & 0xff80 != 0xfe80
        }
    }
}

/// Gives the blocks of a range back, so that it reads as zeroes; false where that cannot be done. Here it cannot: a
/// range of a file that is not sparse would be written with zeroes.
pub(crate) fn punch_hole(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Zeroes a range and keeps its blocks; false where that cannot be done but by writing.
pub(crate) fn zero_range(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Reads exactly `into` from `file` at `offset`.
///
/// # Errors
/// The error of `ReadFile`, or the file is too short.
pub fn read_exact_at(file: &File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        let done = file.seek_read(into, offset)?;
        let rest = into.get_mut(done..).filter(|_| done > 0);
        into = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        offset += done as u64;
    }
    Ok(())
}

/// Writes all of `from` to `file` at `offset`.
///
/// # Errors
/// The error of `WriteFile`.
pub fn write_all_at(file: &File, mut from: &[u8], mut offset: u64) -> io::Result<()> {
    while !from.is_empty() {
        let done = file.seek_write(from, offset)?;
        let rest = from.get(done..).filter(|_| done > 0);
        from = rest.ok_or(io::ErrorKind::WriteZero)?;
        offset += done as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_that_need_an_adapter_or_stand_for_none_are_left_out() {
        for (address, usable) in [
            ("10.0.0.1", true),
            ("127.0.0.53", true),
            ("0.0.0.0", false),
            ("fe80::1", false),
            ("fec0:0:0:ffff::1", false),
            ("fd00::1", true),
            ("2001:db8::53", true),
        ] {
            assert_eq!(is_usable(&address.parse().unwrap()), usable, "{address}");
        }
        // What this host has is its own; none of it is left twice or unusable.
        let servers = name_servers();
        assert!(servers.iter().all(is_usable), "{servers:?}");
    }

    #[test]
    fn an_address_is_read_as_far_as_it_is_long() {
        let mut v4 = SOCKADDR_IN { sin_family: AF_INET, ..SOCKADDR_IN::default() };
        v4.sin_addr.S_un.S_addr = u32::from_be_bytes([10, 1, 2, 3]).to_be();
        let mut at = SOCKET_ADDRESS {
            lpSockaddr: (&raw mut v4).cast(),
            iSockaddrLength: size_of::<SOCKADDR_IN>() as i32,
        };
        // SAFETY: it lies there.
        assert_eq!(unsafe { address(&at) }, Some(IpAddr::from([10, 1, 2, 3])));
        at.iSockaddrLength -= 1;
        // SAFETY: as before, and it says that it is shorter.
        assert_eq!(unsafe { address(&at) }, None);
    }

    #[test]
    fn the_address_of_a_unix_socket_is_its_path_and_a_zero() {
        let address = unix_address(Path::new("C:\\ü.sock")).unwrap().0;
        let expected: Vec<_> = "C:\\ü.sock\0".bytes().map(u8::cast_signed).collect();
        assert_eq!((address.sun_family, &address.sun_path[..expected.len()]), (AF_UNIX, &expected[..]));
        assert!(unix_address(Path::new(&"x".repeat(107))).is_ok());
        for wrong in ["", "a\0b", &"x".repeat(108)] {
            let Err(refused) = unix_address(Path::new(wrong)) else { panic!("{wrong:?} was taken") };
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }

    #[test]
    fn a_connection_is_there_or_refused_when_the_call_is_over() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stream = || socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let ours = stream();
        connect_soon(&ours, &address).unwrap();
        let theirs = std::net::TcpStream::from(accept(&listener).unwrap());
        assert_eq!(rustix::net::send(&ours, b"there", SEND), Ok(5));
        io::Read::read_exact(&mut &theirs, &mut [0; 5]).unwrap();
        drop(listener);
        assert!(connect_soon(&stream(), &address).is_err());
    }

    #[test]
    fn a_file_and_a_folder_are_no_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        File::create(&file).unwrap();
        for path in [folder.path(), &file, &folder.path().join("missing")] {
            assert!(!is_unix_socket(path), "{}", path.display());
        }
    }

    #[test]
    fn sockets_for_pings_are_the_administrators() {
        let refused = socket(AddressFamily::INET, SocketType::DGRAM, Some(rustix::net::ipproto::ICMP));
        assert_eq!(refused.unwrap_err(), Errno::ACCESS);
    }
}
