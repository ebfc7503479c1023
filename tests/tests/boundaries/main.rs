// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hostile container, a hostile machine of the LAN and a user of the host try, and get nothing by:
//! the rows of `docs/boundaries.md`.

mod away;
mod claims;
mod host;
mod inward;
mod ipsec;
mod ipv6;
mod lists6;
mod marks;
mod neighbour;
mod portless;
mod ports;
mod quotas;
mod routes;
mod rules;
mod shaping;
mod sources;
mod users;
mod veth;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::attack::{Attacker, Watch};
use harness::{Container, Host, Packet, Scene, eventually, holds};

/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(5);
/// How long a frame takes to arrive, if it does.
const SETTLED: Duration = Duration::from_millis(300);

/// How a container's peer sends a datagram from port 4000 to the LAN, where nobody answers.
const ASKS_LAN: [&str; 7] = [
    "udp",
    "198.18.1.2:9",
    "x",
    "--bind",
    "0.0.0.0:4000",
    "--timeout",
    "50",
];

fn end(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

/// A container as the attacker, before its gateway.
fn attacker(host: &Host, container: &Container, bridge: &str) -> Result<Attacker> {
    Attacker::new(&container.space()?, "eth0", host.mac(bridge)?)
}

/// Numbers packets, so that each is known wherever it arrives.
struct Numbered {
    next: u16,
    sent: Vec<(u16, String)>,
}

impl Numbered {
    fn new(first: u16) -> Self {
        Self {
            next: first,
            sent: Vec::new(),
        }
    }

    /// The packet with a number of its own.
    fn packet(&mut self, what: impl Into<String>, packet: Packet) -> Packet {
        let number = self.next;
        self.next += 1;
        self.sent.push((number, what.into()));
        packet.numbered(number)
    }

    /// Which of the packets arrived anywhere, and where.
    fn arrived(&self, watch: &Watch) -> Result<Vec<String>> {
        let all = |number| self.sent.iter().find(|(own, _)| Some(*own) == number);
        let seen = watch.saw(|frame| all(frame.number()).is_some())?;
        let line = |(place, frame): (&str, harness::Frame)| {
            let what = all(frame.number()).map_or("", |(_, what)| what);
            format!("{what} at {place}")
        };
        Ok(seen.into_iter().map(line).collect())
    }

    /// None of the packets arrives.
    fn nowhere(&self, watch: &Watch) -> Result<()> {
        holds(SETTLED, || {
            let arrived = self.arrived(watch)?;
            ensure!(arrived.is_empty(), "arrived: {arrived:#?}");
            Ok(())
        })
    }

    /// All of the packets arrive.
    fn everywhere(&self, watch: &Watch) -> Result<()> {
        eventually(SOON, || {
            let arrived = self.arrived(watch)?;
            for (_, what) in &self.sent {
                let begins = format!("{what} at ");
                let has = arrived.iter().any(|line| line.starts_with(&begins));
                ensure!(has, "{what} did not arrive");
            }
            Ok(())
        })
    }
}

/// A reason's counter has moved on by so many.
fn counted(scene: &Scene, reason: &str, before: u64, by: u64) -> Result<()> {
    eventually(SOON, || {
        let now = scene.count(reason)?;
        ensure!(now >= before + by, "{reason}: {before}, then {now}");
        Ok(())
    })
}
