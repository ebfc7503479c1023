// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel should hold, derived from the host state: pure.

mod addresses;
mod allowed_sources;
mod devices;
mod ipsec;
mod ipv6;
mod networks;
mod published;

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::device;
use forwarder_common::family::Be32;

use self::addresses::locals;
use self::allowed_sources::add_allowed;
use self::devices::{add_others, add_outside, add_peer_veths, is_others, port, row};
pub use self::devices::{is_named_as_dockers, is_outside};
use self::ipsec::add_protected;
pub use self::ipsec::{applying_policies, reach};
pub use self::ipv6::port_key6;
use self::networks::{add_network, add_trusted, flags};
pub use self::published::port_key;
use crate::acl::AclTable;
use crate::address::WireAddress as _;
use crate::desired_state::{DEFRAG_LOOPBACK, DesiredState, Hook, NetworkRow, SocketHook, XdpKind};
use crate::host_state::{Family, HostState, Link, Network};
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
        tables.v4.networks.insert(index, network_row);
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
    tables.v4.host_addresses = locals(host_state);
    add_others(&mut tables, host_state);
    ipv6::add_locals(&mut tables, host_state);
    published::add_published(&mut tables, host_state, policy, &terms, &mut lists);
    ipv6::add_published(&mut tables, host_state, policy, &mut lists);
    tables.closed_lists = lists.settle();
    (tables.v4.ingress, tables.policy) = (lists.rows(), lists.generation(&tables));
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
