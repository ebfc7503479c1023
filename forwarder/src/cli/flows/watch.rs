// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder flows --watch`: prints one line for each flow event until it is interrupted.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::names::Names;
use crate::cli::output::{Format, json_line, wall, write};
use crate::config::Config;
use crate::datapath::{self, Events, FlowOperations};
use crate::plain;
use crate::report::{self, EventRow, Filter};

/// The interval at which the watcher tells the kernel that it still listens, and collects expired
/// flows. A new flow would collect them as well, but there may be none.
const BEAT: Duration = Duration::from_secs(1);
/// The number of such intervals after which the agent is asked for names again: its answer takes it
/// some milliseconds.
const RENAME: u32 = 2;
/// The number of events that are read before anything else is handled.
const BATCH: usize = 256;

pub(super) fn watch(config: &Config, filter: &Filter, format: Format) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for events")?;
    runtime.block_on(follow(config, filter, format))
}

async fn follow(config: &Config, filter: &Filter, format: Format) -> Result<()> {
    // The handlers are in place before the first line is printed, so that a signal ends the watcher
    // properly from then on.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The view has the best error message if pins are missing.
    crate::cli::view(config)?;
    let mut flow_operations = FlowOperations::open(&config.bpffs_dir)?;
    let mut watcher = Watcher {
        names: Names::ask(config),
        events: Events::open(&config.bpffs_dir)?,
        filter,
        format,
    };
    let mut naming = Naming::default();
    let mut housekeeping = interval(BEAT);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ring = Ring::Empty;
    write(&watcher.head())?;
    while ring != Ring::Unheard {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = housekeeping.tick() => {
                watcher.events.renew()?;
                flow_operations.collect()?;
                if format == Format::Table {
                    naming.ask(config);
                }
            }
            newer = naming.answer() => watcher.names.renew(newer),
            ready = watcher.events.wait(), if ring == Ring::Empty => ready?,
            () = tokio::task::yield_now(), if ring == Ring::More => {}
        }
        ring = watcher.tell()?;
    }
    watcher.events.close()?;
    while ring != Ring::Unheard {
        ring = match watcher.tell()? {
            Ring::Empty => break,
            other => other,
        };
    }
    Ok(())
}

/// The state of the ring after some of its events were shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ring {
    /// Empty: the kernel wakes the watcher.
    Empty,
    /// There may be more events.
    More,
    /// The reader of the output has gone, so further events are of no use.
    Unheard,
}

/// Containers' names, asked for again and again: containers come and go. The agent may be slow to
/// answer, so the watcher does not wait for it.
#[derive(Default)]
struct Naming {
    answer: Option<JoinHandle<Names>>,
    /// How often the answer was not asked for since the last time.
    skipped: u32,
}

impl Naming {
    /// Asks the agent, unless it has been asked a moment ago.
    fn ask(&mut self, config: &Config) {
        self.skipped += 1;
        if self.answer.is_some() || self.skipped < RENAME {
            return;
        }
        self.skipped = 0;
        let config = config.clone();
        self.answer = Some(spawn_blocking(move || Names::ask(&config)));
    }

    /// Waits for the answer; for ever if nothing was asked.
    async fn answer(&mut self) -> Names {
        let Some(asked) = &mut self.answer else {
            return std::future::pending().await;
        };
        let names = asked.await;
        self.answer = None;
        names.unwrap_or_default()
    }
}

/// The event ring and the filter for its events.
struct Watcher<'a> {
    names: Names,
    events: Events,
    filter: &'a Filter,
    format: Format,
}

impl Watcher<'_> {
    /// Returns the first line. Events from here on are shown or counted as lost.
    fn head(&self) -> String {
        match self.format {
            Format::Json => format!(
                "{}\n",
                json!({ "event": "watching", "time": wall().as_secs() })
            ),
            Format::Table => line(&[
                "EVENT", "PROTO", "ORIGINAL", "REPLY", "STATE", "PACKETS", "BYTES", "AGE", "REASON",
            ]),
        }
    }

    /// Shows a batch of events.
    fn tell(&mut self) -> Result<Ring> {
        let (now, wall) = (datapath::now(), wall());
        let mut lines = String::new();
        let mut read = 0;
        while read < BATCH
            && let Some(event) = self.events.read()
        {
            read += 1;
            let row = report::event(&event, now, wall);
            if self.filter.matches(&row.flow) {
                lines.push_str(&self.show(&row)?);
            }
        }
        let lost = self.events.lost()?;
        if lost > 0 {
            let said = match self.format {
                Format::Json => json!({ "event": "lost", "lost": lost }).to_string(),
                Format::Table => format!("lost {lost}"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{said}");
        }
        Ok(if !write(&lines)? {
            Ring::Unheard
        } else if read < BATCH {
            Ring::Empty
        } else {
            Ring::More
        })
    }

    fn show(&self, row: &EventRow) -> Result<String> {
        if self.format == Format::Json {
            return json_line(row);
        }
        let EventRow { flow, reason, .. } = row;
        Ok(line(&[
            &row.event,
            &flow.proto,
            &self.names.original(flow),
            &self.names.reply(flow),
            &flow.state,
            &flow.packets.to_string(),
            &flow.bytes.to_string(),
            &format!("{:.1}s", row.age_s),
            reason.as_deref().unwrap_or_default(),
        ]))
    }
}

/// Formats a line of columns. Later lines are unknown, so each column has its usual width.
fn line(cells: &[&str; 9]) -> String {
    let [
        event,
        proto,
        original,
        reply,
        state,
        packets,
        bytes,
        age,
        reason,
    ] = cells;
    let line = format!(
        "{event:<5}  {proto:<5}  {original:<43}  {reply:<43}  {state:<11}  {packets:>7}  {bytes:>10}  {age:>8}  {reason}"
    );
    format!("{}\n", plain::line(line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container's name cannot control the terminal.
    #[test]
    fn watched_line_has_no_control_characters() {
        let name = "web\x1b[2J\n:80 > 198.18.1.2:80";
        let line = line(&["new", "tcp", name, "", "", "1", "60", "0.0s", ""]);
        assert_eq!(line.matches(char::is_control).count(), 1, "{line:?}");
        assert!(line.contains("web\\u{1b}[2J\\n:80 > "), "{line:?}");
    }
}
