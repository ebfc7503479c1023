// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which network a packet belongs to. The device on which it arrived and the kernel's routes
//! decide, never an address range alone: the host's own address, or its LAN, may lie in the range
//! of a Docker network.

use crate::abi::{Device, Tuple, device, network};
use crate::environment::{Configuration, Route, Routes};
use crate::family::{Address, Family};
use crate::meta::Meta;
use crate::reason::Reason;

/// The verdict on a leaving packet that no hook of the forwarder has passed, if a container sent
/// it: it is dropped, whatever its source. `None` for packets that the host forwards for others and
/// for the host's own packets, unless their source is the address of a container.
#[inline(never)]
pub(crate) fn of_a_container<F: Family, T: Configuration<F> + Routes<F>>(
    tables: &T,
    meta: &Meta,
    src: F::Addr,
) -> Option<Reason> {
    if tables.has_kernel_rules() {
        return leaks(tables, src);
    }
    if meta.ingress_ifindex != 0 {
        return match tables.device(meta.ingress_ifindex) {
            Some(device) if is_others(&device) => None,
            Some(_) => Some(Reason::Untranslated),
            None => Some(Reason::UnknownNetwork),
        };
    }
    // Only packets whose source is exactly a container's address are considered.
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

/// The verdict on a leaving packet that the kernel should have translated: dropped, if it has not.
#[inline(always)]
fn leaks<F: Family, T: Configuration<F>>(tables: &T, src: F::Addr) -> Option<Reason> {
    if tables.is_local(src) {
        return None;
    }
    let network = tables.network(tables.subnet(src)?)?;
    (network.flags & network::MASQUERADE != 0).then_some(Reason::Untranslated)
}

/// Whether a device is neither a bridge of Docker's nor a port of one.
#[inline(always)]
const fn is_others(device: &Device) -> bool {
    matches!(device.kind, device::OUTSIDE | device::OTHER)
}

/// Where the kernel would route a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination {
    /// To the network of this bridge.
    Network(u32),
    /// To a device that the agent does not know. It may belong to a network that was created while
    /// no agent ran and that no hook guards.
    Unknown,
    /// To an outside device.
    Outside,
    /// To no device: the kernel delivers the packet to the host or refuses it.
    Kernel,
}

/// [`Destination`] as a number: the three values below, and bridges below them.
const UNKNOWN: u32 = u32::MAX - 2;
const OUTSIDE: u32 = u32::MAX - 1;
const KERNEL: u32 = u32::MAX;

/// Where the kernel would route a packet, whatever ranges its address is in.
#[inline(always)]
pub(crate) fn destination<F: Family, T: Configuration<F> + Routes<F>>(
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

/// The network that a container's packet goes to, if its destination is in the range of any
/// network: the kernel's route decides.
#[inline(always)]
pub(crate) fn network_of<F: Family, T: Configuration<F> + Routes<F>>(
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

/// [`Destination`] as a number, by the kernel's routes.
#[inline(never)]
fn follow<F: Family, T: Configuration<F> + Routes<F>>(
    tables: &T,
    ifindex: u32,
    tuple: &Tuple<F>,
) -> u32 {
    match tables.route(ifindex, tuple) {
        Route::Forward { ifindex, .. } => match tables.device(ifindex) {
            Some(device) if is_others(&device) => OUTSIDE,
            Some(device) => device.bridge,
            None => UNKNOWN,
        },
        Route::Kernel => KERNEL,
    }
}
