// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv6: which container or network has which address. `forwarder_common::policy::ipv6` decides
//! what follows for a packet.

use std::net::IpAddr;

use forwarder_common::abi::{
    AllowedKey6, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, Published6, allowed, capacity,
};
use forwarder_common::family::Be128;

use super::allowed_sources::container_sources;
use super::networks::subnets;
use super::{Bridged, BridgedNetwork, Policy};
use crate::acl::AclTable;
use crate::address::WireAddress as _;
use crate::desired_state::{DesiredState, Key6, Row6};
use crate::host_state::{Container, Family, HostState, Ingress, Link, Network};
use crate::port_key::port_key6;

/// Whether a network has IPv6.
pub(super) fn is_in(network: &Network) -> bool {
    network
        .subnets
        .iter()
        .any(|subnet| subnet.address.is_ipv6())
}

/// Adds all tables but the access lists.
pub(super) fn add_tables(tables: &mut DesiredState, bridged: &Bridged<'_>, lists: &mut AclTable) {
    for network in bridged.networks.values() {
        add_network(tables, bridged.host_state, network.network, network.bridge);
        add_allowed(tables, bridged, network);
    }
    add_locals(tables, bridged.host_state);
    add_published(tables, bridged.host_state, bridged.policy, lists);
}

/// Adds the host's own addresses; link-local addresses are per device. Loopback addresses never
/// appear on a wire.
fn add_locals(tables: &mut DesiredState, host_state: &HostState) {
    for address in host_state.addresses.values().flatten() {
        let IpAddr::V6(own) = address.address else {
            continue;
        };
        let addr = Be128::from_std(own);
        let ifindex = if addr.is_link_local() {
            address.link
        } else {
            0
        };
        if !own.is_loopback() {
            let key = Key6::Local(HostAddressKey6 { addr, ifindex });
            tables.ipv6.insert(key, Row6::Index(1));
        }
    }
}

/// Adds a network's subnets and its containers' addresses, including the link-local address that
/// follows from a container's MAC address.
fn add_network(
    tables: &mut DesiredState,
    host_state: &HostState,
    network: &Network,
    bridge: &Link,
) {
    if !is_in(network) {
        return;
    }
    let subnets = subnets(network).map(|(address, len)| {
        let key = Key6::Subnet(address, len);
        (key, Row6::Index(bridge.index))
    });
    tables.ipv6.extend(subnets);
    for (id, at) in &network.endpoints {
        let veth = host_state
            .veths
            .get(id)
            .and_then(|index| host_state.links.get(index))
            .filter(|link| link.master == Some(bridge.index))
            .map_or(0, |link| link.index);
        let addr = at.ipv6.map(Be128::from_std);
        for addr in addr.into_iter().chain(at.mac.map(Be128::link_local)) {
            let bridge = bridge.index;
            let key = Key6::Owner(OwnerKey6 { addr, bridge });
            tables.ipv6.insert(key, Row6::Index(veth));
        }
        if veth != 0 {
            let endpoint = Endpoint6 {
                addr: addr.unwrap_or_default(),
                mac: at.mac.unwrap_or_default(),
                reserved: 0,
            };
            let row = Row6::Endpoint(endpoint);
            tables.ipv6.insert(Key6::Endpoint(veth), row);
        }
    }
}

/// Adds the sources that a network's containers may use besides their own: for the whole network,
/// or for one container.
fn add_allowed(tables: &mut DesiredState, bridged: &Bridged<'_>, of_bridge: &BridgedNetwork<'_>) {
    if !is_in(of_bridge.network) {
        return;
    }
    let bridge = of_bridge.bridge.index;
    let rows = &mut tables.ipv6;
    let all = rows.keys().filter(|key| matches!(key, Key6::Allowed(..)));
    let mut room = (capacity::ALLOWED_SOURCES as usize).saturating_sub(all.count());
    let mut allow = |device, (source, len), word| {
        let key = Key6::Allowed(AllowedKey6 { device, source }, len);
        rows.insert(key, Row6::Index(word));
    };
    for range in of_bridge
        .terms
        .allowed_sources
        .iter()
        .filter_map(Be128::of_net)
    {
        room = room.saturating_sub(1);
        allow(bridge, range, allowed::EACH);
    }
    for (veth, net, each) in container_sources(bridged, of_bridge) {
        let Some(range) = Be128::of_net(net) else {
            continue;
        };
        if each {
            continue;
        }
        // A source for which there is no room is not allowed.
        let Some(left) = room.checked_sub(2) else {
            return;
        };
        room = left;
        allow(bridge, range, allowed::ONE);
        allow(veth, range, allowed::ONE);
    }
}

/// Adds the clients of ports published on the host's IPv6 addresses, from Docker's list of running
/// containers. A port that Docker does not list yet admits no client.
fn add_published(
    tables: &mut DesiredState,
    host_state: &HostState,
    policy: &Policy,
    lists: &mut AclTable,
) {
    for port in &host_state.proxied {
        if let Some(key) = port_key6(port) {
            let published = Published6 {
                policy: lists.id(&Ingress::closed()),
                ..Published6::default()
            };
            let row = Row6::Published(published);
            tables.ipv6.insert(Key6::Published(key), row);
        }
    }
    for container in host_state.containers.values().filter(|c| c.running) {
        let bridges = bridges_of(host_state, container);
        for binding in &container.ports {
            let Some(key) = port_key6(&binding.host()) else {
                continue;
            };
            let list = policy.rules.ingress(Some(container), &binding.host());
            let published = Published6 {
                policy: lists.id(&list),
                bridges,
            };
            let row = Row6::Published(published);
            tables.ipv6.insert(Key6::Published(key), row);
        }
    }
    let has_list = |(_, row): (_, &Row6)| {
        let Row6::Published(published) = row else {
            return false;
        };
        let of_network = |bridge| {
            tables
                .v4
                .networks
                .get(bridge)
                .is_some_and(|row| row.policy != 0)
        };
        published.policy != 0 || published.bridges.iter().any(of_network)
    };
    tables.lists6 = tables.ipv6.iter().any(has_list);
}

/// Returns the bridges through which docker-proxy may reach a container: that of its IPv4 gateway,
/// to which Docker up to 27 sends both families, and that of its IPv6 gateway.
fn bridges_of(host_state: &HostState, container: &Container) -> [u32; 2] {
    let by_ipv4 = host_state
        .gateway_of(container, Family::V4)
        .map(|(id, _)| id);
    let by_ipv6 = container.gateway_endpoint(Family::V6, &host_state.networks);
    let by_ipv6 = by_ipv6.map(|(id, _)| id).filter(|&id| by_ipv4 != Some(id));
    [by_ipv4, by_ipv6].map(|id| {
        let network = id.and_then(|id| host_state.networks.get(id));
        let bridge = network.and_then(|network| host_state.bridge(network));
        bridge.map_or(0, |link| link.index)
    })
}

/// Adds the access lists if any port uses one.
pub(super) fn add_lists(tables: &mut DesiredState, lists: &AclTable) {
    if !tables.lists6 {
        return;
    }
    let rows = lists.rows().into_iter().map(|((list, client, len), word)| {
        let key = Key6::Ingress(IngressKey6 { list, client }, len);
        (key, Row6::Index(word))
    });
    tables.ipv6.extend(rows);
}
