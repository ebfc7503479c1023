// SPDX-License-Identifier: MIT OR Apache-2.0
//! The types of the host state: networks, containers, devices, addresses. Plain data.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

pub use forwarder_protocol::{HostPort, Proto};
use ipnet::IpNet;

use super::terms::{Ingress, NetworkOptions};

/// An Ethernet address, in wire order.
pub type Mac = [u8; 6];

/// The kernel's number for another network namespace, as seen from ours (`link-netnsid`).
///
/// The number is reused after the namespace has gone:
/// [`Update::NetnsGone`](super::Update::NetnsGone) comes before the next owner's first link.
pub type NetnsId = i32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub String);

        impl $name {
            /// Returns the first twelve digits, as Docker shows them.
            pub fn short(&self) -> &str {
                self.0.get(..12).unwrap_or(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

id!(
    /// A Docker network's full id.
    NetworkId
);
id!(
    /// A Docker container's full id. In [`NetworkEndpoint`] also the name of one of Docker's own
    /// sandboxes.
    ContainerId
);
id!(
    /// A libnetwork endpoint's full id: one container on one network.
    EndpointId
);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// One address range of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The network address as configured (host bits may be set).
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The gateway that IPAM names. It is absent for docker0, and for networks whose gateway some
    /// Docker versions chose themselves: see [`HostState::gateway`](super::HostState::gateway).
    pub gateway: Option<IpAddr>,
}

impl Subnet {
    /// Whether `address` lies in this range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(host)) => {
                let cut = 32 - u32::from(self.prefix_len.min(32));
                (u64::from(net.to_bits()) >> cut) == (u64::from(host.to_bits()) >> cut)
            }
            (IpAddr::V6(net), IpAddr::V6(host)) => {
                let cut = 128 - u32::from(self.prefix_len.min(128));
                (net.to_bits() ^ host.to_bits())
                    .checked_shr(cut)
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

/// An endpoint as its network lists it: known from Docker's `connect` on, before the container
/// runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkEndpoint {
    /// The container, or `gateway_…`/`ingress-sbox` for swarm's own sandboxes.
    pub container: ContainerId,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The hardware address of the container's device.
    pub mac: Option<Mac>,
}

impl NetworkEndpoint {
    /// Returns its address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// A Docker network of any driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Full id.
    pub id: NetworkId,
    /// Name.
    pub name: String,
    /// `bridge`, `overlay`, `macvlan`, …
    pub driver: String,
    /// The bridge device's name; only for driver `bridge`.
    pub bridge: Option<String>,
    /// All ranges of both families.
    pub subnets: Vec<Subnet>,
    /// `--internal`.
    pub internal: bool,
    /// The options that Docker and the network's labels set; the configuration may override them.
    pub terms: NetworkOptions,
    /// The requested MTU in bytes.
    pub mtu: Option<u32>,
    /// The driver's options as given.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The attached endpoints.
    pub endpoints: BTreeMap<EndpointId, NetworkEndpoint>,
}

/// An endpoint as its container shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Full id.
    pub id: EndpointId,
    /// The network's name (Docker orders gateways by it).
    pub network_name: String,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The hardware address of the container's device.
    pub mac: Option<Mac>,
    /// The network's IPv4 gateway.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The network's IPv6 gateway.
    pub gateway_v6: Option<Ipv6Addr>,
    /// `--network …,gw-priority=N` (Docker 28 and later; otherwise 0).
    pub gateway_priority: i64,
}

impl Endpoint {
    /// Returns its address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortBinding {
    /// Protocol.
    pub proto: Proto,
    /// The host's address; unspecified means any local address of its family.
    pub host_ip: IpAddr,
    /// The host's port (host byte order).
    pub host_port: u16,
    /// The container's port (host byte order).
    pub container_port: u16,
}

impl PortBinding {
    /// Returns the host's side of the binding.
    pub fn host(&self) -> HostPort {
        HostPort {
            proto: self.proto,
            ip: self.host_ip,
            port: self.host_port,
        }
    }
}

/// Identifies a shim (a `forwarder-proxy` that dockerd started) while it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShimId(pub u64);

/// A port that a shim has bound: known before Docker reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The shim that bound it.
    pub shim: ShimId,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The container's port (host byte order).
    pub container_port: u16,
    /// Whether the dockerd that started the shim has gone.
    pub orphan: bool,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: ContainerId,
    /// Name, without Docker's leading slash.
    pub name: String,
    /// The first process, as seen in the agent's view of Docker's pid namespace; 0 when not
    /// running.
    pub pid: u32,
    /// Whether its process exists (also while paused).
    pub running: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// The file that holds its network namespace; empty when there is none.
    pub sandbox_key: String,
    /// The kernel's number for that namespace; none while the container does not run or no link
    /// leads there.
    pub netns: Option<NetnsId>,
    /// `bridge`, `host`, `none`, `container:ID`, or a network's name.
    pub network_mode: String,
    /// Its endpoint on each network.
    pub endpoints: BTreeMap<NetworkId, Endpoint>,
    /// The host ports that are published now (none unless running).
    pub ports: Vec<PortBinding>,
    /// The container ports that are published in any way, also without a host port.
    pub published: BTreeSet<(Proto, u16)>,
    /// The container ports that the image or the user names (`EXPOSE`): links open them.
    pub exposed: BTreeSet<(Proto, u16)>,
    /// The names of the containers that it is linked to (`--link`).
    pub links: BTreeSet<String>,
    /// The clients of its published ports, from its label.
    pub ingress: Ingress,
    /// The clients of single ports, where a label names the port.
    pub port_ingress: BTreeMap<PortName, Ingress>,
    /// Sources besides its own address that it may use, from its label.
    pub allowed_sources: Vec<IpNet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Container {
    /// Returns the endpoint whose network gives the container its default route of `family`:
    /// published ports lead to its address.
    ///
    /// Docker's order, best first: highest gateway priority; not `docker_gwbridge`; not internal;
    /// more gateway families; the network's name. The first endpoint with a gateway of the family
    /// wins. An internal network never wins: it routes nowhere and publishes nothing. A network
    /// that `networks` does not hold yet counts as not internal.
    ///
    /// Docker up to 27 takes the best endpoint with an IPv4 gateway for both families, and prefers
    /// IPv6-only to IPv4-only. For IPv4 the result is the same, because an IPv6-only network has no
    /// IPv4 gateway.
    pub fn gateway_endpoint(
        &self,
        family: Family,
        networks: &BTreeMap<NetworkId, Network>,
    ) -> Option<(&NetworkId, &Endpoint)> {
        self.endpoints
            .iter()
            .filter(|(id, _)| !networks.get(id).is_some_and(|n| n.internal))
            .filter(|(_, endpoint)| match family {
                Family::V4 => endpoint.gateway_v4.is_some(),
                Family::V6 => endpoint.gateway_v6.is_some(),
            })
            .min_by_key(|(_, endpoint)| {
                let families = u8::from(endpoint.gateway_v4.is_some())
                    + u8::from(endpoint.gateway_v6.is_some());
                (
                    -i128::from(endpoint.gateway_priority),
                    endpoint.network_name == "docker_gwbridge",
                    2 - families,
                    &endpoint.network_name,
                )
            })
    }
}

/// What precedes the network header on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// Nothing: WireGuard, tun, IP tunnels, PPP.
    Raw,
    /// The loopback device (an Ethernet header of zeros).
    Loopback,
    /// A link layer that Docker does not use (the kernel's ARPHRD number).
    Other(u16),
}

/// The peer of a veth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The peer's index in its own namespace.
    pub index: u32,
    /// The peer's namespace; none when it is ours.
    pub netns: Option<NetnsId>,
    /// The peer's name in its namespace (`eth0`); none until it could be read.
    pub name: Option<String>,
    /// The peer's hardware address; none until it could be read.
    pub mac: Option<Mac>,
}

/// A network device of our namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `veth`, `bridge`, `wireguard`, …; empty for physical devices and loopback.
    pub kind: String,
    /// The bridge, bond or VRF that the device belongs to.
    pub master: Option<u32>,
    /// Whether the device is administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// The link layer.
    pub layer: LinkLayer,
    /// The peer, if the device is a veth.
    pub peer: Option<Peer>,
}

/// What the IPv4 routes say apart from their next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The devices of the default routes, which are the uplinks unless the configuration names
    /// others.
    pub defaults: BTreeSet<u32>,
    /// The smallest MTU that a route itself sets (`ip route … mtu`); 0 if none does.
    pub mtu: u32,
    /// The host's own addresses, as address and prefix length, including those without a device
    /// address (`ip route add local …`).
    pub locals: Arc<BTreeSet<(Ipv4Addr, u8)>>,
    /// The devices of routes to 0.0.0.0/8, which the defragmentation loopback uses.
    pub unspecified: BTreeSet<u32>,
}

/// An address of one of our devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's index.
    pub link: u32,
    /// The host's own address (on point-to-point links not the peer's).
    pub address: IpAddr,
    /// The peer's address, on point-to-point links; the prefix length refers to its range.
    pub peer: Option<IpAddr>,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The kernel's scope: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_SECONDARY`: for IPv4 an address after the first of its range, for IPv6 a temporary
    /// address.
    pub secondary: bool,
}

/// A published port as a file or a label names it: `[ADDRESS:]PORT[/PROTO]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName {
    /// The host's address; none for the port at any address.
    pub host_ip: Option<IpAddr>,
    /// The host's port (host byte order).
    pub port: u16,
    /// The protocol.
    pub proto: Proto,
}

impl FromStr for PortName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let wrong = || format!("{name} is not a published port: write [ADDRESS:]PORT[/tcp|udp]");
        let (at, proto) = name.split_once('/').unwrap_or((name, "tcp"));
        let proto = proto.parse().map_err(|()| wrong())?;
        if let Ok(port) = at.parse() {
            return Ok(Self {
                host_ip: None,
                port,
                proto,
            });
        }
        let at: SocketAddr = at.parse().map_err(|_| wrong())?;
        Ok(Self {
            host_ip: Some(at.ip()),
            port: at.port(),
            proto,
        })
    }
}
