// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices of a host that is busy, changed fifty times: what was for a container reaches it again, and
//! nobody else gets any of it meanwhile.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{
    Capture, Container, Docker, Flood, Lab, Netns, Packet, Peer, Process, Scene, Space, eventually,
    serve,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// What is promised is a second; a machine that does much else, as here by floods, gets more. The container
/// itself asks for its gateway's address once a second while nobody answers.
const CONVERGED: Duration = Duration::from_secs(20);
/// How often each change is made.
const TIMES: usize = 50;
/// What all frames of the floods carry, and nothing else does.
const AIMED: &[u8] = b"aimed at somebody";
/// Rounds of a flood after which something would have shown.
const MORE: u64 = 20;

const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const OUTSIDE: &str = "198.18.1.2:7000";

/// A server that is published and flooded, and floods the LAN; and others who must not notice. Dropped in
/// this order.
struct Site {
    floods: [Flood; 2],
    neighbours: Capture,
    lans: Capture,
    _server: Process,
    web: Container,
    /// A namespace for devices that leave the host.
    elsewhere: Netns,
    scene: Scene,
}

impl Site {
    fn new(label: &str) -> Result<Self> {
        Self::on(Scene::new(label)?)
    }

    fn on(scene: Scene) -> Result<Self> {
        let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
        let web = scene.run("web", &ports, &Peer::serve(80))?;
        let neighbour = scene.run("neighbour", &[], &Peer::idle())?;
        // A bridge floods what it does not know, as with Docker's own rules: that would hide the rest.
        let (_, veth) = near_end(&scene.host, &neighbour)?;
        scene
            .host
            .ip(&format!("link set {veth} type bridge_slave flood off"))?;
        let server = serve(scene.lan(), 7000)?;
        let elsewhere = scene.lab.netns("elsewhere")?;
        // Nothing of the devices' own, only what is for somebody.
        for space in [&*elsewhere, &*scene.host] {
            for which in ["all", "default"] {
                space.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
            }
        }
        let (lan, inside) = (scene.lan(), web.space()?);
        let own: Ipv4Addr = web.ip()?.to_string().parse()?;
        let aimed = |from: (_, u16), to: (_, u16)| {
            let ends = [from, to].map(|end| SocketAddrV4::new(end.0, end.1));
            Packet::udp(ends[0], ends[1], AIMED)
        };
        let inward = aimed((LAN, 40_000), (HOST, 8080));
        let inward = inward.frame(scene.host.mac("up0")?, lan.mac("h1")?);
        let outward = aimed((own, 5555), (LAN, 9));
        let outward = outward.frame(scene.host.mac("docker0")?, inside.mac("eth0")?);
        Ok(Self {
            neighbours: neighbour.space()?.capture("eth0")?,
            lans: lan.capture("h1")?,
            floods: [
                Flood::start(lan, "h1", vec![inward])?,
                Flood::start(&inside, "eth0", vec![outward])?,
            ],
            _server: server,
            web,
            elsewhere,
            scene,
        })
    }

    /// Waits until the published port and the way out work.
    fn works(&self) -> Result<()> {
        let out = self.web.space()?;
        eventually(CONVERGED, || {
            let lan = self.scene.lan();
            lan.peer(&["get", "198.18.1.1:8080", "--timeout=1000"])?;
            out.peer(&["get", OUTSIDE, "--timeout=1000"])
        })
        .map(drop)
    }

    /// Waits until the server gets nothing any more.
    fn is_cut_off(&self) -> Result<()> {
        let inside = self.web.space()?;
        eventually(CONVERGED, || {
            let before = received(&inside, "eth0")?;
            self.floods[0].more(MORE)?;
            let got = received(&inside, "eth0")? - before;
            ensure!(got == 0, "{got} packets");
            Ok(())
        })
    }

    /// Nobody got what was not for him.
    fn nobody_else_noticed(&self) -> Result<()> {
        let strange = self.neighbours.count(|frame| frame.carries(AIMED))?;
        ensure!(strange == 0, "{strange} packets came to the neighbour");
        self.lans.audit(false)
    }
}

/// How many packets a device has received.
fn received(space: &Space, device: &str) -> Result<u64> {
    let text = space.ip(&format!("-j -s link show dev {device}"))?;
    let links: Value = serde_json::from_str(&text)?;
    let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
    packets.with_context(|| format!("no packets in {text}"))
}

/// The index and the name of the host's end of a container's veth.
fn near_end(host: &Space, container: &Container) -> Result<(u32, String)> {
    let text = container.space()?.ip("-o link show dev eth0")?;
    let index = text.split_once("@if").and_then(|(_, rest)| {
        let digits = rest.split(':').next()?;
        digits.parse().ok()
    });
    let index = index.with_context(|| format!("no peer in {text}"))?;
    let links = host.ip("-o link show")?;
    let own = format!("{index}: ");
    let line = links.lines().find(|line| line.starts_with(&own));
    let name = line.and_then(|line| line[own.len()..].split('@').next());
    Ok((index, name.context("no such link")?.to_owned()))
}

/// A veth that is taken off its bridge forwards nothing until it is back.
#[test]
fn detached_veth_forwards_nothing() -> Result<()> {
    let site = Site::new("detached")?;
    let host = &site.scene.host;
    for n in 0..TIMES {
        let (_, veth) = near_end(host, &site.web)?;
        host.ip(&format!("link set {veth} nomaster"))?;
        site.is_cut_off()?;
        // It comes back by another name.
        host.ip(&format!("link set {veth} down"))?;
        host.ip(&format!("link set {veth} name other{n}"))?;
        host.ip(&format!("link set other{n} master docker0 up"))?;
        site.works()?;
    }
    site.nobody_else_noticed()
}

/// A veth that is moved to another network namespace forwards nothing until it is back.
#[test]
fn veth_in_another_namespace_forwards_nothing() -> Result<()> {
    let site = Site::new("abroad")?;
    let (_, veth) = near_end(&site.scene.host, &site.web)?;
    let (host, elsewhere) = (&site.scene.host, &site.elsewhere);
    for _ in 0..TIMES {
        host.ip(&format!("link set {veth} netns {}", elsewhere.name()))?;
        elsewhere.ip(&format!("link set {veth} up"))?;
        site.is_cut_off()?;
        site.floods[1].more(MORE)?;
        elsewhere.ip(&format!("link set {veth} netns {}", host.name()))?;
        host.ip(&format!("link set {veth} master docker0 up"))?;
        site.works()?;
    }
    site.nobody_else_noticed()
}

/// A device that gets the ifindex of a deleted veth gets none of the veth's packets.
#[test]
fn reused_ifindex_gets_none_of_the_veths_packets() -> Result<()> {
    let site = Site::new("index")?;
    let (host, elsewhere) = (&site.scene.host, &site.elsewhere);
    for _ in 0..TIMES {
        let (index, veth) = near_end(host, &site.web)?;
        host.ip(&format!("link del {veth}"))?;
        host.ip(&format!(
            "link add again index {index} type veth peer name far netns {}",
            elsewhere.name()
        ))?;
        elsewhere.ip("link set far up")?;
        host.ip("link set again up")?;
        site.floods[0].more(MORE)?;
        let got = received(elsewhere, "far")?;
        ensure!(got == 0, "{got} packets for the one before");
        host.ip("link del again")?;
        site.web.docker("restart")?;
        site.works()?;
    }
    site.nobody_else_noticed()
}

/// Stations may change their hardware addresses, and flows live on.
#[test]
fn flows_survive_changed_hardware_addresses() -> Result<()> {
    let lab = Lab::new("stations")?;
    let host = lab.host(Docker::replace())?;
    // A container's own may change where its network lets it.
    let config = "[network.bridge]\nany-mac = true\n";
    let agent = host.agent().config(config)?.start()?;
    let site = Site::on(Scene { agent, host, lab })?;
    let (host, lan, inside) = (&site.scene.host, site.scene.lan(), site.web.space()?);
    let mut held = [
        lan.spawn_peer(&["hold", "3", "198.18.1.1:8080"])?,
        inside.spawn_peer(&["hold", "3", OUTSIDE])?,
    ];
    for held in &mut held {
        held.line("open 3", SOON)?;
    }
    let spaces: [(&Space, &str, &Space, &str); 3] = [
        (host, "up0", lan, "h1"),
        (host, "docker0", &inside, "eth0"),
        (&inside, "eth0", host, "docker0"),
    ];
    for n in 0..TIMES {
        for (kind, (space, device, neighbour, towards)) in spaces.into_iter().enumerate() {
            space.ip(&format!(
                "link set {device} address 02:00:00:00:{kind:02x}:{n:02x}"
            ))?;
            // As its announcement would.
            neighbour.ip(&format!("neigh flush dev {towards}"))?;
            site.works()?;
        }
    }
    for held in &mut held {
        held.tell("")?;
        assert_eq!(held.line("alive", SOON)?, "alive 3");
    }
    site.nobody_else_noticed()
}
