// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel holds after a change.

use forwarder_common::family::Family;

use super::{Change, FamilyChange};
use crate::desired_state::{FamilyTables, Observed, Slots};

impl Observed {
    /// Applies a change that the kernel has accepted, so that the next plan can begin here without
    /// reading everything again.
    pub fn apply(&mut self, change: &Change) {
        let tables = &mut self.tables;
        match *change {
            Change::V4(change) => tables.v4.apply(&mut self.v4, change),
            Change::Settings {
                route_generation,
                xdp_tcp,
                route_mtu,
                others,
                lists6,
            } => {
                tables.route_generation = route_generation;
                tables.xdp_tcp = xdp_tcp;
                tables.route_mtu = route_mtu;
                tables.others = others;
                tables.lists6 = lists6;
            }
            Change::Policy(policy) => tables.policy = policy,
            Change::DefragLoopback(index) => tables.defrag_loopback = index,
            Change::PutDevice(index, row) => _ = tables.devices.insert(index, row),
            Change::DropDevice(index) => _ = tables.devices.remove(&index),
            Change::PutTrusted(key) => _ = tables.trusted.insert(key),
            Change::DropTrusted(key) => _ = tables.trusted.remove(&key),
            Change::PutIpv6(key, row) => _ = tables.ipv6.insert(key, row),
            Change::DropIpv6(key) => _ = tables.ipv6.remove(&key),
            Change::PutDevmap(veth, ref peer_veth) => {
                tables.xdp_devmap.insert(veth, peer_veth.clone());
            }
            Change::DropDevmap(veth) => _ = tables.xdp_devmap.remove(&veth),
            Change::Attach { ifindex, hook, xdp } => {
                tables.hooks.insert((ifindex, hook));
                tables.xdp.extend(xdp.map(|kind| (ifindex, kind)));
            }
            Change::Detach { ifindex, hook } => {
                tables.hooks.remove(&(ifindex, hook));
                tables.xdp.remove(&ifindex);
            }
            Change::AttachSocket(hook) => _ = tables.sockets.insert(hook),
            Change::DetachSocket(hook) => _ = tables.sockets.remove(&hook),
            Change::SeverSockets => {}
        }
    }
}

impl<F: Family> FamilyTables<F> {
    fn apply(&mut self, slots: &mut Slots<F>, change: FamilyChange<F>) {
        match change {
            FamilyChange::PutEndpoint {
                key,
                slot,
                endpoint,
            } => {
                self.endpoints.insert(key, endpoint);
                slots.endpoints.insert(key, slot);
            }
            FamilyChange::DropEndpoint { key, .. } => {
                self.endpoints.remove(&key);
                slots.endpoints.remove(&key);
            }
            FamilyChange::PutNetwork { bridge, row, .. } => _ = self.networks.insert(bridge, row),
            FamilyChange::DropNetwork(bridge) => _ = self.networks.remove(&bridge),
            FamilyChange::PutSubnet(subnet, bridge) => _ = self.subnets.insert(subnet, bridge),
            FamilyChange::DropSubnet(subnet) => _ = self.subnets.remove(&subnet),
            FamilyChange::PutHostAddress(range) => _ = self.host_addresses.insert(range),
            FamilyChange::DropHostAddress(range) => _ = self.host_addresses.remove(&range),
            FamilyChange::PutMasqAddress(key, source) => {
                _ = self.masq_addresses.insert(key, source);
            }
            FamilyChange::DropMasqAddress(key) => _ = self.masq_addresses.remove(&key),
            FamilyChange::PutPublished { key, slot, target } => {
                self.published.insert(key, target);
                slots.mappings.insert(key, slot);
            }
            FamilyChange::DropPublished { key, .. } => {
                self.published.remove(&key);
                slots.mappings.remove(&key);
            }
            FamilyChange::PutSeenAs(key, port) => _ = self.seen_as.insert(key, port),
            FamilyChange::DropSeenAs(key) => _ = self.seen_as.remove(&key),
            FamilyChange::PutLink(key) => _ = self.links.insert(key),
            FamilyChange::DropLink(key) => _ = self.links.remove(&key),
            FamilyChange::PutIngress(key, word) => _ = self.ingress.insert(key, word),
            FamilyChange::DropIngress(key) => _ = self.ingress.remove(&key),
            FamilyChange::PutAllowed(key, word) => _ = self.allowed.insert(key, word),
            FamilyChange::DropAllowed(key) => _ = self.allowed.remove(&key),
        }
    }
}
