// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guards hold, polled every 10 ms, through every restart and while containers come and go.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Peer, eventually};

use crate::SOON;
use crate::probe::{Barrage, LOOPBACK, careless, heard, is_untouched};
use crate::site::Site;

/// On an address and a port of its own: [`LOOPBACK`] is the lasting container's.
const OTHER_LOOPBACK: [&str; 2] = ["-p", "127.0.0.3:5001:80/udp"];

/// Runs what lasts: published for everybody, and for the host itself alone.
fn kept(site: &Site) -> Result<()> {
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let options = [&["--restart=always"][..], &ports, &LOOPBACK].concat();
    site.serve("web", &options).map(drop)
}

/// A container that lives for a moment and hears nobody but the host.
fn churn(site: &Site, name: &str, options: &[&str]) -> Result<()> {
    let short = site.host.run(name, options, &Peer::serve(80))?;
    let own = format!("{}:80", short.ip()?);
    eventually(SOON, || {
        site.host.peer(&["udp", &own, "x", "--timeout=500"])
    })
    .with_context(|| format!("the host cannot reach {name}"))?;
    let untouched = is_untouched(&short);
    short.remove()?;
    untouched
}

/// Fires while `work` goes on; nothing may come in or out.
fn holds_through(site: &mut Site, work: impl FnOnce(&mut Site) -> Result<()>) -> Result<()> {
    kept(site)?;
    careless(&site.host)?;
    let barrage = Barrage::new(site)?;
    let at_lan = site.lan().capture("h1")?;
    let lan = site.lan().clone();
    let begun = Instant::now();
    let rounds = barrage.during(&lan, || work(site))?;
    println!("{rounds} rounds in {:?}", begun.elapsed());
    ensure!(rounds > 50, "only {rounds} rounds");
    is_untouched(&site.host.container("web"))?;
    let answers = at_lan.lines("ip and (src net 172.16.0.0/12 or src net 127.0.0.0/8)")?;
    ensure!(
        answers.is_empty(),
        "{} answers: {:?}",
        answers.len(),
        answers.first()
    );
    // And all the while it was a host that works.
    eventually(SOON, || site.lan().peer(&["get", "198.18.1.1:8080"])).map(drop)
}

/// Kills the agent, does something without it, and starts the next.
fn without_agent(site: &mut Site, work: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
    site.agent.take().context("no agent")?.kill()?;
    work(site)?;
    site.agent = Some(site.host.agent().start()?);
    Ok(())
}

/// Nothing comes in while agents die and containers come and go.
#[test]
fn agent_deaths_and_churn_let_nothing_in() -> Result<()> {
    let mut site = Site::ours("guard-agent")?;
    holds_through(&mut site, |site| {
        for n in 0..4 {
            churn(site, &format!("with{n}"), &OTHER_LOOPBACK)?;
            without_agent(site, |site| churn(site, &format!("without{n}"), &[]))?;
        }
        Ok(())
    })
}

/// Nothing comes in while dockerd restarts its containers.
#[test]
fn dockerd_restarting_containers_lets_nothing_in() -> Result<()> {
    let mut site = Site::ours("guard-dockerd")?;
    holds_through(&mut site, |site| {
        for n in 0..2 {
            site.host.restart_docker()?;
            churn(site, &format!("after{n}"), &[])?;
            site.host.kill_docker()?;
            site.host.start_docker()?;
        }
        // With nobody there who would notice.
        without_agent(site, |site| {
            site.host.restart_docker()?;
            churn(site, "unnoticed", &[])
        })
    })
}

/// Nothing comes in while dockerd restarts beside its running containers (live restore).
#[test]
fn dockerd_restart_with_live_restore_is_closed() -> Result<()> {
    let docker = Docker::replace().arg("--live-restore");
    let mut site = Site::with("guard-live-restore", docker, "")?;
    holds_through(&mut site, |site| {
        let inside = site.host.container("web").space()?.capture("eth0")?;
        for n in 0..2 {
            site.host.restart_docker()?;
            churn(site, &format!("after{n}"), &[])?;
            without_agent(site, |site| {
                site.host.kill_docker()?;
                site.host.start_docker()
            })?;
        }
        let came = inside.lines("ip and src host 198.18.1.2")?;
        ensure!(came.is_empty(), "{came:?}");
        Ok(())
    })
}

#[test]
fn networks_that_come_and_go_are_closed() -> Result<()> {
    let mut site = Site::ours("guard-networks")?;
    holds_through(&mut site, |site| {
        for n in 0..4 {
            let network = format!("net{n}");
            site.host.docker(&["network", "create", &network])?;
            churn(site, &network, &["--network", &network])?;
            site.host.docker(&["network", "rm", &network])?;
        }
        Ok(())
    })
}

/// Nothing comes into a network that was made while no agent lived.
#[test]
fn network_made_without_an_agent_is_closed() -> Result<()> {
    let mut site = Site::ours("guard-new-network")?;
    holds_through(&mut site, |site| {
        without_agent(site, |site| {
            site.host.docker(&["network", "create", "unknown"])?;
            churn(site, "unknown", &["--network", "unknown"])
        })
    })
}

/// The positive control of the probes: where the mode opens the container they come in.
#[test]
fn probes_enter_an_unprotected_network() -> Result<()> {
    let site = Site::ours("guard-open")?;
    let mode = ["--label", "forwarder.gateway_mode_ipv4=nat-unprotected"];
    site.network("open", &mode)?;
    let server = site.serve("web", &["--network", "open"])?;
    let barrage = Barrage::new(&site)?;
    barrage.during(site.lan(), || {
        eventually(SOON, || {
            ensure!(heard(&server)?.len() > 10, "not a probe came in");
            Ok(())
        })
    })?;
    Ok(())
}
