// SPDX-License-Identifier: MIT OR Apache-2.0
//! The effect of netfilter rules on containers' traffic, from `iptables-save` and `nft list
//! ruleset`, judged without changing them.
//!
//! Where the forwarder replaces Docker's rules, none may apply after the fast path: they would
//! translate or drop packets a second time, and a forward policy of drop would lose the packets that
//! the fast path passes to the kernel. Where Docker's rules are kept, the agent's own rules let those
//! packets through.

use forwarder_state::others::netfilter::{Firewall, Ruleset, is_shown_by_iptables};
use forwarder_state::others::summary::{Summary, has_dockers, summary};

use super::Finding;
use crate::config::Mode;

/// How to stop dockerd from creating rules.
const DISABLE: &str = "keep them, with --mode adopt; or set \"iptables\": false and \"ip6tables\": \
                       false in /etc/docker/daemon.json and restart this host, because the rules \
                       outlive dockerd";

/// Whether Docker's own rules stay where they are.
pub(super) fn keeps_rules(firewall: &Firewall, mode: Mode) -> bool {
    match mode {
        Mode::Adopt => true,
        Mode::Replace => false,
        Mode::Auto => has_dockers(firewall),
    }
}

/// Judges the rules.
pub(super) fn judge(firewall: &Firewall, mode: Mode) -> Vec<Finding> {
    let mut findings = Vec::new();
    if keeps_rules(firewall, mode) {
        findings.push(Finding::ok(
            "Docker's own rules are kept: the forwarder comes on top of them",
        ));
        return findings;
    }
    // The tables that iptables shows of nft need not be read again from nft. iptables does not show
    // tables that nft has changed in a way that iptables does not understand.
    let iptables_nft = is_shown_by_iptables(firewall);
    for Ruleset { tool, text } in &firewall.rulesets {
        findings.extend(findings_of(tool, &summary(tool, text, iptables_nft)));
    }
    if !firewall.unread.is_empty() {
        findings.push(Finding::warn(
            format!(
                "cannot read the netfilter rules ({})",
                firewall.unread.join(", ")
            ),
            "run as root",
        ));
    } else if firewall.rulesets.is_empty() {
        findings.push(Finding::warn(
            "cannot check netfilter rules: neither iptables nor nft is installed",
            "install one of them, or make sure that dockerd runs with \"iptables\": false",
        ));
    }
    findings
}

fn findings_of(tool: &str, summary: &Summary) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(rule) = &summary.docker {
        findings.push(Finding::fatal(
            format!("dockerd's own rules are in place ({tool}: {rule})"),
            DISABLE,
        ));
    } else if summary.chains {
        findings.push(Finding::warn(
            format!("dockerd's chains remain, without rules that have an effect ({tool})"),
            "they go when this host restarts",
        ));
    }
    findings
}
