// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Docker's own rules have already decided where another rule comes: packets that they accept
//! or translate do not reach it.

use std::collections::{BTreeMap, BTreeSet};

use super::is_dockers;

/// One rule of `iptables-save`: its chain, and its words.
pub(super) type Words<'a> = (&'a str, Vec<&'a str>);

/// The bridges whose packets Docker's rules have decided about, by direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Bridges whose containers' packets are accepted, or have their source translated.
    pub from: BTreeSet<String>,
    /// Bridges to whose containers all packets are accepted that Docker accepts.
    pub to: BTreeSet<String>,
}

impl Decided {
    /// Keeps what both have in common.
    fn intersect(&mut self, other: &Self) {
        self.from.retain(|bridge| other.from.contains(bridge));
        self.to.retain(|bridge| other.to.contains(bridge));
    }

    fn extend(&mut self, other: Self) {
        self.from.extend(other.from);
        self.to.extend(other.to);
    }

    /// Takes up what a rule of Docker's decides.
    fn decide(&mut self, words: &[&str]) {
        let bridge = match *words {
            ["-i", bridge, "-j", "ACCEPT"] => bridge,
            ["-i", bridge, "!", "-o", other, "-j", "ACCEPT"] if bridge == other => bridge,
            // All that an internal network accepts.
            ["-i", bridge, "-o", other, "-j", "ACCEPT"] if bridge == other => bridge,
            ["-o", bridge, "-j", "DOCKER"] => {
                self.to.insert(bridge.to_owned());
                return;
            }
            _ => return,
        };
        self.from.insert(bridge.to_owned());
    }
}

/// The walk through the chains of a table, in the order in which a packet meets their rules.
struct Walk<'a> {
    /// The rules of each chain, with their numbers.
    chains: BTreeMap<&'a str, Vec<(usize, &'a [&'a str])>>,
    /// What has been decided where each rule comes, by the rule's number.
    decided: BTreeMap<usize, Decided>,
    /// For each chain, what had been decided whenever it was entered, and what it decides itself.
    walked: BTreeMap<&'a str, (Decided, Decided)>,
}

/// Returns what has been decided before each rule that is reached from `FORWARD` in the table
/// *filter*.
pub(super) fn before_rules(rules: &[Words<'_>]) -> BTreeMap<usize, Decided> {
    let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, (chain, words)) in rules.iter().enumerate() {
        let rules = chains.entry(*chain).or_default();
        rules.push((number, words.as_slice()));
    }
    let mut walk = Walk {
        chains,
        decided: BTreeMap::new(),
        walked: BTreeMap::new(),
    };
    walk.chain("FORWARD", &Decided::default());
    walk.decided
}

impl<'a> Walk<'a> {
    /// Walks through a chain, and returns what it decides.
    fn chain(&mut self, chain: &'a str, before: &Decided) -> Decided {
        let mut least = before.clone();
        if let Some((entered, own)) = self.walked.get(chain) {
            least.intersect(entered);
            if least == *entered {
                return own.clone();
            }
        }
        let rules = self.chains.get(chain).cloned().unwrap_or_default();
        let mut own = Decided::default();
        // Behind a rule that returns, some packets do not meet the rest of the chain.
        let mut returned = None;
        for (number, words) in rules {
            let mut here = least.clone();
            here.extend(own.clone());
            // What other software's chains decide does not count.
            if chain == "FORWARD" || is_dockers(chain) {
                own.decide(words);
            }
            match *words {
                ["-j", "RETURN"] => break,
                [.., "-j", "RETURN"] => {
                    returned.get_or_insert_with(|| own.clone());
                }
                [ref matches @ .., "-j" | "-g", next] if self.chains.contains_key(next) => {
                    let behind = self.chain(next, &here);
                    // What a chain decides about some packets is not decided about all.
                    if matches.is_empty() {
                        own.extend(behind);
                    }
                }
                _ => {}
            }
            self.decided.insert(number, here);
        }
        let own = returned.unwrap_or(own);
        self.walked.insert(chain, (least, own.clone()));
        own
    }
}

/// Returns the bridges whose containers' source Docker's rules translate as the kernel would
/// translate it for any `MASQUERADE`: the rules of the table *nat*.
pub(super) fn masqueraded(rules: &[Words<'_>]) -> BTreeSet<String> {
    let bridge = |(chain, words): &Words<'_>| match **words {
        ["-s", _, "!", "-o", bridge, "-j", "MASQUERADE"] if *chain == "POSTROUTING" => {
            Some(bridge.to_owned())
        }
        _ => None,
    };
    rules.iter().filter_map(bridge).collect()
}

/// Returns the bridges whose containers cannot be reached past Docker's ports, whatever other rules
/// accept: the rules of the table *raw*.
pub(super) fn closed(rules: &[Words<'_>]) -> BTreeSet<String> {
    let bridge = |(chain, words): &Words<'_>| match **words {
        ["-d", _, "!", "-i", bridge, "-j", "DROP"] if *chain == "PREROUTING" => {
            Some(bridge.to_owned())
        }
        _ => None,
    };
    rules.iter().filter_map(bridge).collect()
}
