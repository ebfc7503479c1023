// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each table of a family contributes to a plan: at which [`Stage`], and in which order.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::PortKey;
use forwarder_common::family::Family;

use super::family::FamilyChange;
use super::tables::{changed, gone, new};
use crate::desired_state::{EndpointKey, FamilyTables, Slots, Target};

/// The stages of a plan in which the tables of all families change. [`diff`](super::diff) says what
/// comes between them.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// Remove what must not deliver any more.
    Withdraw,
    /// Add what protects.
    Protect,
    /// Add the endpoints.
    Endpoints,
    /// Add what else delivers.
    Deliver,
    /// Remove what nothing refers to any more.
    Remove,
}

/// What one call compares of a family, with the slots of endpoints and mappings that have none yet.
pub(super) struct FamilyPass<'a, F: Family> {
    now: &'a FamilyTables<F>,
    slots: &'a Slots<F>,
    desired: &'a FamilyTables<F>,
    new_endpoints: BTreeMap<EndpointKey<F>, u32>,
    new_mappings: BTreeMap<PortKey<F>, u32>,
}

impl<'a, F: Family> FamilyPass<'a, F> {
    pub(super) fn new(
        now: &'a FamilyTables<F>,
        slots: &'a Slots<F>,
        desired: &'a FamilyTables<F>,
    ) -> Self {
        let default_endpoints = desired.networks.keys().copied().map(EndpointKey::Default);
        let endpoints = desired.endpoints.keys().copied().chain(default_endpoints);
        let mappings = desired.published.keys().copied();
        Self {
            now,
            slots,
            desired,
            new_endpoints: assigned(&slots.endpoints, endpoints),
            new_mappings: assigned(&slots.mappings, mappings),
        }
    }

    /// Returns the changes of a stage.
    pub(super) fn changes(&self, stage: Stage) -> Vec<FamilyChange<F>> {
        let steps = match stage {
            Stage::Withdraw => vec![
                self.drop_published(),
                self.drop_seen_as(),
                self.drop_links(),
                self.drop_allowed(),
                self.drop_endpoints(),
                self.drop_locals(),
                self.drop_sources(),
            ],
            // An access list is complete before anything refers to it.
            Stage::Protect => vec![
                self.put_new_default_endpoints(),
                self.put_ingress(),
                self.put_networks(),
                self.put_subnets(),
                self.put_sources(),
            ],
            Stage::Endpoints => vec![self.put_endpoints(), self.put_default_endpoints()],
            Stage::Deliver => vec![
                self.put_locals(),
                self.put_published(),
                self.put_seen_as(),
                self.put_links(),
                self.put_allowed(),
            ],
            Stage::Remove => vec![
                self.drop_subnets(),
                self.drop_networks(),
                self.drop_ingress(),
                self.drop_default_endpoints(),
            ],
        };
        steps.into_iter().flatten().collect()
    }

    /// Whether a published port leads nowhere or elsewhere.
    pub(super) fn moves_ports(&self) -> bool {
        let leads_there = |(key, old): (_, &Target<F>)| {
            let new = self.desired.published.get(key);
            new.is_some_and(|new| (new.addr, new.port) == (old.addr, old.port))
        };
        let (now, desired) = (&self.now.published, &self.desired.published);
        now != desired && !now.iter().all(leads_there)
    }

    /// Returns the slot of an endpoint that is desired.
    fn endpoint_slot(&self, key: EndpointKey<F>) -> u32 {
        let slot = self.slots.endpoints.get(&key);
        *slot.unwrap_or_else(|| &self.new_endpoints[&key])
    }

    /// Returns the slot of a mapping that is desired.
    fn mapping_slot(&self, key: PortKey<F>) -> u32 {
        let slot = self.slots.mappings.get(&key);
        *slot.unwrap_or_else(|| &self.new_mappings[&key])
    }

    // Networks and their subnets.

    fn put_networks(&self) -> Vec<FamilyChange<F>> {
        let put = |(bridge, row)| FamilyChange::PutNetwork {
            bridge,
            row,
            default_endpoint: self.endpoint_slot(EndpointKey::Default(bridge)),
        };
        changed(&self.now.networks, &self.desired.networks)
            .map(put)
            .collect()
    }

    fn drop_networks(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.networks, &self.desired.networks)
            .map(FamilyChange::DropNetwork)
            .collect()
    }

    fn put_subnets(&self) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.subnets, &self.desired.subnets);
        changed
            .map(|(subnet, bridge)| FamilyChange::PutSubnet(subnet, bridge))
            .collect()
    }

    fn drop_subnets(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.subnets, &self.desired.subnets)
            .map(FamilyChange::DropSubnet)
            .collect()
    }

    // Endpoints. A network's default endpoint stands in for containers that do not exist yet. Its
    // generation changes when they appear, so flows that they opened under the default endpoint end
    // then. Until then a new default endpoint has another generation.

    fn put_new_default_endpoints(&self) -> Vec<FamilyChange<F>> {
        let mut changes = self.put_default_endpoints();
        changes.retain_mut(|change| match change {
            FamilyChange::PutEndpoint { key, endpoint, .. } => {
                endpoint.generation = interim(endpoint.generation);
                !self.now.endpoints.contains_key(key)
            }
            _ => false,
        });
        changes
    }

    fn put_default_endpoints(&self) -> Vec<FamilyChange<F>> {
        self.changed_endpoints(|key| matches!(key, EndpointKey::Default(_)))
    }

    fn put_endpoints(&self) -> Vec<FamilyChange<F>> {
        self.changed_endpoints(|key| matches!(key, EndpointKey::Address(_)))
    }

    fn drop_endpoints(&self) -> Vec<FamilyChange<F>> {
        self.gone_endpoints(|key| matches!(key, EndpointKey::Address(_)))
    }

    fn drop_default_endpoints(&self) -> Vec<FamilyChange<F>> {
        self.gone_endpoints(|key| matches!(key, EndpointKey::Default(_)))
    }

    fn changed_endpoints(
        &self,
        is_meant: impl Fn(&EndpointKey<F>) -> bool,
    ) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.endpoints, &self.desired.endpoints);
        let put = |(key, endpoint)| FamilyChange::PutEndpoint {
            key,
            slot: self.endpoint_slot(key),
            endpoint,
        };
        changed.filter(|(key, _)| is_meant(key)).map(put).collect()
    }

    fn gone_endpoints(&self, is_meant: impl Fn(&EndpointKey<F>) -> bool) -> Vec<FamilyChange<F>> {
        let gone = gone(&self.now.endpoints, &self.desired.endpoints).filter(is_meant);
        let drop = |key| {
            let slot = *self.slots.endpoints.get(&key)?;
            Some(FamilyChange::DropEndpoint { key, slot })
        };
        gone.filter_map(drop).collect()
    }

    // The host's own addresses, and the masquerade addresses.

    fn put_locals(&self) -> Vec<FamilyChange<F>> {
        new(&self.now.host_addresses, &self.desired.host_addresses)
            .map(FamilyChange::PutHostAddress)
            .collect()
    }

    fn drop_locals(&self) -> Vec<FamilyChange<F>> {
        new(&self.desired.host_addresses, &self.now.host_addresses)
            .map(FamilyChange::DropHostAddress)
            .collect()
    }

    fn put_sources(&self) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.masq_addresses, &self.desired.masq_addresses);
        changed
            .map(|(key, source)| FamilyChange::PutMasqAddress(key, source))
            .collect()
    }

    fn drop_sources(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.masq_addresses, &self.desired.masq_addresses)
            .map(FamilyChange::DropMasqAddress)
            .collect()
    }

    // Published ports. A port that leads to another container must not deliver in between.

    fn put_published(&self) -> Vec<FamilyChange<F>> {
        let put = |(key, target)| FamilyChange::PutPublished {
            key,
            slot: self.mapping_slot(key),
            target,
        };
        changed(&self.now.published, &self.desired.published)
            .map(put)
            .collect()
    }

    fn drop_published(&self) -> Vec<FamilyChange<F>> {
        let leads_elsewhere = |(key, old): &(&PortKey<F>, &Target<F>)| {
            let new = self.desired.published.get(key);
            new.is_none_or(|new| new.addr != old.addr)
        };
        let drop = |(&key, _)| {
            let slot = *self.slots.mappings.get(&key)?;
            Some(FamilyChange::DropPublished { key, slot })
        };
        let differs = self.now.published != self.desired.published;
        let rows = self.now.published.iter().filter(|_| differs);
        rows.filter(leads_elsewhere).filter_map(drop).collect()
    }

    fn put_seen_as(&self) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.seen_as, &self.desired.seen_as);
        changed
            .map(|(key, port)| FamilyChange::PutSeenAs(key, port))
            .collect()
    }

    fn drop_seen_as(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.seen_as, &self.desired.seen_as)
            .map(FamilyChange::DropSeenAs)
            .collect()
    }

    // Who may reach whom: links, access lists, allowed sources.

    fn put_links(&self) -> Vec<FamilyChange<F>> {
        new(&self.now.links, &self.desired.links)
            .map(FamilyChange::PutLink)
            .collect()
    }

    fn drop_links(&self) -> Vec<FamilyChange<F>> {
        new(&self.desired.links, &self.now.links)
            .map(FamilyChange::DropLink)
            .collect()
    }

    fn put_ingress(&self) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.ingress, &self.desired.ingress);
        changed
            .map(|(key, word)| FamilyChange::PutIngress(key, word))
            .collect()
    }

    fn drop_ingress(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.ingress, &self.desired.ingress)
            .map(FamilyChange::DropIngress)
            .collect()
    }

    fn put_allowed(&self) -> Vec<FamilyChange<F>> {
        let changed = changed(&self.now.allowed, &self.desired.allowed);
        changed
            .map(|(key, word)| FamilyChange::PutAllowed(key, word))
            .collect()
    }

    fn drop_allowed(&self) -> Vec<FamilyChange<F>> {
        gone(&self.now.allowed, &self.desired.allowed)
            .map(FamilyChange::DropAllowed)
            .collect()
    }
}

/// Returns a generation that differs from this one and is not 0.
fn interim(generation: u32) -> u32 {
    (!generation).max(1)
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
