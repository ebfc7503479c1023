// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is done to flows by hand, beside all packets: ending one, and collecting those whose time
//! is over without waiting for new flows to do it.

use crate::abi::FlowRef;
use crate::event::EventKind;
use crate::family::Family;
use crate::flow::{Sweeper, retire};
use crate::tables::Tables;

/// What became of the wish to end a flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// There is no such flow, or somebody else ended it.
    Absent = 0,
    /// It has ended: both keys and the record.
    Ended = 1,
    /// A packet changed its state meanwhile: to be tried again.
    Busy = 2,
}

/// Ends a flow that is named by its record and this life of it.
#[inline(always)]
pub fn end<F: Family, T: Tables<F>>(tables: &T, reference: FlowRef) -> Ending {
    let Some(flow) = tables.flow(reference.index) else {
        return Ending::Absent;
    };
    let flow_state = tables.flow_state(flow);
    if flow_state.id() != reference.id || !flow_state.is_live() {
        return Ending::Absent;
    }
    if retire(tables, reference.index, flow_state, EventKind::Deleted) {
        Ending::Ended
    } else {
        Ending::Busy
    }
}

/// Looks at the sweep's next `records` and frees those whose time is over.
#[inline(always)]
pub fn collect<F: Family, T: Tables<F>>(tables: &T, records: u32) {
    tables.attempt(records, &mut Sweeper::new(tables));
}
