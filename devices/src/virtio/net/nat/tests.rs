//! A guest that speaks to servers of the test, and servers of the guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use super::super::testing::{Guest, MAC, OUTSIDE, Socket, addresses, bare, config};
use super::super::wire::{ACK, FIN, RST, SYN};
use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);

fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A guest connected to a server of the test.
fn connected() -> (Guest, Socket, TcpStream) {
    let (listener, port) = server();
    let mut guest = Guest::new(config(Vec::new()));
    let mut socket = Socket::new(4000, &format!("{OUTSIDE}:{port}"));
    socket.connect(&mut guest);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    (guest, socket, stream)
}

#[test]
fn bytes_go_both_ways_and_each_end_closes_its_own() {
    let (mut guest, mut socket, mut stream) = connected();
    socket.send(&mut guest, ACK, b"hello ");
    socket.send(&mut guest, ACK | FIN, b"world");
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello world");
    // The other direction is still open.
    stream.write_all(b"and back").unwrap();
    drop(stream);
    let (got, ended) = socket.read(&mut guest, usize::MAX);
    assert_eq!((got.as_slice(), ended), (&b"and back"[..], true));
    // Nothing is left of it: another segment is answered by a reset.
    socket.send(&mut guest, ACK, b"late");
    let answer = std::iter::from_fn(|| Some(socket.receive(&mut guest).0)).find(|tcp| tcp.flags & RST != 0);
    assert!(answer.is_some());
}

#[test]
fn a_refused_connection_is_a_reset_and_an_unreachable_one_is_said_so() {
    let (listener, port) = server();
    drop(listener);
    let mut guest = Guest::new(config(Vec::new()));
    let mut socket = Socket::new(4000, &format!("{OUTSIDE}:{port}"));
    socket.send(&mut guest, SYN, &[]);
    let (answer, _) = socket.receive(&mut guest);
    assert_eq!((answer.flags, answer.ack), (RST | ACK, socket.seq));
    // The host's loopback, by its own name.
    Socket::new(4001, "127.0.0.1:22").send(&mut guest, SYN, &[]);
    let frame = guest.receive();
    assert_eq!((frame.ip().protocol, &frame.body()[..2]), (wire::ICMP, &[3, 1][..]));
    // The first eight bytes of what was sent are in it.
    assert_eq!(frame.body()[28..30], 4001_u16.to_be_bytes());
}

#[test]
fn the_gateway_is_not_the_hosts_loopback() {
    let (listener, port) = server();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(config(Vec::new()));
    let mut socket = Socket::new(4000, &format!("10.0.2.2:{port}"));
    socket.send(&mut guest, SYN, &[]);
    let (answer, _) = socket.receive(&mut guest);
    assert_eq!(answer.flags, RST | ACK);
    assert!(listener.accept().is_err());
}

#[test]
fn megabytes_arrive_intact_in_both_directions() {
    const SIZE: usize = 3 << 20;
    let (mut guest, mut socket, mut stream) = connected();
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 7 + n) as u8).collect();
    let expected = bytes.clone();
    let other = std::thread::spawn(move || {
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; SIZE];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes, "what the guest sent differs");
        stream
    });
    let (got, _) = socket.read(&mut guest, SIZE);
    assert!(got == expected, "what the guest received differs");
    let mut limit = socket.seq.wrapping_add(60_000);
    for piece in expected.chunks(30_000) {
        while (limit.wrapping_sub(socket.seq) as i32) < piece.len() as i32 {
            let (tcp, _) = socket.receive(&mut guest);
            limit = tcp.ack.wrapping_add(u32::from(tcp.window) << 7);
        }
        socket.send(&mut guest, ACK, piece);
    }
    while !other.is_finished() {
        guest.rig.transport().turn(Duration::from_millis(10)).unwrap();
    }
    other.join().unwrap();
}

#[test]
fn what_the_guest_does_not_acknowledge_is_sent_again() {
    let (mut guest, mut socket, mut stream) = connected();
    stream.write_all(b"once more").unwrap();
    let (first, data) = socket.receive(&mut guest);
    assert_eq!(data, b"once more");
    // Three acknowledgements of nothing new ask for it at once.
    for _ in 0..3 {
        socket.send(&mut guest, ACK, &[]);
    }
    assert_eq!(socket.receive(&mut guest), (first, data.clone()));
    // And the timer sends it in any case.
    assert_eq!(socket.receive(&mut guest), (first, data));
    let (got, _) = socket.read(&mut guest, 0);
    assert!(got.is_empty());
}

#[test]
fn what_came_twice_or_too_early_is_not_taken_twice() {
    let (mut guest, mut socket, mut stream) = connected();
    let start = socket.seq;
    socket.send(&mut guest, ACK, b"abc");
    socket.seq = start;
    socket.send(&mut guest, ACK, b"abcdef");
    // A hole: dropped, and acknowledged as far as it goes.
    socket.seq = start.wrapping_add(9);
    socket.send(&mut guest, ACK, b"jkl");
    let acks: Vec<u32> = (0..3).map(|_| socket.receive(&mut guest).0.ack.wrapping_sub(start)).collect();
    assert_eq!(acks, [3, 6, 6]);
    socket.seq = start.wrapping_add(6);
    socket.send(&mut guest, ACK, b"ghi");
    let mut got = [0; 9];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcdefghi");
}

#[test]
fn a_closed_window_stops_the_bytes_until_it_opens() {
    let (mut guest, mut socket, mut stream) = connected();
    socket.window = 0;
    socket.send(&mut guest, ACK, &[]);
    stream.write_all(&[5; 1000]).unwrap();
    // Only the probe comes.
    let (_, data) = socket.receive(&mut guest);
    assert_eq!(data, [5]);
    socket.window = 60_000;
    socket.send(&mut guest, ACK, &[]);
    assert_eq!(socket.read(&mut guest, 1000).0, [5; 1000]);
}

#[test]
fn a_server_that_does_not_read_makes_the_guest_stop() {
    let (mut guest, mut socket, stream) = connected();
    let mut limit = socket.seq.wrapping_add(60_000);
    let mut sent = 0;
    let piece = [9; 30_000];
    // The socket's buffers fill up, then the window closes; nothing is lost.
    loop {
        while let Some(frame) = guest.poll() {
            let tcp = Tcp::read(frame.body()).unwrap();
            limit = tcp.ack.wrapping_add(u32::from(tcp.window) << 7);
        }
        guest.post(100);
        if (limit.wrapping_sub(socket.seq) as i32) < piece.len() as i32 {
            break;
        }
        socket.send(&mut guest, ACK, &piece);
        sent += piece.len();
        assert!(sent < 64 << 20, "the window never closes");
    }
    let reader = std::thread::spawn(move || {
        let mut stream = stream;
        let mut got = vec![0; sent];
        stream.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == 9));
    });
    while !reader.is_finished() {
        guest.rig.transport().turn(Duration::from_millis(10)).unwrap();
    }
    reader.join().unwrap();
    // And the guest was told that it may go on.
    let last = std::iter::from_fn(|| guest.poll()).last().unwrap();
    assert!(Tcp::read(last.body()).unwrap().window > 1000);
}

#[test]
fn a_guest_that_resets_is_seen_as_a_reset_by_the_server() {
    let (mut guest, mut socket, mut stream) = connected();
    socket.send(&mut guest, RST | ACK, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_server_that_resets_is_seen_as_a_reset_by_the_guest() {
    let (mut guest, mut socket, stream) = connected();
    socket.send(&mut guest, ACK, b"unread");
    let mut peeked = [0; 6];
    stream.peek(&mut peeked).unwrap();
    // Closed with bytes unread, a socket resets.
    drop(stream);
    let reset = std::iter::from_fn(|| Some(socket.receive(&mut guest).0)).find(|tcp| tcp.flags & RST != 0);
    assert!(reset.is_some());
}

#[test]
fn datagrams_find_their_way_empty_ones_too() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(TIMEOUT)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(config(Vec::new()));
    let (me, remote) = ("10.0.2.15:5000".parse().unwrap(), format!("{OUTSIDE}:{port}").parse().unwrap());
    guest.send_udp(me, remote, b"ping");
    let mut got = [0; 16];
    let (count, from) = server.recv_from(&mut got).unwrap();
    assert_eq!(&got[..count], b"ping");
    server.send_to(b"pong", from).unwrap();
    let frame = guest.receive();
    assert_eq!(
        (frame.ip().src, frame.ip().protocol, &frame.body()[8..]),
        (remote.ip(), wire::UDP, &b"pong"[..])
    );
    // An empty one is one as well.
    guest.send_udp(me, remote, b"");
    assert_eq!(server.recv_from(&mut got).unwrap().0, 0);
}

#[test]
fn a_closed_port_of_a_datagram_is_said_so() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(config(Vec::new()));
    let (me, remote) = ("10.0.2.15:5000".parse().unwrap(), format!("{OUTSIDE}:{port}").parse().unwrap());
    drop(server);
    guest.send_udp(me, remote, b"anybody?");
    assert_eq!(guest.receive().body()[..2], [3, 3]);
}

#[test]
fn questions_go_to_the_hosts_resolver_and_known_names_are_answered_here() {
    struct Known;
    impl Names for Known {
        fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
            (name == "db").then(|| vec![[10, 0, 2, 77].into()])
        }
    }
    let mut guest = Guest::new(Config { names: Some(Box::new(Known)), ..config(Vec::new()) });
    let question = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x02db\0\0\x01\0\x01";
    let gateway = "10.0.2.2:53".parse().unwrap();
    guest.send_udp("10.0.2.15:5000".parse().unwrap(), gateway, question);
    let frame = guest.receive();
    assert_eq!(frame.ip().src, gateway.ip());
    assert!(frame.body().ends_with(&[10, 0, 2, 77]));
    // The host of this test knows no resolver.
    let other = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x02no\0\0\x01\0\x01";
    guest.send_udp("10.0.2.15:5000".parse().unwrap(), gateway, other);
    assert_eq!(guest.receive().body()[..2], [3, 1]);
}

#[test]
fn the_gateway_is_found_by_arp_and_neighbour_discovery_and_answers_echoes() {
    let mut guest = Guest::new(config(Vec::new()));
    let mut arp = bare(Mac::BROADCAST, wire::ARP);
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([&MAC.0[..], &[10, 0, 2, 15], &[0; 6], &[10, 0, 2, 2]].concat());
    guest.send(&arp);
    let reply = guest.receive();
    assert_eq!((reply.ethernet().src, reply.ethernet().dst), (GATEWAY_MAC, MAC));
    assert_eq!(reply.bytes[20..22], [0, 2]);
    assert_eq!(reply.bytes[28..32], [10, 0, 2, 2]);
    let Addresses { guest6, gateway6, .. } = addresses();
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend(gateway6.octets());
    guest.send_icmp(guest6.into(), "ff02::1:ff00:2".parse().unwrap(), &solicitation);
    let reply = guest.receive();
    assert_eq!((reply.ip().dst, reply.ip().hops, reply.body()[0]), (guest6.into(), 255, 136));
    assert_eq!(&reply.body()[26..32], &GATEWAY_MAC.0);
    for (src, dst, request, answer) in [
        (addresses().guest.into(), addresses().gateway.into(), 8, 0),
        (guest6.into(), IpAddr::from(gateway6), 128, 129),
    ] {
        guest.send_icmp(src, dst, &[request, 0, 0, 0, 1, 2, 0, 1, 9, 9]);
        let reply = guest.receive();
        assert_eq!(
            (reply.ip().src, reply.body()[0], &reply.body()[4..]),
            (dst, answer, &[1, 2, 0, 1, 9, 9][..])
        );
    }
}

#[test]
fn an_echo_comes_back_where_ping_sockets_are_allowed_and_is_refused_honestly_elsewhere() {
    let mut guest = Guest::new(config(Vec::new()));
    guest.send_icmp(addresses().guest.into(), OUTSIDE.parse().unwrap(), &[8, 0, 0, 0, 1, 2, 0, 1, 7]);
    let reply = guest.receive();
    match reply.body()[0] {
        0 => assert_eq!(reply.body()[4..], [1, 2, 0, 1, 7]),
        _ => assert_eq!(reply.body()[..2], [3, 13]),
    }
}

#[test]
fn a_published_port_leads_to_the_guest() {
    let (listener, port) = server();
    let forward = Forward { listener: Listener::Tcp(listener), port: 80 };
    let mut guest = Guest::new(config(vec![forward]));
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"GET").unwrap();
    let frame = guest.receive();
    let syn = Tcp::read(frame.body()).unwrap();
    // Who comes from the loopback is seen as the gateway.
    assert_eq!((syn.flags, syn.dst, frame.ip().src), (SYN, 80, addresses().gateway.into()));
    let mut socket = Socket::new(80, &format!("10.0.2.2:{}", syn.src));
    socket.ack = syn.seq.wrapping_add(1);
    socket.send(&mut guest, SYN | ACK, &[]);
    assert_eq!(socket.read(&mut guest, 3).0, b"GET");
    socket.send(&mut guest, ACK | FIN, b"page");
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "page");
    drop(client);
    assert!(socket.read(&mut guest, 1).1);
}

#[test]
fn who_comes_to_a_published_port_where_nobody_listens_in_the_guest_is_reset() {
    let (listener, port) = server();
    let mut guest = Guest::new(config(vec![Forward { listener: Listener::Tcp(listener), port: 80 }]));
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let syn = Tcp::read(guest.receive().body()).unwrap();
    let mut socket = Socket::new(80, &format!("10.0.2.2:{}", syn.src));
    socket.ack = syn.seq.wrapping_add(1);
    socket.send(&mut guest, RST | ACK, &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_published_udp_port_leads_to_the_guest_and_back() {
    let listener = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(config(vec![Forward { listener: Listener::Udp(listener), port: 53 }]));
    let clients: Vec<UdpSocket> =
        (0..2).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    for (client, text) in clients.iter().zip([b"one", b"two"]) {
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.send_to(text, (Ipv4Addr::LOCALHOST, port)).unwrap();
        let frame = guest.receive();
        let from = u16::from_be_bytes([frame.body()[0], frame.body()[1]]);
        assert_eq!((frame.ip().src, &frame.body()[8..]), (addresses().gateway.into(), &text[..]));
        guest.send_udp("10.0.2.15:53".parse().unwrap(), format!("10.0.2.2:{from}").parse().unwrap(), text);
        let mut got = [0; 8];
        assert_eq!(client.recv(&mut got).unwrap(), 3);
        assert_eq!(&got[..3], text);
    }
}

#[test]
fn connections_beyond_the_most_are_refused_and_a_reset_card_forgets_all() {
    let (listener, port) = server();
    let mut guest = Guest::new(config(Vec::new()));
    let mut first = Socket::new(1, &format!("{OUTSIDE}:{port}"));
    first.connect(&mut guest);
    let (mut stream, _) = listener.accept().unwrap();
    guest.rig.init(u64::MAX);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn segments_are_long_for_a_guest_that_takes_long_ones_and_short_for_others() {
    use virtio_bindings::bindings::virtio_net as bits;
    for (features, longest) in [(u64::MAX, 30_000), (!(1 << bits::VIRTIO_NET_F_GUEST_TSO4), 1460)] {
        let (listener, port) = server();
        let mut guest = Guest::with(config(Vec::new()), features);
        let mut socket = Socket::new(4000, &format!("{OUTSIDE}:{port}"));
        socket.connect(&mut guest);
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[3; 30_000]).unwrap();
        let frame =
            std::iter::from_fn(|| Some(guest.receive())).find(|frame| frame.bytes.len() > 60).unwrap();
        let payload = frame.bytes.len() - 54;
        assert!(payload <= longest, "{payload}");
        assert_eq!(frame.header.gso_size, if payload > 1460 { 1460 } else { 0 });
    }
}
