// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv6: what stays local, and who speaks in whose name. Each attack is tried before the agent is
//! started, where it succeeds, and then with it.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::attack::{Attacker, BRIDGE_GROUP, Mac, Watch, ethertype};
use harness::{
    Agent, Container, Docker, Host, Lab, Packet6, Peer, Space, eventually, holds, serve,
};

use crate::lists6::datagrams;
use crate::neighbour::learned;
use crate::{SETTLED, SOON};

/// The LAN's address and the host's there.
pub(super) const LAN: &str = "fd00:18::2";
pub(super) const HOST: &str = "fd00:18::1";

/// A host whose default bridge has fd00:17::/64 and which forwards IPv6, beside a LAN that knows the
/// way. No agent runs yet.
pub(super) struct Site {
    pub(super) host: Host,
    lab: Lab,
}

impl Site {
    pub(super) fn new(label: &str, docker: Docker) -> Result<Self> {
        let lab = Lab::new(label)?;
        let docker = docker.arg("--ipv6").arg("--fixed-cidr-v6=fd00:17::/64");
        let host = lab.host(docker)?;
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        host.ip(&format!("address add {HOST}/64 dev up0 nodad"))?;
        let device = host.lan_device();
        lab.lan()
            .sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
        lab.lan()
            .ip(&format!("address add {LAN}/64 dev {device} nodad"))?;
        lab.lan()
            .ip(&format!("route add fd00:10::/28 via {HOST}"))?;
        Ok(Self { host, lab })
    }

    pub(super) fn lan(&self) -> &Space {
        self.lab.lan()
    }

    /// A network with IPv6: `fd00:1N::/64`.
    pub(super) fn network(&self, name: &str, number: u8, options: &[&str]) -> Result<()> {
        let subnet = format!("fd00:1{number}::/64");
        let words = ["network", "create", "--ipv6", "--subnet", &subnet];
        self.host.docker(&[&words, options, &[name]].concat())?;
        Ok(())
    }

    pub(super) fn run(&self, name: &str, network: &str) -> Result<Container> {
        self.host
            .run(name, &["--network", network], &Peer::serve(80))
    }

    /// The agent, which knows of these containers' veths.
    pub(super) fn agent(&self, containers: &[&str]) -> Result<Agent> {
        let agent = self.host.agent().start()?;
        containers
            .iter()
            .try_for_each(|name| self.host.settle(name))?;
        Ok(agent)
    }

    pub(super) fn count(&self, reason: &str) -> Result<u64> {
        let status = self.host.json("status")?;
        let reasons = status["reasons"].as_object().context("no reasons")?;
        Ok(reasons.get(reason).and_then(|n| n.as_u64()).unwrap_or(0))
    }
}

/// A container's address.
pub(super) fn ipv6(container: &Container) -> Result<Ipv6Addr> {
    let words = "{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}";
    let text = container.inspect(words)?;
    text.parse()
        .with_context(|| format!("docker says address {text:?}"))
}

/// The link-local address that a MAC address stands for.
pub(super) fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let (first, second) = (pair(a ^ 2, b), pair(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, pair(0xfe, d), pair(e, f))
}

pub(super) fn ip(text: &str) -> Result<Ipv6Addr> {
    Ok(text.parse()?)
}

/// Asks a server's port 80 by TCP and UDP, and for an echo; all have to work.
pub(super) fn reaches(from: &Space, to: Ipv6Addr) -> Result<()> {
    from.peer(&["ping", &to.to_string()])?;
    from.peer(&["get", &format!("[{to}]:80")])?;
    from.peer(&["udp", &format!("[{to}]:80"), "x"])?;
    Ok(())
}

/// All have to fail.
pub(super) fn is_closed(from: &Space, to: Ipv6Addr) -> Result<()> {
    let (address, to) = (to.to_string(), format!("[{to}]:80"));
    for verb in [
        &["ping", &address, "--timeout", "300"][..],
        &["get", &to, "--timeout", "300"],
        &["udp", &to, "x", "--timeout", "300"],
    ] {
        ensure!(
            from.peer(verb).is_err(),
            "{} gets an answer: {verb:?}",
            from.name()
        );
    }
    Ok(())
}

/// Whether a frame carries IPv6 of this source.
fn is_from(frame: &harness::Frame, source: Ipv6Addr) -> bool {
    let body = frame.body(ethertype::IPV6);
    body.and_then(|body| body.get(8..24)) == Some(&source.octets()[..])
}

#[test]
fn ipv6_neighbours_and_host_are_served() -> Result<()> {
    let site = Site::new("v6-served", Docker::replace())?;
    site.network("six", 1, &[])?;
    let _agent = site.agent(&[])?;
    let _server = serve(&site.host, 80)?;
    for network in ["bridge", "six"] {
        // Asked at once, and of whom nobody knows a neighbour yet.
        let first = site.run(&format!("{network}-1"), network)?;
        let second = site.run(&format!("{network}-2"), network)?;
        reaches(&first.space()?, ipv6(&second)?)?;
        reaches(&site.host, ipv6(&second)?)?;
        first.space()?.peer(&["get", &format!("[{HOST}]:80")])?;
        let gateway = if network == "six" {
            "fd00:11::1"
        } else {
            "fd00:17::1"
        };
        reaches(&second.space()?, ip(gateway)?)?;
        // With every guard in place, and all neighbours forgotten.
        site.host.settle(first.name())?;
        site.host.settle(second.name())?;
        for space in [&first.space()?, &second.space()?] {
            space.ip("-6 neighbour flush all")?;
        }
        site.host.ip("-6 neighbour flush all")?;
        reaches(&second.space()?, ipv6(&first)?)?;
        reaches(&site.host, ipv6(&first)?)?;
        reaches(&first.space()?, ip(gateway)?)?;
        first
            .space()?
            .peer(&["get", &format!("{}:80", second.ip()?)])?;
        // A new link-local address is looked for twice (RFC 4862), and then is one's own.
        first.space()?.ip("link set eth0 down")?;
        first.space()?.ip("link set eth0 up")?;
        eventually(SOON, || {
            let tentative = first.space()?.ip("-6 address show dev eth0 tentative")?;
            let own = first.space()?.ip("-6 address show dev eth0 scope link")?;
            ensure!(
                tentative.is_empty() && own.contains("fe80"),
                "{own}{tentative}"
            );
            Ok(())
        })?;
    }
    for reason in [
        "spoofed-neighbour",
        "spoofed-source",
        "foreign-source",
        "ipv6-header",
    ] {
        ensure!(site.count(reason)? == 0, "{reason} on honest traffic");
    }
    Ok(())
}

#[test]
fn lan_reaches_no_container_by_ipv6() -> Result<()> {
    let site = Site::new("v6-inward", Docker::replace())?;
    site.network("inner", 1, &["--internal"])?;
    let routed = "com.docker.network.bridge.enable_ip_masquerade=false";
    site.network("plain", 2, &["-o", routed])?;
    let containers = [
        site.run("web", "bridge")?,
        site.run("inside", "inner")?,
        site.run("open", "plain")?,
    ];
    // An internal container has no way back to the LAN but the one that it makes.
    let space = containers[1].space()?;
    space.ip("-6 route replace default via fd00:11::1")?;
    for container in &containers {
        reaches(site.lan(), ipv6(container)?).context("the hole that there is without an agent")?;
    }
    let agent = site.agent(&["web", "inside", "open"])?;
    let places = containers
        .iter()
        .map(|container| container.space())
        .collect::<Result<Vec<_>>>()?;
    let watch = Watch::new(&[
        ("web", &places[0], "eth0"),
        ("inside", &places[1], "eth0"),
        ("open", &places[2], "eth0"),
    ])?;
    let closed = || {
        for container in &containers {
            is_closed(site.lan(), ipv6(container)?)?;
        }
        let seen = watch.saw(|frame| is_from(frame, LAN.parse().unwrap()))?;
        ensure!(seen.is_empty(), "it arrived: {seen:?}");
        Ok(())
    };
    closed()?;
    ensure!(site.count("direct-routing")? >= 4 && site.count("internal")? >= 2);
    drop(agent);
    closed().context("the agent is away")
}

#[test]
fn container_reaches_nobody_outside_by_ipv6() -> Result<()> {
    let site = Site::new("v6-outward", Docker::replace())?;
    site.network("second", 1, &[])?;
    site.network("inner", 2, &["--internal"])?;
    let _server = serve(site.lan(), 80)?;
    let web = site.run("web", "bridge")?;
    let other = site.run("other", "second")?;
    let inside = site.run("inside", "inner")?;
    inside
        .space()?
        .ip("-6 route replace default via fd00:12::1")?;
    let ways = || -> Result<Vec<_>> {
        let mut ways = Vec::new();
        for (from, to) in [
            (&web, &other),
            (&inside, &web),
            (&inside, &other),
            (&web, &inside),
        ] {
            ways.push((from.space()?, ipv6(to)?));
        }
        for from in [&web, &other, &inside] {
            ways.push((from.space()?, ip(LAN)?));
        }
        Ok(ways)
    };
    for (from, to) in ways()? {
        reaches(&from, to).context("the hole that there is without an agent")?;
    }
    let agent = site.agent(&["web", "other", "inside"])?;
    let device = site.host.lan_device();
    let watch = Watch::new(&[("LAN", site.lan(), &device)])?;
    let closed = || {
        for (from, to) in ways()? {
            is_closed(&from, to)?;
        }
        for container in [&web, &other, &inside] {
            let source = ipv6(container)?;
            let seen = watch.saw(|frame| is_from(frame, source))?;
            ensure!(seen.is_empty(), "it left: {seen:?}");
        }
        Ok(())
    };
    closed()?;
    for reason in ["isolated", "internal", "ipv6-forward"] {
        ensure!(site.count(reason)? >= 2, "{reason}");
    }
    drop(agent);
    closed().context("the agent is away")
}

#[test]
fn isolated_network_is_closed_by_ipv6() -> Result<()> {
    let site = Site::new("v6-isolated", Docker::replace())?;
    let label = "--label=forwarder.gateway_mode_ipv4=isolated";
    site.network("alone", 1, &["--internal", label])?;
    let first = site.run("first", "alone")?;
    let second = site.run("second", "alone")?;
    let web = site.run("web", "bridge")?;
    let _server = serve(&site.host, 80)?;
    let space = first.space()?;
    let gateway = ip("fd00:11::1")?;
    space.ip(&format!("-6 route replace default via {gateway}"))?;
    let ways = [
        (&space, gateway),
        (&space, ipv6(&web)?),
        (&site.host, ipv6(&first)?),
        (site.lan(), ipv6(&first)?),
        (&web.space()?, ipv6(&first)?),
    ];
    for (from, to) in &ways {
        reaches(from, *to).context("the hole that there is without an agent")?;
    }
    let agent = site.agent(&["first", "second", "web"])?;
    let closed = || -> Result<()> {
        ways.iter()
            .try_for_each(|(from, to)| is_closed(from, *to))?;
        reaches(&space, ipv6(&second)?)
    };
    closed()?;
    drop(agent);
    closed().context("the agent is away")
}

/// A bridge hands to the host what is for its group address, by the veth itself.
#[test]
fn bridge_group_address_does_not_reach_the_host() -> Result<()> {
    let site = Site::new("v6-group", Docker::replace())?;
    let label = "--label=forwarder.gateway_mode_ipv4=isolated";
    site.network("alone", 1, &["--internal", label])?;
    let first = site.run("first", "alone")?;
    let _server = serve(&site.host, 9)?;
    let mallory = Attacker::new(&first.space()?, "eth0", BRIDGE_GROUP)?;
    let packet = Packet6::udp((ipv6(&first)?, 7), (ip("ff02::1")?, 9), b"hello");
    let heard = || -> Result<u64> {
        let before = datagrams(&site.host)?;
        for last in 0..16 {
            let dress = mallory.dress().to([1, 0x80, 0xc2, 0, 0, last]);
            mallory.send(&dress.ipv6(&packet))?;
            mallory.send(&dress.priority(0).ipv6(&packet))?;
        }
        std::thread::sleep(SETTLED);
        Ok(datagrams(&site.host)? - before)
    };
    ensure!(heard()? >= 28, "no hole without an agent");
    let agent = site.agent(&["first"])?;
    ensure!(heard()? == 0, "the host hears it");
    ensure!(site.count("other-frame")? >= 32);
    drop(agent);
    ensure!(heard()? == 0, "the agent is away");
    Ok(())
}

/// A bridge learns stations from whatever comes.
#[test]
fn ipv6_frames_have_their_own_source_address() -> Result<()> {
    let site = Site::new("v6-station", Docker::replace())?;
    let liar = site.run("liar", "bridge")?;
    let victim = site.run("victim", "bridge")?;
    let mallory = Attacker::new(&liar.space()?, "eth0", site.host.mac("docker0")?)?;
    let stolen = victim.space()?.mac("eth0")?;
    let learns = || -> Result<Vec<String>> {
        victim.peer(&["ping", "172.17.0.1"])?;
        for to in [ip("fd00:17::1")?, ipv6(&victim)?, ip("ff02::1")?] {
            let packet = Packet6::udp((ipv6(&liar)?, 7), (to, 9), b"mine");
            for from in [mallory.mac(), [2, 0xaa, 0, 0, 0, 1], stolen] {
                mallory.send(&mallory.dress().from(from).ipv6(&packet))?;
            }
        }
        std::thread::sleep(SETTLED);
        learned(&site.host, &mallory)
    };
    let all = learns()?;
    // The victim's own frames may have taken its address back already.
    ensure!(all.len() >= 2, "no hole without an agent: {all:?}");
    let agent = site.agent(&["liar", "victim"])?;
    site.host.cmd(&[
        "ip",
        "link",
        "set",
        "docker0",
        "type",
        "bridge",
        "fdb_flush",
    ])?;
    let own = learns()?;
    ensure!(own.len() == 1, "learned: {own:?}");
    ensure!(site.count("spoofed-neighbour")? >= 6);
    drop(agent);
    let own = learns()?;
    ensure!(own.len() == 1, "the agent is away: {own:?}");
    Ok(())
}

#[test]
fn icc_false_holds_for_ipv6() -> Result<()> {
    let site = Site::new("v6-icc", Docker::replace())?;
    let option = "com.docker.network.bridge.enable_icc=false";
    site.network("apart", 1, &["-o", option])?;
    let first = site.run("first", "apart")?;
    let second = site.run("second", "apart")?;
    let _server = serve(&site.host, 80)?;
    let space = first.space()?;
    let neighbour = link_local(second.space()?.mac("eth0")?);
    let scoped = format!("[{neighbour}%{}]:80", device_index(&space)?);
    reaches(&space, ipv6(&second)?).context("the hole that there is without an agent")?;
    space
        .peer(&["get", &scoped])
        .context("the same by link-local addresses")?;
    let _agent = site.agent(&["first", "second"])?;
    let watch = Watch::new(&[("second", &second.space()?, "eth0")])?;
    space.ip("-6 neighbour flush all")?;
    is_closed(&space, ipv6(&second)?)?;
    ensure!(
        space.peer(&["get", &scoped, "--timeout", "300"]).is_err(),
        "by link-local"
    );
    let mac = space.mac("eth0")?;
    let seen = watch
        .saw(|frame| frame.source_mac() == Some(mac) && frame.body(ethertype::IPV6).is_some())?;
    ensure!(seen.is_empty(), "a sibling's IPv6 arrived: {seen:?}");
    // Neither do all those who listen hear it, nor whoever is named by the frame alone.
    let mallory = Attacker::new(&space, "eth0", second.space()?.mac("eth0")?)?;
    for to in [ipv6(&second)?, ip("fd00:11::1")?, ip("ff02::1")?] {
        let packet = Packet6::udp((ipv6(&first)?, 7), (to, 80), b"hello");
        mallory.send(&mallory.dress().ipv6(&packet))?;
        mallory.send(&mallory.dress().to_all().ipv6(&packet))?;
        mallory.send(&mallory.dress().priority(0).ipv6(&packet))?;
    }
    holds(Duration::from_millis(200), || {
        let seen = watch.saw(|frame| frame.source_mac() == Some(mac))?;
        let seen = seen
            .iter()
            .filter(|(_, frame)| frame.body(ethertype::IPV6).is_some())
            .count();
        ensure!(seen == 0, "{seen} of a sibling's frames arrived");
        Ok(())
    })?;
    // The gateway and the host are neighbours all the same.
    reaches(&space, ip("fd00:11::1")?)?;
    reaches(&site.host, ipv6(&second)?)
}

/// The index of a container's device, for a scope.
fn device_index(space: &Space) -> Result<String> {
    let line = space.ip("-o link show dev eth0")?;
    Ok(line.split(':').next().context("no index")?.to_owned())
}

#[test]
fn ipv4_only_network_sends_no_ipv6() -> Result<()> {
    let site = Site::new("v6-none", Docker::replace())?;
    site.host.docker(&["network", "create", "four"])?;
    site.host
        .docker(&["network", "create", "--internal", "inner"])?;
    let liars = [site.run("liar", "four")?, site.run("inside", "inner")?];
    let siblings = [
        site.run("sibling", "four")?,
        site.run("neighbour", "inner")?,
    ];
    let web = site.run("web", "bridge")?;
    let device = site.host.lan_device();
    let places = [
        site.lan(),
        &web.space()?,
        &siblings[0].space()?,
        &siblings[1].space()?,
    ];
    let watch = Watch::new(&[
        ("LAN", places[0], &device),
        ("another network", places[1], "eth0"),
        ("a sibling", places[2], "eth0"),
        ("an inner sibling", places[3], "eth0"),
    ])?;
    let mut port = 40_000;
    let mut attack = || -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        for liar in &liars {
            let space = liar.space()?;
            let id = liar.inspect("{{range .NetworkSettings.Networks}}{{.NetworkID}}{{end}}")?;
            let bridge = site.host.mac(&format!("br-{}", &id[..12]))?;
            let mallory = Attacker::new(&space, "eth0", bridge)?;
            let own = link_local(mallory.mac());
            for source in ["fd00:17::99", "fd00:18::7", "2001:db8::1", "fd00:11::2"]
                .iter()
                .map(|text| ip(text))
                .chain([Ok(own)])
            {
                for to in [ip(LAN)?, ipv6(&web)?, ip("ff02::1")?, link_local(bridge)] {
                    port += 1;
                    ports.push(port);
                    let packet = Packet6::udp(
                        (source.as_ref().copied().unwrap_or(own), port),
                        (to, 9),
                        b"raw",
                    );
                    mallory.send(&mallory.dress().ipv6(&packet))?;
                    mallory.send(&mallory.dress().to_all().ipv6(&packet))?;
                    mallory.send(&mallory.dress().priority(3).ipv6(&packet))?;
                }
            }
        }
        Ok(ports)
    };
    let seen = |ports: &[u16]| -> Result<Vec<String>> {
        let seen = watch.saw(|frame| {
            let body = frame.body(ethertype::IPV6);
            let port = body.and_then(|body| body.get(40..42));
            port.is_some_and(|port| ports.contains(&u16::from_be_bytes([port[0], port[1]])))
        })?;
        Ok(seen.iter().map(|(place, _)| (*place).to_owned()).collect())
    };
    let ports = attack()?;
    eventually(SOON, || {
        let seen = seen(&ports)?;
        for place in ["LAN", "another network", "a sibling", "an inner sibling"] {
            ensure!(
                seen.iter().any(|at| at == place),
                "no hole to {place} without an agent"
            );
        }
        Ok(())
    })?;
    let agent = site.agent(&["liar", "inside", "sibling", "neighbour", "web"])?;
    let mut is_silent = || {
        let ports = attack()?;
        holds(Duration::from_millis(300), || {
            let seen = seen(&ports)?;
            ensure!(seen.is_empty(), "seen by {seen:?}");
            Ok(())
        })
    };
    is_silent()?;
    ensure!(site.count("no-ipv6")? >= 100);
    drop(agent);
    is_silent().context("the agent is away")
}

#[test]
fn container_sends_ipv6_by_own_addresses_only() -> Result<()> {
    let site = Site::new("v6-names", Docker::replace())?;
    let liar = site.run("liar", "bridge")?;
    let victim = site.run("victim", "bridge")?;
    let space = liar.space()?;
    let bridge = site.host.mac("docker0")?;
    let mallory = Attacker::new(&space, "eth0", bridge)?;
    let (own, theirs) = (ipv6(&liar)?, ipv6(&victim)?);
    let (mac, their_mac) = (mallory.mac(), victim.space()?.mac("eth0")?);
    let gateway = ip("fd00:17::1")?;
    let local = link_local(mac);
    let all = ip("ff02::1")?;
    let router = Packet6::router(local, all, mac);
    let stolen = Packet6::advertise(gateway, all, gateway, mac);
    let lies = [
        router.clone(),
        stolen.clone(),
        Packet6::redirect(local, theirs, local, ip(LAN)?),
        Packet6::redirect(link_local(bridge), theirs, local, ip(LAN)?),
        Packet6::advertise(own, all, theirs, mac),
        Packet6::advertise(own, all, gateway, mac),
        Packet6::advertise(link_local(bridge), all, gateway, mac),
        Packet6::advertise(local, all, ip("fe80::1")?, mac),
        Packet6::advertise(own, all, own, their_mac),
        Packet6::solicit(own, all, theirs, their_mac),
        Packet6::solicit(theirs, all, gateway, mac),
        Packet6::udp((local, 547), (link_local(their_mac), 546), b"advertise"),
        Packet6::udp((theirs, 9), (gateway, 9), b"forged"),
        Packet6::udp((gateway, 9), (theirs, 9), b"forged"),
        Packet6::udp((ip("fd00:17::77")?, 9), (theirs, 9), b"forged"),
        Packet6::udp((ip(LAN)?, 9), (theirs, 9), b"forged"),
        Packet6::udp((link_local(their_mac), 9), (all, 9), b"forged"),
        Packet6::udp((ip("::1")?, 9), (theirs, 9), b"forged"),
    ];
    let send = |packet: &Packet6| {
        for to in [bridge, their_mac, [0x33, 0x33, 0, 0, 0, 1]] {
            mallory.send(&mallory.dress().to(to).ipv6(packet))?;
        }
        mallory.send(&mallory.dress().to(their_mac).priority(0).ipv6(packet))
    };
    // The hole: a victim believes a router that is none, and the host a stolen gateway's address.
    send(&router)?;
    eventually(SOON, || {
        let routes = victim.space()?.ip("-6 route show default")?;
        ensure!(
            routes.contains(&local.to_string()),
            "no hole without an agent: {routes}"
        );
        Ok(())
    })?;
    let agent = site.agent(&["liar", "victim"])?;
    let docker0 = Space::clone(&site.host);
    let watch = Watch::new(&[
        ("victim", &victim.space()?, "eth0"),
        ("host", &docker0, "docker0"),
    ])?;
    let is_silent = || {
        for lie in &lies {
            send(lie)?;
        }
        holds(Duration::from_millis(300), || {
            // What the container's own kernel asks for, is in its own name.
            let kernel = link_local(mac).octets();
            let solicits = |body: &[u8]| body[6] == 58 && body[40] == 133 && body[8..24] == kernel;
            let seen = watch.saw(|frame| {
                let body = frame.body(ethertype::IPV6);
                frame.source_mac() == Some(mac) && body.is_some_and(|body| !solicits(body))
            })?;
            ensure!(seen.is_empty(), "it arrived: {seen:?}");
            Ok(())
        })
    };
    is_silent()?;
    // Each is sent four times.
    ensure!(site.count("spoofed-neighbour")? >= 32);
    ensure!(site.count("spoofed-source")? + site.count("foreign-source")? >= 32);
    drop(agent);
    is_silent().context("the agent is away")?;
    reaches(&space, theirs)
}
