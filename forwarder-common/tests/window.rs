// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP's sequence windows: nf_conntrack's cases, and any trace against a plain reference.

mod windows;

use forwarder_common::clock::Ticks;
use forwarder_common::conntrack::timeouts;
use forwarder_common::conntrack::window_scale::offered;
use forwarder_common::reason::{Path, Reason};
use forwarder_common::tracking::segment::{NO_SCALE, UNREAD};
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::parse::{Packet, parse};
use forwarder_testkit::model::frames::{ACK, FIN, RST, SYN, Spec};
use forwarder_testkit::model::host::{CLIENT, HOST, UPLINK, WEB, WEB_VETH};
use forwarder_testkit::model::{Arrival, Hook, Host};
use forwarder_testkit::packet::seal_header;

const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;
/// Where both sides' sequence numbers begin: they wrap around early.
const START: u32 = u32::MAX - 50;

/// A connection from a client outside to a published port: numbers count from each side's SYN.
struct Connection(Host);

impl Connection {
    /// Before its first segment.
    fn new() -> Self {
        Self(Host::usual(64))
    }

    /// Open both ways, with windows of 4096 bytes.
    fn open() -> Self {
        let connection = Self::new();
        connection.client(SYN, 0, 0).passes();
        connection.server(SYN_ACK, 0, 1).passes();
        connection.client(ACK, 1, 1).passes();
        connection
    }

    fn client(&self, flags: u8, seq: u32, ack: u32) -> Segment<'_> {
        Segment {
            connection: self,
            spec: Spec::tcp((CLIENT, 40_000), (HOST, 8080), flags).numbers(
                START.wrapping_add(seq),
                acked(flags, ack),
                4096,
            ),
            inward: true,
        }
    }

    fn server(&self, flags: u8, seq: u32, ack: u32) -> Segment<'_> {
        Segment {
            connection: self,
            spec: Spec::tcp((WEB, 80), (CLIENT, 40_000), flags).numbers(
                START.wrapping_add(seq),
                acked(flags, ack),
                4096,
            ),
            inward: false,
        }
    }

    fn state(&self) -> State {
        let tuple = self.client(0, 0, 0).spec.tuple;
        State::from_u8(self.0.flow_of(&tuple).unwrap().1.state())
    }

    fn left(&self) -> Ticks {
        let tuple = self.client(0, 0, 0).spec.tuple;
        let (flow, _) = self.0.flow_of(&tuple).unwrap();
        flow.expires.get().wrapping_sub(self.0.clock.get())
    }
}

fn acked(flags: u8, ack: u32) -> u32 {
    if flags & ACK == 0 {
        0
    } else {
        START.wrapping_add(ack)
    }
}

struct Segment<'a> {
    connection: &'a Connection,
    spec: Spec,
    inward: bool,
}

impl Segment<'_> {
    fn bytes(mut self, length: usize) -> Self {
        self.spec = self.spec.payload(length);
        self
    }

    fn window(mut self, window: u16) -> Self {
        self.spec.numbers.2 = window;
        self
    }

    fn scale(mut self, scale: u8) -> Self {
        self.spec = self.spec.scale(scale);
        self
    }

    /// From the client, with a length of zero in its header.
    fn too_long(self, length: usize, segment: u32) -> Reason {
        let host = &self.connection.0;
        let to = host.devices[&UPLINK].mac;
        let mut frame = self.spec.payload(length).between(to, [2; 6]).build();
        frame[16..18].fill(0);
        seal_header(&mut frame[14..]);
        let arrival = Arrival {
            ifindex: UPLINK,
            segment,
            ..Arrival::default()
        };
        let outcome = host.run(Hook::OutsideIn, &mut frame, arrival);
        outcome.reason.unwrap()
    }

    fn reason(&self) -> Reason {
        let host = &self.connection.0;
        let (outcome, _) = if self.inward {
            host.by_uplink(&self.spec)
        } else {
            host.by_veth(WEB_VETH, &self.spec)
        };
        outcome.reason.unwrap()
    }

    #[track_caller]
    fn passes(&self) {
        let reason = self.reason();
        assert_ne!(reason.path(), Path::Drop, "{reason:?}");
    }

    /// Dropped, and no trace is left.
    #[track_caller]
    fn is_out(&self) {
        let before = (self.connection.state(), self.connection.left());
        assert_eq!(self.reason(), Reason::TcpWindow);
        assert_eq!(before, (self.connection.state(), self.connection.left()));
    }
}

/// An open connection in which the server has sent 100 bytes and the client acknowledged them.
fn talked() -> Connection {
    let connection = Connection::open();
    connection.server(ACK, 1, 1).bytes(100).passes();
    connection.client(ACK, 1, 101).passes();
    connection
}

#[test]
fn exact_reset_closes() {
    for exact in [true, false] {
        let connection = talked();
        // Exact, or right behind the data that it comes with.
        let seq = if exact { 101 } else { 151 };
        if !exact {
            connection.server(ACK, 101, 1).bytes(50).passes();
        }
        connection.server(RST, seq, 0).passes();
        assert_eq!(connection.state(), State::Close);
        assert_eq!(connection.left(), timeouts::tcp(State::Close));
    }
}

/// A reset below the window or far above it is dropped.
#[test]
fn reset_outside_the_window_is_dropped() {
    let connection = talked();
    connection.server(RST, 100, 0).is_out();
    connection.server(RST | ACK, 1, 1).is_out();
    connection.server(RST, 101 + 2 * 4096 + 2, 0).is_out();
    connection.server(RST, 1 << 30, 0).is_out();
    connection.client(RST, 0, 0).is_out();
    connection.client(RST, 1 << 30, 0).is_out();
    assert_eq!(connection.state(), State::Established);
    assert_eq!(connection.left(), timeouts::tcp(State::Established));
}

/// A reset inside the window that is not exact passes, and the state stays.
#[test]
fn inexact_reset_passes_and_keeps_state() {
    let connection = talked();
    connection.server(RST, 102, 0).passes();
    assert_eq!(connection.state(), State::Established);
    assert_eq!(connection.left(), timeouts::tcp(State::Close));
    // The next segment that fits takes it back.
    connection.client(ACK, 1, 101).passes();
    assert_eq!(connection.left(), timeouts::TCP_UNACKNOWLEDGED);
}

/// A half-closed connection is not ended by a blind reset.
#[test]
fn blind_reset_keeps_half_closed_connection() {
    let connection = talked();
    connection.client(FIN_ACK, 1, 101).passes();
    connection.server(ACK, 101, 2).passes();
    assert_eq!(connection.state(), State::CloseWait);
    connection.client(RST, 1 << 29, 0).is_out();
    connection.server(RST, 100, 0).is_out();
    connection.server(RST, 103, 0).passes();
    assert_eq!(connection.state(), State::CloseWait);
    connection.server(RST, 101, 0).passes();
    assert_eq!(connection.state(), State::Close);
}

/// A SYN and a reset that fits it end nothing.
#[test]
fn syn_with_fitting_reset_ends_nothing() {
    let connection = talked();
    connection.client(SYN, 1 << 29, 0).passes();
    connection
        .client(RST | ACK, 1 << 29, (1 << 29) + 1)
        .is_out();
    assert_eq!(connection.state(), State::Established);
}

#[test]
fn data_outside_the_window_is_dropped() {
    let connection = talked();
    for (seq, length) in [(1 << 29, 1), (101 + 2 * 4096, 10), (9_000, 1_000)] {
        connection.client(ACK, seq, 101).bytes(length).is_out();
        connection.server(ACK, seq, 1).bytes(length).is_out();
    }
    // What acknowledges data that was never sent.
    connection.client(ACK, 1, 102).is_out();
    connection.server(ACK, 101, 2).bytes(10).is_out();
    connection.server(FIN_ACK, 1 << 29, 1).is_out();
    assert_eq!(connection.state(), State::Established);
}

#[test]
fn retransmission_and_keepalive_pass() {
    let mut connection = talked();
    connection.server(ACK, 1, 1).bytes(100).passes();
    // One byte before what is expected, empty or not, and its answer.
    connection.client(ACK, 0, 101).passes();
    connection.client(ACK, 0, 101).bytes(1).passes();
    connection.server(ACK, 101, 1).passes();
    // Far behind: passes, but means nothing.
    for _ in 0..3 {
        let seq = connection.0.flow_of(&connection.server(0, 0, 0).spec.tuple);
        let sent = seq.unwrap().0.windows.sides[1]
            .end
            .get()
            .wrapping_sub(START);
        connection.server(ACK, sent, 1).bytes(4000).passes();
        connection.client(ACK, 1, sent + 4000).passes();
    }
    connection.0.wait(10);
    let left = connection.left();
    connection.server(ACK, 1, 1).bytes(10).passes();
    assert_eq!(connection.left(), left);
}

/// A little more data than the window allows passes, and so does its acknowledgement.
#[test]
fn slight_window_overrun_and_its_ack_pass() {
    let connection = talked();
    let edge = 101 + 4096;
    connection.server(ACK, 101, 1).bytes(4096).passes();
    connection.server(ACK, edge + 1, 1).bytes(100).passes();
    connection.client(ACK, 1, edge + 101).passes();
}

#[test]
fn zero_window_probe_passes() {
    let connection = talked();
    connection.client(ACK, 1, 101).window(0).passes();
    assert_eq!(connection.left(), timeouts::TCP_UNACKNOWLEDGED);
    connection.server(ACK, 101, 1).bytes(1).passes();
    connection.client(ACK, 1, 101).window(0).passes();
    connection.client(ACK, 1, 102).passes();
    assert_eq!(connection.left(), timeouts::tcp(State::Established));
}

#[test]
fn window_scaling_needs_both_sides() {
    let beyond = 101 + 3 * 4096;
    for both in [true, false] {
        let connection = Connection::new();
        connection.client(SYN, 0, 0).scale(7).passes();
        let answer = connection.server(SYN_ACK, 0, 1);
        if both { answer.scale(2) } else { answer }.passes();
        connection.client(ACK, 1, 1).passes();
        let data = connection.server(ACK, beyond, 1).bytes(100);
        assert_eq!(data.reason() != Reason::TcpWindow, both);
        let data = connection.client(ACK, 4 * 4096 - 100, 1).bytes(100);
        assert_eq!(data.reason() != Reason::TcpWindow, both);
        connection.client(ACK, 9 * 4096, 1).bytes(100).is_out();
    }
}

/// A connection that waits for an acknowledgement is not kept for days.
#[test]
fn unacknowledged_data_shortens_the_timeout() {
    let connection = talked();
    connection.server(ACK, 101, 1).bytes(10).passes();
    assert_eq!(connection.left(), timeouts::TCP_UNACKNOWLEDGED);
    connection.client(ACK, 1, 111).passes();
    assert_eq!(connection.left(), timeouts::tcp(State::Established));
    for _ in 0..3 {
        connection.client(ACK, 1, 111).passes();
    }
    assert_eq!(connection.left(), timeouts::TCP_UNACKNOWLEDGED);
    connection.server(ACK, 111, 1).passes();
    assert_eq!(connection.left(), timeouts::tcp(State::Established));
}

#[test]
fn simultaneous_open_is_tracked() {
    let connection = Connection::new();
    connection.client(SYN, 0, 0).passes();
    connection.server(SYN, 0, 0).passes();
    assert_eq!(connection.state(), State::SynSent2);
    connection.client(SYN_ACK, 0, 1).passes();
    connection.server(SYN_ACK, 0, 1).passes();
    assert_eq!(connection.state(), State::SynReceived);
    connection.server(ACK, 1, 1).passes();
    assert_eq!(connection.state(), State::Established);
    connection.client(ACK, 1, 1).bytes(10).passes();
    connection.client(ACK, 1 << 29, 1).bytes(10).is_out();
}

#[test]
fn refusal_must_match_its_syn() {
    let connection = Connection::new();
    connection.client(SYN, 0, 0).passes();
    let zero = 0u32.wrapping_sub(START);
    for (flags, seq, ack) in [(RST | ACK, zero, 2), (RST | ACK, zero, zero), (RST, 7, 0)] {
        connection.server(flags, seq, ack).is_out();
    }
    connection.server(RST | ACK, zero, 1).passes();
    assert_eq!(connection.state(), State::Close);
}

#[test]
fn forged_answer_does_not_break_an_opening() {
    let connection = Connection::new();
    connection.client(SYN, 0, 0).passes();
    connection.server(SYN_ACK, 1 << 29, 7).is_out();
    connection.server(SYN_ACK, 0, 1).passes();
    connection.client(ACK, 1, 1).passes();
    connection.server(ACK, 1, 1).bytes(10).passes();
    connection.client(ACK, 1, 11).passes();
    assert_eq!(connection.state(), State::Established);
}

#[test]
fn challenge_ack_is_no_last_ack() {
    let connection = talked();
    connection.client(FIN_ACK, 1, 101).passes();
    connection.server(FIN_ACK, 101, 2).passes();
    assert_eq!(connection.state(), State::LastAck);
    connection.client(SYN, 5_000, 0).passes();
    connection.server(ACK, 102, 2).passes();
    assert_eq!(connection.state(), State::LastAck);
    connection.client(ACK, 2, 102).passes();
    assert_eq!(connection.state(), State::TimeWait);
}

#[test]
fn reset_after_a_challenge_ends_an_opening() {
    let connection = Connection::new();
    connection.client(SYN, 0, 0).passes();
    // The server has an older connection of these ends: its challenge shows what it expects.
    connection.server(ACK, 77_000, 500_000).passes();
    assert_eq!(connection.state(), State::SynSent);
    connection.server(RST, 500_000, 0).is_out();
    connection.client(RST, 500_000, 0).passes();
    assert_eq!(connection.state(), State::Close);
}

/// A peer that comes back after a crash is tracked once both sides agree.
#[test]
fn reopening_after_a_crash_is_tracked() {
    let connection = talked();
    connection.client(SYN, 1 << 29, 0).passes();
    assert_eq!(connection.state(), State::Established);
    connection.server(SYN_ACK, 1 << 30, (1 << 29) + 1).passes();
    assert_eq!(connection.state(), State::SynReceived);
    let (ours, theirs) = ((1 << 29) + 1, (1 << 30) + 1);
    connection.client(ACK, ours, theirs).passes();
    assert_eq!(connection.state(), State::Established);
    connection.client(ACK, ours, theirs).bytes(10).passes();
    connection.client(ACK, 1, 101).bytes(10).passes();
    connection.server(RST, 101, 0).is_out();
}

/// A SYN in TIME_WAIT opens a new connection with windows of its own.
#[test]
fn syn_in_time_wait_opens_new_windows() {
    let connection = talked();
    connection.client(FIN_ACK, 1, 101).passes();
    connection.server(FIN_ACK, 101, 2).passes();
    connection.client(ACK, 2, 102).passes();
    assert_eq!(connection.state(), State::TimeWait);
    connection.client(SYN, 1 << 29, 0).passes();
    assert_eq!(connection.state(), State::SynSent);
    connection.server(SYN_ACK, 1 << 30, (1 << 29) + 1).passes();
    connection
        .client(ACK, (1 << 29) + 1, (1 << 30) + 1)
        .passes();
    assert_eq!(connection.state(), State::Established);
}

/// A connection that is picked up in its middle is never out of its windows.
#[test]
fn picked_up_connection_is_always_in_window() {
    let connection = Connection::new();
    connection.client(ACK, 1000, 9_000_000).bytes(10).passes();
    assert_eq!(connection.left(), timeouts::TCP_UNACKNOWLEDGED);
    connection.server(ACK, 9_000_000, 1010).bytes(500).passes();
    connection
        .client(ACK, 70_000_000, 9_000_500)
        .bytes(10)
        .passes();
    connection.server(ACK, 1, 1).bytes(10).passes();
    assert_eq!(connection.state(), State::Established);
}

#[test]
fn impossible_flags_are_invalid() {
    let connection = talked();
    for flags in [0, FIN, SYN | FIN, SYN | RST, FIN | RST, SYN | FIN | ACK] {
        assert_eq!(connection.client(flags, 1, 101).reason(), Reason::TcpState);
    }
}

/// What a SYN with these options offers; only so much of the packet is at hand.
fn offers(options: &[u8], cut: usize) -> u8 {
    let mut spec = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN);
    spec.tcp_options = options.to_vec();
    let mut bytes = spec.packet();
    let len = bytes.len() - cut;
    let frame = Frame::new(&mut bytes[..len]);
    let mut packet = Packet::<forwarder_common::family::V4>::default();
    parse(&frame, 0, &mut packet).unwrap();
    offered(&Host::new(1), frame, &packet)
}

#[test]
fn syn_options_are_parsed() {
    let linux = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    assert_eq!(offers(&linux, 0), 7);
    assert_eq!(offers(&[], 0), NO_SCALE);
    assert_eq!(offers(&[3, 3, 200, 0], 0), 14);
    assert_eq!(offers(&[1, 1, 1, 0], 0), NO_SCALE);
    // After the end, of no length, longer than the header.
    assert_eq!(offers(&[0, 3, 3, 7], 0), NO_SCALE);
    assert_eq!(offers(&[5, 0, 0, 0, 3, 3, 7, 0], 0), NO_SCALE);
    assert_eq!(offers(&[1, 3, 4, 7], 0), NO_SCALE);
    assert_eq!(offers(&[1, 1, 1, 3], 0), NO_SCALE);
    // As many as there can be.
    assert_eq!(offers(&[1; 40], 0), NO_SCALE);
    let mut last = [1; 40];
    last[37..].copy_from_slice(&[3, 3, 9]);
    assert_eq!(offers(&last, 0), 9);
    // Not at hand.
    assert_eq!(offers(&linux, 1), UNREAD);
    assert_eq!(offers(&linux, 4), UNREAD);
}

/// A segment that the kernel has aggregated counts with its whole length.
#[test]
fn aggregated_segment_counts_wholly() {
    let connection = Connection::new();
    connection.client(SYN, 0, 0).scale(7).passes();
    connection.server(SYN_ACK, 0, 1).scale(7).passes();
    connection.client(ACK, 1, 1).passes();
    // As long as a header can say.
    let most = 0xffff - 40;
    connection.client(ACK, 1, 1).bytes(most).passes();
    let after = 1 + most as u32;
    connection.server(ACK, 1, after).passes();
    assert_eq!(
        connection.client(ACK, after, 1).too_long(200_000, 1448),
        Reason::Forwarded
    );
    connection.server(ACK, 1, after + 200_000).passes();
    assert_eq!(
        connection.server(ACK, 1, after + 200_001).reason(),
        Reason::TcpWindow
    );
    // Only what is yet to be cut may be so long.
    let after = after + 200_000;
    assert_eq!(
        connection.client(ACK, after, 1).too_long(100, 0),
        Reason::Malformed
    );
}
