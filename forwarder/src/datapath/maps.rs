// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed handles of the pinned maps: the one place where bytes of a map become values.
#![expect(
    unsafe_code,
    reason = "vouches that the ABI's structures are plain bytes"
)]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::Pod;
use aya::maps::{Array, DevMapHash, HashMap, LpmTrie, Map, MapData, PerCpuArray, Queue, RingBuf};
use forwarder_common::abi::{
    AllowedKey, AllowedKey6, Device, Endpoint, Endpoint6, Flow, FlowRef, FlowState, HOST,
    HostAddressKey6, IngressKey, IngressKey6, LinkKey, MasqueradeKey, Network, NextHop, ORIGINAL,
    OUTSIDE, OwnerKey6, Peer, PortKey, PortKey6, Published, Published6, Quota, REPLY, ServerKey,
    Settings, SocketKey, TrustKey, Tuple, capacity, name,
};
use forwarder_common::clock::{Ticks, reached};
use forwarder_common::conntrack::quota;
use forwarder_common::event::Event;
use forwarder_common::family::{Be32, Be128, V4};
use forwarder_common::reason::Reason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A structure of the ABI as a map's key or value.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Wire<T>(pub(super) T);

macro_rules! plain {
    ($($name:ty),+ $(,)?) => {
        // SAFETY: `forwarder_common::abi` asserts that none of these has padding, and all consist
        // of integers and arrays of integers.
        $(unsafe impl Pod for Wire<$name> {})+
    };
}

plain!(
    Be128,
    Be32,
    Device,
    Endpoint6,
    Endpoint<V4>,
    FlowRef,
    AllowedKey<V4>,
    AllowedKey6,
    IngressKey<V4>,
    IngressKey6,
    LinkKey<V4>,
    HostAddressKey6,
    Network<V4>,
    OwnerKey6,
    Peer,
    PortKey<V4>,
    PortKey6,
    Published<V4>,
    Published6,
    ServerKey<V4>,
    Settings,
    SocketKey,
    MasqueradeKey<V4>,
    TrustKey,
    Tuple<V4>,
);

/// The bytes of a flow record. A `Flow` has cells, which are not `Copy`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Record([u64; size_of::<Flow<V4>>() / 8]);

// SAFETY: it is an array of integers.
unsafe impl Pod for Record {}

/// A flow as it was when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSnapshot {
    /// Addresses and ports of the originator's packets as they arrive.
    pub original: Tuple<V4>,
    /// Addresses and ports of the replies as they arrive.
    pub reply: Tuple<V4>,
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

impl Record {
    fn flow(self) -> Flow<V4> {
        // SAFETY: `Flow` has the size of this array and a smaller alignment, no padding, and any
        // bytes are valid: integers in cells.
        unsafe { std::mem::transmute::<[u64; size_of::<Flow<V4>>() / 8], Flow<V4>>(self.0) }
    }
}

impl FlowSnapshot {
    fn of(index: u32, flow: &Flow<V4>) -> Self {
        Self {
            index,
            original: flow.tuples[ORIGINAL].get(),
            reply: flow.tuples[REPLY].get(),
            flow_state: FlowState(flow.flow_state.get()),
            packets: [flow.packets[ORIGINAL].get(), flow.packets[REPLY].get()],
            bytes: [flow.bytes[ORIGINAL].get(), flow.bytes[REPLY].get()],
            created: flow.created.get(),
            seen: flow.seen.get(),
            expires: flow.expires.get(),
        }
    }
}

/// Opens a pinned ring for asynchronous waiting. Needs a tokio runtime.
pub(super) fn ring(dir: &Path, name: &str) -> Result<AsyncFd<RingBuf<MapData>>> {
    let ring = pinned(dir, name)?;
    // SAFETY: the ring owns its file, which stays the same and open as long as the ring exists.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .context("cannot wait for events")
}

/// Decodes an entry of the ring as an event; none if it has the length of another family's event.
pub(super) fn event(bytes: &[u8]) -> Option<Event<V4>> {
    // SAFETY: there are as many bytes as an event has, and any bytes are valid: integers without
    // padding.
    (bytes.len() == size_of::<Event<V4>>())
        .then(|| unsafe { bytes.as_ptr().cast::<Event<V4>>().read_unaligned() })
}

/// The maps, opened by their pins.
pub(super) struct Maps {
    pub(super) settings: Array<MapData, Wire<Settings>>,
    reasons: PerCpuArray<MapData, u64>,
    pub(super) devices: HashMap<MapData, u32, Wire<Device>>,
    pub(super) ports: DevMapHash<MapData>,
    pub(super) networks: HashMap<MapData, u32, Wire<Network<V4>>>,
    pub(super) subnets: LpmTrie<MapData, Wire<Be32>, u32>,
    pub(super) locals: LpmTrie<MapData, Wire<Be32>, u32>,
    pub(super) sources: LpmTrie<MapData, Wire<MasqueradeKey<V4>>, Wire<Be32>>,
    pub(super) endpoint_slots: HashMap<MapData, Wire<Be32>, u32>,
    pub(super) endpoints: Array<MapData, Wire<Endpoint<V4>>>,
    pub(super) published: HashMap<MapData, Wire<PortKey<V4>>, Wire<Published<V4>>>,
    pub(super) seen_as: HashMap<MapData, Wire<ServerKey<V4>>, u32>,
    pub(super) trusted: HashMap<MapData, Wire<TrustKey>, u32>,
    pub(super) links: HashMap<MapData, Wire<LinkKey<V4>>, u32>,
    pub(super) ingress: LpmTrie<MapData, Wire<IngressKey<V4>>, u32>,
    pub(super) allowed: LpmTrie<MapData, Wire<AllowedKey<V4>>, u32>,
    pub(super) mappings: Array<MapData, u32>,
    pub(super) flow_index: HashMap<MapData, Wire<Tuple<V4>>, Wire<FlowRef>>,
    pub(super) flows: Array<MapData, Record>,
    pub(super) sockets: HashMap<MapData, Wire<SocketKey>, Wire<Peer>>,
    pub(super) locals6: HashMap<MapData, Wire<HostAddressKey6>, u32>,
    pub(super) subnets6: LpmTrie<MapData, Wire<Be128>, u32>,
    pub(super) owners6: HashMap<MapData, Wire<OwnerKey6>, u32>,
    pub(super) endpoints6: HashMap<MapData, u32, Wire<Endpoint6>>,
    pub(super) published6: HashMap<MapData, Wire<PortKey6>, Wire<Published6>>,
    pub(super) ingress6: LpmTrie<MapData, Wire<IngressKey6>, u32>,
    pub(super) allowed6: LpmTrie<MapData, Wire<AllowedKey6>, u32>,
    quotas: Array<MapData, [u64; size_of::<Quota>() / 8]>,
    free: Queue<MapData, u32>,
}

/// Returns every map and its size for `flows` flows; `None` if the object sets the size.
pub(super) fn sizes(flows: u32) -> [(&'static str, Option<u32>); 38] {
    [
        (name::SETTINGS, None),
        (name::REASONS, None),
        (name::DEVICES, None),
        (name::XDP_DEVMAP, None),
        (name::NETWORKS, None),
        (name::SUBNETS, None),
        (name::HOST_ADDRESSES, None),
        (name::MASQ_ADDRESSES, None),
        (name::ENDPOINT_SLOTS, None),
        (name::ENDPOINTS, None),
        (name::PUBLISHED, None),
        (name::SEEN_AS, None),
        (name::TRUSTED, None),
        (name::LINKS, None),
        (name::INGRESS, None),
        (name::ALLOWED_SOURCES, None),
        (name::MAPPINGS, None),
        (name::FLOW_INDEX, Some(flows * 2)),
        (name::FLOWS, Some(flows)),
        (name::FREE, Some(flows)),
        (
            name::UNASSURED_RING,
            Some(flows / capacity::UNASSURED_SHARE),
        ),
        (name::CURSORS, None),
        (name::AFFINITIES, None),
        (name::FLOW_CACHE, None),
        (name::QUOTAS, None),
        (name::SOCKETS, None),
        (name::BOUND, None),
        (name::BINDS, None),
        (name::WATCH, None),
        (name::EVENTS, None),
        (name::LOST, None),
        (name::HOST_ADDRESSES6, None),
        (name::SUBNETS6, None),
        (name::OWNERS6, None),
        (name::ENDPOINTS6, None),
        (name::PUBLISHED6, None),
        (name::INGRESS6, None),
        (name::ALLOWED6, None),
    ]
}

impl Maps {
    /// Opens the maps that are pinned in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            settings: pinned(dir, name::SETTINGS)?,
            reasons: pinned(dir, name::REASONS)?,
            devices: pinned(dir, name::DEVICES)?,
            ports: pinned(dir, name::XDP_DEVMAP)?,
            networks: pinned(dir, name::NETWORKS)?,
            subnets: pinned(dir, name::SUBNETS)?,
            locals: pinned(dir, name::HOST_ADDRESSES)?,
            sources: pinned(dir, name::MASQ_ADDRESSES)?,
            endpoint_slots: pinned(dir, name::ENDPOINT_SLOTS)?,
            endpoints: pinned(dir, name::ENDPOINTS)?,
            published: pinned(dir, name::PUBLISHED)?,
            seen_as: pinned(dir, name::SEEN_AS)?,
            trusted: pinned(dir, name::TRUSTED)?,
            links: pinned(dir, name::LINKS)?,
            ingress: pinned(dir, name::INGRESS)?,
            allowed: pinned(dir, name::ALLOWED_SOURCES)?,
            mappings: pinned(dir, name::MAPPINGS)?,
            flow_index: pinned(dir, name::FLOW_INDEX)?,
            flows: pinned(dir, name::FLOWS)?,
            sockets: pinned(dir, name::SOCKETS)?,
            locals6: pinned(dir, name::HOST_ADDRESSES6)?,
            subnets6: pinned(dir, name::SUBNETS6)?,
            owners6: pinned(dir, name::OWNERS6)?,
            endpoints6: pinned(dir, name::ENDPOINTS6)?,
            published6: pinned(dir, name::PUBLISHED6)?,
            ingress6: pinned(dir, name::INGRESS6)?,
            allowed6: pinned(dir, name::ALLOWED6)?,
            quotas: pinned(dir, name::QUOTAS)?,
            free: pinned(dir, name::FREE)?,
        })
    }

    /// Reads the settings of the programs.
    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(self
            .settings
            .get(&0, 0)
            .context("cannot read the settings")?
            .0)
    }

    /// Writes the settings.
    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.settings
            .set(0, Wire(settings), 0)
            .context("cannot write the settings")
    }

    /// Whether the maps are complete, for this number of flows.
    ///
    /// # Errors
    /// The maps are for another number of flows.
    pub(super) fn fits(&self, flows: u32) -> Result<bool> {
        let pinned = self.settings()?.flows;
        ensure!(
            pinned == 0 || pinned == flows,
            "the pinned flow table has {pinned} records, the configuration says {flows}: run `forwarder cleanup` to start over, or set flows to {pinned}",
        );
        Ok(pinned != 0)
    }

    /// Initialises new maps: every record is free. Records that an earlier, killed attempt pushed
    /// are removed first. The settings record when the initialisation is complete.
    pub(super) fn fill(&mut self, flows: u32) -> Result<()> {
        if self.fits(flows)? {
            return Ok(());
        }
        let settings = self.settings()?;
        while self.free.pop(0).is_ok() {}
        for index in 0..flows {
            self.free
                .push(index, 0)
                .context("cannot fill the list of free flow records")?;
        }
        let ring = flows / capacity::UNASSURED_SHARE;
        self.set_settings(Settings {
            flows,
            ring,
            ..settings
        })
    }

    /// Returns how many live flows each container created, by its address.
    pub(super) fn opened(&self) -> Result<Vec<(Be32, u32)>> {
        let mut opened = Vec::new();
        for entry in &self.endpoint_slots {
            let (Wire(address), slot) = entry?;
            let life = self.endpoints.get(&slot, 0)?.0.generation;
            let [held, ..] = self.quotas.get(&slot, 0)?;
            let own = quota::owner(held) == life;
            let count = if own { quota::count(held) } else { 0 };
            opened.push((address, count.max(0) as u32));
        }
        Ok(opened)
    }

    /// Returns the number of packets with a reason, over all CPUs.
    pub(super) fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Whether the next packet would find the flow current, as
    /// [`forwarder_common::conntrack::flow::is_current`] decides.
    fn is_current(&self, flow: &Flow<V4>, now: Ticks) -> bool {
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

/// Whether the maps pinned in `dir` are armed. Missing maps are not armed.
pub(super) fn are_armed(dir: &Path) -> bool {
    let settings: Result<Array<MapData, Wire<Settings>>> = pinned(dir, name::SETTINGS);
    settings.is_ok_and(|map| map.get(&0, 0).is_ok_and(|Wire(row)| row.armed != 0))
}

/// Opens a map by its pin.
pub(super) fn pinned<T>(dir: &Path, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let path = dir.join(name);
    let data = MapData::from_pin(&path)
        .with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    let map = Map::from_map_data(data)
        .with_context(|| format!("the pinned map {name} has an unknown type"))?;
    match T::try_from(map) {
        Ok(map) => Ok(map),
        Err(error) => bail!(
            "the pinned map {} has another type: {error}",
            path.display()
        ),
    }
}
