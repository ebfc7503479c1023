// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several networks per container: mappings are those of the endpoint that has the default route.

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Peer, eventually};

use crate::SOON;
use crate::ask::{is_kept_from, reaches, seen_as};
use crate::site::{Site, address};

/// What a container publishes, in ports that stay and one that is drawn.
const PORTS: [&str; 6] = ["-p", "8080:80", "-p", "8080:80/udp", "-p", "81"];

/// The gateway of a container's default route.
fn default_gateway(container: &Container) -> Result<String> {
    let route = container.space()?.ip("route show default")?;
    let gateway = route.split_whitespace().nth(2);
    Ok(gateway.context("no default route")?.to_owned())
}

/// The mappings lead to the container's address on `network`, whose gateway its default route has.
fn is_published_on(site: &Site, web: &Container, network: &str) -> Result<()> {
    let own = address(web, network)?;
    let gateway = web.inspect(&format!(
        "{{{{(index .NetworkSettings.Networks {network:?}).Gateway}}}}"
    ))?;
    assert_eq!(default_gateway(web)?, gateway, "Docker chose another one");
    eventually(SOON, || {
        let rows = site.host.json("ports")?;
        let rows = rows.as_array().context("a list of ports")?;
        ensure!(
            rows.len() == 3 && rows.iter().all(|row| row["container_ip"] == own.as_str()),
            "not all at {own}: {rows:?}"
        );
        reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")
    })
    .with_context(|| format!("on {network}"))
}

fn change(site: &Site, verb: &str, network: &str) -> Result<()> {
    site.host.docker(&["network", verb, network, "web"])?;
    site.settle("web")
}

/// Mappings follow the endpoint that has the default route.
///
/// Case 28, `TestGatewaySelection`, its IPv4 part: Docker 20.10 chooses by the network's name.
#[test]
fn mappings_follow_the_gateway_endpoint() -> Result<()> {
    let site = Site::ours("c28-gateway")?;
    for network in ["b-first", "a-second", "c-third"] {
        site.network(network, &[])?;
    }
    site.network("a-inner", &["--internal"])?;
    let program = Peer::program(&["/peer", "serve", "80", "81"]);
    let options = [&["--network", "b-first"][..], &PORTS].concat();
    let web = site.run("web", &options, &program)?;
    web.log_line("serving 81")?;
    is_published_on(&site, &web, "b-first")?;
    for (verb, network, gateway) in [
        ("connect", "c-third", "b-first"),
        ("connect", "a-second", "a-second"),
        ("connect", "a-inner", "a-second"),
        ("disconnect", "b-first", "a-second"),
        ("disconnect", "a-second", "c-third"),
        ("connect", "b-first", "b-first"),
    ] {
        change(&site, verb, network)?;
        is_published_on(&site, &web, gateway).with_context(|| format!("{verb} {network}"))?;
    }
    Ok(())
}

/// The host port that Docker drew for container port 81.
fn drawn(web: &Container) -> Result<u16> {
    let port = web.inspect(r#"{{(index (index .NetworkSettings.Ports "81/tcp") 0).HostPort}}"#)?;
    port.parse().with_context(|| format!("drawn is {port:?}"))
}

/// Ports that were asked for stay, and drawn ports are those that Docker shows.
///
/// Case 29, `TestDockerNetworkConnectDisconnectWithPortMapping` and `…ConnectWithPortMapping`.
#[test]
fn network_changes_keep_requested_ports() -> Result<()> {
    let site = Site::ours("c29-ports")?;
    for network in ["aaa", "ccc", "ddd"] {
        site.network(network, &[])?;
    }
    let program = Peer::program(&["/peer", "serve", "80", "81"]);
    let options = [&["--network", "ccc"][..], &PORTS].concat();
    let web = site.run("web", &options, &program)?;
    web.log_line("serving 81")?;
    let all_serve = |what: &str| {
        let port = drawn(&web)?;
        eventually(SOON, || {
            reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")?;
            site.lan().peer(&["get", &format!("198.18.1.1:{port}")])?;
            Ok(port)
        })
        .with_context(|| what.to_owned())
    };
    let mut last = all_serve("at first")?;
    for (verb, network) in [
        ("connect", "aaa"),
        ("connect", "ddd"),
        ("disconnect", "ccc"),
        ("disconnect", "aaa"),
        ("connect", "aaa"),
    ] {
        change(&site, verb, network)?;
        let now = all_serve(&format!("{verb} {network}"))?;
        if now != last {
            let gone = ["get", &format!("198.18.1.1:{last}"), "--timeout=300"];
            ensure!(site.lan().peer(&gone).is_err(), "{last} was given back");
        }
        last = now;
    }
    // Without any network nothing is published, and all of it is back with the next one.
    for network in ["aaa", "ddd"] {
        site.host
            .docker(&["network", "disconnect", network, "web"])?;
    }
    eventually(SOON, || is_kept_from(site.lan(), "198.18.1.1:8080"))?;
    change(&site, "connect", "ccc")?;
    all_serve("with the first network again")?;
    web.docker("restart")?;
    site.settle("web")?;
    all_serve("after a restart")?;
    seen_as(site.lan(), "198.18.1.1:8080").map(drop)
}
