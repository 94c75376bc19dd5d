//! How connections end: closed by either side, reset, and with the device.

use std::io::Write as _;
use std::net::Shutdown;

use vm_memory::{Bytes as _, GuestAddress};

use super::super::packet::{Header, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use super::super::{EVENT, TX};
use super::guest::Sock;
use super::*;
use crate::virtio::VirtioDevice as _;

#[test]
fn the_end_of_the_guests_data_is_an_end_of_file_behind_the_data_and_the_host_may_go_on() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(1, PORT);
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        guest.write(&mut sock, b"last words");
        guest.shutdown(&sock, SHUT_SEND);
        assert_eq!(read_exactly(&mut guest, &mut stream, 10), b"last words");
        expect_end(&mut guest, &mut stream);
        stream.write_all(b"answer").unwrap();
        assert_eq!(guest.expect(Op::Data).payload, b"answer");
        drop(stream);
        assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUT_BOTH);
        guest.send(sock.header(Op::Reset), &[]);
        // The ports are free again.
        guest.connect(1, PORT);
    }
}

#[test]
fn the_end_of_the_hosts_data_is_a_hint_behind_the_data_and_the_guest_may_go_on() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(1, PORT);
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        stream.write_all(b"request").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(guest.expect(Op::Data).payload, b"request");
        assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUT_SEND);
        guest.write(&mut sock, b"response");
        assert_eq!(read_exactly(&mut guest, &mut stream, 8), b"response");
        guest.shutdown(&sock, SHUT_BOTH);
        guest.expect(Op::Reset);
        expect_end(&mut guest, &mut stream);
    }
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_hosts_pipe_only() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let mut sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    guest.shutdown(&sock, SHUT_RECEIVE);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.write(&mut sock, b"still here");
    assert_eq!(read_exactly(&mut guest, &mut stream, 10), b"still here");
    guest.shutdown(&sock, SHUT_SEND);
    guest.expect(Op::Reset);
    expect_end(&mut guest, &mut stream);
}

#[test]
fn a_host_that_went_away_ends_both_directions_after_its_data() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    stream.write_all(&[7; 10_000]).unwrap();
    drop(stream);
    let mut got = 0;
    let end = loop {
        let packet = guest.next();
        match packet.op() {
            Op::Data => got += packet.payload.len(),
            Op::Shutdown if packet.header.flags == SHUT_RECEIVE => assert!(got < 10_000),
            _ => break packet,
        }
    };
    assert_eq!((got, end.op(), end.header.flags), (10_000, Op::Shutdown, SHUT_BOTH));
    guest.send(sock.header(Op::Reset), &[]);
    guest.expect_silence();
}

#[test]
fn a_host_that_went_away_without_reading_resets_the_guest() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(1, PORT);
        let stream = listener.accept(Some(DEADLINE)).unwrap();
        guest.write(&mut sock, b"never read");
        // It has to be in the socket of the host by now.
        guest.until("data", |_| {
            let mut byte = [0];
            let peeked = rustix::net::recv(&stream, &mut byte[..], rustix::net::RecvFlags::PEEK);
            peeked.is_ok().then_some(())
        });
        drop(stream);
        let end = loop {
            let packet = guest.next();
            if packet.op() != Op::Shutdown || packet.header.flags != SHUT_RECEIVE {
                break packet.op();
            }
        };
        assert_eq!(end, Op::Reset);
    }
}

#[test]
fn a_reset_by_the_guest_is_the_end_for_the_host_and_is_not_answered() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    guest.send(sock.header(Op::Reset), &[]);
    expect_end(&mut guest, &mut stream);
    guest.expect_silence();
    guest.send(sock.header(Op::CreditUpdate), &[]);
    guest.expect(Op::Reset);
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_host_even_after_a_reset() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let mut sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    let data = Noise(5).bytes(4 << 20);
    let mut sent = 0;
    // Until the socket of the host and our buffer are full.
    loop {
        let part = guest.write(&mut sock, &data[sent..]);
        sent += part;
        while let Some(packet) = guest.poll(true) {
            sock.hear(&packet);
        }
        if part == 0 && sock.credit() == 0 {
            break;
        }
    }
    guest.shutdown(&sock, SHUT_BOTH);
    guest.expect_silence();
    guest.send(sock.header(Op::Reset), &[]);
    // Its ports are free at once.
    let mut again = guest.connect(1, PORT);
    let mut second = listener.accept(None).unwrap();
    assert!(read_exactly(&mut guest, &mut stream, sent) == data[..sent]);
    expect_end(&mut guest, &mut stream);
    guest.write(&mut again, b"new");
    assert_eq!(read_exactly(&mut guest, &mut second, 3), b"new");
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset() {
    let (host, mut guest) =
        inline_with(Limits { close_timeout: Duration::from_millis(30), ..Limits::default() });
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    drop(listener.accept(None).unwrap());
    while guest.expect(Op::Shutdown).header.flags != SHUT_BOTH {}
    assert!(sock.owns(&guest.expect(Op::Reset)));
    guest.send(sock.header(Op::Data), b"late");
    guest.expect(Op::Reset);
}

#[test]
fn a_request_that_was_never_sent_is_given_up_without_a_word() {
    let (host, mut guest) =
        inline_with(Limits { connect_timeout: Duration::from_millis(30), ..Limits::default() });
    guest.start(0);
    let mut stream = host.dial(5).unwrap();
    expect_end(&mut guest, &mut stream);
    guest.give_buffers(4);
    guest.expect_silence();
}

#[test]
fn a_driver_that_starts_anew_ends_every_connection_and_works() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        for round in 0..3 {
            let mut sock = guest.connect(1, PORT);
            let mut stream = listener.accept(Some(DEADLINE)).unwrap();
            stream.write_all(&[1; 100_000]).unwrap();
            guest.write(&mut sock, &[2; 60_000]);
            assert_eq!(read_exactly(&mut guest, &mut stream, 10), [2; 10]);
            let dialer = host.clone();
            let connecting = std::thread::spawn(move || dialer.connect(5, DEADLINE));
            guest.until("the request", |guest| guest.poll(true).filter(|packet| packet.op() == Op::Request));
            guest.start(64);
            assert_eq!(
                connecting.join().unwrap().unwrap_err().kind(),
                io::ErrorKind::ConnectionReset,
                "{round}"
            );
            read_exactly(&mut guest, &mut stream, 59_990);
            expect_end(&mut guest, &mut stream);
        }
    }
}

#[test]
fn a_device_that_is_gone_says_so() {
    let (host, guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let waiting = std::thread::spawn(move || listener.accept(None).unwrap_err().kind());
    drop(guest);
    assert_eq!(waiting.join().unwrap(), io::ErrorKind::NotConnected);
    assert_eq!(host.dial(1).unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(host.connect(1, DEADLINE).unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(host.listen(2).unwrap().try_accept().unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_restored_device_tells_the_guest_that_its_connections_are_gone() {
    let host = VsockHost::new().unwrap();
    let mut device = Vsock::new(CID, &host).unwrap();
    let saved = device.save().unwrap();
    device.restore(&saved).unwrap();
    let mut guest = Guest::new(Rig::new(Box::new(device)), 16, 4096);
    guest.give_event_buffer(2);
    guest.give_event_buffer(8);
    guest.give_event_buffer(8);
    let lens: Vec<u32> = std::iter::from_fn(|| guest.rig.used(EVENT)).map(|used| used.len).collect();
    assert_eq!(lens, [0, 4], "a buffer that is too small, the event, and no second event");
    guest.send(Sock::new(1, PORT).header(Op::Data), b"from before");
    guest.expect(Op::Reset);
}

#[test]
fn the_state_of_a_guest_with_another_context_id_is_refused() {
    let host = VsockHost::new().unwrap();
    let saved = Vsock::new(4, &host).unwrap().save().unwrap();
    assert!(Vsock::new(CID, &host).unwrap().restore(&saved).is_err());
}

#[test]
fn what_the_guest_sent_just_before_it_went_off_reaches_the_host() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    // In the ring, without a doorbell.
    let packet = [&Header { len: 4, ..sock.header(Op::Data) }.to_bytes()[..], b"last"].concat();
    let addr = guest.rig.buffer(packet.len());
    guest.rig.mem().write_slice(&packet, GuestAddress(addr)).unwrap();
    guest.rig.add_raw(TX, &[(addr, packet.len(), false)]);
    guest.rig.write32(virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let mut got = Vec::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last");
}

#[cfg(unix)]
/// Connections in every state, on a device with its thread, all dropped at the end.
fn leave_connections_in_every_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let host = VsockHost::at(&path).unwrap();
    let device = Box::new(Vsock::new(CID, &host).unwrap());
    let mut guest = Guest::new(Rig::threaded(device), 64, 4096);
    let listener = host.listen(PORT).unwrap();
    // What else the device says does not matter here.
    let connect = |guest: &mut Guest, port| {
        let sock = Sock::new(port, PORT);
        guest.send(sock.header(Op::Request), &[]);
        guest.until("the response", |guest| guest.poll(true).filter(|packet| packet.op() == Op::Response));
        sock
    };
    let mut keep = Vec::new();
    for port in 0..10 {
        let sock = connect(&mut guest, port);
        let stream = listener.accept(Some(DEADLINE)).unwrap();
        match port {
            0..3 => keep.push(stream),
            3 => guest.send(sock.header(Op::Reset), &[]),
            4 => guest.shutdown(&sock, SHUT_BOTH),
            5 => drop(stream),
            6 => stream.shutdown(Shutdown::Both).unwrap(),
            7 => guest.send(Header { op: 77, ..sock.header(Op::Data) }, &[]),
            8 => drop((connect(&mut guest, 100), stream)),
            _ => keep.extend((&stream).write_all(b"unread").map(|()| stream)),
        }
    }
    keep.extend((0..3).map(|port| host.dial(port).unwrap()));
    keep.extend((0..3).map(|_| HostStream::connect(&path).unwrap()));
    (&keep[keep.len() - 1]).write_all(b"CONNECT 9\n").unwrap();
    let requests = |guest: &mut Guest| guest.poll(true).filter(|packet| packet.header.dst_port == 9);
    guest.until("the request by path", requests);
    guest.start(16);
    connect(&mut guest, 1);
}

#[cfg(unix)]
#[test]
fn no_descriptor_and_no_thread_is_left_behind() {
    const CHILD: &str = "SERVIN_TEST_VSOCK_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        // Other tests have descriptors of their own: look in a process without them.
        let name = "virtio::vsock::tests::ends::no_descriptor_and_no_thread_is_left_behind";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(CHILD, "1")
            .output();
        let child = match child {
            // Another architecture's program cannot start itself without its emulator.
            Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
                println!("skipped: this program runs in an emulator and cannot start itself");
                return;
            }
            child => child.unwrap(),
        };
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let count = |what| std::fs::read_dir(what).unwrap().count();
    leave_connections_in_every_state();
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..5 {
        leave_connections_in_every_state();
    }
    assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), before);
}
