// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The statics of the maps that `forwarder_common::abi` lists, and of those that only the programs
//! know.

use aya_ebpf::macros::map;
use aya_ebpf::maps::xdp::DevMapHash;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf};
use forwarder_common::abi::{
    AllowedKey, AllowedKey6, Cursors, Device, Endpoint, Endpoint6, Flow, FlowRef, HostAddressKey6,
    IngressKey, IngressKey6, LinkKey, MasqueradeKey, NO_PREALLOC, Network, OwnerKey6, Peer,
    Pending, PortAffinity, PortKey, PortKey6, Published, Published6, Quota, ServerKey, Settings,
    SocketKey, TrustKey, Tuple, capacity,
};
use forwarder_common::clock::Ticks;
use forwarder_common::family::{Addr, Be128, Family, V4};
use forwarder_common::for_each_map;
use forwarder_common::meta::Side;
use forwarder_common::reason;
use forwarder_common::wire::parse::Packet;
use forwarder_common::wire::series::FragmentSeries;

/// The address family that the programs forward.
type F = V4;

/// A flow as an element of a map.
#[repr(transparent)]
pub struct Record<F: Family>(pub Flow<F>);

// SAFETY: all CPUs share the elements of a map; `forwarder_common::conntrack::flow` says what makes
// that safe for a flow.
unsafe impl<F: Family> Sync for Record<F> {}

/// A quota as an element of a map.
#[repr(transparent)]
pub struct Shares(pub Quota);

// SAFETY: all CPUs share the elements of a map, and change the words of this one only atomically:
// see `forwarder_common::conntrack::quota`.
unsafe impl Sync for Shares {}

macro_rules! declare {
    (
        common { $($common:tt)+ }
        family { $($family:tt)+ }
        own { $($own:tt)+ }
    ) => {
        declare! { @ $($common)+ $($family)+ $($own)+ }
    };
    (@ $(
        $(#[$doc:meta])+
        $handle:ident: $name:ident = $kind:ident<$($type:ty),*>(|$flows:pat_param| $size:expr, $flags:expr);
    )+) => {
        $(
            $(#[$doc])+
            #[map]
            pub static $name: $kind<$($type),*> = {
                const fn entries($flows: u32) -> u32 {
                    $size
                }
                new!($kind, entries(capacity::FLOWS), $flags)
            };
        )+
    };
}

macro_rules! new {
    (RingBuf, $size:expr, $flags:expr) => {
        RingBuf::with_byte_size($size, $flags)
    };
    ($kind:ident, $size:expr, $flags:expr) => {
        $kind::with_max_entries($size, $flags)
    };
}

for_each_map!(declare);

/// The part of a packet's context that crosses the call of a global function.
#[repr(C)]
pub struct Passing {
    /// The parsed packet.
    pub packet: Packet<F>,
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
pub static SERIES: PerCpuArray<FragmentSeries<F>> = PerCpuArray::with_max_entries(1, 0);
