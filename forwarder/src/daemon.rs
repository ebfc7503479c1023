// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control story: one event enum, one loop. THEN HERE.
//!
//! Updates change the host state; a changed host state is synced: what the kernel holds is observed, what it
//! should hold is derived, and the difference is carried out. Crash recovery, drift and the steady
//! state are this one path. Nothing is removed before every source has given a full list, and
//! nothing because Docker is away.
//!
//! An agent's first start loads all programs, fills the maps and attaches, while everything passes
//! as before it came, and arms all of it by one write. If Docker answers, that is once it has listed
//! what it has. If it does not, the guard of the outside devices needs no Docker: dockerd starts its
//! containers before it answers, and they find it in place. What an earlier agent has armed stays
//! armed throughout. An agent that cannot bring into the kernel what protects does not get ready: it
//! ends, and takes back what is not armed.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::agent::{Agent, reassemble};
use crate::config::Config;
use crate::control::{self, Query};
use crate::datapath::Binds;
use crate::desired_state::DesiredState;
use crate::host_state::{HostState, Update};
use crate::overrides::Overrides;
use crate::plain;
use crate::shims::Shims;
use crate::stop::Stop;
use crate::watch;
use crate::watch::shim::ShimEvent;

/// How often the programs are told that the agent is alive; they trust it for five times as long.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// How often the kernel is compared with what it should hold though nothing was heard.
const RESYNC: Duration = Duration::from_secs(10);

/// How long a first start waits for Docker to list what it has.
const LISTING: Duration = Duration::from_secs(10);
/// How often what protects is tried before an agent that is not ready gives up.
const ATTEMPTS: u32 = 3;

/// Everything that can happen.
enum Event {
    /// A source says something.
    Update(Update),
    /// The command line asks something.
    Query(Query),
    /// The administrator lays something else down.
    Overrides(Overrides),
    /// A shim of dockerd's says something.
    ShimEvent(ShimEvent),
    /// A service of the host's has bound a port.
    Bound,
    /// Time to say that we are alive, and to try again what failed.
    Heartbeat,
    /// Time to compare.
    Resync,
    /// Asked to stop: what is armed stays in place and goes on without us.
    Stop,
    /// A source has ended for a reason that waiting cannot repair.
    Broken(anyhow::Error),
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// What waiting cannot repair: the kernel refuses the programs, Docker's socket is unreadable.
pub async fn run(config: Config) -> Result<()> {
    let stop = Stop::on_signals()?;
    match follow(config, &stop).await {
        // Whatever it could not do any more.
        Err(error) if stop.is_asked() => {
            tracing::debug!("{error:#}");
            Ok(())
        }
        ended => ended,
    }
}

async fn follow(mut config: Config, stop: &Stop) -> Result<()> {
    // Before the devices are listed: its own is among them then.
    let reassembles = reassemble(&config).await;
    let mut sources = Sources::start(&config)?;
    let mut host_state = HostState::default();
    let mut agent: Option<Agent> = None;
    let since = Instant::now();
    let mut shims = Shims::new(since);
    let mut ready = false;
    let mut attempts = 0;
    loop {
        let mut event = sources.next(stop).await;
        let mut changed = false;
        while let Event::Update(update) = event {
            changed |= host_state.apply(update);
            event = sources.waiting().map_or(Event::Heartbeat, Event::Update);
        }
        match event {
            Event::Update(_) => {}
            Event::Query(Query { verb, reply }) => {
                let answer = agent.as_mut().map(|agent| agent.answer(&host_state, verb));
                // Nobody to tell if the asker has gone.
                let _ = reply.send(answer.unwrap_or_default());
            }
            Event::Overrides(rules) => {
                config.rules = rules;
                changed = true;
            }
            Event::ShimEvent(call) => {
                // They come in crowds: one sync answers them all.
                let calls = std::iter::successors(Some(call), |_| sources.calling());
                for call in calls {
                    changed |= shims.hear(call, &mut host_state, Instant::now());
                }
            }
            Event::Bound => {
                if let Some(agent) = &mut agent {
                    agent.ask_flows()?;
                }
            }
            Event::Heartbeat => {
                // A first start waits for Docker's lists no longer than it may.
                changed |= agent.as_ref().is_some_and(|agent| !agent.is_armed());
                changed |= shims.review(&mut host_state, Instant::now());
                changed |= host_state.apply(watch::reverse_path::read(&host_state));
                if let Some(agent) = &mut agent {
                    changed |= agent.housekeeping(&host_state)?;
                }
            }
            Event::Resync => changed = true,
            Event::Stop => return Ok(()),
            Event::Broken(error) => return Err(error),
        }
        if changed {
            shims.decide(&mut host_state, Instant::now());
        }
        if !changed || !host_state.is_host_known() {
            continue;
        }
        if agent.is_none() {
            host_state.apply(watch::reverse_path::read(&host_state));
            agent = Some(Agent::start(&config, &host_state, reassembles, stop)?);
            sources.hear_programs(&config)?;
            // What has been said meanwhile may complete the host state.
            while let Some(update) = sources.waiting() {
                host_state.apply(update);
            }
        }
        let Some(agent) = &mut agent else { continue };
        if !agent.is_armed() && is_listing(&host_state, since) {
            continue;
        }
        agent.sync(&host_state, &config, stop).await?;
        if stop.is_asked() {
            return Ok(());
        }
        agent.arm()?;
        shims.synced(|port| agent.holds(&host_state, port));
        if ready {
            continue;
        }
        if let Some(why) = agent.unprotected() {
            attempts += 1;
            ensure!(attempts < ATTEMPTS, "not ready, and not going to be: {why}");
        } else if host_state.is_complete() {
            announce_ipv6(&host_state);
            announce(&host_state, agent.tables())?;
            ready = true;
        }
    }
}

/// Says which networks have IPv6, and what becomes of it.
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
             translated or forwarded; ports published on IPv6 addresses are docker-proxy's, for \
             whom their lists of clients let in"
        );
    }
}

/// Whether Docker has answered and is still telling what it has. Nothing is armed before it has, in
/// order that no container is judged by half of what concerns it. A Docker that does not answer is
/// not waited for: dockerd starts its containers before it answers, and the outside devices are to
/// be guarded by then.
fn is_listing(host_state: &HostState, since: Instant) -> bool {
    host_state.docker.is_some() && !host_state.is_complete() && since.elapsed() < LISTING
}

/// The `ready` line: the first sync is in the kernel.
fn announce(host_state: &HostState, tables: &DesiredState) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "ready: {} networks, {} published ports, {} devices, Docker {}",
        tables.networks.len(),
        tables.published.len(),
        tables.devices.len(),
        plain::line(host_state.docker.as_deref().unwrap_or("away")),
    )
    .and_then(|()| out.flush())
    .context("cannot write to stdout")
}

/// Where events come from.
struct Sources {
    updates: mpsc::Receiver<Update>,
    queries: mpsc::Receiver<Query>,
    rules: mpsc::Receiver<Overrides>,
    calls: mpsc::Receiver<ShimEvent>,
    binds: mpsc::Receiver<()>,
    watchers: JoinSet<Result<()>>,
    housekeeping: Interval,
    resync: Interval,
    /// Answers the command line as long as it is held.
    _server: control::Server,
}

impl Sources {
    fn start(config: &Config) -> Result<Self> {
        let (facts_in, updates) = mpsc::channel(1024);
        let (queries_in, queries) = mpsc::channel(16);
        let (rules_in, rules) = mpsc::channel(1);
        let (calls_in, calls) = mpsc::channel(1024);
        // The programs are not there yet.
        let (_, binds) = mpsc::channel(1);
        let socket = control::socket(&config.state_dir);
        let server = control::serve(&socket, queries_in, calls_in)?;
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Ok(Self {
            updates,
            queries,
            rules,
            calls,
            binds,
            watchers: watch::spawn(
                config.docker.clone(),
                config.file.clone(),
                facts_in,
                rules_in,
            ),
            housekeeping: every(BEAT),
            resync: every(RESYNC),
            _server: server,
        })
    }

    /// Hears of services that bind ports, once the programs are there that tell it.
    fn hear_programs(&mut self, config: &Config) -> Result<()> {
        let (binds_in, binds) = mpsc::channel(1);
        self.binds = binds;
        let ring = Binds::open(&config.bpffs_dir)?;
        self.watchers.spawn(ring.watch(binds_in));
        Ok(())
    }

    async fn next(&mut self, stop: &Stop) -> Event {
        tokio::select! {
            Some(update) = self.updates.recv() => Event::Update(update),
            Some(query) = self.queries.recv() => Event::Query(query),
            Some(rules) = self.rules.recv() => Event::Overrides(rules),
            Some(call) = self.calls.recv() => Event::ShimEvent(call),
            Some(()) = self.binds.recv() => Event::Bound,
            Some(ended) = self.watchers.join_next() => Event::Broken(why(ended)),
            _ = self.housekeeping.tick() => Event::Heartbeat,
            _ = self.resync.tick() => Event::Resync,
            () = stop.asked() => Event::Stop,
        }
    }

    /// A call that is already there.
    fn calling(&mut self) -> Option<ShimEvent> {
        self.calls.try_recv().ok()
    }

    /// A update that is already there.
    fn waiting(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }
}

fn why(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a source of facts has ended"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::Error::new(panic).context("a source of facts died"),
    }
}
