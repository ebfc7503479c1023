// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guards containers' IPv6 sources, and neighbour discovery at their veths (RFC 6105, RFC 4861).

use super::header::{Header, Upper};
use super::{Host6, ICMP, is_local};
use crate::abi::{AllowedKey6, OwnerKey6, allowed, device};
use crate::family::{Be16, Be128};
use crate::reason::Reason;
use crate::wire::proto;

/// ICMPv6 types (RFC 4861, RFC 2710, RFC 3810).
pub(super) mod kind {
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(in crate::policy::ipv6) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(in crate::policy::ipv6) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const LISTENER_REPORT_2: u8 = 143;
}

/// The port of DHCPv6 clients (RFC 8415 section 7.2).
const DHCP_CLIENT: u16 = 546;
/// Every router decrements the hop limit; a message of a neighbour still has 255 (RFC 4861 section
/// 6.1).
pub(super) const HOP_LIMIT: u8 = 255;
/// Options of one message that are checked; Linux sends two.
const OPTIONS: u32 = 4;
/// The link-local address that Docker up to version 27 gives a bridge.
const BRIDGE_LINK_LOCAL: Be128 =
    Be128::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// The sender of a packet.
pub(super) struct Station<'a, T> {
    pub(super) host: &'a T,
    /// The device that the hook is attached to.
    pub(super) ifindex: u32,
    pub(super) bridge: u32,
    /// At a container's veth. At the bridge it is not known which container of the network sends.
    pub(super) veth: bool,
}

impl<T: Host6> Station<'_, T> {
    /// Why nobody may receive the packet, if so.
    #[inline(always)]
    pub(super) fn refuses(&self, header: &Header, upper: &Upper) -> Option<Reason> {
        let kind = if upper.proto == ICMP && !upper.later {
            match upper.load::<u8>(self.host, 0) {
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
                // Receivers ignore fragmented messages of neighbour discovery (RFC 6980).
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

    /// Whether an address is the container's own, one that it is allowed to use, or one that
    /// belongs to nobody else.
    #[inline(always)]
    fn is_own(&self, addr: Be128) -> bool {
        let link_local = addr.is_link_local();
        let bridge = self.bridge;
        if addr == BRIDGE_LINK_LOCAL
            || is_local(self.host, addr, if link_local { bridge } else { 0 })
        {
            return false;
        }
        self.owns(addr, link_local) || self.is_allowed(addr)
    }

    /// Whether Docker assigned the address to the container, or nobody is known to have it.
    #[inline(always)]
    fn owns(&self, addr: Be128, link_local: bool) -> bool {
        let bridge = self.bridge;
        if !self.veth {
            return link_local || self.host.subnet(addr) == Some(bridge);
        }
        // Until Docker tells whose veth this is, the sender may use any address that belongs to no
        // known veth.
        let named = self
            .host
            .device(self.ifindex)
            .is_none_or(|device| device.kind == device::NAMED_VETH);
        match self.host.owner(&OwnerKey6 { addr, bridge }) {
            Some(veth) => veth == self.ifindex || veth == 0 && !named,
            None => link_local || !named && self.host.subnet(addr) == Some(bridge),
        }
    }

    /// Whether the sender may use an address besides its own. At the bridge: whether some
    /// container of the network may.
    #[inline(always)]
    fn is_allowed(&self, source: Be128) -> bool {
        let word = |device| self.host.allowed(&AllowedKey6 { device, source });
        let of_network = word(self.bridge);
        of_network == allowed::EACH || of_network != 0 && (!self.veth || word(self.ifindex) != 0)
    }

    /// Whether a neighbour discovery message is about the container itself: its target and its
    /// link-layer address options.
    #[inline(always)]
    fn speaks_for_itself(&self, src: Be128, kind: u8, at: u32) -> bool {
        // Type, code, checksum and reserved bytes, then in two of the three messages the target,
        // then options (RFC 4861 section 4).
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

    /// Whether all link-layer address options contain the container's MAC address.
    #[inline(always)]
    fn options_are_own(&self, options: u32) -> bool {
        let mut mac = [0; 6];
        if self.veth
            && let Some(endpoint) = self.host.endpoint(self.ifindex)
        {
            mac = endpoint.mac;
        }
        if mac == [0; 6] {
            // The MAC address is not known: the frame's source address counts.
            match self.host.load::<[u8; 6]>(6) {
                Some(sender) => mac = sender,
                None => return false,
            }
        }
        let mut at = options;
        for _ in 0..OPTIONS {
            let Some([kind, eights, address @ ..]) = self.host.load::<[u8; 8]>(at) else {
                // No option begins here: an option has at least eight bytes.
                return self.host.load::<u8>(at).is_none();
            };
            if eights == 0 || matches!(kind, 1 | 2) && address != mac {
                return false;
            }
            at += eights as u32 * 8;
        }
        self.host.load::<u8>(at).is_none()
    }

    /// Whether the packet is for the port of DHCPv6 clients.
    #[inline(always)]
    fn is_dhcp_server(&self, upper: &Upper) -> bool {
        upper.proto as u32 == proto::UDP
            && !upper.later
            && upper
                .load::<Be16>(self.host, 2)
                .is_some_and(|port| port.get() == DHCP_CLIENT)
    }
}

/// Messages that a sender without an address may send.
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
