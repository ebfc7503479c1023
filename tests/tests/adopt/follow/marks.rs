// SPDX-License-Identifier: MIT OR Apache-2.0
//! Routing by marks, which the kernel alone knows, and routing by sources, which the fast path
//! follows.

use anyhow::{Context as _, Result, ensure};
use harness::{Netns, Process, eventually, serve, veth};

use super::scenario::{Scenario, iptables, on_both, serves, stream};
use super::{BAN, HOLDS, goes_on, is_slow};
use crate::Stock;

/// A server that both gateways have.
const SERVER: &str = "203.0.113.7:7000";

/// The host's second gateway, behind `up1`.
struct Second {
    gateway: Netns,
    _server: Process,
}

impl Second {
    fn new(stock: &Stock) -> Result<Self> {
        let gateway = stock.lab.netns("second")?;
        let (here, there) = ("10.9.0.1/24", "10.9.0.2/24");
        veth((&stock.host, "up1", here), (&gateway, "eth0", there))?;
        let lan = stock.lab.lan();
        for space in [&*gateway, lan] {
            space.ip("address add 203.0.113.7/32 dev lo")?;
        }
        let host = &stock.host;
        host.ip("route add default via 10.9.0.2 dev up1 table 100")?;
        // The LAN has a server of this port already.
        let server = serve(&gateway, 7000)?;
        Ok(Self {
            gateway,
            _server: server,
        })
    }
}

/// What a container sends leaves by the second gateway, from `by` on.
fn leaves_by_second(
    scenario: &Scenario<'_>,
    second: &Second,
    network: &str,
    modes: [&str; 2],
    by: &dyn Fn(bool) -> Result<()>,
) -> Result<()> {
    let stock = scenario.stock;
    let inside = stock.inside.space()?;
    scenario.mode(network, modes[0])?;
    serves(&inside, SERVER, "198.18.1.1").context("before")?;
    by(true)?;
    scenario.mode(network, modes[1])?;
    eventually(HOLDS, || serves(&inside, SERVER, "10.9.0.1"))?;
    let capture = second.gateway.capture("eth0")?;
    let mut stream = stream(&inside, SERVER)?;
    goes_on(&mut stream)?;
    let through = capture.count(|frame| !frame.outgoing)?;
    ensure!(through > 0, "nothing leaves by the second gateway");
    if modes[1] == "off" && scenario.is_adopted {
        is_slow(&stock.host)?;
    } else {
        scenario.fast()?;
    }
    stream.kill()?;
    by(false)?;
    scenario.mode(network, modes[0])?;
    eventually(HOLDS, || serves(&inside, SERVER, "198.18.1.1")).context("after")
}

/// A network whose packets are routed by a mark is the kernel's.
#[test]
fn routing_by_mark_holds() -> Result<()> {
    let stock = Stock::new("fwmark")?;
    let second = Second::new(&stock)?;
    stock.host.ip("rule add fwmark 7 table 100")?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        let mark = "PREROUTING -s 172.17.0.0/16 -j MARK --set-mark 7";
        leaves_by_second(scenario, &second, "bridge", ["own", "off"], &|is_on| {
            let verb = if is_on { "-I" } else { "-D" };
            iptables(host, &format!("-t mangle {verb} {mark}"))
        })?;
        scenario.mode("app", "own")
    })
}

/// Routing by source takes nothing away from the fast path.
#[test]
fn routing_by_source_is_fast() -> Result<()> {
    let stock = Stock::new("iprule")?;
    let second = Second::new(&stock)?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        leaves_by_second(scenario, &second, "bridge", ["own", "own"], &|is_on| {
            let verb = if is_on { "add" } else { "del" };
            host.ip(&format!("rule {verb} from 172.17.0.0/16 table 100"))
                .map(drop)
        })
    })
}

/// So it does where other people's rules decide.
#[test]
fn routing_by_source_is_followed() -> Result<()> {
    let stock = Stock::new("rulefollow")?;
    let second = Second::new(&stock)?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        leaves_by_second(
            scenario,
            &second,
            "bridge",
            ["follow", "follow"],
            &|is_on| {
                let verb = if is_on { "add" } else { "del" };
                host.ip(&format!("rule {verb} from 172.17.0.0/16 table 100"))
                    .map(drop)
            },
        )
    })
}
