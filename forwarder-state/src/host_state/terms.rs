// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options of a network or a published port. Plain data.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

/// How a network's containers are reached from outside of it (Docker's `gateway_mode_ipv4`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// Through published ports of the host only.
    #[default]
    Nat,
    /// Through published ports of the host, and directly at any port.
    NatUnprotected,
    /// Directly at published ports and by ICMP; nothing is translated.
    Routed,
    /// Not at all, not even from the host; for internal networks.
    Isolated,
}

impl FromStr for GatewayMode {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "nat" => Self::Nat,
            "nat-unprotected" => Self::NatUnprotected,
            "routed" => Self::Routed,
            "isolated" => Self::Isolated,
            _ => return Err(()),
        })
    }
}

/// Who decides about a network's traffic, where Docker's rules are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The forwarder, unless rules of others can match the network's traffic.
    #[default]
    Auto,
    /// The forwarder, past the rules of others.
    Own,
    /// The kernel; the forwarder carries what the kernel has let through.
    Follow,
    /// The kernel: the network is left untouched.
    Off,
}

impl FromStr for NetworkMode {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "auto" => Self::Auto,
            "own" => Self::Own,
            "follow" => Self::Follow,
            "off" => Self::Off,
            _ => return Err(()),
        })
    }
}

/// A client access list, matched against the client's address as it arrives. The most specific
/// range decides; of two equal ranges, the denying one wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Ranges that are admitted. If there are any, all other clients are denied.
    pub allow: Vec<IpNet>,
    /// Ranges that are denied.
    pub deny: Vec<IpNet>,
}

impl Ingress {
    /// The maximum number of ranges in one list.
    pub const RANGES: usize = 4_096;

    /// Returns a list that admits no client: the replacement for a list that cannot be read.
    #[must_use]
    pub fn closed() -> Self {
        Self {
            allow: Vec::new(),
            deny: vec![IpNet::default(), IpNet::V6(ipnet::Ipv6Net::default())],
        }
    }

    /// Whether the list admits every client.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// The options of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Whether containers of this network may talk to each other.
    pub icc: bool,
    /// Whether packets that leave are masqueraded. Always true for the default bridge: a dockerd
    /// without iptables reports false there whatever the user asked for.
    pub masquerade: bool,
    /// How its containers are reached.
    pub mode: GatewayMode,
    /// The source address that replaces masquerade's choice (`com.docker.network.host_ipv4`).
    pub host_ipv4: Option<Ipv4Addr>,
    /// Names of the devices from which published ports can also be reached directly
    /// (`trusted_host_interfaces`).
    pub trusted: Vec<String>,
    /// The clients that may reach its containers from outside of it.
    pub ingress: Ingress,
    /// Sources besides their own that its containers may use.
    pub allowed_sources: Vec<IpNet>,
    /// Whether its containers may use any hardware address.
    pub any_mac: bool,
    /// Who decides about its traffic.
    pub network_mode: NetworkMode,
    /// Whether its containers may send tagged frames and frames of any EtherType, and may be DHCP
    /// servers.
    pub other_frames: bool,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            icc: true,
            masquerade: true,
            mode: GatewayMode::Nat,
            host_ipv4: None,
            trusted: Vec::new(),
            ingress: Ingress::default(),
            allowed_sources: Vec::new(),
            any_mac: false,
            network_mode: NetworkMode::Auto,
            other_frames: false,
        }
    }
}
