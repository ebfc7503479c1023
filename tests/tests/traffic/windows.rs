// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is forged into a connection by who does not see it: it ends nothing, and nobody answers it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Capture, Packet, Peer, Process, Scene, Segment, Space, eventually, holds, serve};

use crate::SOON;

const FIN: u8 = 1;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
/// What a forged segment carries: nobody else sends it.
const FORGED: &[u8] = b"<<a forged segment>>";
/// How far beside its window: further than any that a stack grants at first. The last is below: what
/// is no reset passes there, a late retransmission for its receiver to judge.
const BESIDE: [u32; 3] = [1 << 30, 1 << 29, 3 << 30];

/// Where a segment with these flags is out of the window.
fn beside(flags: u8) -> impl Iterator<Item = u32> {
    let below = flags & RST != 0;
    BESIDE.into_iter().take(if below { 3 } else { 2 })
}

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 2), 40_000);
const PUBLISHED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 1), 8080);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 2), 7);

/// A download that takes some seconds, under way.
fn download(from: &Space, to: SocketAddrV4, bind: Option<SocketAddrV4>) -> Result<Process> {
    let mut words = vec!["fetch".to_owned(), to.to_string(), "6000000".to_owned()];
    words.extend(["--rate".to_owned(), "2000000".to_owned()]);
    words.extend(
        bind.into_iter()
            .flat_map(|at| ["--bind".to_owned(), at.to_string()]),
    );
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut download = from.spawn_peer(&words)?;
    download.line("at", SOON)?;
    Ok(download)
}

/// Destination and numbers of the last segment with an acknowledgement on a wire that was
/// sent from a port.
fn last(wire: &Capture, outgoing: bool, from: SocketAddrV4) -> Result<(SocketAddrV4, u32, u32)> {
    let packets = wire.packets(outgoing)?;
    let newest = packets.iter().rev().find_map(|packet| {
        let (flags, seq, ack) = packet.numbers()?;
        let (source, destination) = packet.ends();
        (source == from && flags & ACK != 0).then_some((destination, seq, ack))
    });
    newest.context("no segment was captured")
}

fn state(scene: &Scene) -> Result<String> {
    let flows = scene.host.json("flows")?;
    let flow = flows.as_array().and_then(|flows| flows.first());
    let state = flow.and_then(|flow| flow["state"].as_str());
    Ok(state.context("no flow is shown")?.to_owned())
}

/// Nothing forged reached a wire, and nobody answered with a reset.
fn unanswered(inside: &Capture, at_lan: &Capture, forged: &[u32]) -> Result<()> {
    for packet in inside.packets(false)? {
        let numbers = packet.numbers();
        let is_forged = numbers.is_some_and(|(_, seq, _)| forged.contains(&seq));
        ensure!(!is_forged, "a forged segment arrived: {packet:?}");
    }
    for packet in at_lan.packets(false)? {
        let reset = packet.numbers().is_some_and(|(flags, ..)| flags & RST != 0);
        ensure!(!reset, "somebody answered with a reset: {packet:?}");
    }
    Ok(())
}

/// A blind reset and blind data do not end a download through a published port.
#[test]
fn blind_reset_and_data_do_not_end_a_download() -> Result<()> {
    let scene = Scene::new("blind-reset")?;
    let web = scene.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let lan = scene.lan();
    let (at_lan, inside) = (lan.capture("h1")?, web.space()?.capture("eth0")?);
    let mut download = download(lan, PUBLISHED, Some(CLIENT))?;
    let (_, seq, ack) = last(&at_lan, true, CLIENT)?;
    let (to, from) = (scene.host.mac("up0")?, lan.mac("h1")?);
    let mut forged = Vec::new();
    for (flags, payload) in [
        (RST, &b""[..]),
        (RST | ACK, b""),
        (ACK | PSH, FORGED),
        (FIN | ACK, b""),
    ] {
        for beside in beside(flags) {
            let seq = seq.wrapping_add(beside);
            let packet =
                Packet::segment(CLIENT, PUBLISHED, &Segment::new(flags, (seq, ack), payload));
            lan.send_frame("h1", &packet.frame(to, from))?;
            forged.push(seq);
        }
    }
    // The reset just below what the server has acknowledged.
    let packet = Packet::segment(
        CLIENT,
        PUBLISHED,
        &Segment::new(RST, (seq.wrapping_sub(1), 0), b""),
    );
    lan.send_frame("h1", &packet.frame(to, from))?;
    eventually(SOON, || {
        let dropped = scene.count("tcp-window")?;
        ensure!(dropped >= 11, "only {dropped} of 11 were dropped");
        Ok(())
    })?;
    assert_eq!(state(&scene)?, "ESTABLISHED");
    unanswered(&inside, &at_lan, &forged)?;
    download.line("done", Duration::from_secs(20))?;
    unanswered(&inside, &at_lan, &forged)
}

/// Out-of-window data reaches no container and is not answered by the host.
#[test]
fn out_of_window_data_is_dropped_silently() -> Result<()> {
    let scene = Scene::new("out-of-window")?;
    let lan = scene.lan();
    let _server = serve(lan, SERVER.port())?;
    let web = scene.run("web", &[], &Peer::idle())?;
    let (at_lan, inside) = (lan.capture("h1")?, web.space()?.capture("eth0")?);
    let mut download = download(&web.space()?, SERVER, None)?;
    let (client, seq, ack) = last(&at_lan, true, SERVER)?;
    let (to, from) = (scene.host.mac("up0")?, lan.mac("h1")?);
    let mut forged = Vec::new();
    for flags in [ACK | PSH, RST, RST | ACK, FIN | ACK] {
        for beside in beside(flags) {
            let seq = seq.wrapping_add(beside);
            let packet = Packet::segment(SERVER, client, &Segment::new(flags, (seq, ack), FORGED));
            lan.send_frame("h1", &packet.frame(to, from))?;
            forged.push(seq);
        }
    }
    eventually(SOON, || {
        let dropped = scene.count("tcp-window")?;
        ensure!(dropped >= 10, "only {dropped} of 10 were dropped");
        Ok(())
    })?;
    holds(Duration::from_millis(200), || {
        unanswered(&inside, &at_lan, &forged)
    })?;
    assert_eq!(state(&scene)?, "ESTABLISHED");
    download.line("done", Duration::from_secs(20))?;
    unanswered(&inside, &at_lan, &forged)
}
