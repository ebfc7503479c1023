// SPDX-License-Identifier: MIT OR Apache-2.0
//! Netfilter rules that would apply to forwarded packets, parsed from the text of `iptables-save`
//! and `nft list ruleset`. The fast path applies none of them.

mod iptables;
mod nft;
mod order;
mod our_tables;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use self::iptables::{iptables, masqueraded_in};
use self::nft::nft;
pub use self::order::Decided;
use self::our_tables::our_table;
pub use self::our_tables::{OurTable, TABLE, ours};
use super::{Range, Reach, overlap};

/// The rules of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Rulesets that could be read.
    pub rulesets: Vec<Ruleset>,
    /// Programs that did not show their rules.
    pub unread: Vec<String>,
}

/// The rules that one program shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// `nft`, or the iptables variant whose `-save` command printed the text.
    pub tool: &'static str,
    /// The printed text.
    pub text: String,
}

/// What a rule would do to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Drop it.
    Drop,
    /// Change its destination.
    Dnat,
    /// Change its source.
    Snat,
    /// Set its mark or its connection's mark.
    Mark,
    /// Accept it, to whomever it names, where Docker's rules would not.
    Accept,
    /// Something else: count it elsewhere, queue it, change it.
    Other,
}

/// To what a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To all packets of a connection's direction alike, or to those alone that begin or end it.
    Connection,
    /// To packets one by one: it counts, logs, changes or measures each.
    Packet,
}

/// A rule that applies to forwarded packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The program that shows it, and the rule as printed, beginning with its chain.
    pub text: String,
    /// What it would do.
    pub effect: Effect,
    /// To what it applies.
    pub scope: Scope,
    /// The sources that it matches, if it names any.
    pub src: Option<Range>,
    /// The destinations that it matches, if it names any.
    pub dst: Option<Range>,
    /// The incoming device that it matches, if it names one.
    pub inward: Option<String>,
    /// The outgoing device that it matches, if it names one.
    pub outward: Option<String>,
    /// The bridges about whose packets Docker's rules have decided before it.
    pub decided: Decided,
}

impl Rule {
    /// Whether it can match a packet to or from a container, and does something to it that Docker's
    /// rules do not.
    #[must_use]
    pub fn may_match(&self, reach: &Reach) -> bool {
        let is_decided = |bridges: &BTreeSet<String>| {
            !reach.bridges.is_empty() && reach.bridges.iter().all(|name| bridges.contains(name))
        };
        let ours = |range: Option<Range>| {
            range.is_none_or(|range| reach.ranges.iter().any(|&own| overlap(own, range)))
        };
        let bridge = |name: &Option<String>| {
            name.as_ref()
                .is_none_or(|name| match name.strip_suffix(['+', '*']) {
                    Some(stem) => reach.bridges.iter().any(|bridge| bridge.starts_with(stem)),
                    None => reach.bridges.contains(name),
                })
        };
        // A packet from a container arrives through its bridge, and a packet to a container leaves
        // through its bridge.
        let from = ours(self.src) && bridge(&self.inward) && !is_decided(&self.decided.from);
        let to = ours(self.dst) && bridge(&self.outward) && !is_decided(&self.decided.to);
        // What a container sends is accepted without any other rule.
        from && self.effect != Effect::Accept || to
    }

    /// Returns what the rule means.
    #[must_use]
    pub fn what(&self) -> String {
        let effect = match self.effect {
            Effect::Drop => "dropped",
            Effect::Dnat => "sent elsewhere",
            Effect::Snat => "given another source",
            Effect::Mark => "marked",
            Effect::Accept => "accepted",
            Effect::Other => "handled",
        };
        format!(
            "a netfilter rule does not apply to containers' traffic, which it would have {effect} \
             ({})",
            self.text
        )
    }

    /// Returns what replaces the rule.
    #[must_use]
    pub fn instead(&self) -> &'static str {
        match self.effect {
            Effect::Drop => {
                "use ingress-allow and ingress-deny of the network or port, or icc = false"
            }
            Effect::Dnat => "publish the port with docker run -p",
            Effect::Snat => "use the network's option com.docker.network.host_ipv4",
            Effect::Accept => "publish the port, or use trusted_host_interfaces of the network",
            Effect::Mark => "route by addresses or devices instead (ip rule from, iif)",
            Effect::Other => {
                "move it to where containers' packets still pass: inside the container"
            }
        }
    }
}

/// Returns all rules for forwarded packets that are neither Docker's nor ours, without those that
/// accept what Docker's rules accept.
#[must_use]
pub fn foreign(firewall: &Firewall) -> Vec<Rule> {
    let iptables_nft = is_shown_by_iptables(firewall);
    let texts = firewall.rulesets.iter().map(|rules| rules.text.as_str());
    let masqueraded: BTreeSet<_> = texts.flat_map(masqueraded_in).collect();
    let mut rules = Vec::new();
    for Ruleset { tool, text } in &firewall.rulesets {
        if *tool == "nft" {
            rules.extend(nft(text, iptables_nft, &masqueraded));
        } else {
            rules.extend(iptables(tool, text));
        }
    }
    rules
}

/// Whether iptables shows all of its own tables in nft.
#[must_use]
pub fn is_shown_by_iptables(firewall: &Firewall) -> bool {
    firewall
        .rulesets
        .iter()
        .any(|rules| rules.tool == "iptables-nft" && !rules.text.contains("incompatible"))
}

/// Whether a table of nft is one of iptables' own.
#[must_use]
pub fn shown_table(family: &str, table: &str) -> bool {
    const IPTABLES: [&str; 5] = ["filter", "nat", "raw", "mangle", "security"];
    family == "ip" && IPTABLES.contains(&table)
}

/// Whether other software has a rule or a table.
#[must_use]
pub fn is_used(firewall: &Firewall) -> bool {
    firewall.rulesets.iter().any(|Ruleset { tool, text }| {
        let tables = text.lines().filter(|line| match *tool {
            "nft" => line.starts_with("table ") && our_table(line).is_none(),
            _ => line.starts_with("-A ") && !line.contains(TABLE),
        });
        tables.count() > 0
    })
}

/// Whether a chain is one of Docker's, which other functions check. `DOCKER-USER` belongs to the
/// administrator.
fn is_dockers(chain: &str) -> bool {
    chain.starts_with("DOCKER") && chain != "DOCKER-USER"
}

/// Returns the names that can be reached from the first ones.
fn reached<'a>(
    first: BTreeSet<&'a str>,
    jumps: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> BTreeSet<&'a str> {
    let mut all = first.clone();
    let mut rest: Vec<_> = first.into_iter().collect();
    while let Some(chain) = rest.pop() {
        for &next in jumps.get(chain).into_iter().flatten() {
            if all.insert(next) {
                rest.push(next);
            }
        }
    }
    all
}

fn range(text: &str) -> Option<Range> {
    let (address, len) = text.split_once('/').unwrap_or((text, "32"));
    Some((address.parse::<Ipv4Addr>().ok()?, len.parse().ok()?))
}

/// Returns a rule's words without its counter.
#[must_use]
pub fn uncounted<'a>(words: &[&'a str]) -> Vec<&'a str> {
    match words {
        ["counter", "packets", _, "bytes", _, rest @ ..] => rest.to_vec(),
        all => all.to_vec(),
    }
}

/// Whether a rule is dockerd's and does more than jump or return.
#[must_use]
pub fn is_dockers_rule(table: &str, chain: &str, rule: &str) -> bool {
    let words = rule.split(' ').collect::<Vec<_>>();
    let after = |flag: &str| {
        words
            .windows(2)
            .find(|pair| pair[0] == flag)
            .map(|pair| pair[1])
    };
    let Some(target) = after("-j") else {
        return false;
    };
    let not_by = |flag: &str| {
        let device = words
            .windows(3)
            .find(|three| three[0] == "!" && three[1] == flag);
        device.is_some_and(|three| {
            matches!(three[2], "docker0" | "docker_gwbridge") || three[2].starts_with("br-")
        })
    };
    // A container that reaches its own published port.
    let is_hairpin = || after("-s").is_some_and(|own| after("-d") == Some(own));
    match (table, chain) {
        ("nat", "POSTROUTING") => target == "MASQUERADE" && (not_by("-o") || is_hairpin()),
        ("raw", "PREROUTING") => target == "DROP" && not_by("-i"),
        // A network whose containers do not reach each other (icc).
        ("filter", "FORWARD") if target == "DROP" => {
            matches!(words[..], ["-i", from, "-o", to, "-j", "DROP"] if from == to)
        }
        _ => is_dockers(chain) && target != "RETURN" && !target.starts_with("DOCKER"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach() -> Reach {
        Reach {
            bridges: vec!["docker0".to_owned()],
            ranges: vec![(Ipv4Addr::new(172, 17, 0, 0), 16)],
        }
    }

    fn matching(tool: &'static str, text: &str) -> Vec<(Effect, String)> {
        let firewall = Firewall {
            rulesets: vec![Ruleset {
                tool,
                text: text.to_owned(),
            }],
            unread: Vec::new(),
        };
        let rules = foreign(&firewall)
            .into_iter()
            .filter(|rule| rule.may_match(&reach()));
        rules.map(|rule| (rule.effect, rule.text)).collect()
    }

    /// Docker jumps to that chain and leaves it to the administrator.
    #[test]
    fn docker_user_rules_are_the_administrators() {
        let text = "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n\
                    -A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DOCKER\n\
                    -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -j ACCEPT\n\
                    -A DOCKER-USER -d 172.17.0.0/16 -p tcp --dport 80 -j DROP\n\
                    -A DOCKER-USER -j RETURN\nCOMMIT\n";
        let rule =
            "iptables-nft -t filter -A DOCKER-USER -d 172.17.0.0/16 -p tcp --dport 80 -j DROP";
        assert_eq!(
            matching("iptables-nft", text),
            [(Effect::Drop, rule.to_owned())]
        );
    }

    #[test]
    fn rules_that_match_containers_are_found() {
        let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o tun0 -j MASQUERADE\nCOMMIT\n\
                    *mangle\n:PREROUTING ACCEPT [0:0]\n:mine - [0:0]\n-A PREROUTING -j mine\n\
                    -A mine -s 172.17.0.0/16 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n\
                    *filter\n:FORWARD DROP [0:0]\n-A FORWARD -d 172.17.0.2/32 -p tcp -j DROP\n\
                    -A FORWARD -i docker0 -j ACCEPT\n-A FORWARD -s 198.18.0.9/32 -j REJECT\nCOMMIT\n";
        let effects: Vec<_> = matching("iptables-legacy", text)
            .into_iter()
            .map(|rule| rule.0)
            .collect();
        assert_eq!(
            effects,
            [Effect::Snat, Effect::Mark, Effect::Drop, Effect::Drop]
        );
        let nft = "table inet guard {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n\
                   \t\tip daddr 172.17.0.2 tcp dport 80 counter packets 0 bytes 0 drop\n\t}\n}\n\
                   table netdev edge {\n\tchain in {\n\t\ttype filter hook ingress device \"up0\" priority 0;\n\
                   \t\tip saddr 198.18.1.0/24 drop\n\t}\n}\n";
        assert_eq!(matching("nft", nft).len(), 2);
    }

    #[test]
    fn rules_that_cannot_match_are_not() {
        let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.8.0.0/24 -o up0 -j MASQUERADE\nCOMMIT\n\
                    *filter\n:FORWARD ACCEPT [0:0]\n:unused - [0:0]\n-A INPUT -j DROP\n-A unused -j DROP\n\
                    -A FORWARD -i wg0 -o up0 -j DROP\n-A FORWARD -s 10.8.0.0/24 -d 10.9.0.0/24 -j DROP\nCOMMIT\n";
        assert_eq!(matching("iptables-nft", text), []);
        let nft = "table ip forwarder {\n\tchain untracked {\n\t\ttype filter hook prerouting priority raw;\n\
                   \t\tmeta mark & 0xc0000000 == 0xc0000000 notrack comment \"forwarder\"\n\t}\n}\n\
                   table inet forwarder {\n\tchain forward {\n\t\ttype filter hook forward priority raw;\n\
                   \t\tip saddr 172.17.0.0/16 drop comment \"forwarder\"\n\t}\n}\n\
                   table inet f {\n\tchain input {\n\t\ttype filter hook input priority 0; policy drop;\n\
                   \t\tip saddr 1.2.3.4 drop\n\t}\n}\n";
        assert_eq!(matching("nft", nft), []);
    }

    #[test]
    fn masquerade_of_nft_is_dockers_own() {
        let docker = "*nat\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n";
        let vpn = "table ip vpn {\n\tchain post {\n\t\ttype nat hook postrouting priority srcnat;\n\
                   \t\toifname \"wg0\" masquerade\n\t}\n}\n";
        let ruleset = |tool, text: &str| Ruleset {
            tool,
            text: text.to_owned(),
        };
        let matching = |rulesets| {
            let firewall = Firewall {
                rulesets,
                unread: Vec::new(),
            };
            let rules = foreign(&firewall).into_iter();
            rules.filter(|rule| rule.may_match(&reach())).count()
        };
        let (docker, vpn) = (ruleset("iptables-nft", docker), ruleset("nft", vpn));
        assert_eq!(matching(vec![vpn.clone()]), 1);
        assert_eq!(matching(vec![docker, vpn]), 0);
    }

    #[test]
    fn own_tables_are_told_from_others() {
        let firewall = |text: &str| Firewall {
            rulesets: vec![Ruleset {
                tool: "nft",
                text: text.to_owned(),
            }],
            unread: Vec::new(),
        };
        let rule = "\tchain forward {\n\t\tdrop comment \"forwarder\"\n\t}\n}\n";
        let own = firewall(&format!("table inet forwarder {{\n{rule}"));
        assert_eq!(ours(&own), Some([OurTable::Forwarded].into()));
        assert!(!is_used(&own));
        let emptied = firewall("table bridge forwarder {\n}\n");
        assert_eq!(ours(&emptied), Some(BTreeSet::new()));
        assert!(!is_used(&emptied));
        let theirs = firewall(&format!("table inet theirs {{\n{rule}"));
        assert_eq!(ours(&theirs), Some(BTreeSet::new()));
        assert!(is_used(&theirs));
        let unread = Firewall {
            unread: vec!["nft".to_owned()],
            ..own
        };
        assert_eq!(ours(&unread), None);
    }
}
