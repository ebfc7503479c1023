// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client access lists as the kernel holds them: each is a number and its address ranges.
//!
//! The number of a list is a hash of its content, so a changed list is a new list. The new list is
//! complete before any endpoint refers to it, and the old list is removed after the last reference
//! has gone.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::{capacity, ingress};
use forwarder_common::family::{Be32, Be128, Family};
use ipnet::IpNet;

use crate::address::WireAddress;
use crate::desired_state::{DesiredState, FamilyTables};
use crate::generation::generation;
use crate::host_state::Ingress;

/// The maximum number of ranges in all lists of both address families. It is half of the map's
/// capacity, because a list that changes is in the map twice for a moment.
const ROOM: usize = capacity::INGRESS as usize / 2;

/// The ranges of a list and the action for each range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entries {
    v4: Ranges<Be32>,
    v6: Ranges<Be128>,
}

/// The ranges of one family.
type Ranges<A> = BTreeMap<(A, u8), u32>;

/// The ranges of one family in all lists, by list, address and prefix length.
type Rows<A> = BTreeMap<(u32, A, u8), u32>;

/// An address of a family that lists have ranges of.
pub(crate) trait Listed: WireAddress {
    /// Returns the ranges of the family.
    fn ranges(entries: &Entries) -> &Ranges<Self>;
}

impl Listed for Be32 {
    fn ranges(entries: &Entries) -> &Ranges<Self> {
        &entries.v4
    }
}

impl Listed for Be128 {
    fn ranges(entries: &Entries) -> &Ranges<Self> {
        &entries.v6
    }
}

impl Entries {
    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// All access lists that are in use.
#[derive(Default)]
pub(crate) struct AclTable {
    by_id: BTreeMap<u32, Entries>,
    /// Lists that were closed because the map has no room for them.
    closed: BTreeSet<u32>,
}

impl AclTable {
    /// Returns the number of a list; 0 for a list that admits every client.
    pub(crate) fn id(&mut self, list: &Ingress) -> u32 {
        if list.is_open() {
            return 0;
        }
        let entries = entries(list);
        let mut id = generation([format!("{entries:?}").as_str()]);
        // Two lists must never share a number, even if somebody chose their ranges to collide.
        while self.by_id.get(&id).is_some_and(|other| *other != entries) {
            id = id.wrapping_add(1).max(1);
        }
        self.by_id.insert(id, entries);
        id
    }

    /// Closes the longest lists until all lists fit into the map, so that no other list loses a
    /// range. Returns how many lists were closed.
    pub(crate) fn settle(&mut self) -> usize {
        let mut all: usize = self.by_id.values().map(Entries::len).sum();
        while all > ROOM {
            let longest = self
                .by_id
                .iter_mut()
                .max_by_key(|(_, entries)| entries.len());
            let closed = entries(&Ingress::closed());
            let Some((&id, entries)) = longest.filter(|(_, list)| list.len() > closed.len()) else {
                break;
            };
            all -= entries.len() - closed.len();
            *entries = closed;
            self.closed.insert(id);
        }
        self.closed.len()
    }

    /// Returns all ranges of one family in all lists.
    pub(crate) fn rows<A: Listed>(&self) -> Rows<A> {
        let of = |(&id, entries): (&u32, &Entries)| {
            let rows = A::ranges(entries).iter();
            rows.map(|(&(addr, len), &word)| ((id, addr, len), word))
                .collect::<Vec<_>>()
        };
        self.by_id.iter().flat_map(of).collect()
    }

    /// Returns a number that changes when a list, or its assignment, changes; 0 when there are no
    /// lists.
    pub(crate) fn generation(&self, tables: &DesiredState) -> u32 {
        if self.by_id.is_empty() {
            return 0;
        }
        let v4 = uses(&tables.v4);
        let closed = &self.closed;
        generation([format!("{v4} {closed:?}").as_str()])
    }
}

/// Describes which networks and ports of a family use which list.
fn uses<F: Family>(tables: &FamilyTables<F>) -> String {
    let networks = tables.networks.iter().map(|(key, row)| (key, row.policy));
    let ports = tables.published.iter().map(|(key, to)| (key, to.policy));
    let networks = networks.filter(|(_, list)| *list != 0).collect::<Vec<_>>();
    let ports = ports.filter(|(_, list)| *list != 0).collect::<Vec<_>>();
    format!("{networks:?} {ports:?}")
}

fn entries(list: &Ingress) -> Entries {
    let others = if list.allow.is_empty() {
        ingress::ALLOW
    } else {
        ingress::DENY
    };
    Entries {
        v4: ranges(list, others),
        v6: ranges(list, others),
    }
}

/// Returns the ranges of one family; `others` is the action for clients that no range names. Of two
/// equal ranges, the denying one wins.
fn ranges<A: WireAddress>(list: &Ingress, others: u32) -> Ranges<A> {
    let named = |ranges: &[IpNet], word| {
        let own = ranges.iter().filter_map(A::of_net);
        own.map(|range| (range, word)).collect::<Vec<_>>()
    };
    std::iter::once(((A::default(), 0), others))
        .chain(named(&list.allow, ingress::ALLOW))
        .chain(named(&list.deny, ingress::DENY))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overrides::range;

    fn list(allow: &[&str], deny: &[&str]) -> Ingress {
        let ranges = |texts: &[&str]| texts.iter().filter_map(|text| range(text)).collect();
        Ingress {
            allow: ranges(allow),
            deny: ranges(deny),
        }
    }

    /// Clients that no list names are denied if any are allowed by name, else allowed.
    #[test]
    fn default_rule_denies_if_any_are_allowed() {
        let all = (Be32::default(), 0);
        let all6 = (Be128::ANY, 0);
        let allow = entries(&list(&["198.18.0.0/15"], &["198.18.3.0/24"]));
        assert_eq!((allow.v4[&all], allow.v4.len()), (ingress::DENY, 3));
        assert_eq!(allow.v6, [(all6, ingress::DENY)].into());
        let deny = entries(&list(&[], &["198.18.3.0/24"]));
        assert_eq!((deny.v4[&all], deny.v4.len()), (ingress::ALLOW, 2));
        assert_eq!(deny.v6, [(all6, ingress::ALLOW)].into());
        let same = entries(&list(&["198.18.3.0/24"], &["198.18.3.0/24"]));
        let range = (Be32::from_std([198, 18, 3, 0].into()), 24);
        assert_eq!(same.v4[&range], ingress::DENY);
        let closed = entries(&Ingress::closed());
        assert_eq!(closed.v4, [(all, ingress::DENY)].into());
        assert_eq!(closed.v6, [(all6, ingress::DENY)].into());
        let foreign = entries(&list(&["2001:db8::/32"], &["2001:db8:1::/48"]));
        assert_eq!(
            foreign.v4,
            [(all, ingress::DENY)].into(),
            "of another family"
        );
        let within = |text: &str, len| (Be128::from_std(text.parse().unwrap()), len);
        assert_eq!(foreign.v6[&within("2001:db8::", 32)], ingress::ALLOW);
        assert_eq!(foreign.v6[&within("2001:db8:1::", 48)], ingress::DENY);
        assert_eq!((foreign.v6[&all6], foreign.v6.len()), (ingress::DENY, 3));
    }

    /// The longest lists are closed when there is no room for all.
    #[test]
    fn longest_lists_are_closed_without_room() {
        let long = |first: u8| Ingress {
            allow: (0..4_000u32)
                .map(|n| std::net::Ipv4Addr::from(u32::from(first) << 24 | n))
                .map(|address| std::net::IpAddr::from(address).into())
                .collect(),
            deny: Vec::new(),
        };
        let mut lists = AclTable::default();
        let own = lists.id(&list(&["198.18.0.0/15"], &["198.18.3.0/24"]));
        let others: Vec<_> = (1..=18).map(|first| lists.id(&long(first))).collect();
        assert_eq!(lists.settle(), 10, "of 18 times 4,002 in 32,768");
        let entries = lists.rows::<Be32>();
        assert!(entries.len() <= ROOM);
        let of = |id: u32| entries.iter().filter(move |((list, ..), _)| *list == id);
        assert_eq!(of(own).count(), 3, "a short one stays");
        let closed = others.iter().filter(|&&id| of(id).count() == 1);
        let closed: Vec<_> = closed.flat_map(|&id| of(id)).collect();
        assert_eq!(closed.len(), 10);
        let nobody = |(key, word): &(&(u32, Be32, u8), &u32)| {
            (key.1, key.2) == (Be32::default(), 0) && **word == ingress::DENY
        };
        assert!(closed.iter().all(nobody));
        assert_eq!(lists.settle(), 10, "no more");
    }

    #[test]
    fn list_numbers_follow_from_content() {
        let mut lists = AclTable::default();
        assert_eq!(lists.id(&Ingress::default()), 0);
        let one = lists.id(&list(&["198.18.0.0/15"], &[]));
        assert_eq!(lists.id(&list(&["198.18.0.0/15"], &[])), one);
        let other = lists.id(&list(&["198.18.0.0/16"], &[]));
        assert!(one != 0 && other != one);
        assert_eq!(lists.rows::<Be32>().len(), 4);
    }
}
