// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may have other sources than his own: VPN servers, virtual addresses, by `allowed-sources`.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use harness::attack::{Arp, Watch};
use harness::{Container, Docker, Lab, Packet, Peer, Scene, Space, eventually, serve};

use crate::{Numbered, SOON, attacker, end};

const ALLOWED: &str = "--label=forwarder.allowed-sources";

/// Gives a container a network of its own behind it, as a VPN server has: 10.N.0.1/24.
fn network_behind(container: &Container, address: &str) -> Result<Space> {
    let space = container.space()?;
    space.ip("tuntap add dev tun0 mode tun")?;
    space.ip(&format!("address add {address}/24 dev tun0"))?;
    space.ip("link set tun0 up")?;
    Ok(space)
}

/// By TCP, and from a client's own address where one is named. Not by UDP: a server that listens at
/// every address answers datagrams from whichever its route has, on stock as here.
fn reaches(from: &Space, to: &str, bind: Option<&str>) -> Result<()> {
    let port = format!("{to}:80");
    let bind = bind.map(|address| format!("{address}:0"));
    let mut words = vec!["get", &port, "--timeout", "1000"];
    words.extend(bind.iter().flat_map(|bind| ["--bind", bind.as_str()]));
    from.peer(&words).map(drop)
}

/// A VPN server's clients reach host and LAN, and are reached, with their own addresses; a container
/// without the label does not, nor with another source than it names.
#[test]
fn vpn_clients_are_reached_as_on_stock() -> Result<()> {
    let scene = Scene::new("vpn")?;
    let (host, lan) = (&scene.host, scene.lan());
    let label = format!("{ALLOWED}=10.8.0.0/24");
    let vpn = scene.run("vpn", &[&label], &Peer::serve(80))?;
    let plain = scene.run("plain", &[], &Peer::serve(80))?;
    let inside = network_behind(&vpn, "10.8.0.1")?;
    let without = network_behind(&plain, "10.9.0.1")?;
    for (range, by) in [("10.8.0.0/24", vpn.ip()?), ("10.9.0.0/24", plain.ip()?)] {
        host.ip(&format!("route add {range} via {by}"))?;
        lan.ip(&format!("route add {range} via 198.18.1.1"))?;
    }
    let _servers = [serve(host, 80)?, serve(lan, 80)?];
    let watch = Watch::new(&[("LAN", lan, "h1")])?;
    eventually(SOON, || reaches(host, "10.8.0.1", None))?;
    reaches(lan, "10.8.0.1", None)?;
    reaches(&inside, "198.18.1.1", Some("10.8.0.1"))?;
    reaches(&inside, "198.18.1.2", Some("10.8.0.1"))?;
    // A sibling by way of the host, and back.
    reaches(&plain.space()?, "10.8.0.1", None)?;
    let unseen = watch.saw(|frame| {
        let client = Ipv4Addr::new(10, 8, 0, 1);
        frame
            .packet()
            .is_some_and(|packet| packet.source() == client)
    })?;
    ensure!(!unseen.is_empty(), "the client's address was translated");
    ensure!(reaches(host, "10.9.0.1", None).is_err(), "without a label");
    ensure!(reaches(lan, "10.9.0.1", None).is_err(), "without a label");
    ensure!(
        reaches(&without, "198.18.1.2", Some("10.9.0.1")).is_err(),
        "without a label"
    );
    let raw = attacker(host, &vpn, "docker0")?;
    let mut forged = Numbered::new(1000);
    for from in [
        [10, 8, 1, 1],
        [172, 17, 0, 3],
        [172, 17, 0, 1],
        [198, 18, 1, 77],
    ] {
        let packet = Packet::udp(end(from, 1), end([198, 18, 1, 2], 9), b"x");
        raw.send(
            &raw.dress()
                .ipv4(&forged.packet(format!("{from:?}"), packet)),
        )?;
    }
    forged.nowhere(&watch)
}

/// A virtual address moves between two containers, with the virtual router's hardware address.
#[test]
fn virtual_address_moves_between_containers() -> Result<()> {
    let scene = Scene::new("virtual")?;
    let host = &scene.host;
    let label = format!("{ALLOWED}=172.17.0.200/32");
    let first = scene.run("first", &[&label], &Peer::serve(80))?;
    let second = scene.run("second", &[&label], &Peer::serve(80))?;
    let other = scene.run("other", &[], &Peer::serve(80))?;
    scene.lan().ip("route add 172.17.0.0/16 via 198.18.1.1")?;
    let announce = |container: &Container| -> Result<()> {
        let raw = attacker(host, container, "docker0")?;
        let arp = Arp::announce(raw.mac(), Ipv4Addr::new(172, 17, 0, 200));
        raw.send(&raw.dress().to_all().arp(&arp))
    };
    for (owner, former) in [(&first, &second), (&second, &first)] {
        let _ = former.space()?.ip("address del 172.17.0.200/32 dev eth0");
        owner.space()?.ip("address add 172.17.0.200/32 dev eth0")?;
        announce(owner)?;
        for space in [host as &Space, &other.space()?, scene.lan()] {
            eventually(SOON, || reaches(space, "172.17.0.200", None))?;
        }
        let logs = owner.logs()?;
        ensure!(logs.contains("198.18.1.2"), "another one serves: {logs}");
    }
    // Its advertisements carry the virtual router's own address.
    let raw = attacker(host, &first, "docker0")?;
    let watch = Watch::new(&[("other", &other.space()?, "eth0")])?;
    let mut sent = Numbered::new(1000);
    let vrrp = Packet::new(
        112,
        [172, 17, 0, 2].into(),
        [224, 0, 0, 18].into(),
        &[0x31; 20],
    );
    let group = raw.dress().to([1, 0, 0x5e, 0, 0, 18]);
    let router = group.from([0, 0, 0x5e, 0, 1, 7]);
    raw.send(&router.ipv4(&sent.packet("an advertisement", vrrp.clone())))?;
    sent.everywhere(&watch)?;
    // Who has no virtual address has no virtual router either, nor takes this one.
    let raw = attacker(host, &other, "docker0")?;
    let watch = Watch::new(&[("first", &first.space()?, "eth0")])?;
    let mut forged = Numbered::new(2000);
    let vrrp = Packet::new(
        112,
        [172, 17, 0, 4].into(),
        [224, 0, 0, 18].into(),
        &[0x31; 20],
    );
    let group = raw.dress().to([1, 0, 0x5e, 0, 0, 18]);
    let router = group.from([0, 0, 0x5e, 0, 1, 7]);
    raw.send(&router.ipv4(&forged.packet("an advertisement", vrrp)))?;
    announce(&other)?;
    forged.nowhere(&watch)?;
    let stolen = watch.saw(|frame| {
        Arp::of(frame)
            .is_some_and(|arp| arp.sender.0 == raw.mac() && arp.sender.1.octets()[3] == 200)
    })?;
    ensure!(stolen.is_empty(), "the address was taken");
    Ok(())
}

/// A key of the network's in the file: each of its containers may.
#[test]
fn network_key_allows_each_container() -> Result<()> {
    let lab = Lab::new("sources-key")?;
    let host = lab.host(Docker::replace())?;
    let config = "[network.bridge]\nallowed-sources = ['10.8.0.0/16']\n";
    let agent = host.agent().config(config)?.start()?;
    let scene = Scene { agent, host, lab };
    let host = &scene.host;
    let one = scene.run("one", &[], &Peer::serve(80))?;
    let inside = network_behind(&one, "10.8.3.1")?;
    host.ip(&format!("route add 10.8.3.0/24 via {}", one.ip()?))?;
    let _server = serve(host, 80)?;
    eventually(SOON, || reaches(host, "10.8.3.1", None))?;
    reaches(&inside, "198.18.1.1", Some("10.8.3.1"))
}
