// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a segment lies inside of its connection's windows, and how it moves them on.

use super::{NO_SCALE, Segment, UNREAD, after, before, last, mark};
use crate::abi::TcpTracking;
use crate::family::Family;
use crate::tables::Tables;
use crate::tcp::{ACK, Kind, RST, SYN, State};

/// How late an acknowledgement may be at least (`MAXACKWINCONST`).
const LATE: u32 = 66_000;

/// A window as announced: who announces none still takes one byte, to be probed.
#[inline(always)]
pub(super) const fn at_least_one(window: u32) -> u32 {
    if window == 0 { 1 } else { window }
}

/// What [`inside`] says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Inside,
    Ignore,
    Outside,
}

/// The originator's first segment (`tcp_new`).
#[inline(always)]
pub(super) fn begin(windows: &TcpTracking, segment: &Segment) {
    let (end, size) = (segment.end(), at_least_one(segment.win as u32));
    let (max_end, scale, marks) = if segment.has(SYN) {
        let (scale, marks) = offer(segment.scale);
        (end, scale, [marks, marks & mark::LIBERAL])
    } else {
        (end.wrapping_add(size), 0, [mark::LIBERAL; 2])
    };
    let [own, other] = &windows.sides;
    own.end.set(end);
    own.max_end.set(max_end);
    own.max_win.set(size);
    own.max_ack.set(0);
    other.end.set(0);
    other.max_end.set(0);
    other.max_win.set(0);
    other.max_ack.set(0);
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

/// Whether a segment lies inside of the windows, which it then moves on (`tcp_in_window`). `opening`:
/// it answers the originator's SYN.
#[inline(always)]
pub(super) fn inside<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &TcpTracking,
    opening: bool,
    segment: &Segment,
) -> Check {
    let (own, other) = segment.sides();
    let (said, heard) = (&windows.sides[own], &windows.sides[other]);
    let (mut seq, mut end) = (segment.seq, segment.end());
    let sent = said.end.get();
    let ack = acknowledged(segment, heard.end.get());
    // The reset that answers a SYN.
    if opening && segment.has(RST) && seq == 0 {
        (seq, end) = (sent, sent);
    }
    let takes = heard.max_win.get();
    if after(seq, said.max_end.get())
        || after(ack, heard.end.get())
        || !is_in_view(end, sent, takes)
        || !is_in_time(ack, heard.end.get(), said.max_win.get())
    {
        return outside(tables, windows, own, (seq as u64) << 32 | end as u64, ack);
    }
    if ack == heard.end.get() {
        set(windows, other, mark::UNACKNOWLEDGED, false);
    }
    if after(end, sent) {
        tables.raise(&said.end, end);
        set(windows, own, mark::UNACKNOWLEDGED, true);
    }
    if takes != 0 && after(end, said.max_end.get()) {
        heard
            .max_win
            .set(takes.wrapping_add(end.wrapping_sub(said.max_end.get())));
    }
    if segment.has(ACK) {
        let first = windows.marks[own].get() & mark::ACKNOWLEDGES == 0;
        if first || after(ack, said.max_ack.get()) {
            said.max_ack.set(ack);
            set(windows, own, mark::ACKNOWLEDGES, true);
        }
    }
    let mut win = segment.win as u32;
    if !segment.has(SYN) {
        win <<= windows.scale[own].get() & 15;
    }
    if said.max_win.get() < win {
        said.max_win.set(win);
    }
    let edge = ack.wrapping_add(win);
    if !before(edge, heard.max_end.get()) {
        heard.max_end.set(ack.wrapping_add(at_least_one(win)));
    }
    if segment.is(Kind::Ack) {
        remember(windows, segment, end, ack);
    }
    Check::Inside
}

/// What a segment that is not inside is then. Its first and its last number come in one word: a BPF
/// function takes five.
#[inline(never)]
fn outside<F: Family, T: Tables<F>>(
    tables: &T,
    windows: &TcpTracking,
    own: usize,
    numbers: u64,
    ack: u32,
) -> Check {
    let own = own & 1;
    let (said, heard) = (&windows.sides[own], &windows.sides[own ^ 1]);
    let (seq, end) = ((numbers >> 32) as u32, numbers as u32);
    let (allowed, takes) = (said.max_end.get(), heard.max_win.get());
    let fits = !after(ack, heard.end.get());
    if windows.marks[own].get() & mark::LIBERAL != 0 {
        return Check::Inside;
    }
    if !after(seq, allowed) {
        return if fits { Check::Ignore } else { Check::Outside };
    }
    let over = end.wrapping_sub(allowed).wrapping_add(1);
    if takes == 0
        || over > takes
        || !fits
        || !is_in_view(end, said.end.get(), takes)
        || !is_in_time(ack, heard.end.get(), said.max_win.get())
    {
        return Check::Outside;
    }
    // More than it was allowed, less than a window more: what acknowledges it will pass.
    tables.raise(&said.end, end);
    set(windows, own, mark::UNACKNOWLEDGED, true);
    Check::Ignore
}

/// Whether a segment ends where its receiver has not been long ago.
#[inline(always)]
const fn is_in_view(end: u32, sent: u32, takes: u32) -> bool {
    takes == 0 || after(end, sent.wrapping_sub(takes).wrapping_sub(1))
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
pub(super) fn introduce(windows: &TcpTracking, from: State, segment: &Segment) -> Option<Check> {
    let (own, other) = segment.sides();
    let end = segment.end();
    let first = windows.sides[own].max_win.get() == 0;
    let takes = windows.sides[other].max_win.get();
    let mut heard = windows.sides[other].end.get();
    let syn = segment.has(SYN);
    let opening = matches!(from, State::SynSent | State::SynReceived);
    let anew = opening && after(end, windows.sides[own].end.get());
    if !first && !anew {
        return None;
    }
    let mut size = segment.win as u32;
    if !syn {
        // In the middle of a connection whose history nobody saw.
        size <<= windows.scale[own].get() & 15;
        if takes == 0 {
            windows.sides[other].end.set(segment.ack);
            windows.sides[other].max_end.set(segment.ack);
            heard = segment.ack;
        } else if segment.ack == heard.wrapping_add(1) {
            // Answers a keep-alive.
            windows.sides[other].end.set(segment.ack);
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
    windows.sides[own].end.set(end);
    windows.sides[own].max_win.set(size);
    if !syn {
        windows.sides[own].max_end.set(end.wrapping_add(size));
        return None;
    }
    windows.sides[own].max_end.set(end);
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
fn set(windows: &TcpTracking, side: usize, mark: u8, on: bool) {
    let old = windows.marks[side].get();
    let new = if on { old | mark } else { old & !mark };
    if new != old {
        windows.marks[side].set(new);
    }
}

/// Counts how often the same ACK is seen again; another one begins a new count.
#[inline(always)]
fn remember(windows: &TcpTracking, segment: &Segment, end: u32, ack: u32) {
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
