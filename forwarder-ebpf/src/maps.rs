// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Declares the maps. `forwarder_common::abi` documents their meaning and their layout.

use aya_ebpf::macros::map;
use aya_ebpf::maps::xdp::DevMapHash;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf};
use forwarder_common::abi::{
    AllowedKey, AllowedKey6, Cursors, Device, Endpoint, Endpoint6, Flow, FlowRef, HostAddressKey6,
    IngressKey, IngressKey6, LinkKey, MasqueradeKey, Network, OwnerKey6, Peer, Pending,
    PortAffinity, PortKey, PortKey6, Published, Published6, Quota, ServerKey, Settings, SocketKey,
    TrustKey, Tuple, capacity,
};
use forwarder_common::clock::Ticks;
use forwarder_common::family::{Be32, Be128, V4};
use forwarder_common::meta::Side;
use forwarder_common::reason;
use forwarder_common::wire::parse::Packet;
use forwarder_common::wire::series::FragmentSeries;

/// A flow as an element of a map.
#[repr(transparent)]
pub struct Record(pub Flow<V4>);

// SAFETY: all CPUs share the elements of a map; `forwarder_common::conntrack::flow` says what makes that safe
// for a flow.
unsafe impl Sync for Record {}

/// A quota as an element of a map.
#[repr(transparent)]
pub struct Shares(pub Quota);

// SAFETY: all CPUs share the elements of a map, and change the words of this one only atomically:
// see `forwarder_common::conntrack::quota`.
unsafe impl Sync for Shares {}

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(reason::COUNT as u32, 0);
#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(capacity::DEVICES, 0);
#[map]
pub static XDP_DEVMAP: DevMapHash = DevMapHash::with_max_entries(capacity::DEVICES, 0);
#[map]
pub static NETWORKS: HashMap<u32, Network<V4>> = HashMap::with_max_entries(capacity::NETWORKS, 0);
#[map]
pub static SUBNETS: LpmTrie<Be32, u32> = LpmTrie::with_max_entries(capacity::NETWORKS, NO_PREALLOC);
#[map]
pub static HOST_ADDRESSES: LpmTrie<Be32, u32> =
    LpmTrie::with_max_entries(capacity::HOST_ADDRESSES, NO_PREALLOC);
#[map]
pub static MASQ_ADDRESSES: LpmTrie<MasqueradeKey<V4>, Be32> =
    LpmTrie::with_max_entries(capacity::HOST_ADDRESSES, NO_PREALLOC);
#[map]
pub static ENDPOINT_SLOTS: HashMap<Be32, u32> =
    HashMap::with_max_entries(capacity::ENDPOINTS, NO_PREALLOC);
#[map]
pub static ENDPOINTS: Array<Endpoint<V4>> = Array::with_max_entries(capacity::ENDPOINTS, 0);
#[map]
pub static PUBLISHED: HashMap<PortKey<V4>, Published<V4>> =
    HashMap::with_max_entries(capacity::PUBLISHED, NO_PREALLOC);
#[map]
pub static SEEN_AS: HashMap<ServerKey<V4>, u32> =
    HashMap::with_max_entries(capacity::SEEN_AS, NO_PREALLOC);
#[map]
pub static TRUSTED: HashMap<TrustKey, u32> = HashMap::with_max_entries(capacity::TRUSTED, 0);
#[map]
pub static LINKS: HashMap<LinkKey<V4>, u32> = HashMap::with_max_entries(capacity::LINKS, 0);
#[map]
pub static INGRESS: LpmTrie<IngressKey<V4>, u32> =
    LpmTrie::with_max_entries(capacity::INGRESS, NO_PREALLOC);
#[map]
pub static ALLOWED_SOURCES: LpmTrie<AllowedKey<V4>, u32> =
    LpmTrie::with_max_entries(capacity::ALLOWED_SOURCES, NO_PREALLOC);
#[map]
pub static MAPPINGS: Array<u32> = Array::with_max_entries(capacity::PUBLISHED, 0);
#[map]
pub static FLOW_INDEX: HashMap<Tuple<V4>, FlowRef> =
    HashMap::with_max_entries(capacity::FLOWS * 2, 0);
#[map]
pub static FLOWS: Array<Record> = Array::with_max_entries(capacity::FLOWS, 0);
#[map]
pub static FREE: Queue<u32> = Queue::with_max_entries(capacity::FLOWS, 0);
#[map]
pub static UNASSURED_RING: Array<Pending> =
    Array::with_max_entries(capacity::FLOWS / capacity::UNASSURED_SHARE, 0);
#[map]
pub static CURSORS: Array<Cursors> = Array::with_max_entries(1, 0);
#[map]
pub static QUOTAS: Array<Shares> = Array::with_max_entries(capacity::ENDPOINTS, 0);
#[map]
pub static AFFINITIES: Array<PortAffinity<V4>> = Array::with_max_entries(capacity::AFFINITIES, 0);
#[map]
pub static FLOW_CACHE: Array<FlowRef> = Array::with_max_entries(capacity::FLOW_CACHE, 0);
#[map]
pub static SOCKETS: LruHashMap<SocketKey, Peer> =
    LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map]
pub static BOUND: Array<[Ticks; 2]> = Array::with_max_entries(capacity::BOUND, 0);
#[map]
pub static BINDS: RingBuf = RingBuf::with_byte_size(capacity::BINDS, 0);
#[map]
pub static WATCH: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENTS, 0);
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static HOST_ADDRESSES6: HashMap<HostAddressKey6, u32> =
    HashMap::with_max_entries(capacity::HOST_ADDRESSES6, NO_PREALLOC);
#[map]
pub static SUBNETS6: LpmTrie<Be128, u32> =
    LpmTrie::with_max_entries(capacity::NETWORKS, NO_PREALLOC);
#[map]
pub static OWNERS6: HashMap<OwnerKey6, u32> =
    HashMap::with_max_entries(capacity::ENDPOINTS * 2, NO_PREALLOC);
#[map]
pub static ENDPOINTS6: HashMap<u32, Endpoint6> =
    HashMap::with_max_entries(capacity::ENDPOINTS, NO_PREALLOC);
#[map]
pub static PUBLISHED6: HashMap<PortKey6, Published6> =
    HashMap::with_max_entries(capacity::PUBLISHED6, NO_PREALLOC);
#[map]
pub static INGRESS6: LpmTrie<IngressKey6, u32> =
    LpmTrie::with_max_entries(capacity::INGRESS, NO_PREALLOC);
#[map]
pub static ALLOWED6: LpmTrie<AllowedKey6, u32> =
    LpmTrie::with_max_entries(capacity::ALLOWED_SOURCES, NO_PREALLOC);

/// The part of a packet's context that crosses the call of a global function.
#[repr(C)]
pub struct Passing {
    /// The parsed packet.
    pub packet: Packet<V4>,
    /// On which side the hook is attached.
    pub side: Side,
    /// Offset of the network header.
    pub l3: u8,
}

/// The packet that is being processed on this CPU. It is in a map and not on the stack because the
/// stack is small, and because the verifier tracks the values on the stack separately on every
/// path.
#[map]
pub static PASSING: PerCpuArray<Passing> = PerCpuArray::with_max_entries(1, 0);

/// The datagram whose fragments return from the defragmentation loopback, on this CPU.
#[map]
pub static SERIES: PerCpuArray<FragmentSeries<V4>> = PerCpuArray::with_max_entries(1, 0);

/// `BPF_F_NO_PREALLOC`: required for a trie; and maps that only the agent fills need not take
/// memory before.
const NO_PREALLOC: u32 = 1;
