// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks about which other people's rules decide: the kernel decides about each connection, and
//! those that it lets through take the fast path.

mod bans;
mod lasting;
mod marks;
mod modes;
mod nat;
mod paths;
mod scenario;
mod tcp;
mod ufw;
mod vpn;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Host, Process, eventually};

use crate::{OUTSIDE, PUBLISHED, SOON, Stock};

/// How long a change of the rules may take to hold.
const HOLDS: Duration = Duration::from_secs(1);
/// The client on the LAN.
const CLIENT: &str = "198.18.1.2";
/// A rule that bans somebody else.
const BAN: [&str; 6] = ["DOCKER-USER", "-s", "203.0.113.9", "-j", "DROP", "-w"];

/// Returns the network's mode and the rule that decided.
fn mode(host: &Host, name: &str) -> Result<(String, String)> {
    let networks = host.json("networks")?;
    let networks = networks.as_array().context("no list of networks")?;
    let row = networks.iter().find(|row| row["name"] == name);
    let row = row.with_context(|| format!("no network {name}"))?;
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok((text("mode"), text("rule")))
}

fn is_in_mode(host: &Host, name: &str, wanted: &str) -> Result<()> {
    let (mode, why) = mode(host, name)?;
    ensure!(mode == wanted, "{name} is in mode {mode} by {why:?}");
    Ok(())
}

/// Returns how many packets took the fast path.
fn forwarded(host: &Host) -> Result<u64> {
    let status = host.json("status")?;
    Ok(status["reasons"]["forwarded"].as_u64().unwrap_or(0))
}

/// Whether packets take the fast path now.
pub(crate) fn is_fast(host: &Host) -> Result<()> {
    let before = forwarded(host)?;
    sleep(Duration::from_millis(200));
    let packets = forwarded(host)? - before;
    ensure!(packets >= 50, "only {packets} packets took the fast path");
    Ok(())
}

fn is_slow(host: &Host) -> Result<()> {
    let before = forwarded(host)?;
    sleep(Duration::from_millis(200));
    let packets = forwarded(host)? - before;
    ensure!(packets < 5, "{packets} packets took the fast path");
    Ok(())
}

/// Waits until a stream goes on, and returns how far it is.
fn goes_on(stream: &mut Process) -> Result<()> {
    stream.line("at ", SOON).map(drop)
}

/// Waits until a stream says nothing for a while.
fn stands(stream: &mut Process) -> Result<()> {
    let since = Instant::now();
    while stream.line("at ", Duration::from_millis(400)).is_ok() {
        ensure!(since.elapsed() < HOLDS, "the stream goes on");
    }
    Ok(())
}

/// Connections of both directions become fast, a ban stops them within a second, and its end brings
/// them back.
#[test]
fn followed_connections_obey_bans() -> Result<()> {
    let stock = Stock::new("follow")?;
    let host = &stock.host;
    host.cmd(&[&["iptables", "-I"], &BAN[..]].concat())?;
    let _agent = host.agent().start()?;
    eventually(HOLDS, || is_in_mode(host, "app", "follow"))?;
    let inner = stock.inside.space()?;
    let rate = "--rate=2000000";
    let lan = stock.lab.lan();
    let mut inward = lan.spawn_peer(&["fetch", PUBLISHED, "400000000", rate, "--timeout=20000"])?;
    goes_on(&mut inward)?;
    eventually(SOON, || is_fast(host)).context("inward")?;
    let banned = ["-s", CLIENT, "-j", "DROP"];
    host.cmd(&[&["iptables", "-I", "DOCKER-USER"][..], &banned].concat())?;
    stands(&mut inward)?;
    is_slow(host)?;
    host.cmd(&[&["iptables", "-D", "DOCKER-USER"][..], &banned].concat())?;
    goes_on(&mut inward)?;
    eventually(SOON, || is_fast(host)).context("inward again")?;
    inward.kill()?;
    let mut outward =
        inner.spawn_peer(&["fetch", OUTSIDE, "400000000", rate, "--timeout=20000"])?;
    goes_on(&mut outward)?;
    eventually(SOON, || is_fast(host)).context("outward")?;
    host.cmd(&[&["iptables", "-I", "DOCKER-USER"][..], &banned].concat())?;
    stands(&mut outward)?;
    host.cmd(&[&["iptables", "-D", "DOCKER-USER"][..], &banned].concat())?;
    goes_on(&mut outward)?;
    eventually(SOON, || is_fast(host)).context("outward again")
}
