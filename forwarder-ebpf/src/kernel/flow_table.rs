// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The flow table: the index, the records, the ring of unassured flows, quotas, port affinities,
//! and the datagram whose fragments arrive.

use core::cell::Cell;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use forwarder_common::abi::{Flow, FlowRef, FlowState, Pending, PortAffinity, Quota, Tuple};
use forwarder_common::clock;
use forwarder_common::environment::{
    BaseConfiguration as _, FlowIndex, FlowRecords, FragmentState, PortAffinities, Quotas,
    UnassuredRing,
};
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::V4;
use forwarder_common::tracking::verdict::before;
use forwarder_common::wire::series::FragmentSeries;

use super::Kernel;
use crate::atomic;
use crate::maps::{
    AFFINITIES, CURSORS, EVENTS, FLOW_CACHE, FLOW_INDEX, FLOWS, FREE, LOST, QUOTAS, SERIES,
    UNASSURED_RING, WATCH,
};
use crate::report::{Fault, fault};

/// How many other CPUs may raise the same number in between.
const RAISES: u32 = 3;

impl<C: EbpfContext> Kernel<C> {
    /// Counts records that are taken, or that are returned if the summand is negative.
    #[inline(always)]
    fn count_used(&self, summand: u64) {
        if let Some(cursors) = CURSORS.get_ptr_mut(0) {
            // SAFETY: an aligned 64-bit word of a map's element.
            unsafe { atomic::add(&raw mut (*cursors).used, summand) };
        }
    }
}

impl<C: EbpfContext> FlowIndex<V4> for Kernel<C> {
    #[inline(always)]
    fn flow_ref(&self, tuple: &Tuple<V4>) -> Option<FlowRef> {
        // SAFETY: copied at once; the content is checked against the record.
        unsafe { FLOW_INDEX.get(tuple) }.copied()
    }

    #[inline(always)]
    fn cached_flow(&self, place: u32) -> FlowRef {
        FLOW_CACHE.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_cached_flow(&self, place: u32, flow: FlowRef) {
        if let Some(entry) = FLOW_CACHE.get_ptr_mut(place) {
            // SAFETY: a live element; readers check its content against the record.
            unsafe { *entry = flow };
        }
    }

    #[inline(always)]
    fn insert(&self, tuple: &Tuple<V4>, flow: FlowRef) -> bool {
        FLOW_INDEX.insert(tuple, flow, BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn remove(&self, tuple: &Tuple<V4>) {
        if let Err(errno) = FLOW_INDEX.remove(tuple) {
            fault(Fault::Remove, errno.into());
        }
    }
}

impl<C: EbpfContext> FlowRecords<V4> for Kernel<C> {
    #[inline(always)]
    fn flow(&self, index: u32) -> Option<&Flow<V4>> {
        FLOWS.get(index).map(|record| &record.0)
    }

    #[inline(always)]
    fn flow_state(&self, flow: &Flow<V4>) -> FlowState {
        // SAFETY: a live reference; volatile, since another CPU may have changed the word.
        FlowState(unsafe { ptr::read_volatile(flow.flow_state.as_ptr()) })
    }

    #[inline(always)]
    fn swap_flow_state(&self, flow: &Flow<V4>, from: FlowState, to: FlowState) -> bool {
        // SAFETY: an aligned 64-bit word of a map's element, changed by this operation only.
        unsafe { atomic::compare_and_swap(flow.flow_state.as_ptr(), from.0, to.0) }
    }

    #[inline(always)]
    fn raise(&self, number: &Cell<u32>, to: u32) {
        // SAFETY: an aligned word of a map's element; volatile, because another CPU may have changed
        // it.
        let mut seen = unsafe { ptr::read_volatile(number.as_ptr()) };
        for _ in 0..RAISES {
            if !before(seen, to) {
                return;
            }
            // SAFETY: as above.
            let (now, done) = unsafe { atomic::exchange(number.as_ptr(), seen, to) };
            if done {
                return;
            }
            seen = now;
        }
    }

    #[inline(always)]
    fn take_free(&self) -> Option<u32> {
        let index = FREE.pop().ok().flatten()?;
        self.count_used(1);
        Some(index)
    }

    #[inline(always)]
    fn give_free(&self, index: u32) {
        if FREE.push(index, 0).is_ok() {
            self.count_used(u64::MAX);
        } else {
            fault(Fault::GiveFree, index.into());
        }
    }

    #[inline(always)]
    fn used(&self) -> u32 {
        let Some(cursors) = CURSORS.get_ptr(0) else {
            return 0;
        };
        // SAFETY: a live element; volatile, since other CPUs change the word.
        unsafe { ptr::read_volatile(&raw const (*cursors).used) as u32 }
    }

    #[inline(always)]
    fn next_sweep(&self) -> u32 {
        let Some(cursors) = CURSORS.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: an aligned 64-bit word of a map's element.
        let cursor = unsafe { atomic::increment(&raw mut (*cursors).sweep) };
        wrap(cursor, self.settings().flows)
    }

    /// While nobody watches, this costs one array lookup.
    #[inline(always)]
    fn emit(&self, flow: &Flow<V4>, index: u32, flow_state: FlowState, kind: EventKind) {
        let Some(watch) = WATCH.get_ptr(0) else {
            return;
        };
        // SAFETY: a live element; volatile, because the watcher changes it.
        let until = unsafe { ptr::read_volatile(watch) };
        if until == 0 {
            return;
        }
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        if now < until
            && let Some(place) = EVENTS.reserve::<Event<V4>>(0)
        {
            // SAFETY: this program's own part of the ring; any bytes are a valid event.
            let event = unsafe { &*place.as_ptr() };
            event.fill(flow, index, flow_state, kind, clock::ticks(now));
            place.submit(0);
        } else if let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: an aligned 64-bit word of a map's element. Atomic, because packets interrupt
            // a program that the command line runs.
            unsafe { atomic::increment(lost) };
        }
    }
}

impl<C: EbpfContext> UnassuredRing<V4> for Kernel<C> {
    #[inline(always)]
    fn next_ring(&self) -> u64 {
        let Some(cursors) = CURSORS.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::increment(&raw mut (*cursors).ring) }
    }

    #[inline(always)]
    fn ring(&self, place: u32) -> Pending {
        UNASSURED_RING.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_ring(&self, place: u32, pending: Pending) {
        if let Some(entry) = UNASSURED_RING.get_ptr_mut(place) {
            // SAFETY: a live element; readers check its content against the record.
            unsafe { *entry = pending };
        }
    }
}

impl<C: EbpfContext> Quotas<V4> for Kernel<C> {
    #[inline(always)]
    fn quota(&self, slot: u32) -> Option<&Quota> {
        QUOTAS.get(slot).map(|shares| &shares.0)
    }

    #[inline(always)]
    fn add(&self, word: &Cell<u64>, summand: u64) -> u64 {
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::add(word.as_ptr(), summand) }
    }

    #[inline(always)]
    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool {
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::compare_and_swap(word.as_ptr(), from, to) }
    }
}

impl<C: EbpfContext> PortAffinities<V4> for Kernel<C> {
    #[inline(always)]
    fn affinity(&self, place: u32) -> Option<PortAffinity<V4>> {
        AFFINITIES.get(place).copied()
    }

    #[inline(always)]
    fn set_affinity(&self, place: u32, affinity: PortAffinity<V4>) {
        if let Some(entry) = AFFINITIES.get_ptr_mut(place) {
            // SAFETY: a live element; a torn entry costs no more than one failed try.
            unsafe { *entry = affinity };
        }
    }
}

impl<C: EbpfContext> FragmentState<V4> for Kernel<C> {
    #[inline(always)]
    fn series(&self) -> FragmentSeries<V4> {
        SERIES.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_series(&self, series: FragmentSeries<V4>) {
        if let Some(place) = SERIES.get_ptr_mut(0) {
            // SAFETY: this CPU's own element; programs of one kind do not interrupt each other.
            unsafe { *place = series };
        }
    }
}

/// The index of a cursor in a table of `size` elements.
#[inline(always)]
fn wrap(cursor: u64, size: u32) -> u32 {
    if size == 0 {
        0
    } else {
        (cursor % size as u64) as u32
    }
}
