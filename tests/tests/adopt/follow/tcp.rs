// SPDX-License-Identifier: MIT OR Apache-2.0
//! Followed connections of TCP: their MSS, their end by FIN and RST, and what the kernel knows of it.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use harness::{Host, eventually, soaked};
use rustix::process::Signal;

use super::scenario::{Scenario, iptables, on_both};
use super::{BAN, HOLDS, goes_on};
use crate::{PUBLISHED, SOON, Stock};

/// The port from which the client asks.
const PORT: &str = "40001";
const BIND: &str = "--bind=198.18.1.2:40001";

/// A clamped MSS is what the other side sees, and the connection is fast.
#[test]
fn mss_clamp_holds() -> Result<()> {
    let stock = Stock::new("mss")?;
    let clamp = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000";
    iptables(&stock.host, &format!("-t mangle -I FORWARD {clamp}"))?;
    on_both(&stock, |scenario| {
        scenario.mode("bridge", "follow")?;
        let capture = stock.lab.lan().capture("h1")?;
        let mut outward = scenario.outward()?;
        let syn = capture.lines("tcp[tcpflags] & tcp-syn != 0 and dst port 7000")?;
        ensure!(!syn.is_empty(), "no SYN has been seen");
        let is_clamped = |line: &String| line.contains("mss 1000");
        ensure!(syn.iter().all(is_clamped), "{syn:?}");
        scenario.fast().context("outward")?;
        goes_on(&mut outward)?;
        outward.kill()?;
        let mut inward = scenario.inward()?;
        let answers = capture.lines("tcp[tcpflags] & tcp-syn != 0 and src port 8080")?;
        ensure!(!answers.is_empty(), "no SYN/ACK has been seen");
        ensure!(answers.iter().all(is_clamped), "{answers:?}");
        scenario.fast().context("inward")?;
        goes_on(&mut inward)
    })
}

/// Returns what the kernel knows of the client's connection.
fn known(host: &Host) -> Result<String> {
    host.cmd(&["conntrack", "-L", "-p", "tcp", "--orig-port-src", PORT])
}

fn is_known_as(host: &Host, states: &[&str]) -> Result<()> {
    let known = known(host)?;
    let mut words = known.split_whitespace();
    ensure!(words.any(|word| states.contains(&word)), "{known}");
    Ok(())
}

/// Checks that the flow of the client's connection is over, too.
fn flow_is_over(scenario: &Scenario<'_>) -> Result<()> {
    if scenario.is_adopted {
        let flows = scenario.host().cli(&["flows"])?;
        let mut of_client = flows.lines().filter(|line| line.contains(PORT));
        ensure!(
            !of_client.any(|line| line.contains("ESTABLISHED")),
            "{flows}"
        );
    }
    Ok(())
}

/// A stream goes on past the kernel for longer than its sequence numbers last, where a rule drops
/// what does not fit them.
#[test]
fn long_stream_keeps_fitting_the_kernel() -> Result<()> {
    let stock = Stock::new("long")?;
    let invalid = "-m conntrack --ctstate INVALID -j DROP";
    iptables(&stock.host, &format!("-I DOCKER-USER {invalid}"))?;
    let bytes = soaked("800000000", "10000000000");
    let patience = SOON * soaked(6, 60);
    on_both(&stock, |scenario| {
        scenario.mode("app", "follow")?;
        let mut stream = stock.lab.lan().spawn_peer(&["fetch", PUBLISHED, bytes])?;
        goes_on(&mut stream)?;
        scenario.fast()?;
        stream.line("done ", patience).map(drop)
    })
}

/// A connection that has been fast and is idle lives as long as the kernel's own timeout says, not as
/// one whose data is unacknowledged.
#[test]
fn idle_connection_lives_on() -> Result<()> {
    const DAYS: u64 = 400_000;
    let stock = Stock::new("idle")?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let mut held = stock
            .lab
            .lan()
            .spawn_peer(&["hold", "1", PUBLISHED, BIND])?;
        held.line("open 1", SOON)?;
        let exchanged = Instant::now();
        while exchanged.elapsed() < SOON / 2 {
            held.tell("")?;
            held.line("alive 1", SOON)?;
        }
        if scenario.is_adopted {
            let flows = host.cli(&["flows"])?;
            ensure!(flows.contains(PORT), "not followed: {flows}");
        }
        eventually(SOON, || {
            let known = known(host)?;
            let lives = known
                .split_whitespace()
                .find_map(|word| word.parse::<u64>().ok().filter(|n| *n > 6));
            ensure!(lives.is_some_and(|seconds| seconds > DAYS), "{known}");
            Ok(())
        })?;
        held.kill()?;
        host.cmd(&["conntrack", "-D", "-p", "tcp", "--orig-port-src", PORT])
            .map(drop)
    })
}

/// A reset reaches the container's server at once, and the kernel knows.
#[test]
fn reset_ends_followed_connection() -> Result<()> {
    let stock = Stock::new("rst")?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    let web = stock.host.container("web");
    let breaks = || -> Result<usize> {
        let logs = web.logs()?;
        let from = format!("tcp {}:{PORT}: ", super::CLIENT);
        Ok(logs.lines().filter(|line| line.starts_with(&from)).count())
    };
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let before = breaks()?;
        let bytes = ["400000000", "--rate=4000000", BIND];
        let fetch = [&["fetch", PUBLISHED], &bytes[..]].concat();
        let mut stream = stock.lab.lan().spawn_peer(&fetch)?;
        goes_on(&mut stream)?;
        scenario.fast()?;
        // What arrives for a socket that has gone is answered with RST.
        stream.signal(Signal::KILL)?;
        eventually(HOLDS, || {
            ensure!(breaks()? > before, "the server goes on");
            Ok(())
        })?;
        eventually(HOLDS, || is_known_as(host, &["CLOSE"]))?;
        eventually(HOLDS, || flow_is_over(scenario))?;
        host.cmd(&["conntrack", "-D", "-p", "tcp", "--orig-port-src", PORT])
            .map(drop)
    })
}

/// A stream that is over closes both directions, and the kernel knows.
#[test]
fn fin_ends_followed_connection() -> Result<()> {
    let stock = Stock::new("fin")?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let whole = ["32000000", "--rate=4000000", BIND];
        let fetch = [&["fetch", PUBLISHED], &whole[..]].concat();
        let mut stream = stock.lab.lan().spawn_peer(&fetch)?;
        goes_on(&mut stream)?;
        scenario.fast()?;
        stream.line("done ", SOON * 6)?;
        let status = stream.wait(SOON)?;
        ensure!(status.success(), "the client says {status}");
        let closed = ["TIME_WAIT", "CLOSE"];
        eventually(HOLDS, || is_known_as(host, &closed))?;
        eventually(HOLDS, || flow_is_over(scenario))?;
        let sockets = host.container("web").space()?.cmd(&["ss", "-Htn"])?;
        ensure!(!sockets.contains(PORT), "the server goes on: {sockets}");
        host.cmd(&["conntrack", "-D", "-p", "tcp", "--orig-port-src", PORT])?;
        stock.lab.lan().peer(&["get", PUBLISHED, BIND]).map(drop)
    })
}
