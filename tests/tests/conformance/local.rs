// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local access: the host's own processes, and what is published on loopback addresses.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use harness::{Packet, Peer, eventually};

use crate::SOON;
use crate::ask::{is_kept_from, pings, reaches, seen_as};
use crate::probe::{LOOPBACK, careless};
use crate::site::Site;

/// Port 80 of both transports, published as 8080.
const WEB: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

/// The host reaches a published port at its own address.
///
/// Case 1, `TestNetworkNat`.
#[test]
fn host_reaches_published_port_at_own_address() -> Result<()> {
    let site = Site::ours("c1-nat")?;
    site.run("web", &WEB, &Peer::serve(80))?;
    reaches(&site.host, "198.18.1.1:8080", "172.17.0.1")
}

/// The host reaches a published port at localhost.
///
/// Case 2, `TestNetworkLocalhostTCPNat`.
#[test]
fn host_reaches_published_port_at_localhost() -> Result<()> {
    let site = Site::ours("c2-localhost")?;
    let options = ["-p", "8081:80", "-p", "8081:80/udp"];
    site.run("web", &options, &Peer::serve(80))?;
    reaches(&site.host, "127.0.0.1:8081", "172.17.0.1")
}

/// The host reaches a published port at every address of its own.
///
/// Case 4, `TestAccessPublishedPortFromHost`: and what came after the publish, and a container that
/// is the host as far as the network goes.
#[test]
fn host_reaches_published_port_at_all_addresses() -> Result<()> {
    let site = Site::ours("c4-own-addresses")?;
    site.host.ip("address add 198.18.50.1/32 dev lo")?;
    site.run("web", &WEB, &Peer::serve(80))?;
    site.host.ip("address add 198.18.1.9/24 dev up0")?;
    // Run by Docker, not by us: in a control group of its own.
    let own = site
        .host
        .run("own", &["--network", "host"], &Peer::idle())?;
    for address in [
        "127.0.0.1",
        "127.0.0.77",
        "198.18.1.1",
        "198.18.1.9",
        "198.18.50.1",
        "172.17.0.1",
    ] {
        let to = format!("{address}:8080");
        eventually(SOON, || reaches(&site.host, &to, "172.17.0.1"))?;
        for verb in [&["get", &to][..], &["udp", &to, "hello"]] {
            let seen = own.peer(verb).with_context(|| format!("host mode, {to}"))?;
            ensure!(seen.starts_with("172.17.0.1:"), "host mode, {to}: {seen}");
        }
    }
    Ok(())
}

/// The host reaches a container without IPv6 by the IPv6 loopback address.
///
/// Case 11, `TestProxy4To6`.
#[test]
fn host_reaches_ipv4_container_by_ipv6_loopback() -> Result<()> {
    let site = Site::ours("c11-v6-loopback")?;
    site.run("web", &WEB, &Peer::serve(80))?;
    reaches(&site.host, "[::1]:8080", "172.17.0.1")
}

/// Publishes on a loopback address, sends forged frames for it from the LAN, and counts what of them
/// comes to the server or is answered by whoever.
pub(crate) fn forged_loopback_frames_that_get_through(site: &Site) -> Result<usize> {
    let web = site.run("web", &LOOPBACK, &Peer::serve(80))?;
    let (host, lan) = (&site.host, site.lan());
    careless(host)?;
    let inside = web.space()?.capture("eth0")?;
    let at_lan = lan.capture("h1")?;
    let (to, from) = (host.mac("up0")?, lan.mac("h1")?);
    let target = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 5000);
    for port in 40_000..40_050 {
        let client = SocketAddrV4::new(host.gateway(), port);
        let packets = [
            Packet::udp(client, target, b"forged"),
            Packet::tcp(client, target, 2),
        ];
        for packet in packets {
            lan.send_frame("h1", &packet.frame(to, from))?;
        }
    }
    // What the host answers after them has passed everything that they could.
    ensure!(pings(lan, "198.18.1.1"), "the host is deaf");
    let came = inside.lines("ip and src host 198.18.1.2")?;
    let answers = at_lan.lines("ip and src net 127.0.0.0/8")?;
    Ok(came.len() + answers.len())
}

/// A port that is published on a loopback address is the host's alone.
///
/// Case 13, `TestAccessPortPublishedOnLoopbackAddress`.
#[test]
fn loopback_port_is_for_the_host_only() -> Result<()> {
    let site = Site::ours("c13-loopback")?;
    let through = forged_loopback_frames_that_get_through(&site)?;
    ensure!(through == 0, "{through} frames for and from 127.0.0.2");
    for other in ["198.18.1.1:5000", "172.17.0.1:5000", "127.0.0.1:5000"] {
        is_kept_from(&site.host, other)?;
    }
    is_kept_from(site.lan(), "198.18.1.1:5000")?;
    reaches(&site.host, "127.0.0.2:5000", "172.17.0.1")
}

/// One port on two loopback addresses leads to two containers.
///
/// Case 14, `TestPortMappingOnDistinctLoopbackAddrs`.
#[test]
fn port_on_two_loopback_addresses_is_two_ports() -> Result<()> {
    let site = Site::ours("c14-two-loopbacks")?;
    let mut servers = Vec::new();
    for last in [2, 3] {
        let port = format!("127.0.1.{last}:8080:80");
        let options = ["-p", &port, "-p", &format!("{port}/udp")];
        servers.push(site.run(&format!("web{last}"), &options, &Peer::serve(80))?);
    }
    for (at, server) in servers.iter().enumerate() {
        seen_as(&site.host, &format!("127.0.1.{}:8080", at + 2))?;
        for (other_at, other) in servers.iter().enumerate() {
            let asked = other
                .logs()?
                .lines()
                .filter(|line| line.contains("172.17.0.1:"))
                .count();
            // Each was asked by both transports in its turn, and by none before.
            let expected = if other_at <= at { 2 } else { 0 };
            ensure!(
                asked == expected,
                "{} of {}: {asked}",
                other.name(),
                server.name()
            );
        }
    }
    is_kept_from(&site.host, "127.0.0.1:8080").context("an address of neither")
}
