// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sync: observe the kernel, derive the desired state, compare, apply.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use forwarder_common::abi::{armed, capacity, device};
use forwarder_state::desired::{Policy, desired};
use forwarder_state::desired_state::{
    DEFRAG_LOOPBACK, DesiredState, Hook, Key6, MasqAddresses, Observed, SocketHook,
};
use forwarder_state::diff::{Change, diff};
use forwarder_state::host_state::HostState;
use forwarder_state::own_rules::Rules;

use super::{Agent, Failure, HEARTBEAT, arm, reassemble};
use crate::config::Config;
use crate::datapath;
use crate::stop::Stop;
use crate::sys::expedite::Expedited;
use crate::uplinks;

/// The interval at which the agent asks the kernel whether the pinned links are still attached.
const LINK_CHECK: Duration = Duration::from_secs(5);

/// From this number of attachments in a plan, the kernel's grace periods are expedited for them.
/// Fewer take about a tenth of a second.
const BURST: usize = 16;

/// The routing data that flows cache. When it changes, flows look up their routes again.
#[derive(PartialEq, Eq)]
pub(super) struct Routing {
    generation: u32,
    sources: MasqAddresses,
    /// The MTU of every device that packets may leave through.
    devices: BTreeMap<u32, u32>,
}

impl Routing {
    fn of(host_state: &HostState, tables: &DesiredState) -> Self {
        let outside = tables
            .devices
            .iter()
            .filter(|(_, device)| device.kind == device::OUTSIDE);
        let mtu = |index: &u32| host_state.links.get(index).map_or(0, |link| link.mtu);
        Self {
            generation: host_state.route_generation,
            sources: tables.masq_addresses(),
            devices: outside.map(|(index, _)| (*index, mtu(index))).collect(),
        }
    }
}

/// Attaching many programs one after the other, as a plan has them.
#[derive(Debug)]
struct Burst {
    /// Whether there are many, and the first is still to come.
    is_due: bool,
    /// While they are attached.
    expedited: Option<Expedited>,
}

impl Burst {
    fn of(plan: &[Change]) -> Self {
        let attached = plan.iter().filter(|change| attaches(change)).count();
        Self {
            is_due: attached >= BURST,
            expedited: None,
        }
    }

    /// Handles the plan's next change, before it is applied.
    fn next(&mut self, change: &Change) {
        if !attaches(change) {
            self.expedited = None;
        } else if std::mem::take(&mut self.is_due) {
            self.expedited = Expedited::begin();
        }
    }
}

fn attaches(change: &Change) -> bool {
    matches!(change, Change::Attach { .. })
}

impl Agent {
    /// Brings the kernel to the desired state. Failures are logged and tried again. Ends early if
    /// the agent is asked to stop.
    pub(crate) async fn sync(
        &mut self,
        host_state: &HostState,
        config: &Config,
        stop: &Stop,
    ) -> Result<()> {
        loop {
            let known = self.refusals();
            self.reconcile(host_state, config, stop).await?;
            // A refused program changes the desired state.
            if self.refusals() == known || stop.is_asked() {
                return Ok(());
            }
        }
    }

    /// Returns how many programs this kernel and its drivers have refused.
    fn refusals(&self) -> usize {
        self.refused.len() + SocketHook::ALL.len() - self.sockets.len()
    }

    async fn reconcile(
        &mut self,
        host_state: &HostState,
        config: &Config,
        stop: &Stop,
    ) -> Result<()> {
        self.uplinks = uplinks::choose(host_state, &config.uplinks, config.xdp, uplinks::driver);
        for choice in &mut self.uplinks {
            if let Some(why) = self.refused.get(&choice.ifindex) {
                choice.xdp = None;
                choice.why.clone_from(why);
            }
        }
        let policy = Policy {
            xdp: self
                .uplinks
                .iter()
                .filter_map(|u| Some((u.ifindex, u.xdp?)))
                .collect(),
            xdp_tcp: config.xdp_tcp,
            direct_routing: config.allow_direct_routing,
            rules: config.rules.clone(),
            sockets: self.sockets.clone(),
            keeps_rules: arm::target(config.mode, host_state, self.armed) == armed::ADOPT,
            reassembles: self.reassembles(host_state, config).await,
        };
        let mut tables = desired(host_state, &policy, self.route_generation);
        let closed = tables.closed_lists;
        if closed > self.tables.closed_lists {
            tracing::error!(
                "{closed} lists of clients do not fit into the kernel's map, so they let nobody \
                 in: use fewer address ranges"
            );
        }
        let routing = Routing::of(host_state, &tables);
        if self.routing.as_ref() != Some(&routing) {
            self.route_generation = self.route_generation.wrapping_add(1).max(1);
            tables.route_generation = self.route_generation;
            self.routing = Some(routing);
        }
        self.limit_host_addresses(&mut tables);
        let is_resync = self.is_doubted;
        let mut observed = self.observe()?;
        // After a port is published, a flow that holds a port on the host checks once whether the
        // port is still its own, and ends otherwise: see `pipeline::access`. The generation never
        // returns to an earlier value, because an idle flow may still carry that value.
        if tables.publishes_more(&observed.tables) || self.lists != Some(tables.policy) {
            self.policy_generation = self.policy_generation.wrapping_add(1).max(1);
            self.lists = Some(tables.policy);
        }
        tables.policy = self.policy_generation;
        if !host_state.is_complete() {
            // A device that an earlier agent knew to be Docker's does not become an outside device
            // because Docker does not answer.
            let dockers = |index: &u32| {
                let known = observed.tables.devices.get(index);
                known.is_some_and(|device| device.kind != device::OUTSIDE)
            };
            tables.devices.retain(|index, _| !dockers(index));
            tables.hooks.retain(|(index, _)| !dockers(index));
            // For the same reason, a port keeps its access list.
            tables.lists6 |= observed.tables.lists6;
        }
        let before = std::mem::replace(&mut self.tables, tables);
        let unfollowed = self.unfollow(&before, config);
        self.log_others(host_state);
        // What an earlier agent has hooked stays hooked until the host state is complete.
        let hooked_before =
            (!host_state.is_complete()).then(|| Rules::of(&observed.tables, |_| true));
        self.failed_before = std::mem::take(&mut self.failures);
        if let Err(error) = unfollowed {
            let what = format!("connections are followed still: {error:#}");
            self.warn_once(&what);
            self.failures.push(Failure {
                what,
                protects: false,
            });
        }
        self.unhooked.clear();
        self.unpublished.clear();
        self.unguarded = None;
        if self.keeps_rules() {
            // A handover takes time, and what is handed on needs the rule meanwhile.
            self.accept_handed_on(host_state);
        }
        let lost = self.begin_handover(&observed.tables, config)?;
        let mut ops = diff(&observed, &self.tables);
        if let Some(lost) = &lost {
            let (first, rest) = arm::handover_order(ops, &observed.tables, lost);
            self.detach_first(&first, &mut observed).await;
            ops = rest;
        }
        let names = names(host_state, &ops);
        let mut burst = Burst::of(&ops);
        let mut last_heartbeat = Instant::now();
        for op in ops
            .into_iter()
            .filter(|op| host_state.is_complete() || op.adds() || is_given_back(host_state, op))
        {
            if stop.is_asked() {
                break;
            }
            // Attaching many programs may take many seconds.
            if last_heartbeat.elapsed() > HEARTBEAT {
                self.datapath.housekeeping()?;
                last_heartbeat = Instant::now();
            }
            burst.next(&op);
            self.apply(&op, &names, &mut observed).await;
        }
        drop(burst);
        if stop.is_asked() {
            return Ok(());
        }
        if lost.is_some() {
            self.take_over(config)?;
        }
        self.rules = Rules::of(&self.tables, |index| !self.unhooked.contains(&index));
        if let Some(before) = &hooked_before {
            self.rules.extend(before);
        }
        // Connections are tracked only if other software has rules.
        self.rules.untracked = host_state.others.tracks;
        if self.is_armed() {
            self.write_rules(host_state);
        }
        self.log_notices(host_state, &observed.tables, is_resync);
        // A change that has failed may be half done.
        self.held = self.failures.is_empty().then_some(observed);
        Ok(())
    }

    /// Applies one change.
    async fn apply(&mut self, op: &Change, names: &BTreeMap<u32, String>, observed: &mut Observed) {
        match self.datapath.apply(op, names).await {
            Ok(()) => {
                tracing::debug!("{op:?}");
                observed.apply(op);
                self.ledger.applied(op);
            }
            Err(error) => self.failed(op, &error),
        }
    }

    /// Detaches programs, and waits until the kernel has done so.
    async fn detach_first(&mut self, ops: &[Change], observed: &mut Observed) {
        let mut links = Vec::new();
        for op in ops {
            self.apply(op, &BTreeMap::new(), observed).await;
            if let Change::Detach { ifindex, hook } = *op {
                links.push((ifindex, hook));
            }
        }
        self.datapath.await_detached(&links).await;
    }

    /// Returns what the kernel holds. Nobody but the agent writes most of it, so it is read only at
    /// the start, after an error, and when it is doubted.
    fn observe(&mut self) -> Result<Observed> {
        let devices_changed = std::mem::take(&mut self.devices_changed);
        let is_doubted = std::mem::take(&mut self.is_doubted);
        let held = match self.held.take() {
            Some(mut held) if !is_doubted => {
                if devices_changed {
                    self.datapath.observe_devices(&mut held)?;
                }
                return Ok(held);
            }
            held => held,
        };
        let check_links = self.links_checked.elapsed() >= LINK_CHECK;
        if check_links {
            self.links_checked = Instant::now();
        }
        let observed = self.datapath.observe(check_links)?;
        if let Some(held) = held {
            let lost = diff(&observed, &held.tables);
            if !lost.is_empty() {
                tracing::info!(
                    differences = lost.len(),
                    "somebody has changed what the agent applied: applying it again"
                );
                tracing::debug!("the differences: {lost:?}");
            }
        }
        Ok(observed)
    }

    /// Whether the kernel reassembles fragments; sets up defragmentation if it does not.
    async fn reassembles(&mut self, host_state: &HostState, config: &Config) -> bool {
        // Before the routes are known, a missing route proves nothing.
        let known = host_state.route_generation != 0;
        let is_whole = |index| !known || host_state.routing.unspecified.contains(&index);
        let there = host_state
            .links
            .values()
            .any(|link| link.name == DEFRAG_LOOPBACK && link.up && is_whole(link.index));
        if !there && self.reassembles {
            tracing::warn!(
                "the device {DEFRAG_LOOPBACK} or its route was removed: creating it again"
            );
            self.reassembles = reassemble(config).await;
        }
        self.reassembles
    }

    /// Omits host addresses that exceed the map's capacity. Packets to these addresses still reach
    /// the host by the kernel's routes, but they do not reach published ports.
    fn limit_host_addresses(&mut self, tables: &mut DesiredState) {
        let crowded = tables.limit_host_addresses();
        if let Some(all) = crowded.filter(|_| !self.crowded) {
            let room = capacity::HOST_ADDRESSES;
            tracing::warn!(
                "the host has {all} addresses and local ranges, but the kernel's map holds {room}: \
                 published ports cannot be reached at the others; route whole ranges (ip route add \
                 local …) instead of single addresses"
            );
        }
        self.crowded = crowded.is_some();
    }

    /// Warns of a failure, unless the sync before had the same one.
    fn warn_once(&self, what: &str) {
        if !self.failed_before.iter().any(|known| known.what == what) {
            tracing::warn!("{what}");
        }
    }

    fn failed(&mut self, op: &Change, error: &anyhow::Error) {
        let what = match op.publishes() {
            Some(port) => format!("cannot publish {port}: {error:#}"),
            None => format!("{op:?}: {error:#}"),
        };
        if let Some(port) = op.publishes() {
            self.unpublished.insert(port, format!("{error:#}"));
        }
        if matches!(
            op,
            Change::PutIpv6(Key6::Ingress(..) | Key6::Published(_), _) | Change::Settings { .. }
        ) {
            self.unguarded = Some(format!("{error:#}"));
        }
        if let Change::Attach {
            ifindex,
            hook: Hook::Uplink,
            ..
        } = *op
        {
            let why = format!("the driver refuses XDP: {error:#}");
            tracing::warn!("device {ifindex}: {why}");
            self.refused.insert(ifindex, why);
        } else if let Change::AttachSocket(hook) = *op
            && hook.is_on_cgroup()
        {
            tracing::warn!("cannot attach {}: {error:#}", hook.program());
            self.sockets.remove(&hook);
        } else {
            self.warn_once(&what);
        }
        if let Change::Attach { ifindex, .. } = *op
            && op.protects()
        {
            self.unhooked.insert(ifindex);
        }
        // A device that has been deleted needs no protection.
        let gone = op.device().is_some_and(|index| !datapath::is_device(index));
        self.failures.push(Failure {
            what,
            protects: op.protects() && !gone,
        });
    }
}

/// Whether a change removes a port that a shim has released. This is known even while Docker does
/// not answer.
fn is_given_back(host_state: &HostState, op: &Change) -> bool {
    let port = op.withdraws();
    port.is_some_and(|port| host_state.unbound.contains(&port))
}

/// Returns the names of the devices that programs are to be attached to.
fn names(host_state: &HostState, ops: &[Change]) -> BTreeMap<u32, String> {
    let name = |op: &Change| {
        let Change::Attach { ifindex, .. } = *op else {
            return None;
        };
        let link = host_state.links.get(&ifindex)?;
        Some((ifindex, link.name.clone()))
    };
    ops.iter().filter_map(name).collect()
}
