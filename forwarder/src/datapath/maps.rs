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
    Published, Published6, Quota, ServerKey, Settings, SocketKey, TrustKey, Tuple,
    assert_no_padding, capacity, name,
};
use forwarder_common::dropped::DroppedPacket;
use forwarder_common::event::Event;
use forwarder_common::family::{Addr, Be32, Be128, Family, V4};
use forwarder_common::reason::{self, Reason};
use forwarder_common::{for_each_map, for_each_plain};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::families::MapFamily;

/// A structure that is plain bytes.
///
/// # Safety
/// It has no padding, and any bytes are valid.
pub unsafe trait Plain: Copy + 'static {}

/// A structure of the ABI as a map's key or value.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Wire<T>(pub(super) T);

// SAFETY: `Plain` says that it has no padding and any bytes are valid.
unsafe impl<T: Plain> Pod for Wire<T> {}

macro_rules! plain {
    (
        common { $($common:ty = $common_size:expr;)+ }
        family { $($family:ty = $family_size:expr;)+ }
    ) => {
        $(
            // SAFETY: `forwarder_common::abi` asserts that it has no padding, and it consists of
            // integers and arrays of integers.
            unsafe impl Plain for $common {}
        )+
        $(
            // SAFETY: as above; `FamilyMaps::open` asserts it for each family.
            unsafe impl<F: MapFamily> Plain for $family {}
        )+
    };
}

for_each_plain!(plain);

/// A key or a value of a map, and the bytes as which aya reads and writes it.
pub(super) trait Entry {
    /// The bytes.
    type Bytes: Pod;
}

impl<T: Plain> Entry for T {
    type Bytes = Wire<T>;
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

integers!(u32 u64 Shares);

/// The words of a [`Quota`], which has cells.
type Shares = [u64; size_of::<Quota>() / 8];

/// The bytes of a flow record. A `Flow` has cells, which are not `Copy`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Record<F: MapFamily>(F::Words);

// SAFETY: it is as plain as its words.
unsafe impl<F: MapFamily> Pod for Record<F> {}

impl<F: MapFamily> Entry for Record<F> {
    type Bytes = Self;
}

impl<F: MapFamily> Record<F> {
    /// Returns the flow.
    pub(super) fn flow(self) -> Flow<F> {
        const { assert!(size_of::<Flow<F>>() == size_of::<F::Words>()) };
        // SAFETY: `Flow` has the size of these words and no padding, and any bytes are valid:
        // integers in cells.
        unsafe { std::mem::transmute_copy(&self.0) }
    }
}

/// Opens a pinned ring for asynchronous waiting. Needs a tokio runtime.
pub(super) fn ring(dir: &Path, name: &str) -> Result<AsyncFd<RingBuf<MapData>>> {
    let ring = pinned(dir, name)?;
    // SAFETY: the ring owns its file, which stays the same and open as long as the ring exists.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .context("cannot wait for events")
}

/// Decodes an entry of the ring of dropped packets.
pub(super) fn dropped(bytes: &[u8]) -> Option<DroppedPacket> {
    // SAFETY: there are as many bytes as a packet has, and any bytes are valid: integers without
    // padding.
    (bytes.len() == size_of::<DroppedPacket>())
        .then(|| unsafe { bytes.as_ptr().cast::<DroppedPacket>().read_unaligned() })
}

/// Decodes an entry of the ring as an event; none if it has the length of another family's event.
pub(super) fn event<F: Family>(bytes: &[u8]) -> Option<Event<F>> {
    // SAFETY: there are as many bytes as an event has, and any bytes are valid: integers without
    // padding.
    (bytes.len() == size_of::<Event<F>>())
        .then(|| unsafe { bytes.as_ptr().cast::<Event<F>>().read_unaligned() })
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
        common { $(
            $(#[$common_doc:meta])+
            $common:ident: $common_name:ident = $common_kind:ident<$($common_type:ty),*>
                (|$common_flows:pat_param| $common_size:expr, $common_flags:expr);
        )+ }
        family { $(
            $(#[$family_doc:meta])+
            $family:ident: $family_name:ident = $family_kind:ident<$($family_type:ty),*>
                (|$family_flows:pat_param| $family_size:expr, $family_flags:expr);
        )+ }
        own { $($own:tt)+ }
    ) => {
        /// The maps, opened by their pins.
        pub struct Maps {
            $($(#[$common_doc])+ pub(super) $common: handle!($common_kind, $($common_type),*),)+
            /// The maps of IPv4.
            pub(super) v4: FamilyMaps<V4>,
        }

        /// The maps of one address family.
        pub struct FamilyMaps<F: MapFamily> {
            $($(#[$family_doc])+ pub(super) $family: handle!($family_kind, $($family_type),*),)+
        }

        impl Maps {
            /// Opens the maps that are pinned in `dir`.
            pub(super) fn open(dir: &Path) -> Result<Self> {
                Ok(Self {
                    $($common: pinned(dir, name::$common_name)?,)+
                    v4: FamilyMaps::open(dir)?,
                })
            }

            /// Returns how full the maps with keys are, those of the families omitted.
            pub(super) fn common_fills(&self, flows: u32) -> Vec<MapFill> {
                let fills = [$(self.$common.fill(
                    name::$common_name,
                    { let $common_flows = flows; $common_size },
                )),+];
                fills.into_iter().flatten().collect()
            }
        }

        impl<F: MapFamily> FamilyMaps<F> {
            fn open(dir: &Path) -> Result<Self> {
                const { assert_no_padding::<F>() };
                Ok(Self {
                    $($family: pinned(dir, F::NAMES.$family)?,)+
                })
            }

            /// Returns how full the maps with keys are.
            pub(super) fn key_fills(&self, flows: u32) -> Vec<MapFill> {
                let fills = [$(self.$family.fill(
                    F::NAMES.$family,
                    { let $family_flows = flows; $family_size },
                )),+];
                fills.into_iter().flatten().collect()
            }
        }
    };
}

for_each_map!(declare);

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MapFill {
    /// The map's name.
    pub name: &'static str,
    /// The maximum number of entries.
    pub size: u32,
    /// The present number of entries.
    pub fill: u32,
}

/// How full a map is.
trait Fill {
    /// Returns how many entries the map has; `None` if all of its entries always exist.
    fn count(&self) -> Option<usize> {
        None
    }

    fn fill(&self, name: &'static str, size: u32) -> Option<MapFill> {
        let fill = self.count()? as u32;
        Some(MapFill { name, size, fill })
    }
}

impl<V: Pod> Fill for Array<MapData, V> {}
impl<V: Pod> Fill for PerCpuArray<MapData, V> {}
impl<V: Pod> Fill for Queue<MapData, V> {}

impl<K: Pod, V: Pod> Fill for HashMap<MapData, K, V> {
    fn count(&self) -> Option<usize> {
        Some(self.keys().count())
    }
}

impl<K: Pod, V: Pod> Fill for LpmTrie<MapData, K, V> {
    fn count(&self) -> Option<usize> {
        Some(self.keys().count())
    }
}

impl Fill for DevMapHash<MapData> {
    fn count(&self) -> Option<usize> {
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

    /// Initialises new maps. The settings record when the initialisation is complete.
    pub(super) fn fill(&mut self, flows: u32) -> Result<()> {
        if self.fits(flows)? {
            return Ok(());
        }
        let settings = self.settings()?;
        self.free_records(flows)?;
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

impl<F: MapFamily> FamilyMaps<F> {
    /// Makes every flow record free. Records that an earlier, killed attempt pushed are removed
    /// first.
    pub(super) fn free_records(&mut self, flows: u32) -> Result<()> {
        while self.free.pop(0).is_ok() {}
        for index in 0..flows {
            self.free
                .push(index, 0)
                .context("cannot fill the list of free flow records")?;
        }
        Ok(())
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
