// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's own state, and what the event loop asks of it. [`sync`] brings the kernel to the
//! desired state.

mod answers;
mod arm;
mod follow;
mod messages;
mod own_tables;
mod start;
mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use forwarder_common::abi::{Tuple, armed};
use forwarder_common::family::V4;
use forwarder_state::desired_state::{DesiredState, Observed, SocketHook};
use forwarder_state::host_state::{HostPort, HostState};
use forwarder_state::notices::Ledger;
use forwarder_state::others::OurTable;
use forwarder_state::own_rules::Rules;

use self::follow::Followed;
pub(crate) use self::start::reassemble;
use self::sync::Routing;
use crate::datapath::Datapath;
use crate::exhaustion::Exhaustion;
use crate::uplinks::Choice;

/// The interval at which the agent tells the programs that it is alive. They trust it for five
/// times as long.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// A change that failed.
struct Failure {
    /// The change, and why it failed.
    what: String,
    /// Whether the host is less protected without the change.
    protects: bool,
}

/// The agent's own state. All of it is derived anew when the agent starts.
pub(crate) struct Agent {
    datapath: Datapath,
    since: Instant,
    /// What the kernel should hold, as of the last sync.
    tables: DesiredState,
    /// What the kernel holds: what was read last, with all changes since. None if it must be read.
    held: Option<Observed>,
    /// Whether `held` must be compared with the kernel.
    is_doubted: bool,
    /// Whether devices have changed since `held` was up to date.
    devices_changed: bool,
    uplinks: Vec<Choice>,
    /// Uplinks whose driver refused XDP, and why.
    refused: BTreeMap<u32, String>,
    /// Socket programs that this kernel accepts; a program is removed when the kernel refuses it.
    sockets: BTreeSet<SocketHook>,
    /// Whether the kernel reassembles fragments.
    reassembles: bool,
    route_generation: u32,
    /// The routing data that `route_generation` stands for.
    routing: Option<Routing>,
    /// Increases whenever a port is published or bound, or an access list changes.
    policy_generation: u32,
    /// The generation of the access lists at that time.
    lists: Option<u32>,
    /// Whether the log already says that the host has more addresses than the map has room for.
    crowded: bool,
    /// Changes that failed in the last sync. The next heartbeat tries them again.
    failures: Vec<Failure>,
    /// Those of the sync before: they are in the log.
    failed_before: Vec<Failure>,
    /// What the log has said of what is applied.
    ledger: Ledger,
    /// Devices to which a program that protects could not be attached in the last sync.
    unhooked: BTreeSet<u32>,
    /// When the agent last asked the kernel whether the pinned links are still attached.
    links_checked: Instant,
    /// What the programs are armed for ([`armed`]): nothing before the first sync is complete.
    armed: u32,
    /// The tuples of connections that the kernel tracks and keeps until they end.
    kernel_owned: BTreeSet<Tuple<V4>>,
    /// The connections of the kernel that are followed.
    followed: Followed,
    /// Published ports that the kernel refused in the last sync, and why.
    unpublished: BTreeMap<HostPort, String>,
    /// Why the kernel does not hold all access lists of ports on IPv6 addresses.
    unguarded: Option<String>,
    /// Exhausted resources that the log does not mention yet.
    exhaustion: Exhaustion,
    /// The messages about other software's configuration that are already in the log.
    logged: BTreeSet<String>,
    /// Our own netfilter rules, as of the last sync.
    rules: Rules,
    /// Our own tables as they were last written.
    written: BTreeMap<OurTable, String>,
    /// Why our own tables could not be written.
    unwritten: BTreeMap<OurTable, String>,
}

impl Agent {
    /// Tells the programs that the agent is alive. Returns whether a failed change is to be tried
    /// again.
    pub(crate) fn housekeeping(&mut self, host_state: &HostState) -> Result<bool> {
        self.datapath.housekeeping()?;
        self.review_followed();
        self.log_exhaustion(host_state)?;
        Ok(!self.failures.is_empty())
    }

    /// Makes each flow check whether its port belongs to a service of the host that has just bound
    /// it.
    pub(crate) fn ask_flows(&mut self) -> Result<()> {
        self.policy_generation = self.policy_generation.wrapping_add(1).max(1);
        self.tables.policy = self.policy_generation;
        if let Some(held) = &mut self.held {
            held.tables.policy = self.policy_generation;
        }
        self.datapath.ask_flows(self.policy_generation)
    }

    /// Makes the next sync compare everything that the agent has applied with what the kernel holds.
    pub(crate) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Makes the next sync read again what the kernel removes with a device.
    pub(crate) fn devices_changed(&mut self) {
        self.devices_changed = true;
    }

    /// Whether the programs enforce their verdicts.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed != armed::NOT
    }

    /// Returns a protecting change that the last sync could not apply.
    pub(crate) fn unprotected(&self) -> Option<&str> {
        let failure = self.failures.iter().find(|failure| failure.protects)?;
        Some(&failure.what)
    }

    /// Returns what the kernel should hold, as of the last sync.
    pub(crate) fn tables(&self) -> &DesiredState {
        &self.tables
    }
}
