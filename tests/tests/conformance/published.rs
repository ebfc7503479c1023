// SPDX-License-Identifier: MIT OR Apache-2.0
//! Published ports from outside and from other containers.

use anyhow::{Context as _, Result};
use harness::{Peer, eventually, veth};

use crate::SOON;
use crate::ask::{is_kept_from, reaches, seen_as};
use crate::site::Site;

/// Port 80 of both transports, published as 8080.
const WEB: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

/// A container reaches its own published port by the host's address.
///
/// Case 3, `TestNetworkLoopbackNat`.
#[test]
fn container_reaches_itself_by_the_host_address() -> Result<()> {
    let site = Site::ours("c3-self")?;
    let web = site.run("web", &WEB, &Peer::serve(80))?;
    reaches(&web.space()?, "198.18.1.1:8080", "172.17.0.1")
}

/// A remote host reaches a published port at every address of the host.
///
/// Case 5, `TestAccessPublishedPortFromRemoteHost`.
#[test]
fn remote_reaches_port_at_every_host_address() -> Result<()> {
    let site = Site::ours("c5-remote")?;
    site.host.ip("address add 198.18.50.1/32 dev lo")?;
    let second = site.network("second", &[])?;
    site.run("web", &WEB, &Peer::serve(80))?;
    veth(
        (&site.host, "up1", "198.18.60.1/24"),
        (site.lan(), "h1b", "198.18.60.2/24"),
    )?;
    for (address, client) in [
        ("198.18.1.1", "198.18.1.2"),
        ("198.18.50.1", "198.18.1.2"),
        ("198.18.60.1", "198.18.60.2"),
        ("172.17.0.1", "198.18.1.2"),
        (&second, "198.18.1.2"),
    ] {
        if client == "198.18.1.2" && address != "198.18.1.1" {
            site.lan()
                .ip(&format!("route add {address}/32 via 198.18.1.1"))?;
        }
        let to = format!("{address}:8080");
        eventually(SOON, || reaches(site.lan(), &to, client))?;
    }
    Ok(())
}

/// A sibling reaches a published port by the host's address and by the gateway's.
///
/// Case 6, `TestAccessPublishedPortFromCtr`: there is no br_netfilter that could help or harm.
#[test]
fn sibling_reaches_port_by_host_and_gateway() -> Result<()> {
    let site = Site::ours("c6-sibling")?;
    let web = site.run("web", &WEB, &Peer::serve(80))?;
    let sibling = site.run("sibling", &[], &Peer::idle())?;
    for from in [&sibling, &web] {
        for address in ["198.18.1.1", "172.17.0.1"] {
            reaches(&from.space()?, &format!("{address}:8080"), "172.17.0.1")?;
        }
    }
    Ok(())
}

/// A server on one network, published, and asked from another one by both transports.
pub(crate) fn is_reached_from_another_network(site: &Site) -> Result<()> {
    let gateway = site.network("servers", &[])?;
    site.network("clients", &[])?;
    let on = |network| ["--network", network];
    let server = [&on("servers")[..], &WEB].concat();
    site.run("web", &server, &Peer::serve(80))?;
    let client = site.run("client", &on("clients"), &Peer::idle())?;
    reaches(&client.space()?, "198.18.1.1:8080", &gateway)
}

/// A container of another network reaches a published port by TCP and by UDP.
///
/// Cases 7 and 8, `TestPortMappedHairpinTCP` and `…UDP`: the client's socket is connected, so that
/// it takes an answer only from where it asked.
#[test]
fn other_network_reaches_port_by_tcp_and_udp() -> Result<()> {
    is_reached_from_another_network(&Site::ours("c7-hairpin")?)
}

/// A client reaches a published port of another network at its own gateway too.
///
/// Case 9, `TestAccessPublishedPortFromAnotherNetwork`.
#[test]
fn own_gateway_serves_another_networks_port() -> Result<()> {
    let site = Site::ours("c9-own-gateway")?;
    let gateways = [site.network("servers", &[])?, site.network("clients", &[])?];
    let server = [&["--network", "servers"][..], &WEB].concat();
    site.run("web", &server, &Peer::serve(80))?;
    let client = site.run("client", &["--network", "clients"], &Peer::idle())?;
    for address in ["198.18.1.1", &gateways[0], &gateways[1], "172.17.0.1"] {
        let to = format!("{address}:8080");
        reaches(&client.space()?, &to, &gateways[0])?;
    }
    // One without a way out has none to there either.
    site.network("inner", &["--internal"])?;
    let inner = site.run("inner", &["--network", "inner"], &Peer::idle())?;
    is_kept_from(&inner.space()?, "198.18.1.1:8080")
}

/// Clients in NAT and routed networks reach a published port at the default bridge's address.
///
/// Case 10, `TestAccessToPublishedPort`: a routed client is seen as itself.
#[test]
fn default_bridge_address_serves_other_networks() -> Result<()> {
    let site = Site::ours("c10-client-modes")?;
    site.run("web", &WEB, &Peer::serve(80))?;
    site.network("plain", &[])?;
    let routed = ["--label", "forwarder.gateway_mode_ipv4=routed"];
    site.network("routed", &routed)?;
    for network in ["plain", "routed"] {
        let client = site.run(network, &["--network", network], &Peer::idle())?;
        let seen = seen_as(&client.space()?, "172.17.0.1:8080").context(network)?;
        let expected = match network {
            "routed" => client.ip()?.to_string(),
            _ => "172.17.0.1".to_owned(),
        };
        assert_eq!(seen, expected, "from {network}");
    }
    Ok(())
}
