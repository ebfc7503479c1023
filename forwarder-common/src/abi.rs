// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maps that the programs and the agent share: names, capacities, keys and values.
//!
//! No padding, no `bool`, `enum` or `Option`. Addresses and ports are in wire order; everything
//! else (device indexes, counters, ticks) is in host order. Maps are pinned under [`LAYOUT`], so no
//! program ever reads bytes of another layout.

use core::cell::Cell;

use crate::family::{Address as _, Be16, Be128, Family, V4, Wide};
use crate::timeouts::Ticks;

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

/// Endpoint slot 0: everything outside.
pub const OUTSIDE: u32 = 0;

/// The slot that stands for the host itself. It has no endpoint: its packets go to and come from
/// the host's stack.
pub const HOST: u32 = u16::MAX as u32;

/// The addresses, ports and protocol that the packets of one direction carry (a 5-tuple).
///
/// The identifier of an ICMP query is `sport` in the request and `dport` in the reply. The other
/// port is the request's type, or 0 for echo.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IP protocol number, host order.
    pub proto: u32,
}

impl<F: Family> Tuple<F> {
    /// The tuple of an answer.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
        }
    }

    /// The tuple's place in the flow cache. Two tuples that share a place cost each other a lookup
    /// in the flow index, nothing more, so the hash has to be cheap and may be predictable.
    #[inline(always)]
    #[must_use]
    pub fn place(&self) -> u32 {
        let ports = self.sport.word() as u32 | (self.dport.word() as u32) << 16;
        let ends = self.src.mix() ^ self.dst.mix().rotate_left(16);
        let mixed = (ends ^ ports ^ self.proto).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::FLOW_CACHE.ilog2())
    }
}

/// A flow record together with its generation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowRef {
    /// Index into the array of records.
    pub index: u32,
    /// The record's generation when the key was inserted.
    pub id: u32,
}

/// Where the packets of one direction go. At most one of a flow's two next hops is outside; its
/// device and gateway are stored in the flow.
#[repr(C)]
#[derive(Debug, Default)]
pub struct NextHop {
    /// The endpoint's generation when the flow was created. Outside: the settings' route generation
    /// at the last route lookup; 0 for never.
    pub generation: Cell<u32>,
    /// The endpoint's slot, [`OUTSIDE`] or [`HOST`].
    pub slot: Cell<u16>,
    /// Outside: the route's MTU in bytes, network header included.
    pub mtu: Cell<u16>,
}

impl NextHop {
    /// The endpoint's slot, [`OUTSIDE`] or [`HOST`].
    #[inline(always)]
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot.get() as u32
    }
}

/// What one side of a TCP connection has sent: nf_conntrack's `ip_ct_tcp_state`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DirectionState {
    /// The highest sequence number sent, plus one (`td_end`).
    pub end: Cell<u32>,
    /// The highest sequence number that the other side has allowed, plus one (`td_maxend`).
    pub max_end: Cell<u32>,
    /// The largest window announced, scaled (`td_maxwin`); 0 if nothing was sent yet.
    pub max_win: Cell<u32>,
    /// The highest acknowledgement number sent (`td_maxack`).
    pub max_ack: Cell<u32>,
}

/// The sequence tracking of a TCP connection: nf_conntrack's `ip_ct_tcp`, by the direction of the
/// segments from which it is learned. See [`window`](crate::window).
#[repr(C)]
#[derive(Debug, Default)]
pub struct TcpTracking {
    /// The state of each direction.
    pub sides: [DirectionState; 2],
    /// End sequence number of the last pure ACK, or of the last segment that passed untracked
    /// (`last_end`).
    pub last_end: Cell<u32>,
    /// Acknowledgement number of that segment (`last_ack`).
    pub last_ack: Cell<u32>,
    /// Announced window of that segment (`last_win`).
    pub last_win: Cell<u16>,
    /// Kind and direction of the last segment, and how often the same ACK was repeated
    /// (`last_index`, `last_dir`, `retrans`).
    pub last: Cell<u8>,
    /// What was recorded of a SYN that passed untracked (`last_wscale`, `last_flags`).
    pub noted: Cell<u8>,
    /// The window scale of each side (`td_scale`).
    pub scale: [Cell<u8>; 2],
    /// Bits of [`window::mark`](crate::window::mark).
    pub marks: [Cell<u8>; 2],
}

/// A flow: both directions of one connection, as one unit.
#[repr(C)]
#[derive(Debug)]
pub struct Flow<F: Family> {
    /// Generation, phase and state in one word, changed by compare-and-swap only: see
    /// [`FlowState`](crate::flow::FlowState).
    pub flow_state: Cell<u64>,
    /// Packets by direction.
    pub packets: [Cell<u64>; 2],
    /// Bytes by direction, network header included.
    pub bytes: [Cell<u64>; 2],
    /// The tuples of the originator's packets and of the answers, both as they arrive at the
    /// forwarder. A packet of direction `d` leaves with the reverse of `tuples[1 - d]`.
    pub tuples: [Cell<Tuple<F>>; 2],
    /// The next hop of each direction.
    pub next_hops: [NextHop; 2],
    /// The outgoing device of the direction whose next hop is outside.
    pub ifindex: Cell<u32>,
    /// The gateway of the direction whose next hop is outside.
    pub next_hop: Cell<F::Addr>,
    /// When the flow expires unless another packet arrives.
    pub expires: Cell<Ticks>,
    /// When the last packet arrived.
    pub seen: Cell<Ticks>,
    /// When the flow was created.
    pub created: Cell<Ticks>,
    /// The generation of the port mapping when the flow was created.
    pub mapping_generation: Cell<u32>,
    /// The policy generation of the settings under which the flow was last allowed.
    pub policy: Cell<u32>,
    /// TCP sequence tracking. For other protocols, whatever the record's previous flow left behind.
    pub windows: TcpTracking,
    /// The port mapping's slot in `MAPPINGS`, or 0.
    pub mapping: Cell<u16>,
    /// The checksum delta of the addresses, for the originator's packets.
    pub address_delta: Cell<u16>,
    /// The checksum delta of the ports, for the originator's packets.
    pub port_delta: Cell<u16>,
    /// The destination MAC address of frames from outside: XDP compares it.
    pub uplink_mac: Cell<[u8; 6]>,
}

impl<F: Family> Flow<F> {
    /// The port mapping's slot in `MAPPINGS`, or 0.
    #[inline(always)]
    #[must_use]
    pub fn mapping(&self) -> u32 {
        self.mapping.get() as u32
    }
}

/// The agent's settings for all programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Incremented whenever a route, an address or a device changes; never 0 once the agent has
    /// run.
    pub route_generation: u32,
    /// When the agent last reported to be alive, in ticks.
    pub heartbeat: Ticks,
    /// The number of places in the ring of unassured flows.
    pub ring: u32,
    /// The number of flow records.
    pub flows: u32,
    /// 1 if XDP may forward TCP too.
    pub xdp_tcp: u32,
    /// The policy generation: changes with the lists of clients and the published ports, and when a
    /// service of the host binds a UDP port. A flow that was allowed under another generation is
    /// checked again.
    pub policy: u32,
    /// How many flows an endpoint may have open at the same time; 0 for no limit.
    pub flow_quota: u32,
    /// How many flows an endpoint may open per second; 0 for no limit.
    pub flow_rate: u32,
    /// The defragmentation loopback device; 0 if fragments are not reassembled.
    pub defrag_loopback: u32,
    /// 1 if only a SYN opens a TCP flow (`nf_conntrack_tcp_loose=0`).
    pub tcp_strict: u32,
    /// The smallest MTU that any route has of its own; 0 if none has. The kernel decides whether a
    /// larger packet is too big.
    pub route_mtu: u32,
    /// 1 once all programs are attached and all maps filled. Before that, during an agent's first
    /// start, every program passes every packet unchanged.
    pub armed: u32,
    /// Kernel features set up by others that only the kernel path respects: bits of [`others`].
    pub others: u32,
    /// Ports that only root may bind, reserved for the translation of containers' flows.
    pub reserved_ports: PortRange,
    /// The first port that may be bound without privilege (`net.ipv4.ip_unprivileged_port_start`).
    pub unprivileged_port_start: u32,
    /// 1 if a port published on an IPv6 address of the host has a list of clients.
    pub lists6: u32,
    /// The cookie of the network namespace whose sockets are redirected to containers; 0 for none,
    /// until the agent is armed.
    pub netns_cookie: u64,
}

/// An inclusive range of ports; empty if the first is 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether a port is in the range.
    #[inline(always)]
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first != 0 && self.first <= port && port <= self.last
    }
}

/// What the forwarder knows about a device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// One of [`device`].
    pub kind: u32,
    /// The bridge's device index: a bridge's own, a veth's master, else 0.
    pub bridge: u32,
    /// The MAC address of frames for this host on this device: the device's own, or a veth's
    /// bridge's. All zero without Ethernet.
    pub mac: [u8; 6],
    /// 1 if frames have an Ethernet header.
    pub ethernet: u16,
    /// Container veth: the source MAC address that the container's frames must have. All zero if it
    /// is not known or not checked.
    pub station: [u8; 6],
    /// Zero.
    pub reserved: u16,
    /// Bits of [`device::flag`].
    pub flags: u32,
}

/// Bits of [`Settings::others`].
pub mod others {
    /// Some devices have [`device::flag`](super::device::flag) bits set.
    pub const SHAPED: u32 = 1;
    /// There are IPsec policies that may apply to containers' packets: all packets take the kernel
    /// path, and no translated packet leaves for an address in the list [`PROTECTED`].
    pub const IPSEC: u32 = 2;
    /// The list of destinations for which an IPsec policy demands protection of the host's own
    /// packets.
    pub const PROTECTED: u32 = u32::MAX;
}

/// Kinds of [`Device`].
pub mod device {
    /// An uplink, a VPN or a foreign bridge: everything that is neither loopback nor Docker's.
    pub const OUTSIDE: u32 = 1;
    /// `docker0` or a `br-*` of Docker's.
    pub const BRIDGE: u32 = 2;
    /// The host's end of a container's veth whose endpoint is not known yet.
    pub const VETH: u32 = 3;
    /// The host's end of a container's veth whose endpoint is known: nobody else sends there.
    pub const NAMED_VETH: u32 = 4;

    /// Bits of [`Device::flags`](super::Device::flags).
    pub mod flag {
        /// Others shape or filter packets that arrive on the device: they take the kernel path.
        pub const SHAPED_IN: u32 = 1;
        /// Others shape or filter packets that leave on the device: they take the kernel path.
        pub const SHAPED_OUT: u32 = 2;
        /// Veth: frames may also carry a virtual router's MAC address (RFC 9568).
        pub const VIRTUAL_ROUTER: u32 = 4;
        /// Outside device: the route back to a new flow's source must lead to this device
        /// (`rp_filter=1`).
        pub const REVERSE_STRICT: u32 = 8;
        /// Outside device: there must be a route back to a new flow's source (`rp_filter=2`).
        pub const REVERSE_LOOSE: u32 = 16;
    }
    /// A port of a network's bridge that leads to no container: a tap, a NIC, a foreign veth. Hosts
    /// behind it may have any address but a container's.
    pub const PORT: u32 = 5;
    /// A known device that is neither Docker's nor hooked: the forwarder does not interfere with
    /// what others forward from or to it. Packets from or to a device without an entry are refused.
    pub const OTHER: u32 = 6;
}

/// A Docker bridge network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Network<F: Family> {
    /// Bits of [`network`].
    pub flags: u32,
    /// The slot of the network's default endpoint, which represents containers that are not known
    /// yet.
    pub default_endpoint: u32,
    /// The bridge's own address: the source of hairpin packets.
    pub gateway: F::Addr,
    /// The masquerade address of the network, or [`ANY`](crate::family::Address::ANY) for that of
    /// the outgoing device.
    pub source: F::Addr,
    /// The list of clients that may reach the network's containers, or 0 for all.
    pub policy: u32,
}

/// Flags of [`Network`].
pub mod network {
    /// Leaving packets are masqueraded.
    pub const MASQUERADE: u32 = 1;
    /// Internal network: no packet leaves or enters.
    pub const INTERNAL: u32 = 2;
    /// Containers of the network may not reach each other.
    pub const ICC_DISABLED: u32 = 4;
    /// Published ports and ICMP are reachable directly, by the container's own address (gateway
    /// mode `routed`).
    pub const ROUTED: u32 = 8;
    /// All ports are reachable directly (gateway mode `nat-unprotected`).
    pub const UNPROTECTED: u32 = 16;
    /// Published ports are reachable directly from everywhere (`--allow-direct-routing`).
    pub const DIRECT: u32 = 32;
    /// Host and containers may not reach each other either (gateway mode `isolated`).
    pub const ISOLATED: u32 = 64;
    /// The network has IPv6.
    pub const IPV6: u32 = 128;
    /// Containers may send frames with VLAN tags, of any EtherType and to a bridge's group address,
    /// and may be DHCP servers.
    pub const OTHER_FRAMES: u32 = 256;
}

/// A container's endpoint in a network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint<F: Family> {
    /// Distinguishes this endpoint from previous ones in the same slot; 0 for an empty slot.
    pub generation: u32,
    /// The host's end of the veth, or 0 if only the bridge reaches the container.
    pub ifindex: u32,
    /// The bridge.
    pub bridge: u32,
    /// MTU of the container's device, in bytes, network header included.
    pub mtu: u32,
    /// The address; [`ANY`](crate::family::Address::ANY) for a network's default endpoint.
    pub addr: F::Addr,
    /// The container's MAC address, then its bridge's: an Ethernet header's first 12 bytes.
    pub macs: [u8; 12],
}

/// Key of a published port: the address and port that a client connects to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortKey<F: Family> {
    /// The host's address, or any.
    pub addr: F::Addr,
    /// The host's port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// Key of the host ports by which containers' own connections are seen: a published port by the
/// container's side.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServerKey<F: Family> {
    /// The host's address at which the port is published, or any.
    pub at: F::Addr,
    /// The container's address.
    pub addr: F::Addr,
    /// The container's port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// The target of a published port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published<F: Family> {
    /// The port mapping's slot.
    pub mapping: u32,
    /// The list of clients that may use the port, or 0 for all.
    pub policy: u32,
    /// The container's address.
    pub addr: F::Addr,
    /// The container's port.
    pub port: Be16,
    /// Zero.
    pub reserved: u16,
}

/// A device that a network trusts: Docker's `trusted_host_interfaces`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TrustKey {
    /// The network's bridge.
    pub bridge: u32,
    /// The device.
    pub ifindex: u32,
}

/// A port that a link opens (Docker's `--link`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LinkKey<F: Family> {
    /// The container that may connect.
    pub parent: F::Addr,
    /// The container that is connected to.
    pub child: F::Addr,
    /// The destination port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// Key of the lists of clients: an exact list, then the client's prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct IngressKey<F: Family> {
    /// The list; 0 for none.
    pub list: u32,
    /// The client.
    pub client: F::Addr,
}

/// Values of the lists of clients.
pub mod ingress {
    /// The client is allowed.
    pub const ALLOW: u32 = 1;
    /// The client is refused.
    pub const DENY: u32 = 2;
}

/// Key of the sources that containers may use besides their own: an exact device, then the source's
/// prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct AllowedKey<F: Family> {
    /// A container's veth, a network's bridge, or [`allowed::ROUTES`].
    pub device: u32,
    /// The source.
    pub source: F::Addr,
}

/// Keys and values of the sources that containers may use.
pub mod allowed {
    /// As the key's device: the bridge behind which the source is reachable; the value is the
    /// bridge's device index.
    pub const ROUTES: u32 = 0;
    /// As a veth's value: its container may use the source. As a bridge's value: some container of
    /// its network may.
    pub const ONE: u32 = 1;
    /// As a bridge's value: every container of its network may use the source.
    pub const EACH: u32 = 2;
}

/// Key of the masquerade addresses: an exact device, then the next hop's prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MasqueradeKey<F: Family> {
    /// Device index, host order.
    pub ifindex: u32,
    /// The next hop.
    pub next_hop: F::Addr,
}

/// A place in the ring of unassured flows, in one word. From the low end: 24 bits of the record's
/// index, 24 of its generation, 16 of the originator's slot. There are never more than 2^24 flows,
/// and no record is reused 2^24 times before the ring comes around.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending(pub u64);

impl Pending {
    const PART: u32 = (1 << 24) - 1;

    /// A flow and the slot of the endpoint that opened it, [`OUTSIDE`] or [`HOST`].
    #[inline(always)]
    #[must_use]
    pub const fn new(flow: FlowRef, originator: u32) -> Self {
        let (index, id) = (flow.index & Self::PART, flow.id & Self::PART);
        Self(index as u64 | (id as u64) << 24 | (originator as u64) << 48)
    }

    /// The record's index.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 as u32 & Self::PART
    }

    /// Whether the place names this generation of the record.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, id: u32) -> bool {
        (self.0 >> 24) as u32 & Self::PART == id & Self::PART
    }

    /// The slot of the endpoint that opened the flow.
    #[inline(always)]
    #[must_use]
    pub const fn originator(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// The cursors of the ring and of the sweep, and how full the table is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    /// How many flows have taken a place in the ring of unassured flows.
    pub ring: u64,
    /// The next record that the sweep inspects.
    pub sweep: u64,
    /// How many records are not free.
    pub used: u64,
}

/// What an endpoint uses of its limits: see [`quota`](crate::quota). Each word but the last has two
/// halves, of which the low one counts from 2^31 unless stated otherwise. For the outside only the
/// last word is used.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Quota {
    /// The endpoint's generation, and the number of live flows that the endpoint opened.
    pub held: Cell<u64>,
    /// Token bucket of new flows: when it was last filled, and its level.
    pub opens: Cell<u64>,
    /// Token bucket of ICMP errors to the endpoint: when it was last filled, and its level.
    pub answers: Cell<u64>,
    /// Token bucket of bytes in incomplete datagrams: when it was last filled, and its level,
    /// counted from 0.
    pub pieces: Cell<u64>,
    /// How many places of the ring of unassured flows belong to flows that the endpoint opened.
    pub places: Cell<u64>,
}

/// The masquerade port that a source got because its own port was taken. It is valid as long as a
/// flow that uses it is live.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortAffinity<F: Family> {
    /// The container's address.
    pub src: F::Addr,
    /// The container's port.
    pub sport: Be16,
    /// The masquerade port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u32,
    /// Flows that use the port: the oldest known one that is live, and the newest.
    pub holders: [FlowRef; 2],
}

impl<F: Family> PortAffinity<F> {
    /// Whether the entry is this source's.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, src: F::Addr, sport: Be16, proto: u32) -> bool {
        self.src == src && self.sport == sport && self.proto == proto
    }

    /// The place of a source's port affinity. It does not use the low bits of the product: an
    /// address's last bytes, in which containers differ, never reach them.
    #[inline(always)]
    #[must_use]
    pub fn place(src: F::Addr, sport: Be16, proto: u32) -> u32 {
        let port = sport.word() as u32 | proto << 16;
        let mixed = (src.mix() ^ port).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::AFFINITIES.ilog2())
    }
}

/// One end of a connection, as a socket names it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Peer {
    /// The address; an IPv4 address is mapped (`::ffff:0:0/96`).
    pub addr: Wide,
    /// The port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// A socket that was redirected to a container. An unconnected socket may have several peers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SocketKey {
    /// The socket's cookie, which the kernel never reuses.
    pub cookie: u64,
    /// The container that the socket was redirected to.
    pub peer: Peer,
    /// Zero.
    pub reserved: u32,
}

/// One of the host's own IPv6 addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct HostAddressKey6 {
    /// The address.
    pub addr: Be128,
    /// The device of a link-local address; else 0.
    pub ifindex: u32,
}

/// An IPv6 address of a container.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OwnerKey6 {
    /// The address: the one that Docker assigned, or the link-local one that follows from the MAC
    /// address.
    pub addr: Be128,
    /// The bridge on which the address is valid.
    pub bridge: u32,
}

/// The IPv6 endpoint behind a veth.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint6 {
    /// The address that Docker assigned, or [`Be128::ANY`].
    pub addr: Be128,
    /// The container's MAC address, or zeros if it is not known.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: u16,
}

/// Key of a port published on an IPv6 address of the host: the address and port that a client
/// connects to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortKey6 {
    /// The host's address, or any.
    pub addr: Be128,
    /// The host's port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// Which clients may use a port published on IPv6. docker-proxy serves the port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published6 {
    /// The list of clients that may use the port, or 0 for all.
    pub policy: u32,
    /// The bridges of the networks that the port may lead to, whose lists are checked too; 0 for
    /// none.
    pub bridges: [u32; 2],
}

/// Key of the lists of IPv6 clients: as [`IngressKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IngressKey6 {
    /// The list; 0 for none.
    pub list: u32,
    /// The client.
    pub client: Be128,
}

/// Key of the IPv6 sources that containers may use besides their own: as [`AllowedKey`], without
/// [`allowed::ROUTES`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AllowedKey6 {
    /// A container's veth, or a network's bridge.
    pub device: u32,
    /// The source.
    pub source: Be128,
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
