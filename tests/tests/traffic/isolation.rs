// SPDX-License-Identifier: MIT OR Apache-2.0
//! What networks keep from each other and from the outside.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Container, Peer, Scene, Space, holds, serve};

/// Asks a server's port and address in every way; all have to fail.
fn unreachable(from: &Space, to: &str) -> Result<()> {
    let port = format!("{to}:80");
    for verb in [
        &["get", &port, "--timeout", "300"][..],
        &["udp", &port, "x", "--timeout", "300"],
        &["ping", to, "--timeout", "300"],
    ] {
        ensure!(
            from.peer(verb).is_err(),
            "{} gets an answer: {verb:?}",
            from.name()
        );
    }
    Ok(())
}

/// All have to work.
fn reachable(from: &Space, to: &str) -> Result<()> {
    let port = format!("{to}:80");
    for verb in [&["get", &port][..], &["udp", &port, "x"], &["ping", to]] {
        from.peer(verb)?;
    }
    Ok(())
}

fn address(container: &Container) -> Result<String> {
    Ok(container.ip()?.to_string())
}

/// Containers of two networks do not reach each other, and containers of one network do.
#[test]
fn networks_are_separated_and_siblings_are_not() -> Result<()> {
    let scene = Scene::new("isolated")?;
    scene.host.docker(&["network", "create", "second"])?;
    let first = scene.run("first", &["-p", "8080:80"], &Peer::serve(80))?;
    let sibling = scene.run("sibling", &[], &Peer::serve(80))?;
    let second = scene.run("second", &["--network", "second"], &Peer::serve(80))?;
    reachable(&first.space()?, &address(&sibling)?)?;
    let in_second = second.space()?.capture("eth0")?;
    unreachable(&first.space()?, &address(&second)?)?;
    assert_eq!(
        in_second.lines("ip and not src host 172.18.0.2")?,
        Vec::<String>::new()
    );
    unreachable(&second.space()?, &address(&first)?)?;
    assert!(scene.count("isolated")? >= 6);
    // The host reaches both.
    reachable(&scene.host, &address(&first)?)?;
    reachable(&scene.host, &address(&second)?)
}

/// An internal network has no way out and none in.
#[test]
fn internal_network_is_closed_both_ways() -> Result<()> {
    let scene = Scene::new("internal")?;
    let _server = serve(scene.lan(), 80)?;
    scene
        .host
        .docker(&["network", "create", "--internal", "inner"])?;
    let first = scene.run("first", &["--network", "inner"], &Peer::serve(80))?;
    let second = scene.run("second", &["--network", "inner"], &Peer::serve(80))?;
    let outer = scene.run("outer", &["-p", "8080:80"], &Peer::serve(80))?;
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    reachable(&first.space()?, &address(&second)?)?;
    unreachable(&first.space()?, &address(&outer)?)?;
    unreachable(&outer.space()?, &address(&first)?)?;
    let lan = ["get", "198.18.1.1:8080", "--timeout", "300"];
    ensure!(
        first.peer(&lan).is_err(),
        "an internal container reaches a published port"
    );
    // A default route of its own making does not help it.
    let gateway = first.inspect("{{.NetworkSettings.Networks.inner.Gateway}}")?;
    let gateway = if gateway.is_empty() {
        "172.18.0.1".to_owned()
    } else {
        gateway
    };
    first
        .space()?
        .ip(&format!("route replace default via {gateway}"))?;
    unreachable(&first.space()?, "198.18.1.2")?;
    assert_eq!(at_lan.lines("ip")?, Vec::<String>::new());
    assert!(scene.count("internal")? >= 3);

    scene.lan().ip("route add 172.16.0.0/12 via 198.18.1.1")?;
    unreachable(scene.lan(), &address(&first)?)
}

/// Without inter-container communication, peers do not reach each other, but reach the outside.
#[test]
fn icc_false_separates_peers_only() -> Result<()> {
    let scene = Scene::new("no-icc")?;
    let _server = serve(scene.lan(), 80)?;
    let option = "com.docker.network.bridge.enable_icc=false";
    scene
        .host
        .docker(&["network", "create", "-o", option, "apart"])?;
    let first = scene.run("first", &["--network", "apart"], &Peer::serve(80))?;
    let second = scene.run(
        "second",
        &["--network", "apart", "-p", "8080:80"],
        &Peer::serve(80),
    )?;
    let in_second = second.space()?.capture("eth0")?;
    unreachable(&first.space()?, &address(&second)?)?;
    assert_eq!(
        in_second.lines("ip and src host 172.18.0.2")?,
        Vec::<String>::new()
    );
    assert!(scene.count("peer-blocked")? >= 3);
    reachable(&first.space()?, "198.18.1.2")?;
    reachable(&scene.host, &address(&second)?)?;
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    Ok(())
}

#[test]
fn outside_cannot_route_to_a_container() -> Result<()> {
    let scene = Scene::new("direct")?;
    let web = scene.run("web", &["-p", "80:80", "-p", "80:80/udp"], &Peer::serve(80))?;
    let plain = scene.run("plain", &[], &Peer::serve(80))?;
    scene.lan().ip("route add 172.16.0.0/12 via 198.18.1.1")?;
    let inside = [
        web.space()?.capture("eth0")?,
        plain.space()?.capture("eth0")?,
    ];
    for container in [&web, &plain] {
        unreachable(scene.lan(), &address(container)?)?;
    }
    holds(Duration::from_millis(100), || {
        for capture in &inside {
            ensure!(capture.lines("ip")?.is_empty(), "a packet came through");
        }
        Ok(())
    })?;
    assert!(scene.count("direct-routing")? >= 6);
    // Nor behind the answers of a flow that it has.
    scene
        .lan()
        .peer(&["udp", "198.18.1.1:80", "x", "--bind", "198.18.1.2:40000"])?;
    let direct = [
        "udp",
        "172.17.0.2:80",
        "x",
        "--bind",
        "198.18.1.2:40000",
        "--timeout",
        "300",
    ];
    ensure!(
        scene.lan().peer(&direct).is_err(),
        "a flow opens the container's own address"
    );
    Ok(())
}
