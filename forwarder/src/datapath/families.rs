// SPDX-License-Identifier: MIT OR Apache-2.0
//! The address families whose maps the agent holds, and what it asks of all of them: everything else
//! here names no family, but for the handles and the changes.

use std::net::IpAddr;

use anyhow::Result;
use aya::Pod;
use forwarder_common::abi::{FamilyNames, Flow, Peer};
use forwarder_common::clock::Ticks;
use forwarder_common::family::{Family, V4};
use forwarder_state::address::WireAddress;
use forwarder_state::desired_state::Observed;

use super::events::FlowEvent;
use super::flows::FlowSnapshot;
use super::maps::{FamilyMaps, MapFill, Maps, Plain, event};

/// An address family whose maps the agent holds.
pub trait MapFamily: Family<Addr: WireAddress + Plain> {
    /// The names of its maps.
    const NAMES: FamilyNames;

    /// As many words as a flow record has.
    type Words: Pod;

    /// Returns the maps of the family.
    fn of(maps: &Maps) -> &FamilyMaps<Self>;

    /// Returns the maps of the family, for changes.
    fn of_mut(maps: &mut Maps) -> &mut FamilyMaps<Self>;
}

impl MapFamily for V4 {
    const NAMES: FamilyNames = FamilyNames::V4;

    type Words = [u64; size_of::<Flow<Self>>() / 8];

    fn of(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }

    fn of_mut(maps: &mut Maps) -> &mut FamilyMaps<Self> {
        &mut maps.v4
    }
}

impl Maps {
    /// Makes every flow record free.
    pub(super) fn free_records(&mut self, flows: u32) -> Result<()> {
        self.v4.free_records(flows)
    }

    /// Reads the tables of the families.
    pub(super) fn read_families(&self, observed: &mut Observed) -> Result<()> {
        let Observed { tables, v4 } = observed;
        self.v4.read(&mut tables.v4, v4)
    }

    /// Returns how full the maps are.
    pub(super) fn fills(&self, flows: u32) -> Vec<MapFill> {
        let mut fills = self.common_fills(flows);
        fills.extend(self.v4.fills(flows));
        fills
    }

    /// Returns how many live flows each container created, by its address.
    pub(super) fn opened(&self) -> Result<Vec<(IpAddr, u32)>> {
        self.v4.opened()
    }

    /// Returns how many connections are left to the kernel; each has two tuples.
    pub(super) fn kernel_connections(&self) -> usize {
        self.kernel_owned::<V4>().len() / 2
    }

    /// Returns the live flows ([`FamilyMaps::snapshots`]).
    pub(super) fn snapshots(&self, now: Ticks) -> Vec<FlowSnapshot> {
        self.v4.snapshots(now)
    }

    /// Returns the container to which a socket that connects to `asked` is redirected
    /// ([`FamilyMaps::socket_target`]).
    pub(super) fn socket_target(&self, asked: &Peer) -> Option<Peer> {
        self.v4.socket_target(asked)
    }

    /// Whether a container's address belongs to no network that the forwarder decides about.
    pub(super) fn is_not_ours(&self, container: Peer) -> bool {
        self.v4.is_not_ours(container)
    }
}

/// Decodes an entry of the ring of events. Its length says of which family it is.
pub(super) fn flow_event(bytes: &[u8]) -> Option<FlowEvent> {
    event::<V4>(bytes).map(|event| FlowEvent::of(&event))
}
