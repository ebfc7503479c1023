// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nouns of the host state: networks, containers, devices, addresses. Plain data.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::terms::{Ingress, NetworkOptions};
use crate::overrides::PortName;

/// An Ethernet address, in wire order.
pub type Mac = [u8; 6];

/// The kernel's number for another network namespace, as seen from ours (`link-netnsid`).
///
/// It is reused once the namespace has gone: [`Update::NetnsGone`](super::Fact::NetnsGone) comes before the next owner's first link.
pub type NetnsId = i32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub String);

        impl $name {
            /// The first twelve digits, as Docker shows them.
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
    /// A Docker container's full id. In [`NetworkEndpoint`] also what stands there for Docker's own sandboxes.
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
    /// The family of `address`.
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
    /// The gateway that IPAM names. Absent for docker0 and for networks whose gateway Docker chose by itself
    /// on some versions: see [`HostState::gateway`](super::host state::gateway).
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

/// An endpoint as its network lists it: known from Docker's `connect` on, before the container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkEndpoint {
    /// The container, or `gateway_…`/`ingress-sbox` for swarm's own sandboxes.
    pub container: ContainerId,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The address of the container's device.
    pub mac: Option<Mac>,
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
    /// What Docker's options and its labels ask of its traffic; the configuration may say otherwise.
    pub terms: NetworkOptions,
    /// The MTU in bytes that was asked for.
    pub mtu: Option<u32>,
    /// The driver's options as given.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Who is attached.
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
    /// The address of the container's device.
    pub mac: Option<Mac>,
    /// The network's IPv4 gateway.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The network's IPv6 gateway.
    pub gateway_v6: Option<Ipv6Addr>,
    /// `--network …,gw-priority=N` (Docker 28 and later; otherwise 0).
    pub gateway_priority: i64,
}

/// A transport protocol that ports can be published for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl FromStr for Proto {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            _ => return Err(()),
        })
    }
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortBinding {
    /// Protocol.
    pub proto: Proto,
    /// The host's address; unspecified means any local one of its family.
    pub host_ip: IpAddr,
    /// The host's port (host byte order).
    pub host_port: u16,
    /// The container's port (host byte order).
    pub container_port: u16,
}

impl PortBinding {
    /// Its host's side.
    pub fn host(&self) -> HostPort {
        HostPort {
            proto: self.proto,
            ip: self.host_ip,
            port: self.host_port,
        }
    }
}

/// A port of the host's: at most one container's at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Protocol.
    pub proto: Proto,
    /// The host's address; unspecified means any local one of its family.
    pub ip: IpAddr,
    /// Host byte order.
    pub port: u16,
}

impl HostPort {
    /// Whether a socket bound to one keeps the other from being bound.
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_address =
            self.ip == other.ip || self.ip.is_unspecified() || other.ip.is_unspecified();
        (self.proto, self.port) == (other.proto, other.port)
            && self.ip.is_ipv4() == other.ip.is_ipv4()
            && same_address
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
        };
        write!(f, "{}/{proto}", SocketAddr::new(self.ip, self.port))
    }
}

/// Names a shim (a `forwarder-proxy` that dockerd started) as long as it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShimId(pub u64);

/// What a shim has bound: known before Docker shows it to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Whose it is.
    pub shim: ShimId,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The container's port (host byte order).
    pub container_port: u16,
    /// The dockerd that started the shim is no more.
    pub orphan: bool,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: ContainerId,
    /// Name, without Docker's leading slash.
    pub name: String,
    /// The first process in the agent's view of Docker's pid namespace; 0 when not running.
    pub pid: u32,
    /// Whether its process exists (also while paused).
    pub running: bool,
    /// Frozen.
    pub paused: bool,
    /// The file that holds its network namespace; empty when there is none.
    pub sandbox_key: String,
    /// The kernel's number for that namespace; none while not running and where no link leads there.
    pub netns: Option<NetnsId>,
    /// `bridge`, `host`, `none`, `container:ID`, a network's name.
    pub network_mode: String,
    /// What it is attached to.
    pub endpoints: BTreeMap<NetworkId, Endpoint>,
    /// Ports of the host that are published now (none unless running).
    pub ports: Vec<PortBinding>,
    /// Its own ports that are published in any way, also where no port of the host stands for them.
    pub published: BTreeSet<(Proto, u16)>,
    /// Its own ports that its image or its user names (`EXPOSE`): what links open.
    pub exposed: BTreeSet<(Proto, u16)>,
    /// Names of the containers that it is linked to (`--link`).
    pub links: BTreeSet<String>,
    /// Who is let in to its published ports, by its label.
    pub ingress: Ingress,
    /// The same by port, where a label names one.
    pub port_ingress: BTreeMap<PortName, Ingress>,
    /// Sources beside its own that it may use, by its label.
    pub allowed_sources: Vec<IpNet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Container {
    /// The endpoint whose network gives the container its default route of `family`: the one whose address
    /// published ports go to.
    ///
    /// Docker's order, best first: highest gateway priority; not `docker_gwbridge`; not internal; more gateway
    /// families; the network's name. The first one with a gateway of the family wins. An internal network never
    /// does: it routes nowhere and nothing is published on it. A network that `networks` does not hold yet counts
    /// as not internal.
    ///
    /// Docker up to 27 takes the best endpoint with an IPv4 gateway for both families, and prefers IPv6-only
    /// before IPv4-only, which comes to the same for IPv4, since such a network has no IPv4 gateway.
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

/// What stands before the network header on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// Nothing: WireGuard, tun, IP tunnels, PPP.
    Raw,
    /// The loopback device (an Ethernet header of zeros).
    Loopback,
    /// Something that Docker does not run on (the kernel's ARPHRD number).
    Other(u16),
}

/// The far end of a veth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its index in its own namespace.
    pub index: u32,
    /// Its namespace; none when it is ours.
    pub netns: Option<NetnsId>,
    /// Its name there (`eth0`); none until it could be read.
    pub name: Option<String>,
    /// Its address; none until it could be read.
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
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Framing.
    pub layer: LinkLayer,
    /// The other end, of a veth.
    pub peer: Option<Peer>,
}

/// What the IPv4 routes say beyond their next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The devices of the default routes, which are the uplinks unless others are named.
    pub defaults: BTreeSet<u32>,
    /// The smallest MTU that a route has by itself (`ip route … mtu`); 0 if none has.
    pub mtu: u32,
    /// What is the host's own, as address and prefix length: also without an address of a device
    /// (`ip route add local …`).
    pub locals: Arc<BTreeSet<(Ipv4Addr, u8)>>,
    /// The devices of routes to 0.0.0.0/8, by which fragments go round.
    pub unspecified: BTreeSet<u32>,
}

/// An address of a device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's index.
    pub link: u32,
    /// The host's own address (for point-to-point links not the peer's).
    pub address: IpAddr,
    /// The other end's, on point-to-point links: whose range the prefix length is about.
    pub peer: Option<IpAddr>,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The kernel's scope: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_SECONDARY`: for IPv4 an address after the first of its range, for IPv6 a temporary one.
    pub secondary: bool,
}
