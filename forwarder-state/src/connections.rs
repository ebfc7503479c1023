// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections as the kernel tracks them (nf_conntrack), and which of them are containers'.

use forwarder_common::abi::{End, Tuple};
use forwarder_common::conntrack::flow_operation::Followed;
use forwarder_common::family::{Address as _, Family};
use forwarder_common::wire::proto;

use crate::address::WireAddress;
use crate::desired_state::{EndpointKey, FamilyTables, Slots};

/// A connection that the kernel tracks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection<F: Family> {
    /// Addresses and ports of the originator's packets as they arrive.
    pub original: Tuple<F>,
    /// Addresses and ports of the replies as they arrive.
    pub reply: Tuple<F>,
}

impl<F: Family> Connection<F> {
    /// Returns both tuples, the originator's first.
    #[must_use]
    pub fn tuples(&self) -> [Tuple<F>; 2] {
        [self.original, self.reply]
    }

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

    /// Returns what it takes to follow the connection. None if it is of no network whose connections
    /// are followed, or if the fast path would do no better: between two containers of one network
    /// without translation the bridge switches, and the host's own packets pass no hook.
    #[must_use]
    pub fn followed(
        &self,
        tables: &FamilyTables<F>,
        slots: &Slots<F>,
        is_followed: impl Fn(u32) -> bool,
    ) -> Option<Followed<F>> {
        if !matches!(self.original.proto, proto::TCP | proto::UDP) {
            return None;
        }
        let end = |address: F::Addr| {
            let key = EndpointKey::Address(address);
            if let Some(endpoint) = tables.endpoints.get(&key) {
                let end = End {
                    slot: *slots.endpoints.get(&key)?,
                    generation: endpoint.generation,
                };
                return is_followed(endpoint.bridge).then_some((end, endpoint.bridge));
            }
            let mut own = tables.host_addresses.iter();
            let is_own = own.any(|&(own, len)| address.prefix(len) == own);
            (!is_own && !address.is_loopback() && !is_inside(tables, address))
                .then_some((End::OUTSIDE, 0))
        };
        let (from, from_bridge) = end(self.original.src)?;
        let (to, to_bridge) = end(self.reply.src)?;
        let is_switched = from_bridge == to_bridge && self.original == self.reply.reversed();
        (!is_switched && (from_bridge, to_bridge) != (0, 0)).then_some(Followed {
            original: self.original,
            reply: self.reply,
            to,
            from,
        })
    }

    /// Whether one end is a container, by the addresses that each end itself uses.
    #[must_use]
    pub fn is_of_container(&self, tables: &FamilyTables<F>) -> bool {
        let ends = [self.original.src, self.reply.src];
        ends.into_iter().any(|end| is_inside(tables, end))
    }
}

/// Whether an address is in the range of a network about whose traffic the forwarder decides.
fn is_inside<F: Family<Addr: WireAddress>>(tables: &FamilyTables<F>, address: F::Addr) -> bool {
    let mut subnets = tables.subnets.keys();
    subnets.any(|&(subnet, len)| address.prefix(len) == subnet)
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
