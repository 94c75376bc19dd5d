//! Much data, many connections.

use std::io::Write as _;
use std::net::Shutdown;

use super::super::packet::{Op, SHUT_BOTH, SHUT_SEND};
use super::guest::Sock;
use super::*;

/// Less on Windows: under wine every wait for sockets is a question to its server, and 20 MiB took up to five minutes.
const MUCH: usize = if cfg!(windows) { 4 << 20 } else { 20 << 20 };

/// Consumes what came for `sock`, and tells the host when half of the buffer was consumed since.
fn consume(guest: &mut Guest, sock: &mut Sock, told: &mut u32, len: usize) {
    sock.consumed = sock.consumed.wrapping_add(len as u32);
    if sock.consumed.wrapping_sub(*told) >= sock.buf_alloc / 2 {
        *told = sock.consumed;
        guest.send(sock.header(Op::CreditUpdate), &[]);
    }
}

#[test]
fn many_megabytes_to_the_guest_arrive_unchanged_with_little_credit() {
    for (host, mut guest) in both() {
        let stream = host.dial(5).unwrap();
        let mut sock = guest.accept(9000);
        let sender = std::thread::spawn(move || {
            let mut stream = stream;
            stream.set_nonblocking(false).unwrap();
            stream.write_all(&Noise(1).bytes(MUCH)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        });
        let (mut got, mut told) = (Vec::with_capacity(MUCH), 0);
        loop {
            let packet = guest.next();
            match packet.op() {
                Op::Data => {
                    got.extend_from_slice(&packet.payload);
                    assert!(got.len() as u32 - sock.consumed <= sock.buf_alloc, "more than the credit");
                    consume(&mut guest, &mut sock, &mut told, packet.payload.len());
                }
                Op::CreditRequest => guest.send(sock.header(Op::CreditUpdate), &[]),
                _ => break assert_eq!((packet.op(), packet.header.flags), (Op::Shutdown, SHUT_SEND)),
            }
        }
        assert!(got == Noise(1).bytes(MUCH));
        sender.join().unwrap();
    }
}

#[test]
fn many_megabytes_to_the_host_arrive_unchanged_with_little_credit() {
    for threaded in [false, true] {
        let host = VsockHost::new().unwrap();
        let limits = Limits { buffer: 9000, ..Limits::default() };
        let device = Box::new(Vsock::with_limits(CID, &host, limits).unwrap());
        let rig = if threaded { Rig::threaded(device) } else { Rig::new(device) };
        let mut guest = Guest::new(rig, 64, 4096);
        let listener = host.listen(PORT).unwrap();
        let mut sock = guest.connect(1, PORT);
        let mut stream = listener.accept(Some(DEADLINE)).unwrap();
        let receiver = std::thread::spawn(move || {
            let mut all = Vec::with_capacity(MUCH);
            stream.set_nonblocking(false).unwrap();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let data = Noise(2).bytes(MUCH);
        let mut sent = 0;
        while sent < MUCH {
            let part = guest.write(&mut sock, &data[sent..]);
            sent += part;
            let packet = if part == 0 { Some(guest.next()) } else { guest.poll(true) };
            if let Some(packet) = packet {
                assert_eq!(packet.op(), Op::CreditUpdate);
                sock.hear(&packet);
            }
        }
        guest.shutdown(&sock, SHUT_BOTH);
        while guest.next().op() != Op::Reset {}
        assert!(receiver.join().unwrap() == data);
    }
}

#[test]
fn sixty_four_connections_echo_at_once() {
    const COUNT: u32 = 64;
    const EACH: usize = 40_000;
    for (host, mut guest) in both() {
        let listener = host.listen(PORT).unwrap();
        let mut socks: Vec<Sock> = (0..COUNT).map(|port| guest.connect(port, PORT)).collect();
        let echoes: Vec<_> = (0..COUNT)
            .map(|_| listener.accept(Some(DEADLINE)).unwrap())
            .map(|mut stream| {
                std::thread::spawn(move || {
                    stream.set_nonblocking(false).unwrap();
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    stream.write_all(&all).unwrap();
                })
            })
            .collect();
        let mut told = [0; COUNT as usize];
        for port in 0..COUNT {
            let data = Noise(u64::from(port) + 1).bytes(EACH);
            assert_eq!(guest.write(&mut socks[port as usize], &data), EACH);
            guest.shutdown(&socks[port as usize], SHUT_SEND);
        }
        let mut got = vec![Vec::new(); COUNT as usize];
        let mut ended = 0;
        while ended < COUNT {
            let packet = guest.next();
            let index = packet.header.dst_port as usize;
            match packet.op() {
                Op::Data => {
                    got[index].extend_from_slice(&packet.payload);
                    consume(&mut guest, &mut socks[index], &mut told[index], packet.payload.len());
                }
                Op::Shutdown => {
                    assert_eq!(packet.header.flags, SHUT_BOTH);
                    guest.send(socks[index].header(Op::Reset), &[]);
                    ended += 1;
                }
                op => assert_eq!(op, Op::CreditUpdate),
            }
        }
        for (port, got) in (1..).zip(got) {
            assert!(got == Noise(port).bytes(EACH), "{port}");
        }
        echoes.into_iter().for_each(|echo| echo.join().unwrap());
    }
}

#[test]
fn connections_take_turns_and_a_busy_one_does_not_keep_others_waiting() {
    let (host, mut guest) = inline();
    guest.start(4);
    let listener = host.listen(PORT).unwrap();
    let mut streams: Vec<_> = (0..4)
        .map(|port| {
            guest.connect(port, PORT);
            listener.accept(None).unwrap()
        })
        .collect();
    // Far more than the buffers hold, on two of them.
    for stream in &mut streams[..2] {
        while stream.write(&[0; 4096]).is_ok() {}
    }
    guest.rig.run();
    streams[2].write_all(b"one").unwrap();
    streams[3].write_all(b"two").unwrap();
    let order: Vec<u32> = (0..30).map(|_| guest.next().header.dst_port).collect();
    // The 4 buffers were full before the others spoke; then all take turns.
    let position = |port| order.iter().position(|&other| other == port).unwrap();
    assert!(position(2) < 9 && position(3) < 9, "{order:?}");
    let packets = |port| order.iter().filter(|&&other| other == port).count();
    assert!(packets(0).abs_diff(packets(1)) <= 4, "{order:?}");
}

#[test]
fn a_host_that_reads_nothing_costs_no_more_than_the_buffer() {
    let (host, mut guest) = inline();
    let listener = host.listen(PORT).unwrap();
    let mut sock = guest.connect(1, PORT);
    let mut stream = listener.accept(None).unwrap();
    let data = Noise(3).bytes(4 << 20);
    let (mut sent, mut got) = (0, 0);
    while guest.write(&mut sock, &data[sent..]) > 0 {
        sent = sock.sent as usize;
        while let Some(packet) = guest.poll(true) {
            sock.hear(&packet);
        }
    }
    assert!(sent < 2 << 20, "credit must end when nobody reads");
    // And when the host reads on, so does the guest write on.
    let mut buffer = vec![0; 100_000];
    while got < data.len() {
        if let Some(len) = read_some(&mut stream, &mut buffer) {
            assert!(buffer[..len] == data[got..got + len]);
            got += len;
        }
        guest.turn();
        while let Some(packet) = guest.poll(true) {
            sock.hear(&packet);
        }
        guest.write(&mut sock, &data[sent..]);
        sent = sock.sent as usize;
    }
}

/// Random actions on both sides of some connections; whatever happens, what arrives is a prefix of what was sent.
#[test]
fn random_traffic_never_reorders_loses_or_invents_a_byte() {
    for seed in 1..=20 {
        let mut noise = Noise(seed * 0x9e37_79b9);
        let limits = Limits { buffer: 3000, ..Limits::default() };
        let (host, mut guest) = inline_with(limits);
        guest.start(3);
        let listener = host.listen(PORT).unwrap();
        let mut ends = Vec::new();
        for port in 0..4 {
            let mut sock = guest.connect(port, PORT);
            sock.buf_alloc = 1 + noise.below(5000) as u32;
            guest.send(sock.header(Op::CreditUpdate), &[]);
            let stream = listener.accept(None).unwrap();
            ends.push(End { sock, stream, up: (0, 0), down: (0, 0), alive: true });
        }
        let up = Noise(seed + 100).bytes(1 << 20);
        let down = Noise(seed + 200).bytes(1 << 20);
        for _ in 0..600 {
            let index = noise.below(4) as usize;
            let len = 1 + noise.below(3000) as usize;
            let end = &mut ends[index];
            if !end.alive {
                continue;
            }
            match noise.below(40) {
                0..10 => end.up.0 += guest.write(&mut end.sock, &up[end.up.0..end.up.0 + len]),
                10..20 => {
                    if let Ok(len) = end.stream.write(&down[end.down.0..end.down.0 + len]) {
                        end.down.0 += len;
                    }
                }
                20..30 => {
                    let mut buffer = vec![0; len];
                    if let Some(len) = read_some(&mut end.stream, &mut buffer) {
                        assert!(buffer[..len] == up[end.up.1..end.up.1 + len]);
                        end.up.1 += len;
                    }
                }
                30..38 => {
                    end.sock.consumed = end.down.1 as u32;
                    guest.send(end.sock.header(Op::CreditUpdate), &[]);
                }
                38 => {
                    guest.send(end.sock.header(Op::CreditRequest), &[]);
                }
                _ => {
                    if noise.below(10) == 0 {
                        guest.send(end.sock.header(Op::Reset), &[]);
                        end.alive = false;
                    }
                }
            }
            guest.rig.run();
            while let Some(packet) = guest.poll(true) {
                let end = &mut ends[packet.header.dst_port as usize];
                if end.alive {
                    end.take(&packet, &down);
                }
            }
        }
        // What is still under way arrives.
        for index in 0..4 {
            while ends[index].alive && ends[index].is_owed() {
                let end = &mut ends[index];
                end.sock.consumed = end.down.1 as u32;
                guest.send(end.sock.header(Op::CreditUpdate), &[]);
                let mut buffer = vec![0; 5000];
                if let Some(len) = read_some(&mut end.stream, &mut buffer) {
                    assert!(buffer[..len] == up[end.up.1..end.up.1 + len]);
                    end.up.1 += len;
                }
                guest.turn();
                while let Some(packet) = guest.poll(true) {
                    ends[packet.header.dst_port as usize].take(&packet, &down);
                }
            }
        }
    }
}

/// Both ends of a connection, with the bytes that were sent and that arrived.
struct End {
    sock: Sock,
    stream: HostStream,
    up: (usize, usize),
    down: (usize, usize),
    alive: bool,
}

impl End {
    fn take(&mut self, packet: &guest::Packet, down: &[u8]) {
        self.sock.hear(packet);
        let len = packet.payload.len();
        assert!(packet.payload == down[self.down.1..self.down.1 + len]);
        self.down.1 += len;
        assert!(self.down.1 as u32 - self.sock.consumed <= self.sock.buf_alloc);
    }

    fn is_owed(&self) -> bool {
        self.up.0 > self.up.1 || self.down.0 > self.down.1
    }
}
