// SPDX-License-Identifier: MIT OR Apache-2.0
//! The text of `forwarder status`: a verdict and a summary of at most twelve lines, and the details.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use forwarder_common::abi::name;
use forwarder_common::reason::{Path, Reason};

use super::super::output::{span, table};
use crate::plain;
use crate::report::{LeftNetwork, PathMode, Status, Uplink};

/// The largest number of lines of a summary.
const LINES: usize = 12;
/// The number of reasons that a line names.
const REASONS: usize = 4;

/// Returns the verdict and a summary. Without `all`, it has at most [`LINES`] lines.
pub(super) fn summary(status: &Status, kernel: &str, all: bool) -> String {
    let counted = Counted::of(status);
    let mut lines = vec![
        verdict(status, kernel),
        fast_path(&counted),
        counts(status),
        with_reasons(&counted, "handed on", Path::Kernel),
        with_reasons(&counted, "dropped", Path::Drop),
    ];
    lines.extend(status.uplinks.iter().map(uplink));
    let mut notes: Vec<_> = notes(status).collect();
    let room = LINES - 1;
    if !all && lines.len() + notes.len() > room {
        let hidden = notes.split_off(room.saturating_sub(lines.len()).min(notes.len()));
        notes.push(format!("  ! {} more: forwarder status -v", hidden.len()));
    }
    lines.extend(notes);
    let lines = lines.iter().map(|line| format!("{}\n", plain::line(line)));
    lines.collect()
}

/// Returns the first line: whether it runs, which versions, and what becomes of Docker's rules.
fn verdict(status: &Status, kernel: &str) -> String {
    let mut parts = vec![match &status.agent {
        Some(agent) => {
            let up = span(agent.uptime_s);
            format!("● running  {}, pid {}, up {up}", agent.version, agent.pid)
        }
        None => "○ not running; the programs continue without an agent".to_owned(),
    }];
    parts.extend(status.docker.as_ref().map(|docker| {
        let version = docker.version.as_deref().unwrap_or("away");
        format!("Docker {version}")
    }));
    parts.push(format!("kernel {kernel}"));
    let mode = match status.mode.as_str() {
        "adopt" => "adopted (Docker's rules kept)",
        "replace" => "replacing Docker's rules",
        "handover" => "connections change hands, so none begins on the fast path",
        _ => "not armed: everything passes until the first start is complete",
    };
    parts.push(mode.to_owned());
    parts.join("; ")
}

/// What the lines about packets count: all of them, or those of a while as a rate.
struct Counted<'a> {
    packets: &'a BTreeMap<String, u64>,
    reasons: &'a BTreeMap<String, u64>,
    /// The length of the sample, in seconds.
    seconds: Option<f64>,
}

impl<'a> Counted<'a> {
    fn of(status: &'a Status) -> Self {
        match &status.sample {
            Some(sample) => Self {
                packets: &sample.packets,
                reasons: &sample.reasons,
                seconds: Some(sample.seconds),
            },
            None => Self {
                packets: &status.packets,
                reasons: &status.reasons,
                seconds: None,
            },
        }
    }

    /// Formats a number of packets.
    fn number(&self, count: u64) -> String {
        match self.seconds {
            None => count.to_string(),
            Some(seconds) => {
                let rate = count as f64 / seconds;
                // A rate that is not zero does not look like zero.
                let digits = usize::from(rate < 10.0 && count > 0);
                format!("{rate:.digits$}/s")
            }
        }
    }
}

/// Returns the share of packets that the kernel's stack did not see.
fn fast_path(counted: &Counted<'_>) -> String {
    let count = |path: Path| counted.packets.get(path.label()).copied().unwrap_or(0);
    // A packet at a further hook has been counted before.
    let total = count(Path::Fast) + count(Path::Kernel) + count(Path::Drop);
    let share = percent(count(Path::Fast), total);
    match counted.seconds {
        None => format!("  fast path   {share} of {total} packets since the first start"),
        Some(_) if total == 0 => "  fast path   no packets in this sample".to_owned(),
        Some(_) => {
            let rate = counted.number(total);
            let rate = rate.trim_end_matches("/s");
            format!("  fast path   {share} of {rate} packets/s")
        }
    }
}

fn counts(status: &Status) -> String {
    let mut parts = Vec::new();
    if let Some(docker) = &status.docker {
        parts.push(format!("networks {}", docker.networks));
        parts.push(format!("containers {}", docker.running));
    }
    let fill = |name: &str| status.maps.get(name);
    parts.extend(fill(name::PUBLISHED).map(|map| format!("ports {}", map.fill)));
    parts.extend(fill(name::FLOWS).map(|map| {
        let share = percent(map.fill.into(), map.size.into());
        format!("flows {} of {} ({share})", map.fill, map.size)
    }));
    format!("  {}", parts.join("  "))
}

/// Returns the number of packets on a path, and the most frequent reasons.
fn with_reasons(counted: &Counted<'_>, what: &str, path: Path) -> String {
    let mut reasons: Vec<_> = Reason::ALL
        .into_iter()
        .filter(|reason| reason.path() == path)
        .filter_map(|reason| Some((*counted.reasons.get(reason.label())?, reason.label())))
        .collect();
    reasons.sort_by(|a, b| b.cmp(a));
    let total = reasons.iter().map(|(count, _)| count).sum();
    let more = if reasons.len() > REASONS { ", …" } else { "" };
    let first = reasons.iter().take(REASONS);
    let first: Vec<_> = first
        .map(|&(count, label)| format!("{label} {}", counted.number(count)))
        .collect();
    let colon = if first.is_empty() { "" } else { ": " };
    let total = counted.number(total);
    format!("  {what:11} {total}{colon}{}{more}", first.join(", "))
}

fn uplink(uplink: &Uplink) -> String {
    let Uplink { name, xdp, why } = uplink;
    let xdp = format!("{xdp:?}").to_lowercase();
    format!("  uplink      {name}: xdp {xdp} ({why})")
}

/// Returns what an operator has to know: failures first.
fn notes(status: &Status) -> impl Iterator<Item = String> {
    let failures = status.failures.iter();
    let failures = failures.map(|failure| format!("  ! failing, tried again: {failure}"));
    let others = status.others.iter().map(|line| format!("  ! {line}"));
    let left = status.left.iter().map(|network| {
        let LeftNetwork {
            network,
            mode,
            rule,
        } = network;
        let what = match mode {
            PathMode::Follow => "follows the kernel",
            PathMode::Own | PathMode::Off => "is left to the kernel",
        };
        format!("  · network {network} {what}: {rule}")
    });
    failures.chain(others).chain(left)
}

fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    format!("{share:.1} %")
}

/// Returns the attached programs, the reasons and the maps.
pub(super) fn details(status: &Status) -> String {
    let mut hooks: Vec<_> = status
        .hooks
        .iter()
        .map(|(device, hooks)| vec![device.clone(), hooks.join(" ")])
        .collect();
    hooks.push(vec![
        "(sockets)".to_owned(),
        match status.sockets.as_slice() {
            [] => "none: the host's own processes do not reach published ports at its addresses"
                .to_owned(),
            programs => programs.join(" "),
        },
    ]);
    let text = |label: &str| {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.label() == label)
            .map_or("", Reason::text)
    };
    let reasons = status
        .reasons
        .iter()
        .map(|(label, count)| vec![label.clone(), count.to_string(), text(label).to_owned()]);
    let maps = status
        .maps
        .iter()
        .map(|(name, map)| vec![name.clone(), map.fill.to_string(), map.size.to_string()]);
    let mut all = String::new();
    for section in [
        table(&["DEVICE", "PROGRAMS"], hooks),
        table(&["REASON", "PACKETS", "MEANING"], reasons),
        table(&["MAP", "ENTRIES", "SIZE"], maps),
    ] {
        // Writing to a string cannot fail.
        let _ = write!(all, "\n{section}");
    }
    all
}

#[cfg(test)]
mod tests {
    use forwarder_common::abi::armed;

    use super::*;
    use crate::datapath::MapFill;
    use crate::report::{self, Agent, AgentStatus, Docker};

    fn status(is_running: bool, others: usize) -> Status {
        let agent = AgentStatus {
            agent: Agent {
                pid: 7,
                version: "0.1.0".into(),
                uptime_s: 61,
            },
            docker: Docker {
                version: Some("20.10.24".into()),
                networks: 3,
                running: 14,
            },
            uplinks: Vec::new(),
            left: Vec::new(),
            others: (0..others).map(|n| format!("rule {n}")).collect(),
            hooks: report::Hooks::new(),
            failures: vec!["it fails".into()],
        };
        let counters = [
            (Reason::Forwarded, 90),
            (Reason::ToHost, 9),
            (Reason::NotIp, 1),
        ];
        let maps = [(name::FLOWS, 200, 10), (name::PUBLISHED, 4096, 9)];
        let maps = maps.map(|(name, size, fill)| MapFill { name, size, fill });
        let agent = is_running.then_some(agent);
        report::status(
            agent,
            report::Hooks::new(),
            [],
            &counters,
            &maps,
            armed::ADOPT,
        )
    }

    #[test]
    fn status_begins_with_a_verdict() {
        let expected = "\
            ● running  0.1.0, pid 7, up 1m1s; Docker 20.10.24; kernel 6.18.0; adopted (Docker's \
            rules kept)\n  \
              fast path   90.0 % of 100 packets since the first start\n  \
              networks 3  containers 14  ports 9  flows 10 of 200 (5.0 %)\n  \
              handed on   10: to-host 9, not-ip 1\n  \
              dropped     0\n  \
              ! failing, tried again: it fails\n";
        assert_eq!(summary(&status(true, 0), "6.18.0", false), expected);
        let without = summary(&status(false, 0), "6.18.0", false);
        let first = "○ not running; the programs continue without an agent; kernel 6.18.0; adopted";
        assert!(without.starts_with(first), "{without}");
    }

    /// A sample shows rates in place of totals.
    #[test]
    fn sample_shows_rates() {
        let before = [(Reason::Forwarded, 90), (Reason::ToHost, 9)];
        let after = [
            (Reason::Forwarded, 2070),
            (Reason::ToHost, 10),
            (Reason::NotIp, 19),
        ];
        let mut shown = status(true, 0);
        shown.sample = Some(report::sample(&before, &after, 2.0));
        let text = summary(&shown, "6.18.0", false);
        let expected = "  fast path   99.0 % of 1000 packets/s\n";
        assert!(text.contains(expected), "{text}");
        let expected = "  handed on   10/s: not-ip 9.5/s, to-host 0.5/s\n  dropped     0/s\n";
        assert!(text.contains(expected), "{text}");
        shown.sample = Some(report::sample(&after, &after, 1.0));
        let text = summary(&shown, "6.18.0", false);
        let expected = "  fast path   no packets in this sample\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("  handed on   0/s\n"), "{text}");
    }

    #[test]
    fn summary_has_twelve_lines_at_most() {
        let lines = |others, all| {
            summary(&status(true, others), "6.18.0", all)
                .lines()
                .count()
        };
        assert_eq!(
            [0, 5, 6, 40].map(|others| lines(others, false)),
            [6, 11, 12, 12]
        );
        assert_eq!(lines(40, true), 46);
        let last = summary(&status(true, 40), "6.18.0", false);
        assert!(
            last.ends_with("  ! 35 more: forwarder status -v\n"),
            "{last}"
        );
    }

    #[test]
    fn details_explain_each_reason() {
        let text = details(&status(true, 0));
        assert!(
            text.contains("REASON") && text.contains(Reason::ToHost.text()),
            "{text}"
        );
        assert!(
            text.contains("FLOWS") && text.contains("(sockets)"),
            "{text}"
        );
    }
}
