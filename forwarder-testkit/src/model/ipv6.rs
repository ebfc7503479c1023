// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's IPv6: tables, rules at a hook, and packets in plain bytes.

use bytemuck::Pod;
use forwarder_common::abi::{
    AllowedKey6, Device, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
    Settings, network,
};
use forwarder_common::environment::BaseConfiguration;
use forwarder_common::family::Be128;
use forwarder_common::meta::Meta;
use forwarder_common::policy::ipv6::{self, Host6};
use forwarder_common::reason::Reason;

use crate::packet6::Packet6;

use super::host::{APP_VETH, BRIDGE, FAR_VETH, OTHER_BRIDGE, UPLINK, WEB_VETH, far_mac, mac};
use super::{Arrival, Hook, Host};

/// `fd00:N::M`.
pub const fn net(n: u8, m: u8) -> Be128 {
    Be128::from_octets([0xfd, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, m])
}

/// The host's address on its uplink.
pub const HOST6: Be128 = net(9, 1);
/// A client on the LAN.
pub const CLIENT6: Be128 = net(9, 2);
pub const GATEWAY6: Be128 = net(1, 1);
/// Containers of one network.
pub const WEB6: Be128 = net(1, 2);
pub const APP6: Be128 = net(1, 3);
/// A container of the other network.
pub const FAR6: Be128 = net(2, 2);

impl Host {
    /// Adds IPv6 to the usual host: both networks, and every container that has a veth.
    pub fn with_ipv6(&mut self) {
        for (number, bridge) in [(1, BRIDGE), (2, OTHER_BRIDGE)] {
            self.networks.get_mut(&bridge).unwrap().flags |= network::IPV6;
            self.subnets6.insert((net(number, 0), 64), bridge);
            let addr = net(number, 1);
            self.locals6.insert(HostAddressKey6 { addr, ifindex: 0 });
            let addr = Be128::link_local(mac(bridge));
            let ifindex = bridge;
            self.locals6.insert(HostAddressKey6 { addr, ifindex });
        }
        let addr = HOST6;
        self.locals6.insert(HostAddressKey6 { addr, ifindex: 0 });
        for (bridge, veth, addr) in [
            (BRIDGE, WEB_VETH, WEB6),
            (BRIDGE, APP_VETH, APP6),
            (OTHER_BRIDGE, FAR_VETH, FAR6),
        ] {
            let mac = far_mac(veth);
            for addr in [addr, Be128::link_local(mac)] {
                self.owners6.insert(OwnerKey6 { addr, bridge }, veth);
            }
            let endpoint = Endpoint6 {
                addr,
                mac,
                reserved: 0,
            };
            self.endpoints6.insert(veth, endpoint);
        }
        for (addr, ifindex) in [
            (WEB6, BRIDGE),
            (APP6, BRIDGE),
            (FAR6, OTHER_BRIDGE),
            (CLIENT6, UPLINK),
        ] {
            self.routes6.insert(addr, ifindex);
        }
    }

    /// The verdict on an IPv6 frame.
    pub(super) fn judge_ipv6(&self, hook: Hook, bytes: &[u8], arrival: Arrival) -> Option<Reason> {
        let at = match hook {
            Hook::OutsideIn => ipv6::Hook::OutsideIn,
            Hook::OutsideOut => ipv6::Hook::OutsideOut,
            Hook::ContainerIn => ipv6::Hook::ContainerIn,
            Hook::ContainerOut => ipv6::Hook::ContainerOut,
            Hook::BridgeIn => ipv6::Hook::BridgeIn,
            Hook::BridgeOut => ipv6::Hook::BridgeOut,
            Hook::Uplink => return None,
            Hook::OutsideInRaw
            | Hook::OutsideOutRaw
            | Hook::FollowedIn
            | Hook::FollowedOut
            | Hook::DefragOut => return Some(Reason::NotIp),
        };
        let nic = self.nics.get(&arrival.ifindex);
        let of_others = bytes[0] & 1 == 0 && nic.is_none_or(|mac| bytes[..6] != *mac);
        if matches!(hook, Hook::OutsideIn | Hook::BridgeIn) && of_others {
            return Some(Reason::NotForUs);
        }
        let meta = Meta {
            ifindex: arrival.ifindex,
            ingress_ifindex: arrival.ingress_ifindex,
            l3: 14,
            segment: arrival.segment,
            mark: arrival.mark,
            hash: 0,
        };
        let frame = OnFrame { host: self, bytes };
        let reason = ipv6::judge(&frame, at, &meta);
        let asked = at.is_ingress() && reason == Reason::ToHost && self.settings.lists6 != 0;
        Some(if asked {
            ipv6::ask_lists(&frame, &meta)
        } else {
            reason
        })
    }
}

/// The host, and the frame that is being processed.
struct OnFrame<'a> {
    host: &'a Host,
    bytes: &'a [u8],
}

impl BaseConfiguration for OnFrame<'_> {
    fn settings(&self) -> Settings {
        self.host.settings()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.host.device(ifindex)
    }
}

impl Host6 for OnFrame<'_> {
    fn network_policy(&self, bridge: u32) -> u32 {
        let network = self.host.networks.get(&bridge);
        network.map_or(0, |network| network.policy)
    }

    fn network_flags(&self, bridge: u32) -> Option<u32> {
        self.host.networks.get(&bridge).map(|network| network.flags)
    }

    fn subnet(&self, addr: Be128) -> Option<u32> {
        let subnets = self.host.subnets6.iter();
        let subnets = subnets.map(|(&(base, len), &bridge)| (base, len, bridge));
        most_specific(subnets, addr)
    }

    fn is_local(&self, key: &HostAddressKey6) -> bool {
        self.host.locals6.contains(key)
    }

    fn owner(&self, key: &OwnerKey6) -> Option<u32> {
        self.host.owners6.get(key).copied()
    }

    fn endpoint(&self, veth: u32) -> Option<Endpoint6> {
        self.host.endpoints6.get(&veth).copied()
    }

    fn allowed(&self, key: &AllowedKey6) -> u32 {
        let rows = self.host.allowed6.iter();
        let rows = rows.filter(|((own, _), _)| own.device == key.device);
        let rows = rows.map(|(&(own, len), &word)| (own.source, len, word));
        most_specific(rows, key.source).unwrap_or_default()
    }

    fn published(&self, key: &PortKey6) -> Option<Published6> {
        self.host.published6.get(key).copied()
    }

    fn ingress(&self, key: &IngressKey6) -> u32 {
        let rows = self.host.ingress6.iter();
        let rows = rows.filter(|((own, _), _)| own.list == key.list);
        let rows = rows.map(|(&(own, len), &word)| (own.client, len, word));
        most_specific(rows, key.client).unwrap_or_default()
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = offset as usize;
        let bytes = self.bytes.get(at..at + size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn route(&self, _: u32, _: Be128, dst: Be128) -> Option<u32> {
        self.host.routes6.get(&dst).copied()
    }
}

/// The value of the longest prefix that contains an address.
fn most_specific(rows: impl Iterator<Item = (Be128, u8, u32)>, addr: Be128) -> Option<u32> {
    let bits = |addr: Be128| u128::from_be_bytes(addr.octets());
    let inside = |base, len: u8| {
        let differ = bits(base) ^ bits(addr);
        differ.checked_shr(128 - u32::from(len)).unwrap_or(0) == 0
    };
    rows.filter(|&(base, len, _)| inside(base, len))
        .max_by_key(|&(_, len, _)| len)
        .map(|(_, _, word)| word)
}

/// The frame of an IPv6 packet: MAC addresses, source and destination, extension headers and upper
/// layer, by the protocol of the first of them; hop limit 255. Its checksums are not valid.
pub fn frame(
    (to, from): ([u8; 6], [u8; 6]),
    (src, dst): (Be128, Be128),
    next: u8,
    body: &[u8],
) -> Vec<u8> {
    let packet = Packet6 {
        from: src.octets().into(),
        to: dst.octets().into(),
        protocol: next,
        transport: body.to_vec(),
    };
    [&to[..], &from, &[0x86, 0xdd], &packet.bytes()].concat()
}

/// A neighbour discovery message: its type, target and link-layer address option.
pub fn neighbour(kind: u8, target: Be128, option: u8, mac: [u8; 6]) -> Vec<u8> {
    let head = [kind, 0, 0, 0, 0, 0, 0, 0];
    [&head[..], &target.octets(), &[option, 1], &mac].concat()
}
