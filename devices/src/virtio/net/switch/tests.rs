//! Guests on one network, each with a card of its own.

mod six;

use std::path::Path;
use std::time::Duration;

use super::super::header::{GSO_TCPV4, Header, NEEDS_CSUM};
use super::super::testing::{self, Guest, OUTSIDE};
use super::super::wire::{ACK, Tcp};
use super::super::{Net, TRANSMIT};
use super::*;

const A: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 15), testing::MAC);
const B: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 16), Mac([2, 0x42, 10, 0, 2, 16]));
const C: (Ipv4Addr, Mac) = (Ipv4Addr::new(10, 0, 2, 17), Mac([2, 0x42, 10, 0, 2, 17]));

/// A network of three, of whom nobody runs yet.
fn network() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    list(dir.path(), &[(A, "one"), (B, "two db"), (C, "three db")]);
    dir
}

fn list(dir: &Path, members: &[((Ipv4Addr, Mac), &str)]) {
    let line = |((address, mac), names): &((Ipv4Addr, Mac), &str)| {
        let names = names.split(' ').map(str::to_owned).collect();
        format!("{}\n", Member { address: *address, mac: *mac, address6: None, names })
    };
    std::fs::write(dir.join("new"), members.iter().map(line).collect::<String>()).unwrap();
    std::fs::rename(dir.join("new"), dir.join(MEMBERS)).unwrap();
}

fn config((address, mac): (Ipv4Addr, Mac), dir: &Path) -> Config {
    let addresses = nat::Addresses { guest: address, ..testing::addresses() };
    let nat = nat::Config { addresses, mac, ..testing::config(Vec::new()) };
    Config { nat, directory: dir.to_path_buf() }
}

fn guest(who: (Ipv4Addr, Mac), dir: &Path) -> Guest {
    let switch = Switch::new(config(who, dir)).unwrap();
    Guest::on(Net::new(who.1, Box::new(switch)), u64::MAX)
}

/// A UDP frame of one to another.
fn datagram(from: (Ipv4Addr, Mac), to: (Ipv4Addr, Mac), data: &[u8]) -> Vec<u8> {
    let (src, dst) = ((from.0, 7).into(), (to.0, 9).into());
    let mut frame = Vec::new();
    let (start, offset) = Link { dst: to.1, src: from.1 }.udp(&mut frame, src, dst, data.len());
    frame.extend(data);
    wire::finish(&mut frame, [&[], &[]], start.into(), offset.into());
    frame
}

/// Nothing is there for the guest, nor comes while the device looks for it.
fn hears_nothing(guest: &mut Guest) {
    guest.rig.transport().turn(Duration::ZERO).unwrap();
    assert!(guest.poll().is_none());
}

#[test]
fn two_guests_find_and_hear_each_other_and_a_third_does_not() {
    let dir = network();
    let (mut a, mut b, mut c) = (guest(A, dir.path()), guest(B, dir.path()), guest(C, dir.path()));
    // Who has B's address?
    a.send(&asks(A, B.0));
    assert_eq!(a.receive().bytes, Link { dst: A.1, src: B.1 }.arp_reply(B.0, A.0));
    a.send(&datagram(A, B, b"hello"));
    assert_eq!(b.receive().bytes, datagram(A, B, b"hello"));
    b.send(&datagram(B, A, b"and back"));
    assert_eq!(a.receive().bytes, datagram(B, A, b"and back"));
    hears_nothing(&mut c);
    // The gateway is everybody's own.
    a.send(&asks(A, [10, 0, 2, 2].into()));
    assert_eq!(a.receive().ethernet().src, GATEWAY_MAC);
}

/// An ARP request.
fn asks((address, mac): (Ipv4Addr, Mac), for_: Ipv4Addr) -> Vec<u8> {
    let mut frame = [Mac::BROADCAST.0, mac.0].concat();
    frame.extend(wire::ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(for_.octets());
    frame
}

#[test]
fn a_member_that_does_not_run_has_no_address_and_no_name() {
    let dir = network();
    let mut a = guest(A, dir.path());
    let names = MemberNames(Arc::new(Members::new(Directory::open(dir.path()).unwrap())));
    let lookup = |name: &str| nat::Names::lookup(&names, name);
    assert_eq!((lookup("one"), lookup("two"), lookup("db")), (Some(vec![A.0.into()]), None, None));
    a.send(&asks(A, B.0));
    hears_nothing(&mut a);
    a.send(&datagram(A, B, b"lost"));
    let b = guest(B, dir.path());
    let _c = guest(C, dir.path());
    assert_eq!(lookup("two"), Some(vec![B.0.into()]));
    // Both have the name, and the one that runs still is answered for.
    assert_eq!(lookup("db"), Some(vec![B.0.into(), C.0.into()]));
    drop(b);
    assert_eq!((lookup("two"), lookup("db")), (None, Some(vec![C.0.into()])));
    // A new list is seen at once.
    list(dir.path(), &[(C, "three cache")]);
    assert_eq!((lookup("db"), lookup("cache")), (None, Some(vec![C.0.into()])));
}

#[test]
fn names_of_all_networks_are_known_while_they_are_there() {
    let (near, far) = (network(), tempfile::tempdir().unwrap());
    list(far.path(), &[(C, "four db")]);
    let names = Directories::new();
    let lookup = |name: &str| nat::Names::lookup(&names, name);
    names.add(near.path()).unwrap();
    names.add(near.path()).unwrap();
    assert!(names.add(&far.path().join("none")).is_err());
    // The gateway of the one network is asked for a member of the other.
    let mut one = config(A, near.path());
    one.nat.names = Some(Box::new(names.clone()));
    let mut a = Guest::on(Net::new(A.1, Box::new(Switch::new(one).unwrap())), u64::MAX);
    let _b = guest(B, near.path());
    let _c = guest(C, far.path());
    assert_eq!((lookup("four"), lookup("db")), (None, Some(vec![B.0.into()])));
    names.add(far.path()).unwrap();
    assert_eq!(lookup("db"), Some(vec![B.0.into(), C.0.into()]));
    a.send(&question(A, b"\x04four"));
    assert!(a.receive().body().ends_with(&C.0.octets()));
    names.remove(near.path());
    assert_eq!((lookup("two"), lookup("four")), (None, Some(vec![C.0.into()])));
}

/// A question to the gateway for the address of a name.
fn question(who: (Ipv4Addr, Mac), name: &[u8]) -> Vec<u8> {
    let head = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00";
    let question = [&head[..], name, b"\x00\x00\x01\x00\x01"].concat();
    let (src, dst) = ((who.0, 4000).into(), ([10, 0, 2, 2], 53).into());
    let mut frame = Vec::new();
    let (start, offset) = Link { dst: GATEWAY_MAC, src: who.1 }.udp(&mut frame, src, dst, question.len());
    frame.extend(question);
    wire::finish(&mut frame, [&[], &[]], start.into(), offset.into());
    frame
}

#[test]
fn one_that_was_started_again_is_found_again() {
    let dir = network();
    let (mut a, b) = (guest(A, dir.path()), guest(B, dir.path()));
    a.send(&datagram(A, B, b"first"));
    // Its place is taken before it is gone, as a restart does.
    let mut again = guest(B, dir.path());
    drop(b);
    a.send(&datagram(A, B, b"second"));
    assert_eq!(again.receive().bytes, datagram(A, B, b"second"));
}

#[test]
fn a_guest_speaks_by_its_own_addresses_alone() {
    let dir = network();
    let (mut a, mut b) = (guest(A, dir.path()), guest(B, dir.path()));
    a.send(&datagram((A.0, C.1), B, b"another's address on the wire"));
    a.send(&datagram((C.0, A.1), B, b"another's address"));
    a.send(&datagram((Ipv4Addr::new(10, 0, 2, 2), A.1), B, b"the gateway's"));
    let mut v6 = datagram(A, B, b"no IPv4");
    v6[12..14].copy_from_slice(&wire::IPV6.to_be_bytes());
    a.send(&v6);
    for len in 0..30 {
        a.send(&datagram(A, B, b"")[..len.max(1)]);
    }
    a.send(&datagram(A, B, b"true"));
    assert_eq!(b.receive().bytes, datagram(A, B, b"true"));
    hears_nothing(&mut b);
}

#[test]
fn what_arrives_is_not_believed() {
    let dir = network();
    let mut b = guest(B, dir.path());
    let forger = UnixDatagram::unbound().unwrap();
    forger.connect(Directory::open(dir.path()).unwrap().socket(B.1)).unwrap();
    let mut say = |header: Header, frame: &[u8]| {
        forger.send(&[&header.to_bytes()[..], frame].concat()).unwrap();
        hears_nothing(&mut b);
    };
    let plain = Header::default();
    let good = datagram(A, B, b"x");
    say(plain, &[]);
    say(plain, &good[..good.len() - 1]);
    for from in [B, (A.0, C.1), (A.0, GATEWAY_MAC), (Ipv4Addr::new(10, 0, 2, 2), A.1), ([9; 4].into(), A.1)] {
        say(plain, &datagram(from, B, b"x"));
    }
    say(plain, &datagram(A, (B.0, C.1), b"x"));
    say(Header { flags: 2, ..plain }, &good);
    // A checksum in the header, and beyond the end.
    for (start, offset) in [(0, 6), (33, 6), (34, 8), (u16::MAX, u16::MAX)] {
        say(Header { flags: NEEDS_CSUM, csum_start: start, csum_offset: offset, ..plain }, &good);
    }
    // Long segments that are none.
    let sum = Header { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..plain };
    say(Header { gso_type: GSO_TCPV4, gso_size: 1400, ..sum }, &good);
    let (head, payload) = segment(A, B, 4000);
    let long = [head.as_slice(), payload.as_slice()].concat();
    say(sum, &long);
    for (gso_type, gso_size) in [(GSO_TCPV4, 0), (GSO_TCPV4, 20), (4, 1400), (3, 1400), (0x81, 1400)] {
        say(Header { gso_type, gso_size, ..sum }, &long);
    }
    say(Header { gso_type: GSO_TCPV4, gso_size: 1400, ..plain }, &long);
    say(plain, &vec![0; LONGEST]);
    forger.send(&[&plain.to_bytes()[..], &good].concat()).unwrap();
    assert_eq!(b.receive().bytes, good);
}

/// The headers of a TCP segment, its checksum unfinished, and its payload.
fn segment(from: (Ipv4Addr, Mac), to: (Ipv4Addr, Mac), len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut head = Vec::new();
    let tcp = Tcp { src: 1, dst: 2, flags: ACK, ..Tcp::default() };
    let ends = ((from.0, 1).into(), (to.0, 2).into());
    Link { dst: to.1, src: from.1 }.tcp(&mut head, ends, &tcp, len);
    (head, (0..len).map(|at| at as u8).collect())
}

#[test]
fn a_long_segment_stays_whole_with_its_checksum_unfinished() {
    let dir = network();
    let (mut a, mut b) = (guest(A, dir.path()), guest(B, dir.path()));
    let (head, payload) = segment(A, B, 60_000);
    // What it says of its headers is of no account.
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 9999,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    };
    a.rig.add(TRANSMIT, &[&header.to_bytes(), &head, &payload], &[]);
    let got = b.receive();
    assert_eq!(got.bytes, [head, payload].concat());
    assert_eq!(Header { num_buffers: 0, hdr_len: 9999, ..got.header }, header);
    assert_eq!(got.header.hdr_len, 54);
}

#[test]
fn a_broadcast_reaches_all_that_run() {
    let dir = network();
    let (mut a, mut b, mut c) = (guest(A, dir.path()), guest(B, dir.path()), guest(C, dir.path()));
    let everybody = (Ipv4Addr::BROADCAST, Mac::BROADCAST);
    a.send(&datagram(A, everybody, b"all"));
    for guest in [&mut b, &mut c] {
        assert_eq!(guest.receive().bytes, datagram(A, everybody, b"all"));
    }
    hears_nothing(&mut a);
}

#[test]
fn frames_wait_for_one_that_takes_none_and_keep_nobody_up() {
    let dir = network();
    let (mut a, mut b, mut c) = (guest(A, dir.path()), guest(B, dir.path()), guest(C, dir.path()));
    // More than B's socket holds, while its device does not look.
    let frames: Vec<Vec<u8>> = (0..600_u32).map(|n| datagram(A, B, &n.to_be_bytes())).collect();
    for frame in &frames {
        a.send(frame);
    }
    a.send(&datagram(A, C, b"not behind them"));
    assert_eq!(c.receive().bytes, datagram(A, C, b"not behind them"));
    for frame in &frames {
        let got = loop {
            if let Some(got) = b.poll() {
                b.post(100);
                break got;
            }
            a.rig.transport().turn(Duration::ZERO).unwrap();
            b.rig.transport().turn(Duration::from_millis(20)).unwrap();
        };
        assert!(got.bytes == *frame, "they come in order and all of them");
    }
}

#[test]
fn what_waits_for_one_that_never_takes_it_is_bounded() {
    let dir = network();
    let (mut a, b) = (guest(A, dir.path()), guest(B, dir.path()));
    let frame = datagram(A, B, &[1; 1400]);
    for _ in 0..4000 {
        a.send(&frame);
    }
    // It goes; what waited is forgotten, and the device sleeps.
    drop(b);
    a.rig.transport().turn(Duration::from_millis(20)).unwrap();
    let mut again = guest(B, dir.path());
    a.send(&datagram(A, B, b"again"));
    assert_eq!(again.receive().bytes, datagram(A, B, b"again"));
}

#[test]
fn without_an_outside_the_gateway_leads_nowhere_and_knows_names() {
    let dir = network();
    let mut config = config(A, dir.path());
    config.nat.outside = false;
    let switch = Switch::new(config).unwrap();
    let mut a = Guest::on(Net::new(A.1, Box::new(switch)), u64::MAX);
    a.send(&datagram(A, (OUTSIDE.parse().unwrap(), GATEWAY_MAC), b"out"));
    let told = a.receive();
    assert_eq!((told.ip().protocol, &told.body()[..2]), (wire::ICMP, &[3, 0][..]));
    a.send(&question(A, b"\x03one"));
    assert!(a.receive().body().ends_with(&A.0.octets()));
}

#[test]
fn no_bytes_of_a_guest_or_of_another_break_a_promise() {
    let mut state = 0x5e41_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for _ in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..1200).map(|_| byte()).collect();
        fuzz::fuzz(&bytes, dir.path());
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/switch");
    for input in std::fs::read_dir(corpus).unwrap() {
        let dir = tempfile::tempdir().unwrap();
        fuzz::fuzz(&std::fs::read(input.unwrap().path()).unwrap(), dir.path());
    }
}
