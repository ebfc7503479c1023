// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder flows`: lists live flows. It reads the pins, so it works without an agent.

mod delete;
mod filter;
mod watch;

use std::io::{self, IsTerminal as _};

use anyhow::Result;
use clap::Subcommand;
use forwarder_common::abi::name;

use super::names::Names;
use super::output::{self, Format, span, table};
use crate::config::Config;
use crate::datapath;
use crate::report::{self, FlowOrder, FlowRow};

/// The number of flows that are shown on a terminal.
const SCREEN: usize = 50;

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    filter: filter::Conditions,
    /// Show new flows and flows that end, as it happens, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Show no more flows than this [default: 50 on a terminal, else all]
    #[arg(long, value_name = "N", conflicts_with = "watch")]
    limit: Option<usize>,
    /// Show first those with the most bytes or packets, or the oldest [default: the last used]
    #[arg(
        long,
        value_enum,
        value_name = "bytes|packets|age",
        hide_possible_values = true
    )]
    #[arg(conflicts_with = "watch")]
    sort: Option<FlowOrder>,
    #[command(flatten)]
    output: output::Args,
    #[command(subcommand)]
    deed: Option<FlowsCommand>,
}

#[derive(Debug, Subcommand)]
enum FlowsCommand {
    /// End flows at once
    Delete(delete::Args),
}

pub(super) fn flows(config: &Config, args: &Args) -> Result<()> {
    if let Some(FlowsCommand::Delete(args)) = &args.deed {
        return delete::delete(config, args);
    }
    let filter = args.filter.resolve(config)?;
    if args.watch {
        return watch::watch(config, &filter, args.output.output);
    }
    let view = super::view(config)?;
    let now = datapath::now();
    let order = args.sort.unwrap_or_default();
    let mut rows = report::flows(&view.flows(now), now, order);
    rows.retain(|row| filter.matches(row));
    let total = rows.len();
    let is_screen = args.output.output == Format::Table && io::stdout().is_terminal();
    let limit = args.limit.or(is_screen.then_some(SCREEN));
    rows.truncate(limit.unwrap_or(usize::MAX));
    if args.output.output == Format::Json {
        return output::json(&rows);
    }
    let maps = view.maps()?;
    let size = maps.iter().find(|map| map.name == name::FLOWS);
    let footer = footer(rows.len(), total, size.map_or(0, |map| map.size));
    output::text(&(render(&rows, &Names::ask(config)) + &footer))
}

fn render(rows: &[FlowRow], names: &Names) -> String {
    let columns = [
        "PROTO", "ORIGINAL", "REPLY", "STATE", "PACKETS", "BYTES", "IDLE",
    ];
    let cells = |row: &FlowRow| {
        vec![
            row.proto.clone(),
            names.original(row),
            names.reply(row),
            row.state.clone(),
            row.packets.to_string(),
            row.bytes.to_string(),
            span(row.idle_s),
        ]
    };
    table(&columns, rows.iter().map(cells))
}

/// Returns the last line: how many flows there are, and the part of the table that they take.
fn footer(shown: usize, total: usize, size: u32) -> String {
    let share = 100.0 * total as f64 / f64::from(size.max(1));
    let of = if shown < total {
        format!("{shown} of ")
    } else {
        String::new()
    };
    format!("{of}{total} flows ({share:.1} % of {size})\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footer_counts_what_is_not_shown() {
        assert_eq!(footer(2, 2, 200), "2 flows (1.0 % of 200)\n");
        assert_eq!(
            footer(50, 10_518, 262_144),
            "50 of 10518 flows (4.0 % of 262144)\n"
        );
    }
}
