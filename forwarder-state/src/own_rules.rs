// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our own rules of netfilter, one table per address family, derived from what the kernel holds:
//! pure.
//!
//! - *Untracked*: connection tracking ignores what the fast path passes to the kernel. Such packets
//!   are half translated before the kernel's path and half after it. Connection tracking would take
//!   the halves for two connections, and translations by other rules (`-j MASQUERADE`) would change
//!   the packets in between. The rule is before connection tracking and after the kernel's
//!   defragmentation. It matches only our marks, and does not itself switch on connection tracking.
//! - *Forwarded*: nothing is forwarded between a bridge and another device neither of which has ever
//!   been hooked. While no agent runs, no program is on either.
//! - *Bridged*: the same between two ports of a bridge, for packets with an address of a network
//!   without inter-container communication. Not every kernel tells a rule the port's bridge, so the
//!   addresses say which network it is.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forwarder_common::abi::{device, network};
use forwarder_common::mark::UNTRACKED_BITS;

use crate::desired_state::DesiredState;
use crate::others::netfilter::{OurTable, TABLE};

/// Our rules as they should be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Whether connection tracking ignores what the fast path passes to the kernel.
    pub untracked: bool,
    /// The devices through which packets may be forwarded: their hooks decide.
    pub devices: BTreeSet<u32>,
    /// What keeps containers apart; none if every network has inter-container communication.
    pub apart: Option<Apart>,
}

/// The networks without inter-container communication.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Apart {
    /// The ports of their bridges that are hooked: their hooks decide.
    pub ports: BTreeSet<u32>,
    /// Their IPv4 subnets, as address and prefix length.
    pub subnets: BTreeSet<(Ipv4Addr, u8)>,
    /// Their IPv6 subnets.
    pub subnets6: BTreeSet<(Ipv6Addr, u8)>,
}

impl Rules {
    /// Derives the rules that follow from what the kernel holds. `is_hooked` says whether the
    /// programs of a device are in place.
    #[must_use]
    pub fn of(tables: &DesiredState, is_hooked: impl Fn(u32) -> bool) -> Self {
        let mut rules = Self::default();
        let is_apart = |bridge: &u32| {
            let flags = tables.network_flags(*bridge);
            flags.is_some_and(|flags| flags & network::ICC_DISABLED != 0)
        };
        let mut apart = Apart::default();
        for (&index, row) in tables
            .devices
            .iter()
            .filter(|&(&index, _)| is_hooked(index))
        {
            match row.kind {
                device::VETH | device::NAMED_VETH | device::PORT if is_apart(&row.bridge) => {
                    apart.ports.insert(index);
                }
                device::VETH | device::NAMED_VETH | device::PORT | device::FOLLOWED => {}
                _ => {
                    rules.devices.insert(index);
                }
            }
        }
        for ((address, len), _) in tables.subnets().filter(|(_, bridge)| is_apart(bridge)) {
            match address {
                IpAddr::V4(address) => _ = apart.subnets.insert((address, len)),
                IpAddr::V6(address) => _ = apart.subnets6.insert((address, len)),
            }
        }
        if !apart.subnets.is_empty() || !apart.subnets6.is_empty() {
            rules.apart = Some(apart);
        }
        rules
    }

    /// Adds what other rules let through.
    pub fn extend(&mut self, other: &Self) {
        self.devices.extend(&other.devices);
        if let Some(more) = &other.apart {
            let apart = self.apart.get_or_insert_default();
            apart.ports.extend(&more.ports);
            apart.subnets.extend(&more.subnets);
            apart.subnets6.extend(&more.subnets6);
        }
    }

    /// Formats the content of a table for nft; none if the table is not needed.
    #[must_use]
    pub fn content(&self, table: OurTable) -> Option<String> {
        match table {
            OurTable::Untracked => self.untracked.then(untracked),
            OurTable::Forwarded => Some(self.forwarded()),
            OurTable::Bridged => self.apart.as_ref().map(Apart::bridged),
        }
    }

    /// A packet that a bridge switches passes here too where `br_netfilter` is loaded, with the
    /// bridge as both devices. nft cannot compare two devices, so a set holds the pair that such a
    /// packet has.
    fn forwarded(&self) -> String {
        format!(
            " set seen {{\n  type iface_index\n{}\n }}\n \
             set same {{\n  type iface_index . iface_index\n  size 8192\n  flags dynamic\n }}\n \
             chain forward {{\n  type filter hook forward priority -300; policy accept;\n  \
             iif @seen return\n  oif @seen return\n  \
             meta iifkind != \"bridge\" meta oifkind != \"bridge\" return\n  \
             add @same {{ iif . iif }}\n  iif . oif @same return\n  \
             drop comment \"{TABLE}\"\n }}\n",
            elements(&self.devices)
        )
    }
}

impl Apart {
    /// A frame with one VLAN tag has the protocol behind the tag; one with more has none of these
    /// addresses to show. Neighbours are still found by link-local addresses, which belong to no
    /// network; nothing else goes there.
    fn bridged(&self) -> String {
        let subnet = |(address, len): &(_, u8)| format!("{address}/{len}");
        let subnets = elements(self.subnets.iter().map(subnet));
        let subnet6 = |(address, len): &(_, u8)| format!("{address}/{len}");
        let mut text = format!(
            " set seen {{\n  type iface_index\n{}\n }}\n \
             set subnets {{\n  type ipv4_addr\n  flags interval\n  auto-merge\n{subnets}\n }}\n \
             chain forward {{\n  type filter hook forward priority -300; policy accept;\n  \
             iif @seen return\n  oif @seen return\n  \
             meta iifkind \"veth\" meta oifkind \"veth\" jump apart\n }}\n \
             chain apart {{\n  meta protocol {{ 0x8100, 0x88a8 }} drop comment \"{TABLE}\"\n  \
             ip saddr @subnets drop\n  ip daddr @subnets drop\n",
            elements(&self.ports)
        );
        if self.subnets6.is_empty() {
            text.push_str(" }\n");
        } else {
            let subnets6 = elements(self.subnets6.iter().map(subnet6));
            let _ = write!(
                text,
                "  ip6 saddr @subnets6 drop\n  ip6 daddr @subnets6 drop\n  \
                 ip6 daddr fe80::/10 meta l4proto != ipv6-icmp drop\n }}\n \
                 set subnets6 {{\n  type ipv6_addr\n  flags interval\n  auto-merge\n{subnets6}\n }}\n"
            );
        }
        text
    }
}

/// Formats the elements of a set; nft takes no empty list.
fn elements<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() {
        return String::new();
    }
    format!("  elements = {{ {} }}", all.join(", "))
}

fn untracked() -> String {
    format!(
        " chain untracked {{\n  type filter hook prerouting priority -300; policy accept;\n  \
         meta mark & {UNTRACKED_BITS:#x} == {UNTRACKED_BITS:#x} notrack comment \"{TABLE}\"\n }}\n"
    )
}

#[cfg(test)]
mod tests {
    use forwarder_common::abi::Device;
    use forwarder_common::family::Be32;

    use super::*;
    use crate::desired_state::NetworkRow;

    /// Bridge 3 without inter-container communication and its veth 4, bridge 5 with it and its veth
    /// 6, uplink 2.
    fn tables() -> DesiredState {
        let mut tables = DesiredState::default();
        let rows = [
            (2, device::OUTSIDE, 0),
            (3, device::BRIDGE, 3),
            (4, device::NAMED_VETH, 3),
            (5, device::BRIDGE, 5),
            (6, device::VETH, 5),
        ];
        for (index, kind, bridge) in rows {
            let row = Device {
                kind,
                bridge,
                ..Device::default()
            };
            tables.devices.insert(index, row);
        }
        for (bridge, flags) in [(3, network::ICC_DISABLED), (5, 0)] {
            let row = NetworkRow {
                flags,
                ..NetworkRow::default()
            };
            tables.v4.networks.insert(bridge, row);
            let subnet = Be32::from_octets([172, 16 + bridge as u8, 0, 0]);
            tables.v4.subnets.insert((subnet, 16), bridge);
        }
        tables
    }

    #[test]
    fn rules_name_what_is_hooked() {
        let rules = Rules::of(&tables(), |_| true);
        assert_eq!(rules.devices, [2, 3, 5].into());
        let apart = rules.apart.unwrap();
        assert_eq!(apart.ports, [4].into());
        assert_eq!(apart.subnets, [(Ipv4Addr::new(172, 19, 0, 0), 16)].into());
        let some = Rules::of(&tables(), |index| index != 3 && index != 4);
        assert_eq!(some.devices, [2, 5].into());
        assert!(some.apart.unwrap().ports.is_empty());
    }

    #[test]
    fn bridges_are_open_where_containers_may_talk() {
        let mut tables = tables();
        tables.v4.networks.remove(&3);
        let rules = Rules::of(&tables, |_| true);
        assert_eq!(rules.apart, None);
        assert_eq!(rules.content(OurTable::Bridged), None);
        assert_eq!(rules.content(OurTable::Untracked), None);
        assert!(rules.content(OurTable::Forwarded).is_some());
    }
}
