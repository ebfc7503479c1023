// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring of unassured flows: from which place of it, and so from whom, a new flow gets its
//! record.

use core::marker::PhantomData;

use crate::abi::{FlowRef, FlowState, OUTSIDE, Pending};
use crate::attempt::Attempt;
use crate::conntrack::quota;
use crate::environment::FlowTable;
use crate::event::EventKind;
use crate::family::Family;
use crate::subprograms::Tracking;

/// Takes a record and a place in the unassured ring: the record of the unassured flow in that place
/// if there is one, else a free record.
///
/// **The ring.** A new flow chooses one of [`BLOCK`] places: one that is no longer needed if there
/// is any, else the place whose originator has the most places, and among those the oldest. So an
/// originator that floods the ring evicts its own flows, and the few flows of others stay.
#[inline(always)]
pub fn take_record<F: Family, T: Tracking<F>>(tables: &T, originator: u32) -> Option<FlowRef> {
    let mut choice = Choice::new(tables);
    tables.attempt(BLOCK, &mut choice);
    let place = choice.place;
    let before = tables.ring(place);
    let index = match evict_unassured(tables, before) {
        Some(index) => index,
        // The last part of the table is reserved: clients outside, of which there may be any
        // number, do not get it.
        None if originator == OUTSIDE && quota::is_reserved(tables) => return None,
        None => tables.take_free()?,
    };
    let reference = FlowRef {
        index,
        id: tables.flow_state(tables.flow(index)?).id(),
    };
    if before != Pending::default() {
        count_place(tables, before.originator(), u64::MAX);
    }
    count_place(tables, originator, 1);
    tables.set_ring(place, Pending::new(reference, originator));
    Some(reference)
}

/// Two CPUs use the same place of the ring at the same time only if the ring turns once completely
/// in between. The counts only rank originators, so a small error does no harm.
#[inline(always)]
fn count_place<F: Family, T: FlowTable<F>>(tables: &T, originator: u32, summand: u64) {
    if let Some(quota) = tables.quota(originator) {
        tables.add(&quota.places, summand);
    }
}

/// How many places of the ring a new flow chooses from: a power of two.
pub const BLOCK: u32 = 8;

/// The choice of a place in the ring. Each new flow takes the next block; in each turn of the ring
/// another place of the block is tried first, so that the oldest flow goes if all have the same
/// originator.
struct Choice<'a, F: Family, T> {
    tables: &'a T,
    block: u32,
    turn: u32,
    tried: u32,
    place: u32,
    /// How many places the originator of the flow in `place` has.
    most: i64,
    family: PhantomData<F>,
}

impl<'a, F: Family, T: FlowTable<F>> Choice<'a, F, T> {
    #[inline(always)]
    fn new(tables: &'a T) -> Self {
        let blocks = match tables.settings().ring / BLOCK {
            0 => 1,
            blocks => blocks as u64,
        };
        let cursor = tables.next_ring();
        Self {
            tables,
            block: (cursor % blocks) as u32 * BLOCK,
            turn: (cursor / blocks) as u32,
            tried: 0,
            place: 0,
            most: i64::MIN,
            family: PhantomData,
        }
    }
}

impl<F: Family, T: FlowTable<F>> Attempt for Choice<'_, F, T> {
    #[inline(always)]
    fn once(&mut self) -> bool {
        let place = self.block + (self.turn.wrapping_add(self.tried) & (BLOCK - 1));
        self.tried += 1;
        let pending = self.tables.ring(place);
        if unassured(self.tables, pending).is_none() {
            self.place = place;
            return true;
        }
        let places = match self.tables.quota(pending.originator()) {
            Some(quota) => quota.places.get() as i64,
            None => 0,
        };
        if places > self.most {
            self.place = place;
            self.most = places;
        }
        false
    }
}

/// The flow state of the flow in a place of the ring, if that flow is live and not assured.
#[inline(always)]
fn unassured<F: Family, T: FlowTable<F>>(tables: &T, pending: Pending) -> Option<FlowState> {
    // A place that was never used is zero, which would name record 0 in generation 0: that flow
    // must not be ended.
    if pending == Pending::default() {
        return None;
    }
    let flow_state = tables.flow_state(tables.flow(pending.index())?);
    let waits = pending.is_of(flow_state.id()) && flow_state.is_live() && !flow_state.is_assured();
    waits.then_some(flow_state)
}

#[inline(always)]
fn evict_unassured<F: Family, T: Tracking<F>>(tables: &T, pending: Pending) -> Option<u32> {
    let flow_state = unassured(tables, pending)?;
    tables
        .claim(pending.index(), flow_state, EventKind::Evicted)
        .then_some(pending.index())
}
