//! The control story: one event enum, one loop. THEN HERE.
//!
//! Facts change the World; a changed World is synced: what the kernel holds is observed, what it
//! should hold is derived, and the difference is carried out. Crash recovery, drift and the steady
//! state are this one path. Nothing is removed before every source has given a full list, and
//! nothing because Docker is away. The guard of the outside devices needs no Docker: dockerd starts
//! its containers before it answers, and they find it in place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forwarder_common::abi::{PortKey, device, network};
use forwarder_common::family::{Be32, V4};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::config::{Attach, Config, XdpMode};
use crate::control::{self, Query, Verb};
use crate::datapath::{self, Datapath, Setup};
use crate::desired::{Policy, be32, desired, port_key};
use crate::diff::{Op, diff};
use crate::exhaustion::{self, Exhaustion};
use crate::rules::Rules;
use crate::shims::Shims;
use crate::tables::{Hook, SocketHook, Tables};
use crate::uplinks::{self, Choice};
use crate::watch::shim::Call;
use crate::world::{Fact, HostPort, World};
use crate::{report, watch};

/// How often the programs are told that the agent is alive; they trust it for five times as long.
const BEAT: Duration = Duration::from_secs(1);
/// How often the kernel is compared with what it should hold though nothing was heard.
const RESYNC: Duration = Duration::from_secs(10);

/// Everything that can happen.
enum Event {
    /// A source says something.
    Fact(Fact),
    /// The command line asks something.
    Query(Query),
    /// The administrator lays something else down.
    Rules(Rules),
    /// A shim of dockerd's says something.
    Call(Call),
    /// Time to say that we are alive, and to try again what failed.
    Beat,
    /// Time to compare.
    Resync,
    /// Asked to stop: everything stays in place and goes on without us.
    Stop,
    /// A source has ended for a reason that waiting cannot repair.
    Broken(anyhow::Error),
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// What waiting cannot repair: the kernel refuses the programs, Docker's socket is unreadable.
pub async fn run(mut config: Config) -> Result<()> {
    let mut sources = Sources::start(&config)?;
    let mut world = World::default();
    let mut agent: Option<Agent> = None;
    let mut shims = Shims::new(Instant::now());
    let mut ready = false;
    loop {
        let mut event = sources.next().await;
        let mut changed = false;
        while let Event::Fact(fact) = event {
            changed |= world.apply(fact);
            event = sources.waiting().map_or(Event::Beat, Event::Fact);
        }
        match event {
            Event::Fact(_) => {}
            Event::Query(Query { verb, reply }) => {
                let answer = agent.as_ref().map(|agent| agent.answer(&world, verb));
                // Nobody to tell if the asker has gone.
                let _ = reply.send(answer.unwrap_or_default());
            }
            Event::Rules(rules) => {
                config.rules = rules;
                changed = true;
            }
            Event::Call(call) => {
                // They come in crowds: one sync answers them all.
                let calls = std::iter::successors(Some(call), |_| sources.calling());
                for call in calls {
                    changed |= shims.hear(call, &mut world, Instant::now());
                }
            }
            Event::Beat => {
                shims.review(&mut world, Instant::now());
                if let Some(agent) = &mut agent {
                    agent.datapath.beat()?;
                    changed |= agent.failing;
                    agent.complain(&world)?;
                }
            }
            Event::Resync => changed = true,
            Event::Stop => return Ok(()),
            Event::Broken(error) => return Err(error),
        }
        if !changed || !world.is_host_known() {
            continue;
        }
        if agent.is_none() {
            agent = Some(Agent::start(&config, &world)?);
        }
        let Some(agent) = &mut agent else { continue };
        agent.sync(&world, &config).await?;
        shims.synced(|port| agent.holds(&world, port));
        if !ready && world.is_complete() {
            announce(&world, &agent.tables)?;
            ready = true;
        }
    }
}

/// The `ready` line: the first sync is in the kernel.
fn announce(world: &World, tables: &Tables) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "ready: {} networks, {} published ports, {} devices, Docker {}",
        tables.networks.len(),
        tables.published.len(),
        tables.devices.len(),
        world.docker.as_deref().unwrap_or("away"),
    )
    .and_then(|()| out.flush())
    .context("cannot write to stdout")
}

/// Where events come from.
struct Sources {
    facts: mpsc::Receiver<Fact>,
    queries: mpsc::Receiver<Query>,
    rules: mpsc::Receiver<Rules>,
    calls: mpsc::Receiver<Call>,
    watchers: JoinSet<Result<()>>,
    beat: Interval,
    resync: Interval,
    terminate: Signal,
    interrupt: Signal,
    /// Answers the command line as long as it is held.
    _server: control::Server,
}

impl Sources {
    fn start(config: &Config) -> Result<Self> {
        let (facts_in, facts) = mpsc::channel(1024);
        let (queries_in, queries) = mpsc::channel(16);
        let (rules_in, rules) = mpsc::channel(1);
        let (calls_in, calls) = mpsc::channel(1024);
        let socket = control::socket(&config.state_dir);
        let server = control::serve(&socket, queries_in, calls_in)?;
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Ok(Self {
            facts,
            queries,
            rules,
            calls,
            watchers: watch::spawn(
                config.docker.clone(),
                config.file.clone(),
                facts_in,
                rules_in,
            ),
            beat: every(BEAT),
            resync: every(RESYNC),
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
            _server: server,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            Some(fact) = self.facts.recv() => Event::Fact(fact),
            Some(query) = self.queries.recv() => Event::Query(query),
            Some(rules) = self.rules.recv() => Event::Rules(rules),
            Some(call) = self.calls.recv() => Event::Call(call),
            Some(ended) = self.watchers.join_next() => Event::Broken(why(ended)),
            _ = self.beat.tick() => Event::Beat,
            _ = self.resync.tick() => Event::Resync,
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
        }
    }

    /// A call that is already there.
    fn calling(&mut self) -> Option<Call> {
        self.calls.try_recv().ok()
    }

    /// A fact that is already there.
    fn waiting(&mut self) -> Option<Fact> {
        self.facts.try_recv().ok()
    }
}

fn why(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a source of facts has ended"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::Error::new(panic).context("a source of facts died"),
    }
}

/// Whether it ends what a shim has given back: known also while Docker has not been heard.
fn is_given_back(world: &World, op: &Op) -> bool {
    let Op::DropPublished { key, .. } = op else {
        return false;
    };
    let mut given_back = world.unbound.iter().filter_map(port_key);
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
    fn of(world: &World, tables: &Tables) -> Self {
        let outside = tables
            .devices
            .iter()
            .filter(|(_, device)| device.kind == device::OUTSIDE);
        let mtu = |index: &u32| world.links.get(index).map_or(0, |link| link.mtu);
        Self {
            generation: world.route_generation,
            sources: tables.sources.clone(),
            devices: outside.map(|(index, _)| (*index, mtu(index))).collect(),
        }
    }
}

/// The agent's own state, all of it derived anew when it starts.
struct Agent {
    datapath: Datapath,
    since: Instant,
    /// What the kernel should hold, as of the last sync.
    tables: Tables,
    uplinks: Vec<Choice>,
    /// Uplinks whose driver refused XDP, and why.
    refused: BTreeMap<u32, String>,
    /// Socket programs that this kernel takes, until it refuses one.
    sockets: BTreeSet<SocketHook>,
    route_generation: u32,
    /// What `route_generation` stands for.
    routing: Option<Routing>,
    /// Some operation failed in the last sync: it is tried again with the next beat.
    failing: bool,
    /// Published ports that the kernel refused in the last sync, and why.
    unpublished: BTreeMap<PortKey<V4>, String>,
    /// What was used up and is not told yet.
    exhaustion: Exhaustion,
}

impl Agent {
    fn start(config: &Config, world: &World) -> Result<Self> {
        let setup = Setup {
            bpffs_dir: config.bpffs_dir.clone(),
            state_dir: config.state_dir.clone(),
            flows: config.flows,
            flow_quota: config.flow_quota,
            flow_rate: config.flow_rate,
            clsact: match config.attach {
                Attach::Tcx => false,
                Attach::Clsact => true,
                Attach::Auto => !datapath::has_tcx(),
            },
        };
        let name_of = |index: u32| world.links.get(&index).map(|link| link.name.clone());
        let mut datapath = Datapath::open(&setup, name_of)?;
        datapath.settle_xdp(config.xdp == XdpMode::Generic)?;
        datapath.beat()?;
        // What an earlier agent did not come to any more.
        if let Err(error) = datapath.sever_sockets() {
            tracing::warn!("{error:#}");
        }
        let sockets = match datapath::cgroup_root() {
            Some(_) => SocketHook::ALL.into(),
            None => BTreeSet::new(),
        };
        // Whatever an earlier agent cached of routes may have moved while nobody watched.
        let route_generation = datapath.observe()?.tables.route_generation;
        let exhaustion = Exhaustion::since(datapath.exhausted()?);
        Ok(Self {
            datapath,
            exhaustion,
            since: Instant::now(),
            tables: Tables::default(),
            uplinks: Vec::new(),
            refused: BTreeMap::new(),
            sockets,
            route_generation,
            routing: None,
            failing: false,
            unpublished: BTreeMap::new(),
        })
    }

    /// Makes the kernel hold what it should. Failures are logged and tried again.
    async fn sync(&mut self, world: &World, config: &Config) -> Result<()> {
        self.uplinks = uplinks::choose(world, &config.uplinks, config.xdp, uplinks::driver);
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
        };
        let mut tables = desired(world, &policy, self.route_generation);
        let routing = Routing::of(world, &tables);
        if self.routing.as_ref() != Some(&routing) {
            self.route_generation = self.route_generation.wrapping_add(1).max(1);
            tables.route_generation = self.route_generation;
            self.routing = Some(routing);
        }
        let observed = self.datapath.observe()?;
        if !world.is_complete() {
            // What an earlier agent knew to be Docker's is not outside because Docker is silent.
            let dockers = |index: &u32| {
                let known = observed.tables.devices.get(index);
                known.is_some_and(|device| device.kind != device::OUTSIDE)
            };
            tables.devices.retain(|index, _| !dockers(index));
            tables.hooks.retain(|(index, _)| !dockers(index));
        }
        self.tables = tables;
        let names = world
            .links
            .values()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        self.failing = false;
        self.unpublished.clear();
        let ops = diff(&observed, &self.tables);
        for op in ops
            .into_iter()
            .filter(|op| world.is_complete() || op.adds() || is_given_back(world, op))
        {
            match self.datapath.apply(&op, &names).await {
                Ok(()) => tracing::debug!("{op:?}"),
                Err(error) => self.failed(&op, &error),
            }
        }
        Ok(())
    }

    /// Whether the last sync brought into the kernel what a shim has bound; else why not.
    fn holds(&self, world: &World, port: &HostPort) -> Result<(), String> {
        let key =
            port_key(port).ok_or_else(|| format!("{port} is no port of IPv4's TCP or UDP"))?;
        let wanted = world.bound.get(port).map(|bound| bound.container_ip);
        let target = self.tables.published.get(&key).map(|target| target.addr);
        match (wanted, self.unpublished.get(&key)) {
            (_, Some(why)) => Err(format!("the kernel refuses the mapping of {port}: {why}")),
            (Some(IpAddr::V4(wanted)), None) if target == Some(be32(wanted)) => Ok(()),
            // A routed network has no ports of the host, which is as it should be.
            (Some(wanted), None) if target.is_none() && self.is_routed(world, wanted) => Ok(()),
            _ => Err(format!("{port} leads elsewhere by now")),
        }
    }

    /// Whether an address is a container's of a network that is not translated.
    fn is_routed(&self, world: &World, address: IpAddr) -> bool {
        let network = world.seat(address).map(|(id, _)| &world.networks[id]);
        let bridge = network.and_then(|network| world.bridge(network));
        let row = bridge.and_then(|link| self.tables.networks.get(&link.index));
        row.is_some_and(|row| row.flags & network::ROUTED != 0)
    }

    fn failed(&mut self, op: &Op, error: &anyhow::Error) {
        if let Op::PutPublished { key, .. } = *op {
            self.unpublished.insert(key, format!("{error:#}"));
        }
        if let Op::Attach {
            ifindex,
            hook: Hook::Uplink,
            ..
        } = *op
        {
            let why = format!("the driver refuses XDP: {error:#}");
            tracing::warn!("device {ifindex}: {why}");
            self.refused.insert(ifindex, why);
        } else if let Op::AttachSocket(hook) = *op {
            tracing::warn!("{} is not in place: {error:#}", hook.program());
            self.sockets.remove(&hook);
        } else {
            tracing::warn!("{op:?}: {error:#}");
        }
        self.failing = true;
    }

    /// Tells the log what was used up lately, and who has most of it.
    fn complain(&mut self, world: &World) -> Result<()> {
        let counts = self.datapath.exhausted()?;
        for complaint in self.exhaustion.heard(counts, Instant::now()) {
            let holder = exhaustion::holder(world, &self.datapath.opened()?);
            tracing::warn!("{complaint}{}", holder.unwrap_or_default());
        }
        Ok(())
    }

    fn answer(&self, world: &World, verb: Verb) -> Value {
        let answer = match verb {
            Verb::Status => {
                let uptime = self.since.elapsed().as_secs();
                let uplinks = self.uplinks.iter().map(Choice::report).collect();
                serde_json::to_value(report::agent(world, &self.tables, uplinks, uptime))
            }
            Verb::Networks => serde_json::to_value(report::networks(world, &self.tables)),
            Verb::Endpoints => serde_json::to_value(report::endpoints(world, &self.tables)),
            Verb::Ports => serde_json::to_value(report::ports(world, &self.tables)),
        };
        answer.unwrap_or(Value::Null)
    }
}
