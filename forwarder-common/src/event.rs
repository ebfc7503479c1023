// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow events: what a watcher receives when a flow begins and when it ends.

use core::cell::Cell;

use crate::abi::{Flow, FlowState, ORIGINAL, REPLY, Tuple};
use crate::clock::Ticks;
use crate::family::{Family, V4};

/// What happened to a flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// The flow begins. The event is emitted while nobody else knows the record, and so before all
    /// later events of the flow.
    Begins = 0,
    /// The flow ends: it has expired, its connection is opened again, or one of its endpoints or
    /// its port mapping has changed. The record tells which.
    Over = 1,
    /// The flow ends: a newer unassured flow takes its record.
    Evicted = 2,
    /// The flow ends: it was deleted on request.
    Deleted = 3,
    /// The flow ends before any packet found it: another CPU created a flow with the same tuple
    /// first, or the index is full.
    Undone = 4,
}

impl EventKind {
    /// The event kind with this number; [`EventKind::Over`] for an unknown number.
    #[inline(always)]
    #[must_use]
    pub const fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::Begins,
            2 => Self::Evicted,
            3 => Self::Deleted,
            4 => Self::Undone,
            _ => Self::Over,
        }
    }
}

/// A flow at the time of an event. The length of the event tells the address family.
///
/// The fields are cells because an event is filled in place, in the ring: the stack has no room for
/// it.
#[repr(C)]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event<F: Family> {
    /// The [`FlowState`], which contains the record's generation.
    pub flow_state: Cell<u64>,
    /// Packets by direction.
    pub packets: [Cell<u64>; 2],
    /// Bytes by direction, network header included.
    pub bytes: [Cell<u64>; 2],
    /// The tuples of the originator's packets and of the answers, both as they arrive at the
    /// forwarder.
    pub tuples: [Cell<Tuple<F>>; 2],
    /// The record's index.
    pub index: Cell<u32>,
    /// The number of an [`EventKind`].
    pub kind: Cell<u32>,
    /// When the event happened.
    pub at: Cell<Ticks>,
    /// When the flow was created.
    pub created: Cell<Ticks>,
    /// When the last packet arrived.
    pub seen: Cell<Ticks>,
    /// When the flow would expire.
    pub expires: Cell<Ticks>,
}

/// No padding, and whole words of the ring.
const _: () = assert!(size_of::<Event<V4>>() == 8 + 16 + 16 + 32 + 6 * 4);

impl<F: Family> Event<F> {
    /// Fills the event from a record that cannot be reused for another flow at the same time.
    #[inline(always)]
    pub fn fill(
        &self,
        flow: &Flow<F>,
        index: u32,
        flow_state: FlowState,
        kind: EventKind,
        at: Ticks,
    ) {
        self.flow_state.set(flow_state.0);
        self.index.set(index);
        self.kind.set(kind as u32);
        self.at.set(at);
        for dir in [ORIGINAL, REPLY] {
            self.packets[dir].set(flow.packets[dir].get());
            self.bytes[dir].set(flow.bytes[dir].get());
            self.tuples[dir].set(flow.tuples[dir].get());
        }
        self.created.set(flow.created.get());
        self.seen.set(flow.seen.get());
        self.expires.set(flow.expires.get());
    }
}
