// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hands back: the kernel takes over every flow, and nothing of the forwarder stays. Works on the
//! pins, without an agent.
//!
//! While flows are handed back none begins, and each flow moves at one moment: connection tracking
//! knows it before its keys are removed.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use forwarder_common::abi::armed;
use forwarder_common::clock::Ticks;
use forwarder_common::family::{Be32, V4};
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::proto;
use forwarder_state::address::WireAddress as _;
use forwarder_state::others::summary::has_dockers;

use crate::datapath::{self, FlowOperations, FlowSnapshot, View};
use crate::sys::conntrack::{Conntrack, Terms};
use crate::sys::firewall;

/// Hands all flows back to the kernel, if Docker's rules are in place. Returns how many; none if
/// nothing is there to hand back, or nobody to hand it to.
///
/// # Errors
/// The kernel refuses it. Then the datapath goes on, and no flow begins.
pub(crate) fn hand_back(bpffs_dir: &Path) -> Result<Option<usize>> {
    let Ok(mut view) = View::open(bpffs_dir) else {
        return Ok(None);
    };
    let keeps_rules = armed::keeps_rules(view.armed()?);
    if !keeps_rules && !has_dockers(&firewall::read()) {
        return Ok(None);
    }
    view.arm(armed::HANDOVER)?;
    let flows = view.flows(datapath::now());
    give(&flows, bpffs_dir)?;
    // Without flows, programs that are not armed pass everything: they can go in any order.
    view.arm(armed::NOT)?;
    Ok(Some(flows.len()))
}

/// Hands back the flows of containers in these subnets. Returns how many. No flow may begin
/// meanwhile.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn flows_of(bpffs_dir: &Path, subnets: &[(Be32, u8)]) -> Result<usize> {
    let is_inside = |address: IpAddr| {
        let address = Be32::of(address);
        let mut subnets = subnets.iter();
        address.is_some_and(|address| subnets.any(|&(subnet, len)| address.prefix(len) == subnet))
    };
    let mut flows = View::open(bpffs_dir)?.flows(datapath::now());
    flows.retain(|flow| is_inside(flow.original.src) || is_inside(flow.reply.src));
    give(&flows, bpffs_dir)?;
    Ok(flows.len())
}

/// Gives flows to connection tracking, one after the other, and ends them.
fn give(flows: &[FlowSnapshot], bpffs_dir: &Path) -> Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let conntrack = Conntrack::open()?;
    let mut operations = FlowOperations::open(bpffs_dir)?;
    let now = datapath::now();
    for flow in flows {
        if is_tracked(flow)
            && let Some(connection) = flow.connection::<V4>()
        {
            let terms = terms(flow, now);
            let told = if flow.flow_state.is_followed() {
                let timeout = Some(terms.timeout);
                conntrack.set_liberal(&connection, timeout).map(drop)
            } else {
                conntrack.track(&connection, terms)
            };
            told.with_context(|| format!("a flow of {}", flow.original.src))?;
        }
        operations.end(flow.reference())?;
    }
    Ok(())
}

/// Whether the kernel has to be told of a flow: an answer to a query comes within seconds, and other
/// protocols have no ports that a translation could have changed. It has the connection of a followed
/// flow, but has seen only a part of its packets.
fn is_tracked(flow: &FlowSnapshot) -> bool {
    match flow.proto {
        proto::TCP => true,
        proto::UDP | proto::SCTP => !flow.flow_state.is_followed(),
        _ => false,
    }
}

fn terms(flow: &FlowSnapshot, now: Ticks) -> Terms {
    Terms {
        tcp: State::from_u8(flow.flow_state.state()),
        is_replied: flow.flow_state.is_replied(),
        is_assured: flow.flow_state.is_assured(),
        timeout: flow.remaining(now),
    }
}
