// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP window tracking: which segments can belong to a connection, after `tcp_in_window` and
//! `nf_conntrack_tcp_packet` in Linux' `nf_conntrack_proto_tcp.c` with
//! `nf_conntrack_tcp_be_liberal=0`.
//!
//! A segment advances the connection ([`Verdict::To`]); or passes without changing it
//! ([`Verdict::Ignore`]), as a late retransmission does, or a SYN that its receiver has to judge;
//! or is refused ([`Verdict::Refuse`]), because the receiver would not accept it or because it is
//! forged. A refused segment changes nothing. Differences from nf_conntrack:
//!
//! - SACK blocks are not read: the right edge that a receiver grants is its acknowledgement plus
//!   its window. A block could only widen that edge, and only beyond where the sender may write.
//! - A refused segment leaves no windows behind; nf_conntrack keeps those that it initialised.
//! - A reset must match exactly in every state in which a side can still send, not in `ESTABLISHED`
//!   only, and the segment that it answers must be the other side's. Otherwise an off-path attacker
//!   could end a connection by a SYN and a reset that fits this SYN.
//! - A reset in `SYN_SENT` must acknowledge the SYN; the originator would not accept another one
//!   either.
//! - A sender that exceeds its window never lowers `end`.
//! - The sequence number is not compared when a repeated segment is recognised.
//!
//! **Two CPUs at once.** The segments of one direction rarely arrive on two CPUs at the same time,
//! but they may. All cells but one are plain: a lost update leaves the value that an earlier
//! segment wrote. If that makes a window too narrow (`max_end`, `max_win`), the segment still
//! passes by the rules for senders that exceed their window and for late segments; a lower
//! `max_ack` lets more resets through. `end` is the exception: an acknowledgement beyond it is
//! refused, so `end` is [raised](FlowRecords::raise) atomically and never taken back.

mod inside;

use self::inside::{Check, at_least_one, begin, inside, introduce};
use crate::abi::{FlowState, TcpTracking, last, noted, side_flag};
use crate::clock::Ticks;
use crate::conntrack::timeouts;
use crate::environment::FlowRecords;
use crate::family::Family;
use crate::reason::Reason;
use crate::subprograms::Tracking;
use crate::tracking::segment::{NO_SCALE, Segment, UNREAD};
use crate::tracking::tcp::{State, Step};
use crate::tracking::verdict::{PreCheck, Transition, Verdict, before};
use crate::wire::tcp::{self, ACK, Kind, RST, SYN};

/// Tracks a TCP segment of the flow at `index` with this flow state: updates the windows and
/// returns the verdict.
#[inline(always)]
pub fn follow<F: Family, T: Tracking<F>>(
    tables: &T,
    windows: &TcpTracking,
    index: u32,
    flow_state: FlowState,
    segment: &Segment,
) -> Verdict {
    let state = flow_state.state();
    // Data and acknowledgements of an open connection, which nearly all segments are, skip
    // [`prepare`].
    let ordinary = tcp::kind(segment.flags) as u8 == Kind::Ack as u8
        && matches!(state, ESTABLISHED..=CLOSE_WAIT)
        && windows.sides[segment.sides().0].max_win.get() != 0;
    let prepared = if ordinary {
        let from = State::from_u8(state);
        let to = if state == ESTABLISHED {
            State::Established
        } else {
            State::CloseWait
        };
        PreCheck::Transition(Transition::new(from, to, false))
    } else {
        let [numbers, facts] = segment.pack();
        tables.prepare(index, flow_state, numbers, facts)
    };
    match prepared {
        PreCheck::Decided(verdict) => verdict,
        PreCheck::Transition(transition) => {
            let [numbers, facts] = segment.pack();
            tables.settle(index, transition, numbers, facts)
        }
    }
}

const ESTABLISHED: u8 = State::Established as u8;
const CLOSE_WAIT: u8 = State::CloseWait as u8;

/// The second half of [`follow`], after [`prepare`]: checks the windows and updates them.
#[inline(always)]
pub fn settle<F: Family, T: FlowRecords<F>>(
    tables: &T,
    index: u32,
    transition: Transition,
    numbers: u64,
    facts: u64,
) -> Verdict {
    let Some(flow) = tables.flow(index) else {
        return Verdict::Ignore;
    };
    let (windows, segment) = (&flow.windows, &Segment::unpack([numbers, facts]));
    if !transition.is_inside() {
        match inside(tables, windows, transition.is_opening(), segment) {
            Check::Inside => {}
            Check::Ignore => return Verdict::Ignore,
            Check::Outside => return Verdict::Refuse(Reason::TcpWindow),
        }
    }
    let last = windows.last.get();
    let again = last & !(last::KIND | last::REPLY);
    let kind = tcp::kind(segment.flags) as u8;
    let now = again | kind | if segment.reply { last::REPLY } else { 0 };
    if now != last {
        windows.last.set(now);
    }
    let to = transition.to();
    Verdict::To(to, lifetime(windows, to, segment, again))
}

/// The first half of [`follow`], for segments other than the ordinary ones of an open connection:
/// finds the state transition, and initialises windows that have no values yet.
#[inline(always)]
#[must_use]
pub fn prepare<F: Family, T: FlowRecords<F>>(
    tables: &T,
    index: u32,
    flow_state: FlowState,
    numbers: u64,
    facts: u64,
) -> PreCheck {
    let Some(flow) = tables.flow(index) else {
        return PreCheck::Decided(Verdict::Ignore);
    };
    transition(
        &flow.windows,
        flow_state,
        &Segment::unpack([numbers, facts]),
    )
}

/// The transition that a segment causes, or the verdict on it.
#[inline(always)]
fn transition(windows: &TcpTracking, flow_state: FlowState, segment: &Segment) -> PreCheck {
    let reply = segment.reply;
    let (own, other) = segment.sides();
    let kind = tcp::kind(segment.flags);
    let mut from = State::from_u8(flow_state.state());
    let over = matches!(from, State::TimeWait | State::Close);
    let mut to = match crate::tracking::tcp::step_of(from, kind, reply) {
        // Another CPU has seen the end of the connection: the next SYN creates a new flow.
        Step::To(State::SynSent) if over => State::None,
        Step::To(to) => to,
        Step::Ignore => State::None,
        Step::Invalid => return PreCheck::Decided(Verdict::Refuse(Reason::TcpState)),
    };
    let last = windows.last.get();
    let follows = |kind: Kind| last & last::KIND == kind as u8;
    let answers = (last & last::REPLY != 0) != reply;
    match to {
        // No state (`sIG`): the segment is not tracked.
        State::None => {
            let agreed = kind == Kind::SynAck
                && follows(Kind::Syn)
                && answers
                && segment.ack == windows.last_end.get();
            if !agreed {
                note(windows, from, segment);
                return PreCheck::Decided(Verdict::Ignore);
            }
            // Both ends agree on a SYN that passed untracked: they are in sync, and the tracking
            // has to follow them.
            restart(windows, own, other);
            (from, to) = (State::SynSent, State::SynReceived);
        }
        State::TimeWait => {
            let noted = windows.noted.get();
            if from as u8 == State::LastAck as u8
                && kind == Kind::Ack
                && follows(Kind::Syn)
                && answers
                && noted & noted::CHALLENGE != 0
            {
                windows.noted.set(noted & !noted::CHALLENGE);
                return PreCheck::Decided(Verdict::Ignore);
            }
        }
        State::SynSent2 => windows.noted.set(windows.noted.get() | noted::SIMULTANEOUS),
        State::SynReceived
            if reply && kind == Kind::Ack && windows.noted.get() & noted::SIMULTANEOUS != 0 =>
        {
            to = State::Established;
        }
        State::Close if kind == Kind::Rst => match reset(windows, from, flow_state, segment) {
            Reset::Exact => return PreCheck::Transition(Transition::new(from, to, true)),
            Reset::Closes => {}
            Reset::Stays => to = from,
            Reset::Stray => return PreCheck::Decided(Verdict::Refuse(Reason::TcpWindow)),
        },
        _ => {}
    }
    if from as u8 == State::None as u8 {
        begin(windows, segment);
    }
    if (windows.sides[own].max_win.get() == 0 || segment.has(SYN))
        && let Some(check) = introduce(windows, from, segment)
    {
        return match check {
            Check::Inside => PreCheck::Transition(Transition::new(from, to, true)),
            Check::Ignore => PreCheck::Decided(Verdict::Ignore),
            Check::Outside => PreCheck::Decided(Verdict::Refuse(Reason::TcpWindow)),
        };
    }
    PreCheck::Transition(Transition::new(from, to, false))
}

/// How long the flow lives from now on.
#[inline(always)]
fn lifetime(windows: &TcpTracking, to: State, segment: &Segment, again: u8) -> Ticks {
    if segment.has(RST) {
        return timeouts::tcp(State::Close);
    }
    // Of all timeouts, only that of `ESTABLISHED` is longer than the one for unacknowledged data.
    let waits = to as u8 == State::Established as u8
        && (again >= last::WAITS
            || segment.win == 0
            || (windows.marks[0].get() | windows.marks[1].get()) & side_flag::UNACKNOWLEDGED != 0);
    if waits {
        timeouts::TCP_UNACKNOWLEDGED
    } else {
        timeouts::tcp(to)
    }
}

/// Records a segment that passes untracked: it may be valid, and the tracking out of sync.
#[inline(always)]
fn note(windows: &TcpTracking, from: State, segment: &Segment) {
    let (kind, reply) = (tcp::kind(segment.flags), segment.reply);
    let again = windows.last.get() & !(last::KIND | last::REPLY);
    windows
        .last
        .set(again | kind as u8 | if reply { last::REPLY } else { 0 });
    windows.last_end.set(segment.end());
    windows.last_win.set(segment.win);
    if segment.is(Kind::Syn) && !reply {
        let mut noted = match segment.scale {
            NO_SCALE | UNREAD => 0,
            scale => scale & noted::SCALE | noted::SCALES,
        };
        if from as u8 == State::LastAck as u8 {
            noted |= noted::CHALLENGE;
        }
        windows.noted.set(noted);
    }
    if from as u8 == State::SynSent as u8 && segment.is(Kind::Ack) && reply {
        windows.last_ack.set(segment.ack);
    }
}

/// Initialises the other side's windows from the recorded SYN, and resets those of this side.
#[inline(always)]
fn restart(windows: &TcpTracking, own: usize, other: usize) {
    let noted = windows.noted.get();
    let end = windows.last_end.get();
    windows.sides[other].end.set(end);
    windows.sides[other].max_end.set(end);
    windows.sides[other]
        .max_win
        .set(at_least_one(windows.last_win.get() as u32));
    windows.scale[other].set(noted & noted::SCALE);
    let scales = noted & noted::SCALES != 0;
    windows.marks[other].set(if scales { side_flag::SCALES } else { 0 });
    windows.noted.set(noted & !noted::CHALLENGE);
    windows.sides[own].end.set(0);
    windows.sides[own].max_end.set(0);
    windows.sides[own].max_win.set(0);
    windows.sides[own].max_ack.set(0);
    windows.scale[own].set(0);
    let liberal = windows.marks[own].get() & side_flag::LIBERAL;
    windows.marks[own].set(liberal);
}

/// The effect of a reset.
enum Reset {
    /// It closes the connection without a window check, because it answers a segment that passed.
    Exact,
    /// It closes the connection if it is inside of its window.
    Closes,
    /// It passes if it is inside of its window, but the state stays: the receiver will challenge it
    /// (RFC 5961).
    Stays,
    /// It belongs to no connection.
    Stray,
}

#[inline(always)]
fn reset(windows: &TcpTracking, from: State, flow_state: FlowState, segment: &Segment) -> Reset {
    // The connection is over; a later one between the same ports may already have begun.
    if matches!(from, State::TimeWait | State::Close) {
        return Reset::Exact;
    }
    let (reply, (_, other)) = (segment.reply, segment.sides());
    // The sender of a SYN accepts only a reset that acknowledges the SYN (RFC 9293 section
    // 3.10.7.3).
    if reply && from as u8 == State::SynSent as u8 {
        let exact = segment.has(ACK) && segment.ack == windows.sides[other].end.get();
        return if exact { Reset::Closes } else { Reset::Stray };
    }
    let last = windows.last.get();
    let kind = last & last::KIND;
    let by_reply = last & last::REPLY != 0;
    let answers = by_reply != reply;
    let mut outcome = Reset::Closes;
    // What was acknowledged before a SYN that passed untracked says nothing about the reset that
    // answers that SYN.
    let acknowledged = windows.marks[other].get() & side_flag::ACKNOWLEDGES != 0;
    if acknowledged && !(answers && kind == Kind::Syn as u8) {
        let expected = windows.sides[other].max_ack.get();
        let open = matches!(
            from,
            State::Established | State::FinWait | State::CloseWait | State::LastAck
        );
        if segment.seq == 0 && !open {
            return Reset::Closes;
        }
        if before(segment.seq, expected) {
            return Reset::Stray;
        }
        // The second alternative: right after the data that the same side sent last.
        let exact = segment.seq == expected
            || kind == Kind::Ack as u8
                && by_reply == reply
                && segment.seq == windows.last_end.get();
        if !open || exact {
            return Reset::Closes;
        }
        outcome = Reset::Stays;
    }
    let answers_syn = flow_state.is_replied() && kind == Kind::Syn as u8;
    let answers_ack = !flow_state.is_assured() && kind == Kind::Ack as u8;
    let answered = answers && (answers_syn || answers_ack) && segment.ack == windows.last_end.get();
    let challenged = from as u8 == State::SynSent as u8
        && kind == Kind::Ack as u8
        && by_reply
        && segment.seq == windows.last_ack.get();
    if answered && matches!(outcome, Reset::Closes) || challenged {
        return Reset::Exact;
    }
    outcome
}
