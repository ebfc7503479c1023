// SPDX-License-Identifier: MIT OR Apache-2.0
//! The words of `forwarder adopt`: pure text.

use std::fmt::Write as _;

use crate::plain;
use crate::report::{Adoption, NetworkRow, PathMode, Problem};

/// Returns what is said where an agent runs already.
pub(super) fn running(pid: u32) -> String {
    let which = match pid {
        0 => "an agent runs here already, and is not ready yet".to_owned(),
        pid => format!("an agent runs here already (pid {pid})"),
    };
    format!("{which}: nothing to do\nnext: forwarder status\n")
}

/// Returns why the host cannot be adopted, with every remedy.
pub(super) fn problems(plan: &Adoption) -> String {
    let mut text = "cannot adopt this host; nothing was changed\n".to_owned();
    for Problem { what, todo } in &plan.problems {
        line(&mut text, &format!("  ✗ {what}"));
        line(&mut text, &format!("    {todo}"));
    }
    text
}

/// Returns what was found, in one line of progress.
pub(super) fn checked(plan: &Adoption) -> String {
    format!("checked   {}", host(plan))
}

/// Returns what would change, in the future tense.
pub(super) fn plan(plan: &Adoption) -> String {
    let mut text = String::new();
    line(&mut text, &host(plan));
    let words = Words {
        own: "would go to the fast path",
        follow: "would follow the kernel",
        off: "would stay with the kernel",
    };
    networks(&mut text, plan, &words);
    let Adoption {
        hooks,
        devices,
        kernel_connections: kept,
        ..
    } = plan;
    line(
        &mut text,
        &format!(
            "{} would be attached to {}",
            number(*hooks, "program"),
            number(*devices, "device")
        ),
    );
    line(
        &mut text,
        &format!(
            "the kernel would keep {} until they end",
            connections(*kept)
        ),
    );
    if !plan.chains.is_empty() {
        let chains = plan.chains.join(", ");
        line(
            &mut text,
            &format!("one rule of ours would come first in {chains}"),
        );
    }
    text += "dockerd would not be restarted, and nobody's rule would be changed\n\
             nothing was changed. next: forwarder adopt; the way back is forwarder release\n";
    text
}

/// Returns what has changed.
pub(super) fn adopted(adoption: &Adoption) -> String {
    let mut text = String::new();
    let words = Words {
        own: "is on the fast path",
        follow: "follows the kernel",
        off: "stays with the kernel",
    };
    networks(&mut text, adoption, &words);
    let Adoption {
        hooks,
        devices,
        kernel_connections: kept,
        ..
    } = adoption;
    line(
        &mut text,
        &format!(
            "{} attached to {}; the kernel keeps {} until they end",
            number(*hooks, "program"),
            number(*devices, "device"),
            connections(*kept)
        ),
    );
    text += "dockerd was not restarted, and nobody's rule was changed\n\
             next: forwarder status; the way back is forwarder release\n";
    text
}

/// What is said of a network in each mode.
struct Words {
    own: &'static str,
    follow: &'static str,
    off: &'static str,
}

/// Adds a line for each network. The rule that decides comes last, as it is written.
fn networks(text: &mut String, adoption: &Adoption, words: &Words) {
    for network in &adoption.networks {
        let NetworkRow {
            name, mode, rule, ..
        } = network;
        let Words { own, follow, off } = words;
        let what = match (mode, rule) {
            (PathMode::Own, _) => format!("network {name} {own}"),
            (PathMode::Follow, rule) => {
                format!(
                    "network {name} {follow}: {}",
                    rule.as_deref().unwrap_or_default()
                )
            }
            (PathMode::Off, Some(rule)) => format!("network {name} {off}: {rule}"),
            (PathMode::Off, None) => {
                let bridge = &network.bridge;
                format!("network {name} {off}: there is no device {bridge}")
            }
        };
        line(text, &what);
    }
}

fn host(plan: &Adoption) -> String {
    let docker = plan.docker.as_deref().unwrap_or("away");
    format!(
        "Docker {docker}: {}, {}, {}",
        number(plan.networks.len(), "bridge network"),
        number(plan.containers, "running container"),
        number(plan.published_ports, "published port")
    )
}

fn connections(count: usize) -> String {
    number(count, "connection") + " that it tracks for containers"
}

fn number(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Adds one line, whatever the names in it contain.
fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", plain::line(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, mode: PathMode, rule: Option<&str>) -> NetworkRow {
        NetworkRow {
            name: name.into(),
            id: "0123456789ab".into(),
            bridge: format!("br-{name}"),
            subnets: Vec::new(),
            gateway: None,
            internal: false,
            icc: true,
            masquerade: true,
            endpoints: 1,
            programmed: mode == PathMode::Own,
            mode,
            rule: rule.map(str::to_owned),
        }
    }

    fn adoption() -> Adoption {
        Adoption {
            would_change: true,
            docker: Some("20.10.24".into()),
            networks: vec![
                network("app", PathMode::Own, None),
                network(
                    "web",
                    PathMode::Follow,
                    Some("filter DOCKER-USER -s 203.0.113.9/32 -j DROP"),
                ),
                network("db", PathMode::Off, Some("filter FORWARD -o br-db -j LOG")),
            ],
            containers: 2,
            published_ports: 1,
            hooks: 14,
            devices: 6,
            kernel_connections: 212,
            chains: vec!["iptables-nft filter FORWARD".into()],
            ..Adoption::default()
        }
    }

    #[test]
    fn plan_is_in_the_future_tense() {
        let expected = "\
            Docker 20.10.24: 3 bridge networks, 2 running containers, 1 published port\n\
            network app would go to the fast path\n\
            network web would follow the kernel: filter DOCKER-USER -s 203.0.113.9/32 -j DROP\n\
            network db would stay with the kernel: filter FORWARD -o br-db -j LOG\n\
            14 programs would be attached to 6 devices\n\
            the kernel would keep 212 connections that it tracks for containers until they end\n\
            one rule of ours would come first in iptables-nft filter FORWARD\n\
            dockerd would not be restarted, and nobody's rule would be changed\n\
            nothing was changed. next: forwarder adopt; the way back is forwarder release\n";
        assert_eq!(plan(&adoption()), expected);
        assert!(!adoption().is_complete());
    }

    #[test]
    fn summary_says_what_is_left_and_the_way_back() {
        let expected = "\
            network app is on the fast path\n\
            network web follows the kernel: filter DOCKER-USER -s 203.0.113.9/32 -j DROP\n\
            network db stays with the kernel: filter FORWARD -o br-db -j LOG\n\
            14 programs attached to 6 devices; the kernel keeps 212 connections that it tracks for \
            containers until they end\n\
            dockerd was not restarted, and nobody's rule was changed\n\
            next: forwarder status; the way back is forwarder release\n";
        assert_eq!(adopted(&adoption()), expected);
    }

    /// All problems are shown, each with its remedy, and none can forge a line.
    #[test]
    fn problems_come_with_their_remedies() {
        let problem = |what: &str, todo: &str| Problem {
            what: what.into(),
            todo: todo.into(),
        };
        let plan = Adoption {
            problems: vec![problem("no\nroot", "run as root"), problem("old", "update")],
            ..Adoption::default()
        };
        let expected = "cannot adopt this host; nothing was changed\n  ✗ no\\nroot\n    \
                        run as root\n  ✗ old\n    update\n";
        assert_eq!(problems(&plan), expected);
    }

    #[test]
    fn running_agent_is_named() {
        assert!(running(7).starts_with("an agent runs here already (pid 7): nothing to do\n"));
        assert!(running(0).contains("is not ready yet"));
    }
}
