// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow operations that the command line runs outside of the packet path: delete a flow, and
//! collect expired flows without waiting for new flows to do it.

use crate::abi::FlowRef;
use crate::conntrack::flow::retire;
use crate::conntrack::sweep::Sweeper;
use crate::event::EventKind;
use crate::family::Family;
use crate::subprograms::Tracking;

/// The result of deleting a flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// There is no such flow, or it was ended by somebody else.
    Absent = 0,
    /// The flow has ended: both keys and the record.
    Ended = 1,
    /// A packet changed the flow's state in between: try again.
    Busy = 2,
}

/// Ends the flow in this generation of a record.
#[inline(always)]
pub fn end<F: Family, T: Tracking<F>>(tables: &T, reference: FlowRef) -> Ending {
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

/// Inspects the next `records` records of the sweep and frees those whose flow is over.
#[inline(always)]
pub fn collect<F: Family, T: Tracking<F>>(tables: &T, records: u32) {
    tables.attempt(records, &mut Sweeper::new(tables));
}
