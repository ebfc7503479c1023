// SPDX-License-Identifier: MIT OR Apache-2.0
//! What whoever watches is told of flows: one record for a beginning and one for an end.

use core::cell::Cell;

use crate::abi::{Flow, Tuple};
use crate::family::{Family, V4};
use crate::flow::{FlowState, ORIGINAL, REPLY};
use crate::timeouts::Ticks;

/// What happened to a flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It begins. Told while nobody else knows its record, hence before all that becomes of it.
    Begins = 0,
    /// It ends: its time is over, its connection is opened anew, or one of its ends or its mapping
    /// is another one now. The record tells which.
    Over = 1,
    /// It ends: a newer one that is not assured either has its record.
    Evicted = 2,
    /// It ends by hand.
    Deleted = 3,
    /// It ends before any packet found it: another CPU made a flow of the same tuple first, or the
    /// index is full.
    Undone = 4,
}

impl EventKind {
    /// The news of a number; [`EventKind::Over`] for a number that is none's.
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

/// A flow as it was when something happened to it. Its length tells the address family.
///
/// Cells, since it is filled where it lies, in the ring: the stack has no room for it.
#[repr(C)]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event<F: Family> {
    /// The [`FlowState`]: its id is that of this life of the record.
    pub flow_state: Cell<u64>,
    /// Packets by direction.
    pub packets: [Cell<u64>; 2],
    /// Bytes by direction, network header included.
    pub bytes: [Cell<u64>; 2],
    /// What the originator's packets carry when they reach us, and what the answers carry.
    pub tuples: [Cell<Tuple<F>>; 2],
    /// The record's index.
    pub index: Cell<u32>,
    /// The number of a [`EventKind`].
    pub news: Cell<u32>,
    /// When it happened.
    pub at: Cell<Ticks>,
    /// When the flow was made.
    pub created: Cell<Ticks>,
    /// When the last packet came.
    pub seen: Cell<Ticks>,
    /// When the flow was to end.
    pub expires: Cell<Ticks>,
}

/// No padding, and whole words of the ring.
const _: () = assert!(size_of::<Event<V4>>() == 8 + 16 + 16 + 32 + 6 * 4);

impl<F: Family> Event<F> {
    /// Tells of a record that does not go to another flow meanwhile.
    #[inline(always)]
    pub fn fill(
        &self,
        flow: &Flow<F>,
        index: u32,
        flow_state: FlowState,
        news: EventKind,
        at: Ticks,
    ) {
        self.flow_state.set(flow_state.0);
        self.index.set(index);
        self.news.set(news as u32);
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
