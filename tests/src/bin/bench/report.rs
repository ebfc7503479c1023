// SPDX-License-Identifier: MIT OR Apache-2.0
//! The report: the table, the targets, the JSON document.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::sample::{Sample, Summary, summary};
use crate::work::{Arm, Direction, TARGETS, Target, Work};

/// The machine, the parameters and the results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// UTC, RFC 3339.
    date: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    rounds: u32,
    /// The number of UDP flows.
    flows: u32,
    summaries: Vec<Summary>,
    verdicts: Vec<Verdict>,
    samples: Vec<Sample>,
}

/// A target, and the measured value.
#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(flatten)]
    target: Target,
    reached: Option<f64>,
    met: bool,
}

impl Report {
    /// Summarises the samples.
    ///
    /// # Errors
    /// The machine's description cannot be read.
    pub(crate) fn new(samples: Vec<Sample>, rounds: u32, flows: u32) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let date = Command::new("date").args(["-u", "+%FT%TZ"]).output();
        let cpuinfo = read("/proc/cpuinfo")?;
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let (summaries, verdicts) = (summaries(&samples), verdicts(&samples));
        Ok(Self {
            date: String::from_utf8_lossy(&date?.stdout).trim().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: cpu
                .unwrap_or("unknown")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            rounds,
            flows,
            summaries,
            verdicts,
            samples,
        })
    }

    /// Whether every target of a measured arm was met.
    pub(crate) fn targets_met(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.met)
    }

    /// Prints the table, then the targets.
    pub(crate) fn print(&self) {
        let Self {
            date,
            kernel,
            cpus,
            rounds,
            flows,
            ..
        } = self;
        println!("{date}, kernel {kernel}, {rounds} rounds. Clients, hosts and servers share one");
        println!("of {cpus} CPUs, but for the reader of the UDP socket. UDP has {flows} flows.");
        println!("Median (min to max) and, pair by pair, how many times as good as stock.\n");
        println!("{}\n", table(&self.summaries));
        for Verdict {
            target,
            reached,
            met,
        } in &self.verdicts
        {
            let name = format!("{} / {}", target.work.title(), target.arm.title());
            let reached = reached.map_or("nothing".to_owned(), |ratio| format!("{ratio:.3}×"));
            let verdict = if *met { "met" } else { "MISSED" };
            println!("{verdict:<7} {name:<42} {reached} of {:.1}×", target.ratio);
        }
        let void = self
            .samples
            .iter()
            .filter(|sample| sample.void.is_some())
            .count();
        if void > 0 {
            println!("\n{void} of {} samples are void.", self.samples.len());
        }
    }

    /// Writes all of it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Returns the summaries of everything with valid samples, in the order of the table.
fn summaries(samples: &[Sample]) -> Vec<Summary> {
    let mut all = Vec::new();
    for (work, direction) in rows(samples) {
        let arms = arms(|arm| samples.iter().any(|sample| sample.arm == arm));
        all.extend(
            arms.into_iter()
                .filter_map(|arm| summary(samples, work, direction, arm)),
        );
    }
    all
}

/// Returns the measured works and directions, each once, in order.
fn rows(samples: &[Sample]) -> Vec<(Work, Direction)> {
    let mut rows = Vec::new();
    for sample in samples {
        let row = (sample.work, sample.direction);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// Returns the arms that satisfy the closure, in the order of their declaration.
fn arms(there: impl Fn(Arm) -> bool) -> Vec<Arm> {
    let all = Arm::value_variants().iter().copied();
    all.filter(|arm| there(*arm)).collect()
}

/// Returns a table with a row per work and direction, and a column per arm, in Markdown.
fn table(summaries: &[Summary]) -> Table {
    let arms = arms(|arm| summaries.iter().any(|summary| summary.arm == arm));
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let columns = arms.iter().map(|arm| arm.title());
    table.set_header(["work", "", "unit"].into_iter().chain(columns));
    let mut rows: Vec<_> = summaries
        .iter()
        .map(|one| (one.work, one.direction))
        .collect();
    rows.dedup();
    for (work, direction) in rows {
        let cells = arms.iter().map(|arm| {
            let mut all = summaries.iter();
            let one = all.find(|one| (one.work, one.direction, one.arm) == (work, direction, *arm));
            one.map_or("–".to_owned(), cell)
        });
        let fixed = [work.title(), direction.title(), work.unit()].map(str::to_owned);
        table.add_row(fixed.into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cell(summary: &Summary) -> String {
    let Summary {
        median, min, max, ..
    } = summary;
    let [median, min, max] = [median, min, max].map(|value| summary.work.show(*value));
    let range = format!("{median} ({min}–{max})");
    match summary.ratio {
        Some(ratio) if summary.arm != Arm::Stock => format!("{range} {ratio:.2}×"),
        _ => range,
    }
}

/// Returns the targets of the measured arms and works.
fn verdicts(samples: &[Sample]) -> Vec<Verdict> {
    let measured = |target: &Target| {
        samples.iter().any(|sample| {
            let found = (sample.work, sample.arm, sample.direction);
            found == (target.work, target.arm, Direction::In)
        })
    };
    let verdict = |target: Target| {
        let reached = summary(samples, target.work, Direction::In, target.arm);
        let reached = reached.and_then(|summary| summary.ratio);
        Verdict {
            target,
            reached,
            met: reached.is_some_and(|ratio| ratio >= target.ratio),
        }
    };
    TARGETS.into_iter().filter(measured).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(arm: Arm, value: f64) -> Sample {
        Sample {
            round: 1,
            work: Work::Forwarding,
            direction: Direction::In,
            arm,
            value: Some(value),
            share: None,
            void: None,
        }
    }

    #[test]
    fn table_has_a_column_per_arm() {
        let samples = [
            sample(Arm::Bare, 2.0),
            sample(Arm::Ours, 0.9),
            sample(Arm::Stock, 0.25),
        ];
        let table = table(&summaries(&samples)).to_string();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("| work"), "{table}");
        assert!(lines[2].contains("| 0.90 (0.90–0.90) 3.60× |"), "{table}");
        assert!(lines[2].contains("| 0.25 (0.25–0.25) |"), "{table}");
    }

    #[test]
    fn target_is_met_missed_or_not_applicable() {
        let met = |ours: f64| {
            let verdicts = verdicts(&[sample(Arm::Stock, 0.25), sample(Arm::Ours, ours)]);
            assert_eq!(verdicts.len(), 1, "{verdicts:?}");
            verdicts[0].met
        };
        assert!(met(0.7));
        assert!(!met(0.5));
        assert!(verdicts(&[sample(Arm::Stock, 0.25)]).is_empty());
        let void = Sample {
            void: Some("took another path".into()),
            ..sample(Arm::Ours, 9.0)
        };
        assert!(!verdicts(&[sample(Arm::Stock, 0.25), void])[0].met);
    }
}
