// SPDX-License-Identifier: MIT OR Apache-2.0
//! The matrix' columns: why a packet is handed on.

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use forwarder_common::abi::{Device, Endpoint, LAYOUT, capacity, device, name};
use forwarder_common::family::V4;
use harness::{Packet, eventually, holds};

use crate::SOON;
use crate::rows::{
    ALL, Hairpin, HairpinReply, Outgoing, OutgoingReply, Published, PublishedReply, Stage,
};

/// Bytes of a payload that fits everywhere, and of one that fills 1500 bytes.
const SMALL: usize = 10;
const LARGE: usize = 1472;

const TIME_EXCEEDED: [u8; 2] = [11, 0];
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];

fn plain(packet: Packet) -> Packet {
    packet
}

/// Without a cause for the kernel path, packets of all directions are forwarded on the fast path.
#[test]
fn fast_path_forwards_all_directions() -> Result<()> {
    let stage = Stage::new("plain", None)?;
    let count = |reason| stage.scene.count(reason);
    stage.carries(&ALL, SMALL, plain)?;
    ensure!(count("completed")? == 0);
    stage.carries(&ALL, LARGE, Packet::dont_fragment)?;
    ensure!(count("forwarded")? >= 12);
    // The server's own answers are longer, and come in pieces.
    eventually(SOON, || {
        let (pieces, completed) = (count("reassembled")?, count("completed")?);
        ensure!(pieces == completed, "{completed}, and {pieces} pieces");
        Ok(())
    })?;
    Ok(())
}

/// At the hop limit the host answers and quotes what was sent.
#[test]
fn hop_limit_error_quotes_what_was_sent() -> Result<()> {
    let stage = Stage::new("hop-limit", None)?;
    stage.carries(&ALL, SMALL, plain)?;
    for ttl in [1, 0] {
        for row in ALL {
            stage.refuses(row, &stage.sent(row, SMALL).ttl(ttl), TIME_EXCEEDED)?;
        }
    }
    ensure!(stage.scene.count("hop-limit")? >= 12);
    // A first packet as well.
    let stage = Stage::new("hop-limit-first", None)?;
    for row in [Published, Outgoing] {
        stage.refuses(row, &stage.sent(row, SMALL).ttl(1), TIME_EXCEEDED)?;
    }
    Ok(())
}

/// At the hop limit a neighbour reads what it sent, though it got another port because its own was
/// taken.
#[test]
fn hop_limit_error_restores_a_drawn_port() -> Result<()> {
    let stage = Stage::new("hop-limit-drawn", None)?;
    // To itself, from the port that the client is going to have.
    let ((client, published), (server, _)) = (stage.asked(Hairpin), stage.asked(HairpinReply));
    let first = SocketAddrV4::new(*server.ip(), client.port());
    stage.send(HairpinReply, &Packet::udp(first, published, b"first"))?;
    let seen = |payload: &[u8]| {
        eventually(SOON, || {
            let came = stage.came(Hairpin, false)?.into_iter();
            let mut came = came.filter(|packet| packet.transport()[8..] == *payload);
            let last = came.next_back().context("not there")?;
            Ok(u16::from_be_bytes([
                last.transport()[0],
                last.transport()[1],
            ]))
        })
    };
    ensure!(seen(b"first")? == client.port());
    let sent = Packet::udp(client, published, b"second");
    stage.send(Hairpin, &sent)?;
    ensure!(
        seen(b"second")? != client.port(),
        "there was nothing to draw"
    );
    stage.refuses(Hairpin, &sent.ttl(1), TIME_EXCEEDED)?;
    Ok(())
}

/// Over the route's MTU a datagram is fragmented or refused on its way out.
#[test]
fn outbound_datagram_over_route_mtu() -> Result<()> {
    let stage = Stage::new("mtu-out", None)?;
    let host = &stage.scene.host;
    // The kernel tells BPF of a locked one only.
    for mtu in ["mtu 1400", "mtu lock 1400"] {
        let handed = stage.scene.count("too-big")?;
        host.ip(&format!(
            "route replace 198.18.1.0/24 dev up0 src 198.18.1.1 {mtu}"
        ))?;
        eventually(SOON, || {
            stage.carries(&[Published], SMALL, plain)?;
            stage.carries(&[Outgoing], LARGE, plain)?;
            ensure!(stage.scene.count("too-big")? > handed, "not handed on");
            Ok(())
        })?;
        stage.carries(&ALL, LARGE, plain)?;
        for row in [PublishedReply, Outgoing] {
            let sent = stage.sent(row, LARGE).dont_fragment();
            let error = stage.refuses(row, &sent, FRAGMENTATION_NEEDED)?;
            assert_eq!(error.transport()[6..8], 1400_u16.to_be_bytes());
        }
        // What fits goes fast, up to the last byte.
        let before = stage.scene.count("too-big")?;
        stage.carries(&ALL, 1372, Packet::dont_fragment)?;
        assert_eq!(stage.scene.count("too-big")?, before);
        host.ip("route replace 198.18.1.0/24 dev up0 src 198.18.1.1")?;
        eventually(SOON, || {
            let before = stage.scene.count("too-big")?;
            stage.carries(&[Outgoing], LARGE, plain)?;
            ensure!(stage.scene.count("too-big")? == before, "handed on");
            Ok(())
        })?;
    }
    Ok(())
}

/// Over the container's MTU a datagram is fragmented or refused on its way in.
#[test]
fn inbound_datagram_over_container_mtu() -> Result<()> {
    let options = ["-o", "com.docker.network.driver.mtu=1300"];
    let stage = Stage::new("mtu-in", Some(&options))?;
    stage.carries(&ALL, SMALL, plain)?;
    // The client's network has 1500.
    let inward = [Published, Hairpin];
    stage.carries(&inward, LARGE, plain)?;
    ensure!(stage.scene.count("too-big")? >= 2);
    let sent = stage.sent(Published, LARGE).dont_fragment();
    let error = stage.refuses(Published, &sent, FRAGMENTATION_NEEDED)?;
    assert_eq!(error.transport()[6..8], 1300_u16.to_be_bytes());
    stage.refuses(
        Hairpin,
        &stage.sent(Hairpin, LARGE).dont_fragment(),
        FRAGMENTATION_NEEDED,
    )?;
    let before = stage.scene.count("too-big")?;
    stage.carries(&ALL, 1272, Packet::dont_fragment)?;
    assert_eq!(stage.scene.count("too-big")?, before);
    Ok(())
}

/// With IP options, packets of all directions come through and keep the options.
#[test]
fn ip_options_are_kept_in_all_directions() -> Result<()> {
    let stage = Stage::new("options", None)?;
    // No operation, four times; and a first packet with them makes its flow as any other.
    stage.carries(&ALL, SMALL, |packet| packet.options(&[1, 1, 1, 0]))?;
    ensure!(stage.scene.count("options")? >= 6);
    stage.carries(&ALL, SMALL, |packet| packet.options(&[1; 40]))
}

/// With IP options and over the MTU at once, every fragment is translated.
#[test]
fn fragments_with_options_are_all_translated() -> Result<()> {
    let stage = Stage::new("options-mtu", None)?;
    stage.scene.host.ip("link set up0 mtu 1300")?;
    eventually(SOON, || {
        stage.carries(&[Published, PublishedReply, Outgoing], 1200, plain)?;
        let before = stage.scene.count("too-big")?;
        stage.carries(&[Outgoing], 1400, plain)?;
        ensure!(stage.scene.count("too-big")? > before, "not handed on");
        Ok(())
    })?;
    stage.carries(&[PublishedReply, Outgoing], 1400, |packet| {
        packet.options(&[1; 8])
    })
}

/// Without a neighbour entry yet, the first packet waits for it.
#[test]
fn first_packet_waits_for_the_neighbour() -> Result<()> {
    let stage = Stage::new("neighbour", None)?;
    for _ in 0..2 {
        for row in [Outgoing, Published, PublishedReply] {
            for device in ["up0", "docker0"] {
                stage.scene.host.ip(&format!("neigh flush dev {device}"))?;
            }
            stage.carries(&[row], SMALL, plain)?;
        }
    }
    Ok(())
}

/// A pinned map.
fn pinned(stage: &Stage, name: &str) -> Result<MapData> {
    let maps = stage.scene.host.bpffs_dir().join(format!("v{LAYOUT}/maps"));
    Ok(MapData::from_pin(maps.join(name))?)
}

/// Has the programs take veths for such whose containers are not known yet.
fn forget_names(stage: &Stage, veths: &[u32]) -> Result<()> {
    let map = Map::HashMap(pinned(stage, name::DEVICES)?);
    let mut devices: HashMap<_, u32, [u8; size_of::<Device>()]> = map.try_into()?;
    let kind = std::mem::offset_of!(Device, kind);
    for veth in veths {
        let mut bytes = devices.get(veth, 0)?;
        bytes[kind..kind + 4].copy_from_slice(&device::VETH.to_ne_bytes());
        devices.insert(veth, bytes, 0)?;
    }
    Ok(())
}

/// A target without a hook is reached through the bridge.
#[test]
fn target_without_hook_is_reached_by_the_bridge() -> Result<()> {
    let mut stage = Stage::new("not-hooked", None)?;
    stage.carries(&ALL, SMALL, plain)?;
    // As the agent leaves it for a container whose veth it does not know yet.
    stage.scene.agent.kill()?;
    let map = Map::Array(pinned(&stage, name::ENDPOINTS)?);
    let mut table: Array<_, [u8; size_of::<Endpoint<V4>>()]> = map.try_into()?;
    let veth = std::mem::offset_of!(Endpoint<V4>, ifindex);
    let mut veths = Vec::new();
    for slot in 0..capacity::ENDPOINTS {
        let mut bytes = table.get(&slot, 0)?;
        let index = u32::from_ne_bytes(bytes[veth..veth + 4].try_into()?);
        if index != 0 {
            veths.push(index);
            bytes[veth..veth + 4].fill(0);
            table.set(slot, bytes, 0)?;
        }
    }
    assert_eq!(veths.len(), 2);
    forget_names(&stage, &veths)?;
    let before = stage.scene.count("not-hooked")?;
    stage.carries(&ALL, SMALL, plain)?;
    ensure!(stage.scene.count("not-hooked")? >= before + 4);
    // And without our programs on its veth: the bridge's are enough.
    let links = fs::read_dir(stage.scene.host.bpffs_dir())?
        .next()
        .context("no pins")??;
    for link in fs::read_dir(links.path().join("links"))? {
        let link = link?;
        let name = link.file_name().to_string_lossy().into_owned();
        if veths
            .iter()
            .any(|index| name.starts_with(&format!("{index}-")))
        {
            fs::remove_file(link.path())?;
        }
    }
    stage.carries(&ALL, SMALL, plain)?;
    stage.carries(&ALL, LARGE, Packet::dont_fragment)
}

/// A container that is started while the agent is away is masqueraded, and nothing leaks.
#[test]
fn container_started_without_agent_never_leaks() -> Result<()> {
    let mut scene = harness::Scene::new("floor")?;
    let _server = harness::serve(scene.lan(), 7)?;
    let web = scene.run("web", &["-p", "8080:80"], &harness::Peer::serve(80))?;
    scene.agent.kill()?;
    let at_lan = scene.lan().capture("h1")?;
    let late = scene.host.run("late", &[], &harness::Peer::idle())?;
    assert!(
        late.peer(&["get", "198.18.1.2:7"])?
            .starts_with("198.18.1.1:")
    );
    late.peer(&["ping", "198.18.1.2"])?;
    late.peer(&["fetch", "198.18.1.2:7", "1000000"])?;
    assert!(
        late.peer(&["get", "198.18.1.1:8080"])?
            .starts_with("172.17.0.1:")
    );
    late.peer(&["get", &format!("{}:80", web.ip()?)])?;
    // Of a network that nobody programmed, nothing gets out.
    scene.host.docker(&["network", "create", "new"])?;
    let lost = scene
        .host
        .run("lost", &["--network", "new"], &harness::Peer::idle())?;
    ensure!(
        lost.peer(&["get", "198.18.1.2:7", "--timeout", "500"])
            .is_err()
    );
    ensure!(scene.count("unknown-network")? > 0);
    at_lan.audit(false)
}

/// A target that has gone gets nothing, and nobody else gets its packets.
#[test]
fn packets_to_a_removed_target_reach_nobody() -> Result<()> {
    let mut stage = Stage::new("gone", None)?;
    stage.carries(&ALL, SMALL, plain)?;
    // Nobody tells the tables.
    stage.scene.agent.kill()?;
    stage.web.docker("kill")?;
    let bridge = stage.scene.host.capture("docker0")?;
    let before = (
        stage.came(Outgoing, true)?.len(),
        stage.scene.count("target-gone")?,
    );
    for row in [Published, Hairpin] {
        for with in [
            plain as fn(Packet) -> Packet,
            |packet| packet.options(&[1; 4]),
            |packet| packet.ttl(1),
        ] {
            stage.send(row, &with(stage.sent(row, SMALL)))?;
        }
    }
    eventually(SOON, || {
        ensure!(
            stage.scene.count("target-gone")? >= before.1 + 4,
            "not counted"
        );
        Ok(())
    })?;
    holds(Duration::from_millis(100), || {
        ensure!(
            stage.came(Outgoing, true)?.len() == before.0,
            "the client got something"
        );
        ensure!(
            bridge.packets(true)?.is_empty(),
            "the bridge got something to flood"
        );
        Ok(())
    })?;
    // The other container goes on.
    stage.carries(&[Outgoing, OutgoingReply], SMALL, plain)
}
