// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel holds after a change.

use forwarder_common::family::Family;

use super::Change;
use crate::desired_state::Observed;

impl<F: Family> Observed<F> {
    /// Applies a change that the kernel has accepted, so that the next plan can begin here without
    /// reading everything again.
    pub fn apply(&mut self, change: &Change<F>) {
        let tables = &mut self.tables;
        match *change {
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
            Change::PutEndpoint {
                key,
                slot,
                endpoint,
            } => {
                tables.endpoints.insert(key, endpoint);
                self.endpoint_slots.insert(key, slot);
            }
            Change::DropEndpoint { key, .. } => {
                tables.endpoints.remove(&key);
                self.endpoint_slots.remove(&key);
            }
            Change::PutNetwork { bridge, row, .. } => _ = tables.networks.insert(bridge, row),
            Change::DropNetwork(bridge) => _ = tables.networks.remove(&bridge),
            Change::PutSubnet(subnet, bridge) => _ = tables.subnets.insert(subnet, bridge),
            Change::DropSubnet(subnet) => _ = tables.subnets.remove(&subnet),
            Change::PutHostAddress(range) => _ = tables.host_addresses.insert(range),
            Change::DropHostAddress(range) => _ = tables.host_addresses.remove(&range),
            Change::PutMasqAddress(key, source) => _ = tables.masq_addresses.insert(key, source),
            Change::DropMasqAddress(key) => _ = tables.masq_addresses.remove(&key),
            Change::PutPublished { key, slot, target } => {
                tables.published.insert(key, target);
                self.mapping_slots.insert(key, slot);
            }
            Change::DropPublished { key, .. } => {
                tables.published.remove(&key);
                self.mapping_slots.remove(&key);
            }
            Change::PutSeenAs(key, port) => _ = tables.seen_as.insert(key, port),
            Change::DropSeenAs(key) => _ = tables.seen_as.remove(&key),
            Change::PutTrusted(key) => _ = tables.trusted.insert(key),
            Change::DropTrusted(key) => _ = tables.trusted.remove(&key),
            Change::PutLink(key) => _ = tables.links.insert(key),
            Change::DropLink(key) => _ = tables.links.remove(&key),
            Change::PutIngress(key, word) => _ = tables.ingress.insert(key, word),
            Change::DropIngress(key) => _ = tables.ingress.remove(&key),
            Change::PutIpv6(key, row) => _ = tables.ipv6.insert(key, row),
            Change::DropIpv6(key) => _ = tables.ipv6.remove(&key),
            Change::PutAllowed(key, word) => _ = tables.allowed.insert(key, word),
            Change::DropAllowed(key) => _ = tables.allowed.remove(&key),
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
