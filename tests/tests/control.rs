// SPDX-License-Identifier: MIT OR Apache-2.0
//! Docker changes and the agent follows: every verb, dockerd's restarts, a socket that is lost.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Peer, Process, eventually, finish, holds};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// What is promised is a second; a machine that others use as well gets three.
const CONVERGED: Duration = Duration::from_secs(3);
const PUBLISHED: &str = "198.18.1.1:8080";

/// Waits for what has to follow from an event and prints how long it took.
fn converges<T>(what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let value = eventually(CONVERGED, check).with_context(|| what.to_owned())?;
    println!("{what}: after {:?} (promised: 1s)", begun.elapsed());
    Ok(value)
}

/// The LAN reaches the published port.
fn reached(lab: &Lab) -> Result<String> {
    lab.lan().peer(&["get", PUBLISHED, "--timeout=500"])
}

fn unreached(lab: &Lab) -> Result<()> {
    ensure!(
        lab.lan()
            .peer(&["get", PUBLISHED, "--timeout=200"])
            .is_err(),
        "it is reached"
    );
    Ok(())
}

/// One column of a verb's rows.
fn column(host: &Host, verb: &str, name: &str) -> Result<Vec<String>> {
    let rows = host.json(verb)?;
    let cells = rows
        .as_array()
        .with_context(|| format!("{verb}: no list"))?
        .iter();
    Ok(cells
        .filter_map(|row| row[name].as_str().map(str::to_owned))
        .collect())
}

fn has(host: &Host, verb: &str, name: &str, cell: &str) -> Result<()> {
    let cells = column(host, verb, name)?;
    ensure!(
        cells.iter().any(|other| other == cell),
        "{verb}: {name} are {cells:?}"
    );
    Ok(())
}

fn has_not(host: &Host, verb: &str, name: &str, cell: &str) -> Result<()> {
    ensure!(
        has(host, verb, name, cell).is_err(),
        "{verb} still has {cell}"
    );
    Ok(())
}

/// The LAN's own server.
fn outside(lab: &Lab) -> Result<Process> {
    let mut server = lab.lan().spawn_peer(&["serve", "7000"])?;
    server.line("serving", SOON)?;
    Ok(server)
}

#[test]
fn every_container_verb_is_followed() -> Result<()> {
    let lab = Lab::new("verbs")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    converges("run", || reached(&lab))?;
    web.docker("stop")?;
    converges("stop", || has_not(&host, "ports", "container", "web"))?;
    unreached(&lab)?;
    web.docker("start")?;
    converges("start", || reached(&lab))?;
    web.docker("restart")?;
    converges("restart", || reached(&lab))?;

    web.docker("pause")?;
    has(&host, "ports", "container", "web")?;
    unreached(&lab)?;
    web.docker("unpause")?;
    converges("unpause", || reached(&lab))?;

    host.docker(&["rename", "web", "shop"])?;
    converges("rename", || has(&host, "ports", "container", "shop"))?;
    reached(&lab)?;
    let shop = host.container("shop");
    shop.docker("kill")?;
    converges("kill", || has_not(&host, "ports", "container", "shop"))?;
    unreached(&lab)?;
    shop.docker("start")?;
    converges("start after kill", || reached(&lab))?;
    shop.remove()?;
    converges("rm", || has_not(&host, "endpoints", "container", "shop"))?;
    assert_eq!(host.json("ports")?, Value::Array(Vec::new()));
    unreached(&lab)
}

/// Networks come and go, and containers change between them.
#[test]
fn network_and_endpoint_changes_are_followed() -> Result<()> {
    let lab = Lab::new("networks")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let _outside = outside(&lab)?;
    let goes_out = |name: &str| {
        host.container(name)
            .peer(&["get", "198.18.1.2:7000", "--timeout=500"])
    };

    host.docker(&["network", "create", "one"])?;
    converges("network create", || has(&host, "networks", "name", "one"))?;
    let on_one = host.run(
        "mobile",
        &["--network=one", "-p", "8080:80"],
        &Peer::serve(80),
    )?;
    converges("run on it", || reached(&lab))?;
    assert!(goes_out("mobile")?.starts_with("198.18.1.1:"));

    host.docker(&["network", "create", "two"])?;
    host.docker(&["network", "connect", "two", "mobile"])?;
    converges("network connect", || {
        has(&host, "endpoints", "network", "two")
    })?;
    converges("reached by the first network still", || reached(&lab))?;
    host.docker(&["network", "disconnect", "one", "mobile"])?;
    converges("network disconnect", || {
        has_not(&host, "endpoints", "network", "one")
    })?;
    converges("out by the second", || goes_out("mobile"))?;
    host.docker(&["network", "rm", "one"])?;
    converges("network rm", || has_not(&host, "networks", "name", "one"))?;
    on_one.remove()?;
    host.docker(&["network", "rm", "two"])?;
    converges("the last network rm", || {
        has_not(&host, "networks", "name", "two")
    })?;
    let hooks = host.json("status")?["hooks"].clone();
    let devices: Vec<_> = hooks.as_object().context("no hooks")?.keys().collect();
    assert_eq!(devices, ["docker0", "forwarder0", "up0"]);
    Ok(())
}

/// Containers without a bridge of ours are left alone.
#[test]
fn containers_without_our_bridge_are_left_alone() -> Result<()> {
    let lab = Lab::new("modes")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let _outside = outside(&lab)?;
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let endpoints = host.json("endpoints")?;

    host.run("none", &["--network=none"], &Peer::idle())?;
    let none = host
        .container("none")
        .peer(&["get", "198.18.1.2:7000", "--timeout=200"]);
    assert!(none.is_err(), "{none:?}");
    let own = host.run("own", &["--network=host"], &Peer::serve(9000))?;
    assert!(
        own.peer(&["get", "198.18.1.2:7000"])?
            .starts_with("198.18.1.1:")
    );
    assert!(
        lab.lan()
            .peer(&["get", "198.18.1.1:9000"])?
            .starts_with("198.18.1.2:")
    );
    assert!(
        own.peer(&["get", &format!("{}:80", web.ip()?)])?
            .starts_with("172.17.0.1:")
    );

    // Two containers, one namespace: the port belongs to both.
    let shares = host.run("shares", &["--network=container:web"], &Peer::serve(81))?;
    assert!(
        shares
            .peer(&["get", "198.18.1.2:7000"])?
            .starts_with("198.18.1.1:")
    );
    converges("the owner's port", || reached(&lab))?;
    shares.remove()?;
    reached(&lab)?;

    let parent = "parent=up0";
    host.docker(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "-o",
        parent,
        "--subnet=198.18.1.0/24",
        "--gateway=198.18.1.2",
        "lanside",
    ])?;
    let lanside = ["--network=lanside", "--ip=198.18.1.50"];
    let macvlan = host.run("macvlan", &lanside, &Peer::serve(80))?;
    assert!(
        macvlan
            .peer(&["get", "198.18.1.2:7000"])?
            .starts_with("198.18.1.50:")
    );
    assert!(
        lab.lan()
            .peer(&["get", "198.18.1.50:80"])?
            .starts_with("198.18.1.2:")
    );
    reached(&lab)?;
    assert_eq!(
        host.json("endpoints")?,
        endpoints,
        "none of them is an endpoint of ours"
    );
    Ok(())
}

/// A dockerd that dies takes no mapping along.
#[test]
fn dying_dockerd_keeps_every_mapping() -> Result<()> {
    let lab = Lab::new("dockerd")?;
    let host = lab.host(Docker::replace().arg("--live-restore"))?;
    let mut agent = host.agent().start()?;
    let _outside = outside(&lab)?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    converges("run", || reached(&lab))?;
    let mut held = lab.lan().spawn_peer(&["hold", "10", PUBLISHED])?;
    held.line("open 10", SOON)?;
    for how in ["kill -9", "restart"] {
        match how {
            "restart" => host.stop_docker()?,
            _ => host.kill_docker()?,
        }
        converges("docker is seen to be away", || {
            ensure!(
                host.json("status")?["docker"]["version"] == Value::Null,
                "Docker answers"
            );
            Ok(())
        })?;
        holds(Duration::from_secs(1), || reached(&lab).map(drop))
            .with_context(|| how.to_owned())?;
        host.start_docker()?;
        converges("docker is back", || {
            ensure!(
                host.json("status")?["docker"]["version"] != Value::Null,
                "Docker is away"
            );
            Ok(())
        })?;
        reached(&lab)?;
        held.tell("")?;
        assert_eq!(held.line("alive", SOON)?, "alive 10", "after {how}");
    }
    // Through the new connection, too, what happens is heard.
    host.run("more", &["-p", "8081:80"], &Peer::serve(80))?;
    converges("run afterwards", || {
        lab.lan().peer(&["get", "198.18.1.1:8081", "--timeout=500"])
    })?;
    host.container("web").remove()?;
    converges("rm afterwards", || {
        has_not(&host, "ports", "container", "web")
    })?;
    assert!(agent.ended()?.is_none());
    Ok(())
}

/// Containers that dockerd restarts are published again, also to an agent that started before
/// dockerd.
#[test]
fn restarted_containers_are_published_again() -> Result<()> {
    let lab = Lab::new("first")?;
    let host = lab.host(Docker::replace())?;
    host.run(
        "web",
        &["--restart=always", "-p", "8080:80"],
        &Peer::serve(80),
    )?;
    host.stop_docker()?;
    let mut agent = host.agent().spawn()?;
    eventually(SOON, || {
        ensure!(
            agent.log().contains("waiting for Docker"),
            "{}",
            agent.log()
        );
        Ok(())
    })?;
    host.start_docker()?;
    agent.ready()?;
    converges("the container that dockerd starts by itself", || {
        reached(&lab)
    })?;
    assert_eq!(
        agent.log().matches("waiting for Docker").count(),
        1,
        "said once"
    );

    host.restart_docker()?;
    converges("after a restart of dockerd", || reached(&lab))?;
    Ok(())
}

/// The changes from the time that Docker's socket was away are caught up with when it returns.
#[test]
fn returning_docker_socket_is_caught_up_with() -> Result<()> {
    let lab = Lab::new("socket")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    converges("run", || reached(&lab))?;
    let address = host.docker_cli().address();
    let socket = address.trim_start_matches("unix://");
    let hidden = format!("{socket}.hidden");
    std::fs::rename(socket, &hidden)?;

    let behind = |words: &[&str]| -> Result<String> {
        let mut docker = Command::new("docker");
        finish(docker.arg("-H").arg(format!("unix://{hidden}")).args(words))?.success()
    };
    behind(&[
        "run",
        "-d",
        "--name=unseen",
        "-p",
        "8081:80",
        harness::IMAGE,
        "/peer",
        "serve",
        "80",
    ])?;
    reached(&lab).context("with the socket gone")?;
    std::fs::rename(&hidden, socket)?;
    converges("what was started behind its back", || {
        lab.lan().peer(&["get", "198.18.1.1:8081", "--timeout=500"])
    })?;
    host.container("web").remove()?;
    converges("rm", || has_not(&host, "ports", "container", "web"))
}

#[test]
fn failed_docker_run_leaves_nothing() -> Result<()> {
    let lab = Lab::new("failed")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    converges("run", || reached(&lab))?;
    let verbs = ["ports", "endpoints", "networks"];
    let look = || {
        verbs
            .iter()
            .map(|verb| host.json(verb))
            .collect::<Result<Vec<_>>>()
    };
    let before = (look()?, host.json("status")?["hooks"].clone());
    let taken = host.docker(&[
        "run",
        "-d",
        "--rm",
        "-p",
        "8080:80",
        harness::IMAGE,
        "/peer",
        "wait",
    ]);
    assert!(taken.is_err(), "the port is taken: {taken:?}");
    let missing = host.docker(&[
        "run",
        "--rm",
        "-p",
        "8082:80",
        harness::IMAGE,
        "/no/such/program",
    ]);
    assert!(missing.is_err(), "{missing:?}");
    let ends = host.docker(&[
        "run",
        "--rm",
        "-p",
        "8083:80",
        harness::IMAGE,
        "/bin/sh",
        "-c",
        "exit 3",
    ]);
    assert!(ends.is_err(), "{ends:?}");
    converges("as before", || {
        let after = (look()?, host.json("status")?["hooks"].clone());
        ensure!(after == before, "{after:?}\nnot {before:?}");
        Ok(())
    })?;
    assert!(reached(&lab)?.starts_with("198.18.1.2:"));
    Ok(())
}
