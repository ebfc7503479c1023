// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of one address family.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{Endpoint, LinkKey, PortKey, ServerKey};
use forwarder_common::family::{Be16, Family};

/// The key of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EndpointKey<F: Family> {
    /// A container's address.
    Address(F::Addr),
    /// A network's default endpoint, by its bridge's device index.
    Default(u32),
}

/// A network's row, apart from slot numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkRow<F: Family> {
    /// Bits of [`forwarder_common::abi::network`].
    pub flags: u32,
    /// The bridge's own address.
    pub gateway: F::Addr,
    /// The source address that masquerade uses instead of the outgoing device's address; 0.0.0.0
    /// for none.
    pub source: F::Addr,
    /// The access list of its containers; 0 for all clients.
    pub policy: u32,
}

/// The target of a published port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target<F: Family> {
    /// The container's address.
    pub addr: F::Addr,
    /// The container's port.
    pub port: Be16,
    /// The access list of the port; 0 for all clients.
    pub policy: u32,
    /// Distinguishes this mapping from all earlier mappings in its slot; never 0.
    pub generation: u32,
}

/// The tables of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FamilyTables<F: Family> {
    /// Networks by their bridge's index.
    pub networks: BTreeMap<u32, NetworkRow<F>>,
    /// Subnets, as address and prefix length, to their bridge's index.
    pub subnets: BTreeMap<(F::Addr, u8), u32>,
    /// The host's own addresses, as address and prefix length.
    pub host_addresses: BTreeSet<(F::Addr, u8)>,
    /// Masquerade addresses by device index and the next hop's subnet.
    pub masq_addresses: BTreeMap<(u32, F::Addr, u8), F::Addr>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointKey<F>, Endpoint<F>>,
    /// Published ports; where a network allows direct access, also the containers' own addresses.
    pub published: BTreeMap<PortKey<F>, Target<F>>,
    /// Host ports that replace the source ports of containers that publish a port under another
    /// number.
    pub seen_as: BTreeMap<ServerKey<F>, u32>,
    /// The ports that links open.
    pub links: BTreeSet<LinkKey<F>>,
    /// The ranges of the access lists, by list, address and prefix length
    /// ([`ingress`](forwarder_common::abi::ingress)).
    pub ingress: BTreeMap<(u32, F::Addr, u8), u32>,
    /// Sources that containers may use besides their own, by device, address and prefix length
    /// ([`allowed`](forwarder_common::abi::allowed)).
    pub allowed: BTreeMap<(u32, F::Addr, u8), u32>,
}

impl<F: Family> FamilyTables<F> {
    /// Whether a device has allowed sources of its own.
    #[must_use]
    pub fn allows_sources(&self, device: u32) -> bool {
        let first = (device, F::Addr::default(), 0);
        let mut from = self.allowed.range(first..);
        from.next().is_some_and(|((of, ..), _)| *of == device)
    }
}

/// The slots in which the kernel holds rows of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots<F: Family> {
    /// The slots of endpoints.
    pub endpoints: BTreeMap<EndpointKey<F>, u32>,
    /// The slots of mappings.
    pub mappings: BTreeMap<PortKey<F>, u32>,
}
