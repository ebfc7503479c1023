// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent dies and comes back: shims find it again.

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Docker, Host, Lab, eventually};
use rustix::process::Signal;

use super::{SOON, is_free, is_served, ports, run, scene, shims};

/// An agent that no Docker answers: it never gets ready.
fn start_without_docker(host: &Host) -> Result<Agent> {
    let agent = host.agent().without_docker().spawn()?;
    eventually(SOON, || host.json("status").map(drop)).context("the agent does not answer")?;
    Ok(agent)
}

/// How many mappings the kernel holds.
fn mappings(host: &Host) -> Result<u64> {
    let status = host.json("status")?;
    let fill = &status["maps"]["PUBLISHED"]["fill"];
    fill.as_u64()
        .with_context(|| format!("no fill: {}", status["maps"]))
}

/// Connections live through an agent's death, and shims find the next agent.
#[test]
fn connections_and_shims_survive_the_agent() -> Result<()> {
    let mut scene = scene("reborn")?;
    let (host, lab) = (&scene.host, &scene.lab);
    run(host, "web", &[])?;
    let mut held = lab.lan().spawn_peer(&["hold", "5", "198.18.1.1:8080"])?;
    held.line("open 5", SOON)?;
    let mut alive = || {
        held.tell("")?;
        let line = held.line("alive", SOON)?;
        ensure!(line == "alive 5", "{line}");
        Ok(())
    };
    scene.agent.kill()?;
    alive()?;
    is_served(lab)?;
    scene.agent = host.agent().start()?;
    alive()?;
    is_served(lab)?;
    eventually(SOON, || {
        let sockets = host.cmd(&["cat", "/proc/net/unix"])?;
        // The agent's ends of connections, which have its own socket's name, and that itself.
        let path = host.state_dir().join("forwarder.new");
        let connected = sockets.matches(&path.display().to_string()).count();
        ensure!(connected == 3, "{connected} shims are connected");
        Ok(())
    })?;
    alive()?;
    host.container("web").remove()?;
    assert!(is_free(host, 8080)? && ports(host)?.is_empty());
    Ok(())
}

/// An agent that starts with an empty state and without Docker learns the ports of shims.
#[test]
fn new_agent_without_docker_learns_shims_ports() -> Result<()> {
    let mut scene = scene("nothing")?;
    let host = &scene.host;
    run(host, "web", &[])?;
    host.kill_docker()?;
    scene.agent.kill()?;
    host.cli(&["cleanup"])?;
    scene.agent = host.agent().spawn()?;
    eventually(SOON, || {
        let ports = ports(host)?;
        ensure!(ports.len() == 2, "{ports:?}");
        Ok(())
    })?;
    // dockerd restores its containers before it answers: their shims must not wait for that.
    host.start_docker()?;
    scene.agent.ready()?;
    eventually(SOON * 2, || {
        ensure!(
            shims(host)?.is_empty() && ports(host)?.is_empty(),
            "the container has ended"
        );
        Ok(())
    })?;
    host.docker(&["start", "web"])?;
    eventually(SOON, || is_served(&scene.lab))
}

/// Without Docker, what shims say is enough to add and to remove a mapping.
#[test]
fn shims_alone_add_and_remove_mappings() -> Result<()> {
    let lab = Lab::new("word")?;
    let host = lab.host(Docker::replace_with_shim())?;
    let agent = start_without_docker(&host)?;
    run(&host, "web", &[])?;
    assert_eq!(ports(&host)?, ["0.0.0.0:8080/tcp", "0.0.0.0:8080/udp"]);
    assert_eq!(mappings(&host)?, 2);
    host.container("web").remove()?;
    assert!(ports(&host)?.is_empty() && mappings(&host)? == 0);
    drop(agent);
    Ok(())
}

#[test]
fn container_stop_without_agent_does_not_hang() -> Result<()> {
    let mut scene = scene("parting")?;
    let host = &scene.host;
    run(host, "web", &[])?;
    scene.agent.signal(Signal::STOP)?;
    host.container("web")
        .remove()
        .context("with a deaf agent")?;
    assert!(is_free(host, 8080)?);
    scene.agent.signal(Signal::CONT)?;
    eventually(SOON, || {
        ensure!(ports(host)?.is_empty(), "a mapping is left");
        Ok(())
    })?;
    run(host, "web", &[])?;
    scene.agent.kill()?;
    host.container("web").remove().context("without an agent")?;
    assert!(is_free(host, 8080)?);
    scene.agent = host.agent().start()?;
    assert!(ports(host)?.is_empty());
    Ok(())
}

/// The host ports of a routed network are reserved and lead nowhere.
#[test]
fn routed_networks_host_ports_lead_nowhere() -> Result<()> {
    let mut scene = scene("routed")?;
    let label = "forwarder.gateway_mode_ipv4=routed";
    let host = &scene.host;
    host.docker(&["network", "create", "--label", label, "routed"])?;
    run(host, "web", &["--network", "routed"])?;
    let own = |host: &Host| {
        eventually(SOON, || {
            let ports = ports(host)?;
            let own = ports
                .iter()
                .all(|port| port.ends_with(":80/tcp") || port.ends_with(":80/udp"));
            ensure!(own && ports.len() == 2, "{ports:?}");
            ensure!(!is_free(host, 8080)?, "the port is free");
            ensure!(shims(host)?.len() == 2);
            Ok(())
        })
    };
    own(host)?;
    // The next agent knows it before the shims say so.
    scene.agent.kill()?;
    scene.agent = scene.host.agent().start()?;
    own(&scene.host)
}
