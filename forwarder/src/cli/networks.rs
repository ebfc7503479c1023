// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder networks`: lists Docker's bridge networks and their options.

use anyhow::Result;

use super::output::{ListArgs, Row, or_dash, table, yes};
use crate::config::Config;
use crate::control::Verb;
use crate::report::NetworkRow;

impl Row for NetworkRow {
    const COLUMNS: &'static [&'static str] = &[
        "NETWORK",
        "MODE",
        "BRIDGE",
        "SUBNETS",
        "GATEWAY",
        "MASQUERADE",
        "ICC",
        "INTERNAL",
        "ENDPOINTS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.mode.label().to_owned(),
            self.bridge.clone(),
            self.subnets.join(" "),
            or_dash(self.gateway.as_ref()),
            yes(self.masquerade),
            yes(self.icc),
            yes(self.internal),
            self.endpoints.to_string(),
        ]
    }
}

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Also show the rule that leaves a network to the kernel
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    list: ListArgs,
}

pub(super) fn networks(config: &Config, args: &Args) -> Result<()> {
    let list = || super::ask::<Vec<NetworkRow>>(config, Verb::Networks);
    if !args.verbose {
        return args.list.show(list);
    }
    args.list.show_as(list, |rows| {
        let columns = [NetworkRow::COLUMNS, &["RULE"]].concat();
        let rows = rows.iter().map(|row| {
            let mut cells = row.cells();
            cells.push(or_dash(row.rule.as_ref()));
            cells
        });
        table(&columns, rows)
    })
}
