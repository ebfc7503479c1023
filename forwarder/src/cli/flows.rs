//! `forwarder flows`: live flows, read from the pins, agent or not.

use std::net::SocketAddr;

use anyhow::Result;

use super::output::{self, Format, Row, span};
use crate::config::Config;
use crate::datapath;
use crate::report::{self, Ends, FlowRow};

impl Row for FlowRow {
    const COLUMNS: &'static [&'static str] = &[
        "PROTO", "ORIGINAL", "REPLY", "STATE", "PACKETS", "BYTES", "IDLE",
    ];

    fn cells(&self) -> Vec<String> {
        let arrow = |ends: &Ends| {
            let src = SocketAddr::new(ends.src, ends.sport);
            format!("{src} > {}", SocketAddr::new(ends.dst, ends.dport))
        };
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

pub(super) fn flows(config: &Config, format: Format) -> Result<()> {
    let view = super::view(config)?;
    let now = datapath::now();
    output::rows::<FlowRow>(format, &report::flows(&view.flows(now), now))
}
