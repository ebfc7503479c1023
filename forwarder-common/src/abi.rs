// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs and the agent share: the maps, their names, sizes, keys and values.
//!
//! No padding, no `bool`, `enum` or `Option`; addresses and ports in wire order, everything else
//! (device indexes, counters, ticks) in the machine's. [`LAYOUT`] names the layout; pins live
//! under it, so that no program ever reads another layout's bytes.

use core::cell::Cell;

use crate::family::{Address as _, Be16, Be128, Family, V4, Wide};
use crate::timeouts::Ticks;

/// The layout of everything below. Changed whenever a map's name, key, value or meaning changes.
pub const LAYOUT: u32 = 6;

/// Names of maps as the programs declare them.
pub mod name {
    /// `Array<Settings>` of one.
    pub const SETTINGS: &str = "SETTINGS";
    /// `PerCpuArray<u64>`, one per [`Reason`](crate::reason::Reason).
    pub const REASONS: &str = "REASONS";
    /// `HashMap<u32, Device>` by device index.
    pub const DEVICES: &str = "DEVICES";
    /// `DevMapHash` by device index: where XDP may redirect to.
    pub const XDP_DEVMAP: &str = "XDP_DEVMAP";
    /// `HashMap<u32, Network<V4>>` by the bridge's device index.
    pub const NETWORKS: &str = "NETWORKS";
    /// `LpmTrie<Addr, u32>`: subnet to its bridge's device index.
    pub const SUBNETS: &str = "SUBNETS";
    /// `LpmTrie<Addr, u32>`: what is the host's own.
    pub const HOST_ADDRESSES: &str = "HOST_ADDRESSES";
    /// `LpmTrie<MasqueradeKey, Addr>`: masquerade address by device and next hop.
    pub const MASQ_ADDRESSES: &str = "MASQ_ADDRESSES";
    /// `HashMap<Addr, u32>`: container address to endpoint slot.
    pub const ENDPOINT_SLOTS: &str = "ENDPOINT_SLOTS";
    /// `Array<Endpoint<V4>>` by slot.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `HashMap<PortKey<V4>, Published<V4>>`: by what a client asks for; where a container may be
    /// asked straight, also by its own address and port.
    pub const PUBLISHED: &str = "PUBLISHED";
    /// `HashMap<ServerKey<V4>, u32>`: the host's port by which a container is seen that publishes its
    /// own under another number, in the machine's order.
    pub const SEEN_AS: &str = "SEEN_AS";
    /// `Array<u32>`: a mapping slot's generation.
    pub const MAPPINGS: &str = "MAPPINGS";
    /// `HashMap<TrustKey, u32>`: devices from which a network's published ports may be asked straight.
    pub const TRUSTED: &str = "TRUSTED";
    /// `HashMap<LinkKey<V4>, u32>`: what links open between containers that do not reach each other.
    pub const LINKS: &str = "LINKS";
    /// `LpmTrie<IngressKey<V4>, u32>`: clients by list, and whether they are let in.
    pub const INGRESS: &str = "INGRESS";
    /// `LpmTrie<AllowedKey<V4>, u32>`: sources beside their own that containers may use.
    pub const ALLOWED_SOURCES: &str = "ALLOWED_SOURCES";
    /// `HashMap<Tuple<V4>, FlowRef>`: both tuples of a flow.
    pub const FLOW_INDEX: &str = "FLOW_INDEX";
    /// `Array<Flow<V4>>` by index.
    pub const FLOWS: &str = "FLOWS";
    /// `Queue<u32>`: indexes of free records.
    pub const FREE: &str = "FREE";
    /// `Array<Pending>`: the ring of flows that are not assured.
    pub const UNASSURED_RING: &str = "UNASSURED_RING";
    /// `Array<Cursors>` of one.
    pub const CURSORS: &str = "CURSORS";
    /// `Array<PortAffinity<V4>>`: the port that a source already has.
    pub const AFFINITIES: &str = "AFFINITIES";
    /// `Array<FlowRef>` by [`Tuple::place`](super::Tuple::place): flows looked up lately.
    pub const FLOW_CACHE: &str = "FLOW_CACHE";
    /// `Array<Quota>` by endpoint slot.
    pub const QUOTAS: &str = "QUOTAS";
    /// `LruHashMap<SocketKey, Peer>`: what sockets asked for that were pointed at a container.
    pub const SOCKETS: &str = "SOCKETS";
    /// `Array<[Ticks; 2]>` by UDP port, two ports an element: when a privileged process of the host last
    /// asked for it by number; 0 is never.
    pub const BOUND: &str = "BOUND";
    /// `RingBuf` that wakes the agent when something is written to `BOUND`.
    pub const BINDS: &str = "BINDS";
    /// `Array<u64>` of one: until when somebody watches flows, in nanoseconds of the coarse
    /// monotonic clock; 0 is nobody. After that time, what would have been told is counted as lost.
    pub const WATCH: &str = "WATCH";
    /// `RingBuf` of [`Event`](crate::event::Event)s, written while somebody watches.
    pub const EVENTS: &str = "EVENTS";
    /// `HashMap<HostAddressKey6, u32>`: the host's own IPv6 addresses.
    pub const HOST_ADDRESSES6: &str = "HOST_ADDRESSES6";
    /// `LpmTrie<Be128, u32>`: IPv6 subnet to its bridge's device index.
    pub const SUBNETS6: &str = "SUBNETS6";
    /// `HashMap<OwnerKey6, u32>`: a container's IPv6 address to the host's end of its veth, 0 where
    /// that is not known.
    pub const OWNERS6: &str = "OWNERS6";
    /// `HashMap<u32, Endpoint6>` by the host's end of the veth.
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    /// `HashMap<PortKey6, Published6>`: by what a client asks for.
    pub const PUBLISHED6: &str = "PUBLISHED6";
    /// `LpmTrie<IngressKey6, u32>`: IPv6 clients by list, and whether they are let in.
    pub const INGRESS6: &str = "INGRESS6";
    /// `LpmTrie<AllowedKey6, u32>`: IPv6 sources beside their own that containers may use.
    pub const ALLOWED6: &str = "ALLOWED6";
    /// `PerCpuArray<u64>` of one: events that were not told, for want of room or of a watcher who is
    /// awake.
    pub const LOST: &str = "LOST";
}

/// Capacities that the object declares; those of the flow tables are the loader's to override.
pub mod capacity {
    /// Flows of one family, by default.
    pub const FLOWS: u32 = 262_144;
    /// Of [`FLOWS`], how many may be unassured at once: one in this many.
    pub const UNASSURED_SHARE: u32 = 4;
    /// Of [`FLOWS`], how many one container may have opened, by default: one in this many. Half of
    /// the table is left to all others; less would be short for a proxy, whose closed connections
    /// count for two minutes more.
    pub const QUOTA_SHARE: u32 = 2;
    /// How many flows one container may open in a second, by default: the ring of unassured flows,
    /// in which its neighbours' handshakes stand, holds three seconds of that.
    pub const FLOW_RATE: u32 = 20_000;
    /// Devices: outside devices, bridges and container veths.
    pub const DEVICES: u32 = 8_192;
    /// Docker networks.
    pub const NETWORKS: u32 = 1_024;
    /// The host's own addresses and ranges.
    pub const HOST_ADDRESSES: u32 = 65_536;
    /// The host's own IPv6 addresses.
    pub const HOST_ADDRESSES6: u32 = 16_384;
    /// Endpoints: containers' and one per network.
    pub const ENDPOINTS: u32 = 16_384;
    /// Published ports.
    pub const PUBLISHED: u32 = 32_768;
    /// Published ports that have another number on the host than in the container.
    pub const SEEN_AS: u32 = 8_192;
    /// Ports published on IPv6 addresses: each is a process, docker-proxy's.
    pub const PUBLISHED6: u32 = 8_192;
    /// Networks times the devices that they trust.
    pub const TRUSTED: u32 = 1_024;
    /// Ports that links open.
    pub const LINKS: u32 = 4_096;
    /// Address ranges in all lists of clients together.
    pub const INGRESS: u32 = 65_536;
    /// Address ranges that containers and networks may use as sources, three entries each.
    pub const ALLOWED_SOURCES: u32 = 16_384;
    /// Remembered ports of sources whose own was taken: a power of two.
    pub const AFFINITIES: u32 = 4_096;
    /// Flows looked up lately: a power of two.
    pub const FLOW_CACHE: u32 = 65_536;
    /// Sockets of the host's whose peer is remembered: the oldest is forgotten first.
    pub const SOCKETS: u32 = 32_768;
    /// Half of a protocol's ports: an element of an array takes eight bytes.
    pub const BOUND: u32 = 1 << 15;
    /// Bytes of the ring that wakes the agent. The loader makes a page of it where that is larger.
    pub const BINDS: u32 = 1 << 12;
    /// Bytes of the ring of events, each of which takes 8 more than its own: about ten thousand.
    /// A power of two.
    pub const EVENTS: u32 = 1 << 20;
}

/// Endpoint slot 0: everything outside.
pub const OUTSIDE: u32 = 0;

/// The slot that stands for the host itself: no endpoint, its packets go to and come from the stack.
pub const HOST: u32 = u16::MAX as u32;

/// A conversation's end-to-end names as one direction's packets carry them.
///
/// An ICMP query has its identifier in `sport` of the request and in `dport` of the reply; the other
/// port is the request's type, and zero for echo.
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

    /// The tuple's place among the flows looked up lately. Whoever shares it with another costs
    /// both a look-up in the index, no more: cheap counts, not whether it can be guessed.
    #[inline(always)]
    #[must_use]
    pub fn place(&self) -> u32 {
        let ports = self.sport.word() as u32 | (self.dport.word() as u32) << 16;
        let ends = self.src.mix() ^ self.dst.mix().rotate_left(16);
        let mixed = (ends ^ ports ^ self.proto).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::FLOW_CACHE.ilog2())
    }
}

/// A flow's record and the life of it that a key belongs to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowRef {
    /// Index into the array of records.
    pub index: u32,
    /// The record's id when the key was made.
    pub id: u32,
}

/// Where one direction's packets go. At most one of a flow's legs is outside: what is known of the
/// way there beside this stands in the flow.
#[repr(C)]
#[derive(Debug, Default)]
pub struct NextHop {
    /// The endpoint's generation when the flow was made. Outside: the settings' route generation
    /// that the way was looked up in; 0 is never.
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

/// What one side of a TCP connection has said: nf_conntrack's `ip_ct_tcp_state`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DirectionState {
    /// The highest sequence number sent, plus one (`td_end`).
    pub end: Cell<u32>,
    /// The highest sequence number that the other side has allowed, plus one (`td_maxend`).
    pub max_end: Cell<u32>,
    /// The largest window announced, scaled (`td_maxwin`); 0: nothing was sent yet.
    pub max_win: Cell<u32>,
    /// The highest acknowledgement sent (`td_maxack`).
    pub max_ack: Cell<u32>,
}

/// What is known of a TCP connection's sequence numbers: nf_conntrack's `ip_ct_tcp`, by the
/// direction of the segments that it is learned from. See [`window`](crate::window).
#[repr(C)]
#[derive(Debug, Default)]
pub struct TcpTracking {
    /// What each side has said.
    pub sides: [DirectionState; 2],
    /// Of the last pure ACK, or of a segment let through without being followed: its end.
    pub last_end: Cell<u32>,
    /// Of the same: its acknowledgement.
    pub last_ack: Cell<u32>,
    /// Of the same: its window as announced.
    pub last_win: Cell<u16>,
    /// The last segment's kind and direction, and how often it was seen again.
    pub last: Cell<u8>,
    /// What was noted of a SYN that was let through without being followed.
    pub noted: Cell<u8>,
    /// How far announced windows are shifted (`td_scale`).
    pub scale: [Cell<u8>; 2],
    /// Bits of [`window::mark`](crate::window::mark).
    pub marks: [Cell<u8>; 2],
}

/// A flow: both directions of one conversation, as one unit.
#[repr(C)]
#[derive(Debug)]
pub struct Flow<F: Family> {
    /// Id, phase and state in one word, changed by compare-and-swap only: see
    /// [`FlowState`](crate::flow::Gate).
    pub flow_state: Cell<u64>,
    /// Packets by direction.
    pub packets: [Cell<u64>; 2],
    /// Bytes by direction, network header included.
    pub bytes: [Cell<u64>; 2],
    /// What the originator's packets carry when they reach us, and what the answers carry. A packet of
    /// direction `d` leaves as the reverse of `tuples[1 - d]`.
    pub tuples: [Cell<Tuple<F>>; 2],
    /// Where the packets of each direction go.
    pub next_hops: [NextHop; 2],
    /// Of the leg that is outside: the device.
    pub ifindex: Cell<u32>,
    /// Of the leg that is outside: the next hop.
    pub next_hop: Cell<F::Addr>,
    /// When the flow ends unless a packet comes.
    pub expires: Cell<Ticks>,
    /// When the last packet came.
    pub seen: Cell<Ticks>,
    /// When the flow was made.
    pub created: Cell<Ticks>,
    /// The generation of the published port's mapping when the flow was made.
    pub mapping_generation: Cell<u32>,
    /// The settings' generation of the lists of clients that let the flow in.
    pub policy: Cell<u32>,
    /// TCP's sequence windows. Of other protocols, whatever the record's last flow left.
    pub windows: TcpTracking,
    /// The published port's slot in `MAPPINGS`, or 0.
    pub mapping: Cell<u16>,
    /// The checksum delta of the addresses that change in the originator's packets.
    pub address_delta: Cell<u16>,
    /// The same of the ports.
    pub port_delta: Cell<u16>,
    /// The MAC address that frames from outside are sent to: XDP compares it.
    pub uplink_mac: Cell<[u8; 6]>,
}

impl<F: Family> Flow<F> {
    /// The published port's slot in `MAPPINGS`, or 0.
    #[inline(always)]
    #[must_use]
    pub fn mapping(&self) -> u32 {
        self.mapping.get() as u32
    }
}

/// What the agent tells all programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Moves on whenever a route, an address or a device changes; never 0 once the agent ran.
    pub route_generation: u32,
    /// When the agent was last alive, in ticks.
    pub heartbeat: Ticks,
    /// How many entries the ring of unassured flows has.
    pub ring: u32,
    /// How many flow records there are.
    pub flows: u32,
    /// 1 if XDP may also forward TCP.
    pub xdp_tcp: u32,
    /// Tells the present lists of clients from all others: flows that others let in are looked at
    /// again.
    pub policy: u32,
    /// How many flows an endpoint may have opened at once; 0 is any number.
    pub flow_quota: u32,
    /// How many flows an endpoint may open in a second; 0 is any number.
    pub flow_rate: u32,
    /// The device that fragments go round by to be put together; 0 if nobody puts them together.
    pub defrag_loopback: u32,
    /// 1 if only a SYN opens a TCP flow (`nf_conntrack_tcp_loose=0`).
    pub tcp_strict: u32,
    /// The smallest MTU that a route has by itself, 0 if none has: whether a packet above it is too
    /// large, the kernel has to say.
    pub route_mtu: u32,
    /// 1 once all programs are attached and all maps filled. Before, at an agent's first start, every
    /// program passes everything untouched, as before the agent came.
    pub armed: u32,
    /// What others have set up that the kernel's path alone heeds: bits of [`others`].
    pub others: u32,
    /// Ports that only root binds, kept for what containers are translated to.
    pub reserved_ports: PortRange,
    /// The first port that takes no privilege to bind (`net.ipv4.ip_unprivileged_port_start`).
    pub unprivileged_port_start: u32,
    /// 1 if a port that is published on an IPv6 address of the host's has a list of clients.
    pub lists6: u32,
    /// The cookie of the network namespace whose sockets are pointed at containers; 0 is none, as
    /// long as nothing is armed.
    pub netns_cookie: u64,
}

/// Ports from the first to the last, both included: none where the first is 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// Whether a port is one of them.
    #[inline(always)]
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first != 0 && self.first <= port && port <= self.last
    }
}

/// What a device is to us.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// One of [`device`].
    pub kind: u32,
    /// The bridge's device index: the device's own for a bridge, the master for a veth, else 0.
    pub bridge: u32,
    /// The MAC address that frames for this host carry here: the device's own, or for a veth its
    /// bridge's. All zero without Ethernet.
    pub mac: [u8; 6],
    /// 1 if frames have an Ethernet header.
    pub ethernet: u16,
    /// Of a container's veth: the hardware address that the container's frames have to carry. All
    /// zero where it is not known, or may be any.
    pub station: [u8; 6],
    /// Zero.
    pub reserved: u16,
    /// Bits of [`device::flag`].
    pub flags: u32,
}

/// Bits of [`Settings::others`].
pub mod others {
    /// Some devices have [`device::flag`](super::device::flag) set.
    pub const SHAPED: u32 = 1;
    /// There are IPsec policies that may be about containers' packets: the kernel carries them all, and
    /// what is translated does not leave for the ranges of the list [`PROTECTED`].
    pub const IPSEC: u32 = 2;
    /// The list of the destinations to which policies demand protection of the host's own sources.
    pub const PROTECTED: u32 = u32::MAX;
}

/// Kinds of [`Device`].
pub mod device {
    /// An uplink, a VPN, somebody's bridge: everything that is neither loopback nor Docker's.
    pub const OUTSIDE: u32 = 1;
    /// `docker0` or a `br-*` of Docker's.
    pub const BRIDGE: u32 = 2;
    /// The host's end of a container's veth, of which no endpoint is known yet.
    pub const VETH: u32 = 3;
    /// The same, with a known endpoint behind it: nobody else speaks there.
    pub const NAMED_VETH: u32 = 4;

    /// Bits of [`Device::flags`](super::Device::flags).
    pub mod flag {
        /// Others shape or filter what comes by it: the kernel has to carry that.
        pub const SHAPED_IN: u32 = 1;
        /// The same of what leaves by it.
        pub const SHAPED_OUT: u32 = 2;
        /// Of a veth: frames may also carry a virtual router's hardware address (RFC 9568).
        pub const VIRTUAL_ROUTER: u32 = 4;
        /// Of an outside device: a route has to lead back to a new flow's source by this device
        /// (`rp_filter=1`).
        pub const REVERSE_STRICT: u32 = 8;
        /// Of an outside device: a route has to lead back to a new flow's source (`rp_filter=2`).
        pub const REVERSE_LOOSE: u32 = 16;
    }
    /// A port of a network's bridge that leads to no container: a tap, a NIC, somebody's veth. Who is
    /// beyond it has whatever address he has, but a container's.
    pub const PORT: u32 = 5;
    /// Known to be neither Docker's nor hooked: what others forward from or to it is their business.
    /// What comes from, or would go to, a device without a row is refused.
    pub const OTHER: u32 = 6;
}

/// A Docker bridge network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Network<F: Family> {
    /// Bits of [`network`].
    pub flags: u32,
    /// The slot of the network's own endpoint, which stands in for containers not known yet.
    pub default_endpoint: u32,
    /// The bridge's own address: the source that a hairpin shows.
    pub gateway: F::Addr,
    /// What masquerade takes instead of the outgoing device's address, or
    /// [`ANY`](crate::family::Address::ANY).
    pub source: F::Addr,
    /// The list of clients that its containers let in, or 0 for all.
    pub policy: u32,
}

/// Flags of [`Network`].
pub mod network {
    /// What leaves takes the outgoing device's address.
    pub const MASQUERADE: u32 = 1;
    /// Nothing leaves, nothing enters.
    pub const INTERNAL: u32 = 2;
    /// Containers of the network do not reach each other.
    pub const ICC_DISABLED: u32 = 4;
    /// Published ports and ICMP are reached straight, by the container's own address
    /// (gateway mode `routed`).
    pub const ROUTED: u32 = 8;
    /// Everything is reached straight (gateway mode `nat-unprotected`).
    pub const UNPROTECTED: u32 = 16;
    /// Published ports are reached straight from everywhere (`--allow-direct-routing`).
    pub const DIRECT: u32 = 32;
    /// Host and containers do not reach each other either (gateway mode `isolated`).
    pub const ISOLATED: u32 = 64;
    /// The network has IPv6.
    pub const IPV6: u32 = 128;
    /// Containers may send frames with VLAN tags, of any EtherType and to a bridge's group address,
    /// and may be DHCP servers.
    pub const OTHER_FRAMES: u32 = 256;
}

/// A container's place in a network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint<F: Family> {
    /// Tells this endpoint from all that had the slot before; 0 is nobody.
    pub generation: u32,
    /// The host's end of its veth, or 0: only the bridge reaches it.
    pub ifindex: u32,
    /// The bridge.
    pub bridge: u32,
    /// MTU of the container's device, in bytes, network header included.
    pub mtu: u32,
    /// Its address; [`ANY`](crate::family::Address::ANY) for a network's own endpoint.
    pub addr: F::Addr,
    /// The container's MAC address, then its bridge's: an Ethernet header's first 12 bytes.
    pub macs: [u8; 12],
}

/// A published port: what a client asks for.
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

/// A container's port that is published, and where: what its own conversations are seen as.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServerKey<F: Family> {
    /// The host's address that it is published at, or any.
    pub at: F::Addr,
    /// The container's address.
    pub addr: F::Addr,
    /// The container's port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// A published port: what it gets.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published<F: Family> {
    /// The mapping's slot.
    pub mapping: u32,
    /// The list of clients that it lets in, or 0 for all.
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
    /// Who may ask.
    pub parent: F::Addr,
    /// Who is asked.
    pub child: F::Addr,
    /// The port that is asked.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// Key of the lists of clients: the list wholly, the client by prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct IngressKey<F: Family> {
    /// The list: 0 is none.
    pub list: u32,
    /// The client.
    pub client: F::Addr,
}

/// What a list of clients says of one.
pub mod ingress {
    /// Let in.
    pub const ALLOW: u32 = 1;
    /// Kept out.
    pub const DENY: u32 = 2;
}

/// Key of the sources that containers may use beside their own: the device wholly, the source by
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
    /// As device: where the source is reached; the value is a bridge's device index.
    pub const ROUTES: u32 = 0;
    /// As value, of a veth: its container may use the source; of a bridge: one of its network's
    /// containers may.
    pub const ONE: u32 = 1;
    /// As value, of a bridge: each of its network's containers may.
    pub const EACH: u32 = 2;
}

/// Key of the masquerade addresses: the device wholly, the next hop by prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MasqueradeKey<F: Family> {
    /// Device index, in the machine's order.
    pub ifindex: u32,
    /// The next hop.
    pub next_hop: F::Addr,
}

/// A place of the ring of flows that are not assured. In one word, from the low end: 24 bits of the
/// record's index, 24 of its id, 16 of the originator's slot. That many flows there may be at most, and
/// no record lives that often before the ring comes around.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending(pub u64);

impl Pending {
    const PART: u32 = (1 << 24) - 1;

    /// Of a flow and the slot of the endpoint that opened it, [`OUTSIDE`] or [`HOST`].
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

    /// Whether it is this life of the record.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, id: u32) -> bool {
        (self.0 >> 24) as u32 & Self::PART == id & Self::PART
    }

    /// The slot of the endpoint that opened it.
    #[inline(always)]
    #[must_use]
    pub const fn originator(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// Where the ring and the sweep stand, and how full the table is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    /// How many flows have taken a place in the ring of unassured flows.
    pub ring: u64,
    /// The next record that the sweep looks at.
    pub sweep: u64,
    /// How many records are not free.
    pub used: u64,
}

/// What an endpoint has taken of what it may: see [`quota`](crate::quota). Each word but the last
/// has two halves, the low one counted from 2^31. The outside has the last word only.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Quota {
    /// The endpoint's generation, and how many of the flows that it opened live.
    pub held: Cell<u64>,
    /// When the bucket of new flows was filled last, and what is in it.
    pub opens: Cell<u64>,
    /// The same of answers that say that it is refused.
    pub answers: Cell<u64>,
    /// When the bucket of bytes in incomplete datagrams was filled last, and what is in it, counted
    /// from 0.
    pub pieces: Cell<u64>,
    /// How many places of the ring of unassured flows went to flows that it opened.
    pub places: Cell<u64>,
}

/// The port that a source got when its own was taken. It counts as long as a flow lives that has it.
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
    /// Flows that have it: of those that are remembered the eldest that lives, and the youngest.
    pub holders: [FlowRef; 2],
}

impl<F: Family> PortAffinity<F> {
    /// Whether it is this source's.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, src: F::Addr, sport: Be16, proto: u32) -> bool {
        self.src == src && self.sport == sport && self.proto == proto
    }

    /// The place of a source's hint. Not by the low bits of a product: an address's last bytes,
    /// in which containers differ, never reach them.
    #[inline(always)]
    #[must_use]
    pub fn place(src: F::Addr, sport: Be16, proto: u32) -> u32 {
        let port = sport.word() as u32 | proto << 16;
        let mixed = (src.mix() ^ port).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::AFFINITIES.ilog2())
    }
}

/// One end of a conversation as a socket names it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Peer {
    /// The address, an IPv4 one behind `::ffff:`.
    pub addr: Wide,
    /// The port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// A socket that was pointed at a container. An unconnected one may have many peers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SocketKey {
    /// The kernel's name of the socket, never used again.
    pub cookie: u64,
    /// Where it was pointed.
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
    /// Of a link-local address: its device. Of others 0.
    pub ifindex: u32,
}

/// An IPv6 address of a container.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OwnerKey6 {
    /// The address: what Docker gave, or the link-local one that follows from the MAC address.
    pub addr: Be128,
    /// The bridge that it counts on.
    pub bridge: u32,
}

/// What a veth's container is called by IPv6.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint6 {
    /// The address that Docker gave, or [`Be128::ANY`].
    pub addr: Be128,
    /// The container's MAC address, or zeros where that is not known.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: u16,
}

/// A port that is published on an IPv6 address of the host's: what a client asks for.
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

/// Who may ask such a port. docker-proxy serves it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published6 {
    /// The list of clients that it lets in, or 0 for all.
    pub policy: u32,
    /// The bridges of the networks that it may lead into, whose lists count too. 0 is none.
    pub bridges: [u32; 2],
}

/// Key of the lists of IPv6 clients: as [`IngressKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IngressKey6 {
    /// The list: 0 is none.
    pub list: u32,
    /// The client.
    pub client: Be128,
}

/// Key of the IPv6 sources that containers may use beside their own: as [`AllowedKey`], without
/// [`allowed::ROUTES`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AllowedKey6 {
    /// A container's veth, or a network's bridge.
    pub device: u32,
    /// The source.
    pub source: Be128,
}

/// No padding: each structure is exactly the sum of its fields, which is what lets the agent and
/// the kernel see it as plain bytes.
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
