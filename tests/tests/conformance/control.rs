// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control arm: the bodies of cases, played on a stock Docker 20.10, which is known to fail them.
//! What cannot fail there would prove nothing on our side.

use anyhow::{Result, ensure};
use harness::{Peer, eventually};

use crate::SOON;
use crate::ask::{Access, is_kept_from};
use crate::direct::of_a_plain_server_from_outside;
use crate::local::forged_loopback_frames_that_get_through;
use crate::probe::{Barrage, LOOPBACK, heard};
use crate::published::is_reached_from_another_network;
use crate::site::Site;
use crate::stale::a_flood_reaches_each_next_server;

/// Stock Docker lets outsiders reach published ports by direct routing.
///
/// Cases 15 and 17: up to 27, whoever has a route reaches what is published at the container too.
#[test]
fn stock_direct_routes_to_published_ports() -> Result<()> {
    let access = of_a_plain_server_from_outside(&Site::stock("stock-direct")?)?;
    assert_eq!(access, Access::PUBLISHED, "of Docker 20.10");
    Ok(())
}

/// Stock Docker lets outsiders reach ports that are published on loopback.
///
/// Case 13: up to 27, a forged destination is enough.
#[test]
fn stock_opens_loopback_ports_to_outside() -> Result<()> {
    let through = forged_loopback_frames_that_get_through(&Site::stock("stock-loopback")?)?;
    ensure!(through > 0, "stock Docker 20.10 is closed here, too");
    Ok(())
}

/// Stock Docker keeps networks from each other's published ports.
///
/// Cases 7 to 9: up to 28, without docker-proxy another network's published ports are out of reach.
#[test]
fn stock_separates_networks_published_ports() -> Result<()> {
    let site = Site::stock("stock-hairpin")?;
    let why = is_reached_from_another_network(&site).unwrap_err();
    ensure!(format!("{why:#}").contains("TCP"), "{why:#}");
    let client = site.host.container("client").space()?;
    is_kept_from(&client, "198.18.1.1:8080")
}

/// Stock Docker keeps a flood from the server that came later.
///
/// Case 33: the kernel's tracking remembers a flow from before the mapping.
#[test]
fn stock_keeps_a_flood_from_a_later_server() -> Result<()> {
    let site = Site::stock("stock-flood")?;
    let why = format!("{:#}", a_flood_reaches_each_next_server(&site).unwrap_err());
    ensure!(
        why.contains("the server hears nothing") || why.contains("it hears"),
        "{why}"
    );
    Ok(())
}

/// The guards: the probes that are polled there come in here.
#[test]
fn stock_lets_the_probes_in() -> Result<()> {
    let site = Site::stock("stock-probes")?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let server = site.run("web", &[&ports[..], &LOOPBACK].concat(), &Peer::serve(80))?;
    let barrage = Barrage::new(&site)?;
    let both = || {
        let heard = heard(&server)?;
        // By the client's port: the first target's, and the forged one's.
        for client in ["198.18.1.2:41000", "198.18.1.2:41010"] {
            let own = heard.iter().filter(|line| line.ends_with(client)).count();
            ensure!(own > 10, "{own} from {client}");
        }
        Ok(())
    };
    barrage.during(site.lan(), || eventually(SOON, both))?;
    Ok(())
}
