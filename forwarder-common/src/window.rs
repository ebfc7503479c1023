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
//! refused, so `end` is [raised](Tables::raise) atomically and never taken back.

mod inside;
mod segment;

use crate::abi::TcpTracking;
use crate::family::Family;
use crate::flow::FlowState;
use crate::reason::Reason;
use crate::tables::Tables;
use crate::tcp::{self, ACK, Kind, RST, SYN, State, Step};
use crate::timeouts::{self, Ticks};
use inside::{Check, at_least_one, begin, inside, introduce};
pub use segment::{NO_SCALE, Segment, UNREAD, scale};

/// Bits of [`TcpTracking::marks`].
pub mod mark {
    /// This side sent data that the other side has not acknowledged yet.
    pub const UNACKNOWLEDGED: u8 = 1;
    /// This side has acknowledged something.
    pub const ACKNOWLEDGES: u8 = 2;
    /// The connection was picked up in the middle, so no segment counts as outside of its window
    /// (`IP_CT_TCP_FLAG_BE_LIBERAL`).
    pub const LIBERAL: u8 = 4;
    /// This side offered window scaling.
    pub const SCALES: u8 = 8;
}

/// Bits of [`TcpTracking::noted`]; the low four bits are the window scale that a SYN offered.
mod noted {
    pub(super) const SCALE: u8 = 0x0f;
    pub(super) const SCALES: u8 = 0x10;
    /// A SYN passed in `LAST_ACK`: the next ACK may be its challenge (RFC 5961).
    pub(super) const CHALLENGE: u8 = 0x20;
    /// Both sides have sent a SYN.
    pub(super) const SIMULTANEOUS: u8 = 0x40;
}

/// Bits of [`TcpTracking::last`]: kind and direction of the last segment, and how often the same
/// ACK was repeated.
mod last {
    pub(super) const KIND: u8 = 0x07;
    pub(super) const REPLY: u8 = 0x08;
    pub(super) const AGAIN: u8 = 0x10;
    /// The ACK was repeated so often that the short timeout applies (`tcp_max_retrans`).
    pub(super) const WAITS: u8 = 0x30;
}

/// The verdict on a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The segment passes; the flow is now in this state and expires after this time.
    To(State, Ticks),
    /// The segment passes and changes nothing.
    Ignore,
    /// The segment is dropped and changes nothing.
    Refuse(Reason),
}

impl Verdict {
    /// Packs the verdict into one word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::To(state, span) => (state as u64) << 8 | (span as u64) << 32,
            Self::Ignore => 1,
            Self::Refuse(Reason::TcpState) => 2,
            Self::Refuse(_) => 3,
        }
    }

    /// Unpacks a verdict.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::To(State::from_u8((word >> 8) as u8), (word >> 32) as Ticks),
            1 => Self::Ignore,
            2 => Self::Refuse(Reason::TcpState),
            _ => Self::Refuse(Reason::TcpWindow),
        }
    }
}

/// Whether sequence number `a` comes before `b` (RFC 9293 section 3.4).
#[inline(always)]
#[must_use]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The state transition of a segment, packed into one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition(u64);

const INSIDE: u64 = 1 << 16;
const OPENING: u64 = 1 << 17;

impl Transition {
    /// From one state to another; `inside` if the windows need not be checked.
    #[inline(always)]
    #[must_use]
    pub const fn new(from: State, to: State, inside: bool) -> Self {
        let opening = from as u8 == State::SynSent as u8;
        let inside = if inside { INSIDE } else { 0 };
        let opening = if opening { OPENING } else { 0 };
        Self((to as u64) << 8 | inside | opening)
    }

    /// The packed word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// Unpacks a transition.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    const fn to(self) -> State {
        State::from_u8((self.0 >> 8) as u8)
    }
}

/// The result of [`prepare`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PreCheck {
    /// The verdict is already clear: [`Verdict::Ignore`] or [`Verdict::Refuse`].
    Decided(Verdict),
    /// The transition that the segment causes if it is inside of its windows.
    Leads(Transition),
}

impl PreCheck {
    /// Packs the result into one word; a [`PreCheck::Decided`] has the same word as its
    /// [`Verdict`].
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Decided(verdict) => verdict.pack(),
            Self::Leads(transition) => transition.0,
        }
    }

    /// Unpacks a result.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        if word & 3 != 0 {
            return Self::Decided(Verdict::unpack(word));
        }
        Self::Leads(Transition(word))
    }
}

/// Tracks a TCP segment of the flow at `index` with this flow state: updates the windows and
/// returns the verdict.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(
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
        PreCheck::Leads(Transition::new(from, to, false))
    } else {
        tables.prepare(index, flow_state, segment)
    };
    match prepared {
        PreCheck::Decided(verdict) => verdict,
        PreCheck::Leads(transition) => tables.settle(index, transition, segment),
    }
}

const ESTABLISHED: u8 = State::Established as u8;
const CLOSE_WAIT: u8 = State::CloseWait as u8;

/// The second half of [`follow`], after [`prepare`]: checks the windows and updates them.
#[inline(always)]
pub fn settle<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &TcpTracking,
    transition: Transition,
    segment: &Segment,
) -> Verdict {
    if transition.0 & INSIDE == 0 {
        match inside(tables, windows, transition.0 & OPENING != 0, segment) {
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
pub fn prepare(windows: &TcpTracking, flow_state: FlowState, segment: &Segment) -> PreCheck {
    let reply = segment.reply;
    let (own, other) = segment.sides();
    let kind = tcp::kind(segment.flags);
    let mut from = State::from_u8(flow_state.state());
    let over = matches!(from, State::TimeWait | State::Close);
    let mut to = match tcp::step_of(from, kind, reply) {
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
            Reset::Exact => return PreCheck::Leads(Transition::new(from, to, true)),
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
            Check::Inside => PreCheck::Leads(Transition::new(from, to, true)),
            Check::Ignore => PreCheck::Decided(Verdict::Ignore),
            Check::Outside => PreCheck::Decided(Verdict::Refuse(Reason::TcpWindow)),
        };
    }
    PreCheck::Leads(Transition::new(from, to, false))
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
            || (windows.marks[0].get() | windows.marks[1].get()) & mark::UNACKNOWLEDGED != 0);
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
    windows.marks[other].set(if scales { mark::SCALES } else { 0 });
    windows.noted.set(noted & !noted::CHALLENGE);
    windows.sides[own].end.set(0);
    windows.sides[own].max_end.set(0);
    windows.sides[own].max_win.set(0);
    windows.sides[own].max_ack.set(0);
    windows.scale[own].set(0);
    let liberal = windows.marks[own].get() & mark::LIBERAL;
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
    let acknowledged = windows.marks[other].get() & mark::ACKNOWLEDGES != 0;
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
