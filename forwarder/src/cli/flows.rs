// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder flows`: lists live flows. It reads the pins, so it works without an agent.

mod delete;
mod filter;
mod watch;

use std::net::SocketAddr;

use anyhow::Result;
use clap::Subcommand;

use super::output::{self, Row, span};
use crate::config::Config;
use crate::datapath;
use crate::report::{self, Ends, FlowRow};

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    filter: filter::Conditions,
    /// Show new flows and flows that end, as it happens, until Ctrl-C
    #[arg(long)]
    watch: bool,
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

impl Row for FlowRow {
    const COLUMNS: &'static [&'static str] = &[
        "PROTO", "ORIGINAL", "REPLY", "STATE", "PACKETS", "BYTES", "IDLE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.proto.clone(),
            arrow(&self.original),
            arrow(&self.reply),
            self.state.clone(),
            self.packets.to_string(),
            self.bytes.to_string(),
            span(self.idle_s),
        ]
    }
}

/// Formats the source and destination of one direction.
fn arrow(ends: &Ends) -> String {
    let src = SocketAddr::new(ends.src, ends.sport);
    format!("{src} > {}", SocketAddr::new(ends.dst, ends.dport))
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
    let mut rows = report::flows(&view.flows(now), now);
    rows.retain(|row| filter.matches(row));
    output::rows::<FlowRow>(args.output.output, &rows)
}
