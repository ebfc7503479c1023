// SPDX-License-Identifier: MIT OR Apache-2.0
//! What netfilter rules do to containers' traffic, from `iptables-save` and `nft list ruleset`.

use std::collections::BTreeSet;

use super::netfilter::{
    Firewall, Ruleset, TABLE, is_dockers_rule, is_shown_by_iptables, shown_table, uncounted,
};

/// The summary of a ruleset.
#[derive(Default)]
pub struct Summary {
    /// A rule of Docker's that has an effect, as printed.
    pub docker: Option<String>,
    /// Whether there are any chains of Docker's.
    pub chains: bool,
    /// Chains that drop every packet that no rule has accepted before, with the command that ends
    /// this.
    pub drops: BTreeSet<(String, String)>,
}

/// Summarises the output of a program. `iptables_nft` says that iptables has already shown its own
/// tables.
#[must_use]
pub fn summary(tool: &str, text: &str, iptables_nft: bool) -> Summary {
    if tool == "nft" {
        nft(text, iptables_nft)
    } else {
        iptables(tool, text)
    }
}

/// Whether Docker's own rules are in place.
#[must_use]
pub fn has_dockers(firewall: &Firewall) -> bool {
    let iptables_nft = is_shown_by_iptables(firewall);
    firewall
        .rulesets
        .iter()
        .any(|Ruleset { tool, text }| summary(tool, text, iptables_nft).docker.is_some())
}

/// Returns chains that drop packets that the fast path passes to the kernel and no rule has
/// accepted before, and the command that ends this.
#[must_use]
pub fn drops(firewall: &Firewall) -> Vec<(String, String)> {
    let iptables_nft = is_shown_by_iptables(firewall);
    let drops = firewall.rulesets.iter().flat_map(|Ruleset { tool, text }| {
        let drops = summary(tool, text, iptables_nft).drops.into_iter();
        drops
            .map(|(chain, todo)| (dropping(&chain, tool), todo))
            .collect::<Vec<_>>()
    });
    drops.collect()
}

fn dropping(chain: &str, tool: &str) -> String {
    format!("{chain} would drop packets that the fast path passes to the kernel ({tool})")
}

/// Parses the output of `iptables-save`: `*table`, `:CHAIN POLICY`, `-A CHAIN rule`.
fn iptables(tool: &str, text: &str) -> Summary {
    let mut summary = Summary::default();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            summary.chains |= chain.starts_with("DOCKER");
            if chain.starts_with("FORWARD DROP") {
                summary.drops.insert((
                    format!("the policy of {table} FORWARD"),
                    format!("{tool} -t {table} -P FORWARD ACCEPT"),
                ));
            }
        } else if let Some((chain, rule)) = line
            .strip_prefix("-A ")
            .and_then(|line| line.split_once(' '))
        {
            if is_dockers_rule(table, chain, rule) {
                summary
                    .docker
                    .get_or_insert_with(|| format!("{table} {chain} {rule}"));
            }
            if chain == "FORWARD" && (rule == "-j DROP" || rule.starts_with("-j REJECT")) {
                summary.drops.insert((
                    format!("the rule {table} FORWARD {rule}"),
                    format!("{tool} -t {table} -D FORWARD {rule}"),
                ));
            }
        }
    }
    summary
}

/// Parses the output of `nft list ruleset`. `iptables_read` says that iptables has already shown
/// its own tables.
fn nft(text: &str, iptables_read: bool) -> Summary {
    let mut summary = Summary::default();
    let (mut family, mut table, mut chain, mut forward) = ("", "", "", false);
    for line in text.lines().map(str::trim) {
        let words = line.split_whitespace().collect::<Vec<_>>();
        match words[..] {
            ["table", f, t, "{"] => (family, table, chain) = (f, t, ""),
            ["chain", name, "{"] => (chain, forward) = (name, false),
            ["}"] => chain = "",
            _ => {}
        }
        let shown = iptables_read && shown_table(family, table);
        if chain.is_empty() || shown || table == TABLE || !["ip", "inet"].contains(&family) {
            continue;
        }
        let here = format!("{family} {table} {chain}");
        summary.chains |= chain.starts_with("DOCKER");
        if line.starts_with("type ") {
            forward = line.contains(" hook forward ");
            if forward && line.contains("policy drop") {
                summary.drops.insert((
                    format!("the policy of {here}"),
                    format!("nft chain {here} '{{ policy accept; }}'"),
                ));
            }
        } else if forward && (uncounted(&words) == ["drop"] || line.starts_with("reject")) {
            summary.drops.insert((
                format!("the rule {here} {line}"),
                format!("nft -a list chain {here}, then nft delete rule {here} handle N"),
            ));
        }
        let acts = ["dnat", "masquerade", "drop", "reject"]
            .iter()
            .any(|verb| words.contains(verb));
        let owned = chain.starts_with("DOCKER") || table.starts_with("docker-");
        let masquerade = words.contains(&"masquerade")
            && (line.contains("oifname != \"docker0\"") || line.contains("oifname != \"br-"));
        if acts && (owned || masquerade) {
            summary
                .docker
                .get_or_insert_with(|| format!("{here} {line}"));
        }
    }
    summary
}
