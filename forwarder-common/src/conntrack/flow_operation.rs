// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow operations outside of the packet path: delete a flow, collect expired flows without waiting
//! for new flows to do it, and follow a connection of the kernel.

use crate::abi::{End, FlowRef, FlowState, HOST, ORIGINAL, REPLY, Tuple};
use crate::conntrack::flow::{self, Plan, retire};
use crate::conntrack::sweep::Sweeper;
use crate::conntrack::{quota, timeouts};
use crate::event::EventKind;
use crate::family::{Addr, Be16, Family};
use crate::subprograms::Tracking;
use crate::tracking::tcp::State;
use crate::wire::frame::Frame;
use crate::wire::proto;

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

/// The result of following a connection.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Following {
    /// The connection has a flow now.
    Followed = 0,
    /// A flow has one of its tuples.
    Taken = 1,
    /// No record is free for it, or its originator has as many flows as it may.
    Refused = 2,
}

/// A connection of the kernel's that is to be followed, with its two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Followed<F: Family> {
    /// The tuple of the originator's packets as they arrive.
    pub original: Tuple<F>,
    /// The tuple of the answers as they arrive.
    pub reply: Tuple<F>,
    /// Where the originator's packets go.
    pub to: End,
    /// Where the originator's packets come from.
    pub from: End,
}

impl<F: Family> Followed<F> {
    /// The length in bytes of what [`Self::write`] writes.
    pub const LEN: usize = 2 * size_of::<Tuple<F>>() + 4 * size_of::<u32>();
    const TUPLES: [usize; 2] = [0, size_of::<Tuple<F>>()];
    const ENDS: [usize; 2] = [2 * size_of::<Tuple<F>>(), 2 * size_of::<Tuple<F>>() + 8];

    /// Writes the connection to the beginning of a frame, in host order but for addresses and ports;
    /// returns whether it fits.
    #[must_use]
    pub fn write(&self, frame: &mut Frame<'_>) -> bool {
        let tuples = [self.original, self.reply].into_iter().zip(Self::TUPLES);
        let ends = [self.to, self.from].into_iter().zip(Self::ENDS);
        let mut fits = true;
        for (tuple, at) in tuples {
            let ports = at + 2 * size_of::<Addr<F>>();
            fits &= frame.write(at, [tuple.src, tuple.dst])
                && frame.write(ports, [tuple.sport, tuple.dport])
                && frame.write(ports + 4, tuple.proto);
        }
        for (end, at) in ends {
            fits &= frame.write(at, [end.slot, end.generation]);
        }
        fits
    }

    /// Reads what [`Self::write`] has written.
    #[inline(always)]
    #[must_use]
    pub fn read(frame: &Frame<'_>) -> Option<Self> {
        let tuple = |at| {
            let [src, dst] = frame.read::<[Addr<F>; 2]>(at)?;
            let ports = at + 2 * size_of::<Addr<F>>();
            let [sport, dport] = frame.read::<[Be16; 2]>(ports)?;
            let proto = frame.read(ports + 4)?;
            Some(Tuple {
                src,
                dst,
                sport,
                dport,
                proto,
            })
        };
        let end = |at| {
            let [slot, generation] = frame.read::<[u32; 2]>(at)?;
            Some(End { slot, generation })
        };
        Some(Self {
            original: tuple(Self::TUPLES[0])?,
            reply: tuple(Self::TUPLES[1])?,
            to: end(Self::ENDS[0])?,
            from: end(Self::ENDS[1])?,
        })
    }
}

/// Creates the flow of a connection that the kernel tracks. Until the kernel lets a packet of a
/// direction out, the direction's packets are the kernel's.
#[inline(always)]
pub fn follow<F: Family, T: Tracking<F>>(tables: &T, connection: &Followed<F>) -> Following {
    let tuples = [&connection.original, &connection.reply];
    tables.sweep_some();
    for tuple in tuples {
        // What the kernel translates is recorded as the host's when it begins, so that no flow takes
        // its port.
        if let Some(record) = flow::find(tables, tuple)
            && record.flow.next_hops[REPLY].slot() == HOST
        {
            flow::end(tables, &record);
        }
    }
    if tables.charge(connection.from).is_some() {
        return Following::Refused;
    }
    let [original, reply] = tuples.map(|tuple| tables.flow_ref(tuple) == Some(FlowRef::KERNEL));
    if original {
        tables.remove(&connection.original);
    }
    if reply {
        tables.remove(&connection.reply);
    }
    let following = create(tables, connection);
    if following as u32 != Following::Followed as u32 {
        // The connection is left to the kernel as before.
        if original {
            let _ = tables.insert(&connection.original, FlowRef::KERNEL);
        }
        if reply {
            let _ = tables.insert(&connection.reply, FlowRef::KERNEL);
        }
    }
    following
}

#[inline(always)]
fn create<F: Family, T: Tracking<F>>(tables: &T, connection: &Followed<F>) -> Following {
    let plan = Plan {
        original: connection.original,
        to: connection.to,
        from: connection.from,
        mapping: 0,
        mapping_generation: 0,
        uplink_mac: [0; 6],
        policy: 0,
    };
    let Some(reference) = flow::reserve(tables, &plan) else {
        quota::give_back(tables, plan.from);
        return Following::Refused;
    };
    if !tables.insert(&connection.reply, reference) {
        flow::release(tables, reference);
        quota::give_back(tables, plan.from);
        return Following::Taken;
    }
    let Some(record) = tables.flow(reference.index) else {
        return Following::Refused;
    };
    let before = tables.now().wrapping_sub(timeouts::LET_OUT);
    record.let_out(ORIGINAL).set(before);
    record.let_out(REPLY).set(before);
    record.windows.pick_up();
    let state = if connection.original.proto == proto::TCP {
        State::Established as u8
    } else {
        0
    };
    let flow_state = FlowState::followed(reference.id, state);
    flow::commit(tables, reference.index, flow_state, &connection.reply);
    match flow::find(tables, &connection.original) {
        Some(hit) if hit.index == reference.index => Following::Followed,
        _ => Following::Taken,
    }
}
