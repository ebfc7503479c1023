// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's own state, and a sync: observe, derive, compare, carry out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forwarder_common::abi::{PortKey, capacity, device, network};
use forwarder_common::family::{Be32, V4};
use serde_json::Value;

use crate::config::{Attach, Config, XdpMode};
use crate::control::Verb;
use crate::daemon::BEAT;
use crate::datapath::{self, Datapath, Setup, untracked};
use crate::desired::{Policy, be32, desired, port_key, port_key6};
use crate::desired_state::{DEFRAG_LOOPBACK, DesiredState, Hook, Key6, SocketHook};
use crate::diff::{Change, diff};
use crate::exhaustion::{self, Exhaustion};
use crate::host_state::{HostPort, HostState};
use crate::report;
use crate::stop::Stop;
use crate::uplinks::{self, Choice};

/// Whether it ends what a shim has given back: known also while Docker has not been heard.
fn is_given_back(host_state: &HostState, op: &Change) -> bool {
    let Change::DropPublished { key, .. } = op else {
        return false;
    };
    let mut given_back = host_state.unbound.iter().filter_map(port_key);
    given_back.any(|port| port == *key)
}

/// What flows keep of routes: whenever it changes, they look again.
#[derive(PartialEq, Eq)]
struct Routing {
    generation: u32,
    sources: BTreeMap<(u32, Be32, u8), Be32>,
    /// MTU of every device that packets may leave by.
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
            sources: tables.sources.clone(),
            devices: outside.map(|(index, _)| (*index, mtu(index))).collect(),
        }
    }
}

/// Has the kernel put fragments together; whether it does.
pub(crate) async fn reassemble(config: &Config) -> bool {
    match datapath::make_defrag_loopback(&config.bpffs_dir).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("fragments that would have to be translated are dropped: {error:#}");
            false
        }
    }
}

/// Has the verifier look at every program that this host may need. Without one of a device, an agent
/// is none; XDP and the sockets' programs only make things faster or nicer.
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
    if datapath::cgroup_root().is_some() {
        for hook in SocketHook::ALL {
            ensure!(!stop.is_asked(), "asked to stop");
            optional(datapath.load_socket(hook));
        }
    }
    Ok(())
}

/// How often the kernel is asked whether what is pinned is still attached.
const LOOK: Duration = Duration::from_secs(5);

/// An operation that failed.
struct Failure {
    /// Which one, and why.
    what: String,
    /// Whether something is more open without it than it should be.
    protects: bool,
}

/// The agent's own state, all of it derived anew when it starts.
pub(crate) struct Agent {
    datapath: Datapath,
    since: Instant,
    /// What the kernel should hold, as of the last sync.
    tables: DesiredState,
    uplinks: Vec<Choice>,
    /// Uplinks whose driver refused XDP, and why.
    refused: BTreeMap<u32, String>,
    /// Socket programs that this kernel takes, until it refuses one.
    sockets: BTreeSet<SocketHook>,
    /// Whether the kernel puts fragments together.
    reassembles: bool,
    route_generation: u32,
    /// What `route_generation` stands for.
    routing: Option<Routing>,
    /// Moves on whenever a port is published or bound, or a list of clients changes.
    policy_generation: u32,
    /// What the lists of clients were at that.
    lists: Option<u32>,
    /// The host has more addresses than the map has room for, which was said.
    crowded: bool,
    /// Operations that failed in the last sync: they are tried again with the next beat.
    failures: Vec<Failure>,
    /// When the kernel was asked last whether what is pinned is still attached.
    looked: Instant,
    /// Whether the programs judge packets: not before the first sync is complete.
    armed: bool,
    /// Published ports that the kernel refused in the last sync, and why.
    unpublished: BTreeMap<PortKey<V4>, String>,
    /// Why the kernel does not hold all lists of clients of ports on IPv6 addresses.
    unguarded: Option<String>,
    /// What was used up and is not told yet.
    exhaustion: Exhaustion,
    /// What the log was told of others' doing.
    told: BTreeSet<String>,
    /// Why our rule could not be added.
    tracked: Option<String>,
}

impl Agent {
    /// Loads every program and takes over what an earlier agent left, which goes on if this fails.
    ///
    /// # Errors
    /// The kernel refuses something that protects, or we are asked to stop.
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
            // This namespace's sockets are the ones to be pointed at containers.
            datapath.arm()?;
        }
        datapath.settle_xdp(config.xdp == XdpMode::Generic)?;
        datapath.housekeeping()?;
        // What an earlier agent did not come to any more.
        if let Err(error) = datapath.sever_sockets() {
            tracing::warn!("{error:#}");
        }
        let sockets = match datapath::cgroup_root() {
            Some(_) => SocketHook::ALL.into(),
            None => BTreeSet::new(),
        };
        // Whatever an earlier agent cached of routes may have moved while nobody watched.
        let observed = datapath.observe(true)?.tables;
        let exhaustion = Exhaustion::since(datapath.exhausted()?);
        Ok(Self {
            datapath,
            exhaustion,
            since: Instant::now(),
            tables: DesiredState::default(),
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
            looked: Instant::now(),
            armed,
            unpublished: BTreeMap::new(),
            unguarded: None,
            told: BTreeSet::new(),
            tracked: None,
        })
    }

    /// Says that we are alive; whether something failed that is to be tried again.
    pub(crate) fn housekeeping(&mut self, host_state: &HostState) -> Result<bool> {
        self.datapath.housekeeping()?;
        self.complain(host_state)?;
        Ok(!self.failures.is_empty())
    }

    /// A service of the host's has bound a port: each flow is asked whether that was its own.
    pub(crate) fn ask_flows(&mut self) -> Result<()> {
        self.policy_generation = self.policy_generation.wrapping_add(1).max(1);
        self.tables.policy = self.policy_generation;
        self.datapath.ask_flows(self.policy_generation)
    }

    /// Whether the programs judge packets.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed
    }

    /// What protects and could not be brought into the kernel by the last sync.
    pub(crate) fn unprotected(&self) -> Option<&str> {
        let failure = self.failures.iter().find(|failure| failure.protects)?;
        Some(&failure.what)
    }

    /// Has the programs judge packets from now on, once everything that protects is in place.
    pub(crate) fn arm(&mut self) -> Result<()> {
        if !self.armed && self.unprotected().is_none() {
            self.datapath.housekeeping()?;
            self.datapath.arm()?;
            self.armed = true;
        }
        Ok(())
    }

    /// What the kernel should hold, as of the last sync.
    pub(crate) fn tables(&self) -> &DesiredState {
        &self.tables
    }

    /// Makes the kernel hold what it should. Failures are logged and tried again.
    /// Ends early if we are asked to stop.
    pub(crate) async fn sync(
        &mut self,
        host_state: &HostState,
        config: &Config,
        stop: &Stop,
    ) -> Result<()> {
        loop {
            let known = self.refusals();
            self.defrag_loopback(host_state, config, stop).await?;
            // What is refused changes what is wanted.
            if self.refusals() == known || stop.is_asked() {
                return Ok(());
            }
        }
    }

    /// How much of what was tried this kernel and its drivers do not take.
    fn refusals(&self) -> usize {
        self.refused.len() + SocketHook::ALL.len() - self.sockets.len()
    }

    async fn defrag_loopback(
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
                "{closed} lists of clients have no room beside all others: they let nobody in"
            );
        }
        let routing = Routing::of(host_state, &tables);
        if self.routing.as_ref() != Some(&routing) {
            self.route_generation = self.route_generation.wrapping_add(1).max(1);
            tables.route_generation = self.route_generation;
            self.routing = Some(routing);
        }
        self.bound_locals(&mut tables);
        let look = self.looked.elapsed() >= LOOK;
        if look {
            self.looked = Instant::now();
        }
        let observed = self.datapath.observe(look)?;
        // A flow that holds a port on the host is asked once after something is published, and ends
        // if its port is: see `pipeline::access`. Never back to an earlier generation, in which a
        // flow may have rested since.
        let is_new = |(key, target)| observed.tables.published.get(key) != Some(target);
        if tables.published.iter().any(is_new) || self.lists != Some(tables.policy) {
            self.policy_generation = self.policy_generation.wrapping_add(1).max(1);
            self.lists = Some(tables.policy);
        }
        tables.policy = self.policy_generation;
        if !host_state.is_complete() {
            // What an earlier agent knew to be Docker's is not outside because Docker is silent.
            let dockers = |index: &u32| {
                let known = observed.tables.devices.get(index);
                known.is_some_and(|device| device.kind != device::OUTSIDE)
            };
            tables.devices.retain(|index, _| !dockers(index));
            tables.hooks.retain(|(index, _)| !dockers(index));
            // Nor does a port lose its list.
            tables.lists6 |= observed.tables.lists6;
        }
        self.tables = tables;
        self.heed_others(host_state);
        let names = host_state
            .links
            .values()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        self.failures.clear();
        self.unpublished.clear();
        self.unguarded = None;
        let ops = diff(&observed, &self.tables);
        let mut told = Instant::now();
        for op in ops
            .into_iter()
            .filter(|op| host_state.is_complete() || op.adds() || is_given_back(host_state, op))
        {
            if stop.is_asked() {
                break;
            }
            // Many programs take many seconds to attach.
            if told.elapsed() > BEAT {
                self.datapath.housekeeping()?;
                told = Instant::now();
            }
            match self.datapath.apply(&op, &names).await {
                Ok(()) => tracing::debug!("{op:?}"),
                Err(error) => self.failed(&op, &error),
            }
        }
        Ok(())
    }

    /// Tells the log what others have set up since it was told last, and keeps what is handed on from
    /// being tracked while anybody has rules.
    fn heed_others(&mut self, host_state: &HostState) {
        let lines = report::others(host_state);
        for line in lines.iter().filter(|line| !self.told.contains(*line)) {
            tracing::warn!("{line}");
        }
        self.told = lines.into_iter().collect();
        if host_state.others.tracks && !host_state.others.untracked {
            let failed = untracked::add().err().map(|error| format!("{error:#}"));
            if let Some(why) = &failed
                && self.tracked.as_ref() != Some(why)
            {
                tracing::warn!(
                    "others' rules of netfilter track and may translate what the fast path hands on: {why}"
                );
            }
            self.tracked = failed;
        } else if !host_state.others.tracks && host_state.others.untracked {
            untracked::remove();
        }
    }

    /// Leaves out what of the host's own addresses the map has no room for: packets to them still go
    /// to the host, since the kernel's routes say so, but not to published ports.
    fn bound_locals(&mut self, tables: &mut DesiredState) {
        let all = tables.locals.len();
        while tables.locals.len() > capacity::HOST_ADDRESSES as usize {
            tables.locals.pop_last();
        }
        let crowded = tables.locals.len() < all;
        if crowded && !self.crowded {
            let room = capacity::HOST_ADDRESSES;
            tracing::warn!(
                "the host has {all} addresses and ranges of its own, and there is room for {room}: \
                 published ports are not reached at the others; route whole ranges (ip route add \
                 local …) instead of single addresses"
            );
        }
        self.crowded = crowded;
    }

    /// Whether the kernel puts fragments together; makes it do so where it does not.
    async fn reassembles(&mut self, host_state: &HostState, config: &Config) -> bool {
        // Before the routes are known, nothing says that ours is not there.
        let known = host_state.route_generation != 0;
        let is_whole = |index| !known || host_state.routing.unspecified.contains(&index);
        let there = host_state
            .links
            .values()
            .any(|link| link.name == DEFRAG_LOOPBACK && link.up && is_whole(link.index));
        if !there && self.reassembles {
            tracing::warn!("the device {DEFRAG_LOOPBACK} or its route was taken away: made anew");
            self.reassembles = reassemble(config).await;
        }
        self.reassembles
    }

    /// Whether the last sync brought into the kernel what a shim has bound, or who may ask what a
    /// docker-proxy serves; else why not.
    pub(crate) fn holds(&self, host_state: &HostState, port: &HostPort) -> Result<(), String> {
        if let Some(key) = port_key6(port) {
            let why = self.unguarded.as_ref();
            let refused = why.map(|why| format!("the kernel refuses the lists of {port}: {why}"));
            let wanted = self.tables.ipv6.contains_key(&Key6::Published(key));
            return match refused {
                Some(refused) => Err(refused),
                None if wanted => Ok(()),
                None => Err(format!("{port} is not to be served any more")),
            };
        }
        let key =
            port_key(port).ok_or_else(|| format!("{port} is no port of IPv4's TCP or UDP"))?;
        let wanted = host_state.bound.get(port).map(|bound| bound.container_ip);
        let target = self.tables.published.get(&key).map(|target| target.addr);
        match (wanted, self.unpublished.get(&key)) {
            (_, Some(why)) => Err(format!("the kernel refuses the mapping of {port}: {why}")),
            (Some(IpAddr::V4(wanted)), None) if target == Some(be32(wanted)) => Ok(()),
            // A routed network has no ports of the host, which is as it should be.
            (Some(wanted), None) if target.is_none() && self.is_routed(host_state, wanted) => {
                Ok(())
            }
            _ => Err(format!("{port} leads elsewhere by now")),
        }
    }

    /// Whether an address is a container's of a network that is not translated.
    fn is_routed(&self, host_state: &HostState, address: IpAddr) -> bool {
        let network = host_state
            .seat(address)
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
        } else if let Change::AttachSocket(hook) = *op {
            tracing::warn!("{} is not in place: {error:#}", hook.program());
            self.sockets.remove(&hook);
        } else {
            tracing::warn!("{op:?}: {error:#}");
        }
        // What a device has taken along needs no protection.
        let gone = op.device().is_some_and(|index| !datapath::is_device(index));
        self.failures.push(Failure {
            what: format!("{op:?}: {error:#}"),
            protects: op.protects() && !gone,
        });
    }

    /// Tells the log what was used up lately, and who has most of it.
    fn complain(&mut self, host_state: &HostState) -> Result<()> {
        let counts = self.datapath.exhausted()?;
        for complaint in self.exhaustion.heard(counts, Instant::now()) {
            let holder = exhaustion::holder(host_state, &self.datapath.opened()?);
            tracing::warn!("{complaint}{}", holder.unwrap_or_default());
        }
        Ok(())
    }

    /// What the command line asks, by what the kernel holds.
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
