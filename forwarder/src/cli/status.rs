// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder status`: shows the agent's status from the agent and the datapath's status from the
//! pins.

use std::fmt::Write;

use anyhow::{Context, Result};
use forwarder_common::reason::Reason;
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::output::{self, Format, span, table};
use crate::config::Config;
use crate::control::{self, AskError, Verb};
use crate::report::{self, AgentStatus, Status, Uplink};

pub(super) fn status(config: &Config, format: Format) -> Result<()> {
    let agent = match super::ask::<AgentStatus>(config, Verb::Status) {
        Ok(told) => Some(told),
        Err(error) if matches!(error.downcast_ref(), Some(AskError::Absent { .. })) => None,
        Err(error) => return Err(error),
    };
    let view = super::view(config).with_context(|| match agent {
        Some(_) => "the agent has no maps".to_owned(),
        None => format!(
            "no agent answers at {}",
            control::socket(&config.state_dir).display()
        ),
    })?;
    let pinned = report::hooks(view.hooks()?, device_name);
    let status = report::status(
        agent,
        pinned,
        view.sockets()?,
        &view.reasons()?,
        &view.maps()?,
        view.armed()?,
    );
    match format {
        Format::Json => output::json(&status),
        Format::Table => output::text(&render(&status)),
    }
}

/// Returns the name of a device in our network namespace.
fn device_name(index: u32) -> Option<String> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}

fn render(status: &Status) -> String {
    let mut head = vec![vec![
        "agent".to_owned(),
        status.agent.as_ref().map_or_else(
            || "none runs; the programs continue without it".to_owned(),
            |agent| {
                let up = span(agent.uptime_s);
                format!("pid {}, version {}, up {up}", agent.pid, agent.version)
            },
        ),
    ]];
    if let Some(docker) = &status.docker {
        let version = docker.version.as_deref().unwrap_or("away");
        let (networks, running) = (docker.networks, docker.running);
        let docker = format!("{version}, {networks} networks, {running} running containers");
        head.push(vec!["docker".to_owned(), docker]);
    }
    for Uplink { name, xdp, why } in &status.uplinks {
        let xdp = format!("{xdp:?}").to_lowercase();
        head.push(vec![
            "uplink".to_owned(),
            format!("{name}: xdp {xdp} ({why})"),
        ]);
    }
    for line in &status.others {
        head.push(vec!["others".to_owned(), line.clone()]);
    }
    if !status.armed {
        let unarmed = "not yet: everything passes until the first start is complete";
        head.push(vec!["armed".to_owned(), unarmed.to_owned()]);
    }
    let rules = match status.mode.as_str() {
        "adopt" => Some("kept: the way back is forwarder release"),
        "handover" => Some("kept; connections change hands, so none begins on the fast path"),
        _ => None,
    };
    head.extend(rules.map(|rules| vec!["Docker's rules".to_owned(), rules.to_owned()]));
    for failure in &status.failures {
        head.push(vec!["failing".to_owned(), failure.clone()]);
    }
    let packets = status
        .packets
        .iter()
        .map(|(path, count)| format!("{path} {count}"));
    let sockets = match status.sockets.as_slice() {
        [] => "none: the host's own processes do not reach published ports at its addresses"
            .to_owned(),
        programs => programs.join(" "),
    };
    head.push(vec!["sockets".to_owned(), sockets]);
    head.push(vec![
        "packets".to_owned(),
        packets.collect::<Vec<_>>().join(", "),
    ]);

    let hooks = status
        .hooks
        .iter()
        .map(|(device, hooks)| vec![device.clone(), hooks.join(" ")]);
    let text = |label: &str| {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.label() == label)
            .map_or("", Reason::text)
    };
    let reasons = status
        .reasons
        .iter()
        .map(|(label, count)| vec![label.clone(), count.to_string(), text(label).to_owned()]);
    let maps = status
        .maps
        .iter()
        .map(|(name, map)| vec![name.clone(), map.fill.to_string(), map.size.to_string()]);
    let mut all = table(&[], head);
    for section in [
        table(&["DEVICE", "PROGRAMS"], hooks),
        table(&["REASON", "PACKETS", "MEANING"], reasons),
        table(&["MAP", "ENTRIES", "SIZE"], maps),
    ] {
        // Writing to a string cannot fail.
        let _ = write!(all, "\n{section}");
    }
    all
}
