// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPsec policies of other software that apply to containers' packets.

use std::net::IpAddr;

use forwarder_common::abi::{ingress, others};

use super::HostFamily;
use crate::address::WireAddress as _;
use crate::desired_state::FamilyTables;
use crate::host_state::HostState;
use crate::others::{Direction, IpsecPolicy, Reach, overlap};

/// Returns the IPsec policies that may apply to packets of containers, matched by the containers'
/// own addresses or by the host's.
pub fn applying_policies(host_state: &HostState) -> impl Iterator<Item = &IpsecPolicy> {
    let ranges = reach(host_state, |_| true).ranges;
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
pub(super) fn add_protected<F: HostFamily>(tables: &mut FamilyTables<F>, host_state: &HostState) {
    for policy in applying_policies(host_state).filter(|policy| is_of_the_host(host_state, policy))
    {
        let (dst, len) = policy.dst;
        let range = F::Addr::range(dst.into(), len);
        let key = range.map(|(dst, len)| (others::PROTECTED, dst, len));
        tables.ingress.extend(key.map(|key| (key, ingress::ALLOW)));
    }
}

/// Returns the bridges and address ranges of containers, of those networks whose bridge's index is
/// wanted.
#[must_use]
pub fn reach(host_state: &HostState, is_wanted: impl Fn(u32) -> bool) -> Reach {
    let bridged = || {
        let all = host_state.networks.values();
        all.filter(|network| {
            let bridge = host_state.bridge(network);
            bridge.is_some_and(|link| is_wanted(link.index))
        })
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
