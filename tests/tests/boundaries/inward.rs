// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the LAN to published ports, with sources that are nobody's there.

use std::net::{IpAddr, SocketAddrV4};

use anyhow::{Result, ensure};
use harness::attack::{Attacker, Watch};
use harness::{Docker, Lab, Packet, Peer, Scene, holds};

use crate::{ASKS_LAN, Numbered, SETTLED, counted, end};

/// Sources that no machine of the LAN has.
const NOBODYS: [[u8; 4]; 12] = [
    [198, 18, 1, 1],
    [172, 17, 0, 1],
    [172, 17, 0, 2],
    [172, 17, 0, 3],
    [172, 17, 0, 99],
    [224, 0, 0, 1],
    [239, 255, 255, 250],
    [255, 255, 255, 255],
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [240, 0, 0, 1],
    [127, 0, 0, 1],
];

fn knock(from: [u8; 4], port: u16) -> [(&'static str, Packet); 2] {
    let to = end([198, 18, 1, 1], port);
    let from = end(from, 40_000);
    [
        ("SYN", Packet::tcp(from, to, 2)),
        ("UDP", Packet::udp(from, to, b"knock")),
    ]
}

/// A packet from outside with a source that nobody there can have reaches neither containers nor
/// the host.
#[test]
fn impossible_source_reaches_nothing() -> Result<()> {
    let scene = Scene::new("inward")?;
    let (host, lan) = (&scene.host, scene.lan());
    // The kernel's own check is off: ours has to hold by itself.
    for device in ["all", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let published = ["-p", "8080:80", "-p", "8080:80/udp"];
    let web = scene.run("web", &published, &Peer::serve(80))?;
    let listed = [
        "-p",
        "8081:80",
        "-p",
        "8081:80/udp",
        "--label=forwarder.ingress.allow=198.18.1.0/24,0.0.0.0/8,224.0.0.0/3,172.17.0.0/16",
    ];
    let listed = scene.run("listed", &listed, &Peer::serve(80))?;
    let raw = Attacker::new(lan, "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[
        ("web", &web.space()?, "eth0"),
        ("listed", &listed.space()?, "eth0"),
    ])?;
    let before = scene.count("spoofed-source")?;
    let mut forged = Numbered::new(1000);
    for (dress, tags) in raw.dress().every_tag() {
        for from in NOBODYS {
            for port in [8080, 8081] {
                for (what, packet) in knock(from, port) {
                    let what = format!("{what}, {dress}, from {from:?} to {port}");
                    raw.send(&tags.ipv4(&forged.packet(what, packet)))?;
                }
            }
        }
    }
    counted(&scene, "spoofed-source", before, 30)?;
    forged.nowhere(&watch)?;
    let mut honest = Numbered::new(60_000);
    for port in [8080, 8081] {
        for (what, packet) in knock([198, 18, 1, 2], port) {
            let what = format!("{what} to {port}");
            raw.send(&raw.dress().priority(4).ipv4(&honest.packet(what, packet)))?;
        }
    }
    // A client elsewhere, behind no route in particular.
    for (what, packet) in knock([203, 0, 113, 5], 8080) {
        let what = format!("{what} from afar");
        raw.send(&raw.dress().ipv4(&honest.packet(what, packet)))?;
    }
    honest.everywhere(&watch)
}

/// Where a device asks for a way back by itself, or by any device, it is looked up.
#[test]
fn rp_filter_is_applied_once_per_flow() -> Result<()> {
    let scene = Scene::new("rp-filter")?;
    let (host, lan) = (&scene.host, scene.lan());
    let published = ["-p", "8080:80", "-p", "8080:80/udp"];
    let web = scene.run("web", &published, &Peer::serve(80))?;
    let raw = Attacker::new(lan, "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[("web", &web.space()?, "eth0")])?;
    // 10.1/16 is behind another device, 10.2/16 behind none.
    let netns = scene.lab.netns("aside")?;
    host.ip(&format!(
        "link add aside0 type veth peer name eth0 netns {}",
        netns.name()
    ))?;
    host.ip("address add 198.18.200.1/24 dev aside0")?;
    host.ip("link set aside0 up")?;
    netns.ip("link set eth0 up")?;
    host.ip("route add 10.1.0.0/16 dev aside0")?;
    host.ip("route add unreachable 10.2.0.0/16")?;
    let mut number = 1000;
    let mut check = |mode: &str, aside: bool, nowhere: bool| -> Result<()> {
        host.sysctl("net/ipv4/conf/up0/rp_filter", mode)?;
        let settled = || host.json("status").map(drop);
        settled()?;
        std::thread::sleep(std::time::Duration::from_millis(1500));
        for (from, arrives) in [
            ([198, 18, 1, 2], true),
            ([203, 0, 113, 5], true),
            ([10, 1, 0, 1], aside),
            ([10, 2, 0, 1], nowhere),
        ] {
            let mut knocks = Numbered::new(number);
            number += 100;
            let to = end([198, 18, 1, 1], 8080);
            let from = end(from, number);
            let udp = knocks.packet(
                format!("rp_filter={mode}, from {from}"),
                Packet::udp(from, to, b"knock"),
            );
            raw.send(&raw.dress().ipv4(&udp))?;
            if arrives {
                knocks.everywhere(&watch)?;
            } else {
                knocks.nowhere(&watch)?;
            }
        }
        Ok(())
    };
    host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    check("0", true, true)?;
    check("1", false, false)?;
    check("2", true, false)
}

/// Whether it is the first of a datagram's fragments.
fn is_head(packet: &Packet) -> bool {
    let bytes = packet.bytes();
    u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff == 0
}

/// A first fragment that ends within the TCP header names a port that no list is asked for, or one that
/// its frame's padding completes.
#[test]
fn lists_hold_for_tiny_first_fragments() -> Result<()> {
    let scene = Scene::new("inward-tiny")?;
    let host = &scene.host;
    let list = "--label=forwarder.ingress.allow=198.18.1.99";
    let mut victims = Vec::new();
    for (mode, published) in [("routed", "-p=8001:80"), ("nat-unprotected", "-p=8002:80")] {
        let label = format!("--label=forwarder.gateway_mode_ipv4={mode}");
        host.docker(&["network", "create", &label, mode])?;
        let network = format!("--network={mode}");
        let victim = scene.run(mode, &[&network, published, list], &Peer::serve(80))?;
        let address = victim.ip()?;
        scene
            .lan()
            .ip(&format!("route add {address} via 198.18.1.1"))?;
        victims.push((victim.space()?, address));
    }
    let raw = Attacker::new(scene.lan(), "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[
        ("routed", &victims[0].0, "eth0"),
        ("nat-unprotected", &victims[1].0, "eth0"),
    ])?;
    let mut tiny = Numbered::new(1000);
    for (_, address) in &victims {
        let IpAddr::V4(address) = *address else {
            continue;
        };
        let to = SocketAddrV4::new(address, 80);
        for length in [8, 16, 24] {
            for padded in [true, false] {
                let what = format!("cut at {length} to {to}, padded: {padded}");
                let syn = Packet::tcp(end([198, 18, 1, 2], 4000), to, 2);
                let pieces = tiny.packet(what, syn).cut(length);
                for piece in &pieces {
                    let mut frame = raw.dress().ipv4(piece);
                    // What the padding says is the rest of a SYN's header.
                    frame[14 + 20 + 12..][..2].copy_from_slice(&[0x50, 2]);
                    if !padded {
                        frame.truncate(14 + piece.bytes().len());
                    }
                    raw.send(&frame)?;
                }
            }
        }
    }
    // A tail alone is worth nothing: no datagram has its head.
    holds(SETTLED, || {
        let arrived = watch.saw(|frame| {
            let head = frame.packet().is_some_and(|packet| is_head(&packet));
            head && frame
                .number()
                .is_some_and(|number| (1000..1020).contains(&number))
        })?;
        ensure!(arrived.is_empty(), "arrived: {arrived:?}");
        Ok(())
    })
}

/// Sources of ICMP errors that no router has.
const NO_ROUTERS: [[u8; 4]; 8] = [
    [127, 0, 0, 1],
    [172, 17, 0, 1],
    [172, 17, 0, 3],
    [198, 18, 1, 1],
    [224, 0, 0, 1],
    [0, 1, 2, 3],
    [255, 255, 255, 255],
    [240, 0, 0, 1],
];

/// An error about a datagram that the host has sent for a container.
fn complaint(from: [u8; 4]) -> Packet {
    let sent = Packet::udp(end([198, 18, 1, 1], 4000), end([198, 18, 1, 2], 9), b"x");
    Packet::error(from.into(), [198, 18, 1, 1].into(), [3, 1], 0, sent.bytes())
}

/// ICMP errors from addresses that no router outside can have reach no container.
#[test]
fn errors_of_impossible_sources_are_dropped() -> Result<()> {
    let scene = Scene::new("inward-errors")?;
    let host = &scene.host;
    for device in ["all", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let web = scene.run("web", &[], &Peer::idle())?;
    scene.run("sibling", &[], &Peer::idle())?;
    web.peer(&ASKS_LAN).unwrap_err();
    let raw = Attacker::new(scene.lan(), "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[("web", &web.space()?, "eth0")])?;
    let mut forged = Numbered::new(1000);
    for from in NO_ROUTERS {
        let error = forged.packet(format!("from {from:?}"), complaint(from));
        raw.send(&raw.dress().ipv4(&error))?;
    }
    counted(&scene, "icmp-stray", 0, NO_ROUTERS.len() as u64)?;
    forged.nowhere(&watch)?;
    let mut honest = Numbered::new(2000);
    for from in [[198, 18, 1, 2], [203, 0, 113, 5]] {
        let error = honest.packet(format!("from {from:?}"), complaint(from));
        raw.send(&raw.dress().ipv4(&error))?;
    }
    honest.everywhere(&watch)
}

/// Stock Docker forwards an ICMP error from outside that has a sibling's address as source.
#[test]
fn stock_forwards_an_error_as_a_sibling() -> Result<()> {
    let lab = Lab::new("errors-stock")?;
    let host = lab.host(Docker::stock())?;
    for device in ["all", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let web = host.run("web", &[], &Peer::idle())?;
    host.run("sibling", &[], &Peer::idle())?;
    web.peer(&ASKS_LAN).unwrap_err();
    let raw = Attacker::new(lab.lan(), "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[("web", &web.space()?, "eth0")])?;
    let mut forged = Numbered::new(1000);
    let error = forged.packet("a sibling's", complaint([172, 17, 0, 3]));
    raw.send(&raw.dress().ipv4(&error))?;
    forged.everywhere(&watch)
}

/// Stock Docker delivers some of them where rp_filter is off.
#[test]
fn stock_delivers_impossible_sources() -> Result<()> {
    let lab = Lab::new("inward-stock")?;
    let host = lab.host(Docker::stock())?;
    for device in ["all", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let web = host.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    let raw = Attacker::new(lab.lan(), "h1", host.mac("up0")?)?;
    let watch = Watch::new(&[("web", &web.space()?, "eth0")])?;
    let mut forged = Numbered::new(1000);
    let from = end([172, 17, 0, 99], 40_000);
    let udp = Packet::udp(from, end([198, 18, 1, 1], 8080), b"knock");
    raw.send(&raw.dress().ipv4(&forged.packet("a container's", udp)))?;
    forged.everywhere(&watch)
}
