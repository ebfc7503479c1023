// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers that lie about who they are.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Packet, Peer, Scene, eventually, holds};

use crate::SOON;

fn end(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

/// A packet with somebody else's source address is dropped.
#[test]
fn packet_with_a_foreign_source_is_dropped() -> Result<()> {
    let scene = Scene::new("spoofed")?;
    let liar = scene.run("liar", &[], &Peer::idle())?;
    let honest = scene.run("honest", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    // The honest one has a flow, which the liar must not speak in.
    honest
        .peer(&[
            "udp",
            "198.18.1.2:9",
            "x",
            "--bind",
            "0.0.0.0:40000",
            "--timeout",
            "50",
        ])
        .unwrap_err();
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    let in_honest = honest.space()?.capture("eth0")?;
    let (space, bridge) = (liar.space()?, scene.host.mac("docker0")?);
    let own = space.mac("eth0")?;
    let lan = end([198, 18, 1, 2], 9);
    let send = |from, to, reason: &str| {
        let before = scene.count(reason)?;
        for packet in [
            Packet::udp(from, to, b"lie"),
            Packet::tcp(from, to, 2),
            Packet::icmp(*from.ip(), *to.ip(), [8, 0], &[0; 12]),
        ] {
            space.send_frame("eth0", &packet.frame(bridge, own))?;
        }
        eventually(SOON, || {
            let now = scene.count(reason)?;
            ensure!(
                now >= before + 3,
                "{reason}: {before}, then {now}, for {from}"
            );
            Ok(())
        })
    };
    // A sibling's (in its flow and beside it), the bridge's own, a free one, foreign ones, the
    // host's.
    send(end([172, 17, 0, 3], 40_000), lan, "spoofed-source")?;
    send(end([172, 17, 0, 3], 50_000), lan, "spoofed-source")?;
    send(end([172, 17, 0, 1], 50_000), lan, "spoofed-source")?;
    send(end([172, 17, 0, 77], 50_000), lan, "spoofed-source")?;
    send(end([198, 18, 1, 2], 50_000), lan, "foreign-source")?;
    send(end([10, 0, 0, 1], 50_000), lan, "foreign-source")?;
    send(end([198, 18, 1, 1], 50_000), lan, "spoofed-source")?;
    send(end([0, 0, 0, 0], 50_000), lan, "foreign-source")?;
    send(end([127, 0, 0, 1], 50_000), lan, "loopback")?;
    send(
        end([172, 17, 0, 2], 50_000),
        end([127, 0, 0, 1], 9),
        "loopback",
    )?;
    // Towards a published port and the host itself as well.
    send(
        end([172, 17, 0, 3], 50_000),
        end([198, 18, 1, 1], 8080),
        "spoofed-source",
    )?;
    send(
        end([10, 0, 0, 1], 50_000),
        end([198, 18, 1, 1], 8080),
        "foreign-source",
    )?;
    send(
        end([10, 0, 0, 1], 50_000),
        end([172, 17, 0, 1], 9),
        "foreign-source",
    )?;
    holds(Duration::from_millis(100), || {
        ensure!(at_lan.packets(false)?.is_empty(), "something left");
        ensure!(
            in_honest.packets(false)?.is_empty(),
            "something came to the sibling"
        );
        Ok(())
    })
}

/// The loopback network is not reached through a device.
#[test]
fn loopback_network_is_not_reached_from_outside() -> Result<()> {
    let scene = Scene::new("martian")?;
    let inside = scene.run("inside", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    let (host, lan) = (&scene.host, scene.lan());
    // Even where the kernel would let it: docker-proxy's setting.
    for device in ["all", "docker0", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/route_localnet"), "1")?;
    }
    let at_loopback = host.capture("lo")?;
    let _server = harness::serve(host, 7)?;
    let space = inside.space()?;
    let to = end([127, 0, 0, 1], 7);
    let packet = Packet::udp(end([172, 17, 0, 2], 5000), to, b"hello");
    space.send_frame(
        "eth0",
        &packet.frame(host.mac("docker0")?, space.mac("eth0")?),
    )?;
    let in_container = space.capture("eth0")?;
    let packet = Packet::udp(
        end([127, 0, 0, 1], 5000),
        end([198, 18, 1, 1], 8080),
        b"hello",
    );
    lan.send_frame("h1", &packet.frame(host.mac("up0")?, lan.mac("h1")?))?;
    eventually(SOON, || {
        ensure!(scene.count("loopback")? >= 1, "not dropped as loopback");
        Ok(())
    })?;
    holds(Duration::from_millis(100), || {
        ensure!(
            at_loopback.packets(false)?.is_empty(),
            "the host answers itself"
        );
        ensure!(
            in_container.packets(false)?.is_empty(),
            "127.0.0.1 came to a container"
        );
        Ok(())
    })
}
