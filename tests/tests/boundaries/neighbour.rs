// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARP and hardware addresses: a container speaks in its own names.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use harness::attack::{Arp, Attacker, Mac, Watch};
use harness::{Docker, Host, Lab, Packet, Peer, Scene, Space, eventually};

use crate::{ASKS_LAN, SETTLED, SOON, attacker, counted, end};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const SIBLING: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
const FREE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 99);
const ODD: Mac = [2, 0xbb, 0, 0, 0, 1];

/// ARP in others' names, in every dress that a thief has: what each says, and the frame.
fn thefts(raw: &Attacker, [gateway, sibling]: [Mac; 2]) -> Vec<(&'static str, Vec<u8>)> {
    let (own, dress) = (raw.mac(), raw.dress());
    let all = dress.clone().to_all();
    let victim = dress.clone().to(sibling);
    let target = (sibling, SIBLING);
    vec![
        (
            "gateway's address, answer",
            victim.arp(&Arp::answer(own, GATEWAY, target)),
        ),
        (
            "gateway's address, announced",
            all.arp(&Arp::announce(own, GATEWAY)),
        ),
        (
            "gateway's address, as asker",
            all.arp(&Arp::ask(own, GATEWAY, SIBLING)),
        ),
        (
            "sibling's address, to the host",
            dress.arp(&Arp::answer(own, SIBLING, (gateway, GATEWAY))),
        ),
        (
            "sibling's address, announced",
            all.arp(&Arp::announce(own, SIBLING)),
        ),
        ("a free address", all.arp(&Arp::announce(own, FREE))),
        ("a free address, probed", all.arp(&Arp::probe(own, FREE))),
        (
            "a foreign address",
            all.arp(&Arp::announce(own, [198, 18, 1, 2].into())),
        ),
        (
            "own address at another station",
            all.arp(&Arp::announce(ODD, OWN)),
        ),
        (
            "own address from another station",
            all.clone().from(ODD).arp(&Arp::announce(own, OWN)),
        ),
        (
            "gateway's station",
            all.clone().from(gateway).arp(&Arp::announce(gateway, OWN)),
        ),
        (
            "sibling's station",
            all.clone().from(sibling).arp(&Arp::announce(sibling, OWN)),
        ),
        (
            "priority-tagged",
            victim
                .clone()
                .priority(0)
                .arp(&Arp::answer(own, GATEWAY, target)),
        ),
    ]
}

/// What a namespace knows of a neighbour.
fn neighbour(space: &Space, address: Ipv4Addr) -> Result<String> {
    space.ip(&format!("neigh show {address}"))
}

/// The hardware addresses that the bridge has learned at a container's port.
pub(super) fn learned(host: &Host, raw: &Attacker) -> Result<Vec<String>> {
    let table = host.cmd(&["bridge", "fdb", "show", "br", "docker0", "dynamic"])?;
    let own = text(raw.mac());
    let at = table.lines().find(|line| line.starts_with(&own));
    let port = at.and_then(|line| line.split_whitespace().nth(2));
    let port = port.unwrap_or("none").to_owned();
    let there = |line: &&str| line.split_whitespace().nth(2) == Some(&port);
    let first = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    Ok(table.lines().filter(there).map(first).collect())
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// ARP in the name of another ends at the veth.
#[test]
fn forged_arp_ends_at_the_veth() -> Result<()> {
    let scene = Scene::new("arp-theft")?;
    let host = &scene.host;
    let mallory = scene.run("mallory", &[], &Peer::serve(80))?;
    let sibling = scene.run("sibling", &[], &Peer::serve(80))?;
    assert_eq!(mallory.ip()?, OWN);
    let (raw, space) = (attacker(host, &mallory, "docker0")?, sibling.space()?);
    let macs = [host.mac("docker0")?, space.mac("eth0")?];
    // Everybody knows everybody by now.
    sibling.peer(&["ping", "172.17.0.1"])?;
    host.peer(&["get", "172.17.0.3:80"])?;
    let watch = Watch::new(&[("sibling", &space, "eth0")])?;
    let thefts = thefts(&raw, macs);
    for (what, frame) in &thefts {
        let before = scene.count("spoofed-neighbour")?;
        raw.send(frame)?;
        counted(&scene, "spoofed-neighbour", before, 1).map_err(|e| e.context(*what))?;
    }
    // Packets from others' stations, and a flood of made-up ones: one at a time, in a flow and without.
    let before = scene.count("spoofed-neighbour")?;
    let lan = end([198, 18, 1, 2], 9);
    mallory.peer(&ASKS_LAN).unwrap_err();
    let mut frames = Vec::new();
    for number in 0..2000_u16 {
        let [high, low] = number.to_be_bytes();
        let odd = raw.dress().from([2, 0xaa, 0, 0, high, low]);
        let packet = Packet::udp(end([172, 17, 0, 2], 5000 + number), lan, b"flood");
        frames.push(odd.ipv4(&packet));
    }
    for mac in [macs[0], macs[1], ODD] {
        let to_lan = Packet::udp(end([172, 17, 0, 2], 4000), lan, b"x");
        // TTL 1 goes by the bridge, in a flow that is there.
        frames.push(raw.dress().from(mac).ipv4(&to_lan.ttl(1)));
        let to_sibling = Packet::udp(end([172, 17, 0, 2], 1), end([172, 17, 0, 3], 9), b"x");
        frames.push(raw.dress().from(mac).to(macs[1]).ipv4(&to_sibling));
    }
    raw.send_all(&frames)?;
    counted(&scene, "spoofed-neighbour", before, frames.len() as u64)?;
    std::thread::sleep(SETTLED);
    let learned = learned(host, &raw)?;
    ensure!(
        learned == [text(raw.mac())],
        "the bridge learned {learned:?}"
    );
    let lies = watch.saw(|frame| {
        frame.source_mac() != Some(macs[0]) && frame.source_mac() != Some(raw.mac())
            || Arp::of(frame).is_some_and(|arp| arp.sender == (raw.mac(), GATEWAY))
    })?;
    ensure!(lies.is_empty(), "the sibling was lied to: {lies:?}");
    let known = neighbour(&space, GATEWAY)?;
    ensure!(
        known.contains(&text(macs[0])),
        "the sibling believes {known}"
    );
    let known = neighbour(host, SIBLING)?;
    ensure!(known.contains(&text(macs[1])), "the host believes {known}");
    // Its own names go.
    for arp in [
        Arp::announce(raw.mac(), OWN),
        Arp::probe(raw.mac(), OWN),
        Arp::ask(raw.mac(), OWN, SIBLING),
    ] {
        raw.send(&raw.dress().to_all().arp(&arp))?;
        eventually(SOON, || {
            let seen = watch.saw(|frame| {
                Arp::of(frame)
                    .is_some_and(|seen| seen.sender == arp.sender && seen.target == arp.target)
            })?;
            ensure!(!seen.is_empty(), "did not arrive: {arp:?}");
            Ok(())
        })?;
    }
    mallory.space()?.ip("neigh flush dev eth0")?;
    mallory.peer(&["get", "172.17.0.3:80"])?;
    Ok(())
}

/// In an isolated network nobody asks for the host, nor hears from it.
#[test]
fn isolated_network_asks_for_siblings_only() -> Result<()> {
    let scene = Scene::new("arp-isolated")?;
    let host = &scene.host;
    let label = "--label=forwarder.gateway_mode_ipv4=isolated";
    host.docker(&["network", "create", label, "alone"])?;
    let mallory = scene.run("mallory", &["--network", "alone"], &Peer::idle())?;
    let sibling = scene.run("sibling", &["--network", "alone"], &Peer::idle())?;
    let raw = Attacker::new(&mallory.space()?, "eth0", [0xff; 6])?;
    let watch = Watch::new(&[
        ("mallory", &mallory.space()?, "eth0"),
        ("sibling", &sibling.space()?, "eth0"),
    ])?;
    let own = Ipv4Addr::new(172, 18, 0, 2);
    for target in [[172, 18, 0, 1], [198, 18, 1, 1], [172, 17, 0, 1]] {
        raw.send(&raw.dress().arp(&Arp::ask(raw.mac(), own, target.into())))?;
    }
    counted(&scene, "internal", 0, 3)?;
    std::thread::sleep(SETTLED);
    let seen = watch.saw(|frame| Arp::of(frame).is_some())?;
    ensure!(seen.is_empty(), "asked or answered: {seen:?}");
    raw.send(
        &raw.dress()
            .arp(&Arp::ask(raw.mac(), own, [172, 18, 0, 3].into())),
    )?;
    eventually(SOON, || {
        let seen = watch.saw(|frame| Arp::of(frame).is_some_and(|arp| arp.operation == 2))?;
        ensure!(!seen.is_empty(), "the sibling does not answer");
        Ok(())
    })
}

/// A container that changes its hardware address goes on where its network lets it.
#[test]
fn changed_mac_works_where_it_is_allowed() -> Result<()> {
    let scene = Scene::new("any-mac")?;
    let host = &scene.host;
    host.docker(&[
        "network",
        "create",
        "--label=forwarder.any-mac=true",
        "free",
    ])?;
    let free = scene.run("free", &["--network", "free"], &Peer::serve(80))?;
    let bound = scene.run("bound", &[], &Peer::serve(80))?;
    for container in [&free, &bound] {
        let space = container.space()?;
        space.ip("link set eth0 down")?;
        space.ip("link set eth0 address 02:bb:00:00:00:07")?;
        space.ip("link set eth0 up")?;
    }
    host.ip("neigh flush all")?;
    let ask = |address: &str| host.peer(&["get", address, "--timeout", "1000"]);
    eventually(SOON, || ask("172.18.0.2:80").map(drop))?;
    ensure!(ask("172.17.0.2:80").is_err(), "another station is believed");
    Ok(())
}

/// Stock Docker believes every one of the thefts.
#[test]
fn stock_accepts_forged_neighbours() -> Result<()> {
    let lab = Lab::new("arp-stock")?;
    let host = lab.host(Docker::stock())?;
    let mallory = host.run("mallory", &[], &Peer::idle())?;
    let sibling = host.run("sibling", &[], &Peer::serve(80))?;
    let (raw, space) = (attacker(&host, &mallory, "docker0")?, sibling.space()?);
    sibling.peer(&["ping", "172.17.0.1"])?;
    host.peer(&["get", "172.17.0.3:80"])?;
    for (_, frame) in thefts(&raw, [host.mac("docker0")?, space.mac("eth0")?]) {
        raw.send(&frame)?;
    }
    eventually(SOON, || {
        let known = neighbour(&space, GATEWAY)?;
        ensure!(
            known.contains(&text(raw.mac())),
            "the sibling believes {known}"
        );
        Ok(())
    })
}
