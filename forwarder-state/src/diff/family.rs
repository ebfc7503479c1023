// SPDX-License-Identifier: MIT OR Apache-2.0
//! The changes of one address family's tables.

use std::net::IpAddr;

use forwarder_common::abi::{Endpoint, LinkKey, PortKey, ServerKey};
use forwarder_common::family::Family;
use forwarder_protocol::HostPort;

use crate::address::WireAddress;
use crate::desired_state::{EndpointKey, NetworkRow, Target};
use crate::port_key::host_port;

/// One change of a family's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "each variant is a table's row, and `desired_state` documents the rows"
)]
pub enum FamilyChange<F: Family> {
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
    PutLink(LinkKey<F>),
    DropLink(LinkKey<F>),
    PutIngress((u32, F::Addr, u8), u32),
    DropIngress((u32, F::Addr, u8)),
    PutAllowed((u32, F::Addr, u8), u32),
    DropAllowed((u32, F::Addr, u8)),
}

impl<F: Family> FamilyChange<F> {
    /// As [`Change::adds`](super::Change::adds).
    #[must_use]
    pub const fn adds(&self) -> bool {
        !matches!(
            self,
            Self::DropEndpoint { .. }
                | Self::DropNetwork(_)
                | Self::DropSubnet(_)
                | Self::DropHostAddress(_)
                | Self::DropMasqAddress(_)
                | Self::DropPublished { .. }
                | Self::DropSeenAs(_)
                | Self::DropLink(_)
                | Self::DropIngress(_)
                | Self::DropAllowed(_)
        )
    }

    /// As [`Change::protects`](super::Change::protects).
    #[must_use]
    pub const fn protects(&self) -> bool {
        !matches!(
            self,
            Self::PutPublished { .. }
                | Self::PutSeenAs(..)
                | Self::DropSeenAs(_)
                | Self::PutLink(_)
        )
    }

    /// As [`Change::device`](super::Change::device).
    #[must_use]
    pub const fn device(&self) -> Option<u32> {
        match *self {
            Self::PutNetwork { bridge: index, .. }
            | Self::DropNetwork(index)
            | Self::PutSubnet(_, index) => Some(index),
            Self::PutEndpoint { endpoint, .. } => Some(endpoint.bridge),
            _ => None,
        }
    }
}

impl<F: Family<Addr: WireAddress>> FamilyChange<F> {
    /// As [`Change::publishes`](super::Change::publishes).
    #[must_use]
    pub fn publishes(&self) -> Option<HostPort> {
        match self {
            Self::PutPublished { key, .. } => host_port(key),
            _ => None,
        }
    }

    /// As [`Change::withdraws`](super::Change::withdraws).
    #[must_use]
    pub fn withdraws(&self) -> Option<HostPort> {
        match self {
            Self::DropPublished { key, .. } => host_port(key),
            _ => None,
        }
    }

    /// As [`Change::endpoint`](super::Change::endpoint).
    #[must_use]
    pub fn endpoint(&self) -> Option<IpAddr> {
        match self {
            Self::PutEndpoint { key, .. } | Self::DropEndpoint { key, .. } => match key {
                EndpointKey::Address(address) => Some(address.ip()),
                EndpointKey::Default(_) => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use forwarder_common::family::V4;
    use forwarder_protocol::Proto;

    use super::*;
    use crate::port_key::port_key;

    #[test]
    fn change_names_the_port_it_publishes() {
        let port = HostPort {
            proto: Proto::Sctp,
            ip: [198, 18, 1, 1].into(),
            port: 5000,
        };
        let key = port_key::<V4>(&port).unwrap();
        let target = Target::default();
        let put = FamilyChange::PutPublished {
            key,
            slot: 1,
            target,
        };
        let drop = FamilyChange::DropPublished { key, slot: 1 };
        assert_eq!((put.publishes(), put.withdraws()), (Some(port), None));
        assert_eq!((drop.publishes(), drop.withdraws()), (None, Some(port)));
    }
}
