//! What the agent tells people: rows for the CLI's tables and its JSON, made by pure functions.
//!
//! Numbers are in host order, times in seconds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use forwarder_common::abi::Tuple;
use forwarder_common::family::{Be32, V4};
use forwarder_common::flow::Gate;
use forwarder_common::parse::proto;
use forwarder_common::reason::Reason;
use forwarder_common::tcp::State;
use forwarder_common::timeouts::{Ticks, reached, to_seconds};
use serde::{Deserialize, Serialize};

use crate::config::XdpMode;
use crate::datapath::{FlowSnapshot, MapFill};
use crate::tables::{Hook, Tables};
use crate::world::{Family, World};

/// A published port as the datapath has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRow {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The host's address; unspecified is any of its own.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's name; none while Docker has not told who has the address.
    pub container: Option<String>,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The container's port.
    pub container_port: u16,
}

/// A bridge network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Name.
    pub name: String,
    /// Docker's id, short.
    pub id: String,
    /// The bridge device's name.
    pub bridge: String,
    /// Address ranges of both families.
    pub subnets: Vec<String>,
    /// The IPv4 gateway.
    pub gateway: Option<IpAddr>,
    /// Whether it is cut off from outside.
    pub internal: bool,
    /// Whether its containers may talk to each other.
    pub icc: bool,
    /// Whether what leaves takes the host's address.
    pub masquerade: bool,
    /// How many containers are attached.
    pub endpoints: usize,
    /// Whether its rules are in the kernel.
    pub programmed: bool,
}

/// A container's place in a bridge network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    /// The network's name.
    pub network: String,
    /// The container's name, or its short id.
    pub container: String,
    /// Its IPv4 address.
    pub address: Option<Ipv4Addr>,
    /// The Ethernet address of its device.
    pub mac: Option<String>,
    /// The host's end of its veth.
    pub veth: Option<String>,
    /// Whether our programs are on that.
    pub hooked: bool,
}

/// One direction of a flow as its packets reach us.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ends {
    /// Source address.
    pub src: IpAddr,
    /// Source port, or the identifier of an ICMP echo request.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, or the identifier of an ICMP echo reply.
    pub dport: u16,
}

/// A live flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// What the opener sends.
    pub original: Ends,
    /// What the answers carry.
    pub reply: Ends,
    /// A state of nf_conntrack's for TCP, else `UNREPLIED`, `REPLIED` or `ASSURED`.
    pub state: String,
    /// Packets, both directions.
    pub packets: u64,
    /// Octets, both directions, network header included.
    pub bytes: u64,
    /// Seconds since the last packet.
    pub idle_s: u64,
}

/// The process that answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Process id.
    pub pid: u32,
    /// The forwarder's version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
}

/// Docker as the agent sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Docker {
    /// The daemon's version; none while it is away.
    pub version: Option<String>,
    /// Networks that it had when it was last heard, of every driver.
    pub networks: usize,
    /// Containers that ran then.
    pub running: usize,
}

/// A device on which XDP may run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Uplink {
    /// Name.
    pub name: String,
    /// What runs; never `auto`.
    pub xdp: XdpMode,
    /// Why that was chosen.
    pub why: String,
}

/// Programs by device name.
pub type Hooks = BTreeMap<String, Vec<String>>;

/// The living agent's share of [`Status`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Itself.
    pub agent: Agent,
    /// Its Docker.
    pub docker: Docker,
    /// Where XDP may run.
    pub uplinks: Vec<Uplink>,
    /// What is attached.
    pub hooks: Hooks,
}

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// Entries that it can have.
    pub size: u32,
    /// Entries that it has.
    pub fill: u32,
}

/// The whole picture.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent; none while none runs, which stops no traffic.
    pub agent: Option<Agent>,
    /// Docker; none without an agent.
    pub docker: Option<Docker>,
    /// Where XDP may run; empty without an agent (a program that runs is among `hooks`).
    pub uplinks: Vec<Uplink>,
    /// What is attached.
    pub hooks: Hooks,
    /// Packets by [`Path::label`](forwarder_common::reason::Path::label).
    pub packets: BTreeMap<String, u64>,
    /// Packets by [`Reason::label`], those that occurred.
    pub reasons: BTreeMap<String, u64>,
    /// Maps by name.
    pub maps: BTreeMap<String, Fill>,
}

/// Published ports, as far as `tables` has them.
#[must_use]
pub fn ports(world: &World, tables: &Tables) -> Vec<PortRow> {
    let owners = world
        .networks
        .values()
        .flat_map(|network| network.endpoints.values())
        .filter_map(|endpoint| {
            let container = world.containers.get(&endpoint.container)?;
            Some((endpoint.ipv4?, &container.name))
        })
        .collect::<BTreeMap<_, _>>();
    let mut rows = tables
        .published
        .iter()
        .map(|(key, target)| {
            let container = ipv4(target.addr);
            PortRow {
                proto: proto_name(u32::from(key.proto)),
                host_ip: ipv4(key.addr).into(),
                host_port: key.port.get(),
                container: owners.get(&container).map(ToString::to_string),
                container_ip: container.into(),
                container_port: target.port.get(),
            }
        })
        .collect::<Vec<_>>();
    rows.sort_by(|a, b| {
        (a.host_port, &a.proto, a.host_ip).cmp(&(b.host_port, &b.proto, b.host_ip))
    });
    rows
}

/// Bridge networks by name.
#[must_use]
pub fn networks(world: &World, tables: &Tables) -> Vec<NetworkRow> {
    let mut rows = world
        .networks
        .values()
        .filter_map(|network| {
            let bridge = world.bridge(network).map(|link| link.index);
            Some(NetworkRow {
                name: network.name.clone(),
                id: network.id.to_string(),
                bridge: network.bridge.clone()?,
                subnets: network
                    .subnets
                    .iter()
                    .map(|subnet| format!("{}/{}", subnet.address, subnet.prefix_len))
                    .collect(),
                gateway: world.gateway(network, Family::V4),
                internal: network.internal,
                icc: network.icc,
                masquerade: network.masquerade,
                endpoints: network.endpoints.len(),
                programmed: bridge.is_some_and(|index| tables.networks.contains_key(&index)),
            })
        })
        .collect::<Vec<_>>();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

/// Endpoints of bridge networks by network and container.
#[must_use]
pub fn endpoints(world: &World, tables: &Tables) -> Vec<EndpointRow> {
    let bridged = world
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
            let veth = world.veths.get(id);
            let container = world.containers.get(&endpoint.container);
            EndpointRow {
                network: network.name.clone(),
                container: container.map_or_else(
                    || endpoint.container.to_string(),
                    |known| known.name.clone(),
                ),
                address: endpoint.ipv4,
                mac: endpoint
                    .mac
                    .map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
                veth: veth
                    .and_then(|index| world.links.get(index))
                    .map(|link| link.name.clone()),
                hooked: veth.is_some_and(|&index| {
                    [Hook::ContainerIn, Hook::ContainerOut]
                        .iter()
                        .all(|&hook| tables.hooks.contains(&(index, hook)))
                }),
            }
        })
        .collect::<Vec<_>>();
    rows.sort_by(|a, b| (&a.network, &a.container).cmp(&(&b.network, &b.container)));
    rows
}

/// Flows as they stand at `now`, most recently used first.
#[must_use]
pub fn flows(snapshots: &[FlowSnapshot], now: Ticks) -> Vec<FlowRow> {
    let mut rows = snapshots
        .iter()
        .map(|flow| flow_row(flow, now))
        .collect::<Vec<_>>();
    rows.sort_by_key(|row| row.idle_s);
    rows
}

fn flow_row(flow: &FlowSnapshot, now: Ticks) -> FlowRow {
    // A packet may have come after the clock was read.
    let idle = if reached(flow.seen, now) {
        now.wrapping_sub(flow.seen)
    } else {
        0
    };
    FlowRow {
        proto: proto_name(flow.original.proto),
        original: ends(&flow.original),
        reply: ends(&flow.reply),
        state: state(flow.original.proto, flow.gate).to_owned(),
        packets: flow.packets.iter().sum(),
        bytes: flow.bytes.iter().sum(),
        idle_s: to_seconds(idle),
    }
}

/// The agent's share of the status. `tables` is what the kernel holds, `uptime_s` its age.
#[must_use]
pub fn agent(world: &World, tables: &Tables, uplinks: Vec<Uplink>, uptime_s: u64) -> AgentStatus {
    let name = |index| world.links.get(&index).map(|link| link.name.clone());
    AgentStatus {
        agent: Agent {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s,
        },
        docker: Docker {
            version: world.docker.clone(),
            networks: world.networks.len(),
            running: world
                .containers
                .values()
                .filter(|container| container.running)
                .count(),
        },
        uplinks,
        hooks: hooks(tables.hooks.iter().copied(), name),
    }
}

/// Hooks by the names that `name` gives devices, or `#INDEX` for one that has none.
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

/// The status, from what the agent says and what is pinned (`pinned` hooks count without an agent).
#[must_use]
pub fn status(
    agent: Option<AgentStatus>,
    pinned: Hooks,
    counters: &[(Reason, u64)],
    maps: &[MapFill],
) -> Status {
    let mut packets = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for &(reason, count) in counters {
        *packets.entry(reason.path().label().to_owned()).or_default() += count;
        if count > 0 {
            reasons.insert(reason.label().to_owned(), count);
        }
    }
    let fill = |map: &MapFill| {
        let MapFill { name, size, fill } = *map;
        (name.to_owned(), Fill { size, fill })
    };
    let (agent, docker, uplinks, hooks) = match agent {
        Some(told) => (
            Some(told.agent),
            Some(told.docker),
            told.uplinks,
            told.hooks,
        ),
        None => (None, None, Vec::new(), pinned),
    };
    let maps = maps.iter().map(fill).collect();
    Status {
        agent,
        docker,
        uplinks,
        hooks,
        packets,
        reasons,
        maps,
    }
}

fn ends(tuple: &Tuple<V4>) -> Ends {
    Ends {
        src: ipv4(tuple.src).into(),
        sport: tuple.sport.get(),
        dst: ipv4(tuple.dst).into(),
        dport: tuple.dport.get(),
    }
}

fn state(protocol: u32, gate: Gate) -> &'static str {
    if protocol == proto::TCP {
        State::from_u8(gate.state()).label()
    } else if gate.is_assured() {
        "ASSURED"
    } else if gate.is_replied() {
        "REPLIED"
    } else {
        "UNREPLIED"
    }
}

fn proto_name(number: u32) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        other => other.to_string(),
    }
}

fn ipv4(address: Be32) -> Ipv4Addr {
    address.octets().into()
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
