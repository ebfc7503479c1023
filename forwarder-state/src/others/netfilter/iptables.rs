// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules that `iptables-save` prints.

use std::collections::{BTreeMap, BTreeSet};

use super::order::{Decided, Words, before_rules, closed, masqueraded};
use super::scope::{chains_by_packet, of_iptables};
use super::{Effect, Rule, Scope, TABLE, is_dockers, is_dockers_rule, range, reached};

/// A table: its name, its text, and its rules, as words and as printed.
struct Table<'a> {
    name: &'a str,
    text: &'a str,
    rules: Vec<Words<'a>>,
    printed: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn of(text: &'a str) -> Self {
        let rules = text.lines().filter_map(|line| {
            let (chain, rule) = line.strip_prefix("-A ")?.split_once(' ')?;
            Some(((chain, rule.split(' ').collect()), rule))
        });
        let (rules, printed) = rules.unzip();
        Self {
            name: text.lines().next().unwrap_or_default(),
            text,
            rules,
            printed,
        }
    }

    fn has_chain(&self, chain: &str) -> bool {
        self.text.contains(&format!("\n:{chain} ")) || self.rules.iter().any(|r| r.0 == chain)
    }

    /// Returns the chains to which each chain leads.
    fn jumps(&self) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut jumps: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (chain, words) in &self.rules {
            if let Some(next) = target(words) {
                jumps.entry(*chain).or_default().insert(next);
            }
        }
        jumps
    }

    /// To what a rule itself applies.
    fn scope(&self, words: &[&str]) -> Scope {
        let effect = self.effect(words).unwrap_or(Effect::Accept);
        of_iptables(words, target(words).unwrap_or_default(), effect)
    }

    /// What a rule does; none if it does nothing by itself.
    fn effect(&self, words: &[&str]) -> Option<Effect> {
        Some(match target(words)? {
            "ACCEPT" if self.name == "filter" && opens(words) => Effect::Accept,
            "ACCEPT" | "RETURN" => return None,
            "DROP" | "REJECT" | "TARPIT" => Effect::Drop,
            "DNAT" | "REDIRECT" | "TPROXY" => Effect::Dnat,
            "SNAT" | "MASQUERADE" | "NETMAP" => Effect::Snat,
            "MARK" | "CONNMARK" => Effect::Mark,
            chain if self.has_chain(chain) => return None,
            _ => Effect::Other,
        })
    }
}

/// Returns the bridges whose containers' source Docker's rules masquerade.
pub(super) fn masqueraded_in(text: &str) -> BTreeSet<String> {
    let nat = text.split('*').find(|table| table.starts_with("nat\n"));
    nat.map_or_else(BTreeSet::new, |text| masqueraded(&Table::of(text).rules))
}

pub(super) fn iptables(tool: &str, text: &str) -> Vec<Rule> {
    // Chain names are unique within a table.
    let tables: Vec<_> = text.split('*').skip(1).map(Table::of).collect();
    let masqueraded = masqueraded_in(text);
    let raw = tables.iter().find(|table| table.name == "raw");
    let closed = raw.map_or_else(BTreeSet::new, |raw| closed(&raw.rules));
    let mut all = Vec::new();
    for table in &tables {
        let decided = match table.name {
            "filter" => before_rules(&table.rules),
            _ => BTreeMap::new(),
        };
        let jumps = table.jumps();
        let first = BTreeSet::from(["PREROUTING", "FORWARD", "POSTROUTING"]);
        let on_the_way = reached(first, &jumps);
        let scopes = table.rules.iter();
        let scopes = scopes.map(|(chain, words)| (*chain, table.scope(words)));
        let by_packet = chains_by_packet(scopes, &jumps);
        for (number, ((chain, words), rule)) in table.rules.iter().zip(&table.printed).enumerate() {
            let Some(effect) = table.effect(words) else {
                continue;
            };
            let dockers = is_dockers(chain) || is_dockers_rule(table.name, chain, rule);
            if !on_the_way.contains(chain) || dockers || rule.contains(TABLE) {
                continue;
            }
            let mut decided = decided.get(&number).cloned().unwrap_or_default();
            if effect == Effect::Accept {
                decided.to.clone_from(&closed);
            }
            if words.ends_with(&["-j", "MASQUERADE"]) {
                decided.from.clone_from(&masqueraded);
            }
            let text = format!("{tool} -t {} -A {chain} {rule}", table.name);
            let scope = if by_packet.contains(chain) {
                Scope::Packet
            } else {
                Scope::Connection
            };
            all.push(parsed(text, effect, scope, words, decided));
        }
    }
    all
}

fn parsed(text: String, effect: Effect, scope: Scope, words: &[&str], decided: Decided) -> Rule {
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        if at > 0 && words[at - 1] == "!" {
            return None;
        }
        words.get(at + 1).copied()
    };
    Rule {
        text,
        effect,
        scope,
        src: value("-s").and_then(range),
        dst: value("-d").and_then(range),
        inward: value("-i").map(str::to_owned),
        outward: value("-o").map(str::to_owned),
        decided,
    }
}

/// Returns the target of a rule.
fn target<'a>(words: &[&'a str]) -> Option<&'a str> {
    let at = words.iter().position(|word| matches!(*word, "-j" | "-g"))?;
    words.get(at + 1).copied()
}

/// Whether a rule that accepts names whom it lets packets through to, and new connections may begin
/// with them.
fn opens(words: &[&str]) -> bool {
    let named = |flag: &str| {
        let at = words.iter().position(|word| *word == flag);
        at.is_some_and(|at| at == 0 || words[at - 1] != "!")
    };
    let states = words
        .windows(2)
        .find(|pair| matches!(pair[0], "--ctstate" | "--state"));
    let is_new = states.is_none_or(|pair| pair[1].split(',').any(|state| state == "NEW"));
    // Docker's own accept what a network's containers send to each other.
    let is_inner = matches!(*words, ["-i", from, "-o", to, "-j", "ACCEPT"] if from == to);
    (named("-d") || named("-o")) && is_new && !is_inner
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::others::Reach;

    /// The rules of a network, as Docker 20 writes them.
    const DOCKER_20: &str = "-A FORWARD -j DOCKER-USER\n\
        -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
        -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -o docker0 -j DOCKER\n\
        -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
        -A FORWARD -i docker0 -o docker0 -j ACCEPT\n";
    /// The same of Docker 28.
    const DOCKER_28: &str = "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n\
        -A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -j DOCKER-BRIDGE\n\
        -A DOCKER-FORWARD -i docker0 -j ACCEPT\n\
        -A DOCKER-BRIDGE -o docker0 -j DOCKER\n\
        -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A DOCKER ! -i docker0 -o docker0 -j DROP\n";
    /// What ufw writes, shortened.
    const UFW: &str = "-A FORWARD -j ufw-before-logging-forward\n\
        -A FORWARD -j ufw-before-forward\n-A FORWARD -j ufw-reject-forward\n\
        -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A ufw-before-forward -j ufw-user-forward\n\
        -A ufw-before-logging-forward -m limit --limit 3/min -j LOG --log-prefix \"[UFW AUDIT] \"\n\
        -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable\n\
        -A ufw-user-forward -s 203.0.113.9/32 -j DROP\n";

    /// Returns the rules that can match containers of the default network.
    fn matching(table: &str, rules: &str) -> Vec<String> {
        let reach = Reach {
            bridges: vec!["docker0".to_owned()],
            ranges: vec![(Ipv4Addr::new(172, 17, 0, 0), 16)],
        };
        let chains = rules.lines().filter_map(|line| line.split(' ').next_back());
        let chains: String = chains
            .filter(|word| word.starts_with("DOCKER") || word.starts_with("ufw"))
            .map(|chain| format!(":{chain} - [0:0]\n"))
            .collect();
        let text = format!("*{table}\n{chains}{rules}COMMIT\n");
        let rules = iptables("iptables", &text).into_iter();
        let matching = rules.filter(|rule| rule.may_match(&reach));
        matching
            .map(|rule| rule.text.replace("iptables -t ", ""))
            .collect()
    }

    #[test]
    fn rules_behind_dockers_accepts_do_not_count() {
        for docker in [DOCKER_20, DOCKER_28] {
            assert_eq!(matching("filter", &format!("{docker}{UFW}")), [""; 0]);
            let first = matching("filter", &format!("{UFW}{docker}"));
            assert_eq!(first.len(), 3, "{first:?}");
        }
        // A network whose accept comes later is not decided yet.
        let other = DOCKER_20.replace("docker0", "br-0123456789ab");
        let late = matching("filter", &format!("{other}{UFW}{DOCKER_20}"));
        assert_eq!(late.len(), 3, "{late:?}");
    }

    #[test]
    fn rules_of_docker_user_count() {
        let log = "-A DOCKER-USER -j LOG\n-A DOCKER-USER -j RETURN\n";
        for docker in [DOCKER_20, DOCKER_28] {
            let found = matching("filter", &format!("{docker}{log}"));
            assert_eq!(found, ["filter -A DOCKER-USER -j LOG"]);
        }
        // Only what containers send is accepted, not what they receive.
        let mine = "-A FORWARD -i docker0 -j ACCEPT\n-A FORWARD -s 203.0.113.9/32 -j DROP\n";
        assert_eq!(matching("filter", &format!("{mine}{DOCKER_20}")).len(), 1);
    }

    #[test]
    fn dockers_own_icc_rule_does_not_count() {
        let icc = "-A FORWARD -i docker0 -o docker0 -j DROP\n";
        assert_eq!(matching("filter", &format!("{DOCKER_20}{icc}")), [""; 0]);
    }

    #[test]
    fn accepting_what_docker_refuses_counts() {
        let accepts = |rule: &str| !matching("filter", &format!("{rule}\n{DOCKER_20}")).is_empty();
        assert!(accepts(
            "-A DOCKER-USER -i br-0123456789ab -o docker0 -j ACCEPT"
        ));
        assert!(accepts(
            "-A FORWARD -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j ACCEPT"
        ));
        assert!(!accepts(
            "-A FORWARD -o docker0 -m conntrack --ctstate ESTABLISHED -j ACCEPT"
        ));
        assert!(!accepts("-A FORWARD -i docker0 -o eth0 -j ACCEPT"));
        assert!(!accepts("-A FORWARD -i wg0 -j ACCEPT"));
    }

    #[test]
    fn masquerade_on_another_device_does_not_count() {
        let docker = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
        let with = |rule: &str| matching("nat", &format!("{rule}\n{docker}"));
        assert_eq!(with("-A POSTROUTING -o wg0 -j MASQUERADE"), [""; 0]);
        assert_eq!(
            with("-A POSTROUTING -j MASQUERADE").len(),
            1,
            "of what is published too"
        );
        assert_eq!(
            with("-A POSTROUTING -o wg0 -j SNAT --to-source 10.8.0.1").len(),
            1
        );
        let alone = matching("nat", "-A POSTROUTING -o wg0 -j MASQUERADE\n");
        assert_eq!(alone.len(), 1, "Docker's rule is missing");
    }
}
