// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder drops`: counts dropped packets by reason, and shows them as it happens. It reads the
//! pins, so it works without an agent.

use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use forwarder_common::reason::{Path, Reason};
use serde::Serialize;
use serde_json::json;

use super::names::Names;
use super::output::{self, Format, Row, json_line, somebody_reads, wall, write};
use crate::config::Config;
use crate::datapath::{self, Drops};
use crate::plain;
use crate::report::{DropRow, dropped};

/// How often the ring is read.
const LOOK: Duration = Duration::from_millis(100);
/// How often the programs are told that somebody listens, and what is not shown is counted.
const RENEWAL: Duration = Duration::from_secs(1);
/// How many packets are read in one look: as many as the ring has room for.
const BATCH: usize = 128;

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Show dropped packets as it happens, until Ctrl-C: each one, or a sample of very many
    #[arg(short, long, visible_alias = "follow")]
    watch: bool,
    /// Only packets of a container, from it or to it; asks the agent
    #[arg(long, value_name = "NAME", requires = "watch")]
    container: Option<String>,
    /// Only packets with this reason
    #[arg(long, value_name = "REASON", value_parser = reason_named)]
    reason: Option<String>,
    #[command(flatten)]
    output: output::Args,
}

/// A reason, and how many packets were dropped for it since the first start.
#[derive(Serialize)]
struct ReasonRow {
    reason: &'static str,
    packets: u64,
    meaning: &'static str,
}

impl Row for ReasonRow {
    const COLUMNS: &'static [&'static str] = &["REASON", "PACKETS", "MEANING"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.reason.to_owned(),
            self.packets.to_string(),
            self.meaning.to_owned(),
        ]
    }
}

/// Returns the name of a reason for which packets are dropped.
fn reason_named(name: &str) -> Result<String> {
    let mut drops = Reason::ALL.into_iter().filter(|reason| is_drop(*reason));
    if drops.any(|reason| reason.label() == name) {
        return Ok(name.to_owned());
    }
    bail!("no packet is dropped for a reason of this name: `forwarder drops -o json` lists them")
}

fn is_drop(reason: Reason) -> bool {
    reason.path() == Path::Drop
}

pub(super) fn drops(config: &Config, args: &Args) -> Result<()> {
    if args.watch {
        return watch(config, args);
    }
    let is_table = args.output.output == Format::Table;
    let counts = super::view(config)?.reasons()?.into_iter();
    let is_wanted = |reason: Reason, packets: u64| match &args.reason {
        Some(wanted) => reason.label() == wanted,
        None => packets > 0 || !is_table,
    };
    let mut rows: Vec<_> = counts
        .filter(|&(reason, packets)| is_drop(reason) && is_wanted(reason, packets))
        .map(|(reason, packets)| ReasonRow {
            reason: reason.label(),
            packets,
            meaning: reason.text(),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.packets));
    output::rows(args.output.output, &rows)
}

fn watch(config: &Config, args: &Args) -> Result<()> {
    // The view has the best error message if pins are missing.
    super::view(config)?;
    let mut naming = Naming::begin(config);
    if let Some(container) = &args.container {
        ensure!(
            naming.names.know(container),
            "no container on a bridge network has the name {container}, or no agent answers: see \
             `forwarder endpoints`"
        );
    }
    let mut drops = Drops::open(&config.bpffs_dir)?;
    let mut account = Account::default();
    let mut renewed = Instant::now();
    let mut is_heard = write(&head(args.output.output))?;
    while is_heard && somebody_reads() {
        sleep(LOOK);
        naming.renew(config);
        let (now, wall) = (datapath::now(), wall());
        let mut lines = String::new();
        for packet in std::iter::from_fn(|| drops.read()).take(BATCH) {
            account.shown += 1;
            let row = dropped(&packet, now, wall);
            if is_wanted(args, &naming.names, &row) {
                lines.push_str(&show(args.output.output, &naming.names, &row)?);
            }
        }
        if renewed.elapsed() >= RENEWAL {
            drops.renew()?;
            renewed = Instant::now();
            lines.push_str(&missed(args, account.missed(drops.dropped()?)));
        }
        is_heard = lines.is_empty() || write(&lines)?;
    }
    Ok(())
}

/// Containers' names, asked for again and again. The agent may be slow to answer, so the watcher
/// does not wait for it.
struct Naming {
    names: Names,
    answer: Option<JoinHandle<Names>>,
    asked: Instant,
}

impl Naming {
    fn begin(config: &Config) -> Self {
        Self {
            names: Names::ask(config),
            answer: None,
            asked: Instant::now(),
        }
    }

    /// Takes an answer that has come, and asks again if the last time was long ago.
    fn renew(&mut self, config: &Config) {
        if let Some(answer) = self.answer.take_if(|answer| answer.is_finished()) {
            // Without an agent, who was known stays known.
            let newer = answer.join().unwrap_or_default();
            if newer != Names::default() {
                self.names.renew(newer);
            }
        }
        if self.answer.is_none() && self.asked.elapsed() >= 2 * RENEWAL {
            let config = config.clone();
            self.answer = Some(spawn(move || Names::ask(&config)));
            self.asked = Instant::now();
        }
    }
}

/// How many of the dropped packets were read.
#[derive(Default)]
struct Account {
    shown: u64,
    missed: u64,
}

impl Account {
    /// Returns how many more were missed, of those that were dropped since the beginning. One that
    /// was counted a moment ago may still be read.
    fn missed(&mut self, dropped: u64) -> u64 {
        let more = dropped.saturating_sub(self.shown + self.missed);
        self.missed += more;
        more
    }
}

fn is_wanted(args: &Args, names: &Names, row: &DropRow) -> bool {
    let is_of = |container: &String| {
        let ends = [row.src, row.dst].into_iter().flatten();
        let mut known = ends.filter_map(|address| names.with_address(address));
        known.any(|name| name == container)
            || names.behind(&row.device) == Some(container)
            || publisher(names, row) == Some(container)
    };
    args.reason
        .as_ref()
        .is_none_or(|wanted| row.reason == *wanted)
        && args.container.as_ref().is_none_or(is_of)
}

/// Returns the container that publishes the port for which a packet is. Before translation, the
/// packet's destination is the host.
fn publisher<'a>(names: &'a Names, row: &DropRow) -> Option<&'a str> {
    let to_host = row.dst.is_some_and(|to| names.with_address(to).is_none());
    let from_outside = row
        .src
        .is_some_and(|from| names.with_address(from).is_none());
    if !to_host || !from_outside {
        return None;
    }
    names.publishing(row.proto.as_deref()?, row.dst?, row.dport?)
}

fn head(format: Format) -> String {
    match format {
        Format::Json => format!(
            "{}\n",
            json!({ "event": "watching", "time": wall().as_secs() })
        ),
        Format::Table => line(&["TIME", "REASON", "AT", "PROTO", "BYTES", "PACKET"]),
    }
}

/// Returns a line about packets that were dropped without being shown: the ring had no room. Of a
/// part of the packets that somebody wants to see, it is not known how many they are.
fn missed(args: &Args, packets: u64) -> String {
    if packets == 0 || args.reason.is_some() || args.container.is_some() {
        return String::new();
    }
    match args.output.output {
        Format::Json => format!("{}\n", json!({ "event": "missed", "packets": packets })),
        Format::Table => format!("{packets} more\n"),
    }
}

fn show(format: Format, names: &Names, row: &DropRow) -> Result<String> {
    if format == Format::Json {
        return json_line(row);
    }
    let end = |address: Option<_>, port| {
        address.map_or_else(
            || "?".to_owned(),
            |address| names.end_of_packet(address, port),
        )
    };
    let packet = match (row.src, row.dst) {
        (None, None) => String::new(),
        (src, dst) => format!("{} > {}", end(src, row.sport), end(dst, row.dport)),
    };
    let publisher = publisher(names, row).map(|container| format!(" ({container})"));
    let vlan = row.vlan.map(|vlan| format!("vlan {vlan} "));
    let packet = vlan.unwrap_or_default() + &packet + &publisher.unwrap_or_default();
    Ok(line(&[
        &clock(row.time),
        &row.reason,
        names.behind(&row.device).unwrap_or(&row.device),
        row.proto.as_deref().unwrap_or("?"),
        &row.bytes.to_string(),
        &packet,
    ]))
}

/// Formats the time of the day (UTC) of seconds since 1970.
fn clock(time: f64) -> String {
    let second = time as u64 % 86_400;
    let milli = (time.fract() * 1000.0) as u64;
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{hour:02}:{minute:02}:{:02}.{milli:03}", second % 60)
}

/// Formats a line of columns. Later lines are unknown, so each column has its usual width.
fn line(cells: &[&str; 6]) -> String {
    let [time, reason, device, proto, bytes, packet] = cells;
    let line = format!("{time:<12}  {reason:<20}  {device:<15}  {proto:<6}  {bytes:>5}  {packet}");
    format!("{}\n", plain::line(line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_the_day() {
        assert_eq!(clock(0.0), "00:00:00.000");
        assert_eq!(clock(86_400.0 * 3.0 + 3_723.25), "01:02:03.250");
    }

    /// What is read later than it is counted is not counted twice.
    #[test]
    fn missed_packets_are_counted_once() {
        let mut account = Account {
            shown: 10,
            ..Account::default()
        };
        assert_eq!(account.missed(12), 2);
        account.shown += 2;
        assert_eq!((account.missed(14), account.missed(20)), (0, 6));
    }

    /// A filter takes reasons that drop packets, and no others.
    #[test]
    fn only_reasons_that_drop_are_named() {
        assert_eq!(reason_named("policy").unwrap(), "policy");
        for name in ["forwarded", "to-host", "polic", ""] {
            assert!(reason_named(name).is_err(), "{name}");
        }
    }

    /// A packet is a container's by its addresses or by its veth.
    #[test]
    fn packets_of_a_container_are_found() {
        let row = DropRow {
            event: "drop".into(),
            time: 0.0,
            reason: "policy".into(),
            device: "veth1".into(),
            vlan: None,
            proto: Some("tcp".into()),
            src: Some([198, 18, 1, 2].into()),
            sport: Some(1),
            dst: Some([172, 17, 0, 2].into()),
            dport: Some(80),
            bytes: 74,
        };
        let names = Names::of_one("web", [172, 17, 0, 2].into(), "veth2");
        let wanted = |container: Option<&str>, reason: Option<&str>, row: &DropRow| {
            let args = Args {
                watch: true,
                container: container.map(str::to_owned),
                reason: reason.map(str::to_owned),
                output: output::Args {
                    output: Format::Table,
                },
            };
            is_wanted(&args, &names, row)
        };
        assert!(wanted(None, None, &row) && wanted(Some("web"), Some("policy"), &row));
        assert!(!wanted(Some("db"), None, &row) && !wanted(None, Some("spoofed"), &row));
        let frame = DropRow {
            device: "veth2".into(),
            src: None,
            dst: None,
            ..row.clone()
        };
        assert!(wanted(Some("web"), None, &frame));
        let shown = show(Format::Table, &names, &row).unwrap();
        assert!(shown.ends_with("198.18.1.2:1 > web:80\n"), "{shown}");
        let asked = DropRow {
            dst: Some([198, 18, 1, 1].into()),
            dport: Some(8080),
            ..row.clone()
        };
        assert!(wanted(Some("web"), None, &asked) && !wanted(Some("db"), None, &asked));
        let shown = show(Format::Table, &names, &asked).unwrap();
        assert!(shown.ends_with(" > 198.18.1.1:8080 (web)\n"), "{shown}");
        let elsewhere = DropRow {
            dst: Some([198, 18, 1, 9].into()),
            ..asked.clone()
        };
        assert!(
            !wanted(Some("web"), None, &elsewhere),
            "published at another address"
        );
        let tagged = DropRow {
            vlan: Some(5),
            ..frame
        };
        let shown = show(Format::Table, &names, &tagged).unwrap();
        assert!(
            shown.contains("  web  ") && shown.contains("vlan 5"),
            "{shown}"
        );
    }
}
