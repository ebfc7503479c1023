// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose a packet is: the device by which it came and the kernel's routes decide, never an address
//! range alone. The host's own address, or its LAN, may lie in the range of a Docker network.

use super::Meta;
use crate::abi::{Device, Tuple, device, network};
use crate::family::{Address, Family};
use crate::reason::Reason;
use crate::tables::{Route, Tables};

/// What becomes of a packet on its way out that no hook of ours let out, if a container sent it: it is
/// stopped, whatever its source. `None` for the host's own packets, but for those in the very name of
/// a container whose network is translated, and for those that it forwards for others.
#[inline(never)]
pub(super) fn of_a_container<F: Family, T: Tables<F>>(
    tables: &T,
    meta: &Meta,
    src: F::Addr,
) -> Option<Reason> {
    if meta.ingress_ifindex != 0 {
        return match tables.device(meta.ingress_ifindex) {
            Some(device) if is_others(&device) => None,
            Some(_) => Some(Reason::Untranslated),
            None => Some(Reason::UnknownNetwork),
        };
    }
    // Only who speaks in a container's very name.
    let slot = tables.endpoint_slot(src)?;
    if tables.is_local(src) {
        return None;
    }
    let bridge = tables.endpoint(slot)?.bridge;
    let network = tables.network(bridge);
    let masked = network.is_none_or(|network| network.flags & network::MASQUERADE != 0);
    Some(if masked {
        Reason::Untranslated
    } else {
        Reason::FromHost
    })
}

/// Whether a device is neither a bridge of Docker's nor one of its ports.
#[inline(always)]
const fn is_others(device: &Device) -> bool {
    matches!(device.kind, device::OUTSIDE | device::OTHER)
}

/// Where the kernel would take a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Destination {
    /// To the network of this bridge.
    Network(u32),
    /// To a device that the agent does not know: that may be of a network made while no agent lives,
    /// which nobody guards.
    Unknown,
    /// To an outside device.
    Outside,
    /// Nowhere beyond the host.
    Kernel,
}

/// [`Destination`] by a number, below which bridges are.
const UNKNOWN: u32 = u32::MAX - 2;
const OUTSIDE: u32 = u32::MAX - 1;
const KERNEL: u32 = u32::MAX;

/// Where the kernel would take a packet, whatever ranges its address is in.
#[inline(always)]
pub(super) fn destination<F: Family, T: Tables<F>>(
    tables: &T,
    ifindex: u32,
    tuple: &Tuple<F>,
) -> Destination {
    if tuple.dst.is_unroutable() {
        return Destination::Outside;
    }
    match follow(tables, ifindex, tuple) {
        UNKNOWN => Destination::Unknown,
        OUTSIDE => Destination::Outside,
        KERNEL => Destination::Kernel,
        bridge => Destination::Network(bridge),
    }
}

/// The network that a container's packet is for: where the kernel would take it, if its address is
/// in the range of any.
#[inline(always)]
pub(super) fn network_of<F: Family, T: Tables<F>>(
    tables: &T,
    bridge: u32,
    tuple: &Tuple<F>,
) -> Option<u32> {
    let range = tables.subnet(tuple.dst)?;
    match destination(tables, bridge, tuple) {
        Destination::Network(bridge) => Some(bridge),
        Destination::Outside => None,
        Destination::Unknown | Destination::Kernel => Some(range),
    }
}

/// [`Destination`] by the kernel's routes.
#[inline(never)]
fn follow<F: Family, T: Tables<F>>(tables: &T, ifindex: u32, tuple: &Tuple<F>) -> u32 {
    match tables.route(ifindex, tuple) {
        Route::Forward { ifindex, .. } => match tables.device(ifindex) {
            Some(device) if is_others(&device) => OUTSIDE,
            Some(device) => device.bridge,
            None => UNKNOWN,
        },
        Route::Kernel => KERNEL,
    }
}
