// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder endpoints`: lists containers on bridge networks and their veths.

use anyhow::Result;

use super::output::{ListArgs, Row, or_dash, yes};
use crate::config::Config;
use crate::control::Verb;
use crate::report::EndpointRow;

impl Row for EndpointRow {
    const COLUMNS: &'static [&'static str] =
        &["NETWORK", "CONTAINER", "ADDRESS", "MAC", "VETH", "HOOKED"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.container.clone(),
            or_dash(self.address.as_ref()),
            or_dash(self.mac.as_ref()),
            or_dash(self.veth.as_ref()),
            yes(self.hooked),
        ]
    }
}

pub(super) fn endpoints(config: &Config, args: &ListArgs) -> Result<()> {
    args.show(|| super::ask::<Vec<EndpointRow>>(config, Verb::Endpoints))
}
