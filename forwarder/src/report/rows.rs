// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of the command line's tables; the field names are the names in its JSON.
//!
//! Numbers are in host byte order, times in seconds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::XdpMode;
pub use crate::datapath::Ends;

/// A published port in the datapath.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRow {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The host's address; unspecified means any of its own addresses.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's name; none while Docker has not reported who has the address.
    pub container: Option<String>,
    /// The network that has the address; none as above.
    pub network: Option<String>,
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
    /// Whether it has no access to the outside.
    pub internal: bool,
    /// Whether its containers may talk to each other.
    pub icc: bool,
    /// Whether packets that leave get the host's address.
    pub masquerade: bool,
    /// The number of attached containers.
    pub endpoints: usize,
    /// Whether its row is in the kernel.
    pub programmed: bool,
    /// Who decides about its traffic.
    pub mode: PathMode,
    /// Why the network is left to the kernel: the rule that decided; none if the forwarder decides
    /// about its traffic.
    pub rule: Option<String>,
}

/// Who decides about a network's traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PathMode {
    /// The forwarder.
    #[serde(rename = "own")]
    Own,
    /// The kernel, with all rules of the host; connections that it has let through are followed.
    #[serde(rename = "follow")]
    Follow,
    /// The kernel alone.
    #[serde(rename = "off")]
    Off,
}

impl PathMode {
    /// Its name for a person, the same as in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Follow => "follow",
            Self::Off => "off",
        }
    }
}

/// A network about whose traffic the kernel decides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeftNetwork {
    /// Name.
    pub network: String,
    /// Whether its connections are followed.
    pub mode: PathMode,
    /// The rule because of which the kernel decides.
    pub rule: String,
}

/// A container's endpoint on a bridge network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    /// The network's name.
    pub network: String,
    /// The container's name, or its short id.
    pub container: String,
    /// Its full id.
    pub id: String,
    /// Its IPv4 address.
    pub address: Option<IpAddr>,
    /// The hardware address of its device.
    pub mac: Option<String>,
    /// The host's end of its veth.
    pub veth: Option<String>,
    /// Whether our programs are attached to the veth.
    pub hooked: bool,
}

/// A live flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// The direction of the originator's packets.
    pub original: Ends,
    /// The direction of the replies.
    pub reply: Ends,
    /// A state of nf_conntrack for TCP, otherwise `UNREPLIED`, `REPLIED` or `ASSURED`.
    pub state: String,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions, network header included.
    pub bytes: u64,
    /// Seconds since the last packet.
    pub idle_s: u64,
}

/// The agent's process.
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
    /// The number of networks of every driver when Docker last answered.
    pub networks: usize,
    /// The number of running containers when Docker last answered.
    pub running: usize,
}

/// A device on which XDP may run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Uplink {
    /// Name.
    pub name: String,
    /// The XDP mode in use; never `auto`.
    pub xdp: XdpMode,
    /// Why that mode was chosen.
    pub why: String,
}

/// Programs by device name.
pub type Hooks = BTreeMap<String, Vec<String>>;

/// The living agent's part of [`Status`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent itself.
    pub agent: Agent,
    /// The agent's Docker.
    pub docker: Docker,
    /// Where XDP may run.
    pub uplinks: Vec<Uplink>,
    /// Networks about whose traffic the kernel decides.
    pub left: Vec<LeftNetwork>,
    /// Other software's configuration that applies or may apply to containers.
    pub others: Vec<String>,
    /// The attached programs.
    pub hooks: Hooks,
    /// Changes that could not be applied to the kernel and are tried again.
    pub failures: Vec<String>,
}

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// The maximum number of entries.
    pub size: u32,
    /// The present number of entries.
    pub fill: u32,
}

/// The packets of a while.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// How long it was.
    pub seconds: f64,
    /// Packets by [`Path::label`](forwarder_common::reason::Path::label).
    pub packets: BTreeMap<String, u64>,
    /// Packets by [`Reason::label`](forwarder_common::reason::Reason::label); only reasons that
    /// occurred.
    pub reasons: BTreeMap<String, u64>,
}

/// The complete status.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent; none if none runs, which stops no traffic.
    pub agent: Option<Agent>,
    /// Docker; none without an agent.
    pub docker: Option<Docker>,
    /// Where XDP may run; empty without an agent (an attached XDP program is among `hooks`).
    pub uplinks: Vec<Uplink>,
    /// Networks about whose traffic the kernel decides; empty without an agent.
    pub left: Vec<LeftNetwork>,
    /// Other software's configuration that applies or may apply to containers; empty without an
    /// agent.
    pub others: Vec<String>,
    /// The attached programs.
    pub hooks: Hooks,
    /// Whether the programs enforce their verdicts: not before an agent's first start is complete.
    pub armed: bool,
    /// What is behind the programs: `adopt` for Docker's own rules, `replace` for none, `handover`
    /// while connections change hands, `none` before an agent's first start is complete.
    pub mode: String,
    /// Changes that the agent could not apply to the kernel and tries again.
    pub failures: Vec<String>,
    /// The programs about the host's sockets, which redirect them to containers and keep packets
    /// from them that no hook has checked.
    pub sockets: Vec<String>,
    /// Packets by [`Path::label`](forwarder_common::reason::Path::label).
    pub packets: BTreeMap<String, u64>,
    /// Packets by [`Reason::label`](forwarder_common::reason::Reason::label); only reasons that
    /// occurred.
    pub reasons: BTreeMap<String, u64>,
    /// Maps by name.
    pub maps: BTreeMap<String, Fill>,
    /// The packets of a while, if they were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}
