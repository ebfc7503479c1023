// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of the CLI's tables, and its JSON by their fields' names.
//!
//! Numbers are in host order, times in seconds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::config::XdpMode;

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
    /// Its full id.
    pub id: String,
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
    /// Source port, or the identifier of an ICMP request; of a reply the query's type, 0 for echo.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, or the identifier of an ICMP reply; of a request its type, 0 for echo.
    pub dport: u16,
}

/// A live flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// What the originator sends.
    pub original: Ends,
    /// What the answers carry.
    pub reply: Ends,
    /// A state of nf_conntrack's for TCP, else `UNREPLIED`, `REPLIED` or `ASSURED`.
    pub state: String,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes, both directions, network header included.
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
    /// What others have set up that is or may be about containers.
    pub others: Vec<String>,
    /// What is attached.
    pub hooks: Hooks,
    /// What could not be brought into the kernel and is tried again.
    pub failures: Vec<String>,
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
    /// What others have set up that is or may be about containers; empty without an agent.
    pub others: Vec<String>,
    /// What is attached.
    pub hooks: Hooks,
    /// Whether it judges packets: not before an agent's first start is complete.
    pub armed: bool,
    /// What the agent could not bring into the kernel and tries again.
    pub failures: Vec<String>,
    /// What hangs on the root of all control groups and points sockets at containers.
    pub sockets: Vec<String>,
    /// Packets by [`Path::label`](forwarder_common::reason::Path::label).
    pub packets: BTreeMap<String, u64>,
    /// Packets by [`Reason::label`](forwarder_common::reason::Reason::label), those that occurred.
    pub reasons: BTreeMap<String, u64>,
    /// Maps by name.
    pub maps: BTreeMap<String, Fill>,
}
