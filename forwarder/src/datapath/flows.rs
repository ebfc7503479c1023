// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows as they are when they are read, of whichever family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use forwarder_common::abi::{
    Flow, FlowRef, FlowState, HOST, NextHop, ORIGINAL, OUTSIDE, REPLY, Tuple,
};
use forwarder_common::clock::{Ticks, reached, to_seconds};
use forwarder_common::conntrack::quota;
use forwarder_common::event::Event;
use forwarder_common::family::{Be16, Family};
use forwarder_state::address::WireAddress;
use forwarder_state::connections::Connection;
use serde::{Deserialize, Serialize};

use super::families::MapFamily;
use super::maps::{FamilyMaps, MapFill, Wire};

/// Addresses and ports of one direction of a flow, as its packets arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ends {
    /// Source address.
    pub src: IpAddr,
    /// Source port, or the identifier of an ICMP request; for a reply the query's type, 0 for echo.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, or the identifier of an ICMP reply; for a request its type, 0 for echo.
    pub dport: u16,
}

impl Ends {
    fn of<F: Family<Addr: WireAddress>>(tuple: &Tuple<F>) -> Self {
        Self {
            src: tuple.src.ip(),
            sport: tuple.sport.get(),
            dst: tuple.dst.ip(),
            dport: tuple.dport.get(),
        }
    }

    fn tuple<F: Family<Addr: WireAddress>>(&self, proto: u32) -> Option<Tuple<F>> {
        Some(Tuple {
            src: F::Addr::of(self.src)?,
            dst: F::Addr::of(self.dst)?,
            sport: Be16::new(self.sport),
            dport: Be16::new(self.dport),
            proto,
        })
    }
}

/// A flow as it was when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSnapshot {
    /// IP protocol number.
    pub proto: u32,
    /// The direction of the originator's packets.
    pub original: Ends,
    /// The direction of the replies.
    pub reply: Ends,
    /// The record's index.
    pub index: u32,
    /// The flow's id and state.
    pub flow_state: FlowState,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Bytes by direction, network header included.
    pub bytes: [u64; 2],
    /// When the flow was created.
    pub created: Ticks,
    /// When the last packet arrived.
    pub seen: Ticks,
    /// When the flow expires unless a packet arrives.
    pub expires: Ticks,
}

impl FlowSnapshot {
    pub(super) fn of<F: Family<Addr: WireAddress>>(index: u32, flow: &Flow<F>) -> Self {
        let original = flow.tuples[ORIGINAL].get();
        Self {
            proto: original.proto,
            original: Ends::of(&original),
            reply: Ends::of(&flow.tuples[REPLY].get()),
            index,
            flow_state: FlowState(flow.flow_state.get()),
            packets: [flow.packets[ORIGINAL].get(), flow.packets[REPLY].get()],
            bytes: [flow.bytes[ORIGINAL].get(), flow.bytes[REPLY].get()],
            created: flow.created.get(),
            seen: flow.seen.get(),
            expires: flow.expires.get(),
        }
    }

    /// Returns what names the flow.
    #[must_use]
    pub fn reference(&self) -> FlowRef {
        FlowRef {
            index: self.index,
            id: self.flow_state.id(),
        }
    }

    /// Returns how many seconds the flow lives without a packet, at least one.
    #[must_use]
    pub fn remaining(&self, now: Ticks) -> u32 {
        to_seconds(self.expires.wrapping_sub(now)).max(1) as u32
    }

    /// Returns the flow as a connection of one family; none if it is of another.
    #[must_use]
    pub fn connection<F: Family<Addr: WireAddress>>(&self) -> Option<Connection<F>> {
        Some(Connection {
            original: self.original.tuple(self.proto)?,
            reply: self.reply.tuple(self.proto)?,
        })
    }

    /// Returns the flow that an event is about, as it was then.
    pub(super) fn of_event<F: Family<Addr: WireAddress>>(event: &Event<F>) -> Self {
        let original = event.tuples[ORIGINAL].get();
        Self {
            proto: original.proto,
            original: Ends::of(&original),
            reply: Ends::of(&event.tuples[REPLY].get()),
            index: event.index.get(),
            flow_state: FlowState(event.flow_state.get()),
            packets: [event.packets[ORIGINAL].get(), event.packets[REPLY].get()],
            bytes: [event.bytes[ORIGINAL].get(), event.bytes[REPLY].get()],
            created: event.created.get(),
            seen: event.seen.get(),
            expires: event.expires.get(),
        }
    }
}

impl<F: MapFamily> FamilyMaps<F> {
    /// Returns how many live flows each container created, by its address.
    pub(super) fn opened(&self) -> Result<Vec<(IpAddr, u32)>> {
        let mut opened = Vec::new();
        for entry in &self.endpoint_slots {
            let (Wire(address), slot) = entry?;
            let life = self.endpoints.get(&slot, 0)?.0.generation;
            let [held, ..] = self.quotas.get(&slot, 0)?;
            let own = quota::owner(held) == life;
            let count = if own { quota::count(held) } else { 0 };
            opened.push((address.ip(), count.max(0) as u32));
        }
        Ok(opened)
    }

    /// Returns how full the maps are, the flow records by the index, which has two keys for each
    /// flow.
    pub(super) fn fills(&self, flows: u32) -> Vec<MapFill> {
        let mut fills = self.key_fills(flows);
        let index = fills.iter().find(|map| map.name == F::NAMES.flow_index);
        fills.push(MapFill {
            name: F::NAMES.flows,
            size: flows,
            fill: index.map_or(0, |index| index.fill / 2),
        });
        fills
    }

    /// Whether the next packet would find the flow current, as
    /// [`forwarder_common::conntrack::flow::is_current`] decides.
    fn is_current(&self, flow: &Flow<F>, now: Ticks) -> bool {
        let same = |towards: &NextHop| {
            let endpoint = || self.endpoints.get(&towards.slot(), 0);
            matches!(towards.slot(), OUTSIDE | HOST)
                || endpoint().is_ok_and(|at| at.0.generation == towards.generation.get())
        };
        let slot = flow.mapping();
        let mapped = || self.mappings.get(&slot, 0);
        !reached(flow.expires.get(), now)
            && (slot == 0 || mapped().is_ok_and(|life| life == flow.mapping_generation.get()))
            && flow.next_hops.iter().all(same)
    }

    /// Returns live flows that have not expired and whose endpoints and mapping still exist, each
    /// once. An iteration starts again if its key vanishes, so it may see a flow twice.
    pub(super) fn snapshots(&self, now: Ticks) -> Vec<FlowSnapshot> {
        let mut snapshots = BTreeMap::new();
        for entry in &self.flow_index {
            let Ok((Wire(tuple), Wire(reference))) = entry else {
                continue;
            };
            let Ok(record) = self.flows.get(&reference.index, 0) else {
                continue;
            };
            let flow = record.flow();
            let flow_state = FlowState(flow.flow_state.get());
            let live = flow_state.is_live() && flow_state.id() == reference.id;
            if live && flow.tuples[ORIGINAL].get() == tuple && self.is_current(&flow, now) {
                snapshots.insert(tuple, FlowSnapshot::of(reference.index, &flow));
            }
        }
        snapshots.into_values().collect()
    }
}
