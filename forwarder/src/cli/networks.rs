// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder networks`: lists Docker's bridge networks and their options.

use anyhow::Result;

use super::output::{self, Format, Row, or_dash, yes};
use crate::config::Config;
use crate::control::Verb;
use crate::report::NetworkRow;

impl Row for NetworkRow {
    const COLUMNS: &'static [&'static str] = &[
        "NETWORK",
        "BRIDGE",
        "SUBNETS",
        "GATEWAY",
        "MASQUERADE",
        "ICC",
        "INTERNAL",
        "ENDPOINTS",
        "PROGRAMMED",
        "LEFT TO THE KERNEL",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.bridge.clone(),
            self.subnets.join(" "),
            or_dash(self.gateway.as_ref()),
            yes(self.masquerade),
            yes(self.icc),
            yes(self.internal),
            self.endpoints.to_string(),
            yes(self.programmed),
            or_dash(self.left.as_ref()),
        ]
    }
}

pub(super) fn networks(config: &Config, format: Format) -> Result<()> {
    output::rows::<NetworkRow>(format, &super::ask::<Vec<_>>(config, Verb::Networks)?)
}
