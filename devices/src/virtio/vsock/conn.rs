//! One stream connection between host and guest: a pure state machine, without queues, sockets or clocks.
//!
//! The mux calls it with what the guest sent and what happened on the host, and asks it what to send next
//! (virtio 1.2, 5.10.6.3 to 5.10.6.6).
//!
//! ```text
//!   the host dials                      the guest sends REQUEST
//!         |  owes REQUEST                      |  owes RESPONSE
//!         v                                    v
//!    +-----------+   RESPONSE          +--------------+
//!    | Requested |-------------------->|     Open     |  data both ways, each way bounded by credit;
//!    +-----------+                     +--------------+  each way ends with its SHUTDOWN hint
//!         |                              |          |
//!         | RESET, anything else         |          | both ways are over and drained on our side:
//!         |                              |          v owes SHUTDOWN (both)
//!         |     RESET, a violation, or   |     +---------+
//!         |     the guest's SHUTDOWN     |     | Closing |  what still comes is dropped
//!         |     (both) once drained      |     +---------+
//!         v                              v          | RESET, the guest's SHUTDOWN (both), the mux's deadline
//!    +-------------------------------------------------------+
//!    |                         Over                          |
//!    +-------------------------------------------------------+
//! ```
//!
//! **Credit.** Either side may have at most the other's `buf_alloc` bytes on the way: bytes sent, less the bytes
//! that the receiver said it has consumed (`fwd_cnt`). All counters wrap at 2^32. The guest builds packets on
//! several CPUs and may queue an older `fwd_cnt` behind a newer one, so a count that would put more bytes on the
//! way than before is stale and ignored.

use super::packet::{Header, MAX_PAYLOAD, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND, TYPE_STREAM};

/// Where a connection stands; see the module's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// Dialed by the host, not answered yet.
    Requested,
    /// Carries data in at least one direction.
    Open,
    /// Both directions are over; the guest's reset is awaited.
    Closing,
    /// The connection is no more.
    Over,
}

/// What a packet of the guest means for the host side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// The guest accepted the host's request.
    Accepted,
    /// So many bytes of payload go to the host; [`Conn::taken`] follows when the host took them.
    Data(u32),
    /// The guest closed a direction or both: look at [`Conn::guest_shut`].
    Shut,
    /// The guest ended the connection. When it had closed both directions cleanly before, what is buffered for
    /// the host still belongs to it.
    Reset {
        /// Whether a SHUTDOWN of both directions came before.
        clean: bool,
    },
    /// The guest broke the protocol: answer with a reset and forget the connection.
    Violation(&'static str),
}

/// Whether the guest knows that data waits for its credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Starved {
    No,
    Owed,
    Asked,
}

/// The state of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Conn {
    state: State,
    /// A REQUEST (when `Requested`) or a RESPONSE is to be sent.
    owes_opening: bool,
    owes_update: bool,
    starved: Starved,

    /// The guest's buffer, what it has consumed, and what was sent to it.
    guest_alloc: u32,
    guest_consumed: u32,
    sent: u32,

    /// Our buffer, what came from the guest, what the host took, and what the guest was told of that.
    alloc: u32,
    received: u32,
    taken: u32,
    told: u32,

    guest_shut: u32,
    shut: u32,
    shut_told: u32,
}

impl Conn {
    /// A connection that the host dials, with `alloc` bytes of buffer for what the guest will send.
    pub(super) fn dialed(alloc: u32) -> Self {
        Self {
            state: State::Requested,
            owes_opening: true,
            owes_update: false,
            starved: Starved::No,
            guest_alloc: 0,
            guest_consumed: 0,
            sent: 0,
            alloc,
            received: 0,
            taken: 0,
            told: 0,
            guest_shut: 0,
            shut: 0,
            shut_told: 0,
        }
    }

    /// A connection that the guest's `request` asked for and the host accepts.
    pub(super) fn accepted(alloc: u32, request: &Header) -> Self {
        let mut conn = Self { state: State::Open, ..Self::dialed(alloc) };
        conn.hear_credit(request);
        conn
    }

    /// Where the connection stands.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// The directions that the guest closed: [`SHUT_SEND`], [`SHUT_RECEIVE`].
    pub(super) fn guest_shut(&self) -> u32 {
        self.guest_shut
    }

    /// Bytes that came from the guest and were not taken by the host yet; never more than our buffer.
    pub(super) fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.taken)
    }

    /// Takes in a packet of the guest for this connection. Its payload has been checked to be there.
    pub(super) fn receive(&mut self, header: &Header) -> Step {
        let step = match (self.state, Op::from_number(header.op)) {
            (_, Some(Op::Reset)) => Step::Reset { clean: self.guest_shut == SHUT_BOTH },
            (_, None) => Step::Violation("unknown operation"),
            (State::Over, _) => Step::Nothing,
            (State::Requested, Some(Op::Response)) if !self.owes_opening => {
                self.state = State::Open;
                Step::Accepted
            }
            (State::Requested, _) => Step::Violation("a packet of a connection that was not accepted"),
            (_, Some(Op::Request | Op::Response)) => Step::Violation("the connection is open already"),
            (_, Some(Op::Data)) => self.receive_data(header.len),
            (_, Some(Op::Shutdown)) => {
                self.guest_shut |= header.flags & SHUT_BOTH;
                Step::Shut
            }
            (_, Some(Op::CreditUpdate)) => Step::Nothing,
            (_, Some(Op::CreditRequest)) => {
                self.owes_update = true;
                Step::Nothing
            }
        };
        if matches!(step, Step::Reset { .. } | Step::Violation(_)) {
            self.state = State::Over;
        } else {
            self.hear_credit(header);
            self.settle();
        }
        step
    }

    fn receive_data(&mut self, len: u32) -> Step {
        if len > MAX_PAYLOAD {
            return Step::Violation("a packet of more than 64 KiB");
        }
        if self.guest_shut & SHUT_SEND != 0 {
            return Step::Violation("data after the end of data");
        }
        if self.buffered().checked_add(len).is_none_or(|buffered| buffered > self.alloc) {
            return Step::Violation("more data than credit");
        }
        self.received = self.received.wrapping_add(len);
        if self.shut & SHUT_RECEIVE != 0 {
            // It was on its way when the host stopped to receive.
            self.taken = self.received;
            return Step::Nothing;
        }
        Step::Data(len)
    }

    fn hear_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        if self.sent.wrapping_sub(header.fwd_cnt) <= self.on_the_way() {
            self.guest_consumed = header.fwd_cnt;
        }
        if self.credit() > 0 {
            self.starved = Starved::No;
        }
    }

    /// Bytes sent that the guest has not consumed yet.
    fn on_the_way(&self) -> u32 {
        self.sent.wrapping_sub(self.guest_consumed)
    }

    fn credit(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.on_the_way())
    }

    /// Whether the host may still send, credit or no credit.
    pub(super) fn can_send(&self) -> bool {
        self.state == State::Open && self.guest_shut & SHUT_RECEIVE == 0 && self.shut & SHUT_SEND == 0
    }

    /// Bytes that may be sent to the guest now: its credit, at most [`MAX_PAYLOAD`].
    pub(super) fn sendable(&self) -> u32 {
        if self.can_send() { self.credit().min(MAX_PAYLOAD) } else { 0 }
    }

    /// The host has data, but the guest gives no credit.
    pub(super) fn starve(&mut self) {
        if self.starved == Starved::No && self.can_send() && self.credit() == 0 {
            self.starved = Starved::Owed;
        }
    }

    /// The host took `count` of the buffered bytes.
    pub(super) fn taken(&mut self, count: u32) {
        self.taken = self.taken.wrapping_add(count.min(self.buffered()));
        self.settle();
    }

    /// The host will send no more, and all it sent was passed on.
    pub(super) fn host_done_sending(&mut self) {
        self.shut |= SHUT_SEND;
        self.settle();
    }

    /// The host will take no more: what is buffered is dropped.
    pub(super) fn host_done_receiving(&mut self) {
        self.shut |= SHUT_RECEIVE;
        self.taken = self.received;
        self.settle();
    }

    /// The guest closed both directions and the host has all it sent: answer with a reset and forget.
    pub(super) fn is_finished(&self) -> bool {
        self.guest_shut == SHUT_BOTH && self.buffered() == 0
    }

    /// Closes both directions for the guest once both are over.
    fn settle(&mut self) {
        let out_over = self.shut & SHUT_SEND != 0 || self.guest_shut & SHUT_RECEIVE != 0;
        let in_over =
            self.shut & SHUT_RECEIVE != 0 || (self.guest_shut & SHUT_SEND != 0 && self.buffered() == 0);
        if out_over && in_over && self.guest_shut != SHUT_BOTH {
            self.shut = SHUT_BOTH;
        }
    }

    /// Whether [`Self::next_packet`] has a packet.
    pub(super) fn owes(&self) -> bool {
        self.owes_urgent() || self.update_due()
    }

    /// Whether the request or the response is still to be sent.
    pub(super) fn owes_opening(&self) -> bool {
        self.owes_opening
    }

    /// Whether [`Self::next_packet`] has a packet that data does not make superfluous.
    pub(super) fn owes_urgent(&self) -> bool {
        match self.state {
            State::Requested => self.owes_opening,
            State::Open => self.owes_opening || self.shut != self.shut_told || self.starved == Starved::Owed,
            State::Closing | State::Over => false,
        }
    }

    /// A quarter of our buffer was freed since the guest last heard of it, or it asked. Every packet tells it.
    fn update_due(&self) -> bool {
        let open = matches!(self.state, State::Open | State::Closing);
        let news = self.taken.wrapping_sub(self.told);
        open && self.guest_shut & SHUT_SEND == 0 && (self.owes_update || (news > 0 && news >= self.alloc / 4))
    }

    /// The next packet to send that carries no data, without its addresses.
    pub(super) fn next_packet(&mut self) -> Option<Header> {
        if self.owes_urgent() {
            if self.owes_opening {
                self.owes_opening = false;
                let op = if self.state == State::Requested { Op::Request } else { Op::Response };
                return Some(self.packet(op, 0));
            }
            if self.shut != self.shut_told {
                self.shut_told = self.shut;
                if self.shut == SHUT_BOTH {
                    self.state = State::Closing;
                }
                return Some(Header { flags: self.shut, ..self.packet(Op::Shutdown, 0) });
            }
            self.starved = Starved::Asked;
            return Some(self.packet(Op::CreditRequest, 0));
        }
        self.update_due().then(|| self.packet(Op::CreditUpdate, 0))
    }

    /// The header for `len` bytes of data, at most [`Self::sendable`], which are thereby sent.
    pub(super) fn data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.packet(Op::Data, len)
    }

    fn packet(&mut self, op: Op, len: u32) -> Header {
        self.told = self.taken;
        self.owes_update = false;
        Header {
            kind: TYPE_STREAM,
            op: op as u16,
            len,
            buf_alloc: self.alloc,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests;
