// SPDX-License-Identifier: MIT OR Apache-2.0
//! By which address a network's containers are seen outside.

use anyhow::{Context as _, Result, ensure};
use harness::{Peer, serve};

use crate::ask::{pings, reaches};
use crate::site::Site;

/// A network with a fixed host address is seen by that address.
///
/// Case 31, `TestHostIPv4BridgeLabel`: by Docker's option and by our label.
#[test]
fn network_is_seen_by_its_fixed_host_address() -> Result<()> {
    let site = Site::ours("c31-host-ipv4")?;
    for address in ["198.18.1.77/24", "198.18.70.1/32"] {
        site.host.ip(&format!("address add {address} dev up0"))?;
    }
    site.lan().ip("route add 198.18.70.1/32 via 198.18.1.1")?;
    let _server = serve(site.lan(), 7)?;
    let at_lan = site.lan().capture("h1")?;
    for (network, options, address) in [
        (
            "option",
            ["-o", "com.docker.network.host_ipv4=198.18.1.77"],
            "198.18.1.77",
        ),
        (
            "label",
            ["--label", "forwarder.host_ipv4=198.18.70.1"],
            "198.18.70.1",
        ),
        ("plain", ["-o", "unknown=1"], "198.18.1.1"),
    ] {
        let gateway = site.network(network, &options)?;
        let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
        let on = [&["--network", network][..], &ports].concat();
        let web = site.run(network, &on, &Peer::serve(80))?;
        let inside = web.space()?;
        reaches(&inside, "198.18.1.2:7", address).context(network)?;
        ensure!(pings(&inside, "198.18.1.2"), "{network}: no echo");
        let echoes = format!("icmp[icmptype] = icmp-echo and src host {address}");
        ensure!(
            !at_lan.lines(&echoes)?.is_empty(),
            "{network}: another echo"
        );
        // Who comes in is answered by what it asked.
        reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2").context(network)?;
        reaches(&inside, "198.18.1.1:8080", &gateway).context(network)?;
        web.remove()?;
    }
    at_lan.audit(false)
}

/// A network without masquerade is seen as itself, and its published ports work.
///
/// Docker's `enable_ip_masquerade=false`, and our label.
#[test]
fn unmasqueraded_network_is_seen_as_itself() -> Result<()> {
    let site = Site::ours("no-masquerade")?;
    let _server = serve(site.lan(), 7)?;
    site.lan_routes_to_containers()?;
    for (network, options) in [
        (
            "option",
            ["-o", "com.docker.network.bridge.enable_ip_masquerade=false"],
        ),
        ("label", ["--label", "forwarder.enable_ip_masquerade=false"]),
    ] {
        site.network(network, &options)?;
        let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
        let on = [&["--network", network][..], &ports].concat();
        let web = site.run(network, &on, &Peer::serve(80))?;
        let own = web.ip()?.to_string();
        reaches(&web.space()?, "198.18.1.2:7", &own).context(network)?;
        reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2").context(network)?;
        web.remove()?;
    }
    Ok(())
}
