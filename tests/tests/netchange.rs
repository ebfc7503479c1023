// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's own network changes and the agent follows: addresses, routes, devices, MTUs, and
//! notices that the kernel had to drop.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Container, Docker, Far, Host, Lab, Peer, Process, eventually, veth};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(5);
/// What is promised is a second; a machine that others use as well gets more.
const CONVERGED: Duration = Duration::from_secs(10);
/// A server behind the LAN.
const FAR: &str = "198.19.1.2:7000";

/// A host with a server published as 8080, and a server that it reaches through the LAN.
struct Site {
    lab: Lab,
    host: Host,
    web: Container,
    _far: Far,
    server: Process,
    agent: Agent,
}

impl Site {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::replace())?;
        let web = host.run(
            "web",
            &["-p", "8080:80", "-p", "8080:80/udp"],
            &Peer::serve(80),
        )?;
        let far = lab.far()?;
        let mut server = far.spawn_peer(&["serve", "7000"])?;
        server.line("serving", SOON)?;
        let agent = host.agent().start()?;
        Ok(Self {
            lab,
            host,
            web,
            _far: far,
            server,
            agent,
        })
    }

    /// Another device of the host's towards the LAN, 198.18.101.1/24 beside the LAN's .2.
    fn second_uplink(&self) -> Result<()> {
        let here = (&*self.host as &harness::Space, "up1", "198.18.101.1/24");
        veth(here, (self.lab.lan(), "second", "198.18.101.2/24"))
    }

    fn reached_at(&self, address: &str) -> Result<()> {
        self.lab
            .lan()
            .peer(&["get", address, "--timeout=300"])
            .map(drop)
    }

    /// The address that a new connection of the container's shows.
    fn seen_as(&self) -> Result<String> {
        let seen = self.web.peer(&["get", FAR, "--timeout=300"])?;
        Ok(seen.split(':').next().unwrap_or_default().to_owned())
    }

    fn is_seen_as(&self, address: &str) -> Result<()> {
        let seen = self.seen_as()?;
        ensure!(seen == address, "new connections show {seen}");
        Ok(())
    }
}

/// Waits for what has to follow from an event and prints how long it took.
fn converges<T>(what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let value = eventually(CONVERGED, check).with_context(|| what.to_owned())?;
    println!("{what}: after {:?} (promised: 1s)", begun.elapsed());
    Ok(value)
}

fn refused(done: &Result<()>) -> Result<()> {
    ensure!(done.is_err(), "it still works");
    Ok(())
}

/// Addresses that come are published, and addresses that go are not any more.
#[test]
fn address_changes_are_published() -> Result<()> {
    let site = Site::new("addresses")?;
    site.reached_at("198.18.1.1:8080")?;
    refused(&site.reached_at("198.18.1.9:8080"))?;
    site.host.ip("address add 198.18.1.9/24 dev up0")?;
    converges("an address is added", || site.reached_at("198.18.1.9:8080"))?;
    site.is_seen_as("198.18.1.1")?;
    site.host.ip("address del 198.18.1.9/24 dev up0")?;
    converges("it is removed", || {
        refused(&site.reached_at("198.18.1.9:8080"))
    })?;

    // The primary address changes: new flows show the new one, old ones end as in nf_nat.
    let mut held = site
        .web
        .space()?
        .spawn_peer(&["hold", "3", FAR, "--timeout=500"])?;
    held.line("open 3", SOON)?;
    site.host.ip("address add 198.18.1.77/24 dev up0")?;
    site.host
        .sysctl("net/ipv4/conf/up0/promote_secondaries", "1")?;
    site.host.ip("address del 198.18.1.1/24 dev up0")?;
    site.host
        .ip("route replace default via 198.18.1.2 dev up0")?;
    converges("the primary address is another", || {
        site.is_seen_as("198.18.1.77")
    })?;
    held.tell("")?;
    assert_eq!(
        held.line("alive", SOON)?,
        "alive 0",
        "their address is not ours any more"
    );
    Ok(())
}

/// A default route that moves takes new flows along and ends old ones.
#[test]
fn new_default_route_ends_old_flows() -> Result<()> {
    let site = Site::new("routes")?;
    site.second_uplink()?;
    converges("a second uplink appears", || {
        site.reached_at("198.18.101.1:8080")
    })?;
    site.is_seen_as("198.18.1.1")?;
    let mut held = site
        .web
        .space()?
        .spawn_peer(&["hold", "3", FAR, "--timeout=500"])?;
    held.line("open 3", SOON)?;
    let from = "--bind=172.17.0.2:5555";
    assert_eq!(
        site.web.peer(&["udp", FAR, "x", from])?,
        "198.18.1.1:5555 x"
    );

    site.host
        .ip("route replace default via 198.18.101.2 dev up1")?;
    converges("the default route moves", || {
        site.is_seen_as("198.18.101.1")
    })?;
    held.tell("")?;
    assert_eq!(
        held.line("alive", SOON)?,
        "alive 0",
        "masqueraded as an address that they left"
    );
    let seen = converges("the old datagrams' flow", || {
        site.web.peer(&["udp", FAR, "x", from, "--timeout=300"])
    })?;
    assert_eq!(seen, "198.18.101.1:5555 x");
    let ended = site.host.json("status")?["reasons"]["route-moved"].as_u64();
    assert!(ended.is_some_and(|ended| ended >= 1), "{ended:?}");
    // Published connections keep their address whatever the way of their answers.
    site.reached_at("198.18.1.1:8080")?;
    site.reached_at("198.18.101.1:8080")?;

    site.host
        .ip("route replace default via 198.18.1.2 dev up0")?;
    converges("it moves back", || site.is_seen_as("198.18.1.1"))?;
    // Another gateway on the same device is no reason to end anything.
    let mut held = site.web.space()?.spawn_peer(&["hold", "3", FAR])?;
    held.line("open 3", SOON)?;
    site.lab.lan().ip("address add 198.18.1.200/24 dev h1")?;
    site.host
        .ip("route replace default via 198.18.1.200 dev up0")?;
    converges("another gateway", || site.is_seen_as("198.18.1.1"))?;
    held.tell("")?;
    assert_eq!(held.line("alive", SOON)?, "alive 3");
    let clients = site.server.lines();
    assert!(
        clients.iter().all(|line| !line.contains(" 172.")),
        "{clients:?}"
    );
    Ok(())
}

/// Devices may go down, come back and change their names.
#[test]
fn devices_may_go_down_and_be_renamed() -> Result<()> {
    let site = Site::new("devices")?;
    site.second_uplink()?;
    let other = "198.18.101.1:8080";
    converges("a device appears", || site.reached_at(other))?;
    site.host.ip("link set up1 down")?;
    refused(&site.reached_at(other))?;
    site.host.ip("link set up1 up")?;
    converges("it is up again", || site.reached_at(other))?;
    site.host.ip("link set up1 down")?;
    site.host.ip("link set up1 name wan7")?;
    site.host.ip("link set wan7 up")?;
    converges("it has another name", || site.reached_at(other))?;
    converges("and is shown so", || {
        let hooks = site.host.json("status")?["hooks"].clone();
        ensure!(
            hooks["wan7"].is_array() && hooks["up1"].is_null(),
            "{hooks}"
        );
        Ok(())
    })?;
    site.host.ip("link del wan7")?;
    converges("it has gone", || {
        let hooks = site.host.json("status")?["hooks"].clone();
        ensure!(hooks["wan7"].is_null(), "{hooks}");
        Ok(())
    })?;
    let links = site.host.pinned()?.links;
    assert_eq!(
        links.len(),
        7,
        "uplink, bridge, one veth, the way round: {links:?}"
    );

    // The uplink itself: its routes go with it and come back by hand, as anywhere.
    site.host.ip("link set up0 down")?;
    site.host.ip("link set up0 up")?;
    site.host
        .ip("route replace default via 198.18.1.2 dev up0")?;
    converges("the uplink is back", || site.reached_at("198.18.1.1:8080"))?;
    converges("also outwards", || site.is_seen_as("198.18.1.1"))
}

/// An uplink that changes fifty times is followed each time.
#[test]
fn fifty_uplink_changes_are_followed() -> Result<()> {
    let site = Site::new("fifty")?;
    site.second_uplink()?;
    for _ in 0..50 {
        site.host.ip("address add 198.18.1.9/24 dev up0")?;
        converges("an address", || site.reached_at("198.18.1.9:8080"))?;
        site.host.ip("address del 198.18.1.9/24 dev up0")?;
        converges("it goes", || refused(&site.reached_at("198.18.1.9:8080")))?;

        site.host
            .ip("route replace default via 198.18.101.2 dev up1")?;
        converges("another way", || site.is_seen_as("198.18.101.1"))?;
        // The way back is gone with the device.
        site.host.ip("link set up0 down")?;
        site.host.ip("link set up0 up")?;
        site.host
            .ip("route replace default via 198.18.1.2 dev up0")?;
        converges("the way back", || site.is_seen_as("198.18.1.1"))?;
        converges("the port", || site.reached_at("198.18.1.1:8080"))?;
    }
    let clients = site.server.lines();
    let strange = clients.iter().find(|line| line.contains(" 172."));
    ensure!(strange.is_none(), "{strange:?}");
    let hooks = site.host.pinned()?.links;
    ensure!(
        hooks.len() == 9,
        "two uplinks, bridge, one veth, the way round: {hooks:?}"
    );
    Ok(())
}

/// A smaller MTU holds at once, also for a transfer under way.
#[test]
fn smaller_mtu_holds_for_running_transfers() -> Result<()> {
    let site = Site::new("mtu")?;
    // As many frames as packets: nothing cuts them after the forwarder.
    site.web.space()?.ethtool("eth0", "tso off gso off")?;
    let at_lan = site.lab.lan().capture("h1")?;
    let fetch = ["fetch", "198.18.1.1:8080", "16000000", "--rate", "4000000"];
    let mut download = site.lab.lan().spawn_peer(&fetch)?;
    download.line("at ", SOON)?;
    let changed = SystemTime::now();
    site.host.ip("link set up0 mtu 1400")?;
    download.line("done 16000000", 3 * SOON)?;

    let frames = at_lan.frames()?;
    let data = frames
        .iter()
        .filter(|frame| !frame.outgoing && frame.bytes.len() > 1000);
    let (large, small): (Vec<_>, Vec<_>) = data.partition(|frame| frame.bytes.len() > 1414);
    let last = large.last().context("the first ones were whole")?.at;
    let late = last.duration_since(changed).unwrap_or_default();
    println!("the last frame over the new MTU: after {late:?} (promised: 1s)");
    assert!(late < CONVERGED, "frames over the MTU for {late:?}");
    assert!(
        small.len() > 1000,
        "only {} frames within the new MTU",
        small.len()
    );
    site.reached_at("198.18.1.1:8080")
}

/// Netlink notices that the kernel dropped are made up for.
#[test]
fn dropped_netlink_notices_are_recovered() -> Result<()> {
    let mut site = Site::new("overrun")?;
    site.agent.signal(Signal::STOP)?;
    // Far more than a socket holds.
    let flood: String = (0..3000)
        .map(|n| {
            let verb = if n % 2 == 0 { "add" } else { "del" };
            format!("address {verb} 198.18.200.1/32 dev up0\nlink set up0 alias n{n}\n")
        })
        .collect();
    let file = std::env::temp_dir().join(format!("netchange-{}", std::process::id()));
    fs::write(&file, flood)?;
    let done = site
        .host
        .cmd(&["ip", "-batch", file.to_str().context("a path")?]);
    fs::remove_file(&file)?;
    done?;
    // All that counts happens while nobody reads.
    site.second_uplink()?;
    site.host.ip("address add 198.18.1.9/24 dev up0")?;
    site.host
        .ip("route replace default via 198.18.101.2 dev up1")?;
    site.host
        .run("late", &["-p", "8081:80"], &Peer::serve(80))?;
    refused(&site.reached_at("198.18.1.9:8080"))?;
    refused(&site.reached_at("198.18.1.1:8081"))?;

    site.agent.signal(Signal::CONT)?;
    converges("an address", || site.reached_at("198.18.1.9:8080"))?;
    converges("a device", || site.reached_at("198.18.101.1:8080"))?;
    converges("a container", || site.reached_at("198.18.1.1:8081"))?;
    converges("a route", || site.is_seen_as("198.18.101.1"))?;
    assert!(
        site.agent.log().contains("dropped notifications"),
        "{}",
        site.agent.log()
    );
    Ok(())
}
