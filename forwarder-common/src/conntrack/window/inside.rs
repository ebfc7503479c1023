// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks whether a segment is inside of its connection's windows, and updates the windows.

use crate::abi::{TcpTracking, last, side_flag};
use crate::environment::FlowRecords;
use crate::family::Family;
use crate::tracking::segment::{NO_SCALE, Segment, UNREAD};
use crate::tracking::tcp::State;
use crate::tracking::verdict::{after, before};
use crate::wire::tcp::{ACK, Kind, RST, SYN};

/// The least tolerance for a late acknowledgement (`MAXACKWINCONST`).
const LATE: u32 = 66_000;

/// An announced window, but at least 1: a receiver with a zero window still takes one byte as a
/// window probe.
#[inline(always)]
pub(super) const fn at_least_one(window: u32) -> u32 {
    if window == 0 { 1 } else { window }
}

/// The result of [`inside`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Inside,
    Ignore,
    Outside,
}

/// Initialises the windows from the originator's first segment (`tcp_new`).
#[inline(always)]
pub(super) fn begin(windows: &TcpTracking, segment: &Segment) {
    let (end, size) = (segment.end(), at_least_one(segment.win as u32));
    let (max_end, scale, marks) = if segment.has(SYN) {
        let (scale, marks) = offer(segment.scale);
        (end, scale, [marks, marks & side_flag::LIBERAL])
    } else {
        (end.wrapping_add(size), 0, [side_flag::LIBERAL; 2])
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

/// A side's window scale and marks, by what its SYN offers.
#[inline(always)]
const fn offer(scale: u8) -> (u8, u8) {
    match scale {
        NO_SCALE => (0, 0),
        UNREAD => (0, side_flag::LIBERAL),
        scale => (scale, side_flag::SCALES),
    }
}

/// Checks whether a segment is inside of the windows, and updates them if it is (`tcp_in_window`).
/// `opening`: the segment answers the originator's SYN.
#[inline(always)]
pub(super) fn inside<F: Family, T: FlowRecords<F>>(
    tables: &T,
    windows: &TcpTracking,
    opening: bool,
    segment: &Segment,
) -> Check {
    let (own, other) = segment.sides();
    let (sender, receiver) = (&windows.sides[own], &windows.sides[other]);
    let (mut seq, mut end) = (segment.seq, segment.end());
    let sent = sender.end.get();
    let ack = acknowledged(segment, receiver.end.get());
    // A reset that answers a SYN has sequence number 0.
    if opening && segment.has(RST) && seq == 0 {
        (seq, end) = (sent, sent);
    }
    let receive_window = receiver.max_win.get();
    if after(seq, sender.max_end.get())
        || after(ack, receiver.end.get())
        || !is_in_view(end, sent, receive_window)
        || !is_in_time(ack, receiver.end.get(), sender.max_win.get())
    {
        return outside(tables, windows, own, (seq as u64) << 32 | end as u64, ack);
    }
    if ack == receiver.end.get() {
        set(windows, other, side_flag::UNACKNOWLEDGED, false);
    }
    if after(end, sent) {
        tables.raise(&sender.end, end);
        set(windows, own, side_flag::UNACKNOWLEDGED, true);
    }
    if receive_window != 0 && after(end, sender.max_end.get()) {
        receiver
            .max_win
            .set(receive_window.wrapping_add(end.wrapping_sub(sender.max_end.get())));
    }
    if segment.has(ACK) {
        let first = windows.marks[own].get() & side_flag::ACKNOWLEDGES == 0;
        if first || after(ack, sender.max_ack.get()) {
            sender.max_ack.set(ack);
            set(windows, own, side_flag::ACKNOWLEDGES, true);
        }
    }
    let mut win = segment.win as u32;
    if !segment.has(SYN) {
        win <<= windows.scale[own].get() & 15;
    }
    if sender.max_win.get() < win {
        sender.max_win.set(win);
    }
    let edge = ack.wrapping_add(win);
    if !before(edge, receiver.max_end.get()) {
        receiver.max_end.set(ack.wrapping_add(at_least_one(win)));
    }
    if segment.is(Kind::Ack) {
        remember(windows, segment, end, ack);
    }
    Check::Inside
}

/// The verdict on a segment that is not inside of the windows. Its first and last sequence number
/// are packed into one word, because a BPF function takes five arguments.
#[inline(never)]
fn outside<F: Family, T: FlowRecords<F>>(
    tables: &T,
    windows: &TcpTracking,
    own: usize,
    numbers: u64,
    ack: u32,
) -> Check {
    let own = own & 1;
    let (sender, receiver) = (&windows.sides[own], &windows.sides[own ^ 1]);
    let (seq, end) = ((numbers >> 32) as u32, numbers as u32);
    let (allowed, receive_window) = (sender.max_end.get(), receiver.max_win.get());
    let fits = !after(ack, receiver.end.get());
    if windows.marks[own].get() & side_flag::LIBERAL != 0 {
        return Check::Inside;
    }
    if !after(seq, allowed) {
        return if fits { Check::Ignore } else { Check::Outside };
    }
    let over = end.wrapping_sub(allowed).wrapping_add(1);
    if receive_window == 0
        || over > receive_window
        || !fits
        || !is_in_view(end, sender.end.get(), receive_window)
        || !is_in_time(ack, receiver.end.get(), sender.max_win.get())
    {
        return Check::Outside;
    }
    // The segment exceeds the allowed window by less than one window: it passes, and its
    // acknowledgement must pass later.
    tables.raise(&sender.end, end);
    set(windows, own, side_flag::UNACKNOWLEDGED, true);
    Check::Ignore
}

/// Whether the end of a segment is not more than one receive window behind what was already sent.
#[inline(always)]
const fn is_in_view(end: u32, sent: u32, receive_window: u32) -> bool {
    receive_window == 0 || after(end, sent.wrapping_sub(receive_window).wrapping_sub(1))
}

/// The number that a segment acknowledges. A segment without ACK, or a reset with acknowledgement 0
/// as some stacks send it, counts as acknowledging everything received.
#[inline(always)]
const fn acknowledged(segment: &Segment, receiver_end: u32) -> u32 {
    if !segment.has(ACK) || segment.has(RST) && segment.ack == 0 {
        receiver_end
    } else {
        segment.ack
    }
}

/// Whether an acknowledgement is not too late.
#[inline(always)]
const fn is_in_time(ack: u32, receiver_end: u32, size: u32) -> bool {
    let late = if size > LATE { size } else { LATE };
    after(ack, receiver_end.wrapping_sub(late).wrapping_sub(1))
}

/// Initialises a side's windows by its first segment, or by a SYN with another sequence number than
/// its last one, if the segment's acknowledgement is plausible. Returns the result of the window
/// check if it is already clear.
#[inline(always)]
pub(super) fn introduce(windows: &TcpTracking, from: State, segment: &Segment) -> Option<Check> {
    let (own, other) = segment.sides();
    let end = segment.end();
    let first = windows.sides[own].max_win.get() == 0;
    let receive_window = windows.sides[other].max_win.get();
    let mut receiver_end = windows.sides[other].end.get();
    let syn = segment.has(SYN);
    let opening = matches!(from, State::SynSent | State::SynReceived);
    let anew = opening && after(end, windows.sides[own].end.get());
    if !first && !anew {
        return None;
    }
    let mut size = segment.win as u32;
    if !syn {
        // The first segment seen of a connection that was picked up in the middle.
        size <<= windows.scale[own].get() & 15;
        if receive_window == 0 {
            windows.sides[other].end.set(segment.ack);
            windows.sides[other].max_end.set(segment.ack);
            receiver_end = segment.ack;
        } else if segment.ack == receiver_end.wrapping_add(1) {
            // The segment answers a keep-alive.
            windows.sides[other].end.set(segment.ack);
            receiver_end = segment.ack;
        }
    }
    let ack = acknowledged(segment, receiver_end);
    let fits = !after(ack, receiver_end);
    let liberal = windows.marks[own].get() & side_flag::LIBERAL;
    if liberal == 0 && !fits {
        return Some(Check::Outside);
    }
    if liberal == 0 && !is_in_time(ack, receiver_end, size) {
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
    // Window scaling applies only if both sides offer it (RFC 7323 section 2.2).
    if segment.reply && marks & windows.marks[other].get() & side_flag::SCALES == 0 {
        windows.scale[0].set(0);
        windows.scale[1].set(0);
    }
    // A simultaneous open.
    (!segment.has(ACK) && (first || segment.reply)).then_some(Check::Inside)
}

/// Sets or clears a mark; does not write if it would not change anything.
#[inline(always)]
fn set(windows: &TcpTracking, side: usize, mark: u8, on: bool) {
    let old = windows.marks[side].get();
    let new = if on { old | mark } else { old & !mark };
    if new != old {
        windows.marks[side].set(new);
    }
}

/// Counts repetitions of the same ACK; a different ACK starts a new count.
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
