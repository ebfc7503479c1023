// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our own tables of netfilter, written after each sync.

use forwarder_state::host_state::HostState;
use forwarder_state::others::OurTable;

use super::Agent;
use crate::sys::netfilter;

impl Agent {
    /// Brings our own tables of netfilter to what they should be. A table that cannot be written is
    /// logged, once for each cause, and tried again in the next sync.
    pub(super) fn write_rules(&mut self, host_state: &HostState) {
        if self.keeps_rules() {
            self.accept_handed_on(host_state);
        }
        for table in OurTable::ALL {
            // That nft is missing is logged at the start.
            if table != OurTable::Untracked && !netfilter::has_nft() {
                continue;
            }
            // Docker's own rules keep apart what no agent has seen.
            let content = match table {
                OurTable::Forwarded | OurTable::Bridged if self.keeps_rules() => None,
                _ => self.rules.content(table),
            };
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
}

impl Agent {
    /// Puts our rule first in every chain that decides what is forwarded. A reload of other software
    /// takes it away, or puts a rule before it.
    pub(super) fn accept_handed_on(&mut self, host_state: &HostState) {
        if host_state.others.writes != netfilter::writes() {
            return;
        }
        let chains = &host_state.others.forward_chains;
        for chain in chains.iter().filter(|chain| !chain.begins_with_ours) {
            if let Err(error) = netfilter::accept_in(chain) {
                let name = &chain.name;
                tracing::warn!(
                    "what the fast path passes to the kernel may be dropped in the chain {name}: \
                     {error:#}"
                );
            }
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
