// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks, their subnets and their endpoints.

use forwarder_common::abi::{Endpoint, TrustKey, network};
use forwarder_common::family::{Be32, V4};

use super::{Policy, ipv6};
use crate::address::WireAddress;
use crate::desired_state::{DesiredState, EndpointKey};
use crate::generation::generation;
use crate::host_state::{GatewayMode, HostState, Link, Network, NetworkOptions};

/// Returns the flags of a network.
pub(super) fn flags(network: &Network, terms: &NetworkOptions, policy: &Policy) -> u32 {
    let isolated = terms.mode == GatewayMode::Isolated;
    let routed = terms.mode == GatewayMode::Routed;
    let unprotected = terms.mode == GatewayMode::NatUnprotected;
    [
        (terms.masquerade && !routed, network::MASQUERADE),
        (network.internal || isolated, network::INTERNAL),
        (!terms.icc, network::ICC_DISABLED),
        (routed, network::ROUTED),
        (unprotected, network::UNPROTECTED),
        (policy.direct_routing, network::DIRECT),
        (isolated, network::ISOLATED),
        (ipv6::is_in(network), network::IPV6),
        (terms.other_frames, network::OTHER_FRAMES),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .sum()
}

pub(super) fn add_trusted(
    tables: &mut DesiredState,
    host_state: &HostState,
    terms: &NetworkOptions,
    bridge: u32,
) {
    for name in &terms.trusted {
        let device = host_state.links.values().find(|link| link.name == *name);
        tables.trusted.extend(device.map(|link| TrustKey {
            bridge,
            ifindex: link.index,
        }));
    }
}

/// Returns a network's subnets of one family.
pub(super) fn subnets<A: WireAddress>(network: &Network) -> impl Iterator<Item = (A, u8)> {
    let all = network.subnets.iter();
    all.filter_map(|subnet| A::range(subnet.address, subnet.prefix_len))
}

pub(super) fn add_network(
    tables: &mut DesiredState,
    host_state: &HostState,
    network: &Network,
    bridge: &Link,
) {
    let subnets = subnets(network).map(|subnet| (subnet, bridge.index));
    tables.v4.subnets.extend(subnets);
    // The network's default endpoint stands in for containers that are not known yet. Its
    // generation changes whenever a container comes or goes, so that flows created under the
    // default endpoint do not pass to the next container.
    let names = network.endpoints.keys().map(|id| id.0.as_str());
    let default_endpoint = Endpoint {
        generation: generation(std::iter::once(network.id.0.as_str()).chain(names)),
        bridge: bridge.index,
        mtu: bridge.mtu,
        ..Endpoint::default()
    };
    tables
        .v4
        .endpoints
        .insert(EndpointKey::Default(bridge.index), default_endpoint);
    for (id, at) in &network.endpoints {
        let Some(address) = at.ipv4 else { continue };
        let veth = host_state
            .veths
            .get(id)
            .and_then(|index| host_state.links.get(index))
            .filter(|link| link.master == Some(bridge.index));
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&at.mac.unwrap_or_default());
        macs[6..].copy_from_slice(&bridge.mac.unwrap_or_default());
        let endpoint: Endpoint<V4> = Endpoint {
            generation: generation([id.0.as_str()]),
            ifindex: veth.map_or(0, |link| link.index),
            bridge: bridge.index,
            mtu: veth.map_or(bridge.mtu, |link| link.mtu),
            addr: Be32::from_std(address),
            macs,
        };
        tables
            .v4
            .endpoints
            .insert(EndpointKey::Address(Be32::from_std(address)), endpoint);
    }
}
