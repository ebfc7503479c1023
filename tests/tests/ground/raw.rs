// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow tables as bytes, and what is told of flows: emptied between sequences, and read to
//! compare them with a model's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue, RingBuf};
use forwarder_common::abi::{Flow, FlowRef, Hint, Settings, Tuple, Windows, capacity, name};
use forwarder_common::event::Event;
use forwarder_common::family::V4;
use forwarder_common::pipeline::mark;
use forwarder_common::reason::Reason;

const FLOW: usize = size_of::<Flow<V4>>();
const HINT: usize = size_of::<Hint<V4>>();
/// Offset of the second tuple's destination port in a record.
const REPLY_DPORT: usize = 40 + 16 + 10;
/// Offset of the first tuple.
const ORIGINAL: usize = 40;
/// Where a record's times are.
const TIMES: std::ops::Range<usize> = 96..108;
/// Octets of an event before its times.
const TIMELESS_EVENT: usize = size_of::<Event<V4>>() - 4 * 4;

/// A key of the flow index.
type Key = [u8; size_of::<Tuple<V4>>()];

/// The maps.
pub(crate) struct Raw {
    settings: Array<MapData, [u8; size_of::<Settings>()]>,
    reasons: PerCpuArray<MapData, u64>,
    index: HashMap<MapData, Key, [u8; 8]>,
    flows: Array<MapData, [u8; FLOW]>,
    free: Queue<MapData, u32>,
    ring: Array<MapData, [u8; 8]>,
    cursors: Array<MapData, [u8; 24]>,
    hints: Array<MapData, [u8; HINT]>,
    watch: Array<MapData, u64>,
    events: RingBuf<MapData>,
    quotas: Array<MapData, [u64; 5]>,
}

impl Raw {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            settings: pinned(dir, name::SETTINGS)?,
            reasons: pinned(dir, name::REASONS)?,
            index: pinned(dir, name::FLOW_INDEX)?,
            flows: pinned(dir, name::FLOWS)?,
            free: pinned(dir, name::FREE)?,
            ring: pinned(dir, name::RING)?,
            cursors: pinned(dir, name::CURSORS)?,
            hints: pinned(dir, name::HINTS)?,
            watch: pinned(dir, name::WATCH)?,
            events: pinned(dir, name::EVENTS)?,
            quotas: pinned(dir, name::QUOTAS)?,
        })
    }

    /// Makes the flow tables what they are in a new model: empty, all records free, and told of to
    /// whoever has not to say that he still watches.
    pub(crate) fn reset(&mut self) -> Result<()> {
        let keys: Vec<_> = self.index.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.index.remove(&key)?;
        }
        while self.free.pop(0).is_ok() {}
        for index in 0..self.flows.len() {
            self.flows.set(index, [0; FLOW], 0)?;
        }
        for index in 0..self.flows.len() {
            self.free.push(index, 0)?;
        }
        for place in 0..self.ring.len() {
            self.ring.set(place, [0; 8], 0)?;
        }
        for place in 0..capacity::HINTS {
            self.hints.set(place, [0; HINT], 0)?;
        }
        // More than any model has.
        for slot in 0..256 {
            self.quotas.set(slot, [0; 5], 0)?;
        }
        self.cursors.set(0, [0; 24], 0)?;
        self.watch.set(0, u64::MAX, 0)?;
        self.told();
        Ok(())
    }

    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        let Settings {
            route_generation,
            heartbeat,
            ring,
            flows,
            xdp_tcp,
            policy,
            flow_quota,
            flow_rate,
            round,
            tcp_strict,
            route_mtu,
            armed,
            others,
            reserved_ports,
            unprivileged_port_start,
            lists6,
            netns_cookie: _,
        } = settings;
        let mut bytes = [0; size_of::<Settings>()];
        let words = [
            route_generation,
            heartbeat,
            ring,
            flows,
            xdp_tcp,
            policy,
            flow_quota,
            flow_rate,
            round,
            tcp_strict,
            route_mtu,
            armed,
            others,
            u32::from(reserved_ports.first) | u32::from(reserved_ports.last) << 16,
            unprivileged_port_start,
            lists6,
        ];
        for (place, word) in bytes.chunks_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(self.settings.set(0, bytes, 0)?)
    }

    /// What the endpoint in a slot is charged with: its incarnation, and flows counted from 2^31.
    pub(crate) fn held(&self, slot: u32) -> Result<u64> {
        Ok(self.quotas.get(&slot, 0)?[0])
    }

    /// Packets counted under a reason.
    pub(crate) fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Packets by reason.
    pub(crate) fn counts(&self) -> Result<Vec<u64>> {
        Reason::ALL
            .into_iter()
            .map(|reason| self.count(reason))
            .collect()
    }

    /// The port that the flow of an opener's tuple was given.
    pub(crate) fn port_of(&self, original: &Tuple<V4>) -> Option<u16> {
        let reference = self.index.get(&key(original), 0).ok()?;
        let index = u32::from_ne_bytes(reference[..4].try_into().ok()?);
        let record = self.flows.get(&index, 0).ok()?;
        Some(u16::from_be_bytes(
            record[REPLY_DPORT..REPLY_DPORT + 2].try_into().ok()?,
        ))
    }

    /// The hash that leads a packet with this tuple to its flow.
    pub(crate) fn lead(&self, tuple: &Tuple<V4>) -> Option<u32> {
        let reference = self.index.get(&key(tuple), 0).ok()?;
        let index = u32::from_ne_bytes(reference[..4].try_into().ok()?);
        let record = self.flows.get(&index, 0).ok()?;
        let answers = record[ORIGINAL..ORIGINAL + size_of::<Key>()] != key(tuple);
        Some(mark::lead(index, usize::from(answers), false))
    }

    /// What was told of flows since this was asked last, without times.
    pub(crate) fn told(&mut self) -> Vec<Vec<u8>> {
        let mut told = Vec::new();
        while let Some(event) = self.events.next() {
            told.push(event[..TIMELESS_EVENT].to_vec());
        }
        told
    }

    /// All keys and the records that they lead to, without times.
    pub(crate) fn state(&self) -> Result<BTreeMap<Key, (FlowRef, Vec<u8>)>> {
        let mut state = BTreeMap::new();
        for entry in &self.index {
            let (key, reference) = entry?;
            let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| reference[at + n]));
            let reference = FlowRef {
                index: word(0),
                id: word(4),
            };
            let record = self.flows.get(&reference.index, 0)?;
            state.insert(key, (reference, timeless(&record)));
        }
        Ok(state)
    }
}

/// A model's state in the same form.
pub(crate) fn state_of(host: &super::model::Host) -> BTreeMap<Key, (FlowRef, Vec<u8>)> {
    let entry = |(tuple, &reference): (&Tuple<V4>, &FlowRef)| {
        let record = bytes(&host.flows[reference.index as usize]);
        (key(tuple), (reference, timeless(&record)))
    };
    host.index.borrow().iter().map(entry).collect()
}

/// What a model told of flows, in the same form.
pub(crate) fn told_of(host: &super::model::Host) -> Vec<Vec<u8>> {
    let octets = |event: &Event<V4>| {
        let mut bytes = event.gate.get().to_ne_bytes().to_vec();
        for counter in event.packets.iter().chain(&event.bytes) {
            bytes.extend(counter.get().to_ne_bytes());
        }
        for tuple in &event.tuples {
            bytes.extend(key(&tuple.get()));
        }
        bytes.extend(event.index.get().to_ne_bytes());
        bytes.extend(event.news.get().to_ne_bytes());
        bytes
    };
    host.told.borrow().iter().map(octets).collect()
}

fn key(tuple: &Tuple<V4>) -> Key {
    let Tuple {
        src,
        dst,
        sport,
        dport,
        proto,
    } = *tuple;
    let ports = [sport.word().to_ne_bytes(), dport.word().to_ne_bytes()].concat();
    let words = [
        &src.octets(),
        &dst.octets(),
        &ports[..],
        &proto.to_ne_bytes(),
    ]
    .concat();
    words.try_into().unwrap_or_default()
}

fn timeless(record: &[u8]) -> Vec<u8> {
    [&record[..TIMES.start], &record[TIMES.end..]].concat()
}

/// A record as it lies in the map: field by field, there is no padding.
fn bytes(flow: &Flow<V4>) -> Vec<u8> {
    let mut bytes = flow.gate.get().to_ne_bytes().to_vec();
    for counter in flow.packets.iter().chain(&flow.bytes) {
        bytes.extend(counter.get().to_ne_bytes());
    }
    for tuple in &flow.tuples {
        bytes.extend(key(&tuple.get()));
    }
    for leg in &flow.legs {
        bytes.extend(leg.incarnation.get().to_ne_bytes());
        bytes.extend(leg.slot.get().to_ne_bytes());
        bytes.extend(leg.mtu.get().to_ne_bytes());
    }
    bytes.extend(flow.ifindex.get().to_ne_bytes());
    bytes.extend(flow.next_hop.get().octets());
    let words = [
        &flow.expires,
        &flow.seen,
        &flow.created,
        &flow.mapping_incarnation,
        &flow.policy,
    ];
    for word in words {
        bytes.extend(word.get().to_ne_bytes());
    }
    bytes.extend(windows(&flow.windows));
    for half in [&flow.mapping, &flow.address_delta, &flow.port_delta] {
        bytes.extend(half.get().to_ne_bytes());
    }
    bytes.extend(flow.uplink_mac.get());
    bytes
}

fn windows(windows: &Windows) -> Vec<u8> {
    let sides = windows.sides.each_ref();
    let words = sides.map(|side| [&side.end, &side.max_end, &side.max_win, &side.max_ack]);
    let words = words
        .into_iter()
        .flatten()
        .chain([&windows.last_end, &windows.last_ack]);
    let mut bytes: Vec<u8> = words.flat_map(|word| word.get().to_ne_bytes()).collect();
    bytes.extend(windows.last_win.get().to_ne_bytes());
    let octets = [&windows.last, &windows.noted];
    let sides = windows.scale.iter().chain(&windows.marks);
    bytes.extend(octets.into_iter().chain(sides).map(|octet| octet.get()));
    bytes
}

fn pinned<T: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str) -> Result<T> {
    let path = dir.join(name);
    let data = MapData::from_pin(&path).with_context(|| format!("no map {}", path.display()))?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}
