// SPDX-License-Identifier: MIT OR Apache-2.0
//! Datagrams that their sender cut: in whatever order the pieces come, each direction brings the whole
//! one or nothing.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use forwarder_testkit::rng::Rng;
use harness::{Packet, Segment, eventually, holds};

use crate::SOON;
use crate::rows::{ALL, Hairpin, Outgoing, Published, Row, Stage};

/// Bytes of a piece's payload.
const PIECE: usize = 1480;
/// How long nothing has to come.
const SILENCE: Duration = Duration::from_millis(300);
/// So many other pieces of the same sender may come between two of a datagram
/// (`net.ipv4.ipfrag_max_dist`).
const AT_ONCE: usize = 64;
const ACK: u8 = 0x10;

/// Numbers that no two datagrams of a test share.
struct Numbers(u16);

impl Numbers {
    fn next(&mut self) -> u16 {
        self.0 += 1;
        self.0
    }
}

/// Whether a row's datagram came, whole and once.
fn arrived(stage: &Stage, row: Row, expected: &Packet) -> Result<()> {
    let came = stage.came(row, false)?;
    let whole = came.contains(expected) || expected.whole(&came).as_ref() == Some(expected);
    ensure!(whole, "{row:?} brings no {:?}", expected.ends());
    Ok(())
}

/// Sends a row's datagram in pieces that `order` chooses, and expects it.
fn carries(
    stage: &Stage,
    row: Row,
    number: u16,
    size: usize,
    order: impl Fn(&mut Vec<Packet>),
) -> Result<()> {
    let mut pieces = stage.sent(row, size).numbered(number).cut(PIECE);
    order(&mut pieces);
    stage.send_all(row, &pieces)?;
    let expected = stage.seen(row, size).numbered(number);
    eventually(SOON, || arrived(stage, row, &expected))
}

/// Fragments in any order come out as their datagram in each direction.
#[test]
fn fragments_in_any_order_give_their_datagram() -> Result<()> {
    let stage = Stage::new("pieces", None)?;
    let mut numbers = Numbers(0);
    // No packet before: the first piece makes the flow, whenever it comes.
    for row in ALL {
        carries(&stage, row, numbers.next(), 4000, |pieces| pieces.reverse())?;
        carries(&stage, row, numbers.next(), 4000, |_| {})?;
        carries(&stage, row, numbers.next(), 4000, |pieces| {
            pieces.rotate_left(1);
        })?;
        // All but the last one twice: a whole datagram makes no second one.
        carries(&stage, row, numbers.next(), 4000, |pieces| {
            let twice = pieces.clone();
            pieces.splice(..0, twice[..2].iter().cloned());
        })?;
        carries(&stage, row, numbers.next(), 65_507, |_| {})?;
        for seed in 0..4 {
            carries(&stage, row, numbers.next(), 20_000, |pieces| {
                Rng::new(seed).shuffle(pieces);
            })?;
        }
    }
    Ok(())
}

/// As many datagrams at once as the kernel tells apart come out as they were.
#[test]
fn many_fragmented_datagrams_at_once_are_whole() -> Result<()> {
    let stage = Stage::new("pieces-at-once", None)?;
    let mut numbers = Numbers(0x4000);
    for row in ALL {
        let first: Vec<_> = (0..AT_ONCE).map(|_| numbers.next()).collect();
        let cut = |number| stage.sent(row, 2000).numbered(number).cut(PIECE);
        let pieces: Vec<_> = first.iter().map(|number| cut(*number)).collect();
        let all = |nth: usize| pieces.iter().map(move |pieces| pieces[nth].clone());
        stage.send_all(row, &all(0).chain(all(1)).collect::<Vec<_>>())?;
        for number in first {
            let expected = stage.seen(row, 2000).numbered(number);
            eventually(SOON, || arrived(&stage, row, &expected))?;
        }
    }
    Ok(())
}

/// Fragments of TCP segments and of echoes come out as what they were.
#[test]
fn fragments_of_tcp_and_echoes_are_reassembled() -> Result<()> {
    let stage = Stage::new("pieces-others", None)?;
    let mut numbers = Numbers(0x5000);
    let data = vec![b'x'; 4000];
    let mut check = |row, sent: Packet, seen: Packet| {
        for (turned, number) in [(false, numbers.next()), (true, numbers.next())] {
            let mut pieces = sent.clone().numbered(number).cut(PIECE);
            if turned {
                pieces.reverse();
            }
            stage.send_all(row, &pieces)?;
            let expected = seen.clone().ttl(63).numbered(number);
            eventually(SOON, || arrived(&stage, row, &expected))?;
        }
        Ok::<_, anyhow::Error>(())
    };
    // Connections that are met in their middle.
    for row in [Published, Outgoing, Hairpin] {
        let segment = |(from, to)| Packet::segment(from, to, &Segment::new(ACK, (1, 1), &data));
        check(row, segment(stage.asked(row)), segment(stage.given(row)))?;
    }
    for (row, kind) in [(Outgoing, 8), (Row::OutgoingReply, 0)] {
        let body = [&[0, 7, 0, 1][..], &data].concat();
        let echo = |(from, to): (SocketAddrV4, SocketAddrV4)| {
            Packet::icmp(*from.ip(), *to.ip(), [kind, 0], &body)
        };
        check(row, echo(stage.asked(row)), echo(stage.given(row)))?;
    }
    Ok(())
}

/// Sends a row's pieces of which no datagram comes, and one behind them that does: nothing of the
/// first ones' number arrives.
fn refuses(stage: &Stage, row: Row, numbers: &mut Numbers, pieces: &[Packet]) -> Result<()> {
    stage.send_all(row, pieces)?;
    carries(stage, row, numbers.next(), 4000, |_| {})?;
    let number = &pieces[0].bytes()[4..6];
    holds(SILENCE, || {
        let came = stage.came(row, false)?;
        let strays = came
            .iter()
            .filter(|packet| packet.is_fragment() && packet.bytes()[4..6] == *number);
        ensure!(strays.count() == 0, "{row:?}: something came of it");
        Ok(())
    })
}

/// A datagram with fragments that are missing or overlap is not delivered.
#[test]
fn incomplete_or_overlapping_is_dropped() -> Result<()> {
    let stage = Stage::new("no-pieces", None)?;
    let mut numbers = Numbers(0x1000);
    for row in ALL {
        let pieces = |numbers: &mut Numbers| {
            let sent = stage.sent(row, 4000).numbered(numbers.next());
            sent.cut(PIECE)
        };
        // Without the first one, one in the middle, the last one.
        for lost in 0..3 {
            let mut pieces = pieces(&mut numbers);
            pieces.remove(lost);
            refuses(&stage, row, &mut numbers, &pieces)?;
        }
        // The second one begins in the first one.
        let sent = stage.sent(row, 4000).numbered(numbers.next());
        let (long, short) = (sent.cut(PIECE), sent.cut(PIECE - 8));
        let overlapping = [long[0].clone(), short[1].clone(), long[2].clone()];
        refuses(&stage, row, &mut numbers, &overlapping)?;
    }
    Ok(())
}

/// Fragments that are too long for the next link are fragmented again.
#[test]
fn long_fragments_are_fragmented_again() -> Result<()> {
    let options = ["-o", "com.docker.network.driver.mtu=1300"];
    let stage = Stage::new("pieces-mtu-in", Some(&options))?;
    let mut numbers = Numbers(0x2000);
    for row in [Published, Hairpin] {
        carries(&stage, row, numbers.next(), 4000, |_| {})?;
        carries(&stage, row, numbers.next(), 4000, |pieces| pieces.reverse())?;
    }
    stage.scene.host.ip("link set up0 mtu 1200")?;
    // The server's own device takes no such pieces.
    carries(&stage, Outgoing, numbers.next(), 4000, |_| {})?;
    carries(&stage, Outgoing, numbers.next(), 4000, |pieces| {
        pieces.reverse();
    })
}

/// A container that leaves every datagram incomplete harms no neighbour.
#[test]
fn incomplete_datagrams_harm_no_neighbour() -> Result<()> {
    let stage = Stage::new("pieces-quota", None)?;
    let mut numbers = Numbers(0x3000);
    // More than the kernel holds for all of them (`ipfrag_high_thresh`, 4 MiB with each piece's buffer).
    let flood: Vec<_> = (0..2000)
        .map(|number| stage.sent(Outgoing, 4000).numbered(number).cut(PIECE)[1].clone())
        .collect();
    stage.send_all(Outgoing, &flood)?;
    ensure!(stage.scene.count("fragment-quota")? > 1200, "not refused");
    // The other container's replies, all of them.
    for row in [Published, Row::PublishedReply] {
        for _ in 0..20 {
            carries(&stage, row, numbers.next(), 4000, |pieces| pieces.reverse())?;
        }
    }
    Ok(())
}
