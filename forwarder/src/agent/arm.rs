// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arming: the programs begin to enforce their verdicts. Where Docker's rules are kept, connections
//! that the kernel tracks stay the kernel's until they end.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use forwarder_common::abi::armed;
use forwarder_common::family::Be32;
use forwarder_common::wire::proto;
use forwarder_state::desired_state::{DesiredState, Hook};
use forwarder_state::diff::Change;
use forwarder_state::host_state::HostState;

use super::Agent;
use crate::config::{Config, Mode};
use crate::datapath::FlowOperations;
use crate::hand_back;
use crate::sys::conntrack::Conntrack;

/// The part of the flow table that connections of the kernel may take. Without a place, a TCP
/// connection is still left to the kernel, by its segments that open nothing.
const KERNEL_SHARE: usize = 4;

/// Returns what the programs are to be armed for ([`armed`]).
pub(super) fn target(mode: Mode, host_state: &HostState, current: u32) -> u32 {
    match mode {
        Mode::Adopt => armed::ADOPT,
        // Rules that a reload has taken away for a moment come back.
        Mode::Auto if host_state.others.dockers || armed::keeps_rules(current) => armed::ADOPT,
        Mode::Auto | Mode::Replace => armed::REPLACE,
    }
}

/// Returns changes in the order in which networks change hands: the kernel's rules protect, and no
/// packet may be dropped for want of a row or of another program. First come those that detach
/// programs from networks that are left to the kernel; the rows go when the programs have gone. A
/// bridge's program for what arrives trusts those on the bridge's ports, so it goes first and comes
/// last. The host's sockets are looked at last, when only the subnets of other networks are there.
pub(super) fn handover_order(
    mut changes: Vec<Change>,
    held: &DesiredState,
    lost: &BTreeSet<u32>,
) -> (Vec<Change>, Vec<Change>) {
    let is_lost = |ifindex: u32| {
        let device = held.devices.get(&ifindex);
        device.is_some_and(|device| lost.contains(&device.bridge))
    };
    changes.sort_by_key(|change| match *change {
        Change::Detach { ifindex, hook } if is_lost(ifindex) => u8::from(hook != Hook::BridgeIn),
        Change::Attach {
            hook: Hook::BridgeIn,
            ..
        } => 3,
        Change::SeverSockets => 4,
        _ => 2,
    });
    let is_first =
        |change: &Change| matches!(*change, Change::Detach { ifindex, .. } if is_lost(ifindex));
    changes.into_iter().partition(is_first)
}

impl Agent {
    /// Whether Docker's rules are kept.
    pub(super) fn keeps_rules(&self) -> bool {
        armed::keeps_rules(self.armed)
    }

    /// Makes the programs enforce their verdicts, once everything that protects is in place, and
    /// brings them to what is behind them now.
    pub(crate) fn arm(&mut self, host_state: &HostState, config: &Config) -> Result<()> {
        let wanted = target(config.mode, host_state, self.armed);
        if self.armed == wanted || self.unprotected().is_some() {
            return Ok(());
        }
        self.datapath.housekeeping()?;
        if wanted == armed::ADOPT {
            // What is handed on is let through before anything is.
            self.armed = wanted;
            self.write_rules(host_state);
            self.take_over(config)?;
        } else {
            self.datapath.arm(wanted)?;
            self.armed = wanted;
            self.write_rules(host_state);
        }
        Ok(())
    }

    /// Hands back the flows of networks that are about to be left to the kernel. Returns their
    /// bridges if any network changes hands: then no flow begins until [`Self::take_over`].
    pub(super) fn begin_handover(
        &mut self,
        held: &DesiredState,
        config: &Config,
    ) -> Result<Option<BTreeSet<u32>>> {
        let (own, before) = (&self.tables.v4.networks, &held.v4.networks);
        let lost =
            |bridge: &u32| !own.contains_key(bridge) && self.tables.left.contains_key(bridge);
        let lost: BTreeSet<_> = before.keys().copied().filter(lost).collect();
        let gains = own.keys().any(|bridge| !before.contains_key(bridge));
        if self.armed != armed::ADOPT || lost.is_empty() && !gains {
            return Ok(None);
        }
        self.datapath.arm(armed::HANDOVER)?;
        if !lost.is_empty() {
            let is_lost =
                |(subnet, bridge): (&(Be32, u8), &u32)| lost.contains(bridge).then_some(*subnet);
            let subnets: Vec<_> = held.v4.subnets.iter().filter_map(is_lost).collect();
            let flows = hand_back::flows_of(&config.bpffs_dir, &subnets)?;
            tracing::info!(
                flows,
                "handed back to the kernel, which decides about their network now"
            );
        }
        Ok(Some(lost))
    }

    /// Arms the programs on top of Docker's rules. The connections that the kernel tracks are listed
    /// while no flow begins, and again right after flows begin, because some have come in between.
    pub(super) fn take_over(&mut self, config: &Config) -> Result<()> {
        self.datapath.arm(armed::HANDOVER)?;
        self.leave_connections(config)?;
        self.datapath.arm(armed::ADOPT)?;
        self.leave_connections(config)?;
        tracing::info!(
            connections = self.kernel_owned.len() / 2,
            "Docker's rules are kept: the kernel keeps the connections that it tracks until they end"
        );
        Ok(())
    }

    /// Leaves to the kernel every connection that it tracks and that is a container's or translated.
    fn leave_connections(&mut self, config: &Config) -> Result<()> {
        let tracked = Conntrack::open()?.list()?;
        let of_concern = tracked
            .into_iter()
            .map(|tracked| tracked.connection)
            .filter(|connection| connection.is_of_concern(&self.tables.v4))
            .filter(|connection| !self.followed.is_of(connection));
        // Only TCP shows by its segments that a connection is not new.
        let (segments, datagrams): (Vec<_>, Vec<_>) =
            of_concern.partition(|connection| connection.original.proto == proto::TCP);
        let room = config.flows as usize / KERNEL_SHARE;
        let first = datagrams.into_iter().chain(segments).take(room);
        let tuples: Vec<_> = first
            .flat_map(|connection| connection.tuples())
            .filter(|tuple| !self.kernel_owned.contains(tuple))
            .collect();
        let mut holders = Vec::new();
        for &tuple in &tuples {
            holders.extend(self.datapath.leave_to_kernel(tuple)?);
        }
        if !holders.is_empty() {
            // Flows that began before their connection was listed.
            let mut operations = FlowOperations::open(&config.bpffs_dir)?;
            for flow in holders {
                operations
                    .end(flow)
                    .context("cannot end a flow of a connection that is the kernel's")?;
            }
            for &tuple in &tuples {
                self.datapath.leave_to_kernel(tuple)?;
            }
        }
        self.kernel_owned.extend(tuples);
        Ok(())
    }

    /// Forgets the connections that have ended: whoever comes next gets a flow.
    pub(crate) fn forget_ended(&mut self) -> Result<()> {
        if self.kernel_owned.is_empty() {
            return Ok(());
        }
        let tracked = Conntrack::open()?.list()?;
        let tuples = tracked
            .iter()
            .flat_map(|tracked| tracked.connection.tuples());
        let tracked: BTreeSet<_> = tuples.collect();
        for &tuple in self.kernel_owned.difference(&tracked) {
            self.datapath.forget_kernel_owned(tuple)?;
        }
        self.kernel_owned.retain(|tuple| tracked.contains(tuple));
        Ok(())
    }
}
