// SPDX-License-Identifier: MIT OR Apache-2.0
//! Following: connections that the kernel has let through get a flow, by which their packets take the
//! fast path as long as the kernel lets them out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use anyhow::Result;
use forwarder_common::abi::Tuple;
use forwarder_common::clock::{Ticks, seconds};
use forwarder_common::conntrack::flow_operation::{Followed as Plan, Following};
use forwarder_common::family::V4;
use forwarder_common::wire::proto;
use forwarder_state::connections::Connection;
use forwarder_state::desired_state::DesiredState;

use super::Agent;
use crate::config::Config;
use crate::datapath::{self, FlowOperations, FlowSnapshot};
use crate::sys::conntrack::Conntrack;

/// After how many bytes past the kernel a connection is made liberal again: sequence numbers have
/// turned by an eighth.
const TURN: u64 = 1 << 29;
/// After how long without a packet the kernel is told how long a connection lives.
const IDLE: Ticks = seconds(2);
/// How many connections one heartbeat reviews.
const REVIEWED: usize = 1_000;
/// How long a refused connection is not tried again.
const REFUSED: Duration = Duration::from_secs(60);

/// The connections that are followed, and those that cannot be.
pub(super) struct Followed {
    connections: BTreeMap<Tuple<V4>, Entry>,
    /// The last connection that was reviewed.
    reviewed: Option<Tuple<V4>>,
    refused: BTreeSet<Tuple<V4>>,
    /// Those that are to be followed no longer, and are still.
    overdue: Vec<Entry>,
    /// Since when `refused` is collected.
    since: Instant,
}

#[derive(Clone, Copy)]
struct Entry {
    connection: Connection<V4>,
    /// How many bytes had passed when the kernel was last told to be liberal.
    bytes: u64,
    /// The last packet before the kernel was last told how long the connection lives.
    idle_since: Option<Ticks>,
    /// Whether its flow was ended before it had ended by itself: the kernel gets the connection.
    is_unfollowed: bool,
}

impl Default for Followed {
    fn default() -> Self {
        Self {
            connections: BTreeMap::new(),
            reviewed: None,
            refused: BTreeSet::new(),
            overdue: Vec::new(),
            since: Instant::now(),
        }
    }
}

impl Followed {
    /// Whether a connection is followed.
    pub(super) fn is_of(&self, connection: &Connection<V4>) -> bool {
        let known = self.connections.get(&connection.original);
        known.is_some_and(|known| known.connection == *connection)
    }

    /// Returns the next connections to review.
    fn next(&mut self) -> Vec<Entry> {
        let from = self.reviewed.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.connections.range((from, Bound::Unbounded));
        let entries: Vec<_> = behind.take(REVIEWED).map(|(_, entry)| *entry).collect();
        let is_last = entries.len() < REVIEWED;
        let last = entries.last().map(|entry| entry.connection.original);
        self.reviewed = last.filter(|_| !is_last);
        entries
    }

    fn forget_refused(&mut self) {
        if self.since.elapsed() >= REFUSED {
            self.refused.clear();
            self.since = Instant::now();
        }
    }
}

impl Agent {
    /// The bridges of networks whose connections are followed.
    pub(crate) fn followed_bridges(&self) -> BTreeSet<u32> {
        if self.keeps_rules() {
            followed_bridges(&self.tables)
        } else {
            BTreeSet::new()
        }
    }

    /// Follows connections, if they are of networks whose connections are followed. A connection that
    /// cannot be followed stays the kernel's.
    pub(crate) fn follow(&mut self, settled: &[Connection<V4>]) {
        self.followed.forget_refused();
        let plans = self.plans(settled);
        if plans.is_empty() {
            return;
        }
        let conntrack = match Conntrack::open() {
            Ok(conntrack) => conntrack,
            Err(error) => return tracing::warn!("no connection is followed: {error:#}"),
        };
        for (connection, plan) in plans {
            match self.follow_one(&conntrack, &connection, &plan) {
                Ok(true) => {
                    for tuple in connection.tuples() {
                        self.kernel_owned.remove(&tuple);
                    }
                    let entry = Entry {
                        connection,
                        bytes: 0,
                        idle_since: None,
                        is_unfollowed: false,
                    };
                    let original = connection.original;
                    self.followed.connections.insert(original, entry);
                    let is_other = |entry: &Entry| entry.connection.original != original;
                    self.followed.overdue.retain(is_other);
                }
                refused => {
                    tracing::debug!("not followed: {connection:?}: {refused:?}");
                    self.followed.refused.insert(connection.original);
                }
            }
        }
    }

    /// Returns what it takes to follow those of the connections that are to be followed.
    fn plans(&self, settled: &[Connection<V4>]) -> Vec<(Connection<V4>, Plan<V4>)> {
        let Some(held) = self.held.as_ref().filter(|_| self.keeps_rules()) else {
            return Vec::new();
        };
        let left = &self.tables.left;
        let is_followed = |bridge| left.get(&bridge).is_some_and(|left| left.is_followed);
        // A flow ends before its connection does when its network changes hands.
        let has_flow = |one: &Connection<V4>| self.followed.is_of(one) && self.flow(one).is_some();
        let plan = |connection: &Connection<V4>| {
            let plan = connection.followed(&self.tables.v4, &held.v4, is_followed)?;
            let is_new =
                !self.followed.refused.contains(&connection.original) && !has_flow(connection);
            is_new.then_some((*connection, plan))
        };
        settled.iter().filter_map(plan).collect()
    }

    /// Returns whether a connection has a flow now that follows it.
    fn follow_one(
        &mut self,
        conntrack: &Conntrack,
        connection: &Connection<V4>,
        plan: &Plan<V4>,
    ) -> Result<bool> {
        // The kernel must expect anything before any packet passes it by: what it takes for invalid,
        // it does not translate, and the host resets a connection that it does not know.
        if connection.original.proto == proto::TCP && !conntrack.set_liberal(connection, None)? {
            return Ok(false);
        }
        Ok(match self.datapath.follow(plan)? {
            Following::Refused => false,
            Following::Followed | Following::Taken => self.flow(connection).is_some(),
        })
    }

    /// Returns the flow of a followed connection.
    fn flow(&self, connection: &Connection<V4>) -> Option<FlowSnapshot> {
        let flow = self.datapath.followed(connection.original)?;
        (flow.connection() == Some(*connection)).then_some(flow)
    }

    /// Reviews some of the followed connections: forgets those whose flow has ended, makes the kernel
    /// liberal again about those that have gone far, and tells it how long idle ones live. It has seen
    /// only a part of their packets, and takes data for unacknowledged that is not.
    pub(super) fn review_followed(&mut self) {
        let entries = self.followed.next();
        if entries.is_empty() {
            return;
        }
        let now = datapath::now();
        let mut due = Vec::new();
        for mut entry in entries {
            let original = entry.connection.original;
            let Some(flow) = self.flow(&entry.connection) else {
                self.followed.connections.remove(&original);
                continue;
            };
            let bytes = flow.bytes.iter().sum::<u64>();
            let has_turned = bytes.wrapping_sub(entry.bytes) >= TURN;
            let idle = now.wrapping_sub(flow.seen);
            // A packet may have arrived after the clock was read.
            let is_idle = (IDLE..Ticks::MAX / 2).contains(&idle);
            let is_told = entry.idle_since == Some(flow.seen);
            if flow.proto != proto::TCP || !(has_turned || is_idle && !is_told) {
                continue;
            }
            entry.bytes = bytes;
            entry.idle_since = is_idle.then_some(flow.seen);
            self.followed.connections.insert(original, entry);
            due.push((entry.connection, is_idle.then(|| flow.remaining(now))));
        }
        if due.is_empty() {
            return;
        }
        let conntrack = match Conntrack::open() {
            Ok(conntrack) => conntrack,
            Err(error) => return tracing::warn!("{error:#}"),
        };
        for (connection, timeout) in due {
            if let Err(error) = conntrack.set_liberal(&connection, timeout) {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Ends the flows of networks whose connections are followed no longer: they are left to the
    /// kernel, which has them. What fails is tried again with the next change.
    ///
    /// # Errors
    /// The last one: some connections are followed still.
    pub(super) fn unfollow(&mut self, before: &DesiredState, config: &Config) -> Result<()> {
        if !followed_bridges(before).is_subset(&followed_bridges(&self.tables)) {
            let mut followed = std::mem::take(&mut self.followed);
            followed.overdue.extend(followed.connections.into_values());
            self.followed.overdue = followed.overdue;
        }
        if self.followed.overdue.is_empty() {
            return Ok(());
        }
        let conntrack = Conntrack::open()?;
        let mut operations = FlowOperations::open(&config.bpffs_dir)?;
        let mut unfollowed = Ok(());
        for mut entry in std::mem::take(&mut self.followed.overdue) {
            if let Err(error) = self.unfollow_one(&conntrack, &mut operations, &mut entry) {
                unfollowed = Err(error);
                self.followed.overdue.push(entry);
            }
        }
        unfollowed
    }

    fn unfollow_one(
        &mut self,
        conntrack: &Conntrack,
        operations: &mut FlowOperations,
        entry: &mut Entry,
    ) -> Result<()> {
        let connection = &entry.connection;
        if let Some(flow) = self.flow(connection) {
            if flow.proto == proto::TCP {
                conntrack.set_liberal(connection, Some(flow.remaining(datapath::now())))?;
            }
            operations.end(flow.reference())?;
            entry.is_unfollowed = true;
        }
        if !entry.is_unfollowed {
            return Ok(());
        }
        for tuple in connection.tuples() {
            self.datapath.leave_to_kernel(tuple)?;
            self.kernel_owned.insert(tuple);
        }
        Ok(())
    }
}

fn followed_bridges(tables: &DesiredState) -> BTreeSet<u32> {
    let all = tables.left.iter();
    all.filter_map(|(&bridge, left)| left.is_followed.then_some(bridge))
        .collect()
}
