// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ends with a mapping, and what does not.

use anyhow::{Context as _, Result, ensure};
use harness::{Peer, Process, Scene, eventually};

use crate::{SOON, WEB, reaches, reaches_only};

/// Clients that wait for what ends them.
fn abiding(scene: &Scene, clients: &[(&str, &str)]) -> Result<Vec<Process>> {
    let start = |&(transport, to): &(&str, &str)| {
        let words = ["abide", transport, to, "--timeout", "60000"];
        let mut client = scene.host.spawn_peer(&words)?;
        client.line("answered", SOON).context(to.to_owned())?;
        Ok(client)
    };
    clients.iter().map(start).collect()
}

const LOCAL: [(&str, &str); 6] = [
    ("tcp", "127.0.0.1:8080"),
    ("tcp", "[::1]:8080"),
    ("tcp", "[::ffff:198.18.1.1]:8080"),
    ("udp", "198.18.1.1:8080"),
    ("udp", "[::1]:8080"),
    ("udp", "[::ffff:127.0.0.1]:8080"),
];

/// Sockets end when their port leads elsewhere, and new ones go there.
#[test]
fn sockets_end_when_their_port_moves() -> Result<()> {
    let scene = Scene::new("moves")?;
    scene.host.docker(&["network", "create", "aaa"])?;
    let web = scene.run("web", &WEB, &Peer::serve(80))?;
    let other = scene.run("other", &["-p", "8081:80"], &Peer::serve(80))?;
    let local = abiding(&scene, &LOCAL)?;
    // Whoever connected to the container itself, or by another port, has nothing to do with it.
    let container = format!("{}:80", web.ip()?);
    let mut direct = scene.host.spawn_peer(&["hold", "1", &container])?;
    direct.line("open 1", SOON)?;
    let mut neighbour = scene.host.spawn_peer(&["hold", "1", "127.0.0.1:8081"])?;
    neighbour.line("open 1", SOON)?;
    let short = ["abide", "udp", &container, "--timeout", "4000"];
    let mut datagrams = scene.host.spawn_peer(&short)?;
    datagrams.line("answered", SOON)?;

    // The gateway's network is the first by name: the mapping moves there, the container stays.
    scene.host.docker(&["network", "connect", "aaa", "web"])?;
    for mut client in local {
        client.line("ECONNABORTED", SOON)?;
    }
    let gateway = web.inspect("{{.NetworkSettings.Networks.aaa.Gateway}}")?;
    reaches(&|words| scene.host.peer(words), "127.0.0.1:8080", &gateway)?;
    for survivor in [&mut direct, &mut neighbour] {
        survivor.tell("")?;
        survivor.line("alive 1", SOON)?;
    }
    datagrams.line("timeout", SOON)?;
    reaches_only(&scene.host, "127.0.0.1:8081", &other, &[&web])
}

/// A removed container's clients are told at once and reach the next container.
#[test]
fn clients_of_a_removed_container_are_told() -> Result<()> {
    let scene = Scene::new("removed")?;
    let first = scene.run("first", &WEB, &Peer::serve(80))?;
    let clients = abiding(&scene, &[("udp", "127.0.0.1:8080"), ("udp", "[::1]:8080")])?;
    first.remove()?;
    for mut client in clients {
        client.line("ECONNABORTED", SOON)?;
    }
    eventually(SOON, || {
        let late = scene.host.peer(&["udp", "127.0.0.1:8080", "x"]).err();
        let late = format!("{:#}", late.context("somebody answers")?);
        ensure!(late.contains("refused"), "{late}");
        Ok(())
    })?;
    // Another address, another port, the same name to the outside.
    scene.run("placeholder", &[], &Peer::idle())?;
    let ports = ["-p", "8080:81", "-p", "8080:81/udp"];
    let second = scene.run("second", &ports, &Peer::serve(81))?;
    reaches(
        &|words| scene.host.peer(words),
        "127.0.0.1:8080",
        "172.17.0.1",
    )?;
    reaches_only(&scene.host, "[::1]:8080", &second, &[])
}

/// Sockets that a killed agent left open are ended by the next agent.
#[test]
fn next_agent_ends_sockets_a_killed_one_left() -> Result<()> {
    let mut scene = Scene::new("missed")?;
    let first = scene.run("first", &WEB, &Peer::serve(80))?;
    let clients = abiding(&scene, &[("udp", "127.0.0.1:8080")])?;
    scene.agent.kill()?;
    first.remove()?;
    scene.agent = scene.host.agent().start()?;
    for mut client in clients {
        client.line("ECONNABORTED", SOON)?;
    }
    Ok(())
}
