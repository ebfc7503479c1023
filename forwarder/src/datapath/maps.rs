// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed handles of the pinned maps: the one place where bytes of a map become values.
#![expect(
    unsafe_code,
    reason = "vouches that the ABI's structures are plain bytes"
)]

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::Pod;
use aya::maps::{Array, DevMapHash, HashMap, LpmTrie, Map, MapData, PerCpuArray, Queue, RingBuf};
use forwarder_common::abi::{
    AllowedKey, AllowedKey6, Device, Endpoint, Endpoint6, Flow, FlowRef, HostAddressKey6,
    IngressKey, IngressKey6, LinkKey, MasqueradeKey, Network, OwnerKey6, Peer, PortKey, PortKey6,
    Published, Published6, Quota, ServerKey, Settings, SocketKey, TrustKey, Tuple, capacity, name,
};
use forwarder_common::event::Event;
use forwarder_common::family::{Be32, Be128, V4};
use forwarder_common::reason::{self, Reason};
use forwarder_common::{for_each_map, for_each_plain};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A structure of the ABI as a map's key or value.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Wire<T>(pub(super) T);

macro_rules! plain {
    ($($type:ty = $size:expr;)+) => {
        $(
            // SAFETY: `forwarder_common::abi` asserts that it has no padding, and it consists of
            // integers and arrays of integers.
            unsafe impl Pod for Wire<$type> {}

            impl Entry for $type {
                type Bytes = Wire<$type>;
            }
        )+
    };
}

for_each_plain!(plain);

/// A key or a value of a map, and the bytes as which aya reads and writes it.
pub(super) trait Entry {
    /// The bytes.
    type Bytes: Pod;
}

macro_rules! integers {
    ($($type:ty)+) => {
        $(
            impl Entry for $type {
                type Bytes = $type;
            }
        )+
    };
}

integers!(u32 u64 Record Shares);

/// The words of a [`Quota`], which has cells.
type Shares = [u64; size_of::<Quota>() / 8];

/// The bytes of a flow record. A `Flow` has cells, which are not `Copy`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Record([u64; size_of::<Flow<V4>>() / 8]);

// SAFETY: it is an array of integers.
unsafe impl Pod for Record {}

impl Record {
    /// Returns the flow.
    pub(super) fn flow(self) -> Flow<V4> {
        // SAFETY: `Flow` has the size of this array and a smaller alignment, no padding, and any
        // bytes are valid: integers in cells.
        unsafe { std::mem::transmute::<[u64; size_of::<Flow<V4>>() / 8], Flow<V4>>(self.0) }
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

/// A map that the agent holds, of the declared kind, key and value.
macro_rules! handle {
    (PerCpuArray, $value:ty) => { PerCpuArray<MapData, <$value as Entry>::Bytes> };
    (Array, $value:ty) => { Array<MapData, <$value as Entry>::Bytes> };
    (Queue, $value:ty) => { Queue<MapData, <$value as Entry>::Bytes> };
    (DevMapHash,) => { DevMapHash<MapData> };
    (LpmTrie, $key:ty, $value:ty) => {
        LpmTrie<MapData, <$key as Entry>::Bytes, <$value as Entry>::Bytes>
    };
    ($hash:ident, $key:ty, $value:ty) => {
        HashMap<MapData, <$key as Entry>::Bytes, <$value as Entry>::Bytes>
    };
}

macro_rules! declare {
    (
        held { $(
            $(#[$doc:meta])+
            $handle:ident: $name:ident = $kind:ident<$($type:ty),*>(|$flows:pat_param| $size:expr, $flags:expr);
        )+ }
        own { $($own:tt)+ }
    ) => {
        /// The maps, opened by their pins.
        pub(super) struct Maps {
            $($(#[$doc])+ pub(super) $handle: handle!($kind, $($type),*),)+
        }

        impl Maps {
            /// Opens the maps that are pinned in `dir`.
            pub(super) fn open(dir: &Path) -> Result<Self> {
                Ok(Self {
                    $($handle: pinned(dir, name::$name)?,)+
                })
            }

            /// Returns how many entries each map with keys has, and how many it may have in a table
            /// of this many flows.
            pub(super) fn fills(&self, flows: u32) -> Vec<(&'static str, u32, usize)> {
                let fills = [$((
                    name::$name,
                    { let $flows = flows; $size },
                    self.$handle.fill(),
                )),+];
                fills
                    .into_iter()
                    .filter_map(|(name, size, fill)| Some((name, size, fill?)))
                    .collect()
            }
        }
    };
}

for_each_map!(declare);

/// How many entries a map has; `None` if all of its entries always exist.
trait Fill {
    fn fill(&self) -> Option<usize> {
        None
    }
}

impl<V: Pod> Fill for Array<MapData, V> {}
impl<V: Pod> Fill for PerCpuArray<MapData, V> {}
impl<V: Pod> Fill for Queue<MapData, V> {}

impl<K: Pod, V: Pod> Fill for HashMap<MapData, K, V> {
    fn fill(&self) -> Option<usize> {
        Some(self.keys().count())
    }
}

impl<K: Pod, V: Pod> Fill for LpmTrie<MapData, K, V> {
    fn fill(&self) -> Option<usize> {
        Some(self.keys().count())
    }
}

impl Fill for DevMapHash<MapData> {
    fn fill(&self) -> Option<usize> {
        Some(self.keys().count())
    }
}

impl Maps {
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

    /// Returns the number of packets with a reason, over all CPUs.
    pub(super) fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0)?.iter().sum())
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
