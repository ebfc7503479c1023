// SPDX-License-Identifier: MIT OR Apache-2.0
//! The changes that the kernel needs, in an order of which every prefix is safe: pure.
//!
//! Wrong deliveries are removed first. Then what protects is added, then what delivers. What
//! protects is removed last. A hook finds its device's row when it is attached, and the row is
//! removed after the hook.

mod applied;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{Device, Endpoint, LinkKey, PortKey, ServerKey, TrustKey};
use forwarder_common::family::{Family, V4};

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
pub enum Change<F: Family = V4> {
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
        key: EndpointKey<F>,
        slot: u32,
        endpoint: Endpoint<F>,
    },
    DropEndpoint {
        key: EndpointKey<F>,
        slot: u32,
    },
    PutNetwork {
        bridge: u32,
        row: NetworkRow<F>,
        default_endpoint: u32,
    },
    DropNetwork(u32),
    PutSubnet((F::Addr, u8), u32),
    DropSubnet((F::Addr, u8)),
    PutHostAddress((F::Addr, u8)),
    DropHostAddress((F::Addr, u8)),
    PutMasqAddress((u32, F::Addr, u8), F::Addr),
    DropMasqAddress((u32, F::Addr, u8)),
    PutPublished {
        key: PortKey<F>,
        slot: u32,
        target: Target<F>,
    },
    DropPublished {
        key: PortKey<F>,
        slot: u32,
    },
    PutSeenAs(ServerKey<F>, u32),
    DropSeenAs(ServerKey<F>),
    PutTrusted(TrustKey),
    DropTrusted(TrustKey),
    PutLink(LinkKey<F>),
    DropLink(LinkKey<F>),
    PutIngress((u32, F::Addr, u8), u32),
    DropIngress((u32, F::Addr, u8)),
    PutIpv6(Key6, Row6),
    DropIpv6(Key6),
    PutAllowed((u32, F::Addr, u8), u32),
    DropAllowed((u32, F::Addr, u8)),
    Policy(u32),
    /// The index of the defragmentation loopback.
    DefragLoopback(u32),
    PutDevmap(u32, PeerVeth),
    DropDevmap(u32),
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

impl<F: Family> Change<F> {
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
                | Self::DropHostAddress(_)
                | Self::DropMasqAddress(_)
                | Self::DropPublished { .. }
                | Self::DropSeenAs(_)
                | Self::DropTrusted(_)
                | Self::DropLink(_)
                | Self::DropIngress(_)
                | Self::DropIpv6(_)
                | Self::DropAllowed(_)
                | Self::DropDevmap(_)
                | Self::Detach { .. }
                | Self::DetachSocket(_)
        )
    }

    /// Whether the host would be less protected without the change. An agent that cannot apply such
    /// a change is not ready. What only delivers or improves speed can come later.
    #[must_use]
    pub const fn protects(&self) -> bool {
        if let Self::AttachSocket(hook) | Self::DetachSocket(hook) = *self {
            return !hook.is_on_cgroup();
        }
        !matches!(
            self,
            Self::PutPublished { .. }
                | Self::PutSeenAs(..)
                | Self::DropSeenAs(_)
                | Self::PutTrusted(_)
                | Self::PutLink(_)
                | Self::PutDevmap(..)
                | Self::DropDevmap(_)
                | Self::Attach {
                    hook: Hook::Uplink,
                    ..
                }
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
            | Self::PutDevmap(index, _)
            | Self::DropDevmap(index)
            | Self::Attach { ifindex: index, .. }
            | Self::Detach { ifindex: index, .. } => Some(index),
            Self::PutEndpoint { endpoint, .. } => Some(endpoint.bridge),
            _ => None,
        }
    }
}

/// Returns the changes that turn `observed` into `desired`.
#[must_use]
pub fn diff<F: Family>(observed: &Observed<F>, desired: &DesiredState<F>) -> Vec<Change<F>> {
    let pass = Pass::new(observed, desired);
    Pass::ORDER.iter().flat_map(|step| step(&pass)).collect()
}

/// What one call compares, with the slots of endpoints and mappings that have none yet.
struct Pass<'a, F: Family> {
    observed: &'a Observed<F>,
    now: &'a DesiredState<F>,
    desired: &'a DesiredState<F>,
    new_endpoints: BTreeMap<EndpointKey<F>, u32>,
    new_mappings: BTreeMap<PortKey<F>, u32>,
}

/// The changes of one table that belong in one place of the order.
type Step<Pass, F> = fn(&Pass) -> Vec<Change<F>>;

impl<'a, F: Family> Pass<'a, F> {
    /// The one order of all changes.
    const ORDER: [Step<Self, F>; 41] = [
        // First, remove what must not deliver any more.
        Self::clear_defrag_loopback,
        Self::drop_published,
        Self::drop_seen_as,
        Self::drop_trusted,
        Self::drop_links,
        Self::drop_allowed,
        Self::drop_ports,
        Self::drop_endpoints,
        Self::drop_locals,
        Self::drop_sources,
        // Then add what protects, starting with the default endpoints. A veth refers to an endpoint
        // only after the endpoint exists, and an access list is complete before anything refers to it.
        Self::put_new_devices,
        Self::put_new_default_endpoints,
        Self::put_ingress,
        Self::put_ipv6,
        Self::put_networks,
        Self::put_subnets,
        Self::put_sources,
        Self::put_settings,
        Self::attach_hooks,
        Self::set_defrag_loopback,
        // Then add what delivers.
        Self::put_endpoints,
        Self::put_default_endpoints,
        Self::put_devices,
        Self::put_locals,
        Self::put_published,
        Self::put_seen_as,
        Self::put_trusted,
        Self::put_links,
        Self::put_allowed,
        // Once everything refers to the right access lists, flows that were admitted before are
        // checked again.
        Self::put_policy,
        Self::attach_sockets,
        Self::put_ports,
        // Then remove what nothing refers to any more.
        Self::sever_sockets,
        Self::detach_sockets,
        Self::detach_hooks,
        Self::drop_ipv6,
        Self::drop_subnets,
        Self::drop_networks,
        Self::drop_ingress,
        Self::drop_default_endpoints,
        Self::drop_devices,
    ];

    fn new(observed: &'a Observed<F>, desired: &'a DesiredState<F>) -> Self {
        let default_endpoints = desired.networks.keys().copied().map(EndpointKey::Default);
        let endpoints = desired.endpoints.keys().copied().chain(default_endpoints);
        let mappings = desired.published.keys().copied();
        Self {
            observed,
            now: &observed.tables,
            desired,
            new_endpoints: assigned(&observed.endpoint_slots, endpoints),
            new_mappings: assigned(&observed.mapping_slots, mappings),
        }
    }

    /// Returns the slot of an endpoint that is desired.
    fn endpoint_slot(&self, key: EndpointKey<F>) -> u32 {
        let slot = self.observed.endpoint_slots.get(&key);
        *slot.unwrap_or_else(|| &self.new_endpoints[&key])
    }

    /// Returns the slot of a mapping that is desired.
    fn mapping_slot(&self, key: PortKey<F>) -> u32 {
        let slot = self.observed.mapping_slots.get(&key);
        *slot.unwrap_or_else(|| &self.new_mappings[&key])
    }
}

/// Assigns slots to the owners that have none: a slot in use keeps its owner, and a new owner gets
/// the lowest slot that was free when the pass began, so that no slot changes its owner within a
/// pass. Slot 0 has no owner.
fn assigned<K: Ord + Copy>(
    observed: &BTreeMap<K, u32>,
    owners: impl Iterator<Item = K>,
) -> BTreeMap<K, u32> {
    let mut slots = BTreeMap::new();
    let mut new = owners
        .filter(|owner| !observed.contains_key(owner))
        .peekable();
    if new.peek().is_none() {
        return slots;
    }
    let taken: BTreeSet<u32> = observed.values().copied().collect();
    let mut free = (1..).filter(|slot| !taken.contains(slot));
    for owner in new {
        slots
            .entry(owner)
            .or_insert_with(|| free.next().unwrap_or_default());
    }
    slots
}
