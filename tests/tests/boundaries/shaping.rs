// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that others shape: the rate holds for containers' traffic, as on a stock host.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Peer, eventually, serve};

/// How long the agent may take to notice.
const SOON: Duration = Duration::from_secs(3);
/// Bytes that take two seconds at the shaped rate, and how long they take at least and without it at
/// most.
const OCTETS: &str = "500000";
const SHAPED: Duration = Duration::from_millis(1200);
const FREE: Duration = Duration::from_millis(800);
const RATE: &str = "tbf rate 2mbit burst 16k latency 200ms";

fn tc(host: &Host, words: &str) -> Result<String> {
    let argv: Vec<_> = ["tc"].into_iter().chain(words.split(' ')).collect();
    host.cmd(&argv)
}

/// How long the container needs for bytes from the LAN.
fn fetches(container: &Container) -> Result<Duration> {
    let begun = Instant::now();
    container.peer(&["fetch", "198.18.1.2:7", OCTETS])?;
    Ok(begun.elapsed())
}

/// The host's end of a container's only veth.
fn veth(host: &Host, container: &Container) -> Result<String> {
    let links = container.space()?.ip("-o link show dev eth0")?;
    let index = links
        .split("eth0@if")
        .nth(1)
        .and_then(|rest| rest.split(':').next());
    let index: u32 = index.context("no index")?.parse()?;
    let all = host.ip("-o link show")?;
    let line = all
        .lines()
        .find(|line| line.starts_with(&format!("{index}: ")));
    let name = line.and_then(|line| line.split([' ', '@']).nth(1));
    Ok(name.context("no veth")?.to_owned())
}

/// A queue on the container's veth, a queue on its bridge, and one behind the uplink's ingress: each
/// holds while it is there.
fn each_holds(lab: &Lab, host: &Host, ours: bool) -> Result<()> {
    let _server = serve(lab.lan(), 7)?;
    let web = host.run("web", &[], &Peer::idle())?;
    if ours {
        host.settle("web")?;
    }
    let veth = veth(host, &web)?;
    host.ip("link add ifb0 type ifb")?;
    host.ip("link set ifb0 up")?;
    tc(host, &format!("qdisc add dev ifb0 root {RATE}"))?;
    let shaped = |on: bool| {
        eventually(SOON, || {
            if !ours {
                return Ok(());
            }
            let others = host.json("status")?["others"].to_string();
            ensure!(on == others.contains("the kernel's path"), "told: {others}");
            Ok(())
        })
    };
    ensure!(fetches(&web)? < FREE, "slow without a shaper");
    for (put, take) in [
        (
            format!("qdisc add dev {veth} root {RATE}"),
            format!("qdisc del dev {veth} root"),
        ),
        (
            format!("qdisc add dev docker0 root {RATE}"),
            "qdisc del dev docker0 root".to_owned(),
        ),
        (
            "qdisc add dev up0 ingress".to_owned(),
            "qdisc del dev up0 ingress".to_owned(),
        ),
    ] {
        let by_filter = put.ends_with("ingress");
        tc(host, &put)?;
        if by_filter {
            let all = "filter add dev up0 parent ffff: protocol ip u32 match u32 0 0";
            tc(
                host,
                &format!("{all} action mirred egress redirect dev ifb0"),
            )?;
        }
        // The queue behind the filter is there all the time: nothing goes by it without.
        if ours {
            eventually(SOON, || {
                let others = host.json("status")?["others"].to_string();
                let device = put.split(' ').nth(3).unwrap_or_default();
                ensure!(others.contains(&format!("on {device}")), "{put}: {others}");
                Ok(())
            })?;
        }
        let took = fetches(&web)?;
        ensure!(took > SHAPED, "{put}: all came in {took:?}");
        tc(host, &take)?;
    }
    host.ip("link del ifb0")?;
    shaped(false)?;
    let took = fetches(&web)?;
    ensure!(took < FREE, "still slow: {took:?}");
    Ok(())
}

#[test]
fn shaping_holds() -> Result<()> {
    let lab = Lab::new("shapers")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    each_holds(&lab, &host, true)?;
    let reasons = host.json("status")?["reasons"].to_string();
    ensure!(
        reasons.contains("\"shaped\""),
        "not by the kernel: {reasons}"
    );
    Ok(())
}

#[test]
fn stock_shaping_holds() -> Result<()> {
    let lab = Lab::new("stock-shapers")?;
    let host = lab.host(Docker::stock())?;
    each_holds(&lab, &host, false)
}
