// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must never come in, sent over and over: frames straight to containers' addresses, and ones
//! with a forged loopback destination for a port that is published there.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Container, Host, Packet, PacketSocket, Space};

use crate::site::Site;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(10);
/// What Docker publishes for the forged ones.
pub(crate) const LOOPBACK: [&str; 4] = ["-p", "127.0.0.2:5000:80", "-p", "127.0.0.2:5000:80/udp"];
/// The addresses that containers get: of the default bridge, and of the first network beside it.
const CONTAINERS: [[u8; 4]; 5] = [
    [172, 17, 0, 2],
    [172, 17, 0, 3],
    [172, 17, 0, 4],
    [172, 18, 0, 2],
    [172, 18, 0, 3],
];

/// Lets the kernel take a loopback address from a wire: nothing but a guard keeps it out then.
pub(crate) fn careless(host: &Host) -> Result<()> {
    for device in ["all", "up0"] {
        host.sysctl(&format!("net/ipv4/conf/{device}/route_localnet"), "1")?;
    }
    Ok(())
}

/// A round of frames from the LAN.
pub(crate) struct Barrage {
    frames: Vec<Vec<u8>>,
}

impl Barrage {
    /// A datagram and an opening segment to each container's ports 80 and 81, and to the port that
    /// is published on a loopback address.
    pub(crate) fn new(site: &Site) -> Result<Self> {
        let (to, from) = (site.host.mac("up0")?, site.lan().mac("h1")?);
        let straight = CONTAINERS
            .into_iter()
            .flat_map(|address| [(address, 80), (address, 81)]);
        let targets = straight.chain([([127, 0, 0, 2], 5000)]);
        let frames = targets.zip(41_000..).flat_map(|((address, port), client)| {
            let client = SocketAddrV4::new(site.host.gateway(), client);
            let target = SocketAddrV4::new(Ipv4Addr::from(address), port);
            [
                Packet::udp(client, target, b"probe"),
                Packet::tcp(client, target, 2),
            ]
        });
        Ok(Self {
            frames: frames.map(|packet| packet.frame(to, from)).collect(),
        })
    }

    /// Sends a round every 10 ms while `work` goes on, and says how many there were.
    pub(crate) fn during(&self, lan: &Space, work: impl FnOnce() -> Result<()>) -> Result<usize> {
        let over = AtomicBool::new(false);
        scope(|scope| {
            let firing = scope.spawn(|| {
                let socket = lan.enter(|| PacketSocket::open("h1"))??;
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    for frame in &self.frames {
                        socket.send(frame)?;
                    }
                    rounds += 1;
                    sleep(PAUSE);
                }
                anyhow::Ok(rounds)
            });
            let worked = work();
            over.store(true, Ordering::Relaxed);
            let rounds = firing.join().expect("the firing thread")?;
            worked?;
            Ok(rounds)
        })
    }
}

/// The probes that a server heard, in all its lives.
pub(crate) fn heard(server: &Container) -> Result<Vec<String>> {
    let logs = server.logs()?;
    let probes = logs.lines().filter(|line| line.contains(" 198.18.1.2:41"));
    Ok(probes.map(str::to_owned).collect())
}

/// Fails if a server heard a probe.
pub(crate) fn is_untouched(server: &Container) -> Result<()> {
    let (name, heard) = (server.name(), heard(server)?);
    ensure!(
        heard.is_empty(),
        "{} probes came to {name}, as {:?}",
        heard.len(),
        heard.first()
    );
    Ok(())
}
