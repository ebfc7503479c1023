// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maps, each declared once: handle, name, type, size, flags.
//!
//! From the list follow the names, the sizes that the loader sets, the programs' statics
//! (`forwarder-ebpf/src/maps.rs`) and the agent's handles with how full they are
//! (`forwarder/src/datapath/maps.rs`).

use super::capacity;
use crate::reason;

/// `BPF_F_NO_PREALLOC`: required for a trie; and maps that only the agent fills need not take memory
/// before.
pub const NO_PREALLOC: u32 = 1;

/// Calls the macro `$with` with all maps. `common` and `family` are those that the agent opens, the
/// latter once for each address family; `own` are those of the programs alone, or that a reader
/// opens for itself. Types name the family `F`. The size is that for a number of flows.
#[macro_export]
macro_rules! for_each_map {
    ($with:ident) => {
        $with! {
            common {
                /// What the agent tells all programs.
                settings: SETTINGS = Array<Settings>(|_| 1, 0);
                /// Packets per reason.
                reasons: REASONS = PerCpuArray<u64>(|_| reason::COUNT as u32, 0);
                /// Devices by index.
                devices: DEVICES = HashMap<u32, Device>(|_| capacity::DEVICES, 0);
                /// By device index: the devices that XDP may redirect to.
                xdp_devmap: XDP_DEVMAP = DevMapHash<>(|_| capacity::DEVICES, 0);
                /// Devices from which a network's published ports may be reached directly.
                trusted: TRUSTED = HashMap<TrustKey, u32>(|_| capacity::TRUSTED, 0);
                /// The original destination of sockets that were redirected to a container.
                sockets: SOCKETS = LruHashMap<SocketKey, Peer>(|_| capacity::SOCKETS, 0);
                /// The host's own IPv6 addresses.
                host_addresses6: HOST_ADDRESSES6 = HashMap<HostAddressKey6, u32>
                    (|_| capacity::HOST_ADDRESSES6, NO_PREALLOC);
                /// IPv6 subnet to its bridge's device index.
                subnets6: SUBNETS6 = LpmTrie<Be128, u32>(|_| capacity::NETWORKS, NO_PREALLOC);
                /// A container's IPv6 address to the host's end of its veth; 0 if the veth is not
                /// known.
                owners6: OWNERS6 = HashMap<OwnerKey6, u32>
                    (|_| capacity::ENDPOINTS * 2, NO_PREALLOC);
                /// IPv6 endpoints by the host's end of the veth.
                endpoints6: ENDPOINTS6 = HashMap<u32, Endpoint6>
                    (|_| capacity::ENDPOINTS, NO_PREALLOC);
                /// Ports published on IPv6, by the address and port that a client connects to.
                published6: PUBLISHED6 = HashMap<PortKey6, Published6>
                    (|_| capacity::PUBLISHED6, NO_PREALLOC);
                /// IPv6 clients by list, and whether they are allowed.
                ingress6: INGRESS6 = LpmTrie<IngressKey6, u32>(|_| capacity::INGRESS, NO_PREALLOC);
                /// IPv6 sources that containers may use besides their own addresses.
                allowed6: ALLOWED6 = LpmTrie<AllowedKey6, u32>
                    (|_| capacity::ALLOWED_SOURCES, NO_PREALLOC);
            }
            family {
                /// Docker networks by the bridge's device index.
                networks: NETWORKS = HashMap<u32, Network<F>>(|_| capacity::NETWORKS, 0);
                /// Subnet to its bridge's device index.
                subnets: SUBNETS = LpmTrie<Addr<F>, u32>(|_| capacity::NETWORKS, NO_PREALLOC);
                /// The host's own addresses.
                host_addresses: HOST_ADDRESSES = LpmTrie<Addr<F>, u32>
                    (|_| capacity::HOST_ADDRESSES, NO_PREALLOC);
                /// Masquerade address by device and next hop.
                masq_addresses: MASQ_ADDRESSES = LpmTrie<MasqueradeKey<F>, Addr<F>>
                    (|_| capacity::HOST_ADDRESSES, NO_PREALLOC);
                /// Container address to endpoint slot.
                endpoint_slots: ENDPOINT_SLOTS = HashMap<Addr<F>, u32>
                    (|_| capacity::ENDPOINTS, NO_PREALLOC);
                /// Endpoints by slot.
                endpoints: ENDPOINTS = Array<Endpoint<F>>(|_| capacity::ENDPOINTS, 0);
                /// Published ports by the address and port that a client connects to; for
                /// containers that allow direct access, also by the container's own address and
                /// port.
                published: PUBLISHED = HashMap<PortKey<F>, Published<F>>
                    (|_| capacity::PUBLISHED, NO_PREALLOC);
                /// Container port to the host port under which it is published, if the two
                /// numbers differ. Host order.
                seen_as: SEEN_AS = HashMap<ServerKey<F>, u32>(|_| capacity::SEEN_AS, NO_PREALLOC);
                /// Ports that links open between containers that otherwise may not reach each
                /// other.
                links: LINKS = HashMap<LinkKey<F>, u32>(|_| capacity::LINKS, 0);
                /// Clients by list, and whether they are allowed.
                ingress: INGRESS = LpmTrie<IngressKey<F>, u32>(|_| capacity::INGRESS, NO_PREALLOC);
                /// Sources that containers may use besides their own addresses.
                allowed_sources: ALLOWED_SOURCES = LpmTrie<AllowedKey<F>, u32>
                    (|_| capacity::ALLOWED_SOURCES, NO_PREALLOC);
                /// The generation of a port mapping's slot.
                mappings: MAPPINGS = Array<u32>(|_| capacity::PUBLISHED, 0);
                /// Both tuples of each flow.
                flow_index: FLOW_INDEX = HashMap<Tuple<F>, FlowRef>(|flows| flows * 2, 0);
                /// Flow records by index.
                flows: FLOWS = Array<Record<F>>(|flows| flows, 0);
                /// Indexes of free records.
                free: FREE = Queue<u32>(|flows| flows, 0);
                /// What endpoints use of their limits, by slot.
                quotas: QUOTAS = Array<Shares>(|_| capacity::ENDPOINTS, 0);
            }
            own {
                /// The ring of unassured flows.
                unassured_ring: UNASSURED_RING = Array<Pending>
                    (|flows| flows / capacity::UNASSURED_SHARE, 0);
                /// The cursors of the ring and of the sweep.
                cursors: CURSORS = Array<Cursors>(|_| 1, 0);
                /// The masquerade port that a source already has.
                affinities: AFFINITIES = Array<PortAffinity<F>>(|_| capacity::AFFINITIES, 0);
                /// Recently found flows, by the tuple's place.
                flow_cache: FLOW_CACHE = Array<FlowRef>(|_| capacity::FLOW_CACHE, 0);
                /// By UDP port, two ports per element: when a privileged process of the host last
                /// bound the port by number; 0 for never.
                bound: BOUND = Array<[Ticks; 2]>(|_| capacity::BOUND, 0);
                /// Wakes the agent when `BOUND` changes.
                binds: BINDS = RingBuf<>(|_| capacity::BINDS, 0);
                /// Until when somebody watches flows, in nanoseconds of the coarse monotonic
                /// clock; 0 for nobody. After that time, events count as lost.
                watch: WATCH = Array<u64>(|_| 1, 0);
                /// Flow events, written while somebody watches.
                events: EVENTS = RingBuf<>(|_| capacity::EVENTS, 0);
                /// Events that were lost because the ring was full or the watcher did not read.
                lost: LOST = PerCpuArray<u64>(|_| 1, 0);
                /// Until when somebody watches dropped packets, as in `WATCH`.
                drops_watch: DROPS_WATCH = Array<u64>(|_| 1, 0);
                /// Dropped packets, written while somebody watches.
                drops: DROPS = RingBuf<>(|_| capacity::DROPS, 0);
            }
        }
    };
}

macro_rules! declare {
    (
        common { $($common:tt)+ }
        family { $($family:tt)+ }
        own { $($own:tt)+ }
    ) => {
        declare! { @all $($common)+ $($family)+ $($own)+ }
        declare! { @family $($family)+ }
    };
    (@all $(
        $(#[$doc:meta])+
        $handle:ident: $name:ident = $kind:ident<$($type:ty),*>(|$flows:pat_param| $size:expr, $flags:expr);
    )+) => {
        /// Names of the maps as the programs declare them.
        pub mod name {
            $($(#[$doc])+ pub const $name: &str = stringify!($name);)+
        }

        /// How many maps there are.
        pub const MAPS: usize = [$(name::$name),+].len();

        /// All maps and their sizes, in entries or bytes as the map's type demands, for a table of
        /// this many flows.
        #[must_use]
        pub const fn map_sizes(flows: u32) -> [(&'static str, u32); MAPS] {
            [$((name::$name, { let $flows = flows; $size })),+]
        }
    };
    (@family $(
        $(#[$doc:meta])+
        $handle:ident: $name:ident = $kind:ident<$($type:ty),*>(|$flows:pat_param| $size:expr, $flags:expr);
    )+) => {
        /// The names of one family's maps, by handle.
        pub struct FamilyNames {
            $($(#[$doc])+ pub $handle: &'static str,)+
        }

        impl FamilyNames {
            /// The names of IPv4's maps.
            pub const V4: Self = Self {
                $($handle: name::$name,)+
            };
        }
    };
}

for_each_map!(declare);
