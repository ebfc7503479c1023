// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent answers: to the command line, and to shims whether the kernel holds a port.

use std::net::IpAddr;

use forwarder_common::abi::network;
use forwarder_state::desired_state::{DesiredState, Key6};
use forwarder_state::host_state::{HostPort, HostState};
use forwarder_state::port_key::port_key6;
use serde_json::Value;

use super::Agent;
use crate::control::Verb;
use crate::report;
use crate::uplinks::Choice;

impl Agent {
    /// Answers a query of the command line from what the kernel holds.
    pub(crate) fn answer(&mut self, host_state: &HostState, verb: Verb) -> Value {
        let held = match self.datapath.observe(true) {
            Ok(observed) => DesiredState {
                left: self.tables.left.clone(),
                ..observed.tables
            },
            Err(error) => {
                tracing::warn!("cannot read what the kernel holds: {error:#}");
                DesiredState::default()
            }
        };
        let answer = match verb {
            Verb::Status => {
                let uptime = self.since.elapsed().as_secs();
                let uplinks = self.uplinks.iter().map(Choice::report).collect();
                let failures = self.failures.iter().map(|failure| failure.what.clone());
                let failures = failures.collect();
                let status = report::agent(host_state, &held, uplinks, failures, uptime);
                serde_json::to_value(status)
            }
            Verb::Networks => serde_json::to_value(report::networks(host_state, &held)),
            Verb::Endpoints => serde_json::to_value(report::endpoints(host_state, &held)),
            Verb::Ports => serde_json::to_value(report::ports(host_state, &held)),
            Verb::Release | Verb::Cleanup => Ok(Value::Null),
        };
        answer.unwrap_or(Value::Null)
    }

    /// Whether the last sync brought into the kernel a port that a shim has bound, or the access
    /// list of a port that a docker-proxy serves. The error says why not.
    pub(crate) fn holds(&self, host_state: &HostState, port: &HostPort) -> Result<(), String> {
        if let Some(key) = port_key6(port) {
            let why = self.unguarded.as_ref();
            let refused =
                why.map(|why| format!("the kernel refuses the list of clients of {port}: {why}"));
            let wanted = self.tables.ipv6.contains_key(&Key6::Published(key));
            return match refused {
                Some(refused) => Err(refused),
                None if wanted => Ok(()),
                None => Err(format!("{port} is no longer to be served by docker-proxy")),
            };
        }
        let wanted = host_state.bound.get(port).map(|bound| bound.container_ip);
        let target = self.tables.target(port);
        match (wanted, self.unpublished.get(port)) {
            (_, Some(why)) => Err(format!("the kernel refuses the mapping of {port}: {why}")),
            (Some(wanted), None) if target == Some(wanted) => Ok(()),
            // A routed network publishes no ports of the host, so none is missing.
            (Some(wanted), None) if target.is_none() && self.is_routed(host_state, wanted) => {
                Ok(())
            }
            _ => Err(format!("{port} is now mapped to another container")),
        }
    }

    /// Whether an address belongs to a container of a routed network.
    fn is_routed(&self, host_state: &HostState, address: IpAddr) -> bool {
        let network = host_state
            .endpoint_at(address)
            .map(|(id, _)| &host_state.networks[id]);
        let bridge = network.and_then(|network| host_state.bridge(network));
        let flags = bridge.and_then(|link| self.tables.network_flags(link.index));
        flags.is_some_and(|flags| flags & network::ROUTED != 0)
    }
}
