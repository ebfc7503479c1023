//! What a container may send and get by IPv6: on its own bridge, to the host, from the host.
//!
//! No IPv6 is translated and none is forwarded from or to a container. Whatever is not dropped here
//! takes the kernel's path, unchanged.
//!
//! Neighbour discovery is guarded at the container's veth (RFC 6105, RFC 4861): a container announces,
//! asks and sends in its own names only, and is neither a router nor a DHCP server. Outside devices
//! are left alone: the LAN's routers must be heard.

use bytemuck::{Pod, Zeroable};

use super::{Meta, mark};
use crate::abi::{Device, Endpoint6, LocalKey6, OwnerKey6, device, network};
use crate::family::{Be16, Be128};
use crate::parse::proto;
use crate::reason::Reason;

/// The Ethernet type, in host order.
pub const ETHERTYPE: u16 = 0x86dd;

/// The hook that a packet is at.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// tcx ingress of an outside device.
    OutsideIn,
    /// tcx egress of an outside device.
    OutsideOut,
    /// tcx ingress of a container's veth, at the host's end.
    ContainerIn,
    /// tcx egress of the same.
    ContainerOut,
    /// tcx ingress of a bridge.
    BridgeIn,
    /// tcx egress of a bridge.
    BridgeOut,
}

impl Hook {
    /// The hook of a number.
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
}

/// What the rules ask of the configuration, the packet and the kernel's routes.
pub trait Host6 {
    /// Whether the programs judge packets yet.
    fn is_armed(&self) -> bool;
    /// A device by its index.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// The flags ([`network`]) of the network with this bridge.
    fn network_flags(&self, bridge: u32) -> Option<u32>;
    /// The bridge whose subnet `addr` is in.
    fn subnet(&self, addr: Be128) -> Option<u32>;
    /// Whether it is one of the host's own addresses.
    fn is_local(&self, key: &LocalKey6) -> bool;
    /// Whose address it is: the host's end of a veth, 0 where the veth is not known.
    fn owner(&self, key: &OwnerKey6) -> Option<u32>;
    /// What the container behind a veth is called.
    fn endpoint(&self, veth: u32) -> Option<Endpoint6>;
    /// The value at `offset` of the frame, or `None` if it is not wholly inside.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// The device by which the kernel would forward a packet that came by `ifindex`, if it would.
    fn route(&self, ifindex: u32, src: Be128, dst: Be128) -> Option<u32>;
}

/// The IPv6 header (RFC 8200 section 3).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    version: u8,
    label: [u8; 3],
    len: Be16,
    next: u8,
    hop_limit: u8,
    src: Be128,
    dst: Be128,
}

const HEADER: u32 = size_of::<Header>() as u32;

/// What stands behind the extension headers.
#[derive(Clone, Copy)]
struct Upper {
    /// Its protocol.
    proto: u8,
    /// Where it begins. In a later fragment, where it would.
    at: u32,
    /// In the first of several fragments.
    first: bool,
    /// In a later fragment: it is not there.
    later: bool,
}

/// Extension headers that are looked behind (RFC 8200 section 4).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    /// At most so many are looked behind.
    pub(super) const MOST: u32 = 8;
}

/// ICMPv6 types (RFC 4861, RFC 2710, RFC 3810).
mod kind {
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const LISTENER_REPORT_2: u8 = 143;
}

const ICMP: u8 = 58;
/// What DHCPv6 clients listen on (RFC 8415 section 7.2).
const DHCP_CLIENT: u16 = 546;
/// What every hop lowers: a neighbour's message has it still (RFC 4861 section 6.1).
const HOP_LIMIT: u8 = 255;
/// Options of one message that are looked at; Linux sends two.
const OPTIONS: u32 = 4;
/// The loopback device, of which the kernel makes the first of each network namespace.
const LOOPBACK: u32 = 1;
/// What Docker calls the bridge up to version 27.
const BRIDGE_LINK_LOCAL: Be128 =
    Be128::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Judges an IPv6 packet at a hook.
#[inline(always)]
pub fn judge<T: Host6>(host: &T, hook: Hook, meta: &Meta) -> Reason {
    if !host.is_armed() {
        return Reason::Unarmed;
    }
    match hook {
        Hook::OutsideIn => outside_in(host, meta),
        Hook::OutsideOut => outside_out(host, meta),
        Hook::ContainerIn | Hook::BridgeIn => from_container(host, hook, meta),
        Hook::ContainerOut => container_out(host, meta),
        Hook::BridgeOut => bridge_out(host, meta),
    }
}

/// From outside: nothing is forwarded to a container, and nobody outside has a container's address.
#[inline(always)]
fn outside_in<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some(header) = header(host, meta) else {
        return Reason::NotIp;
    };
    let Header { src, dst, .. } = header;
    if let Some(bridge) = host.subnet(src)
        && host.owner(&OwnerKey6 { addr: src, bridge }).is_some()
    {
        return Reason::SpoofedSource;
    }
    if dst.is_multicast() || dst.is_link_local() || is_local(host, dst, 0) {
        return Reason::NotIp;
    }
    let Some(ifindex) = host.route(meta.ifindex, src, dst) else {
        return Reason::NotIp;
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

/// The last guard: nothing that came by a container's device leaves.
#[inline(always)]
fn outside_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    // What carries our mark was a container's IPv4, and is in a tunnel of the host's by now.
    if matches!(meta.came_by, 0 | LOOPBACK) || mark::kind(meta.mark) != mark::NONE {
        return Reason::NotIp;
    }
    let Some(device) = host.device(meta.came_by) else {
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

/// What the bridge itself switches, and what the host sends.
#[inline(always)]
fn container_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some((_, flags)) = network_of(host, meta.ifindex) else {
        return Reason::NoIpv6;
    };
    if meta.came_by == 0 {
        return to_container(flags);
    }
    match host.device(meta.came_by) {
        Some(from) if matches!(from.kind, device::VETH | device::NAMED_VETH | device::PORT) => {
            if flags & network::NO_PEERS != 0 {
                Reason::PeerBlocked
            } else {
                Reason::Bridged
            }
        }
        Some(from) => forwarded(from, flags),
        // A port of the bridge's that is not Docker's.
        None => Reason::Bridged,
    }
}

/// What the host sends or forwards to a network.
#[inline(always)]
fn bridge_out<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some((_, flags)) = network_of(host, meta.ifindex) else {
        return Reason::NoIpv6;
    };
    if meta.came_by == 0 {
        return to_container(flags);
    }
    match host.device(meta.came_by) {
        Some(from) => forwarded(from, flags),
        None => Reason::UnknownNetwork,
    }
}

/// The host's own, to a container.
#[inline(always)]
fn to_container(flags: u32) -> Reason {
    if flags & network::ISOLATED != 0 {
        Reason::Internal
    } else {
        Reason::FromHost
    }
}

/// Why what came by another device does not get into a network.
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

/// The bridge of a device that is Docker's and the flags of its network, if that has IPv6.
#[inline(always)]
fn network_of<T: Host6>(host: &T, ifindex: u32) -> Option<(u32, u32)> {
    let bridge = host.device(ifindex)?.bridge;
    let flags = host.network_flags(bridge)?;
    (flags & network::IPV6 != 0).then_some((bridge, flags))
}

/// What a container sends: at its veth, and at the bridge for veths without a hook.
#[inline(always)]
fn from_container<T: Host6>(host: &T, hook: Hook, meta: &Meta) -> Reason {
    // Beyond a port that leads to no container is a LAN: what it sends is as little a container's as
    // what comes by an outside device.
    if host
        .device(meta.ifindex)
        .is_some_and(|device| device.kind == device::PORT)
    {
        return Reason::NotIp;
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
        veth: hook as u32 == Hook::ContainerIn as u32,
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
        if flags & network::NO_PEERS != 0 {
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

/// Who sends.
struct Station<'a, T> {
    host: &'a T,
    /// The device that the hook is on.
    ifindex: u32,
    bridge: u32,
    /// At a container's veth. At the bridge it is not known which of its containers sends.
    veth: bool,
}

impl<T: Host6> Station<'_, T> {
    /// Why the packet must not be heard by anybody, if so.
    #[inline(always)]
    fn refuses(&self, header: &Header, upper: &Upper) -> Option<Reason> {
        let kind = if upper.proto == ICMP && !upper.later {
            match self.host.load::<u8>(upper.at) {
                Some(kind) => kind,
                None => return Some(Reason::Ipv6Header),
            }
        } else {
            0
        };
        if header.src == Be128::ANY {
            if !may_be_unspecified(kind) {
                return Some(Reason::SpoofedSource);
            }
        } else if !self.is_own(header.src) {
            return Some(if self.host.subnet(header.src) == Some(self.bridge) {
                Reason::SpoofedSource
            } else {
                Reason::ForeignSource
            });
        }
        let honest = match kind {
            kind::ROUTER_ADVERTISEMENT | kind::REDIRECT => false,
            kind::ROUTER_SOLICITATION
            | kind::NEIGHBOUR_SOLICITATION
            | kind::NEIGHBOUR_ADVERTISEMENT => {
                // Receivers ignore a neighbour's message in fragments (RFC 6980).
                header.hop_limit == HOP_LIMIT
                    && !upper.first
                    && self.speaks_for_itself(header.src, kind, upper.at)
            }
            _ => !self.is_dhcp_server(upper),
        };
        if honest {
            None
        } else {
            Some(Reason::SpoofedNeighbour)
        }
    }

    /// Whether an address is the container's own, or one that is nobody else's.
    #[inline(always)]
    fn is_own(&self, addr: Be128) -> bool {
        let link_local = addr.is_link_local();
        let bridge = self.bridge;
        if addr == BRIDGE_LINK_LOCAL
            || is_local(self.host, addr, if link_local { bridge } else { 0 })
        {
            return false;
        }
        if !self.veth {
            return link_local || self.host.subnet(addr) == Some(bridge);
        }
        // Until Docker says whose veth it is, it may be any address's that no known veth has.
        let named = self
            .host
            .device(self.ifindex)
            .is_none_or(|device| device.kind == device::NAMED_VETH);
        match self.host.owner(&OwnerKey6 { addr, bridge }) {
            Some(veth) => veth == self.ifindex || veth == 0 && !named,
            None => link_local || !named && self.host.subnet(addr) == Some(bridge),
        }
    }

    /// Whether a neighbour's message tells of the container itself: target and link-layer options.
    #[inline(always)]
    fn speaks_for_itself(&self, src: Be128, kind: u8, at: u32) -> bool {
        // Reserved octets, for two of them the target, then options (RFC 4861 section 4).
        let options = if kind == kind::ROUTER_SOLICITATION {
            at + 8
        } else {
            let Some(target) = self.host.load::<Be128>(at + 8) else {
                return false;
            };
            let of_itself = kind == kind::NEIGHBOUR_ADVERTISEMENT || src == Be128::ANY;
            if of_itself && !self.is_own(target) {
                return false;
            }
            at + 24
        };
        self.options_are_own(options)
    }

    /// Whether all link-layer options say the container's MAC address.
    #[inline(always)]
    fn options_are_own(&self, options: u32) -> bool {
        let mut mac = [0; 6];
        if self.veth
            && let Some(endpoint) = self.host.endpoint(self.ifindex)
        {
            mac = endpoint.mac;
        }
        if mac == [0; 6] {
            // Whoever it is: the frame's own sender.
            match self.host.load::<[u8; 6]>(6) {
                Some(sender) => mac = sender,
                None => return false,
            }
        }
        let mut at = options;
        for _ in 0..OPTIONS {
            let Some([kind, eights, address @ ..]) = self.host.load::<[u8; 8]>(at) else {
                // None begins here: shorter than that is none.
                return self.host.load::<u8>(at).is_none();
            };
            if eights == 0 || matches!(kind, 1 | 2) && address != mac {
                return false;
            }
            at += eights as u32 * 8;
        }
        self.host.load::<u8>(at).is_none()
    }

    /// Whether it is to the port of DHCPv6 clients.
    #[inline(always)]
    fn is_dhcp_server(&self, upper: &Upper) -> bool {
        upper.proto as u32 == proto::UDP
            && !upper.later
            && self
                .host
                .load::<Be16>(upper.at + 2)
                .is_some_and(|port| port.get() == DHCP_CLIENT)
    }
}

/// Messages of those who have no address yet.
#[inline(always)]
fn may_be_unspecified(kind: u8) -> bool {
    matches!(
        kind,
        kind::ROUTER_SOLICITATION
            | kind::NEIGHBOUR_SOLICITATION
            | kind::LISTENER_REPORT
            | kind::LISTENER_DONE
            | kind::LISTENER_REPORT_2
    )
}

#[inline(always)]
fn is_local<T: Host6>(host: &T, addr: Be128, ifindex: u32) -> bool {
    host.is_local(&LocalKey6 { addr, ifindex })
}

/// The header, if it is one.
#[inline(always)]
fn header<T: Host6>(host: &T, meta: &Meta) -> Option<Header> {
    let header: Header = host.load(meta.l3 as u32)?;
    (header.version >> 4 == 6).then_some(header)
}

/// Looks behind the extension headers; `None` if their end is not found.
#[inline(always)]
fn upper<T: Host6>(host: &T, meta: &Meta, header: &Header) -> Option<Upper> {
    let mut upper = Upper {
        proto: header.next,
        at: meta.l3 as u32 + HEADER,
        first: false,
        later: false,
    };
    for _ in 0..extension::MOST {
        let unit = match upper.proto {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => 8,
            extension::AUTHENTICATION => 4,
            extension::FRAGMENT => 0,
            _ => return Some(upper),
        };
        let [next, len, offset @ .., _, _, _, _] = host.load::<[u8; 8]>(upper.at)?;
        upper.proto = next;
        upper.at += match unit {
            8 => (len as u32 + 1) * 8,
            4 => (len as u32 + 2) * 4,
            _ => {
                let field = u16::from_be_bytes(offset);
                if field & !7 != 0 {
                    upper.later = true;
                    return Some(upper);
                }
                upper.first |= field & 1 != 0;
                8
            }
        };
    }
    None
}
