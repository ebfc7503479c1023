// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs' own life: without an agent, under a new one, and their end.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Lab, Peer, Scene, eventually};

use crate::SOON;
use crate::WEB;
use crate::connects;
use crate::reaches;
use crate::refused;

const PROGRAMS: [&str; 10] = [
    "bind4",
    "bind6",
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "socket_lookup",
];

/// Socket programs go on without an agent and are replaced without a gap.
#[test]
fn socket_programs_outlive_the_agent() -> Result<()> {
    let mut scene = Scene::new("sockets-go-on")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let status = scene.host.json("status")?;
    let mut named: Vec<_> = status["sockets"]
        .as_array()
        .context("no sockets")?
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    named.sort_unstable();
    assert_eq!(named, PROGRAMS);
    let client = |words: &[&str]| scene.host.peer(words);
    let mut held = scene.host.spawn_peer(&["hold", "5", "127.0.0.1:8080"])?;
    held.line("open 5", SOON)?;

    let first = scene.host.pinned()?;
    assert_eq!(first.sockets.len(), PROGRAMS.len());
    scene.agent.kill()?;
    reaches(&client, "127.0.0.1:8080", "172.17.0.1")?;
    assert_eq!(scene.host.pinned()?.sockets, first.sockets);

    // A new agent's programs take over while clients ask on and on.
    let agent = thread::scope(|scope| -> Result<_> {
        let agent = scope.spawn(|| scene.host.agent().start());
        let mut rounds = 0;
        while !agent.is_finished() {
            reaches(&client, "127.0.0.1:8080", "172.17.0.1")?;
            connects(&client, "[::1]:8080", "172.17.0.1")?;
            rounds += 1;
        }
        ensure!(rounds > 0, "the agent was faster than any client");
        agent
            .join()
            .map_err(|_| anyhow::anyhow!("the starter died"))?
    })?;
    let second = scene.host.pinned()?;
    assert_eq!(second.sockets.len(), PROGRAMS.len());
    for name in PROGRAMS {
        assert_ne!(first.programs[name], second.programs[name], "{name}");
    }
    held.tell("")?;
    held.line("alive 5", SOON)?;
    scene.agent = agent;
    Ok(())
}

#[test]
fn cleanup_removes_all_socket_programs() -> Result<()> {
    let mut scene = Scene::new("sockets-end")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(words);
    reaches(&client, "127.0.0.1:8080", "172.17.0.1")?;
    let pinned = scene.host.pinned()?;
    assert_eq!(pinned.sockets.len(), PROGRAMS.len());
    scene.agent.kill()?;
    scene.host.cli(&["cleanup"])?;
    eventually(SOON, || pinned.are_gone())?;
    // Docker's own reservation of the port has it again.
    let late = client(&["udp", "127.0.0.1:8080", "x", "--timeout", "300"]);
    assert!(late.is_err(), "{late:?}");
    Ok(())
}

/// Hosts side by side have their sockets to themselves.
#[test]
fn two_hosts_keep_their_sockets_apart() -> Result<()> {
    let lab = Lab::new("two-hosts")?;
    let hosts = [lab.host(Docker::replace())?, lab.host(Docker::replace())?];
    let networks = ["172.28.1.0/24", "172.28.2.0/24"];
    let gateways = ["172.28.1.1", "172.28.2.1"];
    let mut agents = Vec::new();
    for (host, network) in hosts.iter().zip(networks) {
        agents.push(host.agent().start()?);
        host.docker(&["network", "create", "--subnet", network, "own"])?;
        host.run(
            "web",
            &[&WEB[..], &["--network", "own"]].concat(),
            &Peer::serve(80),
        )?;
    }
    let reached = |number: usize| {
        let client = |words: &[&str]| hosts[number].peer(words);
        reaches(&client, "127.0.0.1:8080", gateways[number])
    };
    eventually(SOON, || reached(0).and_then(|()| reached(1)))?;
    refused(&|words| lab.lan().peer(words), "127.0.0.1:8080")?;

    agents[0].stop()?;
    hosts[0].cli(&["cleanup"])?;
    reached(1)
}

/// A host without cgroup v2 is told so once, and works.
///
/// An agent that sees no cgroup v2, whatever the machine has: in mounts of its own.
#[test]
fn missing_cgroup_v2_is_logged_once() -> Result<()> {
    let lab = Lab::new("no-cgroup2")?;
    let host = lab.host(Docker::replace())?;
    let script = std::env::temp_dir().join(format!("{}-agent.sh", lab.lan().name()));
    let binary = harness::forwarder_bin()?;
    let without = "awk '$0 ~ / - cgroup2 / { print $5 }' /proc/self/mountinfo | xargs -r umount -l";
    let text = format!(
        "#!/bin/sh\nexec unshare -m sh -c '{}; exec \"$0\" \"$@\"' {} \"$@\"\n",
        without.replace('\'', "'\\''"),
        binary.display()
    );
    std::fs::write(&script, text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode)?;
    let started = host.agent().binary(&script).start();
    std::fs::remove_file(&script)?;
    let agent = started?;
    host.run("web", &WEB, &Peer::serve(80))?;
    eventually(SOON, || {
        let seen = lab.lan().peer(&["get", "198.18.1.1:8080"])?;
        ensure!(seen.starts_with("198.18.1.2:"), "{seen}");
        Ok(())
    })?;
    assert_eq!(
        host.json("status")?["sockets"],
        serde_json::json!(["socket_lookup"])
    );
    assert_eq!(
        agent.log().matches("cgroup v2").count(),
        1,
        "{}",
        agent.log()
    );
    let doctor = host.forwarder(&["doctor"])?.stdout;
    assert!(
        doctor.contains("reach published ports (cgroup v2"),
        "{doctor}"
    );
    Ok(())
}
