// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel should hold, derived from the host state: pure.

mod addresses;
mod allowed_sources;
mod devices;
mod ipsec;
mod ipv6;
mod modes;
mod networks;
mod published;

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{Device, device};
use forwarder_common::family::{Family, V4};

use self::devices::add_devices;
pub use self::devices::{is_named_as_dockers, is_outside};
pub use self::ipsec::{applying_policies, reach};
use crate::acl::{AclTable, Listed};
use crate::desired_state::{DesiredState, FamilyTables, Left, SocketHook, XdpKind};
use crate::host_state::{self, HostState, Link, Network, NetworkId, NetworkOptions};
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
    /// Whether Docker's own rules are kept.
    pub keeps_rules: bool,
}

/// Derives all tables and hooks.
#[must_use]
pub fn desired(host_state: &HostState, policy: &Policy, route_generation: u32) -> DesiredState {
    let bridged = Bridged::of(host_state, policy);
    let mut lists = AclTable::default();
    let mut tables = DesiredState {
        route_generation,
        xdp_tcp: policy.xdp_tcp,
        route_mtu: host_state.routing.mtu,
        sockets: policy.sockets.clone(),
        v4: family_tables(&bridged, &mut lists),
        left: bridged.left.clone(),
        ..DesiredState::default()
    };
    add_devices(&mut tables, &bridged);
    ipv6::add_tables(&mut tables, &bridged, &mut lists);
    tables.closed_lists = lists.settle();
    tables.policy = lists.generation(&tables);
    complete_family(&mut tables.v4, host_state, &tables.devices, &lists);
    ipv6::add_lists(&mut tables, &lists);
    tables
}

/// An address family whose tables are derived.
pub(crate) trait HostFamily: Family<Addr: Listed> {
    /// The family as the host state names it.
    const FAMILY: host_state::Family;
}

impl HostFamily for V4 {
    const FAMILY: host_state::Family = host_state::Family::V4;
}

/// Derives the tables of a family, apart from what follows from the devices and from all access
/// lists.
fn family_tables<F: HostFamily>(bridged: &Bridged<'_>, lists: &mut AclTable) -> FamilyTables<F> {
    let mut tables = FamilyTables::default();
    for network in bridged.followed.values() {
        networks::add_endpoints(
            &mut tables,
            bridged.host_state,
            network.network,
            network.bridge,
        );
    }
    for network in bridged.networks.values() {
        networks::add_network(&mut tables, bridged, network, lists);
        allowed_sources::add_allowed(&mut tables, bridged, network);
        if !network.terms.icc {
            published::add_links(&mut tables, bridged.host_state, network.network);
        }
    }
    tables.host_addresses = addresses::host_addresses::<F>(bridged.host_state);
    published::add_published(&mut tables, bridged, lists);
    tables
}

/// Adds to the tables of a family what follows from the devices and from all access lists.
fn complete_family<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    host_state: &HostState,
    devices: &BTreeMap<u32, Device>,
    lists: &AclTable,
) {
    let outside = devices
        .iter()
        .filter(|(_, row)| row.kind == device::OUTSIDE);
    for (&index, _) in outside {
        addresses::add_masq_addresses(tables, host_state, index);
    }
    tables.ingress = lists.rows();
    ipsec::add_protected(tables, host_state);
}

/// Docker's bridge networks whose bridge exists, and what they are derived from.
struct Bridged<'a> {
    host_state: &'a HostState,
    policy: &'a Policy,
    /// By the bridge's index.
    networks: BTreeMap<u32, BridgedNetwork<'a>>,
    /// The bridges' indexes.
    indexes: BTreeMap<&'a NetworkId, u32>,
    /// The bridges of networks about whose traffic the kernel decides, and why.
    left: BTreeMap<u32, Left>,
    /// Those of them whose connections are followed.
    followed: BTreeMap<u32, BridgedNetwork<'a>>,
}

/// A network with its bridge, and its options as the administrator overrides them.
struct BridgedNetwork<'a> {
    network: &'a Network,
    bridge: &'a Link,
    terms: NetworkOptions,
}

impl<'a> Bridged<'a> {
    fn of(host_state: &'a HostState, policy: &'a Policy) -> Self {
        let all = host_state.networks.values();
        let networks = all
            .filter(|network| network.driver == "bridge")
            .filter_map(|network| {
                let bridge = host_state.bridge(network)?;
                let terms = policy.rules.terms(network);
                let of_bridge = BridgedNetwork {
                    network,
                    bridge,
                    terms,
                };
                Some((bridge.index, of_bridge))
            });
        let networks: BTreeMap<_, _> = networks.collect();
        let why = |of: &BridgedNetwork<'_>| {
            let why = modes::left_to_kernel(of.network, &of.terms, host_state);
            why.filter(|_| policy.keeps_rules)
        };
        let left = networks
            .iter()
            .filter_map(|(&index, of)| Some((index, why(of)?)))
            .collect::<BTreeMap<_, _>>();
        let is_left = |(index, _): &(u32, _)| left.contains_key(index);
        let (mut followed, networks): (BTreeMap<_, _>, BTreeMap<_, _>) =
            networks.into_iter().partition(is_left);
        followed.retain(|index, _| left[index].is_followed);
        let index = |(&index, of): (&u32, &BridgedNetwork<'a>)| (&of.network.id, index);
        let indexes = networks.iter().map(index).collect();
        Self {
            host_state,
            policy,
            networks,
            indexes,
            left,
            followed,
        }
    }

    /// Whether a network is left to the kernel.
    fn is_left(&self, id: &NetworkId) -> bool {
        let network = self.host_state.networks.get(id);
        let bridge = network.and_then(|network| self.host_state.bridge(network));
        bridge.is_some_and(|bridge| self.left.contains_key(&bridge.index))
    }

    /// Returns the options of a network.
    fn terms(&self, id: &NetworkId) -> Option<&NetworkOptions> {
        let network = self.networks.get(self.indexes.get(id)?)?;
        Some(&network.terms)
    }
}
