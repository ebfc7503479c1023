// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host state: what Docker and the kernel say, as plain data. Updates go in by [`HostState::apply`], which is pure.
mod model;
mod terms;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::others::Others;

pub use model::*;
pub use terms::{GatewayMode, Ingress, NetworkOptions};
pub use update::{Listing, Update};

/// Swarm's bridge towards the outside.
const GWBRIDGE: &str = "docker_gwbridge";

/// Everything that the agent knows about Docker and the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The version of the daemon; none while it is away, which is no reason to drop what it said.
    pub docker: Option<String>,
    /// Networks of every driver.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Containers, also those that do not run.
    pub containers: BTreeMap<ContainerId, Container>,
    /// Devices of our namespace by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses by device, in the kernel's order.
    pub addresses: BTreeMap<u32, Vec<Address>>,
    /// Moves on (and wraps) whenever a route changed.
    pub route_generation: u32,
    /// What the IPv4 routes say beyond their next hops.
    pub routing: Routing,
    /// What outside devices ask of a source, where they ask for anything: 1 for a route back by the
    /// device itself, 2 for any (`rp_filter`).
    pub reverse_paths: BTreeMap<u32, u8>,
    /// What shims have bound.
    pub bound: BTreeMap<HostPort, Bound>,
    /// Ports of the host's IPv6 addresses that a docker-proxy is about to serve, until Docker lists them.
    pub proxied: BTreeSet<HostPort>,
    /// What shims gave back while Docker was not heard yet: that these lead nowhere is known.
    pub unbound: BTreeSet<HostPort>,
    /// What others have set up.
    pub others: Others,
    /// How often the kernel dropped notices that we were too slow to read (all was read anew then).
    pub overruns: u32,
    /// The host end of each endpoint's veth (its ifindex); derived from the rest by `apply`.
    pub veths: BTreeMap<EndpointId, u32>,
    /// Which full lists have come at least once.
    pub seen: Seen,
}

/// Which full lists have come at least once: before all have, what is absent from the host state says nothing.
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
}

impl HostState {
    /// Whether every source has given a full list: only then may anything be derived from an absence.
    pub fn is_complete(&self) -> bool {
        let Seen {
            networks,
            containers,
            links,
            addresses,
        } = self.seen;
        networks && containers && links && addresses
    }

    /// Whether the host's own devices and addresses are known, which does not need Docker.
    pub fn is_host_known(&self) -> bool {
        self.seen.links && self.seen.addresses
    }

    /// Whether a running container has this port, as far as Docker has said.
    pub fn publishes(&self, port: &HostPort) -> bool {
        let mut running = self.containers.values().filter(|c| c.running);
        running.any(|container| container.ports.iter().any(|own| own.host() == *port))
    }

    /// Takes in one update; returns whether anything is different now.
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
            Update::Others(others) => replace(&mut self.others, *others),
            Update::Overrun => {
                self.overruns = self.overruns.wrapping_add(1);
                true
            }
        };
        if self.is_complete() {
            // An absence says as much from here on.
            self.unbound.clear();
        }
        if changed {
            self.veths = self.match_veths();
        }
        changed
    }

    /// The bridge device of a network, once it exists.
    pub fn bridge(&self, network: &Network) -> Option<&Link> {
        let name = network.bridge.as_deref()?;
        self.links.values().find(|link| link.name == name)
    }

    /// The address that a container's published ports lead to, and its network: the endpoint that is
    /// its gateway, or where none is (a service of swarm's), the one on `docker_gwbridge`, which only
    /// the network lists.
    pub fn gateway_of<'a>(&'a self, container: &'a Container) -> Option<(&'a NetworkId, Ipv4Addr)> {
        let listed = container.gateway_endpoint(Family::V4, &self.networks);
        let of_swarm = || {
            let bridge = self.networks.values().find(|n| n.name == GWBRIDGE)?;
            let mut seats = bridge.endpoints.values();
            let at = seats.find(|at| at.container == container.id)?;
            Some((&bridge.id, at.ipv4?))
        };
        match listed {
            Some((id, endpoint)) => Some((id, endpoint.ipv4?)),
            None => of_swarm(),
        }
    }

    /// Who has an address: the network, and the container.
    pub fn seat(&self, address: IpAddr) -> Option<(&NetworkId, &ContainerId)> {
        self.networks.values().find_map(|network| {
            let at = network.endpoints.values().find(|at| match address {
                IpAddr::V4(v4) => at.ipv4 == Some(v4),
                IpAddr::V6(v6) => at.ipv6 == Some(v6),
            });
            at.map(|at| (&network.id, &at.container))
        })
    }

    /// The gateway of a network: what IPAM names, else the bridge's own first address inside one of its ranges.
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
                // Left over until its own LinkGone: it leads nowhere, and the number will be another's.
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
    /// A container has at most one endpoint per network, so (bridge, namespace) names its veth, and nothing that a
    /// container does to its own devices can change the answer. Before it runs Docker does not tell its namespace: then
    /// the address of the far end decides, among the veths that lead to no known container, so that another one
    /// cannot pose as the newcomer. A container that is believed to run in no namespace has just died: it has no veth,
    /// and its address may be another's by now.
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

/// A full list, with what could not be read kept as it is in `old`.
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
