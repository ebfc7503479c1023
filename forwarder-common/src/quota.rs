// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one endpoint may open: how many flows at once, how many new ones in a second, and how often
//! it is told that it may not. So one container that scans the world leaves its neighbours theirs.
//!
//! Flows are charged to the endpoint that opens them, before their record is taken, and given back
//! by whoever ends them: exactly once each, since only the winner of a record's gate ends a flow.
//! A new generation begins with nothing: what its predecessor had is not given back to it.
//!
//! What it may have open shrinks as the table fills up: twice what is left of three quarters of it,
//! but always a little. So however many take all that they get, the last quarter is left, and each
//! who has little finds room there. Flows from outside are charged to nobody: they stop at the last
//! eighth, and what of them nobody has proved to be real stands in the ring of unassured flows.
//!
//! Every word changes by additions whose result tells whether they were right, and are taken back
//! if not: for a moment another CPU may see one too many, but nothing ever drifts.

use core::cell::Cell;

use crate::abi::{HOST, OUTSIDE, Quota, Settings};
use crate::family::Family;
use crate::flow::End;
use crate::reason::Reason;
use crate::tables::Tables;
use crate::timeouts::{self, Ticks, seconds};

/// The low half of a word counts from here, so that it can be one too low for a moment without
/// touching the high half.
const ZERO: u32 = 1 << 31;

/// What one flow costs of a bucket: fractions of it flow in with every tick.
const COST: u32 = 1 << 11;

/// The highest rate, in flows per second, of which a bucket can hold one second.
pub const RATE_MAX: u32 = 1_000_000;

/// How often in a second an endpoint is told that it is refused (RFC 1812 section 4.3.2.8 wants a
/// bound, whichever).
pub const ANSWERS: u32 = 1_000;

/// How many flows a word says are held: never below zero for longer than a moment.
#[inline(always)]
#[must_use]
pub const fn count(word: u64) -> i32 {
    (word as u32).wrapping_sub(ZERO) as i32
}

/// What a word belongs to: the generation that holds, or a bucket's tick.
#[inline(always)]
#[must_use]
pub const fn owner(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline(always)]
const fn word(owner: u32, count: u32) -> u64 {
    (owner as u64) << 32 | ZERO.wrapping_add(count) as u64
}

/// Charges a new flow to the endpoint that opens it: `None`, or why it may not.
#[inline(always)]
pub fn charge<F: Family, T: Tables<F>>(tables: &T, originator: End) -> Option<Reason> {
    let quota = quota_of(tables, originator)?;
    let settings = tables.settings();
    let now = tables.now();
    let before = quota.held.get();
    if owner(before) != originator.generation
        && tables.swap(&quota.held, before, word(originator.generation, 0))
    {
        quota.opens.set(full(settings.flow_rate, now));
        quota.answers.set(full(ANSWERS, now));
    }
    let held = tables.add(&quota.held, 1);
    if owner(held) != originator.generation {
        // The slot has just gone to another endpoint, whose flow this is not.
        take_back(tables, &quota.held);
        return None;
    }
    let refusal = if settings.flow_quota != 0 && count(held) >= may_hold(tables, &settings) {
        Reason::FlowQuota
    } else if settings.flow_rate != 0 && !draw(tables, &quota.opens, settings.flow_rate, now) {
        Reason::FlowRate
    } else {
        return None;
    };
    take_back(tables, &quota.held);
    Some(refusal)
}

/// How many flows an endpoint may have open now.
#[inline(always)]
fn may_hold<F: Family, T: Tables<F>>(tables: &T, settings: &Settings) -> i32 {
    let free = settings.flows.saturating_sub(tables.used());
    let shared = 2 * free.saturating_sub(settings.flows / SHARED);
    let least = settings.flows / LEAST;
    let most = if shared > least { shared } else { least };
    if most < settings.flow_quota {
        most as i32
    } else {
        settings.flow_quota as i32
    }
}

/// Of the table, what those share who have little: one in this many.
const SHARED: u32 = 4;
/// Of the table, what is not for clients from outside: one in this many.
const RESERVED: u32 = 8;
/// Of the table, what an endpoint may have as long as there is anything: one in this many.
const LEAST: u32 = 256;

/// Whether only what is not for clients from outside is left of the table.
#[inline(always)]
pub(crate) fn is_reserved<F: Family, T: Tables<F>>(tables: &T) -> bool {
    let flows = tables.settings().flows;
    flows.saturating_sub(tables.used()) <= flows / RESERVED
}

/// Gives back what [`charge`] took for a flow: it has ended, or came to nothing.
#[inline(always)]
pub fn give_back<F: Family, T: Tables<F>>(tables: &T, originator: End) {
    let Some(quota) = quota_of(tables, originator) else {
        return;
    };
    if owner(quota.held.get()) != originator.generation {
        return;
    }
    let held = take_back(tables, &quota.held);
    // Another endpoint's by now, or of a generation that came back after another one.
    if owner(held) != originator.generation || count(held) <= 0 {
        tables.add(&quota.held, 1);
    }
}

/// Whether an endpoint that was refused is told so, this time.
#[inline(always)]
pub fn may_answer<F: Family, T: Tables<F>>(tables: &T, refused: End) -> bool {
    quota_of(tables, refused)
        .is_some_and(|quota| draw(tables, &quota.answers, ANSWERS, tables.now()))
}

/// The quota of an endpoint: of the outside and of the host itself there is none.
#[inline(always)]
fn quota_of<F: Family, T: Tables<F>>(tables: &T, end: End) -> Option<&Quota> {
    if matches!(end.slot, OUTSIDE | HOST) {
        return None;
    }
    tables.quota(end.slot)
}

#[inline(always)]
fn take_back<F: Family, T: Tables<F>>(tables: &T, word: &Cell<u64>) -> u64 {
    tables.add(word, u64::MAX)
}

/// A bucket with one second's worth of `rate`.
#[inline(always)]
const fn full(rate: u32, now: Ticks) -> u64 {
    word(now, rate * COST)
}

/// Takes one out of a bucket that `rate` fills per second, and that holds one second's worth;
/// whether there was one.
#[inline(always)]
fn draw<F: Family, T: Tables<F>>(tables: &T, bucket: &Cell<u64>, rate: u32, now: Ticks) -> bool {
    let before = bucket.get();
    let after = filled(before, rate, now);
    if after != before {
        // Lost: another CPU has just done it.
        tables.swap(bucket, before, after);
    }
    let found = tables.add(bucket, (COST as u64).wrapping_neg());
    let enough = count(found) >= COST as i32;
    if !enough {
        tables.add(bucket, COST as u64);
    }
    enough
}

/// A bucket after what has flowed in until `now`.
#[inline(always)]
const fn filled(bucket: u64, rate: u32, now: Ticks) -> u64 {
    /// A moment longer than a second, so that a second surely fills the bucket.
    const SECOND: Ticks = seconds(1) + 1;
    let since = now.wrapping_sub(owner(bucket));
    // Another CPU's clock was read a little later than ours: a bucket that looks any older has been
    // left alone for long.
    if since == 0 || since.wrapping_neg() < SECOND {
        return bucket;
    }
    if since >= SECOND {
        return full(rate, now);
    }
    // COST per flow, `rate` flows per 10^9 ns, 2^24 ns per tick: below 2^63 for any rate.
    let inflow = (since * rate) as u64 * ((COST as u64) << 24) / 1_000_000_000;
    let most = rate * COST;
    let level = count(bucket);
    let level = if level < 0 { 0 } else { level as u64 } + inflow;
    word(
        now,
        if level > most as u64 {
            most
        } else {
            level as u32
        },
    )
}

/// How many bytes of memory one endpoint may hold in incomplete datagrams: an eighth of what the
/// kernel has for all of them (`net.ipv4.ipfrag_high_thresh`). As it comes back in time, whether or
/// not what it stands for has been forgotten yet, twice as much at worst.
pub const PIECES: u32 = 512 << 10;

/// What flows back per tick: all of it, in the time after which the kernel forgets a datagram.
const PIECES_BACK: u32 = PIECES / timeouts::REASSEMBLY + 1;

/// What the kernel holds for a fragment of so many bytes: its buffer is up to twice as long, beside
/// what describes it (`skb->truesize`).
#[inline(always)]
const fn held_for(octets: u16) -> u32 {
    octets as u32 * 2 + 768
}

/// Charges a fragment of a datagram that is to be put together; whether the endpoint may have it.
#[inline(always)]
pub fn charge_piece<F: Family, T: Tables<F>>(tables: &T, slot: u32, octets: u16) -> bool {
    let Some(quota) = tables.quota(slot) else {
        return false;
    };
    let now = tables.now();
    let before = quota.pieces.get();
    let level = pieces_at(before, now);
    let cost = held_for(octets);
    // Lost against another CPU: the fragment passes free of charge, which evens out.
    if cost <= level {
        tables.swap(&quota.pieces, before, pieces(now, level - cost));
    }
    cost <= level
}

/// Gives back what a fragment was charged: its datagram is whole.
#[inline(always)]
pub fn return_piece<F: Family, T: Tables<F>>(tables: &T, slot: u32, octets: u16) {
    let Some(quota) = tables.quota(slot) else {
        return;
    };
    let now = tables.now();
    let before = quota.pieces.get();
    let level = pieces_at(before, now) + held_for(octets);
    let level = if level < PIECES { level } else { PIECES };
    tables.swap(&quota.pieces, before, pieces(now, level));
}

#[inline(always)]
const fn pieces(now: Ticks, level: u32) -> u64 {
    (now as u64) << 32 | level as u64
}

/// What is in the bucket of fragments by now.
#[inline(always)]
const fn pieces_at(word: u64, now: Ticks) -> u32 {
    let since = now.wrapping_sub(owner(word));
    // Another CPU's clock was read a little later than ours.
    if since.wrapping_neg() < timeouts::REASSEMBLY {
        return word as u32;
    }
    if since >= timeouts::REASSEMBLY {
        return PIECES;
    }
    let level = word as u32 + since * PIECES_BACK;
    if level < PIECES { level } else { PIECES }
}
