// SPDX-License-Identifier: MIT OR Apache-2.0
//! The route of a flow whose next hop is outside: looked up once per route generation.

use crate::abi::{Direction, Flow, Network, ORIGINAL, REPLY, device};
use crate::conntrack::timeouts;
use crate::environment::{Configuration, FlowTable, Route, Routes};
use crate::family::{Address, Family};
use crate::reason::Reason;

/// The masquerade address of a network's containers towards a next hop: the network's own source
/// address if it has one, else the address that nf_nat's MASQUERADE would choose.
#[inline(always)]
pub(super) fn source<F: Family, T: Configuration<F>>(
    tables: &T,
    network: &Network<F>,
    ifindex: u32,
    next_hop: F::Addr,
) -> Option<F::Addr> {
    if network.source == F::Addr::ANY {
        tables.source(ifindex, next_hop)
    } else {
        Some(network.source)
    }
}

/// The largest MTU that the packet length field has room for, in bytes.
const MAX_MTU: u32 = u16::MAX as u32;

/// Looks up a flow's route again and stores it in the flow; returns the reason if there is no
/// usable route. A device without an Ethernet header is stored with MTU 0, since only the kernel
/// sends there. If the new route has another masquerade address, the flow ends, as in nf_nat.
#[inline(never)]
pub(super) fn renew<F: Family, T: FlowTable<F> + Routes<F>>(
    tables: &T,
    flow: &Flow<F>,
    dir: Direction,
    generation: u32,
) -> Option<Reason> {
    let towards = &flow.next_hops[dir & 1];
    let Some(endpoint) = tables.endpoint(flow.next_hops[(dir ^ 1) & 1].slot()) else {
        return Some(Reason::NoEndpoint);
    };
    // Of a followed flow, the kernel chooses the source.
    let network = match tables.network(endpoint.bridge) {
        _ if tables.flow_state(flow).is_followed() => None,
        Some(network) => Some(network),
        None => return Some(Reason::NoEndpoint),
    };
    let tuple = flow.tuples[dir & 1].get();
    let Route::Forward {
        ifindex,
        next_hop,
        mtu,
    } = tables.route(endpoint.bridge, &tuple)
    else {
        return Some(Reason::NoRoute);
    };
    let Some(device) = tables.device(ifindex) else {
        return Some(Reason::DeviceUnknown);
    };
    if device.kind != device::OUTSIDE {
        return Some(Reason::Isolated);
    }
    let seen_as = flow.tuples[REPLY].get().dst;
    if dir == ORIGINAL
        && seen_as != tuple.src
        && let Some(network) = network
        && source(tables, &network, ifindex, next_hop) != Some(seen_as)
    {
        flow.expires.set(tables.now());
        return Some(Reason::RouteMoved);
    }
    // What the kernel has let out another way proves nothing about this one.
    let is_same = flow.ifindex.get() == ifindex && flow.next_hop.get() == next_hop;
    if !is_same && tables.flow_state(flow).is_followed() {
        let before = tables.now().wrapping_sub(timeouts::LET_OUT);
        flow.let_out(dir).set(before);
    }
    flow.ifindex.set(ifindex);
    flow.next_hop.set(next_hop);
    // No packet is longer than this.
    let mut mtu = if mtu > MAX_MTU { MAX_MTU } else { mtu };
    // `bpf_fib_lookup` returns a route's own MTU only if that MTU is locked
    // (`ip_mtu_from_fib_result`), but forwarding has to respect it always
    // (`ip_dst_mtu_maybe_forward`).
    let smallest = tables.settings().route_mtu;
    if smallest != 0 && smallest < mtu {
        mtu = smallest;
    }
    towards
        .mtu
        .set(if device.ethernet != 0 { mtu as u16 } else { 0 });
    towards.generation.set(generation);
    None
}
