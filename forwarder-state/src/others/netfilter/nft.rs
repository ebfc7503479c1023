// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules that `nft list ruleset` prints.

use std::collections::{BTreeMap, BTreeSet};

use super::scope::{chains_by_packet, of_nft};
use super::{
    Decided, Effect, Rule, Scope, TABLE, is_dockers, range, reached, shown_table, uncounted,
};

/// Parses nft's ruleset. `iptables_read` says that iptables has already shown its own tables, and
/// `masqueraded` names the bridges whose containers' source Docker's rules masquerade.
pub(super) fn nft(text: &str, iptables_read: bool, masqueraded: &BTreeSet<String>) -> Vec<Rule> {
    const HOOKS: [&str; 5] = ["prerouting", "forward", "postrouting", "ingress", "egress"];
    let mut all = Vec::new();
    let (mut family, mut table, mut chain) = ("", "", "");
    let mut rules: Vec<(&str, &str, &str, &str)> = Vec::new();
    let mut first: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    let mut jumps: BTreeMap<(&str, &str), BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["table", f, t, "{"] => (family, table, chain) = (f, t, ""),
            ["chain", name, "{"] => chain = name,
            ["}"] => chain = "",
            _ if chain.is_empty() => {}
            ["type", _, "hook", hook, ..] => {
                if HOOKS.contains(&hook) {
                    first.entry((family, table)).or_default().insert(chain);
                }
            }
            _ => {
                // A verdict map has several.
                let pairs = words.windows(2);
                for pair in pairs.filter(|pair| matches!(pair[0], "jump" | "goto")) {
                    let of_table = jumps.entry((family, table)).or_default();
                    let next = pair[1].trim_end_matches([',', '}']);
                    of_table.entry(chain).or_default().insert(next);
                }
                rules.push((family, table, chain, line));
            }
        }
    }
    let by_packet = by_packet(&rules, &jumps);
    for (family, table, chain, line) in rules {
        let shown = iptables_read && shown_table(family, table);
        let families = ["ip", "inet", "bridge", "netdev"].contains(&family);
        if shown || !families || is_dockers(chain) || table.starts_with("docker-") || table == TABLE
        {
            continue;
        }
        let on_the_way = reached(
            first.get(&(family, table)).cloned().unwrap_or_default(),
            &jumps.get(&(family, table)).cloned().unwrap_or_default(),
        );
        if !on_the_way.contains(chain) {
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let Some(effect) = effect(&words) else {
            continue;
        };
        let bare = |words: &[&str]| {
            !words.is_empty() && uncounted(words).len() == 1 && effect == Effect::Drop
        };
        if bare(&words) {
            // The chain's policy is checked elsewhere.
            continue;
        }
        let value = |names: &[&str]| {
            let at = words
                .windows(names.len())
                .position(|window| window == names)?;
            words
                .get(at + names.len())
                .copied()
                .filter(|word| !["!=", "{"].contains(word))
        };
        let name = |word: &str| word.trim_matches('"').to_owned();
        all.push(Rule {
            text: format!("nft {family} {table} {chain} {line}"),
            effect,
            scope: if by_packet.contains(&(family, table, chain)) {
                Scope::Packet
            } else {
                Scope::Connection
            },
            src: value(&["ip", "saddr"]).and_then(range),
            dst: value(&["ip", "daddr"]).and_then(range),
            inward: value(&["iifname"]).or_else(|| value(&["iif"])).map(name),
            outward: value(&["oifname"]).or_else(|| value(&["oif"])).map(name),
            decided: Decided {
                from: if line.ends_with(" masquerade") {
                    masqueraded.clone()
                } else {
                    BTreeSet::new()
                },
                ..Decided::default()
            },
        });
    }
    all
}

/// What a rule does; none if it does nothing by itself.
fn effect(words: &[&str]) -> Option<Effect> {
    let has = |verb: &str| words.contains(&verb);
    Some(if has("drop") || has("reject") {
        Effect::Drop
    } else if has("dnat") || has("redirect") || has("tproxy") {
        Effect::Dnat
    } else if has("masquerade") || has("snat") {
        Effect::Snat
    } else if words.windows(2).any(|pair| pair == ["mark", "set"]) {
        Effect::Mark
    } else if has("queue") || has("dup") || has("fwd") || has("synproxy") {
        Effect::Other
    } else {
        return None;
    })
}

/// A chain: the table's family and name, and its own.
type Chain<'a> = (&'a str, &'a str, &'a str);

/// Returns the chains whose rules may depend on single packets.
fn by_packet<'a>(
    rules: &[(&'a str, &'a str, &'a str, &'a str)],
    jumps: &BTreeMap<(&'a str, &'a str), BTreeMap<&'a str, BTreeSet<&'a str>>>,
) -> BTreeSet<Chain<'a>> {
    let tables: BTreeSet<_> = rules.iter().map(|rule| (rule.0, rule.1)).collect();
    let of_table = |at: (&'a str, &'a str)| {
        let own = rules.iter().filter(move |rule| (rule.0, rule.1) == at);
        let scopes = own.map(|rule| {
            let words: Vec<_> = rule.3.split_whitespace().collect();
            let effect = effect(&words).unwrap_or(Effect::Accept);
            (rule.2, of_nft(&words, effect))
        });
        let none = BTreeMap::new();
        let chains = chains_by_packet(scopes, jumps.get(&at).unwrap_or(&none));
        chains.into_iter().map(move |chain| (at.0, at.1, chain))
    };
    tables.into_iter().flat_map(of_table).collect()
}
