// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's own state and its sync: observe the kernel, derive the desired state, compare,
//! apply.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forwarder_common::abi::{PortKey, capacity, device, network};
use forwarder_common::family::{Be32, V4};
use forwarder_state::address::WireAddress as _;
use forwarder_state::desired::{Policy, desired, port_key, port_key6};
use forwarder_state::desired_state::{
    DEFRAG_LOOPBACK, DesiredState, Hook, Key6, Observed, SocketHook,
};
use forwarder_state::diff::{Change, diff};
use forwarder_state::host_state::{HostPort, HostState};
use forwarder_state::others::OurTable;
use forwarder_state::own_rules::Rules;
use serde_json::Value;

use crate::config::{Attach, Config, XdpMode};
use crate::control::Verb;
use crate::datapath::{self, Datapath, Setup};
use crate::exhaustion::{self, Exhaustion};
use crate::report;
use crate::stop::Stop;
use crate::sys::cgroup::cgroup_root;
use crate::sys::netfilter;
use crate::uplinks::{self, Choice};

/// The interval at which the agent tells the programs that it is alive. They trust it for five
/// times as long.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Whether a change removes a port that a shim has released. This is known even while Docker does
/// not answer.
fn is_given_back(host_state: &HostState, op: &Change) -> bool {
    let Change::DropPublished { key, .. } = op else {
        return false;
    };
    let mut given_back = host_state.unbound.iter().filter_map(port_key);
    given_back.any(|port| port == *key)
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

/// The routing data that flows cache. When it changes, flows look up their routes again.
#[derive(PartialEq, Eq)]
struct Routing {
    generation: u32,
    sources: BTreeMap<(u32, Be32, u8), Be32>,
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
            sources: tables.masq_addresses.clone(),
            devices: outside.map(|(index, _)| (*index, mtu(index))).collect(),
        }
    }
}

/// Sets up the kernel's defragmentation; returns whether it is available.
pub(crate) async fn reassemble(config: &Config) -> bool {
    match datapath::make_defrag_loopback(&config.bpffs_dir).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                "fragments that need translation are dropped, because the kernel does not \
                 reassemble them: {error:#}"
            );
            false
        }
    }
}

/// Returns what happens without a table of ours.
const fn without(table: OurTable) -> &'static str {
    match table {
        OurTable::Untracked => {
            "connection tracking may translate packets that the fast path passes to the kernel, \
             because other software has netfilter rules"
        }
        OurTable::Forwarded => {
            "networks that are made while no agent runs will reach each other until one runs"
        }
        OurTable::Bridged => {
            "containers that are started while no agent runs on a network with icc=false will \
             reach each other until one runs"
        }
    }
}

/// Passes every program that this host may need through the verifier. The XDP program and those on
/// the root cgroup are optional, because they only improve speed or convenience. All others are
/// required.
fn load(datapath: &mut Datapath, xdp: XdpMode, stop: &Stop) -> Result<()> {
    let optional = |loaded: Result<()>| {
        if let Err(error) = loaded {
            tracing::warn!("{error:#}");
        }
    };
    for hook in Hook::ALL {
        ensure!(!stop.is_asked(), "asked to stop");
        match hook {
            Hook::Uplink if xdp == XdpMode::Off => {}
            Hook::Uplink => optional(datapath.load(hook)),
            _ => datapath.load(hook)?,
        }
    }
    let has_cgroup = cgroup_root().is_some();
    for hook in SocketHook::ALL {
        ensure!(!stop.is_asked(), "asked to stop");
        match hook {
            SocketHook::SkLookup => datapath.load_socket(hook)?,
            _ if has_cgroup => optional(datapath.load_socket(hook)),
            _ => {}
        }
    }
    Ok(())
}

/// The interval at which the agent asks the kernel whether the pinned links are still attached.
const LINK_CHECK: Duration = Duration::from_secs(5);

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
    /// Devices to which a program that protects could not be attached in the last sync.
    unhooked: BTreeSet<u32>,
    /// When the agent last asked the kernel whether the pinned links are still attached.
    links_checked: Instant,
    /// Whether the programs enforce their verdicts: not before the first sync is complete.
    armed: bool,
    /// Published ports that the kernel refused in the last sync, and why.
    unpublished: BTreeMap<PortKey<V4>, String>,
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
    /// Loads every program and takes over the state of an earlier agent. If this fails, that state
    /// continues to work.
    ///
    /// # Errors
    /// The kernel refuses something that protects, or the agent is asked to stop.
    pub(crate) fn start(
        config: &Config,
        host_state: &HostState,
        reassembles: bool,
        stop: &Stop,
    ) -> Result<Self> {
        let setup = Setup {
            bpffs_dir: config.bpffs_dir.clone(),
            state_dir: config.state_dir.clone(),
            flows: config.flows,
            flow_quota: config.flow_quota,
            flow_rate: config.flow_rate,
            tcp_loose: config.tcp_loose,
            reserved_ports: config.reserved_ports,
            clsact: match config.attach {
                Attach::Tcx => false,
                Attach::Clsact => true,
                Attach::Auto => !datapath::has_tcx(),
            },
        };
        let name_of = |index: u32| host_state.links.get(&index).map(|link| link.name.clone());
        let mut datapath = Datapath::open(&setup)?;
        load(&mut datapath, config.xdp, stop)?;
        datapath.adopt(name_of)?;
        let armed = datapath.is_armed()?;
        if armed {
            // The socket programs redirect the sockets of this network namespace.
            datapath.arm()?;
        }
        datapath.settle_xdp(config.xdp == XdpMode::Generic)?;
        datapath.housekeeping()?;
        // Complete what an earlier agent did not finish.
        if let Err(error) = datapath.sever_sockets() {
            tracing::warn!("{error:#}");
        }
        let sockets = match cgroup_root() {
            Some(_) => SocketHook::ALL.into(),
            None => [SocketHook::SkLookup].into(),
        };
        // An earlier agent may have cached routes that changed while no agent watched them.
        let observed = datapath.observe(true)?.tables;
        let exhaustion = Exhaustion::since(datapath.exhausted()?);
        Ok(Self {
            datapath,
            exhaustion,
            since: Instant::now(),
            tables: DesiredState::default(),
            held: None,
            is_doubted: false,
            devices_changed: false,
            uplinks: Vec::new(),
            refused: BTreeMap::new(),
            sockets,
            reassembles,
            route_generation: observed.route_generation,
            routing: None,
            policy_generation: observed.policy,
            lists: None,
            crowded: false,
            failures: Vec::new(),
            unhooked: BTreeSet::new(),
            links_checked: Instant::now(),
            armed,
            unpublished: BTreeMap::new(),
            unguarded: None,
            logged: BTreeSet::new(),
            rules: Rules::default(),
            written: BTreeMap::new(),
            unwritten: BTreeMap::new(),
        })
    }

    /// Tells the programs that the agent is alive. Returns whether a failed change is to be tried
    /// again.
    pub(crate) fn housekeeping(&mut self, host_state: &HostState) -> Result<bool> {
        self.datapath.housekeeping()?;
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

    /// Whether the programs enforce their verdicts.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed
    }

    /// Returns a protecting change that the last sync could not apply.
    pub(crate) fn unprotected(&self) -> Option<&str> {
        let failure = self.failures.iter().find(|failure| failure.protects)?;
        Some(&failure.what)
    }

    /// Makes the programs enforce their verdicts, once everything that protects is in place.
    pub(crate) fn arm(&mut self, host_state: &HostState) -> Result<()> {
        if !self.armed && self.unprotected().is_none() {
            self.datapath.housekeeping()?;
            self.datapath.arm()?;
            self.armed = true;
            self.write_rules(host_state);
        }
        Ok(())
    }

    /// Returns what the kernel should hold, as of the last sync.
    pub(crate) fn tables(&self) -> &DesiredState {
        &self.tables
    }

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
        let mut observed = self.observe()?;
        // After a port is published, a flow that holds a port on the host checks once whether the
        // port is still its own, and ends otherwise: see `pipeline::access`. The generation never
        // returns to an earlier value, because an idle flow may still carry that value.
        let is_new = |(key, target)| observed.tables.published.get(key) != Some(target);
        if tables.published.iter().any(is_new) || self.lists != Some(tables.policy) {
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
        self.tables = tables;
        self.log_others(host_state);
        // What an earlier agent has hooked stays hooked until the host state is complete.
        let hooked_before =
            (!host_state.is_complete()).then(|| Rules::of(&observed.tables, |_| true));
        self.failures.clear();
        self.unhooked.clear();
        self.unpublished.clear();
        self.unguarded = None;
        let ops = diff(&observed, &self.tables);
        let names = names(host_state, &ops);
        let mut last_heartbeat = Instant::now();
        for op in ops
            .into_iter()
            .filter(|op| host_state.is_complete() || op.adds() || is_given_back(host_state, op))
        {
            if stop.is_asked() {
                break;
            }
            // Attaching many programs takes many seconds.
            if last_heartbeat.elapsed() > HEARTBEAT {
                self.datapath.housekeeping()?;
                last_heartbeat = Instant::now();
            }
            match self.datapath.apply(&op, &names).await {
                Ok(()) => {
                    tracing::debug!("{op:?}");
                    observed.apply(&op);
                }
                Err(error) => self.failed(&op, &error),
            }
        }
        if stop.is_asked() {
            return Ok(());
        }
        self.rules = Rules::of(&self.tables, |index| !self.unhooked.contains(&index));
        if let Some(before) = &hooked_before {
            self.rules.extend(before);
        }
        // Connections are tracked only if other software has rules.
        self.rules.untracked = host_state.others.tracks;
        if self.armed {
            self.write_rules(host_state);
        }
        // A change that has failed may be half done.
        self.held = self.failures.is_empty().then_some(observed);
        Ok(())
    }

    /// Brings our own tables of netfilter to what they should be. A table that cannot be written is
    /// logged, once for each cause, and tried again in the next sync.
    fn write_rules(&mut self, host_state: &HostState) {
        for table in OurTable::ALL {
            // That nft is missing is logged at the start.
            if table != OurTable::Untracked && !netfilter::has_nft() {
                continue;
            }
            let content = self.rules.content(table);
            // What was read before the last write says nothing about it. The kernel reports each
            // write, so the rules are read again.
            let read = host_state.others.ours.as_ref();
            let current = read.filter(|_| host_state.others.writes == netfilter::writes());
            let is_there = current.is_none_or(|ours| ours.contains(&table) == content.is_some());
            if self.written.get(&table) == content.as_ref() && is_there {
                continue;
            }
            match netfilter::put(table, content.as_deref()) {
                Ok(()) => {
                    self.unwritten.remove(&table);
                    self.written.remove(&table);
                    self.written.extend(content.map(|content| (table, content)));
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if self.unwritten.get(&table) != Some(&why) {
                        tracing::warn!("{}: {why}", without(table));
                    }
                    self.unwritten.insert(table, why);
                }
            }
        }
    }

    /// Logs what other software has configured since the last message.
    fn log_others(&mut self, host_state: &HostState) {
        let lines = report::others(host_state);
        for line in lines.iter().filter(|line| !self.logged.contains(*line)) {
            tracing::warn!("{line}");
        }
        self.logged = lines.into_iter().collect();
    }

    /// Omits host addresses that exceed the map's capacity. Packets to these addresses still reach
    /// the host by the kernel's routes, but they do not reach published ports.
    fn limit_host_addresses(&mut self, tables: &mut DesiredState) {
        let all = tables.host_addresses.len();
        while tables.host_addresses.len() > capacity::HOST_ADDRESSES as usize {
            tables.host_addresses.pop_last();
        }
        let crowded = tables.host_addresses.len() < all;
        if crowded && !self.crowded {
            let room = capacity::HOST_ADDRESSES;
            tracing::warn!(
                "the host has {all} addresses and local ranges, but the kernel's map holds {room}: \
                 published ports cannot be reached at the others; route whole ranges (ip route add \
                 local …) instead of single addresses"
            );
        }
        self.crowded = crowded;
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
        let key =
            port_key(port).ok_or_else(|| format!("{port} is not an IPv4 port of TCP or UDP"))?;
        let wanted = host_state.bound.get(port).map(|bound| bound.container_ip);
        let target = self.tables.published.get(&key).map(|target| target.addr);
        match (wanted, self.unpublished.get(&key)) {
            (_, Some(why)) => Err(format!("the kernel refuses the mapping of {port}: {why}")),
            (Some(IpAddr::V4(wanted)), None) if target == Some(Be32::from_std(wanted)) => Ok(()),
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
        let row = bridge.and_then(|link| self.tables.networks.get(&link.index));
        row.is_some_and(|row| row.flags & network::ROUTED != 0)
    }

    fn failed(&mut self, op: &Change, error: &anyhow::Error) {
        if let Change::PutPublished { key, .. } = *op {
            self.unpublished.insert(key, format!("{error:#}"));
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
            tracing::warn!("{op:?}: {error:#}");
        }
        if let Change::Attach { ifindex, .. } = *op
            && op.protects()
        {
            self.unhooked.insert(ifindex);
        }
        // A device that has been deleted needs no protection.
        let gone = op.device().is_some_and(|index| !datapath::is_device(index));
        self.failures.push(Failure {
            what: format!("{op:?}: {error:#}"),
            protects: op.protects() && !gone,
        });
    }

    /// Logs resources that were recently exhausted, and which container uses most of them.
    fn log_exhaustion(&mut self, host_state: &HostState) -> Result<()> {
        let counts = self.datapath.exhausted()?;
        for message in self.exhaustion.due(counts, Instant::now()) {
            let holder = exhaustion::holder(host_state, &self.datapath.opened()?);
            tracing::warn!("{message}{}", holder.unwrap_or_default());
        }
        Ok(())
    }

    /// Answers a query of the command line from what the kernel holds.
    pub(crate) fn answer(&mut self, host_state: &HostState, verb: Verb) -> Value {
        let held = match self.datapath.observe(true) {
            Ok(observed) => observed.tables,
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
        };
        answer.unwrap_or(Value::Null)
    }
}
