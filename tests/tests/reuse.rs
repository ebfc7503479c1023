// SPDX-License-Identifier: MIT OR Apache-2.0
//! An address, a port, a name that passes from one container to the next: no packet of an old flow
//! reaches the new one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{Docker, Flood, Host, Lab, Packet, Peer, eventually, holds};

const SOON: Duration = Duration::from_secs(5);
/// What is promised is a second; a machine that others use as well gets more.
const CONVERGED: Duration = Duration::from_secs(10);
/// Rounds of the flood after which something would have shown.
const MORE: u64 = 300;
const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// The network whose first address is passed on.
const ADDRESS: [&str; 2] = ["--network=fixed", "--ip=172.30.0.10"];

fn host(lab: &Lab) -> Result<Host> {
    let host = lab.host(Docker::replace())?;
    host.docker(&["network", "create", "--subnet=172.30.0.0/16", "fixed"])?;
    Ok(host)
}

fn frames_to(lab: &Lab, host: &Host, flows: &[(u16, u16)]) -> Result<Vec<Vec<u8>>> {
    let macs = (host.mac("up0")?, lab.lan().mac("h1")?);
    let frame = |&(from, to): &(u16, u16)| datagram(from, to, b"old").frame(macs.0, macs.1);
    Ok(flows.iter().map(frame).collect())
}

/// From a port of the LAN's client to one of the host.
fn datagram(from: u16, to: u16, payload: &[u8]) -> Packet {
    Packet::udp(
        SocketAddrV4::new(LAN, from),
        SocketAddrV4::new(HOST, to),
        payload,
    )
}

/// What reached a server by UDP from the LAN.
fn heard(host: &Host, name: &str) -> Result<usize> {
    let logs = host.container(name).logs()?;
    Ok(logs
        .lines()
        .filter(|line| line.starts_with("udp 198.18.1.2:"))
        .count())
}

/// A new container with the same address gets nothing of the old one's flows.
#[test]
fn reused_address_gets_no_old_flows() -> Result<()> {
    let lab = Lab::new("same-address")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let old = host.run("old", &options, &Peer::serve(80))?;
    // Flows inwards to the published port, and outwards from a port that the next one serves too.
    eventually(CONVERGED, || {
        lab.lan().peer(&[
            "udp",
            "198.18.1.1:9000",
            "x",
            "--bind=198.18.1.2:40000",
            "--timeout=500",
        ])
    })?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7777"])?;
    outside.line("serving", SOON)?;
    let space = old.space()?;
    assert_eq!(
        space.peer(&["udp", "198.18.1.2:7777", "x", "--bind=172.30.0.10:5555"])?,
        "198.18.1.1:5555 x"
    );
    let frames = frames_to(&lab, &host, &[(40_000, 9000), (7777, 5555)])?;
    let flood = Flood::start(lab.lan(), "h1", frames)?;
    eventually(SOON, || {
        ensure!(heard(&host, "old")? > 50, "the old one hears nothing");
        Ok(())
    })?;
    let counter = space.capture("eth0")?;
    flood.more(MORE)?;
    let replies = counter
        .lines("udp and src port 7777 and dst port 5555")?
        .len();
    assert!(replies > 50, "replies reach the old one: {replies}");
    drop(counter);
    old.remove()?;
    host.run(
        "new",
        &ADDRESS,
        &Peer::program(&["/peer", "serve", "80", "5555"]),
    )?;
    host.container("new").log_line("serving 5555")?;
    flood.more(MORE)?;
    holds(Duration::from_secs(1), || {
        let heard = heard(&host, "new")?;
        ensure!(heard == 0, "{heard} datagrams of old flows");
        Ok(())
    })?;
    drop(flood);
    // It is there and hears who means it.
    let new = host.container("new").ip()?;
    assert_eq!(new.to_string(), "172.30.0.10");
    host.peer(&["udp", "172.30.0.10:80", "x"]).map(drop)
}

/// Packets that wait for the owner of an address do not reach the next owner.
#[test]
fn packets_waiting_for_arp_reach_no_next_owner() -> Result<()> {
    let lab = Lab::new("waiting")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    // Somebody else, so that the bridge keeps its carrier.
    host.run("other", &["--network=fixed"], &Peer::idle())?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let old = host.run("old", &options, &Peer::serve(80))?;
    eventually(CONVERGED, || {
        lab.lan()
            .peer(&["udp", "198.18.1.1:9000", "x", "--timeout=500"])
    })?;

    // It answers nobody any more, so that what the kernel is to deliver waits for its address.
    let id = host.docker(&["network", "inspect", "-f", "{{.Id}}", "fixed"])?;
    let bridge = format!("br-{}", &id[..12]);
    host.sysctl(&format!("net/ipv4/neigh/{bridge}/mcast_solicit"), "100")?;
    old.space()?.ip("link set eth0 arp off")?;
    host.ip(&format!("neigh flush dev {bridge}"))?;
    let waiting = datagram(40_000, 9000, b"waiting").options(&[1, 1, 1, 0]);
    let waiting = waiting.frame(host.mac("up0")?, lab.lan().mac("h1")?);
    lab.lan().send_frames("h1", &vec![waiting; 5])?;
    eventually(SOON, || {
        let entries = host.ip(&format!("neigh show dev {bridge}"))?;
        ensure!(entries.contains("172.30.0.10 INCOMPLETE"), "{entries}");
        Ok(())
    })?;

    old.remove()?;
    let new = host.run("new", &ADDRESS, &Peer::serve(80))?;
    // Whoever is delivered to now comes after what waited.
    host.peer(&["udp", "172.30.0.10:80", "x"])?;
    new.log_line("udp 172.30.0.1:")?;
    assert_eq!(heard(&host, "new")?, 0, "{}", new.logs()?);
    Ok(())
}

/// A container that is restarted gets only what is published again.
#[test]
fn restarted_container_gets_republished_only() -> Result<()> {
    let lab = Lab::new("restarted")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let web = host.run(
        "web",
        &options,
        &Peer::program(&["/peer", "serve", "80", "5555"]),
    )?;
    web.log_line("serving 5555")?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7777"])?;
    outside.line("serving", SOON)?;
    eventually(CONVERGED, || {
        lab.lan()
            .peer(&["udp", "198.18.1.1:9000", "x", "--timeout=500"])
    })?;
    // From a port next to the served one: the answers go to nobody, but a capture sees them.
    let space = web.space()?;
    space.peer(&["udp", "198.18.1.2:7777", "x", "--bind=172.30.0.10:5556"])?;
    let replies = frames_to(&lab, &host, &[(7777, 5556)])?;
    let flood = Flood::start(lab.lan(), "h1", replies)?;
    let counter = space.capture("eth0")?;
    flood.more(MORE)?;
    assert!(counter.lines("udp and dst port 5556")?.len() > 50);
    drop(counter);
    web.docker("restart")?;
    let counter = web.space()?.capture("eth0")?;
    flood.more(MORE)?;
    let late = counter.lines("udp and dst port 5556")?.len();
    assert_eq!(late, 0, "answers to the one before");
    drop(flood);
    eventually(CONVERGED, || {
        lab.lan()
            .peer(&["udp", "198.18.1.1:9000", "x", "--timeout=300"])
    })?;
    Ok(())
}

/// A port that moves to another container moves at once and wholly.
#[test]
fn port_moves_between_containers_at_once() -> Result<()> {
    let lab = Lab::new("moved")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let ports = ["-p", "9000:80/udp", "-p", "8080:80"];
    let elsewhere = ["--network=fixed", "--ip=172.30.0.20"];
    let first = host.run("first", &[&ADDRESS[..], &ports].concat(), &Peer::serve(80))?;
    let frames = frames_to(&lab, &host, &[(40_000, 9000)])?;
    let flood = Flood::start(lab.lan(), "h1", frames)?;
    eventually(SOON, || {
        ensure!(heard(&host, "first")? > 50, "the first hears nothing");
        Ok(())
    })?;
    first.docker("stop")?;
    let second = host.run(
        "second",
        &[&elsewhere[..], &ports].concat(),
        &Peer::serve(80),
    )?;
    let begun = Instant::now();
    eventually(CONVERGED, || {
        ensure!(heard(&host, "second")? > 0, "the second hears nothing");
        Ok(())
    })?;
    println!(
        "the port has moved after {:?} (promised: 1s)",
        begun.elapsed()
    );
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    second.log_line("tcp 198.18.1.2:")?;

    // The first comes back at its address, without ports.
    first.remove()?;
    host.run("first", &ADDRESS, &Peer::serve(80))?;
    let before = heard(&host, "second")?;
    flood.more(MORE)?;
    assert_eq!(heard(&host, "first")?, 0);
    assert!(heard(&host, "second")? > before + 100);
    Ok(())
}
