// SPDX-License-Identifier: MIT OR Apache-2.0
//! The routes that the agent keeps: the few that say something apart from a next hop. Pure. The
//! netlink watcher reads all routes once, and then follows the notifications.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use forwarder_state::host_state::Routing;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};

/// What the kernel distinguishes routes by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    to: (Ipv4Addr, u8),
    table: u32,
    tos: u8,
    priority: u32,
}

/// A route that is kept.
#[derive(Clone, PartialEq, Eq)]
struct Row {
    devices: BTreeSet<u32>,
    mtu: Option<u32>,
    local: bool,
}

/// The kept routes: default routes, routes with their own MTU, routes to the host's own addresses,
/// and the route to 0.0.0.0/8.
#[derive(Default)]
pub(super) struct Routes {
    rows: BTreeMap<Key, Vec<Row>>,
    locals: Arc<BTreeSet<(Ipv4Addr, u8)>>,
}

impl Routes {
    /// Adds a route of a dump or a notification. If it `replaces`, it takes the place of the first
    /// route with its key; the kernel sends no other notification about that route.
    pub(super) fn add(&mut self, message: &RouteMessage, replaces: bool) {
        let Some(key) = key(message) else { return };
        let row = row(&key, message);
        let known = self.rows.get(&key).map_or(&[][..], Vec::as_slice);
        if row.as_ref().is_some_and(|row| known.contains(row)) {
            return;
        }
        if replaces && !known.is_empty() {
            self.change(&key, |rows| drop(rows.remove(0)));
        }
        if let Some(row) = row {
            self.change(&key, |rows| rows.push(row));
        }
    }

    /// Removes a deleted route.
    pub(super) fn remove(&mut self, message: &RouteMessage) {
        let Some(key) = key(message) else { return };
        let Some(row) = row(&key, message) else {
            return;
        };
        self.change(&key, |rows| {
            if let Some(at) = rows.iter().position(|known| *known == row) {
                rows.remove(at);
            }
        });
    }

    /// Removes the routes of a device that went down or has `gone`: the kernel drops them without a
    /// notification for each. Returns whether there were any.
    pub(super) fn lose(&mut self, device: u32, gone: bool) -> bool {
        let leads_there = |row: &Row| row.devices.contains(&device) && (gone || !row.local);
        let keys: Vec<Key> = self
            .rows
            .iter()
            .filter(|(_, rows)| rows.iter().any(leads_there))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.change(key, |rows| {
                for row in rows.iter_mut().filter(|row| leads_there(row)) {
                    row.devices.remove(&device);
                }
                rows.retain(|row| !row.devices.is_empty());
            });
        }
        !keys.is_empty()
    }

    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Vec<Row>)) {
        let rows = self.rows.entry(key.clone()).or_default();
        change(rows);
        let local = rows.iter().any(|row| row.local);
        if rows.is_empty() {
            self.rows.remove(key);
        }
        if local != self.locals.contains(&key.to) {
            // Another table may have the same route.
            let everywhere = Key {
                table: 0,
                tos: 0,
                priority: 0,
                ..key.clone()
            };
            let elsewhere = self
                .rows
                .range(everywhere..)
                .take_while(|(other, _)| other.to == key.to)
                .any(|(_, rows)| rows.iter().any(|row| row.local));
            let locals = Arc::make_mut(&mut self.locals);
            if elsewhere {
                locals.insert(key.to);
            } else {
                locals.remove(&key.to);
            }
        }
    }

    /// Returns the summary of the kept routes.
    pub(super) fn summary(&self) -> Routing {
        let to = |to: (Ipv4Addr, u8)| {
            let all = self.rows.iter().filter(move |(key, _)| key.to == to);
            let rows = all.flat_map(|(_, rows)| rows).filter(|row| !row.local);
            rows.flat_map(|row| row.devices.iter().copied()).collect()
        };
        let own = self.rows.values().flatten().filter_map(|row| row.mtu);
        Routing {
            defaults: to((Ipv4Addr::UNSPECIFIED, 0)),
            mtu: own.min().unwrap_or_default(),
            locals: Arc::clone(&self.locals),
            unspecified: to((Ipv4Addr::UNSPECIFIED, 8)),
        }
    }
}

/// Returns the key of a route that may be kept: an IPv4 route that is not to loopback addresses,
/// which never appear on a wire.
fn key(message: &RouteMessage) -> Option<Key> {
    if message.header.address_family != rtnetlink::packet_route::AddressFamily::Inet
        || !matches!(message.header.kind, RouteType::Unicast | RouteType::Local)
    {
        return None;
    }
    let mut key = Key {
        to: (
            Ipv4Addr::UNSPECIFIED,
            message.header.destination_prefix_length,
        ),
        table: u32::from(message.header.table),
        tos: message.header.tos,
        priority: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => key.to.0 = *to,
            RouteAttribute::Table(table) => key.table = *table,
            RouteAttribute::Priority(priority) => key.priority = *priority,
            _ => {}
        }
    }
    (!key.to.0.is_loopback()).then_some(key)
}

/// Returns what is kept of a route; `None` for a route with nothing apart from its next hop.
fn row(key: &Key, message: &RouteMessage) -> Option<Row> {
    let mut row = Row {
        devices: BTreeSet::new(),
        mtu: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(device) => _ = row.devices.insert(*device),
            RouteAttribute::MultiPath(hops) => {
                row.devices
                    .extend(hops.iter().map(|hop| hop.interface_index));
            }
            RouteAttribute::Metrics(metrics) if !row.local => {
                row.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let unspecified = key.to.0.is_unspecified() && matches!(key.to.1, 0 | 8);
    (row.local || row.mtu.is_some() || unspecified).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::AddressFamily;

    fn route(kind: RouteType, to: [u8; 4], len: u8, device: u32, mtu: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = kind;
        message.header.destination_prefix_length = len;
        message.header.table = 254;
        if len != 0 {
            let to = RouteAddress::Inet(to.into());
            message.attributes.push(RouteAttribute::Destination(to));
        }
        message.attributes.push(RouteAttribute::Oif(device));
        if mtu != 0 {
            let metrics = vec![RouteMetric::Mtu(mtu)];
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }

    fn unicast(to: [u8; 4], len: u8, device: u32, mtu: u32) -> RouteMessage {
        route(RouteType::Unicast, to, len, device, mtu)
    }

    #[test]
    fn routes_with_next_hops_alone_are_not_kept() {
        let mut routes = Routes::default();
        for last in 0..100 {
            routes.add(&unicast([10, 0, last, 0], 24, 2, 0), false);
        }
        assert!(routes.rows.is_empty());
        routes.remove(&unicast([10, 0, 7, 0], 24, 2, 0));
        assert_eq!(routes.summary(), Routing::default());
    }

    #[test]
    fn replaced_default_route_is_removed() {
        let mut routes = Routes::default();
        routes.add(&unicast([0; 4], 0, 2, 0), false);
        // The same route arrives in a dump and in a notification.
        routes.add(&unicast([0; 4], 0, 2, 0), false);
        routes.add(&unicast([0; 4], 0, 3, 1400), true);
        let Routing { defaults, mtu, .. } = routes.summary();
        assert_eq!((defaults, mtu), ([3].into(), 1400));
        routes.remove(&unicast([0; 4], 0, 3, 1400));
        assert_eq!(routes.summary(), Routing::default());
    }

    #[test]
    fn smallest_mtu_follows_its_route() {
        let mut routes = Routes::default();
        routes.add(&unicast([10, 0, 0, 0], 24, 2, 1400), false);
        routes.add(&unicast([10, 0, 1, 0], 24, 2, 1300), false);
        assert_eq!(routes.summary().mtu, 1300);
        routes.add(&unicast([10, 0, 1, 0], 24, 2, 0), true);
        assert_eq!(routes.summary().mtu, 1400);
    }

    #[test]
    fn local_ranges_come_from_the_kernel() {
        let mut routes = Routes::default();
        let local = |to, len, device| route(RouteType::Local, to, len, device, 0);
        routes.add(&local([203, 0, 113, 0], 24, 1), false);
        routes.add(&local([198, 18, 1, 1], 32, 2), false);
        routes.add(&local([127, 0, 0, 0], 8, 1), false);
        let any = (Ipv4Addr::new(203, 0, 113, 0), 24);
        let own = (Ipv4Addr::new(198, 18, 1, 1), 32);
        assert_eq!(*routes.summary().locals, [any, own].into());
        assert!(
            !routes.lose(2, false),
            "addresses of a device that is down stay"
        );
        assert!(routes.lose(2, true));
        assert_eq!(*routes.summary().locals, [any].into());
        // The same range is in another table.
        let mut twice = local([203, 0, 113, 0], 24, 1);
        twice.attributes.push(RouteAttribute::Table(300));
        routes.add(&twice, false);
        routes.remove(&twice);
        assert_eq!(*routes.summary().locals, [any].into());
        routes.remove(&local([203, 0, 113, 0], 24, 1));
        assert!(routes.summary().locals.is_empty());
    }

    #[test]
    fn routes_go_with_their_device() {
        let mut routes = Routes::default();
        routes.add(&unicast([0; 4], 0, 2, 0), false);
        routes.add(&unicast([0; 4], 8, 9, 0), false);
        assert_eq!(routes.summary().unspecified, [9].into());
        assert!(routes.lose(2, false) && !routes.lose(2, true));
        assert!(routes.summary().defaults.is_empty());
    }
}
