// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host state: what Docker and the kernel report, as plain data. Updates go in by
//! [`HostState::apply`], which is pure.
mod model;
mod terms;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::others::Others;

pub use model::*;
pub use terms::{GatewayMode, Ingress, NetworkMode, NetworkOptions};
pub use update::{Listing, Update};

/// Swarm's bridge to the outside.
const GWBRIDGE: &str = "docker_gwbridge";

/// Everything the agent knows about Docker and the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The daemon's version; none while Docker is away, which is no reason to drop what it
    /// reported.
    pub docker: Option<String>,
    /// Networks of every driver.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Containers, including those that do not run.
    pub containers: BTreeMap<ContainerId, Container>,
    /// Devices of our namespace by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses by device, in the kernel's order.
    pub addresses: BTreeMap<u32, Vec<Address>>,
    /// Increases (and wraps) whenever a route changes.
    pub route_generation: u32,
    /// What the IPv4 routes say apart from their next hops.
    pub routing: Routing,
    /// The reverse path filter of outside devices where it is set (`rp_filter`): 1 requires a route
    /// back through the device itself, 2 any route.
    pub reverse_paths: BTreeMap<u32, u8>,
    /// The ports that shims have bound.
    pub bound: BTreeMap<HostPort, Bound>,
    /// Ports of the host's IPv6 addresses that a docker-proxy is about to serve, until Docker lists
    /// them.
    pub proxied: BTreeSet<HostPort>,
    /// Ports that shims released before Docker answered: they are known to have no target.
    pub unbound: BTreeSet<HostPort>,
    /// What other software has configured.
    pub others: Others,
    /// How often the kernel dropped notifications because the agent read too slowly. Everything is
    /// read again then.
    pub overruns: u32,
    /// The host end of each endpoint's veth (its ifindex). `apply` derives it from the other
    /// fields.
    pub veths: BTreeMap<EndpointId, u32>,
    /// Which full lists have arrived at least once.
    pub seen: Seen,
}

/// Which full lists have arrived at least once. Until all have, an absence in the host state proves
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// [`Update::Networks`].
    pub networks: bool,
    /// [`Update::Containers`].
    pub containers: bool,
    /// [`Update::Links`].
    pub links: bool,
    /// [`Update::Addresses`].
    pub addresses: bool,
    /// [`Update::Others`].
    pub others: bool,
}

impl HostState {
    /// Whether every source has sent a full list. Only then does an absence prove anything.
    pub fn is_complete(&self) -> bool {
        let Seen {
            networks,
            containers,
            links,
            addresses,
            ..
        } = self.seen;
        networks && containers && links && addresses
    }

    /// Whether the host's own devices, addresses and rules are known, which does not need Docker.
    pub fn is_host_known(&self) -> bool {
        self.seen.links && self.seen.addresses && self.seen.others
    }

    /// Whether a running container publishes this port, as far as Docker has reported.
    pub fn publishes(&self, port: &HostPort) -> bool {
        let mut running = self.containers.values().filter(|c| c.running);
        running.any(|container| container.ports.iter().any(|own| own.host() == *port))
    }

    /// Applies one update; returns whether anything changed.
    pub fn apply(&mut self, update: Update) -> bool {
        let changed = match update {
            Update::DockerUp { version } => replace(&mut self.docker, Some(version)),
            Update::DockerDown { .. } => replace(&mut self.docker, None),
            Update::Networks(listing) => {
                let all = merge(&self.networks, listing, |network| network.id.clone());
                replace(&mut self.networks, all) | !std::mem::replace(&mut self.seen.networks, true)
            }
            Update::Network(network) => put(&mut self.networks, network.id.clone(), *network),
            Update::NetworkGone(id) => self.networks.remove(&id).is_some(),
            Update::Containers(listing) => {
                let all = merge(&self.containers, listing, |container| container.id.clone());
                replace(&mut self.containers, all)
                    | !std::mem::replace(&mut self.seen.containers, true)
            }
            Update::Container(container) => {
                put(&mut self.containers, container.id.clone(), *container)
            }
            Update::ContainerGone(id) => self.containers.remove(&id).is_some(),
            Update::NetnsGone(netns) => self.forget_netns(netns),
            Update::Links(list) => {
                let all = list.into_iter().map(|l| (l.index, l)).collect();
                replace(&mut self.links, all) | !std::mem::replace(&mut self.seen.links, true)
            }
            Update::Link(link) => put(&mut self.links, link.index, link),
            Update::LinkGone(index) => {
                self.links.remove(&index).is_some() | self.addresses.remove(&index).is_some()
            }
            Update::Addresses(list) => {
                let mut all: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
                for address in list {
                    all.entry(address.link).or_default().push(address);
                }
                replace(&mut self.addresses, all)
                    | !std::mem::replace(&mut self.seen.addresses, true)
            }
            Update::RouteChanged(routing) => {
                self.routing = *routing;
                self.route_generation = self.route_generation.wrapping_add(1);
                true
            }
            Update::ReversePaths(modes) => {
                let changed = self.reverse_paths != modes;
                self.reverse_paths = modes;
                changed
            }
            Update::Bound(port, bound) => {
                self.unbound.remove(&port);
                put(&mut self.bound, port, bound)
            }
            Update::Proxied(port) => self.proxied.insert(port),
            Update::ProxyKnown(port) => self.proxied.remove(&port),
            Update::Unbound(shim) => self.unbind(shim),
            Update::ShimGone(shim) => {
                let before = self.bound.len();
                self.bound.retain(|_, bound| bound.shim != shim);
                self.bound.len() != before
            }
            Update::Others(others) => {
                self.seen.others = true;
                replace(&mut self.others, *others)
            }
            Update::Overrun => {
                self.overruns = self.overruns.wrapping_add(1);
                true
            }
        };
        if self.is_complete() {
            // From here on an absence in Docker's lists proves the same.
            self.unbound.clear();
        }
        if changed {
            self.veths = self.match_veths();
        }
        changed
    }

    /// Returns the bridge device of a network, once it exists.
    pub fn bridge(&self, network: &Network) -> Option<&Link> {
        let name = network.bridge.as_deref()?;
        self.links.values().find(|link| link.name == name)
    }

    /// Returns the address of a family that a container's published ports lead to, and its network:
    /// its gateway endpoint, or if it has none (a service of swarm), its endpoint on
    /// `docker_gwbridge`, which only the network lists.
    pub fn gateway_of<'a>(
        &'a self,
        container: &'a Container,
        family: Family,
    ) -> Option<(&'a NetworkId, IpAddr)> {
        let listed = container.gateway_endpoint(family, &self.networks);
        let of_swarm = || {
            let bridge = self.networks.values().find(|n| n.name == GWBRIDGE)?;
            let mut seats = bridge.endpoints.values();
            let at = seats.find(|at| at.container == container.id)?;
            Some((&bridge.id, at.address(family)?))
        };
        match listed {
            Some((id, endpoint)) => Some((id, endpoint.address(family)?)),
            None => of_swarm(),
        }
    }

    /// Returns the network and the container that an address belongs to.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<(&NetworkId, &ContainerId)> {
        self.networks.values().find_map(|network| {
            let at = network.endpoints.values().find(|at| match address {
                IpAddr::V4(v4) => at.ipv4 == Some(v4),
                IpAddr::V6(v6) => at.ipv6 == Some(v6),
            });
            at.map(|at| (&network.id, &at.container))
        })
    }

    /// Returns the gateway of a network: the address that IPAM names, else the bridge's first
    /// address inside one of the network's ranges.
    pub fn gateway(&self, network: &Network, family: Family) -> Option<IpAddr> {
        let ranges = || {
            network
                .subnets
                .iter()
                .filter(|s| Family::of(s.address) == family)
        };
        ranges().find_map(|subnet| subnet.gateway).or_else(|| {
            let own = self.addresses.get(&self.bridge(network)?.index)?;
            own.iter()
                .map(|a| a.address)
                .find(|&a| ranges().any(|subnet| subnet.contains(a)))
        })
    }

    fn unbind(&mut self, shim: ShimId) -> bool {
        let own = self.bound.iter().filter(|(_, bound)| bound.shim == shim);
        let given_back: BTreeSet<HostPort> = own.map(|(port, _)| *port).collect();
        self.bound.retain(|port, _| !given_back.contains(port));
        for container in self.containers.values_mut() {
            container
                .ports
                .retain(|own| !given_back.contains(&own.host()));
        }
        let changed = !given_back.is_empty();
        self.unbound.extend(given_back);
        changed
    }

    fn forget_netns(&mut self, netns: NetnsId) -> bool {
        let mut changed = false;
        for container in self
            .containers
            .values_mut()
            .filter(|c| c.netns == Some(netns))
        {
            container.netns = None;
            changed = true;
        }
        for peer in self
            .links
            .values_mut()
            .filter_map(|link| link.peer.as_mut())
        {
            if peer.netns == Some(netns) {
                // The device remains until its own LinkGone, but its peer has gone, and the
                // namespace number may be reused.
                *peer = Peer {
                    index: peer.index,
                    ..Peer::default()
                };
                changed = true;
            }
        }
        changed
    }

    /// Finds the host end of each endpoint's veth.
    ///
    /// A container has at most one endpoint per network, so (bridge, namespace) identifies its
    /// veth, and nothing that a container does to its own devices can change the result. Before a
    /// container runs, Docker does not report its namespace. Then the address of the veth's peer
    /// decides, among the veths that lead to no known container, so that another container cannot
    /// impersonate the new one. A container that is reported as running but has no namespace has
    /// just died: it has no veth, and its address may already belong to another container.
    fn match_veths(&self) -> BTreeMap<EndpointId, u32> {
        let taken: BTreeSet<NetnsId> = self.containers.values().filter_map(|c| c.netns).collect();
        let mut by_netns = BTreeMap::new();
        let mut by_mac = BTreeMap::new();
        for link in self.links.values().filter(|link| link.kind == "veth") {
            let (Some(master), Some(peer)) = (link.master, &link.peer) else {
                continue;
            };
            let Some(netns) = peer.netns else { continue };
            by_netns.insert((master, netns), link.index);
            if let Some(mac) = peer.mac.filter(|_| !taken.contains(&netns)) {
                by_mac.insert((master, mac), link.index);
            }
        }
        let bridges: BTreeMap<&str, u32> = self
            .links
            .values()
            .map(|l| (l.name.as_str(), l.index))
            .collect();
        let mut veths = BTreeMap::new();
        for network in self.networks.values() {
            let Some(&bridge) = network.bridge.as_deref().and_then(|name| bridges.get(name)) else {
                continue;
            };
            for (id, endpoint) in &network.endpoints {
                let container = self.containers.get(&endpoint.container);
                let running = container.is_some_and(|c| c.running);
                let link = match (container.and_then(|c| c.netns), endpoint.mac) {
                    (Some(netns), _) => by_netns.get(&(bridge, netns)),
                    (None, Some(mac)) if !running => by_mac.get(&(bridge, mac)),
                    (None, _) => None,
                };
                veths.extend(link.map(|&index| (id.clone(), index)));
            }
        }
        veths
    }
}

/// Merges a full list; items that could not be read keep their state from `old`.
fn merge<Id: Ord + Clone, T: Clone>(
    old: &BTreeMap<Id, T>,
    Listing { list, unread }: Listing<T, Id>,
    id: impl Fn(&T) -> Id,
) -> BTreeMap<Id, T> {
    let kept = unread.iter().filter_map(|id| old.get(id).cloned());
    kept.chain(list).map(|item| (id(&item), item)).collect()
}

fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    *place = value;
    changed
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    let changed = map.get(&key) != Some(&value);
    map.insert(key, value);
    changed
}
