// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks, their subnets and their endpoints.

use std::net::IpAddr;

use forwarder_common::abi::{Endpoint, network};

use super::{Bridged, BridgedNetwork, HostFamily, Policy, ipv6};
use crate::acl::AclTable;
use crate::address::WireAddress;
use crate::desired_state::{EndpointKey, FamilyTables, NetworkRow};
use crate::generation::generation;
use crate::host_state::{GatewayMode, HostState, Link, Network, NetworkOptions};

/// Returns the flags of a network.
fn flags(network: &Network, terms: &NetworkOptions, policy: &Policy) -> u32 {
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

/// Returns a network's subnets of one family.
pub(super) fn subnets<A: WireAddress>(network: &Network) -> impl Iterator<Item = (A, u8)> {
    let all = network.subnets.iter();
    all.filter_map(|subnet| A::range(subnet.address, subnet.prefix_len))
}

/// Adds a network, its subnets, its default endpoint and its containers' endpoints.
pub(super) fn add_network<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    bridged: &Bridged<'_>,
    of_bridge: &BridgedNetwork<'_>,
    lists: &mut AclTable,
) {
    let BridgedNetwork {
        network,
        bridge,
        terms,
    } = of_bridge;
    let gateway = bridged.host_state.gateway(network, F::FAMILY);
    let source = terms.host_ipv4.map(IpAddr::V4);
    let row = NetworkRow {
        flags: flags(network, terms, bridged.policy),
        gateway: gateway.and_then(F::Addr::of).unwrap_or_default(),
        source: source.and_then(F::Addr::of).unwrap_or_default(),
        policy: lists.id(&terms.ingress),
    };
    tables.networks.insert(bridge.index, row);
    let subnets = subnets(network).map(|subnet| (subnet, bridge.index));
    tables.subnets.extend(subnets);
    add_default_endpoint(tables, network, bridge);
    add_endpoints(tables, bridged.host_state, network, bridge);
}

/// Adds the network's default endpoint. It stands in for containers that are not known yet. Its
/// generation changes whenever a container comes or goes, so that flows created under the default
/// endpoint do not pass to the next container.
fn add_default_endpoint<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    network: &Network,
    bridge: &Link,
) {
    let names = network.endpoints.keys().map(|id| id.0.as_str());
    let default_endpoint = Endpoint {
        generation: generation(std::iter::once(network.id.0.as_str()).chain(names)),
        bridge: bridge.index,
        mtu: bridge.mtu,
        ..Endpoint::default()
    };
    let key = EndpointKey::Default(bridge.index);
    tables.endpoints.insert(key, default_endpoint);
}

/// Adds the endpoints of a network's containers.
pub(super) fn add_endpoints<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    host_state: &HostState,
    network: &Network,
    bridge: &Link,
) {
    for (id, at) in &network.endpoints {
        let Some(addr) = at.address(F::FAMILY).and_then(F::Addr::of) else {
            continue;
        };
        let veth = host_state
            .veths
            .get(id)
            .and_then(|index| host_state.links.get(index))
            .filter(|link| link.master == Some(bridge.index));
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&at.mac.unwrap_or_default());
        macs[6..].copy_from_slice(&bridge.mac.unwrap_or_default());
        let endpoint = Endpoint {
            generation: generation([id.0.as_str()]),
            ifindex: veth.map_or(0, |link| link.index),
            bridge: bridge.index,
            mtu: veth.map_or(bridge.mtu, |link| link.mtu),
            addr,
            macs,
        };
        let key = EndpointKey::Address(addr);
        tables.endpoints.insert(key, endpoint);
    }
}
