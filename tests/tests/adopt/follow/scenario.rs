// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each test does twice: on the stock host, which is the control, and with the agent.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Host, Process, Space, eventually};

use super::{CLIENT, HOLDS, goes_on, is_fast, is_in_mode};
use crate::{OUTSIDE, PUBLISHED, SOON, Stock};

/// A stream that outlasts a test, and the time after which it counts as broken.
const STREAM: [&str; 3] = ["400000000", "--rate=4000000", "--timeout=20000"];
/// How long a request waits that may be refused.
const SHORT: &str = "--timeout=400";

/// A stock host, or the same one with an agent.
pub(super) struct Scenario<'a> {
    pub(super) stock: &'a Stock,
    pub(super) is_adopted: bool,
}

/// Runs a body on the stock host, and again with an agent.
pub(super) fn on_both(stock: &Stock, body: impl Fn(&Scenario<'_>) -> Result<()>) -> Result<()> {
    let run = |is_adopted| body(&Scenario { stock, is_adopted });
    run(false).context("on the stock host")?;
    let _agent = stock.host.agent().start()?;
    run(true).context("on the adopted host")
}

impl Scenario<'_> {
    pub(super) fn host(&self) -> &Host {
        &self.stock.host
    }

    /// Checks a network's mode where an agent runs.
    pub(super) fn mode(&self, network: &str, wanted: &str) -> Result<()> {
        if !self.is_adopted {
            return Ok(());
        }
        eventually(HOLDS, || is_in_mode(self.host(), network, wanted))
    }

    /// Checks that packets take the fast path where an agent runs.
    pub(super) fn fast(&self) -> Result<()> {
        if !self.is_adopted {
            return Ok(());
        }
        eventually(SOON, || is_fast(self.host())).inspect_err(|_| {
            for words in [["flows", "-o=wide"], ["networks", "-v"], ["status", "-v"]] {
                println!("{}", self.host().cli(&words).unwrap_or_default());
            }
            let known = self.host().cmd(&["conntrack", "-L"]);
            println!("{}", known.unwrap_or_default());
        })
    }

    /// Starts a stream from the published server to the LAN.
    pub(super) fn inward(&self) -> Result<Process> {
        stream(self.stock.lab.lan(), PUBLISHED)
    }

    /// Starts a stream from the LAN's server to the container of the default network.
    pub(super) fn outward(&self) -> Result<Process> {
        stream(&self.stock.inside.space()?, OUTSIDE)
    }

    /// Checks that the client on the LAN is served.
    pub(super) fn serves(&self) -> Result<()> {
        serves(self.stock.lab.lan(), PUBLISHED, CLIENT)
    }

    /// Checks that the container of the default network reaches the LAN.
    pub(super) fn reaches(&self) -> Result<()> {
        serves(&self.stock.inside.space()?, OUTSIDE, "198.18.1.1:")
    }
}

/// Starts a stream from a server and waits until it flows.
pub(super) fn stream(client: &Space, to: &str) -> Result<Process> {
    let mut stream = client.spawn_peer(&[&["fetch", to], &STREAM[..]].concat())?;
    goes_on(&mut stream)?;
    Ok(stream)
}

/// Checks that a server answers, and which client it sees.
pub(super) fn serves(client: &Space, to: &str, seen: &str) -> Result<()> {
    let answer = client.peer(&["get", to, SHORT])?;
    ensure!(answer.starts_with(seen), "{to} sees {answer}");
    Ok(())
}

/// Waits until a check fails, for as long as rules may take to hold.
pub(super) fn refuses(check: impl Fn() -> Result<()>) -> Result<()> {
    eventually(HOLDS, || {
        ensure!(check().is_err(), "it is not refused");
        Ok(())
    })
}

/// Waits until a check succeeds, for as long as rules may take to hold.
pub(super) fn allows(check: impl Fn() -> Result<()>) -> Result<()> {
    eventually(HOLDS, check)
}

/// Runs iptables with words without spaces.
pub(super) fn iptables(host: &Host, words: &str) -> Result<()> {
    let words: Vec<_> = words.split_whitespace().collect();
    let fixed = ["iptables", "-w"];
    host.cmd(&[&fixed, &words[..]].concat()).map(drop)
}

/// Loads a text of rules.
pub(super) fn load(host: &Host, program: &str, rules: &str) -> Result<()> {
    let script = format!("printf '%s\\n' \"$1\" | {program}");
    host.cmd(&["sh", "-c", &script, "sh", rules]).map(drop)
}

/// A stream that has stopped and goes on later has to send again first, ever more rarely.
pub(super) fn goes_on_again(stream: &mut Process) -> Result<()> {
    while stream.line("at ", Duration::ZERO).is_ok() {}
    stream.line("at ", SOON * 2).map(drop)
}
