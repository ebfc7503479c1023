// SPDX-License-Identifier: MIT OR Apache-2.0
//! Updates: what the sources send and the host state applies.
use std::collections::BTreeMap;

use super::model::{
    Address, Bound, Container, ContainerId, HostPort, Link, NetnsId, Network, NetworkId, Routing,
    ShimId,
};
use crate::others::Others;

/// One update. A full list replaces everything known of its kind; every other update concerns one
/// object.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Docker answers.
    DockerUp {
        /// The daemon's version, as it calls it.
        version: String,
    },
    /// Docker is away, which is no reason to drop anything.
    DockerDown {
        /// The reason, for a person.
        why: String,
    },
    /// All networks.
    Networks(Listing<Network, NetworkId>),
    /// A network is new or has changed.
    Network(Box<Network>),
    /// A network has been removed.
    NetworkGone(NetworkId),
    /// All containers.
    Containers(Listing<Container, ContainerId>),
    /// A container is new or has changed.
    Container(Box<Container>),
    /// A container has been removed.
    ContainerGone(ContainerId),
    /// A network namespace has gone; its number may be reused from here on.
    NetnsGone(NetnsId),
    /// All devices.
    Links(Vec<Link>),
    /// A device is new or has changed.
    Link(Link),
    /// A device was deleted or moved to another namespace.
    LinkGone(u32),
    /// All addresses, in the kernel's order. The order says which address is primary, so there is
    /// no update of a single address.
    Addresses(Vec<Address>),
    /// A route was added, removed or changed.
    RouteChanged(Box<Routing>),
    /// The reverse path filter of outside devices (`rp_filter`), where it is set.
    ReversePaths(BTreeMap<u32, u8>),
    /// A shim has bound a port. This overrides what Docker lists for the port.
    Bound(HostPort, Bound),
    /// A shim is about to become a docker-proxy, which serves this port. Docker will list it.
    Proxied(HostPort),
    /// Docker has listed such a port, or will not list it.
    ProxyKnown(HostPort),
    /// A shim has released its ports: they have no target, whatever Docker listed before.
    Unbound(ShimId),
    /// A shim has died without releasing its ports: Docker's list applies again.
    ShimGone(ShimId),
    /// The configuration of other software has changed.
    Others(Box<Others>),
    /// The kernel had to drop notifications; full lists follow.
    Overrun,
}

impl Update {
    /// Whether devices have come, changed or gone. With a device the kernel removes the programs on
    /// it and the redirects to it.
    #[must_use]
    pub const fn is_of_devices(&self) -> bool {
        matches!(self, Self::Links(_) | Self::Link(_) | Self::LinkGone(_))
    }
}

/// All objects of one kind that a daemon has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing<T, Id> {
    /// The objects that could be read.
    pub list: Vec<T>,
    /// Objects that exist but could not be read: the daemon blocks readers of a container while it
    /// starts the container. Their known state stays, and an update of each follows.
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
