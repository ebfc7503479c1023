// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel should hold, derived from the host state: pure.

mod ipv6;
mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use forwarder_common::abi::{
    Device, Endpoint, TrustKey, allowed, capacity, device, ingress, network, others,
};
use forwarder_common::family::{Be32, V4};
use ipnet::IpNet;

pub use self::ipv6::port_key6;
pub use self::published::port_key;
use crate::acl::AclTable;
use crate::address::WireAddress;
use crate::desired_state::{
    DEFRAG_LOOPBACK, DesiredState, EndpointKey, Hook, NetworkRow, PeerVeth, SocketHook, XdpKind,
};
use crate::generation::generation;
use crate::host_state::{
    Container, Family, GatewayMode, HostState, Link, LinkLayer, Network, NetworkOptions,
};
use crate::others::{Direction, IpsecPolicy, Reach, overlap};
use crate::overrides::Overrides;

/// The configuration's part in the desired state.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// How the XDP program runs on each uplink that has one.
    pub xdp: BTreeMap<u32, XdpKind>,
    /// Whether XDP also forwards TCP.
    pub xdp_tcp: bool,
    /// Whether published ports can also be reached at the containers' own addresses, from
    /// everywhere.
    pub direct_routing: bool,
    /// The administrator's overrides for networks and ports.
    pub rules: Overrides,
    /// Whether the kernel reassembles fragments.
    pub reassembles: bool,
    /// The socket programs that this kernel accepts.
    pub sockets: BTreeSet<SocketHook>,
}

/// Derives all tables and hooks.
#[must_use]
pub fn desired(host_state: &HostState, policy: &Policy, route_generation: u32) -> DesiredState {
    let mut tables = DesiredState {
        route_generation,
        xdp_tcp: policy.xdp_tcp,
        route_mtu: host_state.routing.mtu,
        sockets: policy.sockets.clone(),
        ..DesiredState::default()
    };
    let bridges = bridges(host_state);
    let terms: BTreeMap<_, _> = bridges
        .values()
        .map(|(network, _)| (&network.id, policy.rules.terms(network)))
        .collect();
    let mut lists = AclTable::default();
    for (&index, &(network, bridge)) in &bridges {
        let terms = &terms[&network.id];
        let network_row = NetworkRow {
            flags: flags(network, terms, policy),
            gateway: host_state
                .gateway(network, Family::V4)
                .and_then(Be32::of)
                .unwrap_or_default(),
            source: terms.host_ipv4.map(Be32::from_std).unwrap_or_default(),
            policy: lists.id(&terms.ingress),
        };
        tables.networks.insert(index, network_row);
        add_trusted(&mut tables, host_state, terms, index);
        add_network(&mut tables, host_state, network, bridge);
        ipv6::add_network(&mut tables, host_state, network, bridge);
        add_allowed(&mut tables, host_state, policy, (network, terms), index);
        ipv6::add_allowed(&mut tables, host_state, policy, (network, terms), index);
        if !terms.icc {
            published::add_links(&mut tables, host_state, network);
        }
        tables
            .devices
            .insert(index, row(device::BRIDGE, index, bridge));
        tables
            .hooks
            .extend([(index, Hook::BridgeIn), (index, Hook::BridgeOut)]);
    }
    for link in host_state.links.values() {
        match link.master.and_then(|master| bridges.get(&master)) {
            Some(&(network, bridge)) => {
                let terms = &terms[&network.id];
                let row = port(&tables, host_state, (network, terms), link, bridge);
                tables.devices.insert(link.index, row);
                tables.hooks.extend([
                    (link.index, Hook::ContainerIn),
                    (link.index, Hook::ContainerOut),
                ]);
            }
            None if is_outside(host_state, link) && !bridges.contains_key(&link.index) => {
                add_outside(&mut tables, host_state, policy, link);
            }
            None if is_others(host_state, link) && !bridges.contains_key(&link.index) => {
                tables
                    .devices
                    .insert(link.index, row(device::OTHER, 0, link));
            }
            _ => {}
        }
    }
    let defrag_loopback = host_state
        .links
        .values()
        .find(|link| link.name == DEFRAG_LOOPBACK);
    if let Some(link) = defrag_loopback.filter(|link| policy.reassembles && link.up) {
        tables.defrag_loopback = link.index;
        tables.hooks.insert((link.index, Hook::DefragOut));
    }
    tables.host_addresses = locals(host_state);
    add_others(&mut tables, host_state);
    ipv6::add_locals(&mut tables, host_state);
    published::add_published(&mut tables, host_state, policy, &terms, &mut lists);
    ipv6::add_published(&mut tables, host_state, policy, &mut lists);
    tables.closed_lists = lists.settle();
    (tables.ingress, tables.policy) = (lists.rows(), lists.generation(&tables));
    ipv6::add_lists(&mut tables, &lists);
    add_protected(&mut tables, host_state);
    if !tables.xdp.is_empty() {
        add_peer_veths(&mut tables, host_state);
    }
    tables
}

/// Returns Docker's bridge networks whose bridge exists, by the bridge's index.
fn bridges(host_state: &HostState) -> BTreeMap<u32, (&Network, &Link)> {
    let of_networks = host_state
        .networks
        .values()
        .filter(|network| network.driver == "bridge");
    of_networks
        .filter_map(|network| {
            host_state
                .bridge(network)
                .map(|link| (link.index, (network, link)))
        })
        .collect()
}

/// Whether packets enter and leave the host through this device at the network layer. Excluded are:
/// a port of a bridge or a bond, loopback, swarm's overlay devices, and devices with a name that
/// Docker gives to its bridges. An IFB is excluded as well: it returns packets to the device they
/// came from, and our programs there complete them. A device that is down carries nothing; one of
/// Docker's veths is down until it has its bridge.
#[must_use]
pub fn is_outside(host_state: &HostState, link: &Link) -> bool {
    let master_routes = |index| {
        host_state
            .links
            .get(&index)
            .is_some_and(|master| master.kind == "vrf")
    };
    link.up
        && link.name != DEFRAG_LOOPBACK
        && link.kind != "ifb"
        && link.master.is_none_or(master_routes)
        && matches!(link.layer, LinkLayer::Ethernet | LinkLayer::Raw)
        && !link.name.starts_with("ov-")
        && !link.name.starts_with("vx-")
        && !may_be_dockers(host_state, link)
}

/// Whether other software may forward through this device although it is not an outside device:
/// loopback, IP over a link layer that Docker does not use, swarm's devices, our defragmentation
/// loopback.
fn is_others(host_state: &HostState, link: &Link) -> bool {
    link.up && link.master.is_none() && !may_be_dockers(host_state, link)
}

/// Whether packets forwarded through this device are untrusted until Docker lists it. Docker may be
/// away or about to list it. Such a device has a name of Docker's, or it is a bridge of any name
/// whose ports are all veths.
fn may_be_dockers(host_state: &HostState, link: &Link) -> bool {
    let is_port = |port: &&Link| port.master == Some(link.index);
    let mut ports = host_state.links.values().filter(is_port);
    is_named_as_dockers(&link.name)
        || link.kind == "bridge"
            && !host_state.seen.networks
            && ports.all(|port| port.kind == "veth")
}

/// Whether Docker has created a bridge's port for a container whose endpoint it may not have listed
/// yet. A container cannot change the name of the host's end.
fn is_containers(port: &Link) -> bool {
    let is_random = |rest: &str| rest.len() == 7 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    port.kind == "veth" && port.name.strip_prefix("veth").is_some_and(is_random)
}

/// Whether a bridge has a name that Docker gives. Docker may be away or about to list the bridge,
/// so what it forwards is untrusted until then.
#[must_use]
pub fn is_named_as_dockers(name: &str) -> bool {
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    matches!(name, "docker0" | "docker_gwbridge") || name.strip_prefix("br-").is_some_and(is_id)
}

fn row(kind: u32, bridge: u32, station: &Link) -> Device {
    Device {
        kind,
        bridge,
        mac: station.mac.unwrap_or_default(),
        ethernet: 1,
        ..Device::default()
    }
}

/// Marks devices on which the kernel's path must apply other software's configuration. What shapes
/// a bridge also shapes all veths behind it.
fn add_others(tables: &mut DesiredState, host_state: &HostState) {
    let flags = |index: u32| {
        let shaping = host_state.others.shaped.get(&index);
        let inward = shaping.is_some_and(|shaping| shaping.inward.is_some());
        let outward = shaping.is_some_and(|shaping| shaping.outward.is_some());
        u32::from(inward) * device::flag::SHAPED_IN + u32::from(outward) * device::flag::SHAPED_OUT
    };
    for (&index, row) in &mut tables.devices {
        let mut shaped = flags(index);
        if matches!(row.kind, device::VETH | device::NAMED_VETH) {
            shaped |= flags(row.bridge);
        }
        if shaped != 0 {
            row.flags |= shaped;
            tables.others |= others::SHAPED;
        }
    }
    if applying_policies(host_state).next().is_some() {
        tables.others |= others::IPSEC;
    }
}

/// Returns the IPsec policies that may apply to packets of containers, matched by the containers'
/// own addresses or by the host's.
pub fn applying_policies(host_state: &HostState) -> impl Iterator<Item = &IpsecPolicy> {
    let ranges = reach(host_state).ranges;
    let policies = host_state
        .others
        .policies
        .iter()
        .filter(|policy| policy.restricts);
    policies.filter(move |policy| policy.may_match(&ranges) || is_of_the_host(host_state, policy))
}

/// Whether a policy applies to packets that leave with an address of the host as source.
fn is_of_the_host(host_state: &HostState, policy: &IpsecPolicy) -> bool {
    let mut own = host_state.addresses.values().flatten();
    policy.direction == Direction::Out
        && own.any(|own| match own.address {
            IpAddr::V4(own) => !own.is_loopback() && overlap((own, 32), policy.src),
            IpAddr::V6(_) => false,
        })
}

/// Adds the destinations to which masqueraded packets must not go without the protection that an
/// IPsec policy demands.
fn add_protected(tables: &mut DesiredState, host_state: &HostState) {
    for policy in applying_policies(host_state).filter(|policy| is_of_the_host(host_state, policy))
    {
        let (dst, len) = policy.dst;
        let range = Be32::range(dst.into(), len);
        let key = range.map(|(dst, len)| (others::PROTECTED, dst, len));
        tables.ingress.extend(key.map(|key| (key, ingress::ALLOW)));
    }
}

/// Returns the bridges and address ranges of containers.
#[must_use]
pub fn reach(host_state: &HostState) -> Reach {
    let bridged = || {
        host_state
            .networks
            .values()
            .filter(|network| network.bridge.is_some())
    };
    let ranges = bridged().flat_map(|network| &network.subnets);
    Reach {
        bridges: bridged()
            .filter_map(|network| network.bridge.clone())
            .collect(),
        ranges: ranges
            .filter_map(|subnet| match subnet.address {
                IpAddr::V4(address) => Some((address, subnet.prefix_len)),
                IpAddr::V6(_) => None,
            })
            .collect(),
    }
}

/// Returns the device row of a bridge's port: a container's veth with the hardware address of the
/// endpoint behind it, unless any address is allowed.
fn port(
    tables: &DesiredState,
    host_state: &HostState,
    (network, terms): (&Network, &NetworkOptions),
    link: &Link,
    bridge: &Link,
) -> Device {
    let id = host_state
        .veths
        .iter()
        .find(|&(_, &veth)| veth == link.index);
    let kind = if id.is_some() {
        device::NAMED_VETH
    } else if is_containers(link) {
        device::VETH
    } else {
        device::PORT
    };
    let endpoint = id.and_then(|(id, _)| network.endpoints.get(id));
    let station = endpoint.and_then(|at| at.mac).filter(|_| !terms.any_mac);
    let has_more = !terms.allowed_sources.is_empty()
        || tables
            .allowed
            .range((link.index, Be32::default(), 0)..)
            .next()
            .is_some_and(|((device, ..), _)| *device == link.index);
    Device {
        station: station.unwrap_or_default(),
        flags: if has_more {
            device::flag::VIRTUAL_ROUTER
        } else {
            0
        },
        ..row(kind, bridge.index, bridge)
    }
}

/// Adds the sources that a network's containers may use besides their own: for the whole network,
/// or for one container.
fn add_allowed(
    tables: &mut DesiredState,
    host_state: &HostState,
    policy: &Policy,
    (network, terms): (&Network, &NetworkOptions),
    bridge: u32,
) {
    let allowed = &mut tables.allowed;
    let route = |allowed: &mut BTreeMap<_, _>, (addr, len): (Be32, u8)| {
        // A range that contains all addresses says nothing about the device.
        if len != 0 {
            allowed.insert((allowed::ROUTES, addr, len), bridge);
        }
    };
    for range in terms.allowed_sources.iter().filter_map(Be32::of_net) {
        allowed.insert((bridge, range.0, range.1), allowed::EACH);
        route(allowed, range);
    }
    for (veth, net, each) in container_sources(host_state, policy, (network, terms)) {
        let Some(range) = Be32::of_net(net) else {
            continue;
        };
        // A source for which there is no room is not allowed.
        if allowed.len() + 3 > capacity::ALLOWED_SOURCES as usize {
            return;
        }
        let word = if each { allowed::EACH } else { allowed::ONE };
        allowed.insert((bridge, range.0, range.1), word);
        allowed.insert((veth, range.0, range.1), allowed::ONE);
        route(allowed, range);
    }
}

/// Returns the sources of both families that single containers of a network may use: the host's end
/// of the container's veth, the range, and whether the network allows the range to each of its
/// containers.
fn container_sources<'a>(
    host_state: &'a HostState,
    policy: &'a Policy,
    (network, terms): (&'a Network, &'a NetworkOptions),
) -> impl Iterator<Item = (u32, &'a IpNet, bool)> {
    let known = network.endpoints.iter().filter_map(|(id, at)| {
        let container = host_state.containers.get(&at.container)?;
        Some((*host_state.veths.get(id)?, container))
    });
    known.flat_map(move |(veth, container)| {
        let ranges = policy.rules.allowed_sources(container).iter();
        ranges.map(move |net| {
            let mut whole = terms.allowed_sources.iter();
            (veth, net, whole.any(|whole| whole.contains(net)))
        })
    })
}

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

fn add_trusted(
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
fn subnets<A: WireAddress>(network: &Network) -> impl Iterator<Item = (A, u8)> {
    let all = network.subnets.iter();
    all.filter_map(|subnet| A::range(subnet.address, subnet.prefix_len))
}

fn add_network(
    tables: &mut DesiredState,
    host_state: &HostState,
    network: &Network,
    bridge: &Link,
) {
    let subnets = subnets(network).map(|subnet| (subnet, bridge.index));
    tables.subnets.extend(subnets);
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
            .endpoints
            .insert(EndpointKey::Address(Be32::from_std(address)), endpoint);
    }
}

fn add_outside(tables: &mut DesiredState, host_state: &HostState, policy: &Policy, link: &Link) {
    let ethernet = link.layer == LinkLayer::Ethernet;
    let mac = link.mac.filter(|_| ethernet).unwrap_or_default();
    let device = Device {
        kind: device::OUTSIDE,
        bridge: 0,
        mac,
        ethernet: u16::from(ethernet),
        flags: match host_state.reverse_paths.get(&link.index) {
            Some(1) => device::flag::REVERSE_STRICT,
            Some(2) => device::flag::REVERSE_LOOSE,
            _ => 0,
        },
        ..Device::default()
    };
    tables.devices.insert(link.index, device);
    let hooks = if ethernet {
        [Hook::OutsideIn, Hook::OutsideOut]
    } else {
        [Hook::OutsideInRaw, Hook::OutsideOutRaw]
    };
    tables.hooks.extend(hooks.map(|hook| (link.index, hook)));
    if let Some(&kind) = policy.xdp.get(&link.index) {
        tables.hooks.insert((link.index, Hook::Uplink));
        tables.xdp.insert(link.index, kind);
    }
    for (address, prefix_len, source) in sources(host_state, link.index) {
        tables
            .masq_addresses
            .entry((link.index, address, prefix_len))
            .or_insert(source);
    }
}

/// Returns the masquerade addresses of a device by the next hop's subnet, as `inet_select_addr`
/// chooses them: the primary address whose subnet (or whose peer's subnet) contains the next hop,
/// else the device's first address, else the first address of any device.
fn sources(host_state: &HostState, index: u32) -> Vec<(Be32, u8, Be32)> {
    let primary = |device: &u32| {
        let own = host_state.addresses.get(device).into_iter().flatten();
        own.filter(|address| !address.secondary && address.scope == 0)
            .filter_map(|address| match address.address {
                IpAddr::V4(v4) if !v4.is_loopback() => {
                    let range = match address.peer {
                        Some(IpAddr::V4(peer)) => peer,
                        _ => v4,
                    };
                    Some((v4, range, address.prefix_len.min(32)))
                }
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let own = primary(&index);
    let first = own.first().copied().or_else(|| {
        host_state
            .addresses
            .keys()
            .find_map(|other| primary(other).first().copied())
    });
    let by_subnet = own
        .iter()
        .map(|&(v4, range, len)| (Be32::from_std(range).prefix(len), len, Be32::from_std(v4)));
    by_subnet
        .chain(first.map(|(v4, ..)| (Be32::default(), 0, Be32::from_std(v4))))
        .collect()
}

/// Returns the host's own addresses as the kernel routes them: addresses of devices, and local
/// ranges without a device address. Loopback addresses never appear on a wire.
fn locals(host_state: &HostState) -> BTreeSet<(Be32, u8)> {
    let all = host_state.addresses.values().flatten();
    let addresses = all.filter_map(|address| match address.address {
        IpAddr::V4(v4) if !v4.is_loopback() => Some((Be32::from_std(v4), 32)),
        _ => None,
    });
    let routed = host_state.routing.locals.iter();
    addresses
        .chain(routed.filter_map(|&(to, len)| Be32::range(to.into(), len)))
        .collect()
}

/// Adds the peers of the veths of running containers: XDP may redirect into them.
fn add_peer_veths(tables: &mut DesiredState, host_state: &HostState) {
    let running = |container: &&Container| container.running && container.pid != 0;
    for container in host_state.containers.values().filter(running) {
        for endpoint in container.endpoints.values() {
            let Some(&veth) = host_state.veths.get(&endpoint.id) else {
                continue;
            };
            let peer = host_state
                .links
                .get(&veth)
                .and_then(|link| link.peer.as_ref());
            let Some(peer) = peer else { continue };
            let peer_veth = PeerVeth {
                sandbox_key: container.sandbox_key.clone(),
                pid: container.pid,
                index: peer.index,
            };
            tables.xdp_devmap.insert(veth, peer_veth);
        }
    }
}
