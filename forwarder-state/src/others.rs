// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other software's configuration that the fast path does not apply: queues and filters of devices,
//! IPsec policies, netfilter rules, routing by marks. Pure: `watch::others` reads it.

pub mod forward_chains;
pub mod netfilter;
mod netlink;
pub mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub use forward_chains::ForwardChain;
use netfilter::Effect;
pub use netfilter::{Firewall, OurTable, Rule, Ruleset};
pub use netlink::{Qdisc, filter, policy, qdisc, routing_rule};

/// The configuration of all other software.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Devices whose traffic is shaped or filtered, by index.
    pub shaped: BTreeMap<u32, Shaping>,
    /// IPsec policies for forwarded packets.
    pub policies: Vec<IpsecPolicy>,
    /// Routing rules that match a mark.
    pub routing: Vec<String>,
    /// Netfilter rules that apply to forwarded packets.
    pub rules: Vec<Rule>,
    /// Chains that drop every packet that no rule has accepted before, and the command that ends
    /// this.
    pub drops: Vec<(String, String)>,
    /// Whether other software has any netfilter rules: only then may connections be tracked.
    pub tracks: bool,
    /// Whether Docker's own rules are in place.
    pub dockers: bool,
    /// The chains that decide what is forwarded.
    pub forward_chains: Vec<ForwardChain>,
    /// Those of our own tables that are in place; none if the rules could not be read.
    pub ours: Option<BTreeSet<OurTable>>,
    /// How often our own tables had been written before the rules were read.
    pub writes: u64,
}

/// What other software does to a device's traffic, in words; none if it does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shaping {
    /// What it does to packets that arrive through the device.
    pub inward: Option<String>,
    /// What it does to packets that leave through the device.
    pub outward: Option<String>,
}

/// An IPv4 range: address and prefix length.
pub type Range = (Ipv4Addr, u8);

/// Whether two ranges have an address in common.
#[must_use]
pub fn overlap(a: Range, b: Range) -> bool {
    let shorter = u32::from(a.1.min(b.1).min(32));
    let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
    (a.0.to_bits() ^ b.0.to_bits()) & mask == 0
}

/// The direction of an IPsec policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that leave: the host's own and forwarded ones.
    Out,
    /// Packets that are about to be forwarded.
    Forward,
}

/// An IPsec policy for IPv4 (`ip xfrm policy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// Its direction.
    pub direction: Direction,
    /// The sources that it applies to.
    pub src: Range,
    /// The destinations that it applies to.
    pub dst: Range,
    /// Whether it blocks packets or requires a transformation. Other policies accept packets as
    /// they are.
    pub restricts: bool,
}

impl IpsecPolicy {
    /// Whether it may apply to a packet between one of these ranges and any address.
    #[must_use]
    pub fn may_match(&self, containers: &[Range]) -> bool {
        let of_containers = |range| containers.iter().any(|&own| overlap(own, range));
        of_containers(self.src) || of_containers(self.dst)
    }

    /// Formats it in the words of `ip xfrm policy`.
    #[must_use]
    pub fn words(&self) -> String {
        let dir = match self.direction {
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        let ((src, s), (dst, d)) = (self.src, self.dst);
        format!("src {src}/{s} dst {dst}/{d} dir {dir}")
    }
}

/// The bridges and ranges of containers: a rule that matches them can match containers' traffic.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Names of the containers' bridges.
    pub bridges: Vec<String>,
    /// The containers' ranges.
    pub ranges: Vec<Range>,
}

impl Others {
    /// Returns messages for a person, one line each: what it is, what it means for containers, what
    /// to do.
    #[must_use]
    pub fn lines(&self, reach: &Reach, name: impl Fn(u32) -> String) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for (&index, Shaping { inward, outward }) in &self.shaped {
            let device = name(index);
            for (what, way) in [(inward, "arrive through"), (outward, "leave through")] {
                lines.extend(what.as_ref().map(|what| {
                    (
                        format!(
                            "other software has {what} on {device}: packets that {way} it take \
                             the kernel's path"
                        ),
                        "nothing has to be done; without it this traffic would take the fast path"
                            .to_owned(),
                    )
                }));
            }
        }
        for policy in self.policies.iter().filter(|policy| policy.restricts) {
            lines.push((
                format!(
                    "there is an IPsec policy ({}): containers' traffic takes the kernel's path",
                    policy.words()
                ),
                "nothing has to be done; translated packets that a policy must protect are dropped"
                    .to_owned(),
            ));
        }
        // Where Docker's rules are kept, our rule comes first in each such chain.
        for (what, todo) in self.drops.iter().filter(|_| !self.dockers) {
            lines.push((what.clone(), todo.clone()));
        }
        // A rule that drops everything is reported once, with the command that removes it.
        let is_told = |rule: &netfilter::Rule| {
            let removal = rule.text.replacen(" -A ", " -D ", 1);
            self.drops.iter().any(|(_, todo)| todo.contains(&removal))
        };
        let rules: Vec<_> = self
            .rules
            .iter()
            .filter(|rule| rule.effect != Effect::Accept)
            .filter(|rule| rule.may_match(reach) && !is_told(rule))
            .collect();
        lines.extend(
            rules
                .iter()
                .map(|rule| (rule.what(), rule.instead().to_owned())),
        );
        if rules.iter().any(|rule| rule.effect == Effect::Mark) {
            lines.extend(self.routing.iter().map(|rule| {
                (
                    format!(
                        "the routing rule {rule} does not apply to containers' traffic on the \
                        fast path"
                    ),
                    "route by addresses or devices instead (ip rule from, iif)".to_owned(),
                )
            }));
        }
        let ours = self.ours.as_ref();
        if self.tracks && ours.is_some_and(|ours| !ours.contains(&OurTable::Untracked)) {
            lines.push((
                "the kernel's connection tracking may translate packets that the fast path passes \
                 to the kernel"
                    .to_owned(),
                "install nftables or iptables: the agent adds one rule that prevents it".to_owned(),
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_by_the_shorter_prefix() {
        let range = |a: [u8; 4], len| (Ipv4Addr::from(a), len);
        assert!(overlap(range([0; 4], 0), range([172, 17, 0, 2], 32)));
        assert!(overlap(
            range([172, 17, 0, 0], 16),
            range([172, 17, 9, 9], 32)
        ));
        assert!(!overlap(
            range([172, 17, 0, 0], 16),
            range([172, 18, 0, 0], 16)
        ));
    }
}
