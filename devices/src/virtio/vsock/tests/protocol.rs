//! What each packet, and each end of a connection, leads to.

use std::io::Write as _;

use super::super::TX;
use super::super::packet::{HOST_CID, Header, Op};
use super::guest::Sock;
use super::*;
use crate::event::{Poller, Ready};

#[test]
fn a_guest_connects_and_both_sides_hear_each_other() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(50_000, PORT);
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        guest.write(&mut sock, b"hello");
        assert_eq!(read_exactly(&mut guest, &mut stream, 5), b"hello");
        stream.write_all(b"welcome").unwrap();
        assert_eq!(guest.expect(Op::Data).payload, b"welcome");
    }
}

#[test]
fn a_host_connects_and_both_sides_hear_each_other() {
    for (host, mut guest) in both() {
        let dialer = host.clone();
        let connecting = std::thread::spawn(move || dialer.connect(77, DEADLINE));
        let mut sock = guest.accept(4096);
        assert_eq!(sock.guest_port, 77);
        guest.until("the answer", |_| connecting.is_finished().then_some(()));
        let mut stream = connecting.join().unwrap().unwrap();
        stream.write_all(b"question").unwrap();
        assert_eq!(guest.expect(Op::Data).payload, b"question");
        guest.write(&mut sock, b"answer");
        assert_eq!(read_exactly(&mut guest, &mut stream, 6), b"answer");
    }
}

#[test]
fn a_request_its_response_and_the_first_data_cost_one_interrupt_each_way() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let before = guest.rig.line().edges();
    let mut sock = guest.connect(1, PORT);
    assert_eq!(guest.rig.line().edges(), before + 1);
    let mut stream = listener.try_accept().unwrap().unwrap();
    guest.write(&mut sock, b"data");
    assert_eq!(guest.rig.line().edges(), before + 2);
    let mut got = [0; 4];
    assert_eq!(read_some(&mut stream, &mut got), Some(4));
}

#[test]
fn what_is_dialed_before_the_driver_is_ready_is_requested_when_it_is() {
    let host = VsockHost::new().unwrap();
    let device = Vsock::new(CID, &host).unwrap();
    let mut stream = host.dial(9).unwrap();
    stream.write_all(b"early").unwrap();
    let mut guest = Guest::new(Rig::new(Box::new(device)), 16, 4096);
    guest.accept(100);
    assert_eq!(guest.expect(Op::Data).payload, b"early");
}

#[test]
fn a_port_without_a_listener_is_reset() {
    let (host, mut guest) = inline();
    drop(host.listen(PORT).unwrap());
    guest.send(Sock::new(7, PORT).header(Op::Request), &[]);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.header.src_port, reset.header.dst_port), (PORT, 7));
}

#[test]
fn a_port_has_one_listener_at_a_time() {
    let (host, _guest) = inline();
    let listener = host.listen(PORT).unwrap();
    assert_eq!(host.listen(PORT).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    host.listen(PORT).unwrap();
}

#[test]
fn packets_for_unknown_connections_are_reset_but_never_a_reset() {
    let (_host, mut guest) = inline();
    let sock = Sock::new(7, PORT);
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(sock.header(op), &[]);
        guest.expect(Op::Reset);
    }
    guest.send(Header { op: 99, ..sock.header(Op::Data) }, &[]);
    guest.expect(Op::Reset);
    guest.send(sock.header(Op::Reset), &[]);
    guest.expect_silence();
}

#[test]
fn a_packet_to_another_context_or_of_another_type_is_reset_and_one_from_another_is_dropped() {
    let (host, mut guest) = inline();
    let _listener = host.listen(PORT).unwrap();
    let request = Sock::new(7, PORT).header(Op::Request);
    guest.send(Header { kind: 2, ..request }, &[]);
    assert_eq!(guest.expect(Op::Reset).header.kind, 2);
    for src_cid in [0, 4, CID | 1 << 32] {
        guest.send(Header { src_cid, ..request }, &[]);
    }
    guest.send(Header { dst_cid: 5, op: Op::Reset as u16, ..request }, &[]);
    guest.expect_silence();
    guest.send(Header { dst_cid: HOST_CID | 1 << 40, ..request }, &[]);
    let used = guest.until("the reset", |guest| guest.rig.used(super::super::RX));
    assert_eq!(used.data[..8], (HOST_CID | 1 << 40).to_le_bytes());
}

#[test]
fn malformed_packets_are_dropped_or_reset_and_the_device_goes_on() {
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(1, PORT);
        let bytes = sock.header(Op::Data).to_bytes();
        guest.send_pieces(&[&bytes[..43]]);
        guest.send_pieces(&[&bytes[..1]]);
        // Says 4 bytes, brings 3.
        let lying = Header { len: 4, ..sock.header(Op::Data) }.to_bytes();
        guest.send_pieces(&[&lying, b"abc"]);
        assert!(sock.owns(&guest.expect(Op::Reset)));
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        expect_end(&mut guest, &mut stream);
        // A chain without anything to read.
        guest.rig.add(TX, &[], &[64]);
        guest.rig.wait_used(TX);
        // The device is in order.
        sock = guest.connect(1, PORT);
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        // Brings more than it says.
        let modest = Header { len: 2, ..sock.header(Op::Data) }.to_bytes();
        guest.send_pieces(&[&modest, b"abc"]);
        assert_eq!(read_exactly(&mut guest, &mut stream, 2), b"ab");
        assert!(!guest.rig.needs_reset());
        // An unknown operation.
        guest.send(Header { op: 8, ..sock.header(Op::Data) }, &[]);
        assert!(sock.owns(&guest.expect(Op::Reset)));
        expect_end(&mut guest, &mut stream);
    }
}

#[test]
fn a_header_and_its_payload_may_be_cut_anywhere() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    let packet = [&Header { len: 5, ..sock.header(Op::Data) }.to_bytes()[..], b"hello"].concat();
    for cut in 1..packet.len() {
        let (front, back) = packet.split_at(cut);
        let (middle, back) = back.split_at(back.len() / 2);
        if middle.is_empty() {
            guest.send_pieces(&[front, back]);
        } else {
            guest.send_pieces(&[front, middle, back]);
        }
        assert_eq!(read_exactly(&mut guest, &mut stream, 5), b"hello", "{cut}");
    }
}

#[test]
fn receive_buffers_in_pieces_are_filled_and_useless_ones_are_given_back() {
    let (host, mut guest) = inline();
    guest.start(0);
    let listener = host.listen(PORT).unwrap();
    for pieces in [&[44_usize][..], &[10], &[20, 30, 3], &[44, 2], &[3, 60]] {
        guest.rig.add(super::super::RX, &[], pieces);
    }
    guest.send(Sock::new(1, PORT).header(Op::Request), &[]);
    let mut stream = listener.accept(Some(DEADLINE)).unwrap();
    stream.write_all(b"0123456789").unwrap();
    guest.rig.run();
    let lens: Vec<u32> =
        std::iter::from_fn(|| guest.rig.used(super::super::RX)).map(|used| used.len).collect();
    assert_eq!(lens, [0, 0, 44, 46, 52]);
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let (host, mut guest) = inline_with(Limits { buffer: 1000, ..Limits::default() });
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let stream = listener.accept(None).unwrap();
    let fill = |guest: &mut Guest| {
        // What the host does not take stays in our buffer, up to 1000 bytes.
        guest.send(sock.header(Op::Data), &[1; 1000]);
        match guest.poll(true) {
            Some(packet) if packet.op() == Op::Reset => Some(()),
            _ => None,
        }
    };
    guest.until("the reset", fill);
    drop(stream);
}

#[test]
fn a_starved_connection_asks_for_credit_once_and_goes_on_when_it_comes() {
    let (host, mut guest) = inline();
    let mut stream = host.dial(5).unwrap();
    guest.rig.run();
    let mut sock = guest.accept(0);
    stream.write_all(b"abcdef").unwrap();
    guest.expect(Op::CreditRequest);
    guest.send(sock.header(Op::CreditUpdate), &[]);
    guest.expect_silence();
    sock.buf_alloc = 4;
    guest.send(sock.header(Op::CreditUpdate), &[]);
    assert_eq!(guest.expect(Op::Data).payload, b"abcd");
    guest.expect(Op::CreditRequest);
    // The buffer shrinks while it is full.
    (sock.buf_alloc, sock.consumed) = (2, 2);
    guest.send(sock.header(Op::CreditUpdate), &[]);
    guest.expect_silence();
    sock.consumed = 3;
    guest.send(sock.header(Op::CreditUpdate), &[]);
    assert_eq!(guest.expect(Op::Data).payload, b"e");
}

#[test]
fn a_credit_request_of_the_guest_is_answered() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let mut sock = guest.connect(1, PORT);
    let _stream = listener.accept(None).unwrap();
    guest.write(&mut sock, &[0; 100]);
    guest.send(sock.header(Op::CreditRequest), &[]);
    let update = guest.expect(Op::CreditUpdate);
    assert_eq!((update.header.buf_alloc, update.header.fwd_cnt), (256 * 1024, 100));
}

#[test]
fn connections_over_the_limit_are_reset_until_one_ends() {
    let (host, mut guest) = inline_with(Limits { connections: 3, ..Limits::default() });
    let listener = host.listen(PORT).unwrap();
    let socks: Vec<Sock> = (0..3).map(|port| guest.connect(port, PORT)).collect();
    guest.send(Sock::new(9, PORT).header(Op::Request), &[]);
    assert_eq!(guest.expect(Op::Reset).header.dst_port, 9);
    let mut dialed = host.dial(5).unwrap();
    expect_end(&mut guest, &mut dialed);
    let dialer = host.clone();
    let connecting = std::thread::spawn(move || dialer.connect(5, DEADLINE));
    guest.until("the refusal", |_| connecting.is_finished().then_some(()));
    assert_eq!(connecting.join().unwrap().unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    guest.send(socks[1].header(Op::Reset), &[]);
    guest.connect(9, PORT);
    drop(listener);
}

#[test]
fn a_second_request_on_the_same_ports_resets_the_connection() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    guest.send(sock.header(Op::Request), &[]);
    guest.expect(Op::Reset);
    expect_end(&mut guest, &mut stream);
    assert!(listener.try_accept().unwrap().is_none());
}

#[test]
fn a_guest_that_refuses_or_does_not_answer_is_told_apart() {
    let (host, mut guest) =
        inline_with(Limits { connect_timeout: Duration::from_millis(30), ..Limits::default() });
    for (answers, kind) in [(true, io::ErrorKind::ConnectionRefused), (false, io::ErrorKind::TimedOut)] {
        let dialer = host.clone();
        let connecting = std::thread::spawn(move || dialer.connect(5, DEADLINE));
        let request = guest.expect(Op::Request);
        if answers {
            guest.send(request.header.reset(), &[]);
        }
        guest.until("the answer", |_| connecting.is_finished().then_some(()));
        assert_eq!(connecting.join().unwrap().unwrap_err().kind(), kind);
    }
    // The guest that did not answer hears that it is too late.
    guest.expect(Op::Reset);
}

#[test]
fn a_guest_without_buffers_is_not_listened_to_for_ever_and_nothing_is_lost() {
    let (_host, mut guest) = inline();
    guest.start(0);
    let mut sent = 0;
    // 128 descriptors of the ring, and what the device keeps.
    while guest.rig.try_add(TX, &[&Sock::new(sent, PORT).header(Op::Data).to_bytes()], &[]).is_some() {
        sent += 1;
        while guest.rig.used(TX).is_some() {}
        assert!(sent < 1000, "the device takes packets that it cannot answer");
    }
    assert!(sent > 256);
    guest.give_buffers(64);
    for port in 0..sent {
        assert_eq!(guest.expect(Op::Reset).header.dst_port, port);
    }
}

#[test]
fn a_listener_is_readable_while_a_connection_waits() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let mut poller = Poller::new().unwrap();
    poller.watch(listener.source(), 0, Ready::READ).unwrap();
    let mut readable = || {
        let mut ready = Vec::new();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        ready.len() == 1
    };
    assert!(!readable());
    assert_eq!(listener.accept(Some(Duration::from_millis(1))).unwrap_err().kind(), io::ErrorKind::TimedOut);
    guest.connect(1, PORT);
    guest.connect(2, PORT);
    assert!(readable());
    listener.try_accept().unwrap().unwrap();
    assert!(readable());
    listener.try_accept().unwrap().unwrap();
    assert!(!readable());
}

#[test]
fn the_guest_reads_its_context_id() {
    let (_host, mut guest) = inline();
    let mut cid = [0xff; 12];
    guest.rig.read_config(0, &mut cid);
    assert_eq!(cid, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}
