// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's own addresses, and those that masquerade uses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use forwarder_common::family::Be32;

use crate::address::WireAddress as _;
use crate::host_state::HostState;

/// Returns the host's own addresses as the kernel routes them: addresses of devices, and local
/// ranges without a device address. Loopback addresses never appear on a wire.
pub(super) fn locals(host_state: &HostState) -> BTreeSet<(Be32, u8)> {
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

/// Returns the masquerade addresses of a device by the next hop's subnet, as `inet_select_addr`
/// chooses them: the primary address whose subnet (or whose peer's subnet) contains the next hop,
/// else the device's first address, else the first address of any device.
pub(super) fn sources(host_state: &HostState, index: u32) -> Vec<(Be32, u8, Be32)> {
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
