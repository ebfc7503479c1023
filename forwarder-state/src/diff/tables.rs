// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each table contributes to a plan. [`Pass::ORDER`] says when.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{Device, PortKey, device};
use forwarder_common::family::Family;

use super::{Change, Pass};
use crate::desired_state::{DesiredState, EndpointKey, PeerVeth, Target};

impl<F: Family> Pass<'_, F> {
    // The settings.

    pub(super) fn put_settings(&self) -> Vec<Change<F>> {
        let settings = |tables: &DesiredState<F>| Change::Settings {
            route_generation: tables.route_generation,
            xdp_tcp: tables.xdp_tcp,
            route_mtu: tables.route_mtu,
            others: tables.others,
            lists6: tables.lists6,
        };
        let (now, desired) = (settings(self.now), settings(self.desired));
        (now != desired).then_some(desired).into_iter().collect()
    }

    pub(super) fn put_policy(&self) -> Vec<Change<F>> {
        let policy = self.desired.policy;
        let is_new = self.now.policy != policy;
        is_new
            .then_some(Change::Policy(policy))
            .into_iter()
            .collect()
    }

    pub(super) fn clear_defrag_loopback(&self) -> Vec<Change<F>> {
        let gone = self.desired.defrag_loopback == 0 && self.now.defrag_loopback != 0;
        gone.then_some(Change::DefragLoopback(0))
            .into_iter()
            .collect()
    }

    pub(super) fn set_defrag_loopback(&self) -> Vec<Change<F>> {
        let index = self.desired.defrag_loopback;
        let is_new = index != 0 && self.now.defrag_loopback != index;
        is_new
            .then_some(Change::DefragLoopback(index))
            .into_iter()
            .collect()
    }

    // Devices. A new veth has no name until its endpoint exists.

    pub(super) fn put_new_devices(&self) -> Vec<Change<F>> {
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

    pub(super) fn put_devices(&self) -> Vec<Change<F>> {
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

    pub(super) fn drop_devices(&self) -> Vec<Change<F>> {
        gone(&self.now.devices, &self.desired.devices)
            .map(Change::DropDevice)
            .collect()
    }

    fn has_device(&self, index: u32) -> bool {
        self.now.devices.contains_key(&index)
    }

    // Networks and their subnets.

    pub(super) fn put_networks(&self) -> Vec<Change<F>> {
        let put = |(bridge, row)| Change::PutNetwork {
            bridge,
            row,
            default_endpoint: self.endpoint_slot(EndpointKey::Default(bridge)),
        };
        changed(&self.now.networks, &self.desired.networks)
            .map(put)
            .collect()
    }

    pub(super) fn drop_networks(&self) -> Vec<Change<F>> {
        gone(&self.now.networks, &self.desired.networks)
            .map(Change::DropNetwork)
            .collect()
    }

    pub(super) fn put_subnets(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.subnets, &self.desired.subnets);
        changed
            .map(|(subnet, bridge)| Change::PutSubnet(subnet, bridge))
            .collect()
    }

    pub(super) fn drop_subnets(&self) -> Vec<Change<F>> {
        gone(&self.now.subnets, &self.desired.subnets)
            .map(Change::DropSubnet)
            .collect()
    }

    // Endpoints. A network's default endpoint stands in for containers that do not exist yet. Its
    // generation changes when they appear, so flows that they opened under the default endpoint end
    // then. Until then a new default endpoint has another generation.

    pub(super) fn put_new_default_endpoints(&self) -> Vec<Change<F>> {
        let mut changes = self.put_default_endpoints();
        changes.retain_mut(|change| match change {
            Change::PutEndpoint { key, endpoint, .. } => {
                endpoint.generation = interim(endpoint.generation);
                !self.now.endpoints.contains_key(key)
            }
            _ => false,
        });
        changes
    }

    pub(super) fn put_default_endpoints(&self) -> Vec<Change<F>> {
        self.changed_endpoints(|key| matches!(key, EndpointKey::Default(_)))
    }

    pub(super) fn put_endpoints(&self) -> Vec<Change<F>> {
        self.changed_endpoints(|key| matches!(key, EndpointKey::Address(_)))
    }

    pub(super) fn drop_endpoints(&self) -> Vec<Change<F>> {
        self.gone_endpoints(|key| matches!(key, EndpointKey::Address(_)))
    }

    pub(super) fn drop_default_endpoints(&self) -> Vec<Change<F>> {
        self.gone_endpoints(|key| matches!(key, EndpointKey::Default(_)))
    }

    fn changed_endpoints(&self, is_meant: impl Fn(&EndpointKey<F>) -> bool) -> Vec<Change<F>> {
        let changed = changed(&self.now.endpoints, &self.desired.endpoints);
        let put = |(key, endpoint)| Change::PutEndpoint {
            key,
            slot: self.endpoint_slot(key),
            endpoint,
        };
        changed.filter(|(key, _)| is_meant(key)).map(put).collect()
    }

    fn gone_endpoints(&self, is_meant: impl Fn(&EndpointKey<F>) -> bool) -> Vec<Change<F>> {
        let gone = gone(&self.now.endpoints, &self.desired.endpoints).filter(is_meant);
        let drop = |key| {
            let slot = *self.observed.endpoint_slots.get(&key)?;
            Some(Change::DropEndpoint { key, slot })
        };
        gone.filter_map(drop).collect()
    }

    // The host's own addresses, and the masquerade addresses.

    pub(super) fn put_locals(&self) -> Vec<Change<F>> {
        new(&self.now.host_addresses, &self.desired.host_addresses)
            .map(Change::PutHostAddress)
            .collect()
    }

    pub(super) fn drop_locals(&self) -> Vec<Change<F>> {
        new(&self.desired.host_addresses, &self.now.host_addresses)
            .map(Change::DropHostAddress)
            .collect()
    }

    pub(super) fn put_sources(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.masq_addresses, &self.desired.masq_addresses);
        changed
            .map(|(key, source)| Change::PutMasqAddress(key, source))
            .collect()
    }

    pub(super) fn drop_sources(&self) -> Vec<Change<F>> {
        gone(&self.now.masq_addresses, &self.desired.masq_addresses)
            .map(Change::DropMasqAddress)
            .collect()
    }

    // Published ports. A port that leads to another container must not deliver in between.

    pub(super) fn put_published(&self) -> Vec<Change<F>> {
        let put = |(key, target)| Change::PutPublished {
            key,
            slot: self.mapping_slot(key),
            target,
        };
        changed(&self.now.published, &self.desired.published)
            .map(put)
            .collect()
    }

    pub(super) fn drop_published(&self) -> Vec<Change<F>> {
        let leads_elsewhere = |(key, old): &(&PortKey<F>, &Target<F>)| {
            let new = self.desired.published.get(key);
            new.is_none_or(|new| new.addr != old.addr)
        };
        let drop = |(&key, _)| {
            let slot = *self.observed.mapping_slots.get(&key)?;
            Some(Change::DropPublished { key, slot })
        };
        let differs = self.now.published != self.desired.published;
        let rows = self.now.published.iter().filter(|_| differs);
        rows.filter(leads_elsewhere).filter_map(drop).collect()
    }

    pub(super) fn put_seen_as(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.seen_as, &self.desired.seen_as);
        changed
            .map(|(key, port)| Change::PutSeenAs(key, port))
            .collect()
    }

    pub(super) fn drop_seen_as(&self) -> Vec<Change<F>> {
        gone(&self.now.seen_as, &self.desired.seen_as)
            .map(Change::DropSeenAs)
            .collect()
    }

    // Who may reach whom: trusted devices, links, access lists, allowed sources.

    pub(super) fn put_trusted(&self) -> Vec<Change<F>> {
        new(&self.now.trusted, &self.desired.trusted)
            .map(Change::PutTrusted)
            .collect()
    }

    pub(super) fn drop_trusted(&self) -> Vec<Change<F>> {
        new(&self.desired.trusted, &self.now.trusted)
            .map(Change::DropTrusted)
            .collect()
    }

    pub(super) fn put_links(&self) -> Vec<Change<F>> {
        new(&self.now.links, &self.desired.links)
            .map(Change::PutLink)
            .collect()
    }

    pub(super) fn drop_links(&self) -> Vec<Change<F>> {
        new(&self.desired.links, &self.now.links)
            .map(Change::DropLink)
            .collect()
    }

    pub(super) fn put_ingress(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.ingress, &self.desired.ingress);
        changed
            .map(|(key, word)| Change::PutIngress(key, word))
            .collect()
    }

    pub(super) fn drop_ingress(&self) -> Vec<Change<F>> {
        gone(&self.now.ingress, &self.desired.ingress)
            .map(Change::DropIngress)
            .collect()
    }

    pub(super) fn put_allowed(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.allowed, &self.desired.allowed);
        changed
            .map(|(key, word)| Change::PutAllowed(key, word))
            .collect()
    }

    pub(super) fn drop_allowed(&self) -> Vec<Change<F>> {
        gone(&self.now.allowed, &self.desired.allowed)
            .map(Change::DropAllowed)
            .collect()
    }

    // The IPv6 tables.

    pub(super) fn put_ipv6(&self) -> Vec<Change<F>> {
        let changed = changed(&self.now.ipv6, &self.desired.ipv6);
        changed
            .map(|(key, row)| Change::PutIpv6(key, row))
            .collect()
    }

    pub(super) fn drop_ipv6(&self) -> Vec<Change<F>> {
        let gone = gone(&self.now.ipv6, &self.desired.ipv6).collect::<Vec<_>>();
        gone.into_iter().rev().map(Change::DropIpv6).collect()
    }

    // Programs on devices and on the root cgroup.

    pub(super) fn attach_hooks(&self) -> Vec<Change<F>> {
        let attach = |(ifindex, hook)| Change::Attach {
            ifindex,
            hook,
            xdp: self.desired.xdp.get(&ifindex).copied(),
        };
        new(&self.now.hooks, &self.desired.hooks)
            .map(attach)
            .collect()
    }

    pub(super) fn detach_hooks(&self) -> Vec<Change<F>> {
        let detach = |(ifindex, hook)| Change::Detach { ifindex, hook };
        new(&self.desired.hooks, &self.now.hooks)
            .map(detach)
            .collect()
    }

    pub(super) fn attach_sockets(&self) -> Vec<Change<F>> {
        new(&self.now.sockets, &self.desired.sockets)
            .map(Change::AttachSocket)
            .collect()
    }

    pub(super) fn detach_sockets(&self) -> Vec<Change<F>> {
        new(&self.desired.sockets, &self.now.sockets)
            .map(Change::DetachSocket)
            .collect()
    }

    pub(super) fn sever_sockets(&self) -> Vec<Change<F>> {
        let leads_there = |(key, old): (_, &Target<F>)| {
            let new = self.desired.published.get(key);
            new.is_some_and(|new| (new.addr, new.port) == (old.addr, old.port))
        };
        let (now, desired) = (&self.now.published, &self.desired.published);
        let stays = now == desired || now.iter().all(leads_there);
        (!stays)
            .then_some(Change::SeverSockets)
            .into_iter()
            .collect()
    }

    // Veths to which XDP may redirect.

    pub(super) fn put_ports(&self) -> Vec<Change<F>> {
        let is_new = |(veth, _): &(&u32, _)| !self.now.xdp_devmap.contains_key(veth);
        let put = |(&veth, peer_veth): (_, &PeerVeth)| Change::PutDevmap(veth, peer_veth.clone());
        self.desired
            .xdp_devmap
            .iter()
            .filter(is_new)
            .map(put)
            .collect()
    }

    pub(super) fn drop_ports(&self) -> Vec<Change<F>> {
        gone(&self.now.xdp_devmap, &self.desired.xdp_devmap)
            .map(Change::DropDevmap)
            .collect()
    }
}

/// Returns a generation that differs from this one and is not 0.
fn interim(generation: u32) -> u32 {
    (!generation).max(1)
}

/// Returns the keys of `now` that `desired` lacks. Most tables are equal, which a comparison of the
/// whole shows much sooner than one of each row.
fn gone<K: Ord + Copy, V: PartialEq>(
    now: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> impl Iterator<Item = K> {
    let differs = now != desired;
    let keys = now.keys().filter(move |_| differs);
    keys.filter(|key| !desired.contains_key(key)).copied()
}

/// Returns the rows of `desired` that `now` lacks or has with another value.
fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    now: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    let differs = now != desired;
    let rows = desired.iter().filter(move |_| differs);
    rows.filter(|(key, value)| now.get(key) != Some(value))
        .map(|(&k, &v)| (k, v))
}

/// Returns the members of `desired` that `now` lacks.
fn new<'a, K: Ord + Copy + 'a>(
    now: &'a BTreeSet<K>,
    desired: &'a BTreeSet<K>,
) -> impl Iterator<Item = K> + 'a {
    desired.difference(now).copied()
}
