// SPDX-License-Identifier: MIT OR Apache-2.0
//! To what a rule applies: to a connection as a whole, or to packets one by one. Of iptables, what is
//! not known to apply to connections counts as applying to packets; of nft, what is known to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, Scope, reached};

/// The matches of iptables whose result is the same for all packets of a connection's direction
/// (iptables-extensions(8)).
const MATCHES: [&str; 22] = [
    "addrtype",
    "comment",
    "connmark",
    "conntrack",
    "devgroup",
    "geoip",
    "icmp",
    "iprange",
    "mac",
    "mark",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "rpfilter",
    "sctp",
    "set",
    "state",
    "tcp",
    "time",
    "udp",
];
/// The targets of iptables besides those with an [`Effect`] of their own that change only what begins a
/// connection.
const TARGETS: [&str; 1] = ["TCPMSS"];

/// The scope of a rule of iptables, given as words.
pub(super) fn of_iptables(words: &[&str], target: &str, effect: Effect) -> Scope {
    if begins_only(words, "--ctstate") || begins_only(words, "--state") || is_of_syn(words) {
        return Scope::Connection;
    }
    let mut matches = words.windows(2).filter(|pair| pair[0] == "-m");
    // The flags of a segment: those that the fast path carries have none but ACK and PSH.
    let by_flags = words.contains(&"--tcp-flags") || words.contains(&"--tcp-option");
    // A set may count.
    let counts = |word: &&&str| word.starts_with("--packets-") || word.starts_with("--bytes-");
    let by_flags = by_flags || words.iter().any(|word| counts(&word));
    let is_plain = matches.all(|pair| MATCHES.contains(&pair[1])) && !by_flags;
    let is_sample = matches!(target, "LOG" | "NFLOG") && words.contains(&"--limit");
    let acts_alike = match effect {
        Effect::Other => TARGETS.contains(&target),
        Effect::Dnat => target != "TPROXY",
        Effect::Drop => target != "TARPIT",
        _ => true,
    };
    // A fragment is a packet of its own.
    if is_sample || is_plain && acts_alike && !words.contains(&"-f") {
        Scope::Connection
    } else {
        Scope::Packet
    }
}

/// Whether a rule applies only to the first packets of a connection, or to none of a known one.
fn begins_only(words: &[&str], flag: &str) -> bool {
    let mut at = (1..words.len()).filter(|&at| words[at - 1] == flag);
    at.any(|at| {
        let is_known = |state| matches!(state, "ESTABLISHED" | "SNAT" | "DNAT");
        let is_negated = at > 1 && words[at - 2] == "!";
        let any_known = words[at].split(',').any(is_known);
        !is_negated && !any_known
    })
}

/// Whether a rule applies only to segments that begin a connection.
fn is_of_syn(words: &[&str]) -> bool {
    let negated = |at: usize| at > 0 && words[at - 1] == "!";
    let mut all = words.iter().enumerate();
    all.any(|(at, word)| match *word {
        "--syn" => !negated(at),
        "--tcp-flags" => {
            let set = words.get(at + 2);
            !negated(at) && set.is_some_and(|set| set.split(',').any(|flag| flag == "SYN"))
        }
        _ => false,
    })
}

/// The words of nft that concern packets one by one (nft(8)).
const BY_PACKET: [&str; 34] = [
    "ackseq",
    "avgpkt",
    "bytes",
    "checksum",
    "cpu",
    "doff",
    "dscp",
    "dup",
    "ecn",
    "expiration",
    "exthdr",
    "flags",
    "frag-off",
    "fwd",
    "hdrlength",
    "hoplimit",
    "id",
    "last",
    "length",
    "limit",
    "log",
    "numgen",
    "option",
    "options",
    "packets",
    "queue",
    "quota",
    "random",
    "sequence",
    "synproxy",
    "tproxy",
    "ttl",
    "urgptr",
    "window",
];

/// The scope of a rule of nft, given as words.
pub(super) fn of_nft(words: &[&str], effect: Effect) -> Scope {
    let new = words
        .windows(3)
        .any(|three| three == ["ct", "state", "new"] || three == ["ct", "state", "invalid"]);
    let syn = words.windows(3).any(|three| {
        three[..2] == ["tcp", "flags"] && (three[2] == "syn" || three[2].starts_with("syn/"))
    }) || words
        .join(" ")
        .contains("tcp flags & (fin | syn | rst | ack) == syn")
        || words.join(" ").contains("tcp flags & (syn | rst) == syn");
    if new || syn {
        return Scope::Connection;
    }
    let all = words.iter().enumerate();
    let mut by_packet = all.filter(|&(at, word)| {
        // The numbers of a counter.
        let is_count = |name: &str| matches!(name, "packets" | "bytes");
        let counts = |back: usize| at >= back && words[at - back] == "counter";
        BY_PACKET.contains(word) && !(is_count(word) && (counts(1) || counts(3)))
    });
    let is_sample = words.contains(&"log") && words.contains(&"limit");
    if is_sample && effect == Effect::Accept {
        return Scope::Connection;
    }
    let is_raw = |word: &&str| word.starts_with('@') && word.contains(',');
    if by_packet.next().is_some() || words.iter().any(is_raw) || effect == Effect::Other {
        Scope::Packet
    } else {
        Scope::Connection
    }
}

/// Returns the chains in which a rule may depend on single packets although it does not look so:
/// another rule of the chain does, or of a chain that leads there or to which the chain leads, and
/// which may have decided before. `rules` are all rules with their chains, and `jumps` the chains to
/// which a chain leads.
pub(super) fn chains_by_packet<'a>(
    rules: impl Iterator<Item = (&'a str, Scope)>,
    jumps: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> BTreeSet<&'a str> {
    let by_packet = rules.filter(|(_, scope)| *scope == Scope::Packet);
    let mut callers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (&chain, next) in jumps {
        for &next in next {
            callers.entry(next).or_default().insert(chain);
        }
    }
    let leading = reached(by_packet.map(|(chain, _)| chain).collect(), &callers);
    reached(leading, jumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iptables(rule: &str, effect: Effect) -> Scope {
        let words: Vec<_> = rule.split(' ').collect();
        let at = words.iter().position(|word| *word == "-j").unwrap();
        of_iptables(&words, words[at + 1], effect)
    }

    #[test]
    fn bans_apply_to_connections() {
        for rule in [
            "-s 203.0.113.9/32 -j DROP",
            "-s 203.0.113.9/32 -p tcp -m multiport --dports 80,443 -j REJECT --reject-with tcp-reset",
            "-m set --match-set blocked src -m comment --comment x -j DROP",
            "-m conntrack --ctstate INVALID -j DROP",
        ] {
            assert_eq!(iptables(rule, Effect::Drop), Scope::Connection, "{rule}");
        }
        let clamp = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu";
        assert_eq!(iptables(clamp, Effect::Other), Scope::Connection);
        let log = "-m conntrack --ctstate NEW -m limit --limit 3/min -j LOG";
        assert_eq!(iptables(log, Effect::Other), Scope::Connection);
    }

    #[test]
    fn measures_apply_to_packets() {
        for rule in [
            "-m limit --limit 100/sec -j DROP",
            "-m connbytes --connbytes 1000000: --connbytes-dir both --connbytes-mode bytes -j DROP",
            "-m string --string x --algo bm -j DROP",
            "-m statistic --mode random --probability 0.1 -j DROP",
            "-p tcp -m tcp --tcp-flags PSH PSH -j DROP",
            "-m set --match-set x src --bytes-gt 100 -j DROP",
            "-m conntrack ! --ctstate NEW -m length --length 1000: -j DROP",
        ] {
            assert_eq!(iptables(rule, Effect::Drop), Scope::Packet, "{rule}");
        }
        assert_eq!(iptables("-j LOG", Effect::Other), Scope::Packet);
        assert_eq!(
            iptables("-p tcp -j DSCP --set-dscp 0x10", Effect::Other),
            Scope::Packet
        );
        assert_eq!(
            iptables("-p tcp -j TPROXY --on-port 1", Effect::Dnat),
            Scope::Packet
        );
    }

    #[test]
    fn chain_counts_as_its_measures() {
        let jumps = BTreeMap::from([("FORWARD", ["mine"].into()), ("mine", ["deep"].into())]);
        let rules = [
            ("FORWARD", Scope::Connection),
            ("mine", Scope::Packet),
            ("deep", Scope::Connection),
        ];
        let found = chains_by_packet(rules.into_iter(), &jumps);
        assert_eq!(found, ["FORWARD", "deep", "mine"].into());
        let apart = chains_by_packet([("other", Scope::Packet)].into_iter(), &jumps);
        assert_eq!(apart, ["other"].into());
    }

    #[test]
    fn rules_of_nft_have_their_scope() {
        let nft = |rule: &str| of_nft(&rule.split(' ').collect::<Vec<_>>(), Effect::Drop);
        for rule in [
            "ip saddr 203.0.113.9 counter packets 0 bytes 0 drop",
            "ip saddr @banned tcp dport { 80, 443 } reject",
            "ct state new limit rate over 10/second drop",
            "ct state invalid drop",
        ] {
            assert_eq!(nft(rule), Scope::Connection, "{rule}");
        }
        for rule in [
            "ip saddr 203.0.113.9 limit rate over 10/second drop",
            "ct bytes > 1000000 drop",
            "ct avgpkt > 900 drop",
            "tcp window 0 drop",
            "meta length 0-100 drop",
            "ip ttl 1 drop",
            "log prefix \"x\" drop",
        ] {
            assert_eq!(nft(rule), Scope::Packet, "{rule}");
        }
    }
}
