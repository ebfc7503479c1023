// SPDX-License-Identifier: MIT OR Apache-2.0
//! The event loop: one event enum, one loop.
//!
//! Updates change the host state. After a change the agent syncs: it derives what the kernel should
//! hold, compares it with what the kernel holds, and applies the difference. Crash recovery, drift
//! and the steady state take this one path. Between syncs nobody but the agent writes the tables,
//! so the agent remembers what it has applied. It reads everything at its start, after an error, and
//! every few seconds. Nothing is removed before every source has sent a full list, and nothing is
//! removed because Docker is away.
//!
//! An agent's first start loads all programs, fills the maps and attaches the programs, which let
//! every packet pass as before. Then one write arms all of them. If Docker answers, the agent arms
//! them once Docker has sent its lists. If Docker does not answer, the agent arms them without it:
//! the protection of the outside devices does not need Docker, and dockerd starts its containers
//! before it answers, so they find the protection in place. Programs that an earlier agent has
//! armed stay armed throughout. An agent that cannot bring what protects into the kernel does not
//! become ready: it ends, and removes what is not armed.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forwarder_common::family::V4;
use forwarder_state::connections::Connection;
use forwarder_state::desired_state::DesiredState;
use forwarder_state::host_state::{HostState, Update};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::agent::{Agent, HEARTBEAT, reassemble};
use crate::config::{Config, Source};
use crate::control::{self, Query, Verb};
use crate::datapath::Binds;
use crate::plain;
use crate::shims::Shims;
use crate::stop::Stop;
use crate::sys::expedite;
use crate::watch;
use crate::watch::shim::ShimEvent;

/// The interval at which the agent compares the kernel with the desired state even without an
/// update.
const RESYNC: Duration = Duration::from_secs(10);

/// How long a first start waits for Docker's lists.
const LISTING: Duration = Duration::from_secs(10);
/// How often an agent that is not ready tries to apply what protects before it gives up.
const ATTEMPTS: u32 = 3;

/// The largest number of updates, or of shims' events, that are handled before a sync.
const BATCH: usize = 1024;

/// Everything the loop handles.
enum Event {
    /// Sources have sent updates.
    Updates(Vec<Update>),
    /// The command line sends a query.
    Query(Query),
    /// The administrator has changed the configuration.
    Config(Box<Config>),
    /// Shims have sent requests or have gone. Requests come in bursts: one sync answers all.
    ShimEvents(Vec<ShimEvent>),
    /// A service of the host has bound a port.
    Bound,
    /// Connections that the kernel has let through go on.
    Settled(Vec<Connection<V4>>),
    /// It is time to tell the programs that the agent is alive, and to try again what failed.
    Housekeeping,
    /// It is time to compare the kernel with the desired state.
    Resync,
    /// The agent is asked to stop. What is armed stays in place and works without an agent.
    Stop,
    /// A source has ended for a reason that waiting cannot repair.
    Broken(anyhow::Error),
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// An error that waiting cannot repair: the kernel refuses the programs, or Docker's socket is
/// unreadable.
pub async fn run(config: Config, source: Source) -> Result<()> {
    let stop = Stop::on_signals()?;
    let ended = follow(config, source, &stop).await;
    if let Some(signal) = stop.signal() {
        tracing::info!("stopping on {signal}: what is armed stays in place");
    }
    match ended {
        // While the agent stops, an error of the interrupted work does not matter.
        Err(error) if stop.is_asked() => {
            tracing::debug!("{error:#}");
            Ok(())
        }
        ended => ended,
    }
}

/// Handles events, one after the other. Whatever changes the host state or doubts the kernel's is
/// followed by one sync.
async fn follow(config: Config, source: Source, stop: &Stop) -> Result<()> {
    tokio::spawn(expedite::restore());
    // This comes before the devices are listed, so that the list contains the defragmentation
    // loopback.
    let reassembles = reassemble(&config).await;
    let mut daemon = Daemon::new(config, source, reassembles)?;
    loop {
        let is_due = match daemon.sources.next(stop).await {
            Event::Updates(updates) => daemon.apply(updates),
            Event::Query(query) => daemon.answer(query),
            Event::Config(read) => daemon.reconfigure(*read),
            Event::ShimEvents(events) => daemon.handle_shims(events),
            Event::Bound => daemon.ask_flows()?,
            Event::Settled(connections) => daemon.follow(&connections),
            Event::Housekeeping => daemon.housekeeping()?,
            Event::Resync => daemon.doubt()?,
            Event::Stop => return Ok(()),
            Event::Broken(error) => return Err(error),
        };
        if is_due {
            daemon.sync(stop).await?;
        }
    }
}

/// What the loop works on. The methods that handle an event return whether a sync is due.
struct Daemon {
    config: Config,
    sources: Sources,
    host_state: HostState,
    shims: Shims,
    /// None until the host's own devices are known.
    agent: Option<Agent>,
    reassembles: bool,
    since: Instant,
    ready: bool,
    attempts: u32,
}

impl Daemon {
    fn new(config: Config, source: Source, reassembles: bool) -> Result<Self> {
        let sources = Sources::start(&config, source)?;
        let since = Instant::now();
        Ok(Self {
            config,
            sources,
            host_state: HostState::default(),
            shims: Shims::new(since),
            agent: None,
            reassembles,
            since,
            ready: false,
            attempts: 0,
        })
    }

    fn apply(&mut self, updates: Vec<Update>) -> bool {
        let mut changed = false;
        for update in updates {
            if let Some(agent) = &mut self.agent
                && update.is_of_devices()
            {
                agent.devices_changed();
            }
            changed |= self.host_state.apply(update);
        }
        changed
    }

    fn answer(&mut self, Query { verb, reply }: Query) -> bool {
        match verb {
            Verb::Release => tracing::info!("forwarder release hands back to Docker's rules"),
            Verb::Cleanup => tracing::info!("forwarder cleanup removes everything"),
            _ => {}
        }
        let agent = self.agent.as_mut();
        let answer = agent.map(|agent| agent.answer(&self.host_state, verb));
        // The receiver may have gone: then nobody waits for the answer.
        let _ = reply.send(answer.unwrap_or_default());
        false
    }

    /// Applies the tables of a configuration that was read again. All else takes a restart.
    fn reconfigure(&mut self, read: Config) -> bool {
        let differences = self.config.differences(&read);
        if !differences.is_empty() {
            tracing::warn!(
                "changed, but not applied before a restart of the agent: {}",
                differences.join(", ")
            );
        }
        self.config.rules = read.rules;
        true
    }

    fn handle_shims(&mut self, events: Vec<ShimEvent>) -> bool {
        let now = Instant::now();
        let handled = events
            .into_iter()
            .map(|event| self.shims.handle(event, &mut self.host_state, now));
        handled.fold(false, |changed, one| changed | one)
    }

    fn ask_flows(&mut self) -> Result<bool> {
        if let Some(agent) = &mut self.agent {
            agent.ask_flows()?;
        }
        Ok(false)
    }

    fn follow(&mut self, connections: &[Connection<V4>]) -> bool {
        if let Some(agent) = &mut self.agent {
            agent.follow(connections);
        }
        false
    }

    fn housekeeping(&mut self) -> Result<bool> {
        let mut changed = self.shims.review(&mut self.host_state, Instant::now());
        changed |= self.read_reverse_paths();
        if let Some(agent) = &mut self.agent {
            // An agent that is not armed syncs every time: this ends the wait of a first start for
            // Docker's lists at its limit.
            changed |= agent.housekeeping(&self.host_state)? | !agent.is_armed();
        }
        Ok(changed)
    }

    fn doubt(&mut self) -> Result<bool> {
        if let Some(agent) = &mut self.agent {
            agent.doubt();
            agent.forget_ended()?;
        }
        Ok(true)
    }

    fn read_reverse_paths(&mut self) -> bool {
        let update = watch::reverse_path::read(&self.host_state);
        self.host_state.apply(update)
    }

    /// Brings the kernel to the desired state, and answers the shims that wait for it. The first
    /// time it starts the agent.
    async fn sync(&mut self, stop: &Stop) -> Result<()> {
        self.shims.decide(&mut self.host_state, Instant::now());
        if !self.host_state.is_host_known() {
            return Ok(());
        }
        self.read_reverse_paths();
        if self.agent.is_none() {
            let agent = Agent::start(&self.config, &self.host_state, self.reassembles, stop)?;
            self.agent = Some(agent);
            self.sources.hear_programs(&self.config)?;
            // Updates that arrived in the meantime may complete the host state.
            let updates = self.sources.arrived();
            self.apply(updates);
        }
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        if !agent.is_armed() && is_listing(&self.host_state, self.since) {
            return Ok(());
        }
        agent.sync(&self.host_state, &self.config, stop).await?;
        if stop.is_asked() {
            return Ok(());
        }
        agent.arm(&self.host_state, &self.config)?;
        self.sources.hear_connections(agent.followed_bridges());
        self.shims
            .synced(|port| agent.holds(&self.host_state, port));
        if self.ready {
            return Ok(());
        }
        if let Some(why) = agent.unprotected() {
            self.attempts += 1;
            ensure!(self.attempts < ATTEMPTS, "cannot become ready: {why}");
        } else if self.host_state.is_complete() {
            announce_ipv6(&self.host_state);
            announce(&self.host_state, agent.tables());
            self.ready = true;
        }
        Ok(())
    }
}

/// Logs which networks have IPv6, and what the forwarder does with it.
fn announce_ipv6(host_state: &HostState) {
    let networks = host_state.networks.values().filter(|network| {
        let mut ranges = network.subnets.iter();
        network.driver == "bridge" && ranges.any(|range| range.address.is_ipv6())
    });
    let names = networks.map(|network| plain::line(&network.name).to_string());
    let names = names.collect::<Vec<_>>();
    if !names.is_empty() {
        tracing::warn!(
            networks = names.join(", "),
            "IPv6 stays local: containers reach their own network and this host, nothing is \
             translated or forwarded; docker-proxy serves ports published on IPv6 addresses, for \
             the clients that their lists let in"
        );
    }
}

/// Whether Docker has answered and is still sending its lists. The agent arms nothing before they
/// are complete, so that no container is judged by half of its configuration. The agent does not
/// wait for a Docker that does not answer: dockerd starts its containers before it answers, and the
/// outside devices must be protected by then.
fn is_listing(host_state: &HostState, since: Instant) -> bool {
    host_state.docker.is_some() && !host_state.is_complete() && since.elapsed() < LISTING
}

/// Prints the `ready` line: the first sync is in the kernel. A reader that has gone does not end the
/// agent.
fn announce(host_state: &HostState, tables: &DesiredState) {
    let mut out = std::io::stdout();
    let printed = writeln!(
        out,
        "ready: {} networks, {} published ports, {} devices, Docker {}",
        tables.networks(),
        tables.published(),
        tables.devices.len(),
        plain::line(host_state.docker.as_deref().unwrap_or("away")),
    )
    .and_then(|()| out.flush());
    if let Err(error) = printed {
        tracing::warn!("ready, but cannot write so to stdout: {error}");
    }
}

/// The sources of events.
struct Sources {
    updates: mpsc::Receiver<Update>,
    queries: mpsc::Receiver<Query>,
    configs: mpsc::Receiver<Config>,
    shim_events: mpsc::Receiver<ShimEvent>,
    binds: mpsc::Receiver<()>,
    /// The kernel's connections, while any network's are followed.
    settled: Option<Settled>,
    watchers: JoinSet<Result<()>>,
    housekeeping: Interval,
    resync: Interval,
    /// Answers the command line until it is dropped.
    _server: control::Server,
}

impl Sources {
    fn start(config: &Config, source: Source) -> Result<Self> {
        let (updates_in, updates) = mpsc::channel(1024);
        let (queries_in, queries) = mpsc::channel(16);
        let (configs_in, configs) = mpsc::channel(1);
        let (shim_events_in, shim_events) = mpsc::channel(1024);
        // The programs are not loaded yet.
        let (_, binds) = mpsc::channel(1);
        let socket = control::socket(&config.state_dir);
        let server = control::serve(&socket, queries_in, shim_events_in)?;
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Ok(Self {
            updates,
            queries,
            configs,
            shim_events,
            binds,
            settled: None,
            watchers: watch::spawn(config.docker.clone(), source, updates_in, configs_in),
            housekeeping: every(HEARTBEAT),
            resync: every(RESYNC),
            _server: server,
        })
    }

    /// Listens for services that bind ports, once the programs that report them are attached.
    fn hear_programs(&mut self, config: &Config) -> Result<()> {
        let (binds_in, binds) = mpsc::channel(1);
        self.binds = binds;
        let ring = Binds::open(&config.bpffs_dir)?;
        self.watchers.spawn(ring.watch(binds_in));
        Ok(())
    }

    /// Begins or ends to hear of connections of the kernel. It begins anew, with a list of all, when
    /// other networks are followed: their connections may have gone on for long.
    fn hear_connections(&mut self, bridges: BTreeSet<u32>) {
        if bridges.is_empty() {
            self.settled = None;
        } else if self
            .settled
            .as_ref()
            .is_none_or(|settled| settled.bridges != bridges)
        {
            self.settled = Some(Settled::start(bridges));
        }
    }

    /// Waits for the next event. Updates and shims' events come with all others of their kind that
    /// have arrived.
    async fn next(&mut self, stop: &Stop) -> Event {
        let (mut updates, mut shim_events) = (Vec::new(), Vec::new());
        tokio::select! {
            1.. = self.updates.recv_many(&mut updates, BATCH) => Event::Updates(updates),
            Some(query) = self.queries.recv() => Event::Query(query),
            Some(read) = self.configs.recv() => Event::Config(Box::new(read)),
            1.. = self.shim_events.recv_many(&mut shim_events, BATCH) => {
                Event::ShimEvents(shim_events)
            }
            Some(()) = self.binds.recv() => Event::Bound,
            event = next_settled(&mut self.settled) => event,
            Some(ended) = self.watchers.join_next() => Event::Broken(why(ended)),
            _ = self.housekeeping.tick() => Event::Housekeeping,
            _ = self.resync.tick() => Event::Resync,
            () = stop.asked() => Event::Stop,
        }
    }

    /// Returns the updates that have already arrived.
    fn arrived(&mut self) -> Vec<Update> {
        std::iter::from_fn(|| self.updates.try_recv().ok()).collect()
    }
}

/// The kernel's connections that go on. The watcher ends when this is dropped.
struct Settled {
    /// The bridges of networks that were followed at the last sync.
    bridges: BTreeSet<u32>,
    connections: mpsc::Receiver<Vec<Connection<V4>>>,
    watcher: JoinSet<Result<()>>,
}

impl Settled {
    fn start(bridges: BTreeSet<u32>) -> Self {
        let (connections_in, connections) = mpsc::channel(1);
        let mut watcher = JoinSet::new();
        watcher.spawn(async move { watch::connections::watch(&connections_in).await });
        Self {
            bridges,
            connections,
            watcher,
        }
    }
}

/// Waits for connections of the kernel; for ever if nobody hears of them.
async fn next_settled(settled: &mut Option<Settled>) -> Event {
    let Some(settled) = settled else {
        return std::future::pending().await;
    };
    tokio::select! {
        Some(connections) = settled.connections.recv() => Event::Settled(connections),
        Some(ended) = settled.watcher.join_next() => Event::Broken(why(ended)),
    }
}

fn why(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a source of updates has ended"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::Error::new(panic).context("a source of updates panicked"),
    }
}
