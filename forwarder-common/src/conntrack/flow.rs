// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow lifecycle: find, check, create, assure and end a flow. Its two keys and its record are one
//! unit.
//!
//! A record is reused at once, without a grace period. [`FlowState`] makes that safe: a key names
//! the record *and* its generation; whoever ends a flow has to win a compare-and-swap and alone
//! removes the flow's keys; and what was read from a record is valid only if the flow state has the
//! same generation afterwards.

use crate::abi::{
    Direction, End, Flow, FlowRef, FlowState, HOST, NextHop, ORIGINAL, OUTSIDE, REPLY, Tuple,
};
use crate::clock::{Ticks, reached};
use crate::conntrack::{quota, sctp, timeouts, window};
use crate::environment::FlowTable;
use crate::event::EventKind;
use crate::family::{Address, Family};
use crate::reason::Reason;
use crate::subprograms::Tracking;
use crate::tracking::segment::Segment;
use crate::tracking::tcp::State;
use crate::tracking::verdict::Verdict;
use crate::wire::parse::Packet;
use crate::wire::{checksum, proto, tcp};

/// The flow that a packet belongs to.
pub struct Hit<'a, F: Family> {
    /// The record.
    pub flow: &'a Flow<F>,
    /// The record's index.
    pub index: u32,
    /// The flow state when the flow was found.
    pub flow_state: FlowState,
    /// The packet's direction.
    pub dir: Direction,
}

/// The live flow of a tuple. Neither the flow's timeout nor its generations are checked here: see
/// [`is_current`].
///
/// The flow cache in front of the flow index saves the hash lookup. An entry of either is checked
/// against the record.
#[inline(always)]
pub fn find<'a, F: Family, T: FlowTable<F>>(tables: &'a T, tuple: &Tuple<F>) -> Option<Hit<'a, F>> {
    let place = tuple.place();
    if let Some(hit) = confirm(tables, tuple, tables.cached_flow(place)) {
        return Some(hit);
    }
    let reference = tables.flow_ref(tuple)?;
    let hit = confirm(tables, tuple, reference)?;
    tables.set_cached_flow(place, reference);
    Some(hit)
}

/// The live flow of a tuple, if the reference leads to it.
#[inline(always)]
fn confirm<'a, F: Family, T: FlowTable<F>>(
    tables: &'a T,
    tuple: &Tuple<F>,
    reference: FlowRef,
) -> Option<Hit<'a, F>> {
    let flow = tables.flow(reference.index)?;
    let flow_state = tables.flow_state(flow);
    if flow_state.id() != reference.id || !flow_state.is_live() {
        return None;
    }
    let dir = if flow.tuples[ORIGINAL].get() == *tuple {
        ORIGINAL
    } else if flow.tuples[REPLY].get() == *tuple {
        REPLY
    } else {
        return None;
    };
    Some(Hit {
        flow,
        index: reference.index,
        flow_state,
        dir,
    })
}

/// Whether the flow has not expired, and its endpoints and its port mapping are still those of its
/// creation.
#[inline(always)]
pub fn is_current<F: Family, T: FlowTable<F>>(tables: &T, flow: &Flow<F>, now: Ticks) -> bool {
    if reached(flow.expires.get(), now) {
        return false;
    }
    let mapping = flow.mapping();
    if mapping != 0 && tables.mapping(mapping) != flow.mapping_generation.get() {
        return false;
    }
    is_same::<F, T>(tables, &flow.next_hops[ORIGINAL])
        && is_same::<F, T>(tables, &flow.next_hops[REPLY])
}

#[inline(always)]
fn is_same<F: Family, T: FlowTable<F>>(tables: &T, towards: &NextHop) -> bool {
    matches!(towards.slot(), OUTSIDE | HOST)
        || tables
            .endpoint(towards.slot())
            .is_some_and(|endpoint| endpoint.generation == towards.generation.get())
}

/// Updates the flow's state, windows, timeout and counters by a packet. `len` is the packet's
/// length from the network header on, `scale` the result of
/// [`window_scale::offered`](super::window_scale::offered) for it.
///
/// # Errors
/// The reason why the packet does not fit; nothing has changed then.
#[inline(always)]
pub fn track<F: Family, T: Tracking<F>>(
    tables: &T,
    hit: &Hit<'_, F>,
    packet: &Packet<F>,
    len: u32,
    scale: u8,
    now: Ticks,
) -> Result<(), Reason> {
    let flow = hit.flow;
    let reply = hit.dir == REPLY;
    let mut next = hit.flow_state;
    let mut lifetime = 0;
    if packet.tuple.proto == proto::TCP {
        let state = State::from_u8(hit.flow_state.state());
        let segment = Segment::of(packet, len, hit.dir, scale);
        match window::follow(tables, &flow.windows, hit.index, hit.flow_state, &segment) {
            Verdict::Refuse(reason) => return Err(reason),
            Verdict::Ignore => {}
            Verdict::To(to, span) => {
                let mut flags = if reply { FlowState::SEEN_REPLY } else { 0 };
                // The originator's ACK after the SYN-ACK proves that both ends exist. For a
                // picked-up connection the first answer proves it.
                if to == State::Established && (state == State::SynReceived || reply) {
                    flags |= FlowState::ASSURED;
                }
                next = hit.flow_state.with(to as u8, flags);
                // A retransmitted SYN does not extend the timeout.
                if !(to == state && packet.flags & tcp::SYN != 0) {
                    lifetime = span;
                    if !next.is_replied() && lifetime > timeouts::TCP_UNACKNOWLEDGED {
                        lifetime = timeouts::TCP_UNACKNOWLEDGED;
                    }
                }
            }
        }
    } else if packet.tuple.proto == proto::SCTP {
        let trusted = flow.next_hops[(hit.dir ^ 1) & 1].slot() != OUTSIDE;
        let (to, span) = tables.follow(hit.flow_state.state(), packet.flags, reply, trusted);
        let mut flags = if reply { FlowState::SEEN_REPLY } else { 0 };
        if to == sctp::State::Open as u8 {
            flags |= FlowState::ASSURED;
        }
        next = hit.flow_state.with(to, flags);
        lifetime = span;
    } else {
        if reply {
            next = hit.flow_state.with(0, FlowState::SEEN_REPLY);
        }
        let age = now.wrapping_sub(flow.created.get());
        let echo = packet.tuple.proto == F::ICMP as u32;
        let stream = !echo && next.is_replied() && age > timeouts::UDP_STREAM_AFTER;
        lifetime = match packet.tuple.proto {
            _ if echo => timeouts::ICMP,
            proto::UDP if stream => timeouts::UDP_STREAM,
            proto::UDP => timeouts::UDP,
            _ => timeouts::GENERIC,
        };
        if stream && !next.is_assured() && may_be_assured(tables, flow) {
            next = next.with(0, FlowState::ASSURED);
        }
    }
    // If another CPU changed the state first, its change stands, and this packet passes all the
    // same.
    if next != hit.flow_state {
        let _ = tables.swap_flow_state(flow, hit.flow_state, next);
    }
    if lifetime != 0 {
        flow.expires.set(now.wrapping_add(lifetime));
    }
    flow.seen.set(now);
    let dir = hit.dir & 1;
    flow.packets[dir].set(flow.packets[dir].get().wrapping_add(1));
    flow.bytes[dir].set(flow.bytes[dir].get().wrapping_add(len as u64));
    Ok(())
}

/// Whether a stream of datagrams may become assured. A sender outside may have forged its source,
/// and a server answers every source, so flows from outside become assured only while at most half
/// of the table is in use. A flow that is evicted for that reason is created again by its next
/// packet, with the same ports.
#[inline(never)]
fn may_be_assured<F: Family, T: FlowTable<F>>(tables: &T, flow: &Flow<F>) -> bool {
    flow.next_hops[REPLY].slot() != OUTSIDE || tables.used() <= tables.settings().flows / 2
}

/// What a new flow is created from.
#[derive(Clone, Copy, Debug)]
pub struct Plan<F: Family> {
    /// The originator's tuple before translation.
    pub original: Tuple<F>,
    /// Where the originator's packets go.
    pub to: End,
    /// Where the originator's packets come from.
    pub from: End,
    /// The port mapping's slot, or 0.
    pub mapping: u32,
    /// The port mapping's generation.
    pub mapping_generation: u32,
    /// The uplink's MAC address, if one end of the flow is outside.
    pub uplink_mac: [u8; 6],
    /// The generation of the lists of clients that were checked.
    pub policy: u32,
}

/// Takes a record for a flow that is not assured yet, and fills it in. No key leads to the record
/// yet.
#[inline(always)]
pub fn reserve<F: Family, T: Tracking<F>>(tables: &T, plan: &Plan<F>) -> Option<FlowRef> {
    let reference = tables.take_record(plan.from.slot)?;
    fill(tables.flow(reference.index)?, plan, tables.now());
    Some(reference)
}

#[inline(always)]
fn fill<F: Family>(flow: &Flow<F>, plan: &Plan<F>, now: Ticks) {
    for dir in [ORIGINAL, REPLY] {
        flow.packets[dir].set(0);
        flow.bytes[dir].set(0);
        let towards = &flow.next_hops[dir];
        let end = if dir == ORIGINAL { plan.to } else { plan.from };
        towards.slot.set(end.slot as u16);
        towards.generation.set(end.generation);
    }
    flow.tuples[ORIGINAL].set(plan.original);
    flow.seen.set(now);
    flow.created.set(now);
    flow.mapping.set(plan.mapping as u16);
    flow.mapping_generation.set(plan.mapping_generation);
    flow.uplink_mac.set(plan.uplink_mac);
    flow.policy.set(plan.policy);
}

/// Whether the flow of a reference is live and current.
#[inline(never)]
pub fn lives<F: Family, T: FlowTable<F>>(tables: &T, reference: FlowRef) -> bool {
    let Some(flow) = tables.flow(reference.index) else {
        return false;
    };
    let flow_state = tables.flow_state(flow);
    flow_state.id() == reference.id
        && flow_state.is_live()
        && is_current(tables, flow, tables.now())
}

/// Ends the flow of `tuple` if it is no longer current; returns whether it did.
#[inline(never)]
pub fn end_if_over<F: Family, T: Tracking<F>>(tables: &T, tuple: &Tuple<F>) -> bool {
    let Some(hit) = find(tables, tuple) else {
        return false;
    };
    let over = !is_current(tables, hit.flow, tables.now());
    if over {
        end(tables, &hit);
    }
    over
}

/// Publishes a reserved record whose reply key has been inserted: from here on packets find the
/// flow.
#[inline(always)]
pub fn commit<F: Family, T: Tracking<F>>(
    tables: &T,
    index: u32,
    flow_state: FlowState,
    reply: &Tuple<F>,
) {
    if let Some(flow) = tables.flow(index) {
        flow.tuples[REPLY].set(*reply);
        tables.publish(index, flow_state);
    }
}

/// The second half of [`commit`]: sets the deltas and the flow state, then inserts the original
/// key. If another CPU has created a flow with the same tuple first, everything is undone.
#[inline(always)]
pub fn publish<F: Family, T: Tracking<F>>(tables: &T, index: u32, live: FlowState) {
    let Some(flow) = tables.flow(index) else {
        return;
    };
    let reference = FlowRef {
        index,
        id: live.id(),
    };
    let original = flow.tuples[ORIGINAL].get();
    let reply = flow.tuples[REPLY].get();
    // The originator's packets leave with the reverse of the answers' tuple.
    flow.address_delta.set(checksum::delta(
        original.src.sum() + original.dst.sum(),
        reply.src.sum() + reply.dst.sum(),
    ));
    flow.port_delta.set(checksum::delta(
        original.sport.word() as u32 + original.dport.word() as u32,
        reply.sport.word() as u32 + reply.dport.word() as u32,
    ));
    let lifetime = match original.proto {
        _ if !live.is_followed() => timeouts::UNTRACKED,
        proto::TCP => timeouts::tcp(State::Established),
        _ => timeouts::UDP_STREAM,
    };
    flow.expires.set(tables.now().wrapping_add(lifetime));
    let free = FlowState::free(reference.id);
    tables.emit(flow, reference.index, live, EventKind::Begins);
    let open = tables.swap_flow_state(flow, free, live);
    // Without translation the two directions' keys are each other's reverse, and never equal.
    if open && tables.insert(&original, reference) {
        return;
    }
    if !open || tables.swap_flow_state(flow, live, live.freed()) {
        tables.emit(flow, reference.index, live, EventKind::Undone);
        tables.remove(&reply);
        quota::give_back(tables, End::of(&flow.next_hops[REPLY]));
        tables.give_free(reference.index);
    }
}

/// Gives a reserved record back for which no reply tuple was free.
#[inline(always)]
pub fn release<F: Family, T: Tracking<F>>(tables: &T, reference: FlowRef) {
    tables.give_free(reference.index);
}

/// Ends a flow, its two keys and its record, exactly once, however many CPUs try.
#[inline(always)]
pub fn end<F: Family, T: Tracking<F>>(tables: &T, hit: &Hit<'_, F>) {
    let flow_state = tables.flow_state(hit.flow);
    if flow_state.id() == hit.flow_state.id() && flow_state.is_live() {
        retire(tables, hit.index, flow_state, EventKind::Over);
    }
}

/// Claims a record and frees it; returns whether the claim succeeded.
#[inline(always)]
pub(crate) fn retire<F: Family, T: Tracking<F>>(
    tables: &T,
    index: u32,
    flow_state: FlowState,
    why: EventKind,
) -> bool {
    let won = tables.claim(index, flow_state, why);
    if won {
        tables.give_free(index);
    }
    won
}

/// Claims a record by compare-and-swap, removes both of its keys, credits the originator's quota
/// and emits why the flow ended. Returns whether the claim succeeded; the record then belongs to
/// the caller.
#[inline(always)]
pub fn claim<F: Family, T: Tracking<F>>(
    tables: &T,
    index: u32,
    flow_state: FlowState,
    why: EventKind,
) -> bool {
    let Some(flow) = tables.flow(index) else {
        return false;
    };
    let original = flow.tuples[ORIGINAL].get();
    let reply = flow.tuples[REPLY].get();
    let originator = End::of(&flow.next_hops[REPLY]);
    if !tables.swap_flow_state(flow, flow_state, flow_state.freed()) {
        return false;
    }
    tables.remove(&original);
    tables.remove(&reply);
    tables.emit(flow, index, flow_state, why);
    quota::give_back(tables, originator);
    true
}
