// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's start: load every program and take over the state of an earlier agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, ensure};
use forwarder_common::abi::armed;
use forwarder_state::desired_state::{DesiredState, Hook, SocketHook};
use forwarder_state::host_state::{HostState, LinkLayer};
use forwarder_state::notices::Ledger;
use forwarder_state::own_rules::Rules;

use super::Agent;
use super::follow::Followed;
use crate::config::{Attach, Config, XdpMode};
use crate::datapath::{self, Datapath, Setup};
use crate::exhaustion::Exhaustion;
use crate::stop::Stop;
use crate::sys::cgroup::cgroup_root;
use crate::sys::firewall::Pause;

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
        load(&mut datapath, config.xdp, host_state, stop)?;
        datapath.adopt(name_of)?;
        let armed = datapath.armed()?;
        if armed != armed::NOT {
            // The socket programs redirect the sockets of this network namespace.
            datapath.arm(armed)?;
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
        // An earlier agent may have cached routes that changed while no agent watched them. The links
        // have just been looked at.
        let observed = datapath.observe(false)?.tables;
        let kernel_owned = if armed::keeps_rules(armed) {
            datapath.kernel_owned().into_iter().collect()
        } else {
            BTreeSet::new()
        };
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
            failed_before: Vec::new(),
            ledger: Ledger::default(),
            unhooked: BTreeSet::new(),
            links_checked: Instant::now(),
            armed,
            kernel_owned,
            followed: Followed::default(),
            unpublished: BTreeMap::new(),
            unguarded: None,
            logged: BTreeSet::new(),
            rules: Rules::default(),
            written: BTreeMap::new(),
            unwritten: BTreeMap::new(),
        })
    }
}

/// Passes every program that this host may need through the verifier. The XDP program and those on
/// the root cgroup are optional, because they only improve speed or convenience. All others are
/// required. Programs for devices without Ethernet, which few hosts have, are loaded with the first
/// such device.
fn load(datapath: &mut Datapath, xdp: XdpMode, host_state: &HostState, stop: &Stop) -> Result<()> {
    let _quiet = Pause::begin();
    let has_cgroup = cgroup_root().is_some();
    let has_raw = host_state
        .links
        .values()
        .any(|link| link.layer == LinkLayer::Raw);
    let hooks: Vec<_> = Hook::ALL
        .into_iter()
        .filter(|&hook| hook != Hook::Uplink || xdp != XdpMode::Off)
        .filter(|hook| !hook.is_raw() || has_raw)
        .collect();
    let sockets: Vec<_> = SocketHook::ALL
        .into_iter()
        .filter(|hook| has_cgroup || !hook.is_on_cgroup())
        .collect();
    let names: Vec<_> = hooks
        .iter()
        .map(|hook| hook.program())
        .chain(sockets.iter().map(|hook| hook.program()))
        .collect();
    datapath.load_together(&names, &|| stop.is_asked());
    ensure!(!stop.is_asked(), "asked to stop");
    let optional = |loaded: Result<()>| {
        if let Err(error) = loaded {
            tracing::warn!("{error:#}");
        }
    };
    for hook in hooks {
        match hook {
            Hook::Uplink => optional(datapath.load(hook)),
            _ => datapath.load(hook)?,
        }
    }
    for hook in sockets {
        match hook {
            SocketHook::SkLookup => datapath.load_socket(hook)?,
            _ => optional(datapath.load_socket(hook)),
        }
    }
    Ok(())
}
