// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP's sequence windows: which segments can belong to a connection, after `tcp_in_window` and
//! `nf_conntrack_tcp_packet` of Linux' `nf_conntrack_proto_tcp.c` with `nf_conntrack_tcp_be_liberal=0`.
//!
//! A segment is [followed](Fate::To), or [let through](Fate::Ignore) without a change to the
//! connection (a late retransmission, a SYN that its receiver has to judge), or
//! [refused](Fate::Refuse): its ends would not take it, or it would be taken for what it is not.
//! What is refused has changed nothing. Where this is not nf_conntrack's:
//!
//! - SACK blocks are not read: the right edge that a receiver grants is its acknowledgement plus its
//!   window. A block could only widen that edge, and only past where its sender may write.
//! - What does not pass leaves no windows behind, where nf_conntrack keeps those that it began with.
//! - A reset has to be exact as long as either side can still send, not in `ESTABLISHED` only, and
//!   what it answers has to be the other side's: else who cannot see a connection ends it by a SYN
//!   and a reset that fits this SYN.
//! - A reset in `SYN_SENT` acknowledges the SYN, or the originator would not take it either.
//! - Who sends more than allowed never lowers `end`.
//! - Of a segment seen again, the beginning is not compared.
//!
//! **Two CPUs at once.** A direction's segments rarely meet on two CPUs, but they may. All cells but
//! one are plain: an update lost leaves the value that an earlier segment wrote. What that makes
//! narrower (`max_end`, `max_win`) is let through all the same, by the rules for who sends more than
//! allowed and for who comes late; a lower `max_ack` lets more resets through. `end` is the exception:
//! an acknowledgement of what is past it is refused, so it is [raised](Tables::raise) and never taken
//! back.

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
    /// Data was sent that the other side has not acknowledged yet.
    pub const UNACKNOWLEDGED: u8 = 1;
    /// This side has acknowledged something.
    pub const ACKNOWLEDGES: u8 = 2;
    /// The connection was not seen from its beginning: nothing of it is out of its window.
    pub const LIBERAL: u8 = 4;
    /// This side offered window scaling.
    pub const SCALES: u8 = 8;
}

/// Bits of [`TcpTracking::noted`], above the scale that a SYN offered.
mod noted {
    pub(super) const SCALE: u8 = 0x0f;
    pub(super) const SCALES: u8 = 0x10;
    /// A SYN was let through in `LAST_ACK`: an ACK may be its challenge (RFC 5961).
    pub(super) const CHALLENGE: u8 = 0x20;
    /// Both sides have sent a SYN.
    pub(super) const SIMULTANEOUS: u8 = 0x40;
}

/// [`TcpTracking::last`]: kind, direction, and how often the same ACK was seen again.
mod last {
    pub(super) const KIND: u8 = 0x07;
    pub(super) const REPLY: u8 = 0x08;
    pub(super) const AGAIN: u8 = 0x10;
    /// Seen again so often that the connection waits (`tcp_max_retrans`).
    pub(super) const WAITS: u8 = 0x30;
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The connection goes to this state, or stays in it, and lives for so long from now on.
    To(State, Ticks),
    /// Let through, and nothing changes.
    Ignore,
    /// Dropped, and nothing changes.
    Refuse(Reason),
}

impl Verdict {
    /// In one word.
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

    /// Out of it.
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

/// Whether `a` comes before `b` (RFC 9293 section 3.4).
#[inline(always)]
#[must_use]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// Where a segment leads, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition(u64);

const INSIDE: u64 = 1 << 16;
const OPENING: u64 = 1 << 17;

impl Transition {
    /// From one state to another; `inside` if the windows need not be asked.
    #[inline(always)]
    #[must_use]
    pub const fn new(from: State, to: State, inside: bool) -> Self {
        let opening = from as u8 == State::SynSent as u8;
        let inside = if inside { INSIDE } else { 0 };
        let opening = if opening { OPENING } else { 0 };
        Self((to as u64) << 8 | inside | opening)
    }

    /// The word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// Out of it.
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

/// What [`prepare`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PreCheck {
    /// This becomes of the segment: [`Verdict::Ignore`] or [`Verdict::Refuse`].
    Decided(Verdict),
    /// It leads on, if it is inside of its windows.
    Leads(Transition),
}

impl PreCheck {
    /// In one word, in which what is decided stands as in a [`Verdict`]'s.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Decided(fate) => fate.pack(),
            Self::Leads(lead) => lead.0,
        }
    }

    /// Out of it.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        if word & 3 != 0 {
            return Self::Decided(Verdict::unpack(word));
        }
        Self::Leads(Transition(word))
    }
}

/// Follows a TCP segment of the flow at `index` with this gate: moves its windows on, and says what
/// becomes of segment and flow.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &TcpTracking,
    index: u32,
    flow_state: FlowState,
    segment: &Segment,
) -> Verdict {
    let state = flow_state.state();
    // Data and acknowledgements of an open connection: what nearly all segments are.
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
        PreCheck::Decided(fate) => fate,
        PreCheck::Leads(lead) => tables.settle(index, lead, segment),
    }
}

const ESTABLISHED: u8 = State::Established as u8;
const CLOSE_WAIT: u8 = State::CloseWait as u8;

/// The rest of [`follow`], after [`prepare`]: the windows are asked, and move on.
#[inline(always)]
pub fn settle<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &TcpTracking,
    lead: Transition,
    segment: &Segment,
) -> Verdict {
    if lead.0 & INSIDE == 0 {
        match inside(tables, windows, lead.0 & OPENING != 0, segment) {
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
    let to = lead.to();
    Verdict::To(to, lifetime(windows, to, segment, again))
}

/// All that comes before the windows are asked about a segment that is not an open connection's
/// ordinary one: what its state makes of it, and where windows begin.
#[inline(always)]
#[must_use]
pub fn prepare(windows: &TcpTracking, flow_state: FlowState, segment: &Segment) -> PreCheck {
    let reply = segment.reply;
    let (own, other) = segment.sides();
    let kind = tcp::kind(segment.flags);
    let mut from = State::from_u8(flow_state.state());
    let over = matches!(from, State::TimeWait | State::Close);
    let mut to = match tcp::step_of(from, kind, reply) {
        // Another CPU saw the end: the next SYN makes a flow of its own.
        Step::To(State::SynSent) if over => State::None,
        Step::To(to) => to,
        Step::Ignore => State::None,
        Step::Invalid => return PreCheck::Decided(Verdict::Refuse(Reason::TcpState)),
    };
    let last = windows.last.get();
    let follows = |kind: Kind| last & last::KIND == kind as u8;
    let answers = (last & last::REPLY != 0) != reply;
    match to {
        // No state's number: the packet is not to be followed.
        State::None => {
            let agreed = kind == Kind::SynAck
                && follows(Kind::Syn)
                && answers
                && segment.ack == windows.last_end.get();
            if !agreed {
                note(windows, from, segment);
                return PreCheck::Decided(Verdict::Ignore);
            }
            // Both ends agree on a SYN that was let through: they are in step, we are not.
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

/// How long the flow lives.
#[inline(always)]
fn lifetime(windows: &TcpTracking, to: State, segment: &Segment, again: u8) -> Ticks {
    if segment.has(RST) {
        return timeouts::tcp(State::Close);
    }
    // Only the longest timeout is longer than what those who wait get.
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

/// Notes a segment that is let through and not followed: it may be right, and we wrong.
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

/// Takes over what was noted of the other side's SYN; this side's windows begin anew.
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

/// What a reset does.
enum Reset {
    /// Closes, wherever its windows are: it answers what was let through.
    Exact,
    /// Closes if it is inside.
    Closes,
    /// Goes on if it is inside, but the state stays: its receiver will challenge it (RFC 5961).
    Stays,
    /// Belongs to no connection.
    Stray,
}

#[inline(always)]
fn reset(windows: &TcpTracking, from: State, flow_state: FlowState, segment: &Segment) -> Reset {
    // Over: a later connection of the same ends may be under way.
    if matches!(from, State::TimeWait | State::Close) {
        return Reset::Exact;
    }
    let (reply, (_, other)) = (segment.reply, segment.sides());
    // Whoever sent the SYN takes no other answer either (RFC 9293 section 3.10.7.3).
    if reply && from as u8 == State::SynSent as u8 {
        let exact = segment.has(ACK) && segment.ack == windows.sides[other].end.get();
        return if exact { Reset::Closes } else { Reset::Stray };
    }
    let last = windows.last.get();
    let kind = last & last::KIND;
    let by_reply = last & last::REPLY != 0;
    let answers = by_reply != reply;
    let mut outcome = Reset::Closes;
    // What was acknowledged before a SYN that was let through says nothing of what answers it.
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
        // The second: right behind the data that it comes with.
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
