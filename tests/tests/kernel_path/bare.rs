// SPDX-License-Identifier: MIT OR Apache-2.0
//! Protocols without ports: there and back by their addresses alone, whole and in pieces.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use harness::{Packet, eventually};

use crate::SOON;
use crate::rows::{Outgoing, OutgoingReply, PublishedReply, Row, Stage};

/// GRE, ESP, and one that no kernel knows.
const PROTOCOLS: [u8; 3] = [47, 50, 143];
/// "Protocol unreachable", and "communication administratively prohibited".
const UNKNOWN: [u8; 2] = [3, 2];
const PROHIBITED: [u8; 2] = [3, 13];

/// A packet of a row, as it is sent and as it has to arrive.
fn pair(stage: &Stage, row: Row, protocol: u8, length: usize, number: u16) -> [Packet; 2] {
    let data = vec![b'0' + row as u8; length];
    let packet =
        |(from, to): (Ipv4Addr, Ipv4Addr)| Packet::new(protocol, from, to, &data).numbered(number);
    let addresses =
        |(from, to): (std::net::SocketAddrV4, std::net::SocketAddrV4)| (*from.ip(), *to.ip());
    [
        packet(addresses(stage.asked(row))),
        packet(addresses(stage.given(row))).ttl(63),
    ]
}

/// Whether an error of a kind that quotes `about` came to a row's sender.
fn expect_error(stage: &Stage, row: Row, kind: [u8; 2], about: &Packet) -> Result<()> {
    let came = stage.came(row, true)?;
    let reported = came.iter().any(|packet| {
        let quoted = packet.quoted();
        packet.error_kind() == Some(kind)
            && quoted.is_some_and(|quoted| about.bytes().starts_with(quoted.bytes()))
    });
    ensure!(reported, "{row:?}: no error about {about:?}");
    Ok(())
}

/// Protocols without ports leave with the host's address, and their answers return.
#[test]
fn portless_protocols_are_masqueraded() -> Result<()> {
    let stage = Stage::new("bare", None)?;
    let mut number = 0x6000;
    for protocol in PROTOCOLS {
        for length in [40, 4000] {
            for row in [Outgoing, OutgoingReply] {
                number += 1;
                let [sent, seen] = pair(&stage, row, protocol, length, number);
                for piece in sent.cut(1480).iter().rev() {
                    stage.send(row, piece)?;
                }
                eventually(SOON, || {
                    let came = stage.came(row, false)?;
                    let whole = came.contains(&seen) || seen.whole(&came).as_ref() == Some(&seen);
                    ensure!(whole, "{row:?} brings no {seen:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// A remote's error quotes what the container sent, and a second container is told that the remote
/// is taken.
#[test]
fn portless_error_quotes_what_the_container_sent() -> Result<()> {
    let stage = Stage::new("bare-errors", None)?;
    let [sent, _] = pair(&stage, Outgoing, 143, 40, 1);
    stage.send(Outgoing, &sent)?;
    // The LAN's kernel knows no such protocol.
    let quoted = sent.ttl(63);
    eventually(SOON, || expect_error(&stage, Outgoing, UNKNOWN, &quoted))?;
    let before = stage.scene.count("ports-exhausted")?;
    let [other, _] = pair(&stage, PublishedReply, 143, 40, 2);
    stage.send(PublishedReply, &other)?;
    eventually(SOON, || {
        expect_error(&stage, PublishedReply, PROHIBITED, &other)
    })?;
    let counted = stage.scene.count("ports-exhausted")?;
    ensure!(counted == before + 1, "{before}, then {counted}");
    Ok(())
}
