// SPDX-License-Identifier: MIT OR Apache-2.0
//! The chains of netfilter that decide what is forwarded, from the text of `iptables-save` and `nft
//! list ruleset`: each must accept what the fast path hands on before any other rule of it does.

use super::netfilter::{Firewall, Ruleset, TABLE, is_shown_by_iptables, shown_table};

/// A chain that decides what is forwarded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ForwardChain {
    /// `nft`, or the variant of iptables to which the chain belongs.
    pub tool: &'static str,
    /// The family of the table; `ip` for iptables.
    pub family: String,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub name: String,
    /// Whether our rule is its first.
    pub begins_with_ours: bool,
    /// Whether any rule of it is ours.
    pub has_ours: bool,
}

/// Returns all of them that may drop something.
#[must_use]
pub fn forward_chains(firewall: &Firewall) -> Vec<ForwardChain> {
    let iptables_nft = is_shown_by_iptables(firewall);
    let mut chains = Vec::new();
    for Ruleset { tool, text } in &firewall.rulesets {
        if *tool == "nft" {
            chains.extend(of_nft(text, iptables_nft));
        } else {
            chains.extend(of_iptables(tool, text));
        }
    }
    chains
}

fn of_iptables(tool: &'static str, text: &str) -> Option<ForwardChain> {
    let filter = text.split("*filter\n").nth(1)?;
    let filter = filter.split("COMMIT").next()?;
    let mut rules = filter
        .lines()
        .filter_map(|line| line.strip_prefix("-A FORWARD "));
    let first = rules.next();
    let drops = filter.lines().any(|line| line.starts_with(":FORWARD DROP"));
    if first.is_none() && !drops {
        return None;
    }
    let is_ours = |rule: &str| rule.contains(TABLE);
    Some(ForwardChain {
        tool,
        family: "ip".into(),
        table: "filter".into(),
        name: "FORWARD".into(),
        begins_with_ours: first.is_some_and(is_ours),
        has_ours: first.is_some_and(is_ours) || rules.any(is_ours),
    })
}

fn of_nft(text: &str, iptables_read: bool) -> Vec<ForwardChain> {
    let mut chains: Vec<ForwardChain> = Vec::new();
    let (mut family, mut table, mut name) = ("", "", "");
    // Whether the current chain hooks into forwarding, and the number of its rules so far.
    let mut rules = None;
    for line in text.lines().map(str::trim) {
        let words: Vec<_> = line.split_whitespace().collect();
        match (words.as_slice(), &mut rules) {
            (["table", f, t, "{"], _) => (family, table, rules) = (f, t, None),
            (["chain", chain, "{"], _) => (name, rules) = (chain, None),
            (["}"], _) => rules = None,
            (["type", "filter", "hook", "forward", ..], _) => {
                let others = table != TABLE && ["ip", "inet"].contains(&family);
                if others && !(iptables_read && shown_table(family, table)) {
                    rules = Some(0);
                    chains.push(ForwardChain {
                        tool: "nft",
                        family: family.into(),
                        table: table.into(),
                        name: name.into(),
                        begins_with_ours: false,
                        has_ours: false,
                    });
                }
            }
            (_, Some(number)) => {
                let is_ours = line.ends_with(&format!("comment \"{TABLE}\""));
                if let Some(chain) = chains.last_mut() {
                    chain.begins_with_ours |= is_ours && *number == 0;
                    chain.has_ours |= is_ours;
                }
                *number += 1;
            }
            _ => {}
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(tool: &'static str, text: &str) -> Vec<(String, bool, bool)> {
        let text = text.to_owned();
        let firewall = Firewall {
            rulesets: vec![Ruleset { tool, text }],
            unread: Vec::new(),
        };
        let place = |chain: ForwardChain| {
            let ForwardChain {
                family,
                table,
                name,
                begins_with_ours,
                has_ours,
                ..
            } = chain;
            (
                format!("{family} {table} {name}"),
                begins_with_ours,
                has_ours,
            )
        };
        forward_chains(&firewall).into_iter().map(place).collect()
    }

    #[test]
    fn iptables_has_one_that_may_drop() {
        let with = |rules: &str| format!("*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n");
        let ours = "-A FORWARD -m mark --mark 0xc0000000/0xc0000000 -m comment --comment forwarder -j ACCEPT\n";
        let docker = "-A FORWARD -j DOCKER-USER\n";
        let of = |rules: &str| chains("iptables-nft", &with(rules));
        assert_eq!(of(":FORWARD ACCEPT [0:0]\n"), []);
        let place = "ip filter FORWARD".to_owned();
        assert_eq!(of(":FORWARD DROP [0:0]\n"), [(place.clone(), false, false)]);
        let first = format!(":FORWARD DROP [0:0]\n{ours}{docker}");
        assert_eq!(of(&first), [(place.clone(), true, true)]);
        let second = format!(":FORWARD DROP [0:0]\n{docker}{ours}");
        assert_eq!(of(&second), [(place, false, true)]);
    }

    #[test]
    fn base_chains_of_nft_are_found() {
        let text = "table inet firewalld {\n\tchain filter_FORWARD {\n\
            \t\ttype filter hook forward priority filter + 10; policy drop;\n\
            \t\tmeta mark & 0xc0000000 == 0xc0000000 accept comment \"forwarder\"\n\t\tdrop\n\t}\n\
            \tchain other {\n\t\tdrop\n\t}\n}\n\
            table inet forwarder {\n\tchain forward {\n\
            \t\ttype filter hook forward priority raw; policy accept;\n\t}\n}\n\
            table ip mine {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy accept;\n\
            \t\tcounter packets 0 bytes 0 drop\n\t}\n}\n";
        assert_eq!(
            chains("nft", text),
            [
                ("inet firewalld filter_FORWARD".to_owned(), true, true),
                ("ip mine f".to_owned(), false, false),
            ]
        );
    }
}
