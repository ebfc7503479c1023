// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder ports`: lists published ports and their targets.

use std::net::SocketAddr;

use anyhow::Result;

use super::output::{ListArgs, Row, or_dash};
use crate::config::Config;
use crate::control::Verb;
use crate::report::PortRow;

impl Row for PortRow {
    const COLUMNS: &'static [&'static str] = &["PROTO", "HOST", "CONTAINER", "ADDRESS", "NETWORK"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.proto.clone(),
            SocketAddr::new(self.host_ip, self.host_port).to_string(),
            or_dash(self.container.as_ref()),
            SocketAddr::new(self.container_ip, self.container_port).to_string(),
            or_dash(self.network.as_ref()),
        ]
    }
}

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Show this container's ports only
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
    #[command(flatten)]
    pub(super) list: ListArgs,
}

pub(super) fn ports(config: &Config, args: &Args) -> Result<()> {
    args.list.show(|| {
        let mut rows = super::ask::<Vec<PortRow>>(config, Verb::Ports)?;
        if args.container.is_some() {
            rows.retain(|row| row.container == args.container);
        }
        Ok(rows)
    })
}
