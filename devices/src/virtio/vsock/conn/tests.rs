use std::collections::HashSet;

use super::*;

const ALLOC: u32 = 8;

fn from_guest(op: Op) -> Header {
    Header { op: op as u16, kind: TYPE_STREAM, buf_alloc: 4, ..Header::default() }
}

fn open() -> Conn {
    let mut conn = Conn::accepted(ALLOC, &from_guest(Op::Request));
    assert_eq!(ops(&mut conn), [Op::Response]);
    conn
}

/// Everything the connection has to say that is not data.
fn ops(conn: &mut Conn) -> Vec<Op> {
    std::iter::from_fn(|| conn.next_packet()).map(|packet| Op::from_number(packet.op).unwrap()).collect()
}

fn data(len: u32) -> Header {
    Header { len, ..from_guest(Op::Data) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..from_guest(Op::Shutdown) }
}

fn credit(buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { buf_alloc, fwd_cnt, ..from_guest(Op::CreditUpdate) }
}

#[test]
fn a_dialed_connection_requests_first_and_opens_on_the_response() {
    let mut conn = Conn::dialed(ALLOC);
    assert_eq!(conn.sendable(), 0);
    assert_eq!(ops(&mut conn), [Op::Request]);
    assert_eq!(conn.receive(&from_guest(Op::Response)), Step::Accepted);
    assert_eq!((conn.state(), conn.sendable()), (State::Open, 4));
}

#[test]
fn a_refused_connection_is_over() {
    let mut conn = Conn::dialed(ALLOC);
    assert_eq!(conn.receive(&from_guest(Op::Reset)), Step::Reset { clean: false });
    assert_eq!((conn.state(), conn.next_packet()), (State::Over, None));
}

#[test]
fn anything_but_an_answer_before_the_connection_is_open_is_a_violation() {
    for op in [Op::Request, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        assert!(matches!(Conn::dialed(ALLOC).receive(&from_guest(op)), Step::Violation(_)), "{op:?}");
    }
}

#[test]
fn a_second_opening_or_an_unknown_operation_is_a_violation() {
    for op in [Op::Request as u16, Op::Response as u16, 0, 8, 0xffff] {
        let packet = Header { op, ..from_guest(Op::Request) };
        assert!(matches!(open().receive(&packet), Step::Violation(_)), "{op}");
    }
}

#[test]
fn data_up_to_the_credit_is_taken_and_one_byte_more_is_a_violation() {
    let mut conn = open();
    assert_eq!(conn.receive(&data(5)), Step::Data(5));
    assert_eq!(conn.receive(&data(3)), Step::Data(3));
    assert_eq!(conn.buffered(), ALLOC);
    assert!(matches!(conn.clone().receive(&data(1)), Step::Violation(_)));
    conn.taken(2);
    assert_eq!(conn.receive(&data(2)), Step::Data(2));
}

#[test]
fn a_packet_of_more_than_64_kib_is_a_violation() {
    let mut conn = Conn::accepted(1 << 20, &from_guest(Op::Request));
    assert_eq!(conn.receive(&data(MAX_PAYLOAD)), Step::Data(MAX_PAYLOAD));
    assert!(matches!(conn.receive(&data(MAX_PAYLOAD + 1)), Step::Violation(_)));
    assert!(matches!(open().receive(&data(u32::MAX)), Step::Violation(_)));
}

#[test]
fn the_guest_hears_of_freed_room_at_a_quarter_of_the_buffer_and_when_it_asks() {
    let mut conn = open();
    conn.receive(&data(8));
    conn.taken(1);
    assert!(!conn.owes());
    conn.receive(&from_guest(Op::CreditRequest));
    let update = conn.next_packet().unwrap();
    assert_eq!((update.op, update.buf_alloc, update.fwd_cnt), (Op::CreditUpdate as u16, ALLOC, 1));
    conn.taken(2);
    assert_eq!(ops(&mut conn), [Op::CreditUpdate]);
    assert!(!conn.owes());
}

#[test]
fn data_to_the_guest_tells_it_of_freed_room_too() {
    let mut conn = open();
    conn.receive(&data(8));
    conn.taken(8);
    assert!(conn.owes() && !conn.owes_urgent());
    assert_eq!(conn.data(1).fwd_cnt, 8);
    assert!(!conn.owes());
}

#[test]
fn what_is_sent_uses_up_credit_until_the_guest_consumed_it() {
    let mut conn = open();
    conn.data(3);
    assert_eq!(conn.sendable(), 1);
    conn.data(1);
    assert_eq!(conn.sendable(), 0);
    conn.receive(&credit(4, 2));
    assert_eq!(conn.sendable(), 2);
}

#[test]
fn counters_wrap() {
    let mut conn = Conn::accepted(MAX_PAYLOAD, &Header { buf_alloc: MAX_PAYLOAD, ..from_guest(Op::Request) });
    let mut consumed = 0_u32;
    for _ in 0..(1_u64 << 32) / u64::from(MAX_PAYLOAD) + 3 {
        assert_eq!(conn.sendable(), MAX_PAYLOAD);
        conn.data(MAX_PAYLOAD);
        assert_eq!(conn.sendable(), 0);
        consumed = consumed.wrapping_add(MAX_PAYLOAD);
        conn.receive(&credit(MAX_PAYLOAD, consumed));
        assert_eq!(
            conn.receive(&Header { buf_alloc: MAX_PAYLOAD, fwd_cnt: consumed, ..data(MAX_PAYLOAD) }),
            Step::Data(MAX_PAYLOAD)
        );
        conn.taken(MAX_PAYLOAD);
    }
    assert_eq!(conn.next_packet().unwrap().fwd_cnt, consumed);
}

#[test]
fn a_stale_or_impossible_count_gives_no_credit_and_takes_none() {
    let mut conn = open();
    conn.data(4);
    conn.receive(&credit(4, 3));
    for fwd_cnt in [2, 0, 5, u32::MAX, 1 << 31] {
        conn.receive(&credit(4, fwd_cnt));
        assert_eq!(conn.sendable(), 3, "{fwd_cnt}");
    }
}

#[test]
fn a_guest_that_shrinks_its_buffer_below_what_is_on_the_way_gives_no_credit() {
    let mut conn = open();
    conn.data(4);
    conn.receive(&credit(2, 1));
    assert_eq!(conn.sendable(), 0);
    conn.receive(&credit(2, 3));
    assert_eq!(conn.sendable(), 1);
    conn.receive(&credit(u32::MAX, 3));
    assert_eq!(conn.sendable(), MAX_PAYLOAD);
}

#[test]
fn a_starved_connection_asks_once_until_credit_came() {
    let mut conn = open();
    conn.starve();
    assert!(!conn.owes(), "there is credit");
    conn.data(4);
    conn.starve();
    conn.starve();
    assert_eq!(ops(&mut conn), [Op::CreditRequest]);
    conn.starve();
    conn.receive(&credit(4, 0));
    conn.starve();
    assert!(!conn.owes());
    conn.receive(&credit(4, 4));
    conn.data(4);
    conn.starve();
    assert_eq!(ops(&mut conn), [Op::CreditRequest]);
}

#[test]
fn the_guest_closes_its_direction_and_still_receives() {
    let mut conn = open();
    conn.receive(&data(3));
    assert_eq!(conn.receive(&shutdown(SHUT_SEND)), Step::Shut);
    assert!(!conn.is_finished());
    assert_eq!(conn.sendable(), 4);
    assert!(matches!(conn.clone().receive(&data(1)), Step::Violation(_)));
    conn.taken(3);
    assert!(!conn.owes());
    conn.host_done_sending();
    let packet = conn.next_packet().unwrap();
    assert_eq!((packet.op, packet.flags, conn.state()), (Op::Shutdown as u16, SHUT_BOTH, State::Closing));
}

#[test]
fn the_host_closes_its_direction_and_still_receives() {
    let mut conn = open();
    conn.host_done_sending();
    let packet = conn.next_packet().unwrap();
    assert_eq!((packet.op, packet.flags, conn.state()), (Op::Shutdown as u16, SHUT_SEND, State::Open));
    assert_eq!(conn.sendable(), 0);
    assert_eq!(conn.receive(&data(2)), Step::Data(2));
    conn.taken(2);
    assert_eq!(ops(&mut conn), [Op::CreditUpdate]);
    assert_eq!(conn.receive(&shutdown(SHUT_SEND)), Step::Shut);
    assert_eq!(conn.next_packet().unwrap().flags, SHUT_BOTH);
}

#[test]
fn both_directions_are_closed_only_once_what_the_guest_sent_is_drained() {
    let mut conn = open();
    conn.receive(&data(3));
    conn.host_done_sending();
    conn.receive(&shutdown(SHUT_SEND));
    assert_eq!(conn.next_packet().unwrap().flags, SHUT_SEND);
    conn.taken(2);
    assert!(!conn.owes_urgent());
    conn.taken(1);
    assert_eq!(conn.next_packet().unwrap().flags, SHUT_BOTH);
}

#[test]
fn a_clean_disconnect_by_the_guest_is_finished_once_drained() {
    let mut conn = open();
    conn.receive(&data(3));
    conn.receive(&shutdown(SHUT_RECEIVE));
    assert_eq!((conn.sendable(), conn.guest_shut()), (0, SHUT_RECEIVE));
    // The hints add up, and unknown ones are nothing.
    conn.receive(&shutdown(SHUT_SEND | 0xfff0));
    assert_eq!(conn.guest_shut(), SHUT_BOTH);
    assert!(!conn.is_finished() && !conn.owes());
    assert_eq!(conn.clone().receive(&from_guest(Op::Reset)), Step::Reset { clean: true });
    conn.taken(3);
    assert!(conn.is_finished() && !conn.owes());
}

#[test]
fn data_for_a_host_that_receives_no_more_is_dropped_and_gives_its_credit_back() {
    let mut conn = open();
    conn.receive(&data(8));
    conn.host_done_receiving();
    assert_eq!(conn.next_packet().unwrap().flags, SHUT_RECEIVE);
    assert_eq!(conn.buffered(), 0);
    for _ in 0..4 {
        assert_eq!(conn.receive(&data(8)), Step::Nothing);
        assert_eq!(ops(&mut conn), [Op::CreditUpdate]);
    }
    assert_eq!(conn.sendable(), 4, "the other direction goes on");
}

#[test]
fn after_both_were_closed_by_the_host_late_packets_are_dropped_until_the_reset() {
    let mut conn = open();
    conn.host_done_receiving();
    conn.host_done_sending();
    assert_eq!(ops(&mut conn), [Op::Shutdown]);
    assert_eq!(conn.state(), State::Closing);
    assert_eq!(conn.receive(&data(8)), Step::Nothing);
    assert_eq!(conn.receive(&credit(4, 0)), Step::Nothing);
    assert_eq!(conn.receive(&shutdown(SHUT_BOTH)), Step::Shut);
    assert!(conn.is_finished());
}

/// What a guest could have seen of a connection, to check that it makes sense.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Seen {
    opened: bool,
    flags: u32,
    sent: u32,
    told: u32,
}

impl Seen {
    fn packet(&mut self, packet: &Header, dialed: bool) {
        let op = Op::from_number(packet.op).unwrap();
        let opening = if dialed { Op::Request } else { Op::Response };
        assert_eq!(self.opened, op != opening, "the opening comes first and once");
        self.opened = true;
        assert_ne!(self.flags, SHUT_BOTH | 0x80, "nothing comes after the end");
        if op == Op::Shutdown {
            assert!(packet.flags & self.flags == self.flags && packet.flags != self.flags, "hints add up");
            self.flags = packet.flags;
        }
        if op == Op::Data {
            assert_eq!(self.flags & SHUT_SEND, 0, "no data after the end of data");
            assert!(packet.len > 0);
        }
        assert_eq!(packet.buf_alloc, ALLOC);
        assert!(packet.fwd_cnt >= self.told, "consumption never shrinks");
        self.told = packet.fwd_cnt;
        self.sent += packet.len;
    }
}

/// Walks through every order of these inputs, to a depth; states seen before are not walked again.
#[test]
fn every_order_of_events_keeps_the_promises_of_the_protocol() {
    const DEPTH: usize = 9;
    for dialed in [false, true] {
        let first =
            if dialed { Conn::dialed(ALLOC) } else { Conn::accepted(ALLOC, &from_guest(Op::Request)) };
        let mut layer = vec![(first, Seen::default())];
        let mut known: HashSet<(Conn, Seen)> = layer.iter().cloned().collect();
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for (conn, seen) in &layer {
                for event in 0..EVENTS {
                    let (mut conn, mut seen) = (conn.clone(), seen.clone());
                    if event_happens(event, &mut conn, &mut seen, dialed) {
                        check(&conn, &seen);
                        if known.insert((conn.clone(), seen.clone())) {
                            next.push((conn, seen));
                        }
                    }
                }
            }
            layer = next;
        }
        assert!(known.len() > 1_000, "{}", known.len());
        assert!(known.iter().any(|(conn, _)| conn.state() == State::Closing));
        assert!(known.iter().any(|(conn, _)| conn.state() == State::Over));
    }
}

const EVENTS: u32 = 15;

/// False when the event cannot happen in this state.
fn event_happens(event: u32, conn: &mut Conn, seen: &mut Seen, dialed: bool) -> bool {
    if conn.state() == State::Over || conn.is_finished() {
        // The mux forgets such a connection.
        return false;
    }
    let guest = |packet: Header| Header { fwd_cnt: seen.sent, ..packet };
    match event {
        0 => drop(conn.receive(&guest(from_guest(Op::Response)))),
        1 => drop(conn.receive(&guest(from_guest(Op::Reset)))),
        2 => drop(conn.receive(&guest(data(3)))),
        3 => drop(conn.receive(&guest(shutdown(SHUT_SEND)))),
        4 => drop(conn.receive(&guest(shutdown(SHUT_RECEIVE)))),
        5 => drop(conn.receive(&guest(shutdown(SHUT_BOTH)))),
        6 => drop(conn.receive(&guest(from_guest(Op::CreditUpdate)))),
        7 => drop(conn.receive(&from_guest(Op::CreditUpdate))),
        8 => drop(conn.receive(&guest(from_guest(Op::CreditRequest)))),
        9 => conn.taken(1),
        10 => conn.host_done_sending(),
        11 => conn.host_done_receiving(),
        12 => conn.starve(),
        13 => match conn.next_packet() {
            Some(packet) => seen.packet(&packet, dialed),
            None => return false,
        },
        _ => {
            // The mux sends what is urgent first.
            let len = conn.sendable().min(3);
            if len == 0 || conn.owes_urgent() {
                return false;
            }
            let packet = conn.data(len);
            seen.packet(&packet, dialed);
        }
    }
    true
}

fn check(conn: &Conn, seen: &Seen) {
    assert!(conn.buffered() <= ALLOC);
    assert!(conn.on_the_way() <= 4, "never more on the way than the guest allows");
    assert_eq!(conn.state() == State::Closing, seen.flags == SHUT_BOTH && conn.state() != State::Over);
    if conn.state() == State::Over {
        assert!(!conn.owes() && conn.sendable() == 0);
        return;
    }
    // However it got here, a guest that closes both directions gets its reset once the host took everything.
    if conn.state() != State::Requested {
        let mut conn = conn.clone();
        conn.receive(&shutdown(SHUT_BOTH));
        conn.taken(ALLOC);
        assert!(conn.is_finished());
    }
}
