// SPDX-License-Identifier: MIT OR Apache-2.0
//! What adopting a host changes or would change, as a report.

use std::collections::BTreeSet;

use forwarder_state::desired_state::DesiredState;
use forwarder_state::host_state::HostState;
use forwarder_state::others::ForwardChain;
use serde::{Deserialize, Serialize};

use super::{NetworkRow, PathMode, networks};

/// What `forwarder adopt` has changed or would change.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Adoption {
    /// Whether this call has changed anything.
    pub changed: bool,
    /// Whether `forwarder adopt` would change anything.
    pub would_change: bool,
    /// The process id of the agent that runs here.
    pub agent: Option<u32>,
    /// Docker's version.
    pub docker: Option<String>,
    /// The bridge networks, each with who decides about its traffic.
    pub networks: Vec<NetworkRow>,
    /// The number of running containers.
    pub containers: usize,
    /// The number of published ports on the fast path.
    pub published_ports: usize,
    /// The number of programs on devices.
    pub hooks: usize,
    /// The number of devices with programs.
    pub devices: usize,
    /// The number of connections of containers that the kernel tracks and keeps until they end.
    pub kernel_connections: usize,
    /// The chains that begin with the forwarder's one rule.
    pub chains: Vec<String>,
    /// Why the host cannot be adopted.
    pub problems: Vec<Problem>,
}

/// Why a host cannot be adopted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

impl Adoption {
    /// Whether every network is on the fast path, at least once the kernel has let a connection
    /// through.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let mut networks = self.networks.iter();
        networks.all(|network| network.mode != PathMode::Off)
    }
}

/// Returns what adopting a host would change. `tables` is what the kernel should hold then, and
/// `kernel_connections` the number of connections that it tracks for containers.
#[must_use]
pub fn adoption(
    host_state: &HostState,
    tables: &DesiredState,
    kernel_connections: usize,
) -> Adoption {
    let devices: BTreeSet<_> = tables.hooks.iter().map(|(index, _)| index).collect();
    let containers = host_state.containers.values();
    Adoption {
        changed: false,
        would_change: true,
        agent: None,
        docker: host_state.docker.clone(),
        networks: networks(host_state, tables),
        containers: containers.filter(|container| container.running).count(),
        published_ports: tables.published(),
        hooks: tables.hooks.len(),
        devices: devices.len(),
        kernel_connections,
        chains: host_state
            .others
            .forward_chains
            .iter()
            .map(chain_name)
            .collect(),
        problems: Vec::new(),
    }
}

fn chain_name(chain: &ForwardChain) -> String {
    let ForwardChain {
        tool,
        family,
        table,
        name,
        ..
    } = chain;
    match *tool {
        "nft" => format!("nft {family} {table} {name}"),
        tool => format!("{tool} {table} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nft has families, iptables has variants.
    #[test]
    fn chain_names_follow_their_tool() {
        let chain = |tool, family: &str, table: &str, name: &str| ForwardChain {
            tool,
            family: family.into(),
            table: table.into(),
            name: name.into(),
            begins_with_ours: false,
            has_ours: false,
        };
        let name = chain_name(&chain("iptables-nft", "ip", "filter", "FORWARD"));
        assert_eq!(name, "iptables-nft filter FORWARD");
        let name = chain_name(&chain("nft", "inet", "firewalld", "filter_FORWARD"));
        assert_eq!(name, "nft inet firewalld filter_FORWARD");
    }
}
