// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames in any dress out of containers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forwarder_testkit::packet::proto;
use harness::attack::{BRIDGE_GROUP, BROADCAST, Watch, broken, ethertype};
use harness::{Docker, Host, Lab, Packet, Peer, Scene, serve};

use crate::{Numbered, attacker, counted, end};

const LAN: [u8; 4] = [198, 18, 1, 2];

/// Every packet that somebody may try to get out: honest transports, and those that are none.
fn packets(from: [u8; 4], to: [u8; 4]) -> Vec<(&'static str, Packet)> {
    let (from, to) = (end(from, 40_000), end(to, 9));
    let mut packets = broken(from, to);
    packets.push(("UDP", Packet::udp(from, to, b"out")));
    packets.push(("SYN", Packet::tcp(from, to, 2)));
    packets.push(("RST", Packet::tcp(from, to, 4)));
    packets.push((
        "echo request",
        Packet::icmp(*from.ip(), *to.ip(), [8, 0], &[0; 12]),
    ));
    packets.push((
        "options",
        Packet::udp(from, to, b"out").options(&[1, 1, 1, 0]),
    ));
    packets.push(("TTL 1", Packet::udp(from, to, b"out").ttl(1)));
    packets
}

/// The bridge of the only network that is not Docker's own.
fn only_bridge(host: &Host) -> Result<String> {
    let bridges = host.ip("-br link show type bridge")?;
    let line = bridges.lines().find(|line| line.starts_with("br-"));
    let name = line.and_then(|line| line.split_whitespace().next());
    Ok(name.context("no bridge of a network")?.to_owned())
}

/// Neither its own nor any other source, in no dress, by no transport.
#[test]
fn internal_network_leaks_no_frame() -> Result<()> {
    let scene = Scene::new("dress-internal")?;
    let host = &scene.host;
    host.docker(&["network", "create", "--internal", "inner"])?;
    let mallory = scene.run("mallory", &["--network", "inner"], &Peer::idle())?;
    let sibling = scene.run("sibling", &["--network", "inner"], &Peer::serve(80))?;
    let other = scene.run("other", &[], &Peer::idle())?;
    let bridge = only_bridge(host)?;
    let raw = attacker(host, &mallory, &bridge)?;
    let watch = Watch::new(&[
        ("LAN", scene.lan(), "h1"),
        ("other network", &other.space()?, "eth0"),
    ])?;
    let mut numbered = Numbered::new(1000);
    let mut frames = Vec::new();
    let sources = [
        [172, 18, 0, 2],
        [172, 18, 0, 3],
        [172, 17, 0, 2],
        [10, 0, 0, 1],
        [198, 18, 1, 77],
        [198, 18, 1, 1],
        [0, 0, 0, 0],
    ];
    for (dress, tags) in raw.dress().every_tag() {
        for from in sources {
            for to in [LAN, [172, 17, 0, 2], [8, 8, 8, 8], [224, 0, 0, 9]] {
                for (what, packet) in packets(from, to) {
                    let what = format!("{what}, {dress}, from {from:?} to {to:?}");
                    frames.push(tags.ipv4(&numbered.packet(what, packet)));
                }
            }
        }
    }
    raw.send_all(&frames)?;
    numbered.nowhere(&watch)?;
    // The host is reached as on stock, priority-tagged as well, and so is the sibling.
    let mut honest = Numbered::new(60_000);
    let own = end([172, 18, 0, 2], 40_001);
    let at_host = Watch::new(&[("host", host, &bridge)])?;
    let gateway = end([172, 18, 0, 1], 9);
    raw.send(&raw.dress().priority(5).ipv4(&honest.packet(
        "priority-tagged UDP to the host",
        Packet::udp(own, gateway, b"hello"),
    )))?;
    honest.everywhere(&at_host)?;
    mallory.peer(&["get", &format!("{}:80", sibling.ip()?)])?;
    Ok(())
}

/// Not even the host hears of an isolated network's containers, while they hear of each other.
#[test]
fn isolated_network_reaches_no_host() -> Result<()> {
    let scene = Scene::new("dress-isolated")?;
    let host = &scene.host;
    let label = "--label=forwarder.gateway_mode_ipv4=isolated";
    host.docker(&["network", "create", label, "alone"])?;
    let mallory = scene.run("mallory", &["--network", "alone"], &Peer::idle())?;
    let sibling = scene.run("sibling", &["--network", "alone"], &Peer::serve(80))?;
    let bridge = only_bridge(host)?;
    let raw = attacker(host, &mallory, &bridge)?;
    let service = serve(host, 7)?;
    // What the host's stack takes in, a socket tells: a capture would see it before our hook.
    let counters = || host.cmd(&["cat", "/proc/net/snmp"]);
    let delivered = || -> Result<u64> {
        let text = counters()?;
        let udp = text.lines().filter(|line| line.starts_with("Udp:")).nth(1);
        let fields: Vec<u64> = udp
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        // InDatagrams and NoPorts.
        Ok(fields[0] + fields[1])
    };
    let before = delivered()?;
    let own = end([172, 18, 0, 2], 40_000);
    let mut frames = Vec::new();
    for (_, tags) in raw.dress().every_tag() {
        for to in [
            [172, 18, 0, 1],
            [172, 18, 255, 255],
            [255, 255, 255, 255],
            [224, 0, 0, 1],
            [198, 18, 1, 1],
        ] {
            for mac in [
                host.mac(&bridge)?,
                BROADCAST,
                BRIDGE_GROUP,
                [1, 0, 0x5e, 0, 0, 1],
            ] {
                let packet = Packet::udp(own, end(to, 7), b"hello");
                frames.push(tags.clone().to(mac).ipv4(&packet));
            }
        }
        for port in [7, 22] {
            let syn = Packet::tcp(own, end([172, 18, 0, 1], port), 2);
            frames.push(tags.ipv4(&syn));
        }
    }
    let internal = scene.count("internal")?;
    raw.send_all(&frames)?;
    counted(&scene, "internal", internal, 10)?;
    std::thread::sleep(Duration::from_millis(300));
    let after = delivered()?;
    ensure!(
        after == before,
        "the host's UDP took {} datagrams",
        after - before
    );
    let sockets = host.cmd(&["ss", "-Htan", "state", "syn-recv"])?;
    ensure!(sockets.trim().is_empty(), "half-open: {sockets}");
    drop(service);
    mallory.peer(&["get", &format!("{}:80", sibling.ip()?)])?;
    ensure!(
        mallory
            .peer(&["ping", "172.18.0.1", "--timeout", "300"])
            .is_err(),
        "the host answers"
    );
    Ok(())
}

/// From ordinary networks: no dress carries a forged source, neither outwards nor to a sibling.
#[test]
fn forged_source_leaves_in_no_frame() -> Result<()> {
    let scene = Scene::new("dress-forged")?;
    let host = &scene.host;
    let mallory = scene.run("mallory", &[], &Peer::idle())?;
    let sibling = scene.run("sibling", &[], &Peer::serve(80))?;
    let raw = attacker(host, &mallory, "docker0")?;
    let watch = Watch::new(&[
        ("LAN", scene.lan(), "h1"),
        ("sibling", &sibling.space()?, "eth0"),
    ])?;
    let mut forged = Numbered::new(1000);
    let mut frames = Vec::new();
    let siblings_mac = sibling.space()?.mac("eth0")?;
    for (dress, tags) in raw.dress().every_tag() {
        for from in [
            [172, 17, 0, 3],
            [172, 17, 0, 99],
            [198, 18, 1, 77],
            [10, 0, 0, 1],
        ] {
            for (what, packet) in packets(from, LAN) {
                let what = format!("{what}, {dress}, from {from:?}");
                frames.push(tags.ipv4(&forged.packet(what, packet)));
            }
            for (what, packet) in packets(from, [172, 17, 0, 3]) {
                let what = format!("{what}, {dress}, from {from:?} to the sibling");
                let to = tags.clone().to(siblings_mac);
                frames.push(to.ipv4(&forged.packet(what, packet)));
            }
        }
        if dress.starts_with("VLAN id 7") || dress.starts_with("QinQ") {
            for (what, packet) in packets([172, 17, 0, 2], [172, 17, 0, 3]) {
                let what = format!("{what}, {dress}, from its own");
                let to = tags.clone().to(siblings_mac);
                frames.push(to.ipv4(&forged.packet(what, packet)));
            }
        }
    }
    // A broken transport from its own source would have to be translated.
    for (what, packet) in broken(end([172, 17, 0, 2], 40_000), end(LAN, 9)) {
        if packet.protocol() != 253 {
            frames.push(raw.dress().ipv4(&forged.packet(what, packet)));
        }
    }
    let other = scene.count("other-frame")?;
    raw.send_all(&frames)?;
    let odd = [ethertype::EXPERIMENTAL, 0x88cc, 0x8035, 0x0026];
    for kind in odd {
        raw.send(&raw.dress().to(siblings_mac).frame(kind, &[0xaa; 50]))?;
    }
    counted(&scene, "other-frame", other, odd.len() as u64)?;
    forged.nowhere(&watch)?;
    let odd_seen = watch.saw(|frame| frame.carries(&[0xaa; 50]))?;
    ensure!(odd_seen.is_empty(), "odd EtherTypes: {odd_seen:?}");
    // Honest ones arrive, also with a priority.
    let mut honest = Numbered::new(60_000);
    let own = end([172, 17, 0, 2], 40_001);
    let to_lan = honest.packet(
        "tagged UDP to the LAN",
        Packet::udp(own, end(LAN, 9), b"hello"),
    );
    raw.send(&raw.dress().priority(3).ipv4(&to_lan))?;
    let to_sibling = honest.packet(
        "UDP to the sibling",
        Packet::udp(own, end([172, 17, 0, 3], 9), b"hello"),
    );
    raw.send(&raw.dress().to(siblings_mac).ipv4(&to_sibling))?;
    honest.everywhere(&watch)
}

/// What comes by a veth without a program, and is let out by no hook, does not leave, whatever its
/// source.
#[test]
fn unhooked_veth_lets_no_source_out() -> Result<()> {
    let mut scene = Scene::new("dress-unhooked")?;
    scene.run("known", &[], &Peer::idle())?;
    // Made while no agent lives: its veth has no program.
    scene.agent.kill()?;
    let host = &scene.host;
    let netns = scene.lab.netns("late")?;
    host.ip(&format!(
        "link add late0 type veth peer name eth0 netns {}",
        netns.name()
    ))?;
    host.ip("link set late0 master docker0 up")?;
    netns.ip("link set eth0 up")?;
    let late = harness::attack::Attacker::new(&netns, "eth0", host.mac("docker0")?)?;
    let watch = Watch::new(&[("LAN", scene.lan(), "h1")])?;
    let mut forged = Numbered::new(1000);
    for (dress, tags) in late.dress().every_tag() {
        for from in [[172, 17, 0, 2], [198, 18, 1, 77], [10, 0, 0, 1]] {
            for (what, packet) in packets(from, LAN) {
                // Its network's own, if it is whole, is translated: the floor by network.
                let what = format!("{what}, {dress}, from {from:?}");
                late.send(&tags.ipv4(&forged.packet(what, packet)))?;
            }
        }
    }
    forged.nowhere(&watch)
}

/// A DHCP server answers nobody.
#[test]
fn dhcp_server_in_a_container_is_silent() -> Result<()> {
    let scene = Scene::new("dress-dhcp")?;
    let mallory = scene.run("mallory", &[], &Peer::idle())?;
    let sibling = scene.run("sibling", &[], &Peer::idle())?;
    let raw = attacker(&scene.host, &mallory, "docker0")?;
    let watch = Watch::new(&[("sibling", &sibling.space()?, "eth0")])?;
    let mut offers = Numbered::new(1000);
    let offer = |to| Packet::udp(end([172, 17, 0, 2], 67), end(to, 68), &[2; 240]);
    let all = raw.dress().to_all();
    raw.send(&all.ipv4(&offers.packet("broadcast", offer([255, 255, 255, 255]))))?;
    let mac = sibling.space()?.mac("eth0")?;
    let direct = raw.dress().to(mac);
    raw.send(&direct.ipv4(&offers.packet("unicast", offer([172, 17, 0, 3]))))?;
    counted(&scene, "dhcp-server", 0, 2)?;
    offers.nowhere(&watch)?;
    // Who asks for an address may.
    let mut asked = Numbered::new(2000);
    let ask = Packet::udp(
        end([0, 0, 0, 0], 68),
        end([255, 255, 255, 255], 67),
        &[1; 240],
    );
    raw.send(&raw.dress().to_all().ipv4(&asked.packet("discover", ask)))?;
    asked.everywhere(&watch)
}

/// The same frames on stock Docker: what of it leaves there.
#[test]
fn stock_lets_tagged_frames_out() -> Result<()> {
    let lab = Lab::new("dress-stock")?;
    let host = lab.host(Docker::stock())?;
    let mallory = host.run("mallory", &[], &Peer::idle())?;
    let sibling = host.run("sibling", &[], &Peer::idle())?;
    let raw = attacker(&host, &mallory, "docker0")?;
    let watch = Watch::new(&[
        ("LAN", lab.lan(), "h1"),
        ("sibling", &sibling.space()?, "eth0"),
    ])?;
    let mut forged = Numbered::new(1000);
    for (what, packet) in broken(end([10, 0, 0, 1], 40_000), end(LAN, 9)) {
        if packet.protocol() == proto::TCP || packet.protocol() == 253 {
            raw.send(&raw.dress().ipv4(&forged.packet(what, packet)))?;
        }
    }
    let udp = Packet::udp(end([198, 18, 1, 77], 1), end(LAN, 9), b"x");
    raw.send(&raw.dress().priority(5).ipv4(&forged.packet("tagged", udp)))?;
    let mac = sibling.space()?.mac("eth0")?;
    let udp = Packet::udp(end([172, 17, 0, 1], 1), end([172, 17, 0, 3], 9), b"x");
    let to_sibling = raw.dress().to(mac).qinq(7, 8);
    raw.send(&to_sibling.ipv4(&forged.packet("QinQ to a sibling", udp)))?;
    let foreign = Packet::udp(end([10, 8, 0, 1], 1), end(LAN, 9), b"x");
    raw.send(
        &raw.dress()
            .ipv4(&forged.packet("a network of its own making", foreign)),
    )?;
    let offer = Packet::udp(end([172, 17, 0, 2], 67), end([255; 4], 68), &[2; 240]);
    raw.send(
        &raw.dress()
            .to_all()
            .ipv4(&forged.packet("a DHCP offer", offer)),
    )?;
    forged.everywhere(&watch)
}
