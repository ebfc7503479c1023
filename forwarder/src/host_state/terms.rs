// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a network, or a published port, asks of its traffic. Plain data.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

/// How a network's containers are reached from outside of it (Docker's `gateway_mode_ipv4`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// By published ports of the host only.
    #[default]
    Nat,
    /// By published ports of the host, and straight by any port.
    NatUnprotected,
    /// Straight by published ports and ICMP; nothing is translated.
    Routed,
    /// Not at all, not even by the host; for internal networks.
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

/// Clients that are let in, by their own address as it comes. The most specific range decides; of
/// two that are the same, the one that keeps out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Let in; where any are named, all others are not.
    pub allow: Vec<IpNet>,
    /// Kept out.
    pub deny: Vec<IpNet>,
}

impl Ingress {
    /// How many ranges one list may have.
    pub const RANGES: usize = 4_096;

    /// Lets nobody in: what a list that cannot be read stands for.
    #[must_use]
    pub fn closed() -> Self {
        Self {
            allow: Vec::new(),
            deny: vec![IpNet::default(), IpNet::V6(ipnet::Ipv6Net::default())],
        }
    }

    /// Whether it lets everybody in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// What a network asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Whether containers of this network may talk to each other.
    pub icc: bool,
    /// Whether what leaves is masqueraded. Always true for the default bridge: a dockerd without
    /// iptables reports false there whatever was asked for.
    pub masquerade: bool,
    /// How its containers are reached.
    pub mode: GatewayMode,
    /// The source address that replaces masquerade's choice (`com.docker.network.host_ipv4`).
    pub host_ipv4: Option<Ipv4Addr>,
    /// Names of the devices from which published ports are reached straight too
    /// (`trusted_host_interfaces`).
    pub trusted: Vec<String>,
    /// Who reaches its containers from outside of it.
    pub ingress: Ingress,
    /// Sources beside their own that its containers may use.
    pub allowed_sources: Vec<IpNet>,
    /// Whether its containers may use any hardware address.
    pub any_mac: bool,
    /// Whether its containers may send frames with tags and of any EtherType, and be DHCP servers.
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
            other_frames: false,
        }
    }
}
