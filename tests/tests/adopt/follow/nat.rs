// SPDX-License-Identifier: MIT OR Apache-2.0
//! The administrator's own translations: SNAT, DNAT and REDIRECT.

use anyhow::{Context as _, Result};
use harness::serve;

use super::goes_on;
use super::scenario::{iptables, on_both, serves, stream};
use crate::{OUTSIDE, Stock};

/// The host's second address.
const SECOND: &str = "198.18.1.9";
/// A port of the host that Docker does not publish.
const OWN_PORT: &str = "198.18.1.1:9999";

/// Containers leave with the address that the administrator chose, and are fast.
#[test]
fn own_snat_holds() -> Result<()> {
    let stock = Stock::new("snat")?;
    stock.host.ip(&format!("address add {SECOND}/24 dev up0"))?;
    let rule = format!("-s 172.17.0.0/16 -o up0 -j SNAT --to-source {SECOND}");
    iptables(&stock.host, &format!("-t nat -I POSTROUTING {rule}"))?;
    on_both(&stock, |scenario| {
        let inside = stock.inside.space()?;
        scenario.mode("bridge", "follow")?;
        scenario.mode("app", "own")?;
        serves(&inside, OUTSIDE, SECOND)?;
        let app = stock.host.container("web").space()?;
        serves(&app, OUTSIDE, "198.18.1.1").context("another network")?;
        let mut stream = scenario.outward()?;
        scenario.fast()?;
        goes_on(&mut stream)
    })
}

/// A container is served by a port that the administrator, not Docker, leads to it, and is fast.
#[test]
fn own_dnat_holds() -> Result<()> {
    let stock = Stock::new("dnat")?;
    let inside = stock.inside.space()?;
    let _server = serve(&inside, 81)?;
    let to = stock.inside.ip()?;
    let rule = format!("-d 198.18.1.1 -p tcp --dport 9999 -j DNAT --to-destination {to}:81");
    iptables(&stock.host, &format!("-t nat -I PREROUTING {rule}"))?;
    let accept = format!("-I DOCKER-USER -d {to} -p tcp --dport 81 -j ACCEPT");
    iptables(&stock.host, &accept)?;
    on_both(&stock, |scenario| {
        let lan = stock.lab.lan();
        scenario.mode("bridge", "follow")?;
        serves(lan, OWN_PORT, "198.18.1.2")?;
        let mut stream = stream(lan, OWN_PORT)?;
        scenario.fast()?;
        goes_on(&mut stream)
    })
}

/// What a network asks of a port ends at the host's own server; all else goes out, and is fast.
#[test]
fn redirect_holds() -> Result<()> {
    let stock = Stock::new("redirect")?;
    let _own = serve(&stock.host, 7100)?;
    let _other = serve(stock.lab.lan(), 7001)?;
    let rule = "-i docker0 -p tcp --dport 7000 -j REDIRECT --to-ports 7100";
    iptables(&stock.host, &format!("-t nat -I PREROUTING {rule}"))?;
    on_both(&stock, |scenario| {
        let inside = stock.inside.space()?;
        let own = stock.inside.ip()?.to_string();
        scenario.mode("bridge", "follow")?;
        serves(&inside, OUTSIDE, &own)?;
        let mut redirected = scenario.outward()?;
        let mut other = stream(&inside, "198.18.1.2:7001")?;
        scenario.fast()?;
        goes_on(&mut redirected)?;
        goes_on(&mut other)
    })
}
