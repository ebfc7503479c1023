// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who decides about a network's traffic, where Docker's rules are kept: the forwarder, or the
//! kernel with all rules of the host.

use crate::host_state::{Network, NetworkMode, NetworkOptions};
use crate::others::{Others, Reach};

/// Returns why a network is left to the kernel; none if the forwarder decides. It does where only
/// Docker's rules and its own can match the network's traffic.
pub(super) fn left_to_kernel(
    network: &Network,
    terms: &NetworkOptions,
    others: &Others,
) -> Option<String> {
    match terms.network_mode {
        NetworkMode::Own => None,
        NetworkMode::Off => Some("its mode is off".to_owned()),
        NetworkMode::Auto => {
            let reach = reach(network);
            let rule = others.rules.iter().find(|rule| rule.may_match(&reach))?;
            Some(rule.text.clone())
        }
    }
}

/// Returns the bridge and the address ranges of one network.
fn reach(network: &Network) -> Reach {
    let ranges = network
        .subnets
        .iter()
        .filter_map(|range| match range.address {
            std::net::IpAddr::V4(address) => Some((address, range.prefix_len)),
            std::net::IpAddr::V6(_) => None,
        });
    Reach {
        bridges: network.bridge.iter().cloned().collect(),
        ranges: ranges.collect(),
    }
}
