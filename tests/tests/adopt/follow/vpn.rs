// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kill switch of a VPN: containers' packets leave by the VPN's device or not at all.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use harness::{Capture, Netns, Process, eventually, serve, veth};

use super::scenario::{goes_on_again, iptables, on_both, refuses, serves, stream};
use super::{BAN, HOLDS, stands};
use crate::{OUTSIDE, SOON, Stock};

/// A machine behind the VPN, which the LAN would be asked for without it.
const BEHIND: &str = "10.9.0.2:7000";
const KILL_SWITCH: &str = "DOCKER-USER -i docker0 ! -o wg0 -j DROP";

/// The other end of the host's `wg0`.
struct Vpn {
    _far: Netns,
    _server: Process,
}

impl Vpn {
    fn new(stock: &Stock) -> Result<Self> {
        let far = stock.lab.netns("vpn")?;
        let (here, there) = ("10.9.0.1/24", "10.9.0.2/24");
        veth((&stock.host, "wg0", here), (&far, "eth0", there))?;
        let server = serve(&far, 7000)?;
        Ok(Self {
            _far: far,
            _server: server,
        })
    }
}

fn route(stock: &Stock) -> Result<()> {
    let route = "route replace 10.9.0.0/24 dev wg0 src 10.9.0.1";
    stock.host.ip(route).map(drop)
}

/// Returns how many packets for a destination and port have come to the LAN since.
fn leaked(capture: &Capture, since: SystemTime, to: &str) -> Result<usize> {
    let frames = capture.frames()?;
    let (address, _) = to.split_once(':').context("no port")?;
    let wanted = address.parse::<Ipv4Addr>()?;
    let port = 7000_u16.to_be_bytes();
    let leaked = frames.iter().filter(|frame| {
        let is_for = frame.ipv4().is_some_and(|(_, to)| to == wanted);
        !frame.outgoing && frame.at > since && is_for && frame.bytes.get(36..38) == Some(&port)
    });
    Ok(leaked.count())
}

/// A kill switch stops streams past the VPN within a second and refuses new ones; streams through
/// the VPN go on and are fast.
fn kill_switch(stock: &Stock, before: &str) -> Result<()> {
    let _vpn = Vpn::new(stock)?;
    let _other = serve(stock.lab.lan(), 7001)?;
    on_both(stock, |scenario| {
        let host = scenario.host();
        let inside = stock.inside.space()?;
        scenario.mode("bridge", before)?;
        let mut through = stream(&inside, BEHIND)?;
        scenario.fast().context("through the VPN")?;
        let mut past = scenario.outward()?;
        scenario.fast().context("past the VPN")?;
        let capture = stock.lab.lan().capture("h1")?;
        iptables(host, &format!("-I {KILL_SWITCH}"))?;
        let since = SystemTime::now();
        stands(&mut past)?;
        refuses(|| scenario.reaches())?;
        serves(&inside, BEHIND, "10.9.0.1").context("through the VPN")?;
        goes_on_again(&mut through)?;
        scenario.fast().context("through the VPN, still")?;
        let app = host.container("web").space()?;
        serves(&app, "198.18.1.2:7001", "198.18.1.1").context("another network")?;
        let leaked = leaked(&capture, since + HOLDS, OUTSIDE)?;
        ensure!(leaked == 0, "{leaked} packets leak");
        iptables(host, &format!("-D {KILL_SWITCH}"))?;
        goes_on_again(&mut past)
    })
}

/// The streams are followed already.
#[test]
fn kill_switch_holds_for_followed_flows() -> Result<()> {
    let stock = Stock::new("killswitch")?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    kill_switch(&stock, "follow")
}

/// The streams are the forwarder's own until then.
#[test]
fn kill_switch_holds_for_own_flows() -> Result<()> {
    kill_switch(&Stock::new("killown")?, "own")
}

/// When the VPN falls, nothing takes the way that remains.
#[test]
fn kill_switch_leaks_nothing() -> Result<()> {
    let stock = Stock::new("leak")?;
    let _vpn = Vpn::new(&stock)?;
    iptables(&stock.host, &format!("-I {KILL_SWITCH}"))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        let inside = stock.inside.space()?;
        scenario.mode("bridge", "follow")?;
        for (what, fall) in [
            ("without its device", "link set wg0 down"),
            ("without its route", "route del 10.9.0.0/24"),
        ] {
            route(&stock)?;
            let mut through = inside.spawn_peer(&["datagrams", BEHIND])?;
            through.line("at ", SOON)?;
            scenario.fast().context("through the VPN")?;
            let capture = stock.lab.lan().capture("h1")?;
            let since = SystemTime::now();
            host.ip(fall)?;
            stands(&mut through)?;
            sleep(HOLDS);
            let leaked = leaked(&capture, since, BEHIND)?;
            ensure!(leaked == 0, "{leaked} packets leak {what}");
            host.ip("link set wg0 up")?;
            route(&stock)?;
            eventually(SOON, || serves(&inside, BEHIND, "10.9.0.1")).context("again")?;
        }
        Ok(())
    })
}
