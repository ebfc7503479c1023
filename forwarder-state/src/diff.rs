// SPDX-License-Identifier: MIT OR Apache-2.0
//! The changes that the kernel needs, in an order of which every prefix is safe: pure.
//!
//! Wrong deliveries are removed first. Then what protects is added, then what delivers. What
//! protects is removed last. A hook finds its device's row when it is attached, and the row is
//! removed after the hook.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use forwarder_common::abi::{Device, Endpoint, LinkKey, PortKey, ServerKey, TrustKey, device};
use forwarder_common::family::{Be32, V4};

use crate::desired_state::{
    DesiredState, EndpointKey, Hook, Key6, NetworkRow, Observed, PeerVeth, Row6, SocketHook,
    Target, XdpKind,
};

/// One change of the kernel's state. Applying it twice has the same effect as applying it once.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "each variant is a table's row, and `desired_state` documents the rows"
)]
pub enum Change {
    Settings {
        route_generation: u32,
        xdp_tcp: bool,
        route_mtu: u32,
        others: u32,
        lists6: bool,
    },
    PutDevice(u32, Device),
    DropDevice(u32),
    PutEndpoint {
        key: EndpointKey,
        slot: u32,
        endpoint: Endpoint<V4>,
    },
    DropEndpoint {
        key: EndpointKey,
        slot: u32,
    },
    PutNetwork {
        bridge: u32,
        row: NetworkRow,
        default_endpoint: u32,
    },
    DropNetwork(u32),
    PutSubnet((Be32, u8), u32),
    DropSubnet((Be32, u8)),
    PutLocal((Be32, u8)),
    DropLocal((Be32, u8)),
    PutSource((u32, Be32, u8), Be32),
    DropSource((u32, Be32, u8)),
    PutPublished {
        key: PortKey<V4>,
        slot: u32,
        target: Target,
    },
    DropPublished {
        key: PortKey<V4>,
        slot: u32,
    },
    PutSeenAs(ServerKey<V4>, u32),
    DropSeenAs(ServerKey<V4>),
    PutTrusted(TrustKey),
    DropTrusted(TrustKey),
    PutLink(LinkKey<V4>),
    DropLink(LinkKey<V4>),
    PutIngress((u32, Be32, u8), u32),
    DropIngress((u32, Be32, u8)),
    PutIpv6(Key6, Row6),
    DropIpv6(Key6),
    PutAllowed((u32, Be32, u8), u32),
    DropAllowed((u32, Be32, u8)),
    Policy(u32),
    /// The index of the defragmentation loopback.
    DefragLoopback(u32),
    PutPort(u32, PeerVeth),
    DropPort(u32),
    Attach {
        ifindex: u32,
        hook: Hook,
        xdp: Option<XdpKind>,
    },
    Detach {
        ifindex: u32,
        hook: Hook,
    },
    AttachSocket(SocketHook),
    DetachSocket(SocketHook),
    /// Closes the host's own sockets whose published port no longer exists.
    SeverSockets,
}

impl Change {
    /// Whether the change only adds or modifies. An incomplete host state allows only such changes,
    /// because an absence in it proves nothing.
    #[must_use]
    pub const fn adds(&self) -> bool {
        !matches!(
            self,
            Self::DropDevice(_)
                | Self::DropEndpoint { .. }
                | Self::DropNetwork(_)
                | Self::DropSubnet(_)
                | Self::DropLocal(_)
                | Self::DropSource(_)
                | Self::DropPublished { .. }
                | Self::DropSeenAs(_)
                | Self::DropTrusted(_)
                | Self::DropLink(_)
                | Self::DropIngress(_)
                | Self::DropIpv6(_)
                | Self::DropAllowed(_)
                | Self::DropPort(_)
                | Self::Detach { .. }
                | Self::DetachSocket(_)
        )
    }

    /// Whether the host would be less protected without the change. An agent that cannot apply such
    /// a change is not ready. What only delivers or improves speed can come later.
    #[must_use]
    pub const fn protects(&self) -> bool {
        !matches!(
            self,
            Self::PutPublished { .. }
                | Self::PutSeenAs(..)
                | Self::DropSeenAs(_)
                | Self::PutTrusted(_)
                | Self::PutLink(_)
                | Self::PutPort(..)
                | Self::DropPort(_)
                | Self::Attach {
                    hook: Hook::Uplink,
                    ..
                }
                | Self::AttachSocket(_)
                | Self::DetachSocket(_)
                | Self::SeverSockets
        )
    }

    /// The device that the change is about, if there is one.
    #[must_use]
    pub const fn device(&self) -> Option<u32> {
        match *self {
            Self::PutDevice(index, _)
            | Self::DropDevice(index)
            | Self::PutNetwork { bridge: index, .. }
            | Self::DropNetwork(index)
            | Self::PutSubnet(_, index)
            | Self::PutPort(index, _)
            | Self::DropPort(index)
            | Self::Attach { ifindex: index, .. }
            | Self::Detach { ifindex: index, .. } => Some(index),
            Self::PutEndpoint { endpoint, .. } => Some(endpoint.bridge),
            _ => None,
        }
    }
}

/// Returns the changes that turn `observed` into `desired`.
#[must_use]
pub fn diff(observed: &Observed, desired: &DesiredState) -> Vec<Change> {
    let now = &observed.tables;
    let mut ops = Vec::new();
    if desired.defrag_loopback == 0 && now.defrag_loopback != 0 {
        ops.push(Change::DefragLoopback(0));
    }

    // First, remove what must not deliver any more.
    for (&key, &target) in &now.published {
        if desired
            .published
            .get(&key)
            .is_none_or(|new| new.addr != target.addr)
        {
            ops.extend(
                observed
                    .mapping_slots
                    .get(&key)
                    .map(|&slot| Change::DropPublished { key, slot }),
            );
        }
    }
    ops.extend(gone(&now.seen_as, &desired.seen_as).map(Change::DropSeenAs));
    ops.extend(
        now.trusted
            .difference(&desired.trusted)
            .map(|&key| Change::DropTrusted(key)),
    );
    ops.extend(
        now.links
            .difference(&desired.links)
            .map(|&key| Change::DropLink(key)),
    );
    ops.extend(gone(&now.allowed, &desired.allowed).map(Change::DropAllowed));
    ops.extend(gone(&now.ports, &desired.ports).map(Change::DropPort));
    for key in gone(&now.endpoints, &desired.endpoints) {
        if matches!(key, EndpointKey::Address(_)) {
            ops.extend(
                observed
                    .endpoint_slots
                    .get(&key)
                    .map(|&slot| Change::DropEndpoint { key, slot }),
            );
        }
    }
    ops.extend(
        now.locals
            .difference(&desired.locals)
            .copied()
            .map(Change::DropLocal),
    );
    ops.extend(gone(&now.sources, &desired.sources).map(Change::DropSource));

    // Then add what protects, starting with the default endpoints. A veth refers to an endpoint
    // only after the endpoint exists.
    let (mut late, new) = changed(&now.devices, &desired.devices)
        .partition::<Vec<_>, _>(|(index, _)| now.devices.contains_key(index));
    for (index, device) in new {
        let nameless = Device {
            kind: if device.kind == device::NAMED_VETH {
                late.push((index, device));
                device::VETH
            } else {
                device.kind
            },
            ..device
        };
        ops.push(Change::PutDevice(index, nameless));
    }
    let mut slots = Slots::new(observed);
    let mut endpoints = changed(&now.endpoints, &desired.endpoints)
        .map(|(key, endpoint)| Change::PutEndpoint {
            key,
            slot: slots.endpoint(key),
            endpoint,
        })
        .collect::<Vec<_>>();
    // A network's default endpoint stands in for containers that do not exist yet. Its generation
    // changes when they appear, so flows that they opened under the default endpoint end then.
    endpoints.sort_by_key(|op| {
        let default_endpoint = EndpointKey::Floor(0);
        matches!(op, Change::PutEndpoint { key, .. } if discriminant(key) == discriminant(&default_endpoint))
    });
    for op in &endpoints {
        if let Change::PutEndpoint {
            key: key @ EndpointKey::Floor(_),
            slot,
            mut endpoint,
        } = *op
            && !now.endpoints.contains_key(&key)
        {
            endpoint.generation = interim(endpoint.generation);
            let op = Change::PutEndpoint {
                key,
                slot,
                endpoint,
            };
            ops.push(op);
        }
    }
    // An access list is complete before anything refers to it.
    ops.extend(changed(&now.ingress, &desired.ingress).map(|(k, v)| Change::PutIngress(k, v)));
    ops.extend(changed(&now.ipv6, &desired.ipv6).map(|(k, v)| Change::PutIpv6(k, v)));
    for (bridge, row) in changed(&now.networks, &desired.networks) {
        let default_endpoint = slots.endpoint(EndpointKey::Floor(bridge));
        ops.push(Change::PutNetwork {
            bridge,
            row,
            default_endpoint,
        });
    }
    ops.extend(changed(&now.subnets, &desired.subnets).map(|(k, v)| Change::PutSubnet(k, v)));
    ops.extend(changed(&now.sources, &desired.sources).map(|(k, v)| Change::PutSource(k, v)));
    let settings = |tables: &DesiredState| Change::Settings {
        route_generation: tables.route_generation,
        xdp_tcp: tables.xdp_tcp,
        route_mtu: tables.route_mtu,
        others: tables.others,
        lists6: tables.lists6,
    };
    if settings(now) != settings(desired) {
        ops.push(settings(desired));
    }
    for &(ifindex, hook) in desired.hooks.difference(&now.hooks) {
        let xdp = desired.xdp.get(&ifindex).copied();
        ops.push(Change::Attach { ifindex, hook, xdp });
    }
    if desired.defrag_loopback != 0 && now.defrag_loopback != desired.defrag_loopback {
        ops.push(Change::DefragLoopback(desired.defrag_loopback));
    }

    // Then add what delivers.
    ops.append(&mut endpoints);
    ops.extend(
        late.into_iter()
            .map(|(index, device)| Change::PutDevice(index, device)),
    );
    ops.extend(
        desired
            .locals
            .difference(&now.locals)
            .copied()
            .map(Change::PutLocal),
    );
    for (key, target) in changed(&now.published, &desired.published) {
        ops.push(Change::PutPublished {
            key,
            slot: slots.mapping(key),
            target,
        });
    }
    ops.extend(changed(&now.seen_as, &desired.seen_as).map(|(k, v)| Change::PutSeenAs(k, v)));
    ops.extend(
        desired
            .trusted
            .difference(&now.trusted)
            .map(|&key| Change::PutTrusted(key)),
    );
    ops.extend(
        desired
            .links
            .difference(&now.links)
            .map(|&key| Change::PutLink(key)),
    );
    ops.extend(changed(&now.allowed, &desired.allowed).map(|(k, v)| Change::PutAllowed(k, v)));
    // Once everything refers to the right access lists, flows that were admitted before are checked
    // again.
    if now.policy != desired.policy {
        ops.push(Change::Policy(desired.policy));
    }
    let new = desired.sockets.difference(&now.sockets);
    ops.extend(new.copied().map(Change::AttachSocket));
    for (&veth, peer_veth) in &desired.ports {
        if !now.ports.contains_key(&veth) {
            ops.push(Change::PutPort(veth, peer_veth.clone()));
        }
    }

    // Then remove what nothing refers to any more.
    let leads_there = |(key, old): (_, &Target)| {
        let new = desired.published.get(key);
        new.is_some_and(|new| (new.addr, new.port) == (old.addr, old.port))
    };
    if !now.published.iter().all(leads_there) {
        ops.push(Change::SeverSockets);
    }
    let old = now.sockets.difference(&desired.sockets);
    ops.extend(old.copied().map(Change::DetachSocket));
    for &(ifindex, hook) in now.hooks.difference(&desired.hooks) {
        ops.push(Change::Detach { ifindex, hook });
    }
    let gone6 = gone(&now.ipv6, &desired.ipv6).collect::<Vec<_>>();
    ops.extend(gone6.into_iter().rev().map(Change::DropIpv6));
    ops.extend(gone(&now.subnets, &desired.subnets).map(Change::DropSubnet));
    ops.extend(gone(&now.networks, &desired.networks).map(Change::DropNetwork));
    ops.extend(gone(&now.ingress, &desired.ingress).map(Change::DropIngress));
    for key in gone(&now.endpoints, &desired.endpoints) {
        if matches!(key, EndpointKey::Floor(_)) {
            ops.extend(
                observed
                    .endpoint_slots
                    .get(&key)
                    .map(|&slot| Change::DropEndpoint { key, slot }),
            );
        }
    }
    ops.extend(gone(&now.devices, &desired.devices).map(Change::DropDevice));
    ops
}

/// Returns a generation that differs from this one and is not 0.
fn interim(generation: u32) -> u32 {
    (!generation).max(1)
}

/// Returns the keys of `now` that `desired` lacks.
fn gone<K: Ord + Copy, A, B>(
    now: &BTreeMap<K, A>,
    desired: &BTreeMap<K, B>,
) -> impl Iterator<Item = K> {
    now.keys().filter(|key| !desired.contains_key(key)).copied()
}

/// Returns the rows of `desired` that `now` lacks or has with another value.
fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    now: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    desired
        .iter()
        .filter(|(key, value)| now.get(key) != Some(value))
        .map(|(&k, &v)| (k, v))
}

/// Slot assignment: a slot in use keeps its owner, and a new owner gets the lowest slot that was
/// free when the pass began, so that no slot changes its owner within a pass. Slot 0 has no owner.
struct Slots<'a> {
    observed: &'a Observed,
    taken_endpoints: BTreeSet<u32>,
    taken_mappings: BTreeSet<u32>,
    new_endpoints: BTreeMap<EndpointKey, u32>,
    new_mappings: BTreeMap<PortKey<V4>, u32>,
}

impl<'a> Slots<'a> {
    fn new(observed: &'a Observed) -> Self {
        Self {
            observed,
            taken_endpoints: observed.endpoint_slots.values().copied().collect(),
            taken_mappings: observed.mapping_slots.values().copied().collect(),
            new_endpoints: BTreeMap::new(),
            new_mappings: BTreeMap::new(),
        }
    }

    fn endpoint(&mut self, key: EndpointKey) -> u32 {
        let known = self.observed.endpoint_slots.get(&key);
        let taken = &mut self.taken_endpoints;
        *known.unwrap_or_else(|| {
            self.new_endpoints
                .entry(key)
                .or_insert_with(|| lowest(taken))
        })
    }

    fn mapping(&mut self, key: PortKey<V4>) -> u32 {
        let known = self.observed.mapping_slots.get(&key);
        let taken = &mut self.taken_mappings;
        *known.unwrap_or_else(|| {
            self.new_mappings
                .entry(key)
                .or_insert_with(|| lowest(taken))
        })
    }
}

fn lowest(taken: &mut BTreeSet<u32>) -> u32 {
    let mut slot = 1;
    for &other in taken.iter() {
        if other > slot {
            break;
        }
        if other == slot {
            slot += 1;
        }
    }
    taken.insert(slot);
    slot
}
