// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: out of two containers that use one port, and back, with the checksum that each packet needs.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use forwarder_testkit::packet::{Chunk, Packet, proto};
use harness::eventually;

use crate::SOON;
use crate::rows::{Outgoing, OutgoingReply, PublishedReply, Row, Stage};

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// "Protocol unreachable".
const UNKNOWN: [u8; 2] = [3, 2];

/// Sends a packet of a row and waits for it to come as `seen`, byte for byte.
fn forward_established(stage: &Stage, row: Row, sent: &Packet, seen: &Packet) -> Result<()> {
    stage.send(row, sent)?;
    eventually(SOON, || {
        let came = stage.came(row, false)?;
        ensure!(came.contains(seen), "{row:?} brings no {seen:?}");
        Ok(())
    })?;
    seen.check()
}

/// Two containers each have an association from the same source port.
#[test]
fn two_containers_use_one_sctp_source_port() -> Result<()> {
    let stage = Stage::new("sctp", None)?;
    let (from, to) = stage.asked(Outgoing);
    let (given, _) = stage.given(Outgoing);
    let (back, host) = stage.asked(OutgoingReply);
    for length in [16, 600, 1400] {
        let content = vec![7; length];
        let sent = Packet::sctp(from, to, &Chunk::new(INIT, &content));
        let seen = Packet::sctp(given, to, &Chunk::new(INIT, &content)).ttl(63);
        forward_established(&stage, Outgoing, &sent, &seen)?;
        let sent = Packet::sctp(back, host, &Chunk::new(INIT_ACK, &content));
        let seen = Packet::sctp(back, from, &Chunk::new(INIT_ACK, &content)).ttl(63);
        forward_established(&stage, OutgoingReply, &sent, &seen)?;
    }

    // The server's container by the same port, towards the same: it is given another one.
    let second = SocketAddrV4::new(*stage.asked(PublishedReply).0.ip(), from.port());
    let content = [9; 100];
    let sent = Packet::sctp(second, to, &Chunk::new(INIT, &content));
    stage.send(PublishedReply, &sent)?;
    let outside = |packet: &Packet| {
        packet.protocol() == proto::SCTP
            && packet.transport()[16..] == content
            && packet.source() != Ipv4Addr::UNSPECIFIED
    };
    let seen = eventually(SOON, || {
        let came = stage.came(PublishedReply, false)?;
        came.into_iter().find(outside).context("nothing came")
    })?;
    let port = u16::from_be_bytes([seen.transport()[0], seen.transport()[1]]);
    ensure!(port != from.port(), "one port for both");
    let drawn = SocketAddrV4::new(*given.ip(), port);
    ensure!(
        seen == Packet::sctp(drawn, to, &Chunk::new(INIT, &content)).ttl(63),
        "{seen:?}"
    );
    for length in [0, 4, 1200] {
        let content = vec![5; length];
        let answer = Packet::sctp(to, drawn, &Chunk::new(DATA, &content));
        stage.send(OutgoingReply, &answer)?;
        let seen = Packet::sctp(to, second, &Chunk::new(DATA, &content)).ttl(63);
        eventually(SOON, || {
            let came = stage.came(PublishedReply, true)?;
            ensure!(came.contains(&seen), "no {seen:?}");
            Ok(())
        })?;
    }

    // The LAN's kernel has no SCTP: what it quotes is what was sent, checksum and all.
    let quoted = sent.ttl(63);
    eventually(SOON, || {
        let came = stage.came(PublishedReply, true)?;
        let reported = came.iter().any(|packet| {
            let about = packet.quoted();
            packet.error_kind() == Some(UNKNOWN)
                && about.is_some_and(|about| about.bytes() == quoted.bytes())
        });
        ensure!(reported, "no error about {quoted:?}");
        Ok(())
    })?;
    stage.scene.count("protocol").and_then(|count| {
        ensure!(count == 0, "{count} refused for their protocol");
        Ok(())
    })
}
