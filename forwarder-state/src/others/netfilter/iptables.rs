// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules that `iptables-save` prints.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, Rule, TABLE, is_dockers, is_dockers_rule, range, reached};

pub(super) fn iptables(tool: &str, text: &str) -> Vec<Rule> {
    let mut all = Vec::new();
    // Chain names are unique within a table.
    for table in text.split('*').skip(1) {
        let name = table.lines().next().unwrap_or_default();
        let rules: Vec<(&str, Vec<&str>, &str)> = table
            .lines()
            .filter_map(|line| {
                let (chain, rule) = line.strip_prefix("-A ")?.split_once(' ')?;
                Some((chain, rule.split(' ').collect(), rule))
            })
            .collect();
        let target = |words: &[&'_ str]| {
            let at = words.iter().position(|word| matches!(*word, "-j" | "-g"))?;
            words.get(at + 1).map(|word| (*word).to_owned())
        };
        let mut jumps: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (chain, words, _) in &rules {
            let at = words.iter().position(|word| matches!(*word, "-j" | "-g"));
            if let Some(next) = at.and_then(|at| words.get(at + 1)) {
                jumps.entry(chain).or_default().insert(next);
            }
        }
        let first = BTreeSet::from(["PREROUTING", "FORWARD", "POSTROUTING"]);
        let on_the_way = reached(first, &jumps);
        for (chain, words, rule) in &rules {
            let Some(target) = target(words) else {
                continue;
            };
            let effect = match target.as_str() {
                "ACCEPT" | "RETURN" => continue,
                "DROP" | "REJECT" | "TARPIT" => Effect::Drop,
                "DNAT" | "REDIRECT" | "TPROXY" => Effect::Dnat,
                "SNAT" | "MASQUERADE" | "NETMAP" => Effect::Snat,
                "MARK" | "CONNMARK" => Effect::Mark,
                chain if rules.iter().any(|(other, ..)| *other == chain) => continue,
                chain if table.contains(&format!("\n:{chain} ")) => continue,
                _ => Effect::Other,
            };
            let dockers = is_dockers_rule(name, chain, rule);
            if !on_the_way.contains(chain) || is_dockers(chain) || dockers || rule.contains(TABLE) {
                continue;
            }
            let value = |flag: &str| {
                let at = words.iter().position(|word| *word == flag)?;
                if at > 0 && words[at - 1] == "!" {
                    return None;
                }
                words.get(at + 1).copied()
            };
            all.push(Rule {
                text: format!("{tool} -t {name} -A {chain} {rule}"),
                effect,
                src: value("-s").and_then(range),
                dst: value("-d").and_then(range),
                inward: value("-i").map(str::to_owned),
                outward: value("-o").map(str::to_owned),
            });
        }
    }
    all
}
