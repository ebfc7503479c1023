// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is published, and what links open: who may ask which port, and where it leads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use forwarder_common::abi::{LinkKey, PortKey, ServerKey, capacity};
use forwarder_common::family::{Be16, V4};
use forwarder_common::parse::proto;

use super::{Policy, be32, generation};
use crate::acl::AclTable;
use crate::desired_state::{DesiredState, Target};
use crate::host_state::{
    Container, GatewayMode, HostPort, HostState, Ingress, Network, NetworkId, NetworkOptions, Proto,
};

/// What is published: what shims have bound; what Docker lists of running containers that have no
/// shim, which leads to the endpoint that is their gateway; and where a network lets containers be
/// asked straight, their own addresses. A routed network has no ports of the host.
pub(super) fn add_published(
    tables: &mut DesiredState,
    host_state: &HostState,
    policy: &Policy,
    terms: &BTreeMap<&NetworkId, NetworkOptions>,
    lists: &mut AclTable,
) {
    let is_routed = |id: &NetworkId| {
        let terms = terms.get(id);
        terms.is_some_and(|terms| terms.mode == GatewayMode::Routed)
    };
    for (port, bound) in &host_state.bound {
        let (Some(key), IpAddr::V4(address)) = (port_key(port), bound.container_ip) else {
            continue;
        };
        let seat = host_state.seat(bound.container_ip);
        if seat.is_some_and(|(network, _)| is_routed(network)) {
            continue;
        }
        let labels = seat.and_then(|(_, container)| host_state.containers.get(container));
        let list = policy.rules.ingress(labels, port);
        let target = target(key, address, bound.container_port, lists.id(&list));
        tables.published.insert(key, target);
    }
    for container in host_state.containers.values().filter(|c| c.running) {
        if let Some((network, address)) = host_state.gateway_of(container)
            && !is_routed(network)
        {
            for binding in &container.ports {
                let Some(key) = port_key(&binding.host()) else {
                    continue;
                };
                let list = policy.rules.ingress(Some(container), &binding.host());
                let target = target(key, address, binding.container_port, lists.id(&list));
                tables.published.entry(key).or_insert(target);
            }
        }
        for (network, endpoint) in &container.endpoints {
            let (Some(address), Some(terms)) = (endpoint.ipv4, terms.get(network)) else {
                continue;
            };
            let straight = matches!(
                terms.mode,
                GatewayMode::Routed | GatewayMode::NatUnprotected
            ) || policy.direct_routing
                || !terms.trusted.is_empty();
            for &(proto, port) in container.published.iter().filter(|_| straight) {
                let own = HostPort {
                    proto,
                    ip: address.into(),
                    port,
                };
                if let Some(key) = port_key(&own) {
                    let list = straight_ingress(container, policy, (proto, port));
                    let target = target(key, address, port, lists.id(&list));
                    tables.published.insert(key, target);
                }
            }
        }
    }
    add_seen_as(tables);
}

/// By which port of the host's each container is seen when it speaks first from one that it publishes:
/// by that of the same number, which takes no row, else by the lowest. What there is no room for is
/// translated as any other.
fn add_seen_as(tables: &mut DesiredState) {
    let mut seen = BTreeMap::<ServerKey<V4>, u16>::new();
    for (key, target) in &tables.published {
        // Where it is asked straight, nothing stands for it.
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

/// Where a port leads. The same way is the same mapping, whoever tells of it first: that a container
/// is another one by now is told by its endpoint's generation, which flows carry too.
#[must_use]
fn target(key: PortKey<V4>, address: Ipv4Addr, port: u16, policy: u32) -> Target {
    let name = format!("{key:?} {address}:{port}");
    Target {
        addr: be32(address),
        port: Be16::new(port),
        policy,
        generation: generation([name.as_str()]),
    }
}

/// Who may ask a container's port straight: whoever may ask the port of the host that stands for it.
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

/// What links open between containers of a network that do not reach each other: the child's
/// exposed ports, to the parent. On the default bridge only, as with Docker.
pub(super) fn add_links(tables: &mut DesiredState, host_state: &HostState, network: &Network) {
    if network.bridge.as_deref() != Some("docker0") {
        return;
    }
    let address = |container: &Container| container.endpoints.get(&network.id)?.ipv4;
    let running = || host_state.containers.values().filter(|c| c.running);
    for parent in running() {
        let children = running().filter(|child| parent.links.contains(&child.name));
        for child in children {
            let (Some(parent), Some(to)) = (address(parent), address(child)) else {
                continue;
            };
            for &(proto, port) in &child.exposed {
                tables.links.insert(LinkKey {
                    parent: be32(parent),
                    child: be32(to),
                    port: Be16::new(port),
                    proto: number(proto),
                });
            }
        }
    }
}

/// The key of a published port in the datapath, if it is one of IPv4's.
#[must_use]
pub fn port_key(host: &HostPort) -> Option<PortKey<V4>> {
    let IpAddr::V4(address) = host.ip else {
        return None;
    };
    Some(PortKey {
        addr: be32(address),
        port: Be16::new(host.port),
        proto: number(host.proto),
    })
}

/// The number of a protocol whose ports the datapath knows.
pub(super) fn number(proto: Proto) -> u16 {
    match proto {
        Proto::Tcp => proto::TCP as u16,
        Proto::Udp => proto::UDP as u16,
        Proto::Sctp => proto::SCTP as u16,
    }
}
