// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's own addresses, and those that masquerade uses.

use std::collections::BTreeSet;

use forwarder_common::family::Address;

use super::HostFamily;
use crate::address::WireAddress;
use crate::desired_state::FamilyTables;
use crate::host_state::HostState;

/// Returns the host's own addresses as the kernel routes them: addresses of devices, and local
/// ranges without a device address. Loopback addresses never appear on a wire.
pub(super) fn host_addresses<F: HostFamily>(host_state: &HostState) -> BTreeSet<(F::Addr, u8)> {
    let all = host_state.addresses.values().flatten();
    let own = all.filter_map(|address| F::Addr::of(address.address));
    let own = own.filter(|own| !own.is_loopback());
    let routed = host_state.routing.locals.iter();
    own.map(|own| (own, F::Addr::BITS))
        .chain(routed.filter_map(|&(to, len)| F::Addr::range(to.into(), len)))
        .collect()
}

/// Adds the masquerade addresses of a device by the next hop's subnet, as `inet_select_addr`
/// chooses them: the primary address whose subnet (or whose peer's subnet) contains the next hop,
/// else the device's first address, else the first address of any device.
pub(super) fn add_masq_addresses<F: HostFamily>(
    tables: &mut FamilyTables<F>,
    host_state: &HostState,
    index: u32,
) {
    let own = primary::<F::Addr>(host_state, index);
    let first = own.first().copied().or_else(|| {
        let mut others = host_state.addresses.keys();
        others.find_map(|&other| primary::<F::Addr>(host_state, other).first().copied())
    });
    let by_subnet = own.iter().map(|&(own, range)| (range, own));
    let sources = by_subnet.chain(first.map(|(own, _)| ((F::Addr::default(), 0), own)));
    for ((address, len), source) in sources {
        let key = (index, address, len);
        tables.masq_addresses.entry(key).or_insert(source);
    }
}

/// Returns the primary addresses of a device, each with its subnet or its peer's.
fn primary<A: Address + WireAddress>(host_state: &HostState, device: u32) -> Vec<(A, (A, u8))> {
    let all = host_state.addresses.get(&device).into_iter().flatten();
    all.filter(|address| !address.secondary && address.scope == 0)
        .filter_map(|address| {
            let own = A::of(address.address).filter(|own| !own.is_loopback())?;
            let range = |at| A::range(at, address.prefix_len);
            let of_peer = address.peer.and_then(range);
            Some((own, of_peer.or_else(|| range(address.address))?))
        })
        .collect()
}
