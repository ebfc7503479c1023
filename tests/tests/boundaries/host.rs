// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host is never cut off: a network's address range makes nobody a container who is none.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Docker, Far, Host, Lab, Netns, Peer, Space, eventually, serve, veth};

const SOON: Duration = Duration::from_secs(5);
/// A server behind the LAN.
const FAR: &str = "198.19.1.2:7000";

/// Fails with the names of all checks that failed.
fn all(checks: Vec<(&str, Result<()>)>) -> Result<()> {
    let failed: Vec<_> = checks
        .into_iter()
        .filter_map(|(what, done)| done.err().map(|error| format!("{what}: {error:#}")))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// One request over TCP.
fn get(from: &Space, to: &str) -> Result<()> {
    from.peer(&["get", to, "--timeout=800"]).map(drop)
}

/// One datagram that needs fragments, and its answer.
fn large(from: &Space, to: &str) -> Result<()> {
    let payload = "x".repeat(4000);
    from.peer(&["udp", to, &payload, "--timeout=800"]).map(drop)
}

fn is_refused(done: &Result<()>) -> Result<()> {
    ensure!(done.is_err(), "it works");
    Ok(())
}

/// A host between the LAN and a second one, 198.18.101.0/24, with a server behind the LAN.
struct Between {
    lab: Lab,
    host: Host,
    other: Netns,
    _far: Far,
    _servers: Vec<harness::Process>,
    _agent: Option<Agent>,
}

impl Between {
    fn new(label: &str, docker: Docker, ours: bool) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(docker)?;
        let other = lab.netns("other")?;
        veth(
            (&host, "up1", "198.18.101.1/24"),
            (&other, "eth0", "198.18.101.2/24"),
        )?;
        other.ip("route add default via 198.18.101.1")?;
        lab.lan().ip("route add 198.18.101.0/24 via 198.18.1.1")?;
        if !ours {
            // What the host forwards for others is not what is compared.
            host.cmd(&["iptables", "-P", "FORWARD", "ACCEPT"])?;
        }
        let far = lab.far()?;
        let servers = vec![
            serve(&host, 7777)?,
            serve(lab.lan(), 7777)?,
            serve(&other, 7777)?,
            serve(&far, 7000)?,
        ];
        let agent = ours.then(|| host.agent().start()).transpose()?;
        host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
        Ok(Self {
            lab,
            host,
            other,
            _far: far,
            _servers: servers,
            _agent: agent,
        })
    }

    /// A network, with a container in it.
    fn network(&self, name: &str, subnet: &str, gateway: &str) -> Result<()> {
        let ranges = ["--subnet", subnet, "--gateway", gateway];
        self.host
            .docker(&[&["network", "create"], &ranges[..], &[name]].concat())?;
        self.host.run(
            &format!("in-{name}"),
            &["--network", name],
            &Peer::serve(80),
        )?;
        Ok(())
    }

    /// What must work whatever ranges Docker has: the host's own traffic with the LAN and what it
    /// forwards between others.
    fn host_is_reached(&self) -> Result<()> {
        let (host, lan, other) = (&*self.host, &**self.lab.lan(), &*self.other);
        let web = self.host.container("web").space()?;
        all(vec![
            ("from the LAN", get(lan, "198.18.1.1:7777")),
            ("to the LAN", get(host, "198.18.1.2:7777")),
            ("from the LAN in fragments", large(lan, "198.18.1.1:7777")),
            ("to the LAN in fragments", large(host, "198.18.1.2:7777")),
            ("a published port", get(lan, "198.18.1.1:8080")),
            ("for others", get(other, "198.18.1.2:7777")),
            ("for others, back", get(lan, "198.18.101.2:7777")),
            ("for others in fragments", large(other, "198.18.1.2:7777")),
            ("a container to the LAN", get(&web, "198.18.1.2:7777")),
            ("a container to others", get(&web, FAR)),
        ])
    }

    /// The containers of the network stay behind its boundary.
    fn network_is_guarded(&self, name: &str) -> Result<()> {
        let inside = self.host.container(&format!("in-{name}"));
        let address = inside.ip()?;
        self.lab
            .lan()
            .ip(&format!("route replace {address}/32 via 198.18.1.1"))?;
        let straight = get(self.lab.lan(), &format!("{address}:80"));
        let web = self.host.container("web").space()?;
        let seen = inside.space()?.peer(&["get", FAR, "--timeout=800"]);
        all(vec![
            ("direct routing", is_refused(&straight)),
            (
                "another network",
                is_refused(&get(&web, &format!("{address}:80"))),
            ),
            (
                "masquerade",
                seen.and_then(|seen| {
                    ensure!(seen.starts_with("198.18.1.1:"), "seen as {seen}");
                    Ok(())
                }),
            ),
        ])
    }
}

/// A network whose range holds the LANs, and one that has the LAN's own range.
fn ranges_take_no_lan(site: &Between) -> Result<()> {
    site.host_is_reached().context("before")?;
    site.network("wide", "198.18.0.0/16", "198.18.0.1")?;
    eventually(SOON, || site.host_is_reached()).context("a range around the LAN")?;
    Ok(())
}

/// The uplink gets an address in the range of a network that is there already.
fn addresses_come_into_a_range(site: &Between) -> Result<()> {
    site.network("early", "198.18.64.0/18", "198.18.64.1")?;
    site.host.ip("address add 198.18.77.1/24 dev up0")?;
    site.lab.lan().ip("address add 198.18.77.2/24 dev h1")?;
    eventually(SOON, || {
        site.host_is_reached()?;
        get(site.lab.lan(), "198.18.77.1:7777")?;
        get(site.lab.lan(), "198.18.77.1:8080")?;
        get(&site.host, "198.18.77.2:7777")
    })
}

#[test]
fn host_keeps_lan_inside_network_range() -> Result<()> {
    let site = Between::new("wide", Docker::replace(), true)?;
    ranges_take_no_lan(&site)?;
    site.network_is_guarded("wide")
}

#[test]
fn host_keeps_lan_of_network_range() -> Result<()> {
    let site = Between::new("same", Docker::replace(), true)?;
    site.network("same", "198.18.1.0/24", "198.18.1.1")?;
    eventually(SOON, || site.host_is_reached())
}

#[test]
fn host_keeps_addresses_that_come_into_range() -> Result<()> {
    let site = Between::new("early", Docker::replace(), true)?;
    addresses_come_into_a_range(&site)?;
    site.network_is_guarded("early")
}

#[test]
fn stock_keeps_lan_inside_network_range() -> Result<()> {
    ranges_take_no_lan(&Between::new("stock-wide", Docker::stock(), false)?)?;
    addresses_come_into_a_range(&Between::new("stock-early", Docker::stock(), false)?)?;
    let site = Between::new("stock-same", Docker::stock(), false)?;
    site.network("same", "198.18.1.0/24", "198.18.1.1")?;
    eventually(SOON, || site.host_is_reached())
}

/// A host whose default network is on a bridge of its own, with a port that leads to another LAN:
/// 198.18.50.0/24, and behind that 203.0.113.0/24.
struct Bridged {
    lab: Lab,
    host: Host,
    station: Netns,
    _servers: Vec<harness::Process>,
    _agent: Option<Agent>,
}

const STATION: &str = "198.18.50.7";
const BEHIND: &str = "203.0.113.7";

impl Bridged {
    fn new(label: &str, docker: Docker, ours: bool) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(docker.on_bridge("br0", "198.18.50.1/24"))?;
        let station = lab.netns("station")?;
        let ends = format!("type veth peer name eth0 netns {}", station.name());
        host.ip(&format!("link add port0 {ends}"))?;
        host.ip("link set port0 master br0 up")?;
        host.ip(&format!("route add 203.0.113.0/24 via {STATION}"))?;
        station.ip(&format!("address add {STATION}/24 dev eth0"))?;
        station.ip("link set eth0 up")?;
        station.ip(&format!("address add {BEHIND}/32 dev lo"))?;
        station.ip("route add default via 198.18.50.1")?;
        let servers = vec![
            serve(&host, 7777)?,
            serve(&station, 7777)?,
            serve(lab.lan(), 7777)?,
        ];
        let agent = ours.then(|| host.agent().start()).transpose()?;
        host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
        Ok(Self {
            lab,
            host,
            station,
            _servers: servers,
            _agent: agent,
        })
    }

    /// What the station and those behind it reach, and who reaches them.
    fn port_leads_to_a_lan(&self) -> Result<()> {
        let (host, station) = (&*self.host, &*self.station);
        let web = self.host.container("web");
        let address = web.ip()?;
        let by = |source: &str, to: &str| {
            let bind = format!("--bind={source}:0");
            station.peer(&["get", to, "--timeout=800", &bind]).map(drop)
        };
        let inside = web.space()?;
        all(vec![
            ("the host", get(station, "198.18.50.1:7777")),
            ("the host in fragments", large(station, "198.18.50.1:7777")),
            ("its other address", get(station, "198.18.1.1:7777")),
            ("a published port", get(station, "198.18.50.1:8080")),
            ("a container", get(station, &format!("{address}:80"))),
            ("the LAN", get(station, "198.18.1.2:7777")),
            ("from the host", get(host, &format!("{STATION}:7777"))),
            ("from a container", get(&inside, &format!("{STATION}:7777"))),
            ("from behind, the host", by(BEHIND, "198.18.50.1:7777")),
            ("from behind, a port", by(BEHIND, "198.18.50.1:8080")),
            ("to behind", get(host, &format!("{BEHIND}:7777"))),
            (
                "to behind from a container",
                get(&inside, &format!("{BEHIND}:7777")),
            ),
            ("the LAN, a port", get(self.lab.lan(), "198.18.1.1:8080")),
            ("a container to the LAN", get(&inside, "198.18.1.2:7777")),
        ])
    }
}

#[test]
fn bridge_port_leads_to_a_lan() -> Result<()> {
    let site = Bridged::new("port", Docker::replace(), true)?;
    eventually(SOON, || site.port_leads_to_a_lan())?;
    // A station that takes the container's address speaks for nobody.
    let web = site.host.container("web").ip()?;
    let station = &*site.station;
    station.ip(&format!("address add {web}/32 dev lo"))?;
    let bind = format!("--bind={web}:0");
    let forged = ["get", "198.18.1.1:7777", "--timeout=300", &bind];
    is_refused(&station.peer(&forged).map(drop))
}

#[test]
fn stock_bridge_port_leads_to_a_lan() -> Result<()> {
    let site = Bridged::new("stock-port", Docker::stock(), false)?;
    eventually(SOON, || site.port_leads_to_a_lan())
}
