// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow table without an agent: it admits, evicts and collects by itself, and spares whom it
//! has to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Packet, Peer, Segment, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// A flow table of the least size, a quarter of it for flows that are not assured.
const FLOWS: u64 = 1024;
const UNASSURED: usize = 256;
/// Somebody in the LAN's subnet whom nobody else is.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 77);
const SYN: u8 = 2;
const RST: u8 = 4;

/// A host with a server published as 8080 (TCP and UDP) and ports where nobody listens as 8081 (TCP)
/// and 8082 (UDP), its agent dead.
fn orphan(lab: &Lab) -> Result<Host> {
    let host = lab.host(Docker::replace())?;
    let ports = [
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
        "-p",
        "8081:81",
        "-p",
        "8082:82/udp",
    ];
    host.run("web", &ports, &Peer::serve(80))?;
    host.agent()
        .arg(format!("--flows={FLOWS}"))
        .start()?
        .kill()?;
    Ok(host)
}

/// Sends packets from the LAN to the host.
fn send(lab: &Lab, host: &Host, packets: impl Iterator<Item = Packet>) -> Result<()> {
    let device = host.lan_device();
    let (to, from) = (host.mac(host.uplink())?, lab.lan().mac(&device)?);
    let frames: Vec<_> = packets.map(|packet| packet.frame(to, from)).collect();
    lab.lan().send_frames(&device, &frames)
}

/// Ports of the stranger's flows of a protocol.
fn strangers(host: &Host, proto: &str) -> Result<Vec<u64>> {
    let all = host.json("flows")?;
    let ours =
        all.as_array().context("no list")?.iter().filter(|flow| {
            flow["proto"] == proto && flow["original"]["src"] == STRANGER.to_string()
        });
    Ok(ours
        .filter_map(|flow| flow["original"]["sport"].as_u64())
        .collect())
}

/// Client ports of open TCP connections, in order.
fn established(host: &Host) -> Result<BTreeSet<u16>> {
    let all = host.json("flows")?;
    let port = |flow: &Value| {
        flow["state"]
            .as_str()
            .filter(|state| *state == "ESTABLISHED")?;
        u16::try_from(flow["original"]["sport"].as_u64()?).ok()
    };
    Ok(all
        .as_array()
        .context("no list")?
        .iter()
        .filter_map(port)
        .collect())
}

fn reason(host: &Host, label: &str) -> Result<u64> {
    Ok(host.json("status")?["reasons"][label].as_u64().unwrap_or(0))
}

fn fill(host: &Host) -> Result<u64> {
    let status = host.json("status")?;
    ensure!(status["agent"] == Value::Null, "an agent runs");
    status["maps"]["FLOWS"]["fill"].as_u64().context("no fill")
}

/// A flood evicts the oldest flows of its own kind and no assured connection.
#[test]
fn flood_evicts_no_assured_connection() -> Result<()> {
    let lab = Lab::new("flood")?;
    let host = orphan(&lab)?;
    let mut held = lab.lan().spawn_peer(&["hold", "50", "198.18.1.1:8080"])?;
    held.line("open 50", SOON)?;
    let connections = established(&host)?;
    assert_eq!(connections.len(), 50);
    let ports = 10_000..16_000_u16;

    // Nobody answers datagrams: an answer that comes after its flow's end would open one outwards,
    // as with nf_conntrack.
    let to = |port| SocketAddrV4::new(host.address(), port);
    let syn = |port| Packet::tcp(SocketAddrV4::new(STRANGER, port), to(8080), SYN);
    let datagram = |port| Packet::udp(SocketAddrV4::new(STRANGER, port), to(8082), b"flood");
    for (proto, packet) in [("tcp", &syn as &dyn Fn(u16) -> Packet), ("udp", &datagram)] {
        let before = reason(&host, "forwarded")?;
        send(&lab, &host, ports.clone().map(packet))?;
        eventually(SOON, || {
            let forwarded = reason(&host, "forwarded")? - before;
            ensure!(
                forwarded >= 6000,
                "{proto}: only {forwarded} of 6000 were admitted"
            );
            Ok(())
        })?;
        // Read in the midst of a flood, the table shows only what stood still.
        let left = eventually(SOON, || {
            let left = strangers(&host, proto)?;
            ensure!(
                left.len() >= UNASSURED - 20,
                "{proto}: only {} flows",
                left.len()
            );
            Ok(left)
        })?;
        assert!(left.len() <= UNASSURED, "{proto}: {} flows", left.len());
        let oldest = left.iter().min().context("none is left")?;
        assert!(
            *oldest >= 16_000 - UNASSURED as u64 - 20,
            "{proto}: {oldest} has outlived its elders"
        );
        // Their records have lived through it: a connection alone could have been picked up anew.
        let alive = established(&host)?;
        assert_eq!(alive, connections, "after the {proto} flood");
        held.tell("")?;
        assert_eq!(
            held.line("alive", SOON)?,
            "alive 50",
            "after the {proto} flood"
        );
        lab.lan().peer(&["udp", "198.18.1.1:8080", "new"])?;
        lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    }
    assert!(fill(&host)? <= FLOWS);
    assert_eq!(reason(&host, "table-full")?, 0);
    Ok(())
}

/// A flow that has expired is not shown, and its record is used again.
#[test]
fn expired_flow_is_hidden_and_its_record_reused() -> Result<()> {
    let lab = Lab::new("expiry")?;
    let host = orphan(&lab)?;
    let at_lan = lab.lan().capture(&host.lan_device())?;
    let mut held = lab.lan().spawn_peer(&["hold", "300", "198.18.1.1:8080"])?;
    held.line("open 300", SOON)?;
    assert!(
        lab.lan().peer(&["get", "198.18.1.1:8081"]).is_err(),
        "refused: a reset flow"
    );
    // Assured connections that are reset: ten seconds, and nothing but the sweep collects them.
    let clients = established(&host)?;
    assert_eq!(clients.len(), 300);
    // A reset has to say what the server acknowledged last.
    let acknowledged: BTreeMap<_, _> = at_lan
        .packets(false)?
        .iter()
        .filter_map(|packet| Some((packet.ends().1.port(), packet.numbers()?.2)))
        .collect();
    let to = SocketAddrV4::new(host.address(), 8080);
    let reset = |port: &u16| {
        let segment = Segment::new(RST, (acknowledged[port], 0), b"");
        Packet::segment(SocketAddrV4::new(host.gateway(), *port), to, &segment)
    };
    send(&lab, &host, clients.iter().map(reset))?;
    let closed = || -> Result<usize> {
        let all = host.json("flows")?;
        let closed = all
            .as_array()
            .context("no list")?
            .iter()
            .filter(|flow| flow["state"] == "CLOSE");
        Ok(closed.count())
    };
    eventually(SOON, || {
        ensure!(closed()? == 301, "{} are closed", closed()?);
        Ok(())
    })?;
    eventually(4 * SOON, || {
        ensure!(closed()? == 0, "{} closed flows are still shown", closed()?);
        Ok(())
    })?;
    assert!(
        fill(&host)? >= 300,
        "nobody collected yet: {}",
        fill(&host)?
    );

    // Every new flow looks at two records.
    let new = |port| Packet::udp(SocketAddrV4::new(STRANGER, port), to, b"new");
    send(&lab, &host, (20_000..20_600).map(new))?;
    eventually(SOON, || {
        let fill = fill(&host)?;
        ensure!(fill <= UNASSURED as u64, "{fill} records are in use");
        Ok(())
    })
}
