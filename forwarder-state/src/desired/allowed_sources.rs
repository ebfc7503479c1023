// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sources that containers may use besides their own addresses.

use std::collections::BTreeMap;

use forwarder_common::abi::{allowed, capacity};
use ipnet::IpNet;

use super::{Bridged, BridgedNetwork, HostFamily};
use crate::address::WireAddress as _;
use crate::desired_state::FamilyTables;

/// Adds the sources that a network's containers may use besides their own: for the whole network,
/// or for one container.
pub(super) fn add_allowed<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    bridged: &Bridged<'_>,
    network: &BridgedNetwork<'_>,
) {
    let bridge = network.bridge.index;
    let allowed = &mut tables.allowed;
    let route = |allowed: &mut BTreeMap<_, _>, (addr, len): (F::Addr, u8)| {
        // A range that contains all addresses says nothing about the device.
        if len != 0 {
            allowed.insert((allowed::ROUTES, addr, len), bridge);
        }
    };
    for range in network
        .terms
        .allowed_sources
        .iter()
        .filter_map(F::Addr::of_net)
    {
        allowed.insert((bridge, range.0, range.1), allowed::EACH);
        route(allowed, range);
    }
    for (veth, net, each) in container_sources(bridged, network) {
        let Some(range) = F::Addr::of_net(net) else {
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
pub(super) fn container_sources<'a>(
    bridged: &'a Bridged<'_>,
    of_bridge: &'a BridgedNetwork<'_>,
) -> impl Iterator<Item = (u32, &'a IpNet, bool)> {
    let Bridged {
        host_state, policy, ..
    } = *bridged;
    let BridgedNetwork { network, terms, .. } = of_bridge;
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
