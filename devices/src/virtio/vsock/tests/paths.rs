//! The host's side by Unix sockets.

use std::io::{BufRead as _, BufReader, Write as _};
#[cfg(windows)]
use std::net::TcpStream as Client;
#[cfg(unix)]
use std::os::unix::net::UnixStream as Client;
use std::path::Path;

use super::super::packet::Op;
use super::super::socket::{Bound, dial};
use super::guest::Sock;
use super::*;

struct Place {
    folder: tempfile::TempDir,
    host: VsockHost,
    guest: Guest,
}

/// A host side at a path; nothing, and a line that says why, where the system has no Unix sockets.
fn at(path: &Path) -> Option<VsockHost> {
    match VsockHost::at(path) {
        Err(error) if cfg!(windows) && error.kind() == io::ErrorKind::Unsupported => {
            println!("skipped: {error}");
            None
        }
        host => Some(host.unwrap()),
    }
}

fn place_with(limits: Limits) -> Option<Place> {
    let folder = tempfile::tempdir().unwrap();
    let host = at(&folder.path().join("v.sock"))?;
    let device = Vsock::with_limits(CID, &host, limits).unwrap();
    let guest = Guest::new(Rig::new(Box::new(device)), 32, 4096);
    Some(Place { folder, host, guest })
}

fn client(place: &Place, greeting: &[u8]) -> Client {
    let mut client = Client::from(dial(&place.folder.path().join("v.sock")).unwrap());
    client.write_all(greeting).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

#[test]
fn a_program_connects_by_the_path_and_hears_the_port_it_got() {
    let Some(mut place) = place_with(Limits::default()) else { return };
    let mut client = client(&place, b"CONNECT 52\nhello");
    let mut sock = place.guest.accept(4096);
    assert_eq!(sock.guest_port, 52);
    assert_eq!(place.guest.expect(Op::Data).payload, b"hello");
    place.guest.write(&mut sock, b"welcome\n");
    client.set_nonblocking(false).unwrap();
    let mut lines = BufReader::new(&mut client).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), format!("OK {}", sock.host_port));
    assert_eq!(lines.next().unwrap(), "welcome");
}

#[test]
fn ports_differ_between_connections() {
    let Some(mut place) = place_with(Limits::default()) else { return };
    let _clients = [client(&place, b"CONNECT 52\n"), client(&place, b"CONNECT 52\n")];
    assert_ne!(place.guest.accept(1).host_port, place.guest.accept(1).host_port);
}

#[test]
fn a_refused_or_mistaken_program_sees_an_end_of_file() {
    let Some(mut place) = place_with(Limits::default()) else { return };
    let mut refused = client(&place, b"CONNECT 52\n");
    let request = place.guest.expect(Op::Request);
    place.guest.send(request.header.reset(), &[]);
    expect_end(&mut place.guest, &mut refused);
    for mistake in [&b"HELLO\n"[..], b"CONNECT\n", &[b'x'; 64]] {
        let mut client = client(&place, mistake);
        // Closed before all was read, it may be a reset.
        let ended = |_: &mut Guest| match client.read(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(0) | Err(_) => Some(()),
            Ok(_) => panic!("an answer to a mistake"),
        };
        place.guest.until("the end", ended);
    }
    place.guest.expect_silence();
}

#[test]
fn a_program_that_leaves_in_the_middle_of_its_greeting_frees_its_place() {
    let Some(mut place) = place_with(Limits { connections: 1, ..Limits::default() }) else { return };
    for greeting in [&b"CONN"[..], b""] {
        let leaving = client(&place, greeting);
        place.guest.rig.run();
        drop(leaving);
        place.guest.rig.run();
    }
    let _client = client(&place, b"CONNECT 52\n");
    place.guest.accept(1);
    // The only place is taken.
    let mut second = client(&place, b"");
    expect_end(&mut place.guest, &mut second);
}

#[test]
fn a_guest_connects_to_a_socket_named_by_the_port() {
    let Some(mut place) = place_with(Limits::default()) else { return };
    let listener = Bound::new(place.folder.path().join("v.sock_1024")).unwrap();
    let mut sock = place.guest.connect(1, 1024);
    let mut stream = &listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    place.guest.write(&mut sock, b"hello");
    assert_eq!(read_exactly(&mut place.guest, &mut stream, 5), b"hello");
    // A port that nobody serves.
    place.guest.send(Sock::new(1, 1025).header(Op::Request), &[]);
    place.guest.expect(Op::Reset);
    // A listener in this process comes first.
    let inner = place.host.listen(1024).unwrap();
    place.guest.connect(2, 1024);
    inner.try_accept().unwrap().unwrap();
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_last_handle() {
    let Some(place) = place_with(Limits::default()) else { return };
    let path = place.folder.path().join("v.sock");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(VsockHost::at(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let Place { folder: _folder, host, guest } = place;
    drop(guest);
    assert!(path.exists());
    drop(host);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_anything_else_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let Some(first) = at(&path) else { return };
    // What a kill leaves: the file by another name, when the first is gone.
    let other = folder.path().join("other.sock");
    std::fs::rename(&path, &other).unwrap();
    drop(first);
    std::fs::rename(&other, &path).unwrap();
    drop(VsockHost::at(&path).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(VsockHost::at(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}

#[test]
fn a_path_that_cannot_be_bound_is_an_error() {
    assert!(VsockHost::at("/nowhere/at/all/v.sock").is_err());
    let long = format!("/tmp/{}", "x".repeat(200));
    assert_ne!(VsockHost::at(long).unwrap_err().kind(), io::ErrorKind::Unsupported);
}

#[cfg(windows)]
#[test]
fn a_system_without_unix_sockets_says_so() {
    if let Err(refused) = VsockHost::at("no-folder/v.sock")
        && refused.kind() == io::ErrorKind::Unsupported
    {
        assert!(refused.to_string().contains("no Unix sockets"), "{refused}");
    }
}
