// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports for people, built by pure functions.

mod adoption;
mod drops;
mod events;
mod filter;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use clap::ValueEnum;
use forwarder_common::abi::{FlowState, armed};
use forwarder_common::clock::{Ticks, reached, to_seconds};
use forwarder_common::reason::Reason;
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::proto;
use forwarder_state::desired::{applying_policies, reach};
use forwarder_state::desired_state::{DesiredState, Hook, SocketHook};
use forwarder_state::host_state::{Family, HostState};
use forwarder_state::others::{Others, OurTable};

use crate::datapath::{FlowSnapshot, MapFill};

pub use adoption::{Adoption, Problem, adoption};
pub use drops::{DropRow, dropped};
pub use events::{EventRow, event};
pub use filter::{Filter, state_named};
pub use rows::*;

/// Returns the published ports that are in `tables`.
#[must_use]
pub fn ports(host_state: &HostState, tables: &DesiredState) -> Vec<PortRow> {
    let owners = host_state
        .networks
        .values()
        .flat_map(|network| network.endpoints.values().map(move |at| (network, at)))
        .filter_map(|(network, endpoint)| {
            let container = host_state.containers.get(&endpoint.container)?;
            let addresses = [Family::V4, Family::V6].map(|family| endpoint.address(family));
            Some((addresses, (&container.name, &network.name)))
        })
        .flat_map(|(addresses, names)| addresses.into_iter().flatten().map(move |at| (at, names)))
        .collect::<BTreeMap<_, _>>();
    let row = |(proto, host, container): (u16, SocketAddr, SocketAddr)| PortRow {
        proto: proto_name(u32::from(proto)),
        host_ip: host.ip(),
        host_port: host.port(),
        container: owners.get(&container.ip()).map(|names| names.0.clone()),
        network: owners.get(&container.ip()).map(|names| names.1.clone()),
        container_ip: container.ip(),
        container_port: container.port(),
    };
    let mut rows = tables.published_ports().map(row).collect::<Vec<_>>();
    rows.sort_by(|a, b| {
        (a.host_port, &a.proto, a.host_ip).cmp(&(b.host_port, &b.proto, b.host_ip))
    });
    rows
}

/// Returns the bridge networks by name.
#[must_use]
pub fn networks(host_state: &HostState, tables: &DesiredState) -> Vec<NetworkRow> {
    let mut rows = host_state
        .networks
        .values()
        .filter_map(|network| {
            let bridge = host_state.bridge(network).map(|link| link.index);
            let left = bridge.and_then(|index| tables.left.get(&index));
            let programmed = bridge.is_some_and(|index| tables.network_flags(index).is_some());
            Some(NetworkRow {
                name: network.name.clone(),
                id: network.id.to_string(),
                bridge: network.bridge.clone()?,
                subnets: network
                    .subnets
                    .iter()
                    .map(|subnet| format!("{}/{}", subnet.address, subnet.prefix_len))
                    .collect(),
                gateway: host_state.gateway(network, Family::V4),
                internal: network.internal,
                icc: network.terms.icc,
                masquerade: network.terms.masquerade,
                endpoints: network.endpoints.len(),
                programmed,
                mode: match left {
                    Some(left) if left.is_followed => PathMode::Follow,
                    None if programmed => PathMode::Own,
                    _ => PathMode::Off,
                },
                rule: left.map(|left| left.why.clone()),
            })
        })
        .collect::<Vec<_>>();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

/// Returns the endpoints of bridge networks by network and container.
#[must_use]
pub fn endpoints(host_state: &HostState, tables: &DesiredState) -> Vec<EndpointRow> {
    let bridged = host_state
        .networks
        .values()
        .filter(|network| network.bridge.is_some());
    let mut rows = bridged
        .flat_map(|network| {
            network
                .endpoints
                .iter()
                .map(move |endpoint| (network, endpoint))
        })
        .map(|(network, (id, endpoint))| {
            let veth = host_state.veths.get(id);
            let container = host_state.containers.get(&endpoint.container);
            EndpointRow {
                network: network.name.clone(),
                container: container.map_or_else(
                    || endpoint.container.to_string(),
                    |known| known.name.clone(),
                ),
                id: endpoint.container.0.clone(),
                address: endpoint.address(Family::V4),
                mac: endpoint
                    .mac
                    .map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
                veth: veth
                    .and_then(|index| host_state.links.get(index))
                    .map(|link| link.name.clone()),
                hooked: veth.is_some_and(|&index| {
                    let all = |hooks: [Hook; 2]| {
                        let mut hooks = hooks.iter();
                        hooks.all(|&hook| tables.hooks.contains(&(index, hook)))
                    };
                    all([Hook::ContainerIn, Hook::ContainerOut])
                        || all([Hook::FollowedIn, Hook::FollowedOut])
                }),
            }
        })
        .collect::<Vec<_>>();
    rows.sort_by(|a, b| (&a.network, &a.container).cmp(&(&b.network, &b.container)));
    rows
}

/// Which flows come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum FlowOrder {
    /// Those used last
    #[default]
    Idle,
    /// Those with the most bytes
    Bytes,
    /// Those with the most packets
    Packets,
    /// The oldest
    Age,
}

/// Returns the flows at the time `now`, in order.
#[must_use]
pub fn flows(snapshots: &[FlowSnapshot], now: Ticks, order: FlowOrder) -> Vec<FlowRow> {
    let mut flows: Vec<_> = snapshots
        .iter()
        .map(|flow| (now.wrapping_sub(flow.created), flow_row(flow, now)))
        .collect();
    flows.sort_by_key(|(age, row)| match order {
        FlowOrder::Idle => row.idle_s,
        FlowOrder::Bytes => u64::MAX - row.bytes,
        FlowOrder::Packets => u64::MAX - row.packets,
        FlowOrder::Age => u64::MAX - u64::from(*age),
    });
    flows.into_iter().map(|(_, row)| row).collect()
}

/// Returns a flow at the time `now`.
#[must_use]
pub fn flow_row(flow: &FlowSnapshot, now: Ticks) -> FlowRow {
    // A packet may have arrived after the clock was read.
    let idle = if reached(flow.seen, now) {
        now.wrapping_sub(flow.seen)
    } else {
        0
    };
    FlowRow {
        proto: proto_name(flow.proto),
        original: flow.original,
        reply: flow.reply,
        state: state(flow.proto, flow.flow_state).to_owned(),
        packets: flow.packets.iter().sum(),
        bytes: flow.bytes.iter().sum(),
        idle_s: to_seconds(idle),
    }
}

/// Returns the agent's part of the status. `tables` is what the kernel holds, `uptime_s` the
/// agent's age.
#[must_use]
pub fn agent(
    host_state: &HostState,
    tables: &DesiredState,
    uplinks: Vec<Uplink>,
    failures: Vec<String>,
    uptime_s: u64,
) -> AgentStatus {
    let name = |index| host_state.links.get(&index).map(|link| link.name.clone());
    AgentStatus {
        agent: Agent {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s,
        },
        docker: Docker {
            version: host_state.docker.clone(),
            networks: host_state.networks.len(),
            running: host_state
                .containers
                .values()
                .filter(|container| container.running)
                .count(),
        },
        uplinks,
        left: networks(host_state, tables)
            .into_iter()
            .filter_map(|row| {
                let (network, mode) = (row.name, row.mode);
                row.rule.map(|rule| LeftNetwork {
                    network,
                    mode,
                    rule,
                })
            })
            .collect(),
        others: others(host_state, tables),
        hooks: hooks(tables.hooks.iter().copied(), name),
        failures,
    }
}

/// Returns other software's configuration that applies or may apply to containers, one line each.
#[must_use]
pub fn others(host_state: &HostState, tables: &DesiredState) -> Vec<String> {
    let name = |index| {
        let link = host_state.links.get(&index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    };
    // A missing notrack rule is not worth a message here, because the agent adds it.
    let others = Others {
        policies: applying_policies(host_state).cloned().collect(),
        ours: Some(OurTable::ALL.into()),
        ..host_state.others.clone()
    };
    // Where the kernel decides, rules apply.
    let own = reach(host_state, |bridge| !tables.left.contains_key(&bridge));
    let lines = others.lines(&own, name).into_iter();
    lines
        .map(|(what, todo)| format!("{what}: {todo}"))
        .collect()
}

/// Returns the hooks by device name. `name` gives the names; a device without one is `#INDEX`.
#[must_use]
pub fn hooks(
    hooks: impl IntoIterator<Item = (u32, Hook)>,
    name: impl Fn(u32) -> Option<String>,
) -> Hooks {
    let mut by_device = Hooks::new();
    for (index, hook) in hooks {
        let device = name(index).unwrap_or_else(|| format!("#{index}"));
        by_device
            .entry(device)
            .or_default()
            .push(hook.program().to_owned());
    }
    by_device
}

/// Returns the name of what the programs are armed for.
const fn mode(armed: u32) -> &'static str {
    match armed {
        armed::NOT => "none",
        armed::REPLACE => "replace",
        armed::ADOPT => "adopt",
        _ => "handover",
    }
}

/// Returns the status, from the agent's answer and the pins. Without an agent, the `pinned` hooks
/// count. `sockets` always count, because they are pinned in every attach mode.
#[must_use]
pub fn status(
    agent: Option<AgentStatus>,
    pinned: Hooks,
    sockets: impl IntoIterator<Item = SocketHook>,
    counters: &[(Reason, u64)],
    maps: &[MapFill],
    armed: u32,
) -> Status {
    let (packets, reasons) = counted(counters);
    let fill = |map: &MapFill| {
        let MapFill { name, size, fill } = *map;
        (name.to_owned(), Fill { size, fill })
    };
    let (agent, docker, uplinks, left, others, hooks, failures) = match agent {
        Some(told) => (
            Some(told.agent),
            Some(told.docker),
            told.uplinks,
            told.left,
            told.others,
            told.hooks,
            told.failures,
        ),
        None => {
            let none = Vec::new;
            (None, None, Vec::new(), Vec::new(), none(), pinned, none())
        }
    };
    let maps = maps.iter().map(fill).collect();
    Status {
        agent,
        docker,
        uplinks,
        left,
        others,
        hooks,
        armed: armed != armed::NOT,
        mode: mode(armed).to_owned(),
        failures,
        sockets: sockets
            .into_iter()
            .map(|hook| hook.program().to_owned())
            .collect(),
        packets,
        reasons,
        maps,
        sample: None,
    }
}

/// Returns the packets between two readings of the counters.
#[must_use]
pub fn sample(before: &[(Reason, u64)], after: &[(Reason, u64)], seconds: f64) -> Sample {
    let of = |&(reason, count): &(Reason, u64)| {
        let earlier = before.iter().find(|(other, _)| *other == reason);
        let earlier = earlier.map_or(0, |(_, count)| *count);
        (reason, count.saturating_sub(earlier))
    };
    let between: Vec<_> = after.iter().map(of).collect();
    let (packets, reasons) = counted(&between);
    Sample {
        seconds,
        packets,
        reasons,
    }
}

/// Returns packets by path, and by those reasons that occurred.
fn counted(counters: &[(Reason, u64)]) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let mut packets = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for &(reason, count) in counters {
        *packets.entry(reason.path().label().to_owned()).or_default() += count;
        if count > 0 {
            reasons.insert(reason.label().to_owned(), count);
        }
    }
    (packets, reasons)
}

/// States of flows whose protocol has no states of its own.
const ASSURED: &str = "ASSURED";
const REPLIED: &str = "REPLIED";
const UNREPLIED: &str = "UNREPLIED";

fn state(protocol: u32, flow_state: FlowState) -> &'static str {
    if protocol == proto::TCP {
        State::from_u8(flow_state.state()).label()
    } else if flow_state.is_assured() {
        ASSURED
    } else if flow_state.is_replied() {
        REPLIED
    } else {
        UNREPLIED
    }
}

fn proto_name(number: u32) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        other => other.to_string(),
    }
}
