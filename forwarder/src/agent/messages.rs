// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent logs about the host: other software's configuration, exhausted resources.

use std::time::Instant;

use anyhow::Result;
use forwarder_state::host_state::HostState;

use super::Agent;
use crate::exhaustion;
use crate::report;

impl Agent {
    /// Logs what other software has configured since the last message.
    pub(super) fn log_others(&mut self, host_state: &HostState) {
        let lines = report::others(host_state);
        for line in lines.iter().filter(|line| !self.logged.contains(*line)) {
            tracing::warn!("{line}");
        }
        self.logged = lines.into_iter().collect();
    }

    /// Logs resources that were recently exhausted, and which container uses most of them.
    pub(super) fn log_exhaustion(&mut self, host_state: &HostState) -> Result<()> {
        let counts = self.datapath.exhausted()?;
        for message in self.exhaustion.due(counts, Instant::now()) {
            let holder = exhaustion::holder(host_state, &self.datapath.opened()?);
            tracing::warn!("{message}{}", holder.unwrap_or_default());
        }
        Ok(())
    }
}
