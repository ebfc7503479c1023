// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our own tables of netfilter, as other rules' readers see them.

use std::collections::BTreeSet;

use super::{Firewall, Ruleset};

/// The name of our own nftables tables, and the comment of our rules.
pub const TABLE: &str = "forwarder";

/// One of our own tables, each in an address family of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OurTable {
    /// Exempts what the fast path passes to the kernel from connection tracking.
    Untracked,
    /// Keeps devices apart that no agent has seen.
    Forwarded,
    /// Keeps ports of bridges apart that no agent has seen.
    Bridged,
}

impl OurTable {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Untracked, Self::Forwarded, Self::Bridged];

    /// Returns nft's name of its family.
    #[must_use]
    pub const fn family(self) -> &'static str {
        match self {
            Self::Untracked => "ip",
            Self::Forwarded => "inet",
            Self::Bridged => "bridge",
        }
    }
}

/// Returns those of our tables whose rule is among them; none if nft does not show its rules.
#[must_use]
pub fn ours(firewall: &Firewall) -> Option<BTreeSet<OurTable>> {
    if firewall.unread.iter().any(|program| program == "nft") {
        return None;
    }
    let mut ours = BTreeSet::new();
    for Ruleset { tool, text } in &firewall.rulesets {
        let mut table = None;
        for line in text.lines() {
            if *tool != "nft" {
                if line.starts_with("-A PREROUTING") && line.contains(TABLE) {
                    ours.insert(OurTable::Untracked);
                }
            } else if line.starts_with("table ") {
                table = our_table(line);
            } else if line.ends_with(&format!("comment \"{TABLE}\"")) {
                ours.extend(table);
            }
        }
    }
    Some(ours)
}

/// Returns the table of ours that begins with this line of nft.
pub(super) fn our_table(line: &str) -> Option<OurTable> {
    let mut all = OurTable::ALL.into_iter();
    all.find(|table| line == format!("table {} {TABLE} {{", table.family()))
}
