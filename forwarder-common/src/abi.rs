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
mod socket;
mod tracking;

use crate::family::V4;

pub use config::{
    AllowedKey, Device, Endpoint, IngressKey, LinkKey, MasqueradeKey, Network, PortKey, PortRange,
    Published, ServerKey, Settings, TrustKey, allowed, device, ingress, network, others,
};
pub use flow::{
    Cursors, Flow, FlowRef, HOST, NextHop, OUTSIDE, Pending, PortAffinity, Quota, Tuple,
};
pub use flow_state::{Direction, End, FlowState, ORIGINAL, REPLY};
pub use ipv6::{
    AllowedKey6, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
};
pub use socket::{Peer, SocketKey};
pub use tracking::{DirectionState, TcpTracking, last, noted, side_flag};

/// The layout of everything below. It changes whenever a map's name, key, value or meaning changes.
pub const LAYOUT: u32 = 6;

/// Names of the maps as the programs declare them.
pub mod name {
    /// `Array<Settings>` with one element.
    pub const SETTINGS: &str = "SETTINGS";
    /// `PerCpuArray<u64>`: packets per [`Reason`](crate::reason::Reason).
    pub const REASONS: &str = "REASONS";
    /// `HashMap<u32, Device>` by device index.
    pub const DEVICES: &str = "DEVICES";
    /// `DevMapHash` by device index: the devices that XDP may redirect to.
    pub const XDP_DEVMAP: &str = "XDP_DEVMAP";
    /// `HashMap<u32, Network<V4>>` by the bridge's device index.
    pub const NETWORKS: &str = "NETWORKS";
    /// `LpmTrie<Addr, u32>`: subnet to its bridge's device index.
    pub const SUBNETS: &str = "SUBNETS";
    /// `LpmTrie<Addr, u32>`: the host's own addresses.
    pub const HOST_ADDRESSES: &str = "HOST_ADDRESSES";
    /// `LpmTrie<MasqueradeKey, Addr>`: masquerade address by device and next hop.
    pub const MASQ_ADDRESSES: &str = "MASQ_ADDRESSES";
    /// `HashMap<Addr, u32>`: container address to endpoint slot.
    pub const ENDPOINT_SLOTS: &str = "ENDPOINT_SLOTS";
    /// `Array<Endpoint<V4>>` by slot.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `HashMap<PortKey<V4>, Published<V4>>`: published ports by the address and port that a client
    /// connects to; for containers that allow direct access, also by the container's own address
    /// and port.
    pub const PUBLISHED: &str = "PUBLISHED";
    /// `HashMap<ServerKey<V4>, u32>`: container port to the host port under which it is published,
    /// if the two numbers differ. Host order.
    pub const SEEN_AS: &str = "SEEN_AS";
    /// `Array<u32>`: the generation of a port mapping's slot.
    pub const MAPPINGS: &str = "MAPPINGS";
    /// `HashMap<TrustKey, u32>`: devices from which a network's published ports may be reached
    /// directly.
    pub const TRUSTED: &str = "TRUSTED";
    /// `HashMap<LinkKey<V4>, u32>`: ports that links open between containers that otherwise may not
    /// reach each other.
    pub const LINKS: &str = "LINKS";
    /// `LpmTrie<IngressKey<V4>, u32>`: clients by list, and whether they are allowed.
    pub const INGRESS: &str = "INGRESS";
    /// `LpmTrie<AllowedKey<V4>, u32>`: sources that containers may use besides their own addresses.
    pub const ALLOWED_SOURCES: &str = "ALLOWED_SOURCES";
    /// `HashMap<Tuple<V4>, FlowRef>`: both tuples of each flow.
    pub const FLOW_INDEX: &str = "FLOW_INDEX";
    /// `Array<Flow<V4>>` by index.
    pub const FLOWS: &str = "FLOWS";
    /// `Queue<u32>`: indexes of free records.
    pub const FREE: &str = "FREE";
    /// `Array<Pending>`: the ring of unassured flows.
    pub const UNASSURED_RING: &str = "UNASSURED_RING";
    /// `Array<Cursors>` with one element.
    pub const CURSORS: &str = "CURSORS";
    /// `Array<PortAffinity<V4>>`: the masquerade port that a source already has.
    pub const AFFINITIES: &str = "AFFINITIES";
    /// `Array<FlowRef>` by [`Tuple::place`](super::Tuple::place): recently found flows.
    pub const FLOW_CACHE: &str = "FLOW_CACHE";
    /// `Array<Quota>` by endpoint slot.
    pub const QUOTAS: &str = "QUOTAS";
    /// `LruHashMap<SocketKey, Peer>`: the original destination of sockets that were redirected to a
    /// container.
    pub const SOCKETS: &str = "SOCKETS";
    /// `Array<[Ticks; 2]>` by UDP port, two ports per element: when a privileged process of the
    /// host last bound the port by number; 0 for never.
    pub const BOUND: &str = "BOUND";
    /// `RingBuf` that wakes the agent when `BOUND` changes.
    pub const BINDS: &str = "BINDS";
    /// `Array<u64>` with one element: until when somebody watches flows, in nanoseconds of the
    /// coarse monotonic clock; 0 for nobody. After that time, events count as lost.
    pub const WATCH: &str = "WATCH";
    /// `RingBuf` of [`Event`](crate::event::Event)s, written while somebody watches.
    pub const EVENTS: &str = "EVENTS";
    /// `HashMap<HostAddressKey6, u32>`: the host's own IPv6 addresses.
    pub const HOST_ADDRESSES6: &str = "HOST_ADDRESSES6";
    /// `LpmTrie<Be128, u32>`: IPv6 subnet to its bridge's device index.
    pub const SUBNETS6: &str = "SUBNETS6";
    /// `HashMap<OwnerKey6, u32>`: a container's IPv6 address to the host's end of its veth; 0 if
    /// the veth is not known.
    pub const OWNERS6: &str = "OWNERS6";
    /// `HashMap<u32, Endpoint6>` by the host's end of the veth.
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    /// `HashMap<PortKey6, Published6>`: ports published on IPv6, by the address and port that a
    /// client connects to.
    pub const PUBLISHED6: &str = "PUBLISHED6";
    /// `LpmTrie<IngressKey6, u32>`: IPv6 clients by list, and whether they are allowed.
    pub const INGRESS6: &str = "INGRESS6";
    /// `LpmTrie<AllowedKey6, u32>`: IPv6 sources that containers may use besides their own
    /// addresses.
    pub const ALLOWED6: &str = "ALLOWED6";
    /// `PerCpuArray<u64>` with one element: events that were lost because the ring was full or the
    /// watcher did not read.
    pub const LOST: &str = "LOST";
}

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
}

/// No padding: each structure is exactly as large as the sum of its fields, so the agent and the
/// kernel may read it as plain bytes.
const _: () = {
    assert!(size_of::<Tuple<V4>>() == 4 + 4 + 2 + 2 + 4);
    assert!(size_of::<FlowRef>() == 8);
    assert!(size_of::<NextHop>() == 4 + 2 + 2);
    assert!(size_of::<TcpTracking>() == 4 * 8 + 2 * 4 + 2 + 2 + 4);
    assert!(size_of::<Flow<V4>>() == 8 + 16 + 16 + 32 + 16 + 7 * 4 + 48 + 3 * 2 + 6);
    assert!(capacity::ENDPOINTS < HOST && capacity::PUBLISHED <= u16::MAX as u32 + 1);
    assert!(size_of::<Settings>() == 4 * 16 + 8);
    assert!(size_of::<Device>() == 4 + 4 + 6 + 2 + 6 + 2 + 4);
    assert!(size_of::<Network<V4>>() == 20);
    assert!(size_of::<Endpoint<V4>>() == 4 * 5 + 12);
    assert!(size_of::<PortKey<V4>>() == 8);
    assert!(size_of::<ServerKey<V4>>() == 12);
    assert!(size_of::<Published<V4>>() == 16);
    assert!(size_of::<TrustKey>() == 8);
    assert!(size_of::<LinkKey<V4>>() == 12);
    assert!(size_of::<IngressKey<V4>>() == 8);
    assert!(size_of::<AllowedKey<V4>>() == 8);
    assert!(size_of::<MasqueradeKey<V4>>() == 8);
    assert!(size_of::<Pending>() == 8);
    assert!(size_of::<Cursors>() == 24);
    assert!(size_of::<Quota>() == 40);
    assert!(size_of::<PortAffinity<V4>>() == 12 + 16);
    assert!(size_of::<Peer>() == 16 + 2 + 2);
    assert!(size_of::<SocketKey>() == 8 + 20 + 4);
    assert!(size_of::<HostAddressKey6>() == 16 + 4);
    assert!(size_of::<OwnerKey6>() == 16 + 4);
    assert!(size_of::<Endpoint6>() == 16 + 6 + 2);
    assert!(size_of::<PortKey6>() == 16 + 2 + 2);
    assert!(size_of::<Published6>() == 4 * 3);
    assert!(size_of::<IngressKey6>() == 4 + 16);
    assert!(size_of::<AllowedKey6>() == 4 + 16);
};
