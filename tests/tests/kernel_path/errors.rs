// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors about translated flows: each end sees what it sent.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Packet, Peer, eventually, holds, serve};

use crate::SOON;
use crate::rows::{ALL, Outgoing, OutgoingReply, Published, PublishedReply, Row, Stage};

const PORT_UNREACHABLE: [u8; 2] = [3, 3];
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// The first error of this kind that comes back to a row's sender.
fn error(stage: &Stage, row: Row, kind: [u8; 2]) -> Result<Packet> {
    eventually(SOON, || {
        let came = stage.came(row, true)?;
        let error = came
            .into_iter()
            .find(|packet| packet.error_kind() == Some(kind));
        error.with_context(|| format!("no error {kind:?} of {row:?}"))
    })
}

/// That an error quotes what was sent, except for the hops that it has passed since.
fn quotes(error: &Packet, sent: Packet) -> Result<()> {
    error.check()?;
    let quoted = error.quoted().context("no quote")?;
    let sent = sent.ttl(quoted.hops());
    ensure!(
        sent.bytes().starts_with(quoted.bytes()),
        "{quoted:?} instead of {sent:?}"
    );
    Ok(())
}

/// An error from outside reaches the container and quotes what it sent.
#[test]
fn outside_error_quotes_what_the_container_sent() -> Result<()> {
    let stage = Stage::new("error-in", None)?;
    // Nobody listens at port 9.
    let sent = stage.sent(Outgoing, 100);
    stage.send(Outgoing, &sent)?;
    let unreachable = error(&stage, Outgoing, PORT_UNREACHABLE)?;
    assert_eq!(unreachable.source(), LAN);
    quotes(&unreachable, sent)?;
    // A path MTU from a router between, about both kinds of flow.
    stage.carries(&[Published], 10, |packet| packet)?;
    for (row, as_seen) in [(Outgoing, Outgoing), (PublishedReply, PublishedReply)] {
        let sent = stage.sent(row, 1000).dont_fragment();
        let seen = stage.seen(as_seen, 1000).dont_fragment();
        let router = Ipv4Addr::new(198, 19, 7, 7);
        let packet = Packet::error(router, HOST, FRAGMENTATION_NEEDED, 900, &seen.bytes()[..28]);
        stage.send(Published, &packet)?;
        let message = error(&stage, row, FRAGMENTATION_NEEDED)?;
        assert_eq!((message.source(), message.hops()), (router, 63));
        assert_eq!(message.transport()[6..8], 900_u16.to_be_bytes());
        quotes(&message, sent)?;
    }
    ensure!(stage.scene.count("icmp-error")? >= 3);
    Ok(())
}

/// A container's own error leaves with the published address in its quote.
#[test]
fn container_error_quotes_the_published_address() -> Result<()> {
    let stage = Stage::new("error-out", None)?;
    // 8081 leads to port 81, where nobody listens.
    let to = "198.18.1.1:8081".parse()?;
    let sent = Packet::udp("198.18.1.2:5001".parse()?, to, b"anybody there?");
    stage.send(Published, &sent)?;
    let unreachable = error(&stage, Published, PORT_UNREACHABLE)?;
    assert_eq!(unreachable.source(), HOST);
    quotes(&unreachable, sent)?;
    let refused = format!(
        "{:#}",
        stage
            .scene
            .lan()
            .peer(&["udp", "198.18.1.1:8081", "x"])
            .unwrap_err()
    );
    ensure!(refused.contains("refused"), "{refused}");
    Ok(())
}

#[test]
fn stray_error_is_dropped() -> Result<()> {
    let stage = Stage::new("stray", None)?;
    stage.carries(&ALL, 10, |packet| packet)?;
    // Answers to the rows' own packets are in: nobody listens at some of their ports.
    let counts = || {
        let all = [Published, PublishedReply, Outgoing].map(|row| stage.came(row, true));
        let all: Result<Vec<_>> = all.into_iter().collect();
        Ok::<usize, anyhow::Error>(
            all?.iter()
                .flatten()
                .filter(|packet| {
                    packet
                        .error_kind()
                        .is_some_and(|kind| kind != PORT_UNREACHABLE)
                })
                .count(),
        )
    };
    let before = (counts()?, stage.scene.count("icmp-stray")?);
    let client: Ipv4Addr = stage.sent(Outgoing, 0).source();
    let server: Ipv4Addr = stage.sent(PublishedReply, 0).source();
    let about = |row: Row| stage.seen(row, 10).bytes()[..28].to_vec();
    let nothing = Packet::udp("198.18.1.2:1".parse()?, "198.18.1.1:1".parse()?, b"")
        .bytes()
        .to_vec();
    // A container's: about nothing, and about a flow of another one's.
    stage.send(Outgoing, &Packet::error(client, LAN, [3, 1], 0, &nothing))?;
    stage.send(
        Outgoing,
        &Packet::error(client, LAN, [3, 1], 0, &about(Published)),
    )?;
    stage.send(
        PublishedReply,
        &Packet::error(server, LAN, [3, 1], 0, &about(OutgoingReply)),
    )?;
    // From outside: a redirect about a flow, which would teach the container a gateway.
    stage.send(
        Published,
        &Packet::error(LAN, HOST, [5, 1], 0x0a00_0001, &about(Outgoing)),
    )?;
    eventually(SOON, || {
        let now = stage.scene.count("icmp-stray")?;
        ensure!(now >= before.1 + 4, "{} of 4 were dropped", now - before.1);
        Ok(())
    })?;
    // Cut so short that no flow can be told: to the host, which knows no better either.
    stage.send(
        Published,
        &Packet::error(LAN, HOST, [3, 1], 0, &about(Outgoing)[..24]),
    )?;
    holds(Duration::from_millis(100), || {
        ensure!(counts()? == before.0, "somebody was told");
        Ok(())
    })
}

/// A large transfer finds the path MTU behind the next router.
#[test]
fn large_transfer_finds_the_path_mtu() -> Result<()> {
    let stage = Stage::new("path-mtu", None)?;
    let far = stage.scene.lab.far()?;
    let streams = stage
        .scene
        .run("streams", &["-p", "9000:90"], &Peer::serve(90))?;
    let _server = serve(&far, 7)?;
    // The router's device towards the far machine takes 1200 bytes, and only it knows.
    stage.scene.lan().ip("link set far1 mtu 1200")?;
    let in_container = streams.space()?.capture("eth0")?;
    far.peer(&["fetch", "198.18.1.1:9000", "2000000"])?;
    let message = in_container
        .packets(false)?
        .into_iter()
        .find(|packet| packet.error_kind() == Some(FRAGMENTATION_NEEDED));
    let message = message.context("the container was not told")?;
    message.check()?;
    assert_eq!(
        message.quoted().context("no quote")?.source(),
        streams.ip()?
    );
    // The host's own device, too, by its own errors.
    stage.scene.host.ip("link set up0 mtu 1100")?;
    far.peer(&["fetch", "198.18.1.1:9000", "2000000"])?;
    Ok(())
}
