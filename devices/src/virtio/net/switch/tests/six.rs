//! IPv6 among the members.

use std::net::Ipv6Addr;

use super::super::super::header::GSO_TCPV6;
use super::*;

/// The IPv6 address of who has an IPv4 one.
fn six(who: (Ipv4Addr, Mac)) -> Ipv6Addr {
    Ipv6Addr::new(0xfd53, 0x5600, 0, 0, 0, 0, 0, who.0.octets()[3].into())
}

/// A network of three, two of whom have IPv6.
fn network() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let line = |who: (Ipv4Addr, Mac), name: &str, has: bool| {
        let address6 = has.then(|| six(who));
        format!("{}\n", Member { address: who.0, mac: who.1, address6, names: vec![name.into()] })
    };
    let lines = [line(A, "one", true), line(B, "two", true), line(C, "three", false)].concat();
    std::fs::write(dir.path().join(MEMBERS), lines).unwrap();
    dir
}

fn guest(who: (Ipv4Addr, Mac), dir: &Path) -> Guest {
    let mut config = config(who, dir);
    config.nat.addresses.guest6 = six(who);
    let switch = Switch::new(config).unwrap();
    Guest::on(Net::new(who.1, Box::new(switch)), u64::MAX)
}

/// A UDP frame of one to another.
fn datagram(from: (Ipv6Addr, Mac), to: (Ipv6Addr, Mac), data: &[u8]) -> Vec<u8> {
    let (src, dst) = ((from.0, 7).into(), (to.0, 9).into());
    let mut frame = Vec::new();
    let (start, offset) = Link { dst: to.1, src: from.1 }.udp(&mut frame, src, dst, data.len());
    frame.extend(data);
    wire::finish(&mut frame, [&[], &[]], start.into(), offset.into());
    frame
}

fn own(who: (Ipv4Addr, Mac)) -> (Ipv6Addr, Mac) {
    (six(who), who.1)
}

/// A solicitation by everybody's group or to one, with the option that says who asks.
fn asks(asker: (Ipv6Addr, Mac), to: Mac, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(asker.1.0);
    Link { dst: to, src: asker.1 }.icmp(asker.0.into(), target.into(), &message)
}

/// The target's group on the wire.
fn group(target: Ipv6Addr) -> Mac {
    let [.., a, b, c] = target.octets();
    Mac([0x33, 0x33, 0xff, a, b, c])
}

#[test]
fn two_guests_find_and_hear_each_other_by_ipv6() {
    let dir = network();
    let (mut a, mut b) = (guest(A, dir.path()), guest(B, dir.path()));
    // Asked of all, and of the one that is known.
    for to in [group(six(B)), B.1] {
        a.send(&asks(own(A), to, six(B)));
        let answer = a.receive();
        assert_eq!((answer.ethernet().src, answer.ip().src), (B.1, six(B).into()));
        assert_eq!((answer.body()[0], &answer.body()[8..24]), (136, &six(B).octets()[..]));
        assert_eq!(answer.body()[24..], [&[2, 1][..], &B.1.0].concat());
    }
    a.send(&datagram(own(A), own(B), b"hello"));
    assert_eq!(b.receive().bytes, datagram(own(A), own(B), b"hello"));
    b.send(&datagram(own(B), own(A), b"and back"));
    assert_eq!(a.receive().bytes, datagram(own(B), own(A), b"and back"));
    // The gateway is everybody's own.
    let gateway = testing::addresses().gateway6;
    a.send(&asks(own(A), group(gateway), gateway));
    assert_eq!(a.receive().ethernet().src, GATEWAY_MAC);
    // Names have both addresses.
    let names = MemberNames(Arc::new(Members::new(Directory::open(dir.path()).unwrap())));
    let lookup = |name: &str| nat::Names::lookup(&names, name);
    assert_eq!(lookup("two"), Some(vec![B.0.into(), six(B).into()]));
}

#[test]
fn who_is_not_there_or_has_no_ipv6_is_not_found() {
    let dir = network();
    let (mut a, mut c) = (guest(A, dir.path()), guest(C, dir.path()));
    for nobody in [six(B), six(C), six(A), "fe80::1".parse().unwrap()] {
        a.send(&asks(own(A), group(nobody), nobody));
    }
    // One that looks for a duplicate of itself, as it has no address yet.
    a.send(&asks((Ipv6Addr::UNSPECIFIED, A.1), group(six(A)), six(A)));
    hears_nothing(&mut a);
    // Its address means nothing to the others.
    c.send(&datagram(own(C), own(A), b"none of the list"));
    hears_nothing(&mut a);
}

#[test]
fn neighbour_discovery_and_foreign_addresses_do_not_cross() {
    let dir = network();
    let (mut a, mut b) = (guest(A, dir.path()), guest(B, dir.path()));
    a.send(&datagram((six(C), A.1), own(B), b"another's address"));
    a.send(&datagram((testing::addresses().gateway6, A.1), own(B), b"the gateway's"));
    a.send(&datagram(("fe80::1".parse().unwrap(), A.1), own(B), b"one of the link"));
    let link = Link { dst: B.1, src: A.1 };
    for kind in 133..=137 {
        // A solicitation is one for nobody.
        a.send(&link.icmp(six(A).into(), six(B).into(), &[&[kind, 0, 0, 0][..], &[0; 28]].concat()));
    }
    // The same behind a header of options.
    let mut hidden =
        link.icmp(six(A).into(), six(B).into(), &[&[58, 0, 1, 4, 0, 0, 0, 0, 136][..], &[0; 23]].concat());
    for header in [0, 43, 51, 60] {
        hidden[20] = header;
        a.send(&hidden);
    }
    a.send(&datagram(own(A), own(B), b"true"));
    assert_eq!(b.receive().bytes, datagram(own(A), own(B), b"true"));
    hears_nothing(&mut b);
    // What another process says is checked again.
    let forger = UnixDatagram::unbound().unwrap();
    let socket = dir.path().join(name(A.1));
    for frame in [
        datagram((six(C), B.1), own(A), b"another's address"),
        link.icmp(six(B).into(), six(A).into(), &[&[136, 0, 0, 0][..], &[0; 28]].concat()),
    ] {
        forger.send_to(&[&[0; HEADER_LEN][..], &frame].concat(), &socket).unwrap();
    }
    hears_nothing(&mut a);
}

/// The name of a member's socket.
fn name(mac: Mac) -> String {
    mac.to_string().replace(':', "")
}

#[test]
fn a_long_segment_of_ipv6_stays_whole() {
    let dir = network();
    let (mut a, mut b) = (guest(A, dir.path()), guest(B, dir.path()));
    let mut head = Vec::new();
    let payload = vec![7; 50_000];
    let tcp = Tcp { src: 1, dst: 2, flags: ACK, ..Tcp::default() };
    let ends = ((six(A), 1).into(), (six(B), 2).into());
    Link { dst: B.1, src: A.1 }.tcp(&mut head, ends, &tcp, payload.len());
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV6,
        gso_size: 1428,
        csum_start: 54,
        csum_offset: 16,
        ..Header::default()
    };
    // Of the wrong family it is none.
    let wrong = Header { gso_type: GSO_TCPV4, ..header };
    a.rig.add(TRANSMIT, &[&wrong.to_bytes(), &head, &payload], &[]);
    a.rig.add(TRANSMIT, &[&header.to_bytes(), &head, &payload], &[]);
    let got = b.receive();
    assert_eq!(got.bytes, [head, payload].concat());
    assert_eq!(Header { num_buffers: 0, hdr_len: 0, ..got.header }, header);
    assert_eq!(got.header.hdr_len, 74);
    hears_nothing(&mut b);
}
