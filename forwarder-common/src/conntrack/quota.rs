// SPDX-License-Identifier: MIT OR Apache-2.0
//! Quotas of an endpoint: how many flows it may have open, how many it may open per second, and how
//! many ICMP errors it gets about refusals. A container that scans the Internet thus leaves its
//! neighbours their share.
//!
//! A flow is charged to the endpoint that opens it before its record is taken, and credited by
//! whoever ends it, exactly once: only the winner of the compare-and-swap on the flow state ends a
//! flow. A new generation of an endpoint begins with nothing charged, and is not credited for flows
//! of its predecessor.
//!
//! The number of flows that an endpoint may have open shrinks as the table fills: twice of what
//! remains of the first three quarters, but never less than a small minimum. So however many
//! endpoints take all that they get, the last quarter remains, in which endpoints with few flows
//! find room. Flows from outside are charged to nobody: they are refused in the last eighth, and
//! unassured ones share the ring. The same holds for records of what outside sends to the host
//! without ports.
//!
//! Every word changes by additions that are taken back if their result shows that they were not
//! allowed. For a moment another CPU may see one too many, but the count never drifts.

use core::cell::Cell;

use crate::abi::{End, HOST, OUTSIDE, Quota, Settings};
use crate::clock::{Ticks, seconds};
use crate::conntrack::timeouts;
use crate::environment::FlowTable;
use crate::family::Family;
use crate::reason::Reason;

/// The low half of a word counts from here, so that it can be one too low for a moment without a
/// borrow from the high half.
const ZERO: u32 = 1 << 31;

/// The price of one flow in a token bucket; fractions of it flow in with every tick.
const COST: u32 = 1 << 11;

/// The highest rate, in flows per second, for which a bucket can hold one second's tokens.
pub const RATE_MAX: u32 = 1_000_000;

/// How many ICMP errors per second an endpoint gets about refusals (RFC 1812 section 4.3.2.8
/// demands a limit, whichever).
pub const ANSWERS: u32 = 1_000;

/// The count in a word's low half; below zero only for a moment.
#[inline(always)]
#[must_use]
pub const fn count(word: u64) -> i32 {
    (word as u32).wrapping_sub(ZERO) as i32
}

/// The high half of a word: the generation that the count belongs to, or the tick of a bucket.
#[inline(always)]
#[must_use]
pub const fn owner(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline(always)]
const fn word(owner: u32, count: u32) -> u64 {
    (owner as u64) << 32 | ZERO.wrapping_add(count) as u64
}

/// Charges a new flow to the endpoint that opens it; the reason if the endpoint may not open it.
#[inline(always)]
pub fn charge<F: Family, T: FlowTable<F>>(tables: &T, originator: End) -> Option<Reason> {
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
        // The slot has just gone to another endpoint, which must not pay for this flow.
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
fn may_hold<F: Family, T: FlowTable<F>>(tables: &T, settings: &Settings) -> i32 {
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

/// One in this many flows of the table is kept for endpoints with few flows.
const SHARED: u32 = 4;
/// One in this many flows of the table is not available to clients outside.
const RESERVED: u32 = 8;
/// One in this many flows of the table is available to an endpoint as long as any record is free.
const LEAST: u32 = 256;

/// Whether only the part of the table that clients outside do not get is left.
#[inline(always)]
pub(crate) fn is_reserved<F: Family, T: FlowTable<F>>(tables: &T) -> bool {
    let flows = tables.settings().flows;
    flows.saturating_sub(tables.used()) <= flows / RESERVED
}

/// Credits what [`charge`] took for a flow that has ended or was not created.
#[inline(always)]
pub fn give_back<F: Family, T: FlowTable<F>>(tables: &T, originator: End) {
    let Some(quota) = quota_of(tables, originator) else {
        return;
    };
    if owner(quota.held.get()) != originator.generation {
        return;
    }
    let held = take_back(tables, &quota.held);
    // The word belongs to another endpoint by now, or to a generation that returned after another
    // one.
    if owner(held) != originator.generation || count(held) <= 0 {
        tables.add(&quota.held, 1);
    }
}

/// Whether an endpoint gets an ICMP error about this refusal.
#[inline(always)]
pub fn may_answer<F: Family, T: FlowTable<F>>(tables: &T, refused: End) -> bool {
    quota_of(tables, refused)
        .is_some_and(|quota| draw(tables, &quota.answers, ANSWERS, tables.now()))
}

/// The quota of an endpoint; outside and the host itself have none.
#[inline(always)]
fn quota_of<F: Family, T: FlowTable<F>>(tables: &T, end: End) -> Option<&Quota> {
    if matches!(end.slot, OUTSIDE | HOST) {
        return None;
    }
    tables.quota(end.slot)
}

#[inline(always)]
fn take_back<F: Family, T: FlowTable<F>>(tables: &T, word: &Cell<u64>) -> u64 {
    tables.add(word, u64::MAX)
}

/// A bucket with one second's worth of `rate`.
#[inline(always)]
const fn full(rate: u32, now: Ticks) -> u64 {
    word(now, rate * COST)
}

/// Takes one token out of a bucket that `rate` fills per second and that holds one second's worth;
/// returns whether there was one.
#[inline(always)]
fn draw<F: Family, T: FlowTable<F>>(tables: &T, bucket: &Cell<u64>, rate: u32, now: Ticks) -> bool {
    let before = bucket.get();
    let after = filled(before, rate, now);
    if after != before {
        // If the swap fails, another CPU has just refilled the bucket.
        tables.swap(bucket, before, after);
    }
    let found = tables.add(bucket, (COST as u64).wrapping_neg());
    let enough = count(found) >= COST as i32;
    if !enough {
        tables.add(bucket, COST as u64);
    }
    enough
}

/// A bucket after the inflow until `now`.
#[inline(always)]
const fn filled(bucket: u64, rate: u32, now: Ticks) -> u64 {
    /// Slightly longer than a second, so that a second certainly fills the bucket.
    const SECOND: Ticks = seconds(1) + 1;
    let since = now.wrapping_sub(owner(bucket));
    // Another CPU read its clock a little later than this one. A bucket that looks older than a
    // second was not used for that long.
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

/// How many bytes of memory an endpoint may hold in incomplete datagrams: an eighth of the kernel's
/// limit for all of them (`net.ipv4.ipfrag_high_thresh`). Tokens return with time, whether or not
/// the kernel has forgotten the datagrams yet, so an endpoint may hold twice as much at worst.
pub const FRAGMENT_BYTES: u32 = 512 << 10;

/// Tokens that return per tick: all of them return in the time after which the kernel forgets a
/// datagram.
const FRAGMENT_BYTES_BACK: u32 = FRAGMENT_BYTES / timeouts::REASSEMBLY + 1;

/// The kernel's memory for a fragment of this length: a buffer of up to twice the length, and its
/// metadata (`skb->truesize`).
#[inline(always)]
const fn held_for(octets: u16) -> u32 {
    octets as u32 * 2 + 768
}

/// Charges a fragment that is to be reassembled; returns whether the endpoint may send it.
#[inline(always)]
pub fn charge_fragment<F: Family, T: FlowTable<F>>(tables: &T, slot: u32, octets: u16) -> bool {
    let Some(quota) = tables.quota(slot) else {
        return false;
    };
    let now = tables.now();
    let before = quota.fragments.get();
    let level = fragment_bytes_at(before, now);
    let cost = held_for(octets);
    // If another CPU wins the swap, this fragment is not charged, which does no harm.
    if cost <= level {
        tables.swap(&quota.fragments, before, fragment_word(now, level - cost));
    }
    cost <= level
}

/// Credits the charge of a fragment whose datagram is complete.
#[inline(always)]
pub fn credit_fragment<F: Family, T: FlowTable<F>>(tables: &T, slot: u32, octets: u16) {
    let Some(quota) = tables.quota(slot) else {
        return;
    };
    let now = tables.now();
    let before = quota.fragments.get();
    let level = fragment_bytes_at(before, now) + held_for(octets);
    let level = if level < FRAGMENT_BYTES {
        level
    } else {
        FRAGMENT_BYTES
    };
    tables.swap(&quota.fragments, before, fragment_word(now, level));
}

#[inline(always)]
const fn fragment_word(now: Ticks, level: u32) -> u64 {
    (now as u64) << 32 | level as u64
}

/// The level of the bucket of fragments at `now`.
#[inline(always)]
const fn fragment_bytes_at(word: u64, now: Ticks) -> u32 {
    let since = now.wrapping_sub(owner(word));
    // Another CPU read its clock a little later than this one.
    if since.wrapping_neg() < timeouts::REASSEMBLY {
        return word as u32;
    }
    if since >= timeouts::REASSEMBLY {
        return FRAGMENT_BYTES;
    }
    let level = word as u32 + since * FRAGMENT_BYTES_BACK;
    if level < FRAGMENT_BYTES {
        level
    } else {
        FRAGMENT_BYTES
    }
}
