// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder ports`: lists published ports and their targets.

use std::net::SocketAddr;

use anyhow::Result;

use super::output::{self, Format, Row, or_dash};
use crate::config::Config;
use crate::control::Verb;
use crate::report::PortRow;

impl Row for PortRow {
    const COLUMNS: &'static [&'static str] = &["PROTO", "HOST", "CONTAINER", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.proto.clone(),
            SocketAddr::new(self.host_ip, self.host_port).to_string(),
            or_dash(self.container.as_ref()),
            SocketAddr::new(self.container_ip, self.container_port).to_string(),
        ]
    }
}

pub(super) fn ports(config: &Config, format: Format) -> Result<()> {
    output::rows::<PortRow>(format, &super::ask::<Vec<_>>(config, Verb::Ports)?)
}
