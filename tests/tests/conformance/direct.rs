// SPDX-License-Identifier: MIT OR Apache-2.0
//! Straight to a container's address, by the modes of its network: from outside, and from another
//! network. What Docker 29 makes of each mode comes from labels here.

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Space};

use crate::ask::{Access, is_kept_from, reaches};
use crate::site::{Site, address};

/// Modes by name, the label that makes them, and what an outsider gets straight.
const MODES: [(&str, &str, Access); 4] = [
    ("nat", "", Access::NONE),
    (
        "unprotected",
        "forwarder.gateway_mode_ipv4=nat-unprotected",
        Access::ALL,
    ),
    (
        "routed",
        "forwarder.gateway_mode_ipv4=routed",
        Access::ROUTED,
    ),
    (
        "trusting",
        "forwarder.trusted_host_interfaces=other0:up0",
        Access::PUBLISHED,
    ),
];

/// Makes a network of one of the [`MODES`], with a server of its own name.
fn server(site: &Site, mode: &str, label: &str, ports: [&str; 2]) -> Result<Container> {
    let label = ["--label", label];
    let options: &[&str] = if label[1].is_empty() { &[] } else { &label };
    site.network(mode, options)?;
    let udp = format!("{}:{}/udp", ports[0], ports[1]);
    let tcp = format!("{}:{}", ports[0], ports[1]);
    site.serve(mode, &["--network", mode, "-p", &tcp, "-p", &udp])
}

/// What somebody outside gets of a server in a plain network, straight.
pub(crate) fn of_a_plain_server_from_outside(site: &Site) -> Result<Access> {
    let server = server(site, "plain", "", ["8080", "80"])?;
    site.lan_routes_to_containers()?;
    Access::try_all(site.lan(), &server.ip()?.to_string())
}

/// An outsider reaches the host's port, and the container's own port only where the gateway mode
/// opens it.
///
/// Case 15, `TestDirectRemoteAccessOnExposedPort`.
#[test]
fn container_port_opens_to_outside_by_mode_only() -> Result<()> {
    let site = Site::ours("c15-direct")?;
    site.lan_routes_to_containers()?;
    for (n, (mode, label, _)) in MODES.into_iter().enumerate() {
        let host_port = format!("{}", 8080 + n);
        let server = server(&site, mode, label, [&host_port, "80"])?;
        let (own, published) = (server.ip()?, format!("198.18.1.1:{host_port}"));
        if mode == "routed" {
            // Its host port means nothing.
            is_kept_from(site.lan(), &published).context(mode)?;
        } else {
            reaches(site.lan(), &published, "198.18.1.2").context(mode)?;
        }
        let own = format!("{own}:80");
        if mode == "nat" {
            is_kept_from(site.lan(), &own).context(mode)?;
        } else {
            reaches(site.lan(), &own, "198.18.1.2").context(mode)?;
        }
    }
    Ok(())
}

/// Where direct routing is allowed, published ports are reached and others are not.
///
/// Case 16, `TestAllowDirectRemoteAccessOnExposedPort`.
#[test]
fn direct_routing_reaches_published_ports_only() -> Result<()> {
    let site = Site::configured("c16-allowed", "allow-direct-routing = true\n")?;
    let access = of_a_plain_server_from_outside(&site)?;
    assert_eq!(access, Access::PUBLISHED);
    reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")
}

/// What is open to direct routing is what each gateway mode opens.
///
/// Case 17, `TestDirectRoutingOpenPorts`.
#[test]
fn direct_routing_opens_what_the_mode_opens() -> Result<()> {
    let site = Site::ours("c17-open-ports")?;
    site.lan_routes_to_containers()?;
    for (n, (mode, label, open)) in MODES.into_iter().enumerate() {
        let server = server(&site, mode, label, [&format!("{}", 8080 + n), "80"])?;
        open.is_that_of(site.lan(), &server.ip()?.to_string())
            .context(mode)?;
    }
    Ok(())
}

/// A routed network serves though another network is the container's gateway.
///
/// Case 18, `TestRoutedNonGateway`: the way back is the container's own choice.
#[test]
fn routed_network_serves_if_not_the_gateway() -> Result<()> {
    let site = Site::ours("c18-non-gateway")?;
    site.lan_routes_to_containers()?;
    site.network("a-nat", &[])?;
    let mode = ["--label", "forwarder.gateway_mode_ipv4=routed"];
    let gateway = site.network("b-routed", &mode)?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let server = site.serve("web", &[&["--network", "a-nat"][..], &ports].concat())?;
    site.host
        .docker(&["network", "connect", "b-routed", "web"])?;
    site.settle("web")?;
    reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")?;
    let far = site.lab.far()?;
    server
        .space()?
        .ip(&format!("route add {}/32 via {gateway}", far.address()))?;
    let (routed, nat) = (address(&server, "b-routed")?, address(&server, "a-nat")?);
    reaches(&far, &format!("{routed}:80"), "198.19.1.2")?;
    is_kept_from(&far, &format!("{routed}:81"))?;
    is_kept_from(&far, &format!("{nat}:80"))
}

/// What a client of one mode gets of a server of another one, straight.
fn between(site: &Site, client: &Space, server: &Container, open: Access) -> Result<()> {
    let own = server.ip()?.to_string();
    open.is_that_of(client, &own)
        .with_context(|| format!("in {}", site.host.name()))
}

/// A NAT network reaches a routed network's published ports, and not the other way round.
///
/// Case 24, `TestBridgeINCRouted`.
#[test]
fn nat_network_reaches_routed_ports_one_way() -> Result<()> {
    let site = Site::ours("c24-inter-network")?;
    let nat = server(&site, "nat", "", ["8080", "80"])?;
    let mode = "forwarder.gateway_mode_ipv4=routed";
    let routed = server(&site, "routed", mode, ["8081", "80"])?;
    between(&site, &nat.space()?, &routed, Access::ROUTED)?;
    between(&site, &routed.space()?, &nat, Access::NONE)?;
    // Masqueraded as everything that leaves a network in nat mode.
    let gateway = routed.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")?;
    reaches(&nat.space()?, &format!("{}:80", routed.ip()?), &gateway)?;
    // And a routed one reaches another routed one as itself.
    let mode = ["--label", mode];
    site.network("routed-too", &mode)?;
    let client = site.serve("client", &["--network", "routed-too"])?;
    let own = client.ip()?.to_string();
    reaches(&client.space()?, &format!("{}:80", routed.ip()?), &own)
}

/// Another network reaches by direct routing what the gateway mode of the server's network opens.
///
/// Case 25, `TestInterNetworkDirectRouting`.
#[test]
fn other_network_gets_what_the_mode_opens() -> Result<()> {
    let site = Site::ours("c25-inter-direct")?;
    site.network("clients", &[])?;
    let client = site.serve("client", &["--network", "clients"])?;
    for (n, (mode, label, open)) in MODES.into_iter().enumerate() {
        let server = server(&site, mode, label, [&format!("{}", 8080 + n), "80"])?;
        // What is trusted is an outside device, not a bridge.
        let open = if mode == "trusting" {
            Access::NONE
        } else {
            open
        };
        between(&site, &client.space()?, &server, open).context(mode)?;
    }
    Ok(())
}

/// No directly routed packet shows inside a plain network.
///
/// The addition to the guards: an unused route, a forged destination, nothing that answers.
#[test]
fn direct_packet_never_enters_a_plain_network() -> Result<()> {
    let site = Site::ours("direct-silence")?;
    let web = server(&site, "plain", "", ["8080", "80"])?;
    site.lan_routes_to_containers()?;
    let inside = web.space()?.capture("eth0")?;
    Access::NONE.is_that_of(site.lan(), &web.ip()?.to_string())?;
    let came = inside.lines("ip and src host 198.18.1.2")?;
    ensure!(came.is_empty(), "{came:?}");
    Ok(())
}
