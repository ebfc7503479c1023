// SPDX-License-Identifier: MIT OR Apache-2.0
//! Adopting a stock Docker host and releasing it, under traffic: nothing breaks, and afterwards the
//! host is the one it was.

mod docker;
mod follow;
mod life;
mod packets;
mod ports;
mod rules;
mod ufw;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Peer, Process, soaked};

const SOON: Duration = Duration::from_secs(5);
/// The LAN's own server, for connections outwards.
const OUTSIDE: &str = "198.18.1.2:7000";
/// The published port, from the LAN and at the host itself.
const PUBLISHED: &str = "198.18.1.1:8080";
const LOCAL: &str = "127.0.0.1:8080";
/// How long a connection waits before it counts as broken.
const PATIENT: &str = "--timeout=15000";
/// The longest silence that nobody notices.
const SILENCE: u64 = 250;

/// A stock host: docker-proxy, two networks besides the default one, a server on each.
struct Stock {
    lab: Lab,
    host: Host,
    inside: Container,
    _outside: Process,
}

impl Stock {
    fn new(label: &str) -> Result<Self> {
        Self::with(label, Docker::stock())
    }

    fn with(label: &str, docker: Docker) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(docker)?;
        for network in ["app", "db"] {
            host.docker(&["network", "create", network])?;
        }
        let ports = ["--network=app", "-p", "8080:80", "-p", "8080:80/udp"];
        host.run("web", &ports, &Peer::serve(80))?;
        host.run(
            "store",
            &["--network=db", "-p", "9090:90"],
            &Peer::serve(90),
        )?;
        let inside = host.run("inside", &[], &Peer::idle())?;
        let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
        outside.line("serving", SOON)?;
        Ok(Self {
            lab,
            host,
            inside,
            _outside: outside,
        })
    }

    /// Steady traffic in all directions.
    fn traffic(&self) -> Result<Traffic> {
        let mut traffic = self.forwarded_traffic()?;
        let mut local = self.host.spawn_peer(&["pulse", "5", LOCAL, PATIENT])?;
        local.line("pulses", SOON).context("local")?;
        traffic.0.push(("local", local));
        Ok(traffic)
    }

    /// Steady traffic in both directions that are forwarded.
    fn forwarded_traffic(&self) -> Result<Traffic> {
        let inner = self.inside.space()?;
        let lan = self.lab.lan();
        let mut all = vec![
            ("in", lan.spawn_peer(&["pulse", "20", PUBLISHED, PATIENT])?),
            ("out", inner.spawn_peer(&["pulse", "20", OUTSIDE, PATIENT])?),
        ];
        for (name, process) in &mut all {
            process.line("pulses", SOON).context(*name)?;
        }
        Ok(Traffic(all))
    }

    fn rules(&self) -> Result<String> {
        let saved = self.host.cmd(&["iptables-save"])?;
        let listed = self.host.cmd(&["nft", "list", "ruleset"])?;
        let is_fixed = |line: &&str| !line.starts_with('#');
        let lines = saved.lines().chain(listed.lines()).filter(is_fixed);
        Ok(lines.map(uncounted).collect::<Vec<_>>().join("\n"))
    }
}

/// Removes the counters from a line of rules.
fn uncounted(line: &str) -> String {
    let mut words: Vec<_> = line.split_whitespace().collect();
    while let Some(at) = words.iter().position(|word| *word == "packets") {
        words.drain(at..(at + 4).min(words.len()));
    }
    words.retain(|word| !word.starts_with('['));
    words.join(" ")
}

/// Steady traffic, by directions.
struct Traffic(Vec<(&'static str, Process)>);

impl Traffic {
    /// Ends it and checks what became of it while the host changed hands once.
    fn check(self) -> Result<()> {
        self.check_after(1, SILENCE)
    }

    /// Ends it and checks what became of it while the host changed hands a number of times. A
    /// silence is in milliseconds.
    fn check_after(mut self, times: u64, longest: u64) -> Result<()> {
        let mut told = Vec::new();
        for (name, process) in &mut self.0 {
            process.tell("")?;
            told.push((*name, process.line("fate: ", SOON * 4)?));
        }
        println!("{told:?}");
        for (name, fate) in told {
            let parts = fate.trim_start_matches("fate: ").split("; ");
            for part in parts {
                let numbers: Vec<u64> = part
                    .split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect();
                let [lost, _, silence] = numbers[..] else {
                    anyhow::bail!("{part:?}");
                };
                let may_lose = if part.starts_with("udp") { times } else { 0 };
                ensure!(lost <= may_lose, "{name}: {fate}");
                // On a machine that runs other tests too, the server itself may be silent.
                let longest = soaked(u64::MAX, longest);
                ensure!(silence <= longest, "{name}: {fate}");
            }
        }
        Ok(())
    }
}

#[test]
fn adopt_and_release_break_nothing() -> Result<()> {
    let stock = Stock::new("adopt")?;
    let before = stock.rules()?;
    let traffic = stock.traffic()?;
    let mut agent = stock.host.agent().start()?;
    std::thread::sleep(Duration::from_secs(1));
    let newer = stock.traffic()?;
    let status = stock.host.json("status")?;
    ensure!(status["mode"] == "adopt", "{status:#}");
    stock.host.cli(&["release"])?;
    ensure!(agent.ended()?.is_some(), "the agent goes on");
    std::thread::sleep(Duration::from_secs(1));
    traffic.check_after(2, SILENCE)?;
    newer.check()?;
    let after = stock.rules()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}
