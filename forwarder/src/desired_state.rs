// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel holds, or should hold, as plain data: the common language of `desired`, `diff`
//! and `datapath`.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{
    AllowedKey6, Device, Endpoint, Endpoint6, HostAddressKey6, IngressKey6, LinkKey, OwnerKey6,
    PortKey, PortKey6, Published6, ServerKey, TrustKey,
};
use forwarder_common::family::{Be16, Be32, Be128, V4};

/// The name of the device that fragments go round by.
pub const DEFRAG_LOOPBACK: &str = "forwarder0";

/// A program's place on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// Ingress of an outside device.
    OutsideIn,
    /// Ingress of an outside device without Ethernet header.
    OutsideInRaw,
    /// Egress of an outside device.
    OutsideOut,
    /// Egress of an outside device without Ethernet header.
    OutsideOutRaw,
    /// Ingress of the host's end of a container's veth.
    ContainerIn,
    /// Egress of the same.
    ContainerOut,
    /// Ingress of a bridge.
    BridgeIn,
    /// Egress of a bridge.
    BridgeOut,
    /// Egress of the device that fragments go round by.
    DefragOut,
    /// XDP of an uplink.
    Uplink,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 10] = [
        Self::OutsideIn,
        Self::OutsideInRaw,
        Self::OutsideOut,
        Self::OutsideOutRaw,
        Self::ContainerIn,
        Self::ContainerOut,
        Self::BridgeIn,
        Self::BridgeOut,
        Self::DefragOut,
        Self::Uplink,
    ];

    /// The program's name in the object, in pins and in the CLI.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::OutsideIn => "outside_in",
            Self::OutsideInRaw => "outside_in_raw",
            Self::OutsideOut => "outside_out",
            Self::OutsideOutRaw => "outside_out_raw",
            Self::ContainerIn => "container_in",
            Self::ContainerOut => "container_out",
            Self::BridgeIn => "bridge_in",
            Self::BridgeOut => "bridge_out",
            Self::DefragOut => "defrag_out",
            Self::Uplink => "uplink",
        }
    }

    /// The hook whose program has this name.
    #[must_use]
    pub fn named(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == program)
    }

    /// Whether the hook is on the device's way in (XDP included).
    #[must_use]
    pub const fn is_ingress(self) -> bool {
        matches!(
            self,
            Self::OutsideIn
                | Self::OutsideInRaw
                | Self::ContainerIn
                | Self::BridgeIn
                | Self::Uplink
        )
    }
}

/// A program's place on the root of all control groups, in the order in which they are attached:
/// first those that tell what the others do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SocketHook {
    /// An IPv4 socket is told where a datagram is from.
    Recvmsg4,
    /// An IPv6 socket is.
    Recvmsg6,
    /// An IPv4 socket is told its peer.
    Getpeername4,
    /// An IPv6 socket is.
    Getpeername6,
    /// An IPv4 socket connects.
    Connect4,
    /// An IPv6 socket connects.
    Connect6,
    /// A socket sends a datagram to a peer that it names, by IPv4.
    Sendmsg4,
    /// An IPv4 socket is bound.
    Bind4,
    /// An IPv6 socket is bound.
    Bind6,
}

impl SocketHook {
    /// Every such hook, in order.
    pub const ALL: [Self; 9] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Bind4,
        Self::Bind6,
    ];

    /// The program's name in the object, in pins and in the CLI.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::Bind4 => "bind4",
            Self::Bind6 => "bind6",
        }
    }

    /// The hook whose program has this name.
    #[must_use]
    pub fn named(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == program)
    }
}

/// How an uplink's XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum XdpKind {
    /// In the driver.
    Native,
    /// After the socket buffer is made: for tests of the logic, not for speed.
    Generic,
}

/// What names an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EndpointKey {
    /// A container's address.
    Address(Be32),
    /// A network's own endpoint, by its bridge's device index.
    Floor(u32),
}

/// A network as far as it does not depend on slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkRow {
    /// Bits of [`forwarder_common::abi::network`].
    pub flags: u32,
    /// The bridge's own address.
    pub gateway: Be32,
    /// What masquerade takes instead of the outgoing device's address; 0.0.0.0 for none.
    pub source: Be32,
    /// The list of clients that its containers let in; 0 for all.
    pub policy: u32,
}

/// Where a published port leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target {
    /// The container's address.
    pub addr: Be32,
    /// The container's port.
    pub port: Be16,
    /// The list of clients that it lets in; 0 for all.
    pub policy: u32,
    /// Tells this mapping from all that had its slot before; never 0.
    pub generation: u32,
}

/// A veth into whose far end XDP may redirect once its far end takes frames.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerVeth {
    /// The container's network namespace.
    pub sandbox_key: String,
    /// A process in it.
    pub pid: u32,
    /// The device's index in there.
    pub index: u32,
}

/// What names a row of IPv6's tables. In this order they are put, and in the reverse one they go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key6 {
    /// One of the host's own addresses.
    Local(HostAddressKey6),
    /// What the container behind a veth is called.
    Endpoint(u32),
    /// A container's address.
    Owner(OwnerKey6),
    /// A network's subnet, as address and prefix length.
    Subnet(Be128, u8),
    /// Clients of a list, with the prefix length of their address.
    Ingress(IngressKey6, u8),
    /// Sources that containers may use, with their prefix length.
    Allowed(AllowedKey6, u8),
    /// A published port: after the lists that it has.
    Published(PortKey6),
}

/// What such a row says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row6 {
    /// 1 of the host's addresses, the veth of an owner, the bridge of a subnet, and what is said of
    /// clients and sources.
    Index(u32),
    /// Of an endpoint.
    Endpoint(Endpoint6),
    /// Of a published port.
    Published(Published6),
}

/// All tables and hooks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DesiredState {
    /// Moves on with every change of routes, addresses or devices.
    pub route_generation: u32,
    /// Whether XDP may forward TCP.
    pub xdp_tcp: bool,
    /// The smallest MTU that a route has by itself; 0 if none has.
    pub route_mtu: u32,
    /// What the kernel's path alone heeds: bits of [`forwarder_common::abi::others`].
    pub others: u32,
    /// Whether a port that is published on an IPv6 address of the host's has a list of clients.
    pub lists6: bool,
    /// The device that fragments go round by; 0 for none.
    pub defrag_loopback: u32,
    /// Devices by index.
    pub devices: BTreeMap<u32, Device>,
    /// Networks by their bridge's index.
    pub networks: BTreeMap<u32, NetworkRow>,
    /// Subnets, as address and prefix length, to their bridge's index.
    pub subnets: BTreeMap<(Be32, u8), u32>,
    /// What is the host's own, as address and prefix length.
    pub locals: BTreeSet<(Be32, u8)>,
    /// Masquerade addresses by device index and the next hop's subnet.
    pub sources: BTreeMap<(u32, Be32, u8), Be32>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointKey, Endpoint<V4>>,
    /// Published ports; where containers may be asked straight, also by their own addresses.
    pub published: BTreeMap<PortKey<V4>, Target>,
    /// The host's ports by which containers are seen that publish their own under another number.
    pub seen_as: BTreeMap<ServerKey<V4>, u32>,
    /// Devices that networks trust.
    pub trusted: BTreeSet<TrustKey>,
    /// Ports that links open.
    pub links: BTreeSet<LinkKey<V4>>,
    /// What the lists of clients say, by list, address and prefix length
    /// ([`ingress`](forwarder_common::abi::ingress)).
    pub ingress: BTreeMap<(u32, Be32, u8), u32>,
    /// Lists of clients that there was no room for: they let nobody in.
    pub closed_lists: usize,
    /// Sources that containers may use beside their own, by device, address and prefix length
    /// ([`allowed`](forwarder_common::abi::allowed)).
    pub allowed: BTreeMap<(u32, Be32, u8), u32>,
    /// Tells all lists of clients, and who has them, from what was before; 0 where there are none.
    pub policy: u32,
    /// IPv6's tables.
    pub ipv6: BTreeMap<Key6, Row6>,
    /// Programs by device index and place.
    pub hooks: BTreeSet<(u32, Hook)>,
    /// Programs on the root of all control groups.
    pub sockets: BTreeSet<SocketHook>,
    /// How the XDP programs in `hooks` run, by device index.
    pub xdp: BTreeMap<u32, XdpKind>,
    /// Veths that XDP may redirect into, by index.
    pub ports: BTreeMap<u32, PeerVeth>,
}

/// What the kernel holds, with the slots that it holds it in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// The tables themselves. Of `ports` only the keys are known.
    pub tables: DesiredState,
    /// Slots of endpoints.
    pub endpoint_slots: BTreeMap<EndpointKey, u32>,
    /// Slots of mappings.
    pub mapping_slots: BTreeMap<PortKey<V4>, u32>,
}
