// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections as the kernel tracks them (nf_conntrack), and which of them are containers'.

use forwarder_common::abi::Tuple;
use forwarder_common::family::Family;

use crate::address::WireAddress;
use crate::desired_state::FamilyTables;

/// A connection that the kernel tracks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection<F: Family> {
    /// Addresses and ports of the originator's packets as they arrive.
    pub original: Tuple<F>,
    /// Addresses and ports of the replies as they arrive.
    pub reply: Tuple<F>,
}

impl<F: Family> Connection<F> {
    /// Returns the address and port that the originator's source is translated to, if it is.
    #[must_use]
    pub fn source(&self) -> Option<(F::Addr, u16)> {
        let (before, after) = (&self.original, &self.reply);
        let is_same = before.src == after.dst && before.sport == after.dport;
        (!is_same).then_some((after.dst, after.dport.get()))
    }

    /// Returns the address and port that the originator's destination is translated to, if it is.
    #[must_use]
    pub fn destination(&self) -> Option<(F::Addr, u16)> {
        let (before, after) = (&self.original, &self.reply);
        let is_same = before.dst == after.src && before.dport == after.sport;
        (!is_same).then_some((after.src, after.sport.get()))
    }
}

impl<F: Family<Addr: WireAddress>> Connection<F> {
    /// Whether its tuples are taken for containers' flows: one end is a container, by the addresses
    /// that each end itself uses, or the kernel translates it, whosever it is.
    #[must_use]
    pub fn is_of_concern(&self, tables: &FamilyTables<F>) -> bool {
        self.source().is_some() || self.destination().is_some() || self.is_of_container(tables)
    }

    /// Whether one end is a container, by the addresses that each end itself uses.
    #[must_use]
    pub fn is_of_container(&self, tables: &FamilyTables<F>) -> bool {
        let is_inside = |address: F::Addr| {
            let mut subnets = tables.subnets.keys();
            subnets.any(|&(subnet, len)| address.prefix(len) == subnet)
        };
        is_inside(self.original.src) || is_inside(self.reply.src)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_common::family::{Be16, Be32, V4};

    fn tuple(src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Tuple<V4> {
        Tuple {
            src: Be32::from_octets(src.0),
            dst: Be32::from_octets(dst.0),
            sport: Be16::new(src.1),
            dport: Be16::new(dst.1),
            proto: 6,
        }
    }

    const CONTAINER: [u8; 4] = [172, 17, 0, 2];
    const HOST: [u8; 4] = [198, 18, 1, 1];
    const REMOTE: [u8; 4] = [198, 18, 1, 2];

    #[test]
    fn translations_follow_from_the_tuples() {
        let published = Connection {
            original: tuple((REMOTE, 4000), (HOST, 8080)),
            reply: tuple((CONTAINER, 80), (REMOTE, 4000)),
        };
        assert_eq!(published.source(), None);
        let container = Be32::from_octets(CONTAINER);
        assert_eq!(published.destination(), Some((container, 80)));
        let masqueraded = Connection {
            original: tuple((CONTAINER, 5000), (REMOTE, 443)),
            reply: tuple((REMOTE, 443), (HOST, 5001)),
        };
        let host = Be32::from_octets(HOST);
        assert_eq!(masqueraded.source(), Some((host, 5001)));
        assert_eq!(masqueraded.destination(), None);
    }

    #[test]
    fn connection_is_containers_by_either_end() {
        let mut tables = FamilyTables::<V4>::default();
        let subnet = (Be32::from_octets([172, 17, 0, 0]), 16);
        tables.subnets.insert(subnet, 3);
        let connection = |original, reply| Connection { original, reply };
        let inward = connection(
            tuple((REMOTE, 4000), (HOST, 8080)),
            tuple((CONTAINER, 80), (REMOTE, 4000)),
        );
        let outward = connection(
            tuple((CONTAINER, 5000), (REMOTE, 443)),
            tuple((REMOTE, 443), (HOST, 5000)),
        );
        let hosts = tuple((HOST, 22), (REMOTE, 4000));
        assert!(inward.is_of_container(&tables) && outward.is_of_container(&tables));
        assert!(!connection(hosts, hosts.reversed()).is_of_concern(&tables));
        let guests = connection(
            tuple(([192, 168, 122, 2], 5000), (REMOTE, 443)),
            tuple((REMOTE, 443), (HOST, 5000)),
        );
        assert!(!guests.is_of_container(&tables) && guests.is_of_concern(&tables));
    }
}
