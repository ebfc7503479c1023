// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bulk with and without offloads: every byte arrives, every checksum is right.

use anyhow::{Context as _, Result, ensure};
use harness::{Capture, Container, Packet, Peer, Scene, Space, serve};

/// Bytes of a transfer.
const BYTES: &str = "8000000";

/// A scene with a server in a container (8080) and in the LAN (7).
fn scene(label: &str) -> Result<(Scene, Container, harness::Process)> {
    let scene = Scene::new(label)?;
    let server = serve(scene.lan(), 7)?;
    let web = scene.run(
        "web",
        &["-p", "8080:80", "-p", "8080:80/udp"],
        &Peer::serve(80),
    )?;
    Ok((scene, web, server))
}

/// Streams from both sides at once, and datagrams as large as fit.
fn transfer(lan: &Space, inside: &Space) -> Result<()> {
    let mut streams = [
        lan.spawn_peer(&["fetch", "198.18.1.1:8080", BYTES])?,
        inside.spawn_peer(&["fetch", "198.18.1.2:7", BYTES])?,
    ];
    for stream in &mut streams {
        stream.line("done", std::time::Duration::from_secs(20))?;
    }
    // The answer has the client's address before the payload: 1450 bytes fit.
    for size in [1, 2, 1449, 1450] {
        let payload = "x".repeat(size);
        for (from, to) in [(lan, "198.18.1.1:8080"), (inside, "198.18.1.2:7")] {
            let answer = from.peer(&["udp", to, &payload]);
            let answer = answer.with_context(|| format!("{size} bytes to {to}"))?;
            ensure!(answer.ends_with(&format!(" {payload}")), "{answer}");
        }
    }
    Ok(())
}

/// Checks all packets of both directions; some of them large if segmentation is offloaded.
fn check_all(capture: &Capture) -> Result<usize> {
    let mut largest = 0;
    for outgoing in [false, true] {
        for packet in capture.packets(outgoing)? {
            packet.check()?;
            largest = largest.max(packet.bytes().len());
        }
    }
    Ok(largest)
}

/// With all offloads, bulk data arrives byte for byte and in large packets.
#[test]
fn offloaded_bulk_arrives_byte_for_byte() -> Result<()> {
    let (scene, web, _server) = scene("offloads-on")?;
    let at_lan = scene.lan().capture("h1")?;
    transfer(scene.lan(), &web.space()?)?;
    let large = |packet: &Packet| packet.bytes().len() > 10_000;
    for outgoing in [false, true] {
        ensure!(
            at_lan.packets(outgoing)?.iter().any(large),
            "segmentation offload is lost (outgoing: {outgoing})"
        );
    }
    at_lan.audit(false)
}

/// Without offloads, every checksum on every link is right.
#[test]
fn checksums_are_right_without_offloads() -> Result<()> {
    let (scene, web, _server) = scene("offloads-off")?;
    let inside = web.space()?;
    // All senders finish their checksums: what we change, we change in finished ones.
    for (space, device) in [
        (&*scene.host, "up0"),
        (scene.lan(), "h1"),
        (&inside, "eth0"),
    ] {
        space.ethtool(device, "tx off sg off tso off gso off gro off")?;
    }
    let (at_lan, in_container) = (scene.lan().capture("h1")?, inside.capture("eth0")?);
    transfer(scene.lan(), &inside)?;
    ensure!(check_all(&at_lan)? <= 1500 && check_all(&in_container)? <= 1500);
    at_lan.audit(true)
}

/// Checksums that are left to the device are right once they are finished.
#[test]
fn offloaded_checksums_are_finished_right() -> Result<()> {
    let (scene, web, _server) = scene("offloads-mixed")?;
    // The container leaves checksums and segments unfinished, the uplink's device finishes both.
    scene.host.ethtool("up0", "tx off tso off gso off")?;
    let at_lan = scene.lan().capture("h1")?;
    transfer(scene.lan(), &web.space()?)?;
    let mut largest = 0;
    for packet in at_lan.packets(false)? {
        packet.check()?;
        largest = largest.max(packet.bytes().len());
    }
    assert_eq!(largest, 1500);
    at_lan.audit(true)
}

/// A UDP checksum of zero stays none, and one that sums up to zero does not become none.
#[test]
fn zero_udp_checksum_keeps_its_meaning() -> Result<()> {
    let (scene, web, _server) = scene("zero-checksum")?;
    let (inside, lan) = (web.space()?, scene.lan());
    let [bridge, own, up, neighbour] = [
        scene.host.mac("docker0")?,
        inside.mac("eth0")?,
        scene.host.mac("up0")?,
        lan.mac("h1")?,
    ];
    let (at_lan, in_container) = (lan.capture("h1")?, inside.capture("eth0")?);
    let udp_checksum = |packet: &Packet| [packet.transport()[6], packet.transport()[7]];
    let out = ("172.17.0.2:5000".parse()?, "198.18.1.2:9".parse()?);
    let inward = ("198.18.1.2:5000".parse()?, "198.18.1.1:8080".parse()?);

    // Without a checksum.
    let mut frame = Packet::udp(out.0, out.1, b"none").frame(bridge, own);
    frame[40..42].fill(0);
    inside.send_frame("eth0", &frame)?;
    let mut frame = Packet::udp(inward.0, inward.1, b"none").frame(up, neighbour);
    frame[40..42].fill(0);
    lan.send_frame("h1", &frame)?;
    let seen = |capture: &Capture, payload: &[u8]| {
        harness::eventually(crate::SOON, || {
            let packets = capture.packets(false)?;
            let found = packets
                .into_iter()
                .find(|packet| packet.transport().get(8..) == Some(payload));
            found.context("it did not come")
        })
    };
    assert_eq!(udp_checksum(&seen(&at_lan, b"none")?), [0, 0]);
    assert_eq!(udp_checksum(&seen(&in_container, b"none")?), [0, 0]);

    // A payload with which the translated datagram's sum is zero: it has to be written as 0xffff.
    let source = "198.18.1.1:5000".parse()?;
    let payload = udp_checksum(&Packet::udp(source, out.1, &[0, 0]));
    let expected = Packet::udp(source, out.1, &payload);
    assert_eq!(udp_checksum(&expected), [0xff, 0xff]);
    inside.send_frame(
        "eth0",
        &Packet::udp(out.0, out.1, &payload).frame(bridge, own),
    )?;
    let packet = seen(&at_lan, &payload)?;
    assert_eq!(udp_checksum(&packet), [0xff, 0xff]);
    packet.check()
}

/// The host's connection tracking knows nothing of containers' flows.
#[test]
fn conntrack_knows_no_container_flows() -> Result<()> {
    let (scene, web, _server) = scene("conntrack")?;
    // Switched on by a rule that needs it, as any firewall of the host's would.
    scene.host.cmd(&[
        "iptables",
        "-A",
        "INPUT",
        "-m",
        "conntrack",
        "--ctstate",
        "INVALID",
        "-j",
        "DROP",
    ])?;
    transfer(scene.lan(), &web.space()?)?;
    scene.lan().peer(&["ping", "198.18.1.1"])?;
    let listed = scene.host.cmd(&["conntrack", "-L"])?;
    ensure!(
        listed.contains("icmp"),
        "tracking is off: nothing is proved"
    );
    for foreign in ["172.17.", "dport=7 ", "dport=8080 "] {
        ensure!(!listed.contains(foreign), "tracked: {listed}");
    }
    Ok(())
}
