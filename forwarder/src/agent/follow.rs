// SPDX-License-Identifier: MIT OR Apache-2.0
//! Following: connections that the kernel has let through get a flow, by which their packets take the
//! fast path as long as the kernel lets them out.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use forwarder_common::abi::{Tuple, others};
use forwarder_common::conntrack::flow_operation::Following;
use forwarder_common::family::V4;
use forwarder_common::wire::proto;
use forwarder_state::connections::Connection;
use forwarder_state::desired_state::DesiredState;

use super::Agent;
use crate::config::Config;
use crate::datapath::{FlowOperations, FlowSnapshot};
use crate::sys::conntrack::Conntrack;

/// After how many bytes past the kernel a connection is loosened again: sequence numbers have turned
/// by an eighth.
const TURN: u64 = 1 << 29;

/// The connections that are followed.
#[derive(Default)]
pub(super) struct Followed(BTreeMap<Tuple<V4>, Entry>);

struct Entry {
    connection: Connection<V4>,
    /// How many bytes had passed when the kernel was last told to expect anything.
    loosened: u64,
}

impl Followed {
    /// Whether a connection is followed.
    pub(super) fn is_of(&self, connection: &Connection<V4>) -> bool {
        let known = self.0.get(&connection.original);
        known.is_some_and(|known| known.connection == *connection)
    }
}

impl Agent {
    /// Whether there are connections to follow.
    pub(crate) fn follows(&self) -> bool {
        let of_networks = self.tables.left.values().any(|left| left.is_followed);
        self.keeps_rules() && (of_networks || self.has_followable())
    }

    /// The bridges of networks whose connections are followed.
    pub(crate) fn followed_bridges(&self) -> BTreeSet<u32> {
        followed_bridges(&self.tables)
    }

    /// Whether there are connections that the kernel had before, and that may be followed.
    pub(super) fn has_followable(&self) -> bool {
        !self.kernel_owned.is_empty() || !self.followed.0.is_empty()
    }

    /// Follows connections, if they are of networks whose connections are followed, or were there
    /// before the forwarder. Returns whether the programs have to be told that there are any.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn follow(&mut self, settled: &[Connection<V4>]) -> Result<bool> {
        let Some(held) = self.held.as_ref().filter(|_| self.keeps_rules()) else {
            return Ok(false);
        };
        let left = &self.tables.left;
        let own = &self.tables.v4.networks;
        // A flow ends before its connection does when its network changes hands.
        let has_flow = |one| self.followed.is_of(one) && self.flow(one).is_some();
        let new = settled.iter().filter(|one| !has_flow(one));
        let new: Vec<_> = new
            .filter_map(|connection| {
                let is_older = self.kernel_owned.contains(&connection.original);
                let is_followed = |bridge| match left.get(&bridge) {
                    Some(left) => left.is_followed,
                    None => is_older && own.contains_key(&bridge),
                };
                let plan = connection.followed(&self.tables.v4, &held.v4, is_followed)?;
                Some((*connection, plan))
            })
            .collect();
        if new.is_empty() {
            return Ok(false);
        }
        let conntrack = Conntrack::open()?;
        for (connection, plan) in new {
            // The kernel must expect anything before any packet passes it by: what it takes for
            // invalid, it does not translate, and the host resets a connection that it does not know.
            let is_tracked = loosen(&conntrack, &connection)?;
            let known = match is_tracked
                .then(|| self.datapath.follow(&plan))
                .transpose()?
            {
                None | Some(Following::Refused) => None,
                Some(Following::Followed | Following::Taken) => self.flow(&connection),
            };
            if known.is_none() {
                tracing::debug!("not followed: {connection:?}");
                continue;
            }
            for tuple in connection.tuples() {
                self.kernel_owned.remove(&tuple);
            }
            let entry = Entry {
                connection,
                loosened: 0,
            };
            self.followed.0.insert(connection.original, entry);
        }
        Ok(self.tables.others & others::FOLLOWED == 0 && self.has_followable())
    }

    /// Returns the flow of a followed connection.
    fn flow(&self, connection: &Connection<V4>) -> Option<FlowSnapshot> {
        let flow = self.datapath.followed(connection.original)?;
        (flow.connection() == Some(*connection)).then_some(flow)
    }

    /// Forgets connections whose flow has ended, and lets the kernel expect anything of those that
    /// have gone far.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn review_followed(&mut self) -> Result<()> {
        if self.followed.0.is_empty() {
            return Ok(());
        }
        let mut followed = std::mem::take(&mut self.followed.0);
        let mut conntrack = None;
        let mut reviewed = Ok(());
        followed.retain(|_, entry| {
            let Some(flow) = self.flow(&entry.connection) else {
                return false;
            };
            let bytes = flow.bytes.iter().sum::<u64>();
            if flow.proto == proto::TCP && bytes.wrapping_sub(entry.loosened) >= TURN {
                entry.loosened = bytes;
                let told = match &conntrack {
                    Some(open) => loosen(open, &entry.connection),
                    None => Conntrack::open().and_then(|open| {
                        let told = loosen(&open, &entry.connection);
                        conntrack = Some(open);
                        told
                    }),
                };
                if let Err(error) = told {
                    reviewed = Err(error);
                }
            }
            true
        });
        self.followed.0 = followed;
        reviewed
    }

    /// Ends the flows of networks whose connections are followed no longer: the kernel has them.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn unfollow(&mut self, before: &DesiredState, config: &Config) -> Result<()> {
        if followed_bridges(before).is_subset(&self.followed_bridges()) {
            return Ok(());
        }
        let followed = std::mem::take(&mut self.followed.0);
        let mut operations = FlowOperations::open(&config.bpffs_dir)?;
        for entry in followed.into_values() {
            if let Some(flow) = self.flow(&entry.connection) {
                operations.end(flow.reference())?;
            }
        }
        Ok(())
    }
}

fn followed_bridges(tables: &DesiredState) -> BTreeSet<u32> {
    let all = tables.left.iter();
    all.filter_map(|(&bridge, left)| left.is_followed.then_some(bridge))
        .collect()
}

/// Lets the kernel expect anything of a connection of TCP. Returns whether the kernel knows it.
fn loosen(conntrack: &Conntrack, connection: &Connection<V4>) -> Result<bool> {
    if connection.original.proto == proto::TCP {
        conntrack.loosen(connection)
    } else {
        Ok(true)
    }
}
