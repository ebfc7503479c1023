// SPDX-License-Identifier: MIT OR Apache-2.0
//! XDP on the uplink: known flows are redirected before there is a socket buffer, everything else
//! passes to tcx and works as without.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{
    Agent, Capture, Container, Docker, Host, Lab, Packet, Peer, Space, eventually, veth,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// The client whose flow is known.
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 2), 40_000);

/// A host with a server published as 8080 on a network with small packets, and a LAN that sends
/// finished checksums, as a device delivers them.
struct Site {
    lab: Lab,
    host: Host,
    web: Container,
}

impl Site {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::replace())?;
        lab.lan().ethtool(&host.lan_device(), "tx off")?;
        host.docker(&[
            "network",
            "create",
            "-o",
            "com.docker.network.driver.mtu=1400",
            "small",
        ])?;
        let options = ["--network=small", "-p", "8080:80", "-p", "8080:80/udp"];
        let web = host.run("web", &options, &Peer::serve(80))?;
        Ok(Self { lab, host, web })
    }

    /// One datagram of the known client's and its answer.
    fn datagram(&self, payload: &str) -> Result<String> {
        let from = format!("--bind={CLIENT}");
        self.lab
            .lan()
            .peer(&["udp", "198.18.1.1:8080", payload, &from])
    }

    /// A datagram to the published port.
    fn packet(&self, from: SocketAddrV4, payload: &[u8]) -> Packet {
        Packet::udp(from, SocketAddrV4::new(self.host.address(), 8080), payload)
    }

    fn frame(&self, packet: &Packet) -> Result<Vec<u8>> {
        Ok(packet.frame(self.host.mac("up0")?, self.lab.lan().mac("h1")?))
    }
}

/// How many packets to port 8080 the host's stack has seen on its uplink: none that XDP redirected.
fn seen(uplink: &Capture, filter: &str) -> Result<usize> {
    Ok(uplink.lines(&format!("dst port 8080 and {filter}"))?.len())
}

fn uplink(host: &Host) -> Result<(String, String)> {
    let status = host.json("status")?;
    let text = |key: &str| {
        let value = status["uplinks"][0][key].as_str();
        value
            .map(str::to_owned)
            .with_context(|| format!("{status}"))
    };
    Ok((text("xdp")?, text("why")?))
}

fn gro(space: &Space) -> Result<String> {
    let all = space.cmd(&["ethtool", "-k", "eth0"])?;
    let line = all
        .lines()
        .find(|line| line.starts_with("generic-receive-offload"));
    Ok(line.context("no GRO")?.to_owned())
}

fn with(host: &Host, arguments: &[&str]) -> Result<Agent> {
    let builder = arguments
        .iter()
        .fold(host.agent(), |builder, argument| builder.arg(*argument));
    builder.start()
}

/// Datagrams of known flows never reach the host's stack.
#[test]
fn known_datagrams_never_reach_the_host_stack() -> Result<()> {
    let site = Site::new("xdp-udp")?;
    let _agent = with(&site.host, &["--xdp=native"])?;
    assert_eq!(
        uplink(&site.host)?,
        ("native".to_owned(), "native by configuration".to_owned())
    );
    let stack = site.host.capture("up0")?;
    assert_eq!(site.datagram("first")?, "198.18.1.2:40000 first");
    assert_eq!(
        seen(&stack, "udp")?,
        1,
        "the first packet makes the flow in tcx"
    );

    let container = site.web.space()?.capture("eth0")?;
    for n in 0..20 {
        assert_eq!(
            site.datagram(&format!("n{n}"))?,
            format!("198.18.1.2:40000 n{n}")
        );
    }
    assert_eq!(seen(&stack, "udp")?, 1, "all others are redirected before");
    let arrived = container.lines("udp and dst port 80 and src host 198.18.1.2")?;
    assert_eq!(arrived.len(), 20);
    let hops = arrived
        .iter()
        .filter(|line| line.contains("ttl 63"))
        .count();
    assert_eq!(hops, 20, "one hop each: {arrived:?}");

    // TCP is left to tcx unless it is asked for.
    site.lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    assert!(seen(&stack, "tcp")? >= 4, "{}", seen(&stack, "tcp")?);
    Ok(())
}

/// TCP segments of known flows are redirected by XDP if it is asked for.
#[test]
fn known_tcp_flows_are_redirected_if_configured() -> Result<()> {
    let site = Site::new("xdp-tcp")?;
    let _agent = with(&site.host, &["--xdp=native", "--xdp-tcp"])?;
    let stack = site.host.capture("up0")?;
    let mut download = site
        .lab
        .lan()
        .spawn_peer(&["fetch", "198.18.1.1:8080", "3000000"])?;
    assert_eq!(download.line("done", SOON)?, "done 3000000");
    let mut held = site
        .lab
        .lan()
        .spawn_peer(&["hold", "5", "198.18.1.1:8080"])?;
    held.line("open 5", SOON)?;
    held.tell("")?;
    assert_eq!(held.line("alive", SOON)?, "alive 5");
    let (all, syns) = (
        seen(&stack, "tcp")?,
        seen(&stack, "tcp[tcpflags] & tcp-syn != 0")?,
    );
    assert_eq!(
        (all, syns),
        (6, 6),
        "only what opens a connection is seen; {}; {}",
        site.host.json("status")?,
        site.host.json("endpoints")?
    );
    Ok(())
}

/// A packet that XDP does not handle (options, fragments, last hop, unknown flow) passes to tcx and
/// works.
#[test]
fn special_packets_pass_xdp_and_work() -> Result<()> {
    let site = Site::new("xdp-pass")?;
    let _agent = with(&site.host, &["--xdp=native"])?;
    site.datagram("make the flow")?;
    let stack = site.host.capture("up0")?;
    let inside = site.web.space()?.capture("eth0")?;
    let known = |payload: &[u8]| site.packet(CLIENT, payload);
    let unknown = site.packet(SocketAddrV4::new(*CLIENT.ip(), 40_001), b"unknown");
    let cases: [(&str, Packet, bool); 6] = [
        ("plain", known(b"plain"), true),
        ("options", known(b"options").options(&[1, 1, 1, 0]), true),
        ("unknown", unknown, true),
        ("over the MTU of the container", known(&[b'l'; 1420]), true),
        ("TTL 1", known(b"hop").ttl(1), false),
        ("fragment", known(b"fragment").fragment(0x2000), false),
    ];
    for (what, packet, arrives) in cases {
        let before = (
            seen(&stack, "udp")?,
            inside.lines("dst net 172.16.0.0/12 and udp")?.len(),
        );
        site.lab.lan().send_frame("h1", &site.frame(&packet)?)?;
        let passed = usize::from(what != "plain");
        let after = || -> Result<_> {
            Ok((
                seen(&stack, "udp")?,
                inside.lines("dst net 172.16.0.0/12 and udp")?.len(),
            ))
        };
        let after = eventually(SOON, || {
            let after = after()?;
            ensure!(
                after.0 == before.0 + passed,
                "{what}: the stack has seen {} more",
                after.0 - before.0
            );
            ensure!(
                (after.1 > before.1) == arrives,
                "{what}: {} more arrived",
                after.1 - before.1
            );
            Ok(after)
        })?;
        // Over the MTU: in pieces, made by the kernel.
        assert!(after.1 - before.1 <= 2, "{what}");
    }
    // Broken, foreign, or for the host itself.
    let mut foreign = site.frame(&known(b"another station's"))?;
    foreign[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let host_port = SocketAddrV4::new(site.host.address(), 9);
    let host_port = Packet::udp(CLIENT, host_port, b"the host's");
    let arrived = inside.lines("udp")?.len();
    let before = stack.frames()?.len();
    for frame in [
        foreign,
        site.frame(&host_port)?,
        site.frame(&known(b"cut"))?[..30].to_vec(),
    ] {
        site.lab.lan().send_frame("h1", &frame)?;
    }
    eventually(SOON, || {
        let incoming = stack
            .frames()?
            .iter()
            .skip(before)
            .filter(|frame| !frame.outgoing)
            .count();
        ensure!(incoming >= 3, "{incoming} passed");
        Ok(())
    })?;
    assert_eq!(inside.lines("udp")?.len(), arrived);
    site.datagram("still there").map(drop)
}

/// Veth peers take XDP frames while XDP runs and are put back by cleanup.
#[test]
fn veth_peers_accept_xdp_frames_until_cleanup() -> Result<()> {
    let site = Site::new("xdp-gro")?;
    let space = site.web.space()?;
    let off = "generic-receive-offload: off";
    let on = "generic-receive-offload: on";
    space.ethtool("eth0", "gro off")?;
    let late = |agent: &mut Agent| -> Result<()> {
        let late = site.host.run("late", &["--network=small"], &Peer::idle())?;
        let space = late.space()?;
        eventually(SOON, || {
            ensure!(gro(&space)? == on, "a container of later: {}", gro(&space)?);
            Ok(())
        })?;
        agent.kill()
    };
    let mut agent = with(&site.host, &["--xdp=native"])?;
    assert_eq!(gro(&space)?, on);
    late(&mut agent)?;
    // The next one must not take what its predecessor did for what was there.
    with(&site.host, &["--xdp=native"])?.kill()?;
    site.host.cli(&["cleanup"])?;
    assert_eq!(gro(&space)?, off);

    // What was on stays on, and without XDP nothing is touched.
    space.ethtool("eth0", "gro on")?;
    with(&site.host, &["--xdp=native"])?.kill()?;
    site.host.cli(&["cleanup"])?;
    assert_eq!(gro(&space)?, on);
    space.ethtool("eth0", "gro off")?;
    let _agent = with(&site.host, &["--xdp=off"])?;
    assert_eq!(gro(&space)?, off);
    Ok(())
}

#[test]
fn auto_skips_a_veth_and_generic_works() -> Result<()> {
    let site = Site::new("modes")?;
    let mut agent = with(&site.host, &["--xdp=auto"])?;
    let (xdp, why) = uplink(&site.host)?;
    assert_eq!(xdp, "off");
    assert!(why.contains("veth"), "{why}");
    site.datagram("by tcx")?;
    agent.stop()?;

    let mut agent = with(&site.host, &["--xdp=generic"])?;
    assert_eq!(uplink(&site.host)?.0, "generic");
    site.datagram("by generic XDP")?;
    site.lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    let hooks = site.host.json("status")?["hooks"]["up0"].to_string();
    assert!(hooks.contains("uplink"), "{hooks}");
    let link = site.host.ip("link show dev up0")?;
    assert!(link.contains("xdpgeneric"), "{link}");
    agent.stop()?;

    // Another mode means another attachment; off means none.
    let mut agent = with(&site.host, &["--xdp=native"])?;
    assert_eq!(uplink(&site.host)?.0, "native");
    let link = site.host.ip("link show dev up0")?;
    assert!(
        link.contains(" xdp ") && !link.contains("xdpgeneric"),
        "{link}"
    );
    site.datagram("by native XDP")?;
    agent.stop()?;
    let _agent = with(&site.host, &["--xdp=off"])?;
    let link = site.host.ip("link show dev up0")?;
    assert!(!link.contains("xdp"), "{link}");
    site.datagram("by tcx again").map(drop)
}

/// A driver that refuses XDP is reported, and traffic goes by tcx.
#[test]
fn refusing_driver_is_reported_and_uses_tcx() -> Result<()> {
    let site = Site::new("xdp-refused")?;
    // A bridge of somebody's as the way out: its driver has no XDP.
    let (host, lan) = (&site.host, site.lab.lan());
    host.ip("link add wan0 type bridge")?;
    veth(
        (host, "port0", "198.18.102.9/32"),
        (lan, "wan", "198.18.101.2/24"),
    )?;
    host.ip("link set port0 master wan0")?;
    host.ip("address add 198.18.101.1/24 dev wan0")?;
    host.ip("link set wan0 up")?;
    host.ip("route replace default via 198.18.101.2 dev wan0")?;
    let agent = with(host, &["--xdp=native"])?;
    let (xdp, why) = uplink(host)?;
    assert_eq!(xdp, "off");
    assert!(why.contains("driver refuses"), "{why}");
    for n in 0..3 {
        lan.peer(&[
            "udp",
            "198.18.101.1:8080",
            &format!("n{n}"),
            "--bind=198.18.101.2:40000",
        ])?;
    }
    lan.peer(&["get", "198.18.101.1:8080"])?;
    let hooks = &host.json("status")?["hooks"]["wan0"];
    let hooks = hooks.as_array().map(Vec::as_slice).unwrap_or_default();
    assert!(
        hooks.len() == 2 && !hooks.contains(&Value::from("uplink")),
        "{hooks:?}"
    );
    assert_eq!(
        agent.log().matches("refuses XDP").count(),
        1,
        "said once: {}",
        agent.log()
    );
    Ok(())
}
