// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv6 rules: what a container may send and receive on its own bridge, to the host, and from the
//! host.
//!
//! IPv6 is not translated, and not forwarded from or to a container. What is not dropped here takes
//! the kernel path, unchanged.
//!
//! Neighbour discovery is guarded at the container's veth (`neighbour`): a container may announce,
//! ask for and send from its own addresses only, and may be neither a router nor a DHCP server.
//! Outside devices are not filtered: the LAN's routers must be heard.
//!
//! docker-proxy serves ports that are published on the host's IPv6 addresses. Packets to the host
//! are checked against the ports' lists of clients ([`ask_lists`]).

mod header;
mod lists;
mod neighbour;

use bytemuck::Pod;

use self::header::{HEADER, Header, header, upper};
use self::neighbour::{HOP_LIMIT, Station, kind};
use super::classify::{SOURCE_MAC, is_station};
use crate::abi::{
    AllowedKey6, Device, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
    device, network,
};
use crate::environment::BaseConfiguration;
use crate::family::Be128;
use crate::mark;
use crate::meta::Meta;
use crate::reason::Reason;

pub use self::lists::ask_lists;

/// The Ethernet type, in host order.
pub const ETHERTYPE: u16 = 0x86dd;

/// The hook at which a packet is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// tcx ingress of an outside device.
    OutsideIn,
    /// tcx egress of an outside device.
    OutsideOut,
    /// tcx ingress of a container's veth, at the host's end.
    ContainerIn,
    /// tcx egress of a container's veth, at the host's end.
    ContainerOut,
    /// tcx ingress of a bridge.
    BridgeIn,
    /// tcx egress of a bridge.
    BridgeOut,
}

impl Hook {
    /// The hook with this number.
    #[inline(always)]
    #[must_use]
    pub const fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::OutsideIn,
            1 => Self::OutsideOut,
            2 => Self::ContainerIn,
            3 => Self::ContainerOut,
            4 => Self::BridgeIn,
            _ => Self::BridgeOut,
        }
    }

    /// Whether it is an ingress hook.
    #[inline(always)]
    #[must_use]
    pub const fn is_ingress(self) -> bool {
        matches!(self, Self::OutsideIn | Self::ContainerIn | Self::BridgeIn)
    }
}

/// The interface to configuration, packet and kernel routes that the IPv6 rules need.
pub trait Host6: BaseConfiguration {
    /// The flags ([`network`]) of the network with this bridge.
    fn network_flags(&self, bridge: u32) -> Option<u32>;
    /// The list of clients of the network with this bridge, or 0 for all.
    fn network_policy(&self, bridge: u32) -> u32;
    /// The bridge whose subnet `addr` is in.
    fn subnet(&self, addr: Be128) -> Option<u32>;
    /// Whether the address is one of the host's own.
    fn is_local(&self, key: &HostAddressKey6) -> bool;
    /// The host's end of the veth that an address belongs to; 0 if the veth is not known.
    fn owner(&self, key: &OwnerKey6) -> Option<u32>;
    /// The IPv6 endpoint behind a veth.
    fn endpoint(&self, veth: u32) -> Option<Endpoint6>;
    /// The longest-prefix match for a source that containers may use
    /// ([`allowed`](crate::abi::allowed)); 0 if there is none.
    fn allowed(&self, key: &AllowedKey6) -> u32;
    /// The published port with exactly this key.
    fn published(&self, key: &PortKey6) -> Option<Published6>;
    /// The longest-prefix match for a client in a list ([`ingress`](crate::abi::ingress)); 0 if
    /// there is none.
    fn ingress(&self, key: &IngressKey6) -> u32;
    /// The value at `offset` of the frame, or `None` if it is not completely inside.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// The device on which the kernel would forward a packet that arrived on `ifindex`, if it
    /// would.
    fn route(&self, ifindex: u32, src: Be128, dst: Be128) -> Option<u32>;
}

/// The loopback device: the kernel creates it first in each network namespace.
const LOOPBACK: u32 = 1;
/// `::1`.
const LOOPBACK_ADDRESS: Be128 =
    Be128::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// ICMPv6's protocol number.
const ICMP: u8 = 58;

/// The verdict on an IPv6 packet at a hook. If it is [`Reason::ToHost`] and published ports have
/// lists of clients, [`ask_lists`] must be called next. The two are separate so that the kernel
/// side can make each a global function.
#[inline(always)]
pub fn judge<T: Host6>(host: &T, hook: Hook, meta: &Meta) -> Reason {
    if !host.is_armed() {
        return Reason::Unarmed;
    }
    let reason = match hook {
        Hook::OutsideIn => outside_in(host, meta),
        Hook::OutsideOut => outside_out(host, meta),
        Hook::ContainerIn | Hook::BridgeIn => from_container(host, hook, meta),
        Hook::ContainerOut => container_out(host, meta),
        Hook::BridgeOut => bridge_out(host, meta),
    };
    // Docker's own rules decide what is forwarded, if they are in place.
    match reason {
        Reason::Ipv6Forward | Reason::DirectRouting | Reason::UnknownNetwork
            if host.has_kernel_rules() =>
        {
            Reason::KernelOwned
        }
        reason => reason,
    }
}

/// From outside: nothing is forwarded to a container, and no source may be an address of a
/// container or of the host.
#[inline(always)]
fn outside_in<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some(header) = header(host, meta) else {
        return Reason::NotIp;
    };
    let Header { src, dst, .. } = header;
    if is_forged(host, meta, &header) {
        return Reason::SpoofedSource;
    }
    if dst.is_multicast() || dst.is_link_local() || is_local(host, dst, 0) {
        return Reason::ToHost;
    }
    // A packet that the kernel does not forward is for the host, or the kernel answers it.
    let Some(ifindex) = host.route(meta.ifindex, src, dst) else {
        return Reason::ToHost;
    };
    let Some(device) = host.device(ifindex) else {
        return Reason::UnknownNetwork;
    };
    if matches!(device.kind, device::OUTSIDE | device::OTHER) {
        return Reason::NotIp;
    }
    match host.network_flags(device.bridge) {
        Some(flags) if flags & network::INTERNAL != 0 => Reason::Internal,
        _ => Reason::DirectRouting,
    }
}

/// Whether a packet from outside has an impossible source: an address of a container or of the
/// host, a loopback or a multicast address.
#[inline(always)]
fn is_forged<T: Host6>(host: &T, meta: &Meta, header: &Header) -> bool {
    let Header { src, dst, .. } = *header;
    if let Some(bridge) = host.subnet(src)
        && (host.owner(&OwnerKey6 { addr: src, bridge }).is_some()
            || is_beside(host, host.route(meta.ifindex, dst, src)))
    {
        return true;
    }
    let device = if src.is_link_local() { meta.ifindex } else { 0 };
    src.is_multicast()
        || src == LOOPBACK_ADDRESS
        || is_local(host, src, device) && !is_of_neighbour(host, meta, header)
}

/// Whether the kernel's route to an address leads to a network of containers. An address in the range
/// of such a network may also be the LAN's: then a route leads there.
#[inline(always)]
fn is_beside<T: Host6>(host: &T, way: Option<u32>) -> bool {
    let device = way.and_then(|ifindex| host.device(ifindex));
    device.is_some_and(|device| !matches!(device.kind, device::OUTSIDE | device::OTHER))
}

/// Whether a neighbour asks for an address of the host or claims it: the kernel has to hear of
/// duplicate addresses (RFC 4862 section 5.4).
#[inline(always)]
fn is_of_neighbour<T: Host6>(host: &T, meta: &Meta, header: &Header) -> bool {
    header.next == ICMP
        && header.hop_limit == HOP_LIMIT
        && host
            .load::<u8>(meta.l3 as u32 + HEADER)
            .is_some_and(|says| {
                matches!(
                    says,
                    kind::NEIGHBOUR_SOLICITATION | kind::NEIGHBOUR_ADVERTISEMENT
                )
            })
}

/// The last check: no packet that arrived on a container's device leaves.
#[inline(always)]
fn outside_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    // A packet with a mark of the forwarder was a container's IPv4 packet, which a tunnel of the
    // host has encapsulated since.
    if matches!(meta.ingress_ifindex, 0 | LOOPBACK) || mark::kind(meta.mark) != mark::NONE {
        return Reason::NotIp;
    }
    let Some(device) = host.device(meta.ingress_ifindex) else {
        return Reason::UnknownNetwork;
    };
    if matches!(device.kind, device::OUTSIDE | device::OTHER) {
        return Reason::NotIp;
    }
    match host.network_flags(device.bridge) {
        Some(flags) if flags & network::INTERNAL != 0 => Reason::Internal,
        _ => Reason::Ipv6Forward,
    }
}

/// Packets to a container that the bridge switches or the host sends.
#[inline(always)]
fn container_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some((_, flags)) = network_of(host, meta.ifindex) else {
        return Reason::NoIpv6;
    };
    if meta.ingress_ifindex == 0 {
        return to_container(flags);
    }
    match host.device(meta.ingress_ifindex) {
        Some(from) if matches!(from.kind, device::VETH | device::NAMED_VETH | device::PORT) => {
            if flags & network::ICC_DISABLED != 0 {
                Reason::PeerBlocked
            } else {
                Reason::Bridged
            }
        }
        Some(from) => forwarded(from, flags),
        // A port of the bridge that no agent has seen yet: perhaps a container's.
        None if flags & network::ICC_DISABLED != 0 => Reason::PeerBlocked,
        None => Reason::Bridged,
    }
}

/// Packets to a network that the host sends or forwards.
#[inline(always)]
fn bridge_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some((_, flags)) = network_of(host, meta.ifindex) else {
        return Reason::NoIpv6;
    };
    if meta.ingress_ifindex == 0 {
        return to_container(flags);
    }
    match host.device(meta.ingress_ifindex) {
        Some(from) => forwarded(from, flags),
        None => Reason::UnknownNetwork,
    }
}

/// A packet of the host to a container.
#[inline(always)]
fn to_container(flags: u32) -> Reason {
    if flags & network::ISOLATED != 0 {
        Reason::Internal
    } else {
        Reason::FromHost
    }
}

/// Why a packet that arrived on another device is not forwarded into a network.
#[inline(always)]
fn forwarded(from: Device, flags: u32) -> Reason {
    if flags & network::INTERNAL != 0 {
        Reason::Internal
    } else if matches!(from.kind, device::OUTSIDE | device::OTHER) {
        Reason::DirectRouting
    } else {
        Reason::Isolated
    }
}

/// The bridge of a Docker device and the flags of its network, if that network has IPv6.
#[inline(always)]
fn network_of<T: Host6>(host: &T, ifindex: u32) -> Option<(u32, u32)> {
    let bridge = host.device(ifindex)?.bridge;
    let flags = host.network_flags(bridge)?;
    (flags & network::IPV6 != 0).then_some((bridge, flags))
}

/// Packets of a container: at its veth, or at the bridge for veths without a hook.
#[inline(always)]
fn from_container<T: Host6>(host: &T, hook: Hook, meta: &Meta) -> Reason {
    let veth = hook as u32 == Hook::ContainerIn as u32;
    if let Some(device) = host.device(meta.ifindex) {
        // A port that leads to no container leads to a LAN, whose packets are treated as those from
        // an outside device.
        if device.kind == device::PORT {
            return Reason::NotIp;
        }
        // The bridge learns from the source MAC where a station is.
        if veth
            && !host
                .load(SOURCE_MAC as u32)
                .is_some_and(|mac| is_station(&device, mac))
        {
            return Reason::SpoofedNeighbour;
        }
    }
    let Some((bridge, flags)) = network_of(host, meta.ifindex) else {
        return Reason::NoIpv6;
    };
    let Some(header) = header(host, meta) else {
        return Reason::Ipv6Header;
    };
    let station = Station {
        host,
        ifindex: meta.ifindex,
        bridge,
        veth,
    };
    let Some(upper) = upper(host, meta, &header) else {
        return Reason::Ipv6Header;
    };
    if let Some(reason) = station.refuses(&header, &upper) {
        return reason;
    }
    let dst = header.dst;
    let to_host = !station.veth && dst.is_multicast()
        || is_local(host, dst, if dst.is_link_local() { bridge } else { 0 });
    if to_host {
        return if flags & network::ISOLATED != 0 {
            Reason::Internal
        } else {
            Reason::ToHost
        };
    }
    if dst.is_multicast() {
        return Reason::Bridged;
    }
    let subnet = if dst.is_link_local() {
        Some(bridge)
    } else {
        host.subnet(dst)
    };
    if subnet == Some(bridge) {
        if flags & network::ICC_DISABLED != 0 {
            Reason::PeerBlocked
        } else if station.veth {
            Reason::Bridged
        } else {
            Reason::Ipv6Forward
        }
    } else if flags & network::INTERNAL != 0 {
        Reason::Internal
    } else if subnet.is_some() {
        Reason::Isolated
    } else {
        Reason::Ipv6Forward
    }
}

#[inline(always)]
fn is_local<T: Host6>(host: &T, addr: Be128, ifindex: u32) -> bool {
    host.is_local(&HostAddressKey6 { addr, ifindex })
}
