// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent logs: what it has applied, other software's configuration, exhausted resources.

use std::time::Instant;

use anyhow::Result;
use forwarder_state::desired_state::DesiredState;
use forwarder_state::host_state::HostState;
use forwarder_state::notices::{Notice, PublishedPort, Totals};

use super::Agent;
use crate::exhaustion;
use crate::logging::NOTICES;
use crate::report;

/// The largest number of notices of one sync that the log shows one by one.
const BURST: usize = 100;

impl Agent {
    /// Logs what the last sync has applied, one line each; the first time, and when very much has
    /// changed at once, one line for all. The single ones are at `debug` then.
    pub(super) fn log_notices(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        is_resync: bool,
    ) {
        let left = &self.tables.left;
        if !self.ledger.has_begun() {
            // An incomplete host state has no names for what is in place.
            if host_state.is_complete() {
                let notices = self.ledger.begin(host_state, held, left);
                notices.iter().for_each(|notice| log(notice, true));
                log_totals(self.ledger.totals());
            }
            return;
        }
        let notices = self.ledger.notices(host_state, held, left, is_resync);
        let are_many = notices.len() > BURST;
        for notice in &notices {
            log(notice, are_many && !matches!(notice, Notice::Network(_)));
        }
        if are_many {
            tracing::info!(
                "{} changes at once, which --log debug shows one by one",
                notices.len()
            );
            log_totals(self.ledger.totals());
        }
    }

    /// Logs what other software has configured since the last message.
    pub(super) fn log_others(&mut self, host_state: &HostState) {
        let lines = report::others(host_state, &self.tables);
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

fn log_totals(totals: Totals) {
    let Totals {
        networks,
        left,
        containers,
        ports,
    } = totals;
    tracing::info!(
        target: NOTICES,
        event = "in place",
        networks,
        left,
        containers,
        ports,
        "in place: networks {networks} on the fast path, {left} decided by the kernel; containers \
         {containers}; ports {ports}"
    );
}

/// Logs a notice. Its fields have the names of the command line's JSON; as text it is a sentence.
fn log(notice: &Notice, is_detail: bool) {
    macro_rules! say {
        ($event:literal, $($fields:tt)+) => {
            if is_detail {
                tracing::debug!(target: NOTICES, event = $event, $($fields)+, "{notice}");
            } else {
                tracing::info!(target: NOTICES, event = $event, $($fields)+, "{notice}");
            }
        };
    }
    macro_rules! say_port {
        ($event:literal, $published:expr) => {{
            let PublishedPort { port, to, owner } = $published;
            say!(
                $event,
                proto = %port.proto,
                host_ip = %port.ip,
                host_port = port.port,
                container = owner.container.as_deref(),
                network = owner.network.as_deref(),
                container_ip = %to.ip(),
                container_port = to.port()
            );
        }};
    }
    macro_rules! say_attachment {
        ($event:literal, $attachment:expr) => {
            say!(
                $event,
                network = $attachment.owner.network.as_deref(),
                container = $attachment.owner.container.as_deref(),
                address = %$attachment.address,
                veth = $attachment.device
            )
        };
    }
    match notice {
        Notice::Published(published) => say_port!("published", published),
        Notice::Unpublished(published) => say_port!("unpublished", published),
        Notice::Attached(attachment) => say_attachment!("attached", attachment),
        Notice::Detached(attachment) => say_attachment!("detached", attachment),
        Notice::Network(network) => say!(
            "network",
            network = network.name,
            bridge = network.bridge,
            mode = network.path.label(),
            rule = network.path.rule()
        ),
    }
}
