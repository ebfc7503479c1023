// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each table that is common to all families contributes to a plan.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{Device, device};

use super::{Change, Pass};
use crate::desired_state::{DesiredState, PeerVeth};

impl Pass<'_> {
    // The settings.

    pub(super) fn put_settings(&self) -> Vec<Change> {
        let settings = |tables: &DesiredState| Change::Settings {
            route_generation: tables.route_generation,
            xdp_tcp: tables.xdp_tcp,
            route_mtu: tables.route_mtu,
            others: tables.others,
            lists6: tables.lists6,
        };
        let (now, desired) = (settings(self.now), settings(self.desired));
        (now != desired).then_some(desired).into_iter().collect()
    }

    pub(super) fn put_policy(&self) -> Vec<Change> {
        let policy = self.desired.policy;
        let is_new = self.now.policy != policy;
        is_new
            .then_some(Change::Policy(policy))
            .into_iter()
            .collect()
    }

    pub(super) fn clear_defrag_loopback(&self) -> Vec<Change> {
        let gone = self.desired.defrag_loopback == 0 && self.now.defrag_loopback != 0;
        gone.then_some(Change::DefragLoopback(0))
            .into_iter()
            .collect()
    }

    pub(super) fn set_defrag_loopback(&self) -> Vec<Change> {
        let index = self.desired.defrag_loopback;
        let is_new = index != 0 && self.now.defrag_loopback != index;
        is_new
            .then_some(Change::DefragLoopback(index))
            .into_iter()
            .collect()
    }

    // Devices. A new veth has no name until its endpoint exists.

    pub(super) fn put_new_devices(&self) -> Vec<Change> {
        let nameless = |(index, device): (u32, Device)| {
            let kind = match device.kind {
                device::NAMED_VETH => device::VETH,
                kind => kind,
            };
            Change::PutDevice(index, Device { kind, ..device })
        };
        let changed = changed(&self.now.devices, &self.desired.devices);
        changed
            .filter(|(index, _)| !self.has_device(*index))
            .map(nameless)
            .collect()
    }

    pub(super) fn put_devices(&self) -> Vec<Change> {
        let changed = || changed(&self.now.devices, &self.desired.devices);
        let known = changed().filter(|(index, _)| self.has_device(*index));
        let named = changed().filter(|(index, device)| {
            !self.has_device(*index) && device.kind == device::NAMED_VETH
        });
        known
            .chain(named)
            .map(|(index, device)| Change::PutDevice(index, device))
            .collect()
    }

    pub(super) fn drop_devices(&self) -> Vec<Change> {
        gone(&self.now.devices, &self.desired.devices)
            .map(Change::DropDevice)
            .collect()
    }

    fn has_device(&self, index: u32) -> bool {
        self.now.devices.contains_key(&index)
    }

    // The devices that networks trust.

    pub(super) fn put_trusted(&self) -> Vec<Change> {
        new(&self.now.trusted, &self.desired.trusted)
            .map(Change::PutTrusted)
            .collect()
    }

    pub(super) fn drop_trusted(&self) -> Vec<Change> {
        new(&self.desired.trusted, &self.now.trusted)
            .map(Change::DropTrusted)
            .collect()
    }

    // The IPv6 tables.

    pub(super) fn put_ipv6(&self) -> Vec<Change> {
        let changed = changed(&self.now.ipv6, &self.desired.ipv6);
        changed
            .map(|(key, row)| Change::PutIpv6(key, row))
            .collect()
    }

    pub(super) fn drop_ipv6(&self) -> Vec<Change> {
        let gone = gone(&self.now.ipv6, &self.desired.ipv6).collect::<Vec<_>>();
        gone.into_iter().rev().map(Change::DropIpv6).collect()
    }

    // Programs on devices and on the root cgroup.

    pub(super) fn attach_hooks(&self) -> Vec<Change> {
        let attach = |(ifindex, hook)| Change::Attach {
            ifindex,
            hook,
            xdp: self.desired.xdp.get(&ifindex).copied(),
        };
        new(&self.now.hooks, &self.desired.hooks)
            .map(attach)
            .collect()
    }

    pub(super) fn detach_hooks(&self) -> Vec<Change> {
        let detach = |(ifindex, hook)| Change::Detach { ifindex, hook };
        new(&self.desired.hooks, &self.now.hooks)
            .map(detach)
            .collect()
    }

    pub(super) fn attach_sockets(&self) -> Vec<Change> {
        new(&self.now.sockets, &self.desired.sockets)
            .map(Change::AttachSocket)
            .collect()
    }

    pub(super) fn detach_sockets(&self) -> Vec<Change> {
        new(&self.desired.sockets, &self.now.sockets)
            .map(Change::DetachSocket)
            .collect()
    }

    // Veths to which XDP may redirect.

    pub(super) fn put_ports(&self) -> Vec<Change> {
        let is_new = |(veth, _): &(&u32, _)| !self.now.xdp_devmap.contains_key(veth);
        let put = |(&veth, peer_veth): (_, &PeerVeth)| Change::PutDevmap(veth, peer_veth.clone());
        self.desired
            .xdp_devmap
            .iter()
            .filter(is_new)
            .map(put)
            .collect()
    }

    pub(super) fn drop_ports(&self) -> Vec<Change> {
        gone(&self.now.xdp_devmap, &self.desired.xdp_devmap)
            .map(Change::DropDevmap)
            .collect()
    }
}

/// Returns the keys of `now` that `desired` lacks. Most tables are equal, which a comparison of the
/// whole shows much sooner than one of each row.
pub(super) fn gone<K: Ord + Copy, V: PartialEq>(
    now: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> impl Iterator<Item = K> {
    let differs = now != desired;
    let keys = now.keys().filter(move |_| differs);
    keys.filter(|key| !desired.contains_key(key)).copied()
}

/// Returns the rows of `desired` that `now` lacks or has with another value.
pub(super) fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    now: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    let differs = now != desired;
    let rows = desired.iter().filter(move |_| differs);
    rows.filter(|(key, value)| now.get(key) != Some(value))
        .map(|(&k, &v)| (k, v))
}

/// Returns the members of `desired` that `now` lacks.
pub(super) fn new<'a, K: Ord + Copy + 'a>(
    now: &'a BTreeSet<K>,
    desired: &'a BTreeSet<K>,
) -> impl Iterator<Item = K> + 'a {
    desired.difference(now).copied()
}
