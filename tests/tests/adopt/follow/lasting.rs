// SPDX-License-Identifier: MIT OR Apache-2.0
//! Followed connections outlast the agent, whether it releases the host or dies; and bans hold
//! without an agent.

use anyhow::{Context as _, Result, ensure};
use harness::{Host, Process, eventually};

use super::scenario::{Scenario, goes_on_again, iptables, stream};
use super::{BAN, CLIENT, HOLDS, goes_on, is_fast, is_in_mode, stands};
use crate::{SOON, Stock};

/// Streams of both directions that are fast.
fn streams(stock: &Stock) -> Result<[Process; 2]> {
    let scenario = Scenario {
        stock,
        is_adopted: true,
    };
    for network in ["app", "bridge"] {
        eventually(HOLDS, || is_in_mode(&stock.host, network, "follow"))?;
    }
    let inward = scenario.inward()?;
    scenario.fast().context("inward")?;
    let outward = stream(&stock.inside.space()?, crate::OUTSIDE)?;
    scenario.fast().context("outward")?;
    Ok([inward, outward])
}

/// Rules that leave the networks to the kernel: a ban of somebody else, and one of packets that do
/// not fit what the kernel knows of their connection.
fn rules(host: &Host) -> Result<()> {
    iptables(host, &format!("-I {}", BAN.join(" ")))?;
    let invalid = "-m conntrack --ctstate INVALID -j DROP";
    iptables(host, &format!("-I DOCKER-USER {invalid}"))
}

/// Bans the client for a while, which both streams obey.
fn ban(stock: &Stock, streams: &mut [Process; 2]) -> Result<()> {
    let host = &stock.host;
    iptables(host, &format!("-I DOCKER-USER -s {CLIENT} -j DROP"))?;
    for stream in &mut *streams {
        stands(stream).context("banned")?;
    }
    iptables(host, &format!("-D DOCKER-USER -s {CLIENT} -j DROP"))?;
    for stream in streams {
        goes_on_again(stream).context("banned no longer")?;
    }
    Ok(())
}

/// A host is released with its rules as they were, and what was followed goes on.
#[test]
fn release_keeps_followed_connections() -> Result<()> {
    let stock = Stock::new("relfollow")?;
    let host = &stock.host;
    rules(host)?;
    let before = stock.rules()?;
    let mut agent = host.agent().quiet().start()?;
    let traffic = stock.traffic()?;
    let mut streams = streams(&stock)?;
    host.cli(&["release"])?;
    eventually(SOON, || {
        agent.ended()?.context("the agent goes on").map(drop)
    })?;
    for stream in &mut streams {
        goes_on_again(stream).context("released")?;
    }
    traffic.check_after(2, 900)?;
    let after = stock.rules()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    ban(&stock, &mut streams)
}

/// Without an agent, what is followed goes on, and bans hold; the next agent goes on with it.
#[test]
fn killed_agent_leaves_bans_in_force() -> Result<()> {
    let stock = Stock::new("deadfollow")?;
    let host = &stock.host;
    rules(host)?;
    let mut agent = host.agent().quiet().start()?;
    let mut streams = streams(&stock)?;
    agent.kill()?;
    for stream in &mut streams {
        goes_on_again(stream).context("without an agent")?;
    }
    is_fast(host).context("without an agent")?;
    ban(&stock, &mut streams).context("without an agent")?;
    let _agent = host.agent().start()?;
    for stream in &mut streams {
        goes_on(stream).context("with the next agent")?;
    }
    eventually(SOON, || is_fast(host)).context("with the next agent")?;
    ban(&stock, &mut streams).context("with the next agent")
}
