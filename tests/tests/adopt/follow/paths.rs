// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paths that change while connections are followed: between networks, and to a smaller MTU.

use anyhow::{Context as _, Result};
use harness::{Host, Peer, serve};

use super::scenario::{allows, goes_on_again, iptables, on_both, refuses, serves, stream};
use super::{BAN, goes_on, stands};
use crate::{PUBLISHED, Stock};

/// The MTU of a link behind the LAN, once it becomes narrow.
const NARROW: u16 = 1000;

/// A way between two networks that the administrator opens is fast, and closes within a second.
#[test]
fn way_between_networks_is_followed() -> Result<()> {
    let stock = Stock::new("between")?;
    let host = &stock.host;
    let bridge = |network: &str| -> Result<String> {
        let id = host.docker(&["network", "inspect", "-f", "{{.Id}}", network])?;
        Ok(format!("br-{}", &id.trim()[..12]))
    };
    let (app, db) = (bridge("app")?, bridge("db")?);
    let open = |verb: &str| -> Result<()> {
        for (from, to) in [(&app, &db), (&db, &app)] {
            let rule = format!("DOCKER-USER -i {from} -o {to} -j ACCEPT");
            iptables(host, &format!("{verb} {rule}"))?;
        }
        Ok(())
    };
    iptables(host, &format!("-I {}", BAN.join(" ")))?;
    let client = host.run("client", &["--network=app"], &Peer::idle())?;
    let client = client.space()?;
    let store = format!("{}:90", host.container("store").ip()?);
    on_both(&stock, |scenario| {
        let reaches = || serves(&client, &store, "172.");
        scenario.mode("app", "follow")?;
        scenario.mode("db", "follow")?;
        refuses(reaches).context("closed")?;
        open("-I")?;
        allows(reaches).context("open")?;
        let mut stream = stream(&client, &store)?;
        scenario.fast()?;
        goes_on(&mut stream)?;
        open("-D")?;
        stands(&mut stream)?;
        refuses(reaches).context("closed again")
    })
}

/// Streams of both directions go on when a link on their way becomes narrow.
#[test]
fn followed_streams_learn_a_smaller_mtu() -> Result<()> {
    let stock = Stock::new("narrow")?;
    let far = stock.lab.far()?;
    let _server = serve(&far, 7000)?;
    let lan = stock.lab.lan();
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    let link = |mtu: u16| -> Result<()> {
        far.ip(&format!("link set eth0 mtu {mtu}"))?;
        lan.ip(&format!("link set far1 mtu {mtu}")).map(drop)
    };
    let forget = |host: &Host| -> Result<()> {
        for name in ["inside", "web"] {
            host.container(name).space()?.ip("route flush cache")?;
        }
        Ok(())
    };
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        scenario.mode("bridge", "follow")?;
        link(1500)?;
        forget(host)?;
        let mut inward = stream(&far, PUBLISHED)?;
        scenario.fast().context("inward")?;
        link(NARROW)?;
        goes_on_again(&mut inward).context("inward, narrow")?;
        scenario.fast().context("inward, narrow")?;
        inward.kill()?;
        link(1500)?;
        let inside = stock.inside.space()?;
        let to = format!("{}:7000", far.address());
        let mut outward = stream(&inside, &to)?;
        scenario.fast().context("outward")?;
        link(NARROW)?;
        goes_on_again(&mut outward).context("outward, narrow")
    })
}
