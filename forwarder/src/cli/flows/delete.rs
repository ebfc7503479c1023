// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder flows delete`: ends flows at once, with or without an agent.

use anyhow::{Result, ensure};

use crate::cli::output;
use crate::config::Config;
use crate::datapath::{self, FlowOperations};
use crate::report;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: super::filter::Conditions,
    /// All flows
    #[arg(long)]
    all: bool,
}

pub(super) fn delete(config: &Config, args: &Args) -> Result<()> {
    let filter = args.filter.resolve(config)?;
    ensure!(
        args.all || !filter.is_empty(),
        "which flows? Name them by --container, --port, --state, --peer or --proto, or take --all"
    );
    let view = crate::cli::view(config)?;
    let mut flow_operations = FlowOperations::open(&config.bpffs_dir)?;
    let now = datapath::now();
    let mut ended = 0;
    for flow in view.flows(now) {
        if filter.matches(&report::flow_row(&flow, now)) && flow_operations.end(flow.reference())? {
            ended += 1;
        }
    }
    output::text(&format!("{ended} ended\n"))
}
