// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Docker makes while no agent lives: nothing of it is more open than on a stock host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Peer, eventually};

const SOON: Duration = Duration::from_secs(10);
/// The LAN's own server.
const OUTSIDE: &str = "198.18.1.2:7000";

/// Networks outside of dockerd's default pools, and in them; bridges with Docker's names, and with
/// their user's.
const NETWORKS: [(&str, &str, Option<&str>); 4] = [
    ("pooled", "172.30.0.0/16", None),
    ("custom", "10.99.0.0/16", None),
    ("named", "10.98.0.0/16", Some("mybr")),
    ("public", "203.0.113.0/24", Some("pub0")),
];

/// Makes the networks, each with a server.
fn make(lab: &Lab, host: &Host) -> Result<()> {
    for (name, subnet, bridge) in NETWORKS {
        let option = bridge.map(|bridge| format!("com.docker.network.bridge.name={bridge}"));
        let mut words = vec!["network", "create", "--subnet", subnet];
        words.extend(option.iter().flat_map(|option| ["-o", option.as_str()]));
        words.push(name);
        host.docker(&words)?;
        host.run(name, &["--network", name], &Peer::serve(80))?;
        lab.lan()
            .ip(&format!("route add {subnet} via {}", host.address()))?;
    }
    Ok(())
}

/// Nothing enters: the LAN reaches no server by its own address.
fn nothing_enters(lab: &Lab, host: &Host) -> Result<()> {
    for (name, ..) in NETWORKS {
        let target = format!("{}:80", host.container(name).ip()?);
        for verb in [&["get"][..], &["udp"]] {
            let mut words = verb.to_vec();
            words.push(&target);
            words.extend((verb == ["udp"]).then_some("x"));
            words.push("--timeout=400");
            let entered = lab.lan().peer(&words);
            ensure!(entered.is_err(), "the LAN reaches {name} by {verb:?}");
        }
    }
    Ok(())
}

#[test]
fn stock_networks_are_closed_inwards() -> Result<()> {
    let lab = Lab::new("away-stock")?;
    let host = lab.host(Docker::stock())?;
    make(&lab, &host)?;
    nothing_enters(&lab, &host)
}

/// A network that was made while no agent lived is closed in both directions.
#[test]
fn networks_made_without_agent_are_closed() -> Result<()> {
    let lab = Lab::new("away")?;
    let host = lab.host(Docker::replace())?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
    outside.line("serving", SOON)?;
    host.agent().start()?.kill()?;
    make(&lab, &host)?;
    nothing_enters(&lab, &host)?;
    let at_lan = lab.lan().capture(&host.lan_device())?;
    for (name, ..) in NETWORKS {
        let left = host
            .container(name)
            .peer(&["get", OUTSIDE, "--timeout=400"]);
        ensure!(left.is_err(), "{name} reaches the LAN without an agent");
    }
    at_lan.audit(false)?;

    let _agent = host.agent().start()?;
    for (name, ..) in NETWORKS {
        let seen = eventually(SOON, || host.container(name).peer(&["get", OUTSIDE]))
            .with_context(|| format!("{name} with an agent"))?;
        let address = host.address();
        ensure!(seen.starts_with(&format!("{address}:")), "{name} is {seen}");
    }
    nothing_enters(&lab, &host)
}

const APART: [&str; 4] = [
    "network",
    "create",
    "--opt=com.docker.network.bridge.enable_icc=false",
    "apart",
];

fn run_apart(host: &Host, name: &str) -> Result<Container> {
    host.run(name, &["--network=apart"], &Peer::serve(80))
}

/// Whether a container reaches another one by TCP or UDP.
fn reaches(from: &Container, to: &Container) -> Result<bool> {
    let to = format!("{}:80", to.ip()?);
    let gets = from.peer(&["get", &to, "--timeout=400"]).is_ok();
    Ok(gets || from.peer(&["udp", &to, "x", "--timeout=400"]).is_ok())
}

#[test]
fn stock_separates_containers_without_icc() -> Result<()> {
    let lab = Lab::new("away-icc-stock")?;
    let host = lab.host(Docker::stock())?;
    host.docker(&APART)?;
    let (first, second) = (run_apart(&host, "first")?, run_apart(&host, "second")?);
    ensure!(!reaches(&first, &second)?);
    Ok(())
}

/// A container that is made while no agent lives reaches none of a network without inter-container
/// communication that was there, nor is it reached, not even one way.
#[test]
fn container_made_without_agent_keeps_icc_false() -> Result<()> {
    let lab = Lab::new("away-icc")?;
    let host = lab.host(Docker::replace())?;
    host.docker(&APART)?;
    let mut agent = host.agent().start()?;
    let first = run_apart(&host, "first")?;
    host.settle("first")?;
    agent.kill()?;
    let second = run_apart(&host, "second")?;
    let in_second = second.space()?.capture("eth0")?;
    ensure!(
        !reaches(&first, &second)?,
        "one that was there, the newcomer"
    );
    let heard = in_second.lines(&format!("ip and src host {}", first.ip()?))?;
    ensure!(heard.is_empty(), "the newcomer hears {heard:?}");
    ensure!(
        !reaches(&second, &first)?,
        "the newcomer, one that was there"
    );
    let _agent = host.agent().start()?;
    host.settle("second")?;
    ensure!(!reaches(&first, &second)? && !reaches(&second, &first)?);
    host.peer(&["get", &format!("{}:80", second.ip()?)])?;
    Ok(())
}

/// What others forward by devices that the agent knows stays their business, with it and without.
#[test]
fn known_devices_forward_for_others() -> Result<()> {
    let lab = Lab::new("away-others")?;
    let host = lab.host(Docker::replace())?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
    outside.line("serving", SOON)?;
    let vm = lab.netns("vm")?;
    harness::veth(
        (&host, "vm0", "198.18.9.1/24"),
        (&vm, "eth0", "198.18.9.2/24"),
    )?;
    vm.ip("route add default via 198.18.9.1")?;
    let route = format!("route add 198.18.9.0/24 via {}", host.address());
    lab.lan().ip(&route)?;
    let reaches = || vm.peer(&["get", OUTSIDE, "--timeout=2000"]);
    let mut agent = host.agent().start()?;
    reaches().context("with an agent")?;
    agent.kill()?;
    reaches().context("without an agent").map(drop)
}
