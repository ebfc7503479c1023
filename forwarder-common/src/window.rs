//! TCP's sequence windows: which segments can belong to a connection, after `tcp_in_window` and
//! `nf_conntrack_tcp_packet` of Linux' `nf_conntrack_proto_tcp.c` with `nf_conntrack_tcp_be_liberal=0`
//! and `nf_conntrack_tcp_loose=1`.
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
//! - A reset in `SYN_SENT` acknowledges the SYN, or the opener would not take it either.
//! - Who sends more than allowed never lowers `end`.
//! - Of a segment seen again, the beginning is not compared.
//!
//! **Two CPUs at once.** A direction's segments rarely meet on two CPUs, but they may. All cells but
//! one are plain: an update lost leaves the value that an earlier segment wrote. What that makes
//! narrower (`max_end`, `max_win`) is let through all the same, by the rules for who sends more than
//! allowed and for who comes late; a lower `max_ack` lets more resets through. `end` is the exception:
//! an acknowledgement of what is past it is refused, so it is [raised](Tables::raise) and never taken
//! back.

use core::hint::black_box;

use crate::abi::Windows;
use crate::family::Family;
use crate::flow::{Direction, Gate, REPLY};
use crate::frame::Frame;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::tables::Tables;
use crate::tcp::{self, ACK, FIN, Kind, RST, SYN, State, Step};
use crate::timeouts::{self, Ticks};

/// Bits of [`Windows::marks`].
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

/// Bits of [`Windows::noted`], above the scale that a SYN offered.
mod noted {
    pub(super) const SCALE: u8 = 0x0f;
    pub(super) const SCALES: u8 = 0x10;
    /// A SYN was let through in `LAST_ACK`: an ACK may be its challenge (RFC 5961).
    pub(super) const CHALLENGE: u8 = 0x20;
    /// Both sides have sent a SYN.
    pub(super) const SIMULTANEOUS: u8 = 0x40;
}

/// [`Windows::last`]: kind, direction, and how often the same ACK was seen again.
mod last {
    pub(super) const KIND: u8 = 0x07;
    pub(super) const REPLY: u8 = 0x08;
    pub(super) const AGAIN: u8 = 0x10;
    /// Seen again so often that the connection waits (`tcp_max_retrans`).
    pub(super) const WAITS: u8 = 0x30;
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The connection goes to this state, or stays in it, and lives for so long from now on.
    To(State, Ticks),
    /// Let through, and nothing changes.
    Ignore,
    /// Dropped, and nothing changes.
    Refuse(Reason),
}

impl Fate {
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

/// The scale of a side that does not offer any.
pub const NO_SCALE: u8 = 0xff;
/// The scale of a side whose options cannot be read.
pub const UNREAD: u8 = 0xfe;
/// The largest scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// Options that are looked at; stacks send up to nine.
const OPTIONS: u32 = 12;
/// An option's kind and length: window scale.
const SCALE: u8 = 3;
/// TCP's header without options.
const FIXED: u8 = 20;

/// The window scale that a SYN offers, [`NO_SCALE`], or [`UNREAD`]. What is no SYN offers nothing.
#[inline(always)]
#[must_use]
pub fn scale<F: Family>(frame: Frame<'_>, packet: &Packet<F>) -> u8 {
    if packet.flags & SYN == 0 {
        return NO_SCALE;
    }
    let end = (packet.l3 as u16).wrapping_add(packet.headers) as u8;
    offered(frame, packet.l4.wrapping_add(FIXED), end)
}

/// Places are octets, which the verifier knows the bounds of: headers end before 14 + 60 + 60. Each
/// is made opaque, so that what is compared with the frame's end is what is read.
#[inline(never)]
fn offered(frame: Frame<'_>, mut at: u8, end: u8) -> u8 {
    let mut found = NO_SCALE;
    for _ in 0..OPTIONS {
        // A last octet can only be padding.
        if at >= end || end.wrapping_sub(at) < 2 {
            return found;
        }
        let place = black_box(at) as usize;
        let Some([kind, len]) = frame.read::<[u8; 2]>(place) else {
            return UNREAD;
        };
        if kind == 0 {
            return found;
        }
        if kind == 1 {
            at = at.wrapping_add(1);
            continue;
        }
        if len < 2 || len > end.wrapping_sub(at) {
            return found;
        }
        if kind == SCALE && len == 3 {
            let place = black_box(at) as usize;
            let Some([_, _, scale]) = frame.read::<[u8; 3]>(place) else {
                return UNREAD;
            };
            found = if scale > MAX_SCALE { MAX_SCALE } else { scale };
        }
        at = at.wrapping_add(len);
    }
    if at >= end { found } else { UNREAD }
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

/// How late an acknowledgement may be at least (`MAXACKWINCONST`).
const LATE: u32 = 66_000;

/// A window as announced: who announces none still takes one octet, to be probed.
#[inline(always)]
const fn at_least_one(window: u32) -> u32 {
    if window == 0 { 1 } else { window }
}

/// A segment, as far as windows go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// Window as announced.
    pub win: u16,
    /// Octets of payload. The IP header's length counts: of a segment that is yet to be cut (GSO),
    /// or was put together (GRO), it is the whole's.
    pub payload: u16,
    /// FIN, SYN, RST and ACK.
    pub flags: u8,
    /// What [`scale()`] says.
    pub scale: u8,
    /// An answer to the opener.
    pub reply: bool,
}

impl Segment {
    /// A packet's.
    #[inline(always)]
    #[must_use]
    pub fn of<F: Family>(packet: &Packet<F>, dir: Direction, scale: u8) -> Self {
        Self {
            seq: packet.seq,
            ack: packet.ack,
            win: packet.window,
            payload: packet.len.wrapping_sub(packet.headers),
            flags: packet.flags,
            scale,
            reply: dir == REPLY,
        }
    }

    /// In two words: a BPF function takes plain numbers only.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> [u64; 2] {
        let numbers = self.seq as u64 | (self.ack as u64) << 32;
        let sizes = self.win as u64 | (self.payload as u64) << 16;
        let facts = self.flags as u64 | (self.scale as u64) << 8 | (self.reply as u64) << 16;
        [numbers, sizes | facts << 32]
    }

    /// Out of them.
    #[inline(always)]
    #[must_use]
    pub const fn unpack([numbers, facts]: [u64; 2]) -> Self {
        Self {
            seq: numbers as u32,
            ack: (numbers >> 32) as u32,
            win: facts as u16,
            payload: (facts >> 16) as u16,
            flags: (facts >> 32) as u8,
            scale: (facts >> 40) as u8,
            reply: (facts >> 48) & 1 != 0,
        }
    }

    /// Sequence number plus all that it counts: payload, SYN, FIN.
    #[inline(always)]
    const fn end(&self) -> u32 {
        let counts = self.payload as u32 + self.has(SYN) as u32 + self.has(FIN) as u32;
        self.seq.wrapping_add(counts)
    }

    #[inline(always)]
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    fn is(&self, kind: Kind) -> bool {
        tcp::kind(self.flags) as u8 == kind as u8
    }

    /// The sides that sent it and that it is for.
    #[inline(always)]
    const fn sides(&self) -> (usize, usize) {
        (self.reply as usize, !self.reply as usize)
    }
}

/// What [`inside`] says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Inside,
    Ignore,
    Outside,
}

/// Follows a TCP segment of a flow with this gate: moves its windows on, and says what becomes of
/// segment and flow.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &Windows,
    gate: Gate,
    segment: &Segment,
) -> Fate {
    let reply = segment.reply;
    let (own, other) = segment.sides();
    let kind = tcp::kind(segment.flags);
    let mut from = State::from_u8(gate.state());
    let over = matches!(from, State::TimeWait | State::Close);
    let mut to = match tcp::step_of(from, kind, reply) {
        // Another CPU saw the end: the next SYN makes a flow of its own.
        Step::To(State::SynSent) if over => State::None,
        Step::To(to) => to,
        Step::Ignore => State::None,
        Step::Invalid => return Fate::Refuse(Reason::TcpState),
    };
    let last = windows.last.get();
    let follows = |kind: Kind| last & last::KIND == kind as u8;
    let answers = (last & last::REPLY != 0) != reply;
    let mut skips = false;
    match to {
        // No state's number: the packet is not to be followed.
        State::None => {
            let agreed = kind == Kind::SynAck
                && follows(Kind::Syn)
                && answers
                && segment.ack == windows.last_end.get();
            if !agreed {
                note(windows, from, segment);
                return Fate::Ignore;
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
                return Fate::Ignore;
            }
        }
        State::SynSent2 => windows.noted.set(windows.noted.get() | noted::SIMULTANEOUS),
        State::SynReceived
            if reply && kind == Kind::Ack && windows.noted.get() & noted::SIMULTANEOUS != 0 =>
        {
            to = State::Established;
        }
        State::Close if kind == Kind::Rst => match reset(windows, from, gate, segment) {
            Reset::Exact => skips = true,
            Reset::Closes => {}
            Reset::Stays => to = from,
            Reset::Stray => return Fate::Refuse(Reason::TcpWindow),
        },
        _ => {}
    }
    if from as u8 == State::None as u8 {
        begin(windows, segment);
    }
    if !skips {
        match inside(tables, windows, from, segment) {
            Check::Inside => {}
            Check::Ignore => return Fate::Ignore,
            Check::Outside => return Fate::Refuse(Reason::TcpWindow),
        }
    }
    let again = windows.last.get() & !(last::KIND | last::REPLY);
    let now = again | kind as u8 | if reply { last::REPLY } else { 0 };
    if now != last {
        windows.last.set(now);
    }
    Fate::To(to, lifetime(windows, to, segment, again))
}

/// How long the flow lives.
#[inline(always)]
fn lifetime(windows: &Windows, to: State, segment: &Segment, again: u8) -> Ticks {
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

/// The opener's first segment (`tcp_new`).
#[inline(always)]
fn begin(windows: &Windows, segment: &Segment) {
    let (end, size) = (segment.end(), at_least_one(segment.win as u32));
    let (max_end, scale, marks) = if segment.has(SYN) {
        let (scale, marks) = offer(segment.scale);
        (end, scale, [marks, marks & mark::LIBERAL])
    } else {
        (end.wrapping_add(size), 0, [mark::LIBERAL; 2])
    };
    for (cells, value) in [
        (&windows.end, end),
        (&windows.max_end, max_end),
        (&windows.max_win, size),
        (&windows.max_ack, 0),
    ] {
        cells[0].set(value);
        cells[1].set(0);
    }
    windows.scale[0].set(scale);
    windows.scale[1].set(0);
    windows.marks[0].set(marks[0]);
    windows.marks[1].set(marks[1]);
    windows.last_end.set(0);
    windows.last_ack.set(0);
    windows.last_win.set(0);
    windows.noted.set(0);
    windows.last.set(Kind::None as u8);
}

/// The scale and the marks of a side by what its SYN offers.
#[inline(always)]
const fn offer(scale: u8) -> (u8, u8) {
    match scale {
        NO_SCALE => (0, 0),
        UNREAD => (0, mark::LIBERAL),
        scale => (scale, mark::SCALES),
    }
}

/// Notes a segment that is let through and not followed: it may be right, and we wrong.
#[inline(always)]
fn note(windows: &Windows, from: State, segment: &Segment) {
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
fn restart(windows: &Windows, own: usize, other: usize) {
    let noted = windows.noted.get();
    let end = windows.last_end.get();
    windows.end[other].set(end);
    windows.max_end[other].set(end);
    windows.max_win[other].set(at_least_one(windows.last_win.get() as u32));
    windows.scale[other].set(noted & noted::SCALE);
    let scales = noted & noted::SCALES != 0;
    windows.marks[other].set(if scales { mark::SCALES } else { 0 });
    windows.noted.set(noted & !noted::CHALLENGE);
    windows.end[own].set(0);
    windows.max_end[own].set(0);
    windows.max_win[own].set(0);
    windows.max_ack[own].set(0);
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
fn reset(windows: &Windows, from: State, gate: Gate, segment: &Segment) -> Reset {
    // Over: a later connection of the same ends may be under way.
    if matches!(from, State::TimeWait | State::Close) {
        return Reset::Exact;
    }
    let (reply, (_, other)) = (segment.reply, segment.sides());
    // Whoever sent the SYN takes no other answer either (RFC 9293 section 3.10.7.3).
    if reply && from as u8 == State::SynSent as u8 {
        let exact = segment.has(ACK) && segment.ack == windows.end[other].get();
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
        let expected = windows.max_ack[other].get();
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
    let answers_syn = gate.is_replied() && kind == Kind::Syn as u8;
    let answers_ack = !gate.is_assured() && kind == Kind::Ack as u8;
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

/// Whether a segment lies inside of the windows, which it then moves on (`tcp_in_window`).
#[inline(always)]
fn inside<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &Windows,
    from: State,
    segment: &Segment,
) -> Check {
    let (own, other) = segment.sides();
    let known = windows.max_win[own].get() != 0;
    if (!known || segment.has(SYN))
        && let Some(check) = introduce(windows, from, segment)
    {
        return check;
    }
    let (mut seq, mut end) = (segment.seq, segment.end());
    let sent = windows.end[own].get();
    let heard = windows.end[other].get();
    let ack = acknowledged(segment, heard);
    // The reset that answers a SYN.
    if segment.has(RST) && seq == 0 && from as u8 == State::SynSent as u8 {
        (seq, end) = (sent, sent);
    }
    let allowed = windows.max_end[own].get();
    let takes = windows.max_win[other].get();
    let fits = !after(ack, heard);
    let in_time = is_in_time(ack, heard, windows.max_win[own].get());
    let in_view = takes == 0 || after(end, sent.wrapping_sub(takes).wrapping_sub(1));
    if after(seq, allowed) || !fits || !in_view || !in_time {
        if windows.marks[own].get() & mark::LIBERAL != 0 {
            return Check::Inside;
        }
        if !after(seq, allowed) {
            return if fits { Check::Ignore } else { Check::Outside };
        }
        let over = end.wrapping_sub(allowed).wrapping_add(1);
        if takes == 0 || over > takes || !fits || !in_view || !in_time {
            return Check::Outside;
        }
        // More than it was allowed, less than a window more: what acknowledges it will pass.
        tables.raise(&windows.end[own], end);
        set(windows, own, mark::UNACKNOWLEDGED, true);
        return Check::Ignore;
    }

    if ack == heard {
        set(windows, other, mark::UNACKNOWLEDGED, false);
    }
    if after(end, sent) {
        tables.raise(&windows.end[own], end);
        set(windows, own, mark::UNACKNOWLEDGED, true);
    }
    if takes != 0 && after(end, allowed) {
        windows.max_win[other].set(takes.wrapping_add(end.wrapping_sub(allowed)));
    }
    if segment.has(ACK) {
        let first = windows.marks[own].get() & mark::ACKNOWLEDGES == 0;
        if first || after(ack, windows.max_ack[own].get()) {
            windows.max_ack[own].set(ack);
            set(windows, own, mark::ACKNOWLEDGES, true);
        }
    }
    let mut win = segment.win as u32;
    if !segment.has(SYN) {
        win <<= windows.scale[own].get() & 15;
    }
    if windows.max_win[own].get() < win {
        windows.max_win[own].set(win);
    }
    let edge = ack.wrapping_add(win);
    if !before(edge, windows.max_end[other].get()) {
        windows.max_end[other].set(ack.wrapping_add(at_least_one(win)));
    }
    if segment.is(Kind::Ack) {
        remember(windows, segment, end, ack);
    }
    Check::Inside
}

/// What a segment acknowledges. Without an acknowledgement, or with the zero that some put into a
/// reset: as if it were right.
#[inline(always)]
const fn acknowledged(segment: &Segment, heard: u32) -> u32 {
    if !segment.has(ACK) || segment.has(RST) && segment.ack == 0 {
        heard
    } else {
        segment.ack
    }
}

/// Whether an acknowledgement is not overly late.
#[inline(always)]
const fn is_in_time(ack: u32, heard: u32, size: u32) -> bool {
    let late = if size > LATE { size } else { LATE };
    after(ack, heard.wrapping_sub(late).wrapping_sub(1))
}

/// A side's first segment, or a SYN with another beginning than its last one: its windows begin, if
/// what it acknowledges can be. Says what it is where that is clear by now.
#[inline(always)]
fn introduce(windows: &Windows, from: State, segment: &Segment) -> Option<Check> {
    let (own, other) = segment.sides();
    let end = segment.end();
    let first = windows.max_win[own].get() == 0;
    let takes = windows.max_win[other].get();
    let mut heard = windows.end[other].get();
    let syn = segment.has(SYN);
    let opening = matches!(from, State::SynSent | State::SynReceived);
    if !first && !(opening && after(end, windows.end[own].get())) {
        return None;
    }
    let mut size = segment.win as u32;
    if !syn {
        // In the middle of a connection whose history nobody saw.
        size <<= windows.scale[own].get() & 15;
        if takes == 0 {
            windows.end[other].set(segment.ack);
            windows.max_end[other].set(segment.ack);
            heard = segment.ack;
        } else if segment.ack == heard.wrapping_add(1) {
            // Answers a keep-alive.
            windows.end[other].set(segment.ack);
            heard = segment.ack;
        }
    }
    let ack = acknowledged(segment, heard);
    let fits = !after(ack, heard);
    let liberal = windows.marks[own].get() & mark::LIBERAL;
    if liberal == 0 && !fits {
        return Some(Check::Outside);
    }
    if liberal == 0 && !is_in_time(ack, heard, size) {
        return Some(Check::Ignore);
    }
    size = at_least_one(size);
    windows.end[own].set(end);
    windows.max_win[own].set(size);
    if !syn {
        windows.max_end[own].set(end.wrapping_add(size));
        return None;
    }
    windows.max_end[own].set(end);
    let (scale, marks) = offer(segment.scale);
    windows.scale[own].set(scale);
    windows.marks[own].set(marks | liberal);
    // Both sides scale, or neither does (RFC 7323 section 2.2).
    if segment.reply && marks & windows.marks[other].get() & mark::SCALES == 0 {
        windows.scale[0].set(0);
        windows.scale[1].set(0);
    }
    // A simultaneous open.
    (!segment.has(ACK) && (first || segment.reply)).then_some(Check::Inside)
}

/// Sets or clears a mark, if it is not so already.
#[inline(always)]
fn set(windows: &Windows, side: usize, mark: u8, on: bool) {
    let old = windows.marks[side].get();
    let new = if on { old | mark } else { old & !mark };
    if new != old {
        windows.marks[side].set(new);
    }
}

/// Counts how often the same ACK is seen again; another one begins a new count.
#[inline(always)]
fn remember(windows: &Windows, segment: &Segment, end: u32, ack: u32) {
    let last = windows.last.get();
    let same = (last & last::REPLY != 0) == segment.reply
        && windows.last_end.get() == end
        && windows.last_ack.get() == ack
        && windows.last_win.get() == segment.win;
    if !same {
        windows.last_end.set(end);
        windows.last_ack.set(ack);
        windows.last_win.set(segment.win);
        windows.last.set(last & (last::KIND | last::REPLY));
    } else if last < last::WAITS {
        windows.last.set(last + last::AGAIN);
    }
}
