// SPDX-License-Identifier: MIT OR Apache-2.0
//! Published ports and links: which clients may reach which port, and what its target is.

use std::collections::BTreeMap;

use forwarder_common::abi::{LinkKey, PortKey, ServerKey, capacity};
use forwarder_common::family::Be16;

use super::{Bridged, HostFamily, Policy};
use crate::acl::AclTable;
use crate::address::WireAddress as _;
use crate::desired_state::{FamilyTables, Target};
use crate::generation::generation;
use crate::host_state::{
    Container, GatewayMode, HostPort, HostState, Ingress, Network, NetworkId, Proto,
};
use crate::port_key::{number, port_key};

/// Adds the published ports: ports that shims have bound; ports that Docker lists for running
/// containers without a shim, whose target is the container's gateway endpoint; and, where a
/// network allows direct access, the containers' own addresses. A routed network has no ports of
/// the host.
pub(super) fn add_published<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    bridged: &Bridged<'_>,
    lists: &mut AclTable,
) {
    let Bridged {
        host_state, policy, ..
    } = *bridged;
    let is_routed = |id: &NetworkId| {
        let terms = bridged.terms(id);
        terms.is_some_and(|terms| terms.mode == GatewayMode::Routed)
    };
    for (port, bound) in &host_state.bound {
        let (Some(key), Some(address)) = (port_key(port), F::Addr::of(bound.container_ip)) else {
            continue;
        };
        let endpoint = host_state.endpoint_at(bound.container_ip);
        if endpoint.is_some_and(|(network, _)| is_routed(network) || bridged.is_left(network)) {
            continue;
        }
        let labels = endpoint.and_then(|(_, container)| host_state.containers.get(container));
        let list = policy.rules.ingress(labels, port);
        let target = target(key, address, bound.container_port, lists.id(&list));
        tables.published.insert(key, target);
    }
    for container in host_state.containers.values().filter(|c| c.running) {
        if let Some((network, address)) = host_state.gateway_of(container, F::FAMILY)
            && let Some(address) = F::Addr::of(address)
            && !is_routed(network)
            && !bridged.is_left(network)
        {
            for binding in &container.ports {
                let Some(key) = port_key(&binding.host()) else {
                    continue;
                };
                let list = policy.rules.ingress(Some(container), &binding.host());
                let list = lists.id(&list);
                let published = tables.published.entry(key);
                published.or_insert_with(|| target(key, address, binding.container_port, list));
            }
        }
        for (network, endpoint) in &container.endpoints {
            let (Some(ip), Some(terms)) = (endpoint.address(F::FAMILY), bridged.terms(network))
            else {
                continue;
            };
            let straight = matches!(
                terms.mode,
                GatewayMode::Routed | GatewayMode::NatUnprotected
            ) || policy.direct_routing
                || !terms.trusted.is_empty();
            for &(proto, port) in container.published.iter().filter(|_| straight) {
                let own = HostPort { proto, ip, port };
                if let Some(key) = port_key::<F>(&own) {
                    let list = straight_ingress(container, policy, (proto, port));
                    let target = target(key, key.addr, port, lists.id(&list));
                    tables.published.insert(key, target);
                }
            }
        }
    }
    add_seen_as(tables);
}

/// Adds the host port that replaces a container's source port when the container opens a flow from
/// a port that it publishes: the host port with the same number, which needs no row, else the
/// lowest. A port without room in the map is translated as any other.
fn add_seen_as<F: HostFamily>(tables: &mut FamilyTables<F>) {
    let mut seen = BTreeMap::<ServerKey<F>, u16>::new();
    for (key, target) in &tables.published {
        // A directly reached port has no host port that stands for it.
        if key.addr == target.addr {
            continue;
        }
        let server = ServerKey {
            at: key.addr,
            addr: target.addr,
            port: target.port,
            proto: key.proto,
        };
        let (port, own) = (key.port.get(), target.port.get());
        let seen = seen.entry(server).or_insert(port);
        if port == own || *seen != own && port < *seen {
            *seen = port;
        }
    }
    let others = seen
        .into_iter()
        .filter(|(server, port)| *port != server.port.get())
        .map(|(server, port)| (server, u32::from(port)));
    tables.seen_as = others.take(capacity::SEEN_AS as usize).collect();
}

/// Returns a port's target. The same target is the same mapping, whichever source reports it first.
/// A new container at the same address has another endpoint generation, which flows also record.
#[must_use]
fn target<F: HostFamily>(key: PortKey<F>, addr: F::Addr, port: u16, policy: u32) -> Target<F> {
    let name = format!("{key:?} {}:{port}", addr.ip());
    Target {
        addr,
        port: Be16::new(port),
        policy,
        generation: generation([name.as_str()]),
    }
}

/// Returns the clients that may reach a container's port directly: those that may reach the host
/// port that stands for it.
fn straight_ingress(
    container: &Container,
    policy: &Policy,
    (proto, port): (Proto, u16),
) -> Ingress {
    let binding = container
        .ports
        .iter()
        .find(|binding| binding.proto == proto && binding.container_port == port);
    binding.map_or_else(
        || container.ingress.clone(),
        |binding| policy.rules.ingress(Some(container), &binding.host()),
    )
}

/// Adds what links open between containers of a network without inter-container communication: the
/// child's exposed ports, to the parent. As with Docker, this is for the default bridge only.
pub(super) fn add_links<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    host_state: &HostState,
    network: &Network,
) {
    if network.bridge.as_deref() != Some("docker0") {
        return;
    }
    let address = |container: &Container| {
        let endpoint = container.endpoints.get(&network.id)?;
        endpoint.address(F::FAMILY).and_then(F::Addr::of)
    };
    let running = || host_state.containers.values().filter(|c| c.running);
    for parent in running() {
        let children = running().filter(|child| parent.links.contains(&child.name));
        for child in children {
            let (Some(parent), Some(addr)) = (address(parent), address(child)) else {
                continue;
            };
            for &(proto, port) in &child.exposed {
                tables.links.insert(LinkKey {
                    parent,
                    child: addr,
                    port: Be16::new(port),
                    proto: number(proto),
                });
            }
        }
    }
}
