// SPDX-License-Identifier: MIT OR Apache-2.0
//! Observes the host as an agent does at its start, and derives what an agent would change. Changes
//! nothing.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use forwarder_state::desired::{Policy, desired};
use forwarder_state::desired_state::{DEFRAG_LOOPBACK, DesiredState, Hook, SocketHook};
use forwarder_state::host_state::HostState;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::{Config, Mode, Settings, Source};
use crate::lock::Lock;
use crate::preflight::{Finding, Level};
use crate::report::{self, Adoption, Problem};
use crate::sys::cgroup::cgroup_root;
use crate::sys::conntrack::{Conntrack, Tracked};
use crate::{datapath, uplinks, watch};

/// The time limit for all sources to send their full lists.
const LISTING: Duration = Duration::from_secs(10);

/// The index that the defragmentation loopback stands for until it exists.
const NO_DEVICE: u32 = 0;

/// Returns what adopting this host would change, or why it cannot be adopted.
pub(super) fn plan(config: &Config, findings: Vec<Finding>) -> Result<Adoption> {
    let mut problems: Vec<_> = findings
        .into_iter()
        .filter(|finding| finding.level == Level::Fatal)
        .map(|finding| Problem {
            what: finding.what,
            todo: finding.todo.unwrap_or_default(),
        })
        .collect();
    problems.extend(setting(config));
    if problems.is_empty() {
        problems.extend(another_agent());
    }
    if !problems.is_empty() {
        return Ok(refused(problems));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let host_state = match runtime.block_on(observe(config)) {
        Ok(host_state) => host_state,
        Err(error) => {
            return Ok(refused(vec![Problem {
                what: format!("{error:#}"),
                todo: "start Docker, or name its socket with --docker".to_owned(),
            }]));
        }
    };
    if !host_state.others.dockers {
        return Ok(refused(vec![nothing_below()]));
    }
    let tables = tables(config, &host_state);
    let connections = Conntrack::open()?.list()?;
    let is_kept = |tracked: &&Tracked| tracked.connection.is_of_container(&tables.v4);
    let kept = connections.iter().filter(is_kept).count();
    Ok(report::adoption(&host_state, &tables, kept))
}

fn refused(problems: Vec<Problem>) -> Adoption {
    Adoption {
        problems,
        ..Adoption::default()
    }
}

/// Returns the problem of a host without Docker's rules.
fn nothing_below() -> Problem {
    Problem {
        what: "Docker's own rules are not in place, so there is nothing to come on top of"
            .to_owned(),
        todo: "start the agent with forwarder run, which does what Docker's rules would do; or \
               let dockerd make its rules (\"iptables\": true), and adopt then"
            .to_owned(),
    }
}

/// Returns the problem of settings that say otherwise.
fn setting(config: &Config) -> Option<Problem> {
    (config.mode == Mode::Replace).then(|| Problem {
        what: "the setting mode is replace, but adopt keeps Docker's rules".to_owned(),
        todo: "set mode to auto or adopt, or start the agent with forwarder run".to_owned(),
    })
}

/// Returns the problem of an agent with other folders.
fn another_agent() -> Option<Problem> {
    let error = Lock::acquire().err()?;
    Some(Problem {
        what: format!("{:#}", anyhow!(error)),
        todo: "give its --state-dir, or stop it".to_owned(),
    })
}

/// Collects the updates of all sources until they are complete.
async fn observe(config: &Config) -> Result<HostState> {
    let docker = &config.docker;
    if let Some(path) = docker.strip_prefix("unix://") {
        UnixStream::connect(path).with_context(|| format!("no Docker answers at {docker}"))?;
    }
    let collected = timeout(LISTING, collect(config)).await;
    let mut host_state = collected.with_context(|| {
        let limit = LISTING.as_secs();
        format!("Docker at {docker} has not sent its lists within {limit} s")
    })??;
    let reverse_paths = watch::reverse_path::read(&host_state);
    host_state.apply(reverse_paths);
    Ok(host_state)
}

async fn collect(config: &Config) -> Result<HostState> {
    let (updates_in, mut updates) = mpsc::channel(1024);
    let (configs_in, _configs) = mpsc::channel(1);
    let mut sources = watch::spawn(
        config.docker.clone(),
        Source::new(Settings::default(), Some(&config.file)),
        updates_in,
        configs_in,
    );
    let mut host_state = HostState::default();
    while !is_complete(&host_state) {
        tokio::select! {
            Some(update) = updates.recv() => {
                host_state.apply(update);
            }
            Some(ended) = sources.join_next() => {
                ended.context("a source of updates panicked")??;
                bail!("a source of updates has ended");
            }
        }
    }
    Ok(host_state)
}

/// Whether everything is known that a plan depends on: the devices of the default routes, too.
fn is_complete(host_state: &HostState) -> bool {
    let knows_routes = host_state.route_generation != 0;
    host_state.is_complete() && host_state.is_host_known() && knows_routes
}

/// Returns what the kernel would hold.
fn tables(config: &Config, host_state: &HostState) -> DesiredState {
    let uplinks = uplinks::choose(host_state, &config.uplinks, config.xdp, uplinks::driver);
    let has_cgroup = cgroup_root().is_some();
    let policy = Policy {
        xdp: uplinks
            .iter()
            .filter_map(|uplink| Some((uplink.ifindex, uplink.xdp?)))
            .collect(),
        xdp_tcp: config.xdp_tcp,
        direct_routing: config.allow_direct_routing,
        rules: config.rules.clone(),
        sockets: if has_cgroup {
            SocketHook::ALL.into()
        } else {
            [SocketHook::SkLookup].into()
        },
        keeps_rules: true,
        reassembles: datapath::can_reassemble(),
    };
    let mut tables = desired(host_state, &policy, 0);
    let mut links = host_state.links.values();
    if policy.reassembles && !links.any(|link| link.name == DEFRAG_LOOPBACK) {
        // The agent makes this device first.
        tables.hooks.insert((NO_DEVICE, Hook::DefragOut));
    }
    tables
}
