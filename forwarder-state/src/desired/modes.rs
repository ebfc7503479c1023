// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who decides about a network's traffic, where Docker's rules are kept: the forwarder, or the
//! kernel with all rules of the host.

use crate::desired_state::Left;
use crate::host_state::{HostState, Network, NetworkMode, NetworkOptions};
use crate::others::netfilter::{Effect, Scope};
use crate::others::{Reach, Rule};

/// Who decides about a network's traffic instead of the forwarder: none if the forwarder decides. It
/// does where only Docker's rules and its own can match the network's traffic. The kernel's
/// connections are followed where others' rules treat all packets of a connection alike.
pub(super) fn left_to_kernel(
    network: &Network,
    terms: &NetworkOptions,
    host_state: &HostState,
) -> Option<Left> {
    let left = |why: &str, is_followed| {
        let why = why.to_owned();
        Some(Left { why, is_followed })
    };
    match terms.network_mode {
        NetworkMode::Own => None,
        NetworkMode::Off => left("its mode is off", false),
        NetworkMode::Follow => left("its mode is follow", true),
        NetworkMode::Auto => {
            let reach = reach(network);
            let rules = host_state.others.rules.iter();
            let deciding = rules
                .filter(|rule| rule.may_match(&reach) && !is_masquerade(rule, host_state))
                .collect::<Vec<_>>();
            let is_by_packet = |rule: &&&Rule| is_by_packet(rule, host_state);
            match deciding.iter().find(is_by_packet) {
                Some(rule) => left(&rule.text, false),
                None => left(&deciding.first()?.text, true),
            }
        }
    }
}

/// Whether a rule treats packets of one connection differently, or sends them a way that only the
/// kernel knows.
fn is_by_packet(rule: &Rule, host_state: &HostState) -> bool {
    let others = &host_state.others;
    // Routing rules and queues ask for marks.
    let marks_count = !others.routing.is_empty() || !others.shaped.is_empty();
    rule.scope == Scope::Packet || rule.effect == Effect::Mark && marks_count
}

/// Whether a rule is Docker's masquerade of a network: of what its containers send (by the rule's text
/// alone it is anybody's, if its user chose the bridge's name), or, without the userland proxy, of
/// what the host itself sends to a published port by 127.0.0.1.
fn is_masquerade(rule: &Rule, host_state: &HostState) -> bool {
    let mut bridges = host_state
        .networks
        .values()
        .filter_map(|network| network.bridge.as_ref());
    rule.effect == Effect::Snat
        && bridges.any(|bridge| {
            let hosts = format!("-o {bridge} -m addrtype --src-type LOCAL -j MASQUERADE");
            let containers = format!("! -o {bridge} -j MASQUERADE");
            rule.text.ends_with(&containers) || rule.text.ends_with(&hosts)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masquerade_by_a_bridges_name_is_dockers() {
        let mut host_state = HostState::default();
        let network = Network {
            bridge: Some("db0".to_owned()),
            ..Network::default()
        };
        host_state.networks.insert("db".into(), network.clone());
        let masquerade = |what: &str| Rule {
            text: format!("iptables-nft -t nat -A POSTROUTING {what} -j MASQUERADE"),
            effect: Effect::Snat,
            scope: Scope::Connection,
            src: None,
            dst: None,
            inward: None,
            outward: None,
            decided: Default::default(),
        };
        let terms = NetworkOptions::default();
        for dockers in [
            "-s 172.30.0.0/16 ! -o db0",
            "-o db0 -m addrtype --src-type LOCAL",
        ] {
            host_state.others.rules = vec![masquerade(dockers)];
            let left = left_to_kernel(&network, &terms, &host_state);
            assert_eq!(left, None, "{dockers}");
        }
        host_state.others.rules = vec![masquerade("-s 172.30.0.0/16 ! -o wg0")];
        assert!(left_to_kernel(&network, &terms, &host_state).is_some());
    }
}
