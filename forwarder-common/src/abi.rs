// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maps that the programs and the agent share: names, capacities, keys and values.
//!
//! No padding, no `bool`, `enum` or `Option`. Addresses and ports are in wire order; everything
//! else (device indexes, counters, ticks) is in host order. Maps are pinned under [`LAYOUT`], so no
//! program ever reads bytes of another layout.

mod config;
mod flow;
mod flow_state;
mod ipv6;
mod maps;
mod socket;
mod tracking;

use crate::family::{Addr, Be32, Be128, Family, V4};

pub use config::{
    AllowedKey, Device, Endpoint, IngressKey, LinkKey, MasqueradeKey, Network, PortKey, PortRange,
    Published, ServerKey, Settings, TrustKey, allowed, armed, device, ingress, network, others,
};
pub use flow::{
    Cursors, Flow, FlowRef, HOST, NextHop, OUTSIDE, Pending, PortAffinity, Quota, Tuple,
};
pub use flow_state::{Direction, End, FlowState, ORIGINAL, REPLY};
pub use ipv6::{
    AllowedKey6, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
};
pub use maps::{FamilyNames, MAPS, NO_PREALLOC, map_sizes, name};
pub use socket::{Peer, SocketKey};
pub use tracking::{DirectionState, TcpTracking, last, noted, side_flag};

/// The layout of everything below. It changes whenever a map's name, key, value or meaning changes.
pub const LAYOUT: u32 = 9;

/// Capacities that the object declares; the loader may override those of the flow tables.
pub mod capacity {
    /// Flows of one family, by default.
    pub const FLOWS: u32 = 262_144;
    /// One in this many of [`FLOWS`] may be unassured at the same time.
    pub const UNASSURED_SHARE: u32 = 4;
    /// One in this many of [`FLOWS`] may be opened by one container, by default. Half of the table
    /// is left for all others; a smaller share would be too little for a proxy, whose closed
    /// connections count for another two minutes.
    pub const QUOTA_SHARE: u32 = 2;
    /// How many flows one container may open per second, by default. The ring of unassured flows,
    /// which holds the handshakes of all containers, has room for three seconds of that.
    pub const FLOW_RATE: u32 = 20_000;
    /// Devices: outside devices, bridges and container veths.
    pub const DEVICES: u32 = 8_192;
    /// Docker networks.
    pub const NETWORKS: u32 = 1_024;
    /// The host's own addresses and address ranges.
    pub const HOST_ADDRESSES: u32 = 65_536;
    /// The host's own IPv6 addresses.
    pub const HOST_ADDRESSES6: u32 = 16_384;
    /// Endpoints: one per container and one per network.
    pub const ENDPOINTS: u32 = 16_384;
    /// Published ports.
    pub const PUBLISHED: u32 = 32_768;
    /// Published ports whose number on the host differs from that in the container.
    pub const SEEN_AS: u32 = 8_192;
    /// Ports published on IPv6 addresses; each has its own docker-proxy process.
    pub const PUBLISHED6: u32 = 8_192;
    /// Networks times the devices that they trust.
    pub const TRUSTED: u32 = 1_024;
    /// Ports that links open.
    pub const LINKS: u32 = 4_096;
    /// Address ranges in all lists of clients together.
    pub const INGRESS: u32 = 65_536;
    /// Address ranges that containers and networks may use as sources; each takes three entries.
    pub const ALLOWED_SOURCES: u32 = 16_384;
    /// Port affinities: a power of two.
    pub const AFFINITIES: u32 = 4_096;
    /// Entries of the flow cache: a power of two.
    pub const FLOW_CACHE: u32 = 65_536;
    /// Sockets of the host whose original destination is remembered; the least recently used is
    /// forgotten first.
    pub const SOCKETS: u32 = 32_768;
    /// Half of the ports of a protocol: an element of an array takes eight bytes.
    pub const BOUND: u32 = 1 << 15;
    /// Bytes of the ring that wakes the agent. The loader enlarges it to a page if pages are
    /// larger.
    pub const BINDS: u32 = 1 << 12;
    /// Bytes of the ring of events, each of which takes 8 bytes of overhead: about ten thousand
    /// events. A power of two.
    pub const EVENTS: u32 = 1 << 20;
    /// Bytes of the ring of dropped packets: about a hundred of them. A power of two.
    pub const DROPS: u32 = 1 << 14;
}

/// Calls the macro `$with` with the keys and values of the maps that the agent reads and writes, and
/// the sum of their fields' sizes: those that are common, and those of an address family `F`.
#[macro_export]
macro_rules! for_each_plain {
    ($with:ident) => {
        $with! {
            common {
                Be32 = 4;
                Be128 = 16;
                FlowRef = 8;
                Settings = 4 * 16 + 8;
                Device = 4 + 4 + 6 + 2 + 6 + 2 + 4;
                TrustKey = 8;
                Peer = 16 + 2 + 2;
                SocketKey = 8 + 20 + 4;
                HostAddressKey6 = 16 + 4;
                OwnerKey6 = 16 + 4;
                Endpoint6 = 16 + 6 + 2;
                PortKey6 = 16 + 2 + 2;
                Published6 = 4 * 3;
                IngressKey6 = 4 + 16;
                AllowedKey6 = 4 + 16;
            }
            family {
                Tuple<F> = 2 * size_of::<Addr<F>>() + 2 + 2 + 4;
                Network<F> = 4 + 4 + 2 * size_of::<Addr<F>>() + 4;
                Endpoint<F> = 4 * 4 + size_of::<Addr<F>>() + 12;
                PortKey<F> = size_of::<Addr<F>>() + 2 + 2;
                ServerKey<F> = 2 * size_of::<Addr<F>>() + 2 + 2;
                Published<F> = 4 + 4 + size_of::<Addr<F>>() + 2 + 2;
                LinkKey<F> = 2 * size_of::<Addr<F>>() + 2 + 2;
                IngressKey<F> = 4 + size_of::<Addr<F>>();
                AllowedKey<F> = 4 + size_of::<Addr<F>>();
                MasqueradeKey<F> = 4 + size_of::<Addr<F>>();
            }
        }
    };
}

macro_rules! has_no_padding {
    (
        common { $($common:ty = $common_size:expr;)+ }
        family { $($family:ty = $family_size:expr;)+ }
    ) => {
        /// No padding: each structure is exactly as large as the sum of its fields, so the agent and
        /// the kernel may read it as plain bytes.
        const _: () = {
            $(assert!(size_of::<$common>() == $common_size);)+
        };

        /// Asserts the same of the structures of an address family.
        pub const fn assert_no_padding<F: Family>() {
            $(assert!(size_of::<$family>() == $family_size);)+
        }
    };
}

for_each_plain!(has_no_padding);

const _: () = assert_no_padding::<V4>();

/// The same of what is shared in place, with cells.
const _: () = {
    assert!(size_of::<NextHop>() == 4 + 2 + 2);
    assert!(size_of::<TcpTracking>() == 4 * 8 + 2 * 4 + 2 + 2 + 4);
    assert!(size_of::<Flow<V4>>() == 8 + 16 + 16 + 32 + 16 + 7 * 4 + 48 + 3 * 2 + 6);
    assert!(size_of::<Pending>() == 8);
    assert!(size_of::<Cursors>() == 24);
    assert!(size_of::<Quota>() == 40);
    assert!(size_of::<PortAffinity<V4>>() == 12 + 16);
    assert!(capacity::ENDPOINTS < HOST && capacity::PUBLISHED <= u16::MAX as u32 + 1);
};
