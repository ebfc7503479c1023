// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel holds or should hold, as plain data: the common types of `desired`, `diff` and
//! `datapath`.

mod families;
mod family;

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{
    AllowedKey6, Device, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
    TrustKey,
};
use forwarder_common::family::{Be128, V4};

pub use self::families::MasqAddresses;
pub use self::family::{EndpointKey, FamilyTables, NetworkRow, Slots, Target};

/// The name of the defragmentation loopback device.
pub const DEFRAG_LOOPBACK: &str = "forwarder0";

/// A program's attachment point on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// Ingress of an outside device.
    OutsideIn,
    /// Ingress of an outside device without an Ethernet header.
    OutsideInRaw,
    /// Egress of an outside device.
    OutsideOut,
    /// Egress of an outside device without an Ethernet header.
    OutsideOutRaw,
    /// Ingress of the host's end of a container's veth.
    ContainerIn,
    /// Egress of the host's end of a container's veth.
    ContainerOut,
    /// Ingress of the host's end of a container's veth where the kernel decides.
    FollowedIn,
    /// Egress of the host's end of a container's veth where the kernel decides.
    FollowedOut,
    /// Ingress of a bridge.
    BridgeIn,
    /// Egress of a bridge.
    BridgeOut,
    /// Egress of the defragmentation loopback.
    DefragOut,
    /// XDP of an uplink.
    Uplink,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 12] = [
        Self::OutsideIn,
        Self::OutsideInRaw,
        Self::OutsideOut,
        Self::OutsideOutRaw,
        Self::ContainerIn,
        Self::ContainerOut,
        Self::FollowedIn,
        Self::FollowedOut,
        Self::BridgeIn,
        Self::BridgeOut,
        Self::DefragOut,
        Self::Uplink,
    ];

    /// The program's name in the object, in pins and on the command line.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::OutsideIn => "outside_in",
            Self::OutsideInRaw => "outside_in_raw",
            Self::OutsideOut => "outside_out",
            Self::OutsideOutRaw => "outside_out_raw",
            Self::ContainerIn => "container_in",
            Self::ContainerOut => "container_out",
            Self::FollowedIn => "followed_in",
            Self::FollowedOut => "followed_out",
            Self::BridgeIn => "bridge_in",
            Self::BridgeOut => "bridge_out",
            Self::DefragOut => "defrag_out",
            Self::Uplink => "uplink",
        }
    }

    /// Returns the hook whose program has this name.
    #[must_use]
    pub fn named(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == program)
    }

    /// Whether the hook is for devices without Ethernet.
    #[must_use]
    pub const fn is_raw(self) -> bool {
        matches!(self, Self::OutsideInRaw | Self::OutsideOutRaw)
    }

    /// Whether the hook is on the device's ingress (XDP included).
    #[must_use]
    pub const fn is_ingress(self) -> bool {
        matches!(
            self,
            Self::OutsideIn
                | Self::OutsideInRaw
                | Self::ContainerIn
                | Self::FollowedIn
                | Self::BridgeIn
                | Self::Uplink
        )
    }
}

/// The attachment point of a program about the host's sockets, in the order of attachment: on the
/// network namespace, then on the root cgroup, where programs that report an address come before
/// programs that change it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SocketHook {
    /// The kernel looks up the socket that gets a packet.
    SkLookup,
    /// An IPv4 socket receives a datagram: reports the sender.
    Recvmsg4,
    /// An IPv6 socket receives a datagram: reports the sender.
    Recvmsg6,
    /// An IPv4 socket asks for its peer.
    Getpeername4,
    /// An IPv6 socket asks for its peer.
    Getpeername6,
    /// An IPv4 socket connects.
    Connect4,
    /// An IPv6 socket connects.
    Connect6,
    /// A socket sends a datagram to a peer that it names by an IPv4 address.
    Sendmsg4,
    /// An IPv4 socket is bound.
    Bind4,
    /// An IPv6 socket is bound.
    Bind6,
}

impl SocketHook {
    /// Every such hook, in order.
    pub const ALL: [Self; 10] = [
        Self::SkLookup,
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

    /// The program's name in the object, in pins and on the command line.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::SkLookup => "socket_lookup",
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

    /// Whether the program is attached to the root cgroup. Such programs improve convenience; the
    /// other one protects.
    #[must_use]
    pub const fn is_on_cgroup(self) -> bool {
        !matches!(self, Self::SkLookup)
    }

    /// Returns the hook whose program has this name.
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
    /// After the socket buffer is allocated: for tests of the logic, not for speed.
    Generic,
}

/// A veth to which XDP may redirect once its peer accepts frames.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerVeth {
    /// The container's network namespace.
    pub sandbox_key: String,
    /// A process in that namespace.
    pub pid: u32,
    /// The peer device's index in that namespace.
    pub index: u32,
}

/// The key of a row of the IPv6 tables. Rows are added in this order and removed in reverse order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key6 {
    /// One of the host's own addresses.
    Local(HostAddressKey6),
    /// The identity of the container behind a veth.
    Endpoint(u32),
    /// A container's address.
    Owner(OwnerKey6),
    /// A network's subnet, as address and prefix length.
    Subnet(Be128, u8),
    /// Clients of an access list, with the prefix length of their address.
    Ingress(IngressKey6, u8),
    /// Sources that containers may use, with their prefix length.
    Allowed(AllowedKey6, u8),
    /// A published port; it comes after the access lists that it refers to.
    Published(PortKey6),
}

/// The value of such a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row6 {
    /// 1 for a host address, the veth of an owner, the bridge of a subnet, or the action for
    /// clients and sources.
    Index(u32),
    /// The value of an endpoint.
    Endpoint(Endpoint6),
    /// The value of a published port.
    Published(Published6),
}

/// What is left to the kernel of a network about whose traffic the kernel decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// The rule or the setting because of which the kernel decides.
    pub why: String,
    /// Whether connections that the kernel has let through are followed.
    pub is_followed: bool,
}

/// All tables and hooks: those that are common to all address families, and each family's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DesiredState {
    /// Increases with every change of routes, addresses or devices.
    pub route_generation: u32,
    /// Whether XDP may forward TCP.
    pub xdp_tcp: bool,
    /// The smallest MTU that a route itself sets; 0 if none does.
    pub route_mtu: u32,
    /// Other software's configuration that only the kernel's path applies: bits of
    /// [`forwarder_common::abi::others`].
    pub others: u32,
    /// Whether a port published on an IPv6 address of the host has an access list.
    pub lists6: bool,
    /// The index of the defragmentation loopback; 0 for none.
    pub defrag_loopback: u32,
    /// Devices by index.
    pub devices: BTreeMap<u32, Device>,
    /// The devices that networks trust.
    pub trusted: BTreeSet<TrustKey>,
    /// The bridges of networks about whose traffic the kernel decides.
    pub left: BTreeMap<u32, Left>,
    /// The number of access lists without room in the map: they admit no client.
    pub closed_lists: usize,
    /// Changes whenever an access list or its assignment changes; 0 when there are no lists.
    pub policy: u32,
    /// The tables of IPv4.
    pub v4: FamilyTables<V4>,
    /// The tables by which IPv6 is guarded: it is not forwarded.
    pub ipv6: BTreeMap<Key6, Row6>,
    /// Programs by device index and attachment point.
    pub hooks: BTreeSet<(u32, Hook)>,
    /// Programs about the host's sockets.
    pub sockets: BTreeSet<SocketHook>,
    /// How the XDP programs in `hooks` run, by device index.
    pub xdp: BTreeMap<u32, XdpKind>,
    /// Veths to which XDP may redirect, by index.
    pub xdp_devmap: BTreeMap<u32, PeerVeth>,
}

/// What the kernel holds, with the slots of each family's endpoints and mappings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// The tables themselves. Of `xdp_devmap` only the keys are known.
    pub tables: DesiredState,
    /// The slots of IPv4.
    pub v4: Slots<V4>,
}
