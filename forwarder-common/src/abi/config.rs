// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent tells the programs: settings, devices, networks, endpoints, published ports,
//! links, lists.

use bytemuck::{Pod, Zeroable};

use crate::clock::Ticks;
use crate::family::{Be16, Family};

/// The agent's settings for all programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
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
    /// 1 if only a SYN opens a TCP flow (`nf_conntrack_tcp_loose=0`). Always 1 with Docker's rules
    /// in place: a connection in mid-stream is the kernel's then.
    pub tcp_strict: u32,
    /// The smallest MTU that any route has of its own; 0 if none has. The kernel decides whether a
    /// larger packet is too big.
    pub route_mtu: u32,
    /// One of [`armed`]: whether the programs enforce their verdicts, and what is behind them.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
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

/// Values of [`Settings::armed`].
pub mod armed {
    /// Not all programs are attached or not all maps filled: every program passes every packet
    /// unchanged.
    pub const NOT: u32 = 0;
    /// Nothing is behind the programs: Docker makes no rules of netfilter, and what the programs do
    /// not translate must not leave.
    pub const REPLACE: u32 = 1;
    /// Docker's rules are behind the programs. A connection that the kernel tracks is the kernel's,
    /// and so is what no flow can begin with.
    pub const ADOPT: u32 = 2;
    /// The same, while connections are taken over or handed back: no flow begins here.
    pub const HANDOVER: u32 = 3;

    /// Whether Docker's rules are kept.
    #[inline(always)]
    #[must_use]
    pub const fn keeps_rules(armed: u32) -> bool {
        matches!(armed, ADOPT | HANDOVER)
    }
}

/// Bits of [`Settings::others`].
pub mod others {
    /// Some devices have [`device::flag`](super::device::flag) bits set.
    pub const SHAPED: u32 = 1;
    /// There are IPsec policies that may apply to containers' packets: all packets take the kernel
    /// path, and no translated packet leaves for an address in the list [`PROTECTED`].
    pub const IPSEC: u32 = 2;
    /// Some flows are followed: packets that leave are looked up, to see what the kernel lets out.
    pub const FOLLOWED: u32 = 4;
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
    /// The host's end of a container's veth in a network about whose traffic the kernel decides: only
    /// followed flows take the fast path.
    pub const FOLLOWED: u32 = 7;
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
