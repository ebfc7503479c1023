// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one network joins, and what two keep apart.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Space, eventually, serve};

use crate::SOON;
use crate::ask::{Access, is_kept_from, pings, reaches};
use crate::site::{Site, address};

/// Asks Docker's resolver inside a container for a name's IPv4 address.
fn resolve(inside: &Space, name: &str) -> Result<String> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.push(u8::try_from(name.len())?);
    question.extend(name.as_bytes());
    question.extend([0, 0, 1, 0, 1]);
    let socket = inside.enter(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(SOON))?;
    socket.send_to(&question, "127.0.0.11:53")?;
    let mut answer = [0; 512];
    let length = socket
        .recv(&mut answer)
        .context("Docker's resolver is silent")?;
    ensure!(answer[7] == 1, "{name} has no address");
    let bytes = answer[..length].last_chunk::<4>().context("no address")?;
    Ok(std::net::Ipv4Addr::from(*bytes).to_string())
}

/// Containers of one network reach each other by address and by name.
///
/// Case 22, `TestBridgeICC`, its IPv4 variants.
#[test]
fn siblings_reach_each_other_by_address_and_name() -> Result<()> {
    let site = Site::ours("c22-icc")?;
    site.network("open", &[])?;
    site.network("inner", &["--internal"])?;
    for network in ["bridge", "open", "inner"] {
        let on = ["--network", network];
        let [one, two] = ["one", "two"].map(|name| format!("{name}-{network}"));
        let (one, two) = (site.serve(&one, &on)?, site.serve(&two, &on)?);
        let (space, to) = (one.space()?, address(&two, network)?);
        Access::ALL.is_that_of(&space, &to).context(network)?;
        // Neighbours see each other as they are.
        let own = address(&one, network)?;
        reaches(&space, &format!("{to}:80"), &own).context(network)?;
        if network != "bridge" {
            assert_eq!(resolve(&space, two.name())?, to, "on {network}");
        }
    }
    Ok(())
}

/// Two networks are joined by connecting a container to both, and parted by disconnecting it.
///
/// Case 23, `TestBridgeINC` and `TestContainersNetworkIsolation`.
#[test]
fn connected_container_joins_two_networks() -> Result<()> {
    let site = Site::ours("c23-isolation")?;
    for network in ["one", "two"] {
        site.network(network, &[])?;
    }
    let first = site.serve("first", &["--network", "one"])?;
    let second = site.serve("second", &["--network", "two"])?;
    let (inside, own) = (first.space()?, address(&second, "two")?);
    let apart = || -> Result<()> {
        Access::NONE.is_that_of(&inside, &own)?;
        Access::NONE.is_that_of(&second.space()?, &address(&first, "one")?)
    };
    apart()?;
    site.host.docker(&["network", "connect", "one", "second"])?;
    let joint = address(&second, "one")?;
    eventually(SOON, || Access::ALL.is_that_of(&inside, &joint))?;
    // Not by its other address.
    Access::NONE.is_that_of(&inside, &own)?;
    site.host
        .docker(&["network", "disconnect", "one", "second"])?;
    Access::NONE.is_that_of(&inside, &joint)?;
    apart()
}

/// An internal network has its own gateway, its peers and nothing else.
///
/// Case 26, `TestInternalNwConnectivity` and `TestDockerNetworkInternalMode`.
#[test]
fn internal_network_has_gateway_and_peers_only() -> Result<()> {
    let site = Site::ours("c26-internal")?;
    let gateway = site.network("inner", &["--internal", "--subnet", "172.30.0.0/24"])?;
    let gateway = if gateway.is_empty() {
        "172.30.0.1".to_owned()
    } else {
        gateway
    };
    let _servers = [serve(&site.host, 7)?, serve(site.lan(), 7)?];
    site.lan_routes_to_containers()?;
    let on = ["--network", "inner"];
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let one = site.serve("one", &[&on[..], &ports].concat())?;
    let two = site.serve("two", &on)?;
    let (inside, own) = (one.space()?, one.ip()?.to_string());
    Access::ALL.is_that_of(&inside, &two.ip()?.to_string())?;
    Access::ALL.is_that_of(&site.host, &own)?;
    reaches(&inside, &format!("{gateway}:7"), &own)?;
    ensure!(pings(&inside, &gateway), "the bridge does not answer");
    // It publishes nothing, and a way out of its own making leads nowhere.
    is_kept_from(site.lan(), "198.18.1.1:8080")?;
    Access::NONE.is_that_of(site.lan(), &own)?;
    for round in ["as made", "with a route of its own"] {
        is_kept_from(&inside, "198.18.1.2:7").context(round)?;
        ensure!(!pings(&inside, "198.18.1.2"), "out {round}");
        inside.ip(&format!("route replace default via {gateway}"))?;
    }
    let other = site.serve("other", &[])?;
    Access::NONE.is_that_of(&inside, &other.ip()?.to_string())?;
    Access::NONE.is_that_of(&other.space()?, &own)
}

/// Two containers on a network, one another's peers.
fn peers(site: &Site, network: &str) -> Result<[Container; 2]> {
    let on = ["--network", network];
    let [one, two] = [1, 2].map(|n| format!("{network}{n}"));
    Ok([site.serve(&one, &on)?, site.serve(&two, &on)?])
}

/// An isolated network joins its containers and leaves even the host out.
///
/// Case 27, `TestIsolated` and `TestPointToPoint`. Docker 20.10 knows no mode: what it does to get
/// there is to leave out the bridge's address; our label alone has to keep the host away as well.
#[test]
fn isolated_network_excludes_the_host() -> Result<()> {
    let site = Site::ours("c27-isolated")?;
    let inhibited = ["-o", "com.docker.network.bridge.inhibit_ipv4=true"];
    let label = ["--label", "forwarder.gateway_mode_ipv4=isolated"];
    let isolated = [&label[..], &["--internal"]].concat();
    let both = [&isolated[..], &inhibited].concat();
    for (number, (network, options)) in [
        ("bare", &inhibited[..]),
        ("isolated", &isolated),
        ("both", &both),
    ]
    .into_iter()
    .enumerate()
    {
        let subnet = format!("172.30.{number}.0/24");
        let bridge = format!("com.docker.network.bridge.name={network}0");
        let options = [options, &["--subnet", &subnet, "-o", &bridge]].concat();
        site.network(network, &options)?;
        let [one, two] = peers(&site, network)?;
        let (inside, to) = (one.space()?, two.ip()?.to_string());
        Access::ALL.is_that_of(&inside, &to).context(network)?;
        if network != "isolated" {
            let addresses = site
                .host
                .ip(&format!("-4 -br address show dev {network}0"))?;
            ensure!(!addresses.contains("172."), "{network}: {addresses}");
            // Somebody may give the host a way to there.
            site.host
                .ip(&format!("route replace {subnet} dev {network}0"))?;
        }
        if network != "bare" {
            Access::NONE.is_that_of(&site.host, &to).context(network)?;
        }
        let out = ["udp", "198.18.1.1:7", "x", "--timeout", "100"];
        ensure!(inside.peer(&out).is_err(), "{network} has a way out");
        let host = format!("172.30.{number}.1");
        ensure!(!pings(&inside, &host), "{network}: the host answers");
    }
    Ok(())
}
