// SPDX-License-Identifier: MIT OR Apache-2.0
//! A container's start and its end.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{Docker, Lab, Peer, eventually, holds, serve};
use rustix::process::Signal;

use super::{BOTH, SOON, is_free, is_reserved, is_served, ports, run, scene, shims};

#[test]
fn docker_run_waits_for_its_mapping() -> Result<()> {
    let mut scene = scene("waits")?;
    scene.agent.signal(Signal::STOP)?;
    let (host, agent) = (&scene.host, &mut scene.agent);
    let before = thread::scope(|scope| {
        let run = scope.spawn(|| {
            run(host, "web", &[])?;
            // The very first question after it: no waiting here.
            ports(host)
        });
        let early = holds(Duration::from_secs(1), || {
            ensure!(!run.is_finished(), "docker run is over");
            Ok(())
        });
        agent.signal(Signal::CONT)?;
        let ports = run.join().expect("docker run panics")?;
        early.map(|()| ports)
    })?;
    assert_eq!(before, ["0.0.0.0:8080/tcp", "0.0.0.0:8080/udp"]);
    is_served(&scene.lab)
}

/// The first packet is answered by the container itself.
#[test]
fn first_packet_is_answered_by_the_container() -> Result<()> {
    let scene = scene("first")?;
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    run(&scene.host, "web", &[])?;
    is_served(&scene.lab)?;
    let syns = at_lan.lines("tcp[tcpflags] == tcp-syn and dst port 8080")?;
    assert_eq!(syns.len(), 1, "{syns:?}");
    let datagrams = at_lan.lines("udp and dst port 8080")?;
    assert_eq!(datagrams.len(), 1, "{datagrams:?}");
    Ok(())
}

/// A port that is taken fails the start and leaves nothing.
#[test]
fn taken_port_fails_the_start() -> Result<()> {
    let scene = scene("taken")?;
    let _other = serve(&scene.host, 8080)?;
    let refused = format!("{:#}", run(&scene.host, "web", &[]).unwrap_err());
    assert!(
        refused.contains("cannot listen on 0.0.0.0:8080/") && refused.contains("in use"),
        "{refused}"
    );
    assert_eq!(ports(&scene.host)?, [""; 0]);
    eventually(SOON, || {
        ensure!(shims(&scene.host)?.is_empty(), "a shim is left");
        Ok(())
    })
}

/// Without an agent the start fails with what to do.
#[test]
fn start_without_agent_fails_with_a_remedy() -> Result<()> {
    let lab = Lab::new("away")?;
    let host = lab.host(Docker::replace_with_shim())?;
    let begun = Instant::now();
    let refused = format!("{:#}", run(&host, "web", &[]).unwrap_err());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let socket = host.state_dir().join("forwarder.sock");
    let named = format!("no agent answers at {}", socket.display());
    assert!(
        refused.contains(&named) && refused.contains("`forwarder run`"),
        "{refused}"
    );
    eventually(SOON, || {
        ensure!(shims(&host)?.is_empty(), "a shim is left");
        Ok(())
    })?;
    assert!(is_free(&host, 8080)?);
    let _agent = host.agent().start()?;
    host.docker(&["start", "web"])?;
    eventually(SOON, || is_served(&lab))
}

/// A shim that is told to wait waits for the agent.
#[test]
fn shim_waits_for_the_agent_if_told_so() -> Result<()> {
    let lab = Lab::new("patience")?;
    let host = lab.host(Docker::replace_with_shim().env("FORWARDER_PROXY_WAIT", "10"))?;
    thread::scope(|scope| {
        let run = scope.spawn(|| run(&host, "web", &[]));
        eventually(SOON, || {
            ensure!(!shims(&host)?.is_empty(), "no shim waits");
            Ok(())
        })?;
        let agent = host.agent().start()?;
        run.join().expect("docker run panics")?;
        assert_eq!(ports(&host)?.len(), 2);
        is_served(&lab)?;
        drop(agent);
        Ok(())
    })
}

/// The end of a container frees port and mapping at once.
#[test]
fn container_stop_frees_port_and_mapping() -> Result<()> {
    let scene = scene("frees")?;
    let host = &scene.host;
    run(host, "web", &[])?;
    assert!(is_reserved(host, 8080)?);
    host.container("web").remove()?;
    assert_eq!(ports(host)?, [""; 0]);
    assert!(is_free(host, 8080)?);
    assert_eq!(shims(host)?.len(), 0);
    // What comes to the port is the host's own business again.
    let refused = scene.lan().peer(&["get", "198.18.1.1:8080"]).unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");

    // Another container takes it over, at another address.
    host.run("idle", &[], &Peer::idle())?;
    host.run("next", &BOTH, &Peer::serve(80))?;
    is_served(&scene.lab)?;
    host.container("next").log_line("tcp 198.18.1.2:").map(drop)
}
