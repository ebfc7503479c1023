// SPDX-License-Identifier: MIT OR Apache-2.0
//! Updates: what the sources send and the host state takes in.
use std::collections::BTreeMap;

use crate::others::Others;

use super::model::{
    Address, Bound, Container, ContainerId, HostPort, Link, NetnsId, Network, NetworkId, Routing,
    ShimId,
};

/// One piece of news. A full list replaces what was known of its kind; everything else concerns one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Docker answers.
    DockerUp {
        /// The daemon's version, as it calls it.
        version: String,
    },
    /// Docker is away: no reason to drop anything.
    DockerDown {
        /// For a person.
        why: String,
    },
    /// All networks.
    Networks(Listing<Network, NetworkId>),
    /// A network is new or different.
    Network(Box<Network>),
    /// A network has been removed.
    NetworkGone(NetworkId),
    /// All containers.
    Containers(Listing<Container, ContainerId>),
    /// A container is new or different.
    Container(Box<Container>),
    /// A container has been removed.
    ContainerGone(ContainerId),
    /// A network namespace is no more; its number may be used again from here on.
    NetnsGone(NetnsId),
    /// All devices.
    Links(Vec<Link>),
    /// A device is new or different.
    Link(Link),
    /// A device was deleted or moved to another namespace.
    LinkGone(u32),
    /// All addresses, in the kernel's order (which says what is primary: hence never one alone).
    Addresses(Vec<Address>),
    /// Some route came, went or changed.
    RouteChanged(Box<Routing>),
    /// What outside devices ask of a source (`rp_filter`), where they ask for anything.
    ReversePaths(BTreeMap<u32, u8>),
    /// A shim has a port: the last word on where that leads.
    Bound(HostPort, Bound),
    /// A shim is about to become a docker-proxy, which serves this port. Docker will list it.
    Proxied(HostPort),
    /// Docker has listed such a port, or is not going to.
    ProxyKnown(HostPort),
    /// A shim has given its ports back: they lead nowhere, whatever was listed before.
    Unbound(ShimId),
    /// A shim has died without a word: what Docker lists counts again.
    ShimGone(ShimId),
    /// What others have set up is different.
    Others(Box<Others>),
    /// The kernel had to drop notices; full lists follow.
    Overrun,
}

/// Everything of one kind that a daemon has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing<T, Id> {
    /// Those that could be read.
    pub list: Vec<T>,
    /// Those that exist but could not: the daemon blocks readers of a container while it starts it. What is known of
    /// them stays, news of each follows.
    pub unread: Vec<Id>,
}

impl<T, Id> From<Vec<T>> for Listing<T, Id> {
    fn from(list: Vec<T>) -> Self {
        Self {
            list,
            unread: Vec::new(),
        }
    }
}
