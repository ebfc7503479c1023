// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv6: lists of clients of ports that docker-proxy serves, sources that nobody outside has, and
//! sources that containers may use. Each is tried without an agent first, where stock lets it through.

use std::net::Ipv6Addr;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::attack::{Attacker, BRIDGE_GROUP, Watch};
use harness::{Container, Docker, Packet, Packet6, Peer, Space, eventually, serve};
use rustix::process::Signal;

use crate::SETTLED;
use crate::SOON;
use crate::end;
use crate::ipv6::{HOST, LAN, Site, ip, ipv6, link_local};

/// Another client of the LAN's.
const OTHER: &str = "fd00:18::3";

/// Docker without rules, and its own docker-proxy.
pub(super) fn with_proxies() -> Docker {
    Docker::stock()
        .arg("--iptables=false")
        .arg("--ip6tables=false")
}

fn site(label: &str, docker: Docker) -> Result<Site> {
    let site = Site::new(label, docker)?;
    let device = site.host.lan_device();
    site.lan()
        .ip(&format!("address add {OTHER}/64 dev {device} nodad"))?;
    Ok(site)
}

/// Runs a server with a port published by TCP and UDP on all IPv6 addresses.
fn publish(site: &Site, name: &str, port: u16, options: &[&str]) -> Result<Container> {
    let ports = [
        format!("-p=[::]:{port}:80"),
        format!("-p=[::]:{port}:80/udp"),
    ];
    let options = [options, &[&ports[0], &ports[1]]].concat();
    site.host.run(name, &options, &Peer::serve(80))
}

/// Asks a port of the host's by TCP and UDP, from an address; whether each answers.
fn asks(from: &Space, bind: &str, to: &str, port: u16) -> [bool; 2] {
    let (bind, to) = (format!("[{bind}]:0"), format!("[{to}]:{port}"));
    let client = ["--bind", &bind, "--timeout", "500"];
    [&["get", &to][..], &["udp", &to, "x"]].map(|verb| from.peer(&[verb, &client].concat()).is_ok())
}

fn is_let_in(from: &Space, bind: &str, to: &str, port: u16) -> Result<()> {
    eventually(SOON, || {
        let answers = asks(from, bind, to, port);
        ensure!(
            answers == [true; 2],
            "{bind} asks {to}, {port}: {answers:?}"
        );
        Ok(())
    })
}

fn is_kept_out(from: &Space, bind: &str, to: &str, port: u16) -> Result<()> {
    let answers = asks(from, bind, to, port);
    ensure!(
        answers == [false; 2],
        "{bind} asks {to}, {port}: {answers:?}"
    );
    Ok(())
}

const ALLOW_ONE: &str = "--label=forwarder.ingress.allow=fd00:18::2";
const ALLOW_IPV4: &str = "--label=forwarder.ingress.allow=198.18.0.0/15";
const DENY_ONE: &str = "--label=forwarder.ingress.8082/tcp.deny=fd00:18::2/128";
const DENY_ONE_UDP: &str = "--label=forwarder.ingress.8082/udp.deny=fd00:18::2/128";

#[test]
fn lists_hold_for_ports_on_ipv6_addresses() -> Result<()> {
    let site = site("v6-lists", with_proxies())?;
    site.network("own", 1, &["--label=forwarder.ingress.allow=fd00:18::2"])?;
    publish(&site, "one", 8080, &[ALLOW_ONE])?;
    publish(&site, "four", 8081, &[ALLOW_IPV4])?;
    publish(&site, "deny", 8082, &[DENY_ONE, DENY_ONE_UDP])?;
    publish(&site, "open", 8083, &[])?;
    publish(&site, "web", 8084, &["--network=own"])?;
    let inside = site.run("inside", "own")?;
    let across = site.run("across", "bridge")?;
    let addresses = [ipv6(&inside)?.to_string(), ipv6(&across)?.to_string()];
    let spaces = [inside.space()?, across.space()?];
    let ways = |port| {
        let [inside, across] = &addresses;
        [
            (site.lan(), LAN, HOST, port),
            (site.lan(), OTHER, HOST, port),
            (&spaces[0], inside.as_str(), "fd00:11::1", port),
            (&spaces[1], across.as_str(), "fd00:17::1", port),
        ]
    };
    let expected = [
        (8080, [true, false, false, false]),
        (8081, [false; 4]),
        (8082, [false, true, true, true]),
        (8083, [true; 4]),
        // A network's list is not for its own containers.
        (8084, [true, false, true, false]),
    ];
    for (port, _) in expected {
        for (from, bind, to, port) in ways(port) {
            is_let_in(from, bind, to, port).context("without an agent nothing holds")?;
        }
    }
    let agent = site.agent(&["inside", "across"])?;
    let holds = || -> Result<()> {
        for (port, expected) in expected {
            for ((from, bind, to, port), open) in ways(port).into_iter().zip(expected) {
                if open {
                    is_let_in(from, bind, to, port)?;
                } else {
                    is_kept_out(from, bind, to, port)?;
                }
            }
            // The host itself is asked for nothing.
            site.host.peer(&["get", &format!("[::1]:{port}")])?;
        }
        Ok(())
    };
    holds()?;
    ensure!(site.count("policy")? > 10);
    // By its link-local address, and behind extension headers, the host is the same.
    let device = site.host.lan_device();
    let local = link_local(site.host.mac("up0")?);
    let index = site.lan().ip(&format!("-o link show dev {device}"))?;
    let index = index.split(':').next().context("no index")?.to_owned();
    let scoped = format!("[{local}%{index}]:8080");
    let refused = site.lan().peer(&["get", &scoped, "--timeout", "500"]);
    ensure!(refused.is_err(), "by the link-local address");
    drop(agent);
    holds().context("the agent is away")
}

/// Frames that no ordinary client sends and the kernel takes for its own: behind a stack of priority
/// tags, from an address of a network's that nobody has, for a bridge's group.
#[test]
fn lists_hold_for_every_framing() -> Result<()> {
    let site = Site::new("v6-dress", with_proxies())?;
    site.network("far", 1, &[])?;
    let list = "--label=forwarder.ingress.allow=fd00:17::/64,198.18.1.99";
    let ports = ["-p=[::]:8080:80/udp", "-p=0.0.0.0:8080:80/udp", list];
    let web = site.host.run("web", &ports, &Peer::serve(80))?;
    let sibling = site.run("sibling", "bridge")?;
    let far = site.run("far", "far")?;
    let lan = Attacker::new(site.lan(), &site.host.lan_device(), site.host.mac("up0")?)?;
    let near = Attacker::new(&far.space()?, "eth0", BRIDGE_GROUP)?;
    let six = |from: Ipv6Addr, to: &str, what: &str| -> Result<Packet6> {
        Ok(Packet6::udp((from, 7), (ip(to)?, 8080), what.as_bytes()))
    };
    let watch = Watch::new(&[("web", &web.space()?, "eth0")])?;
    let mut round = 0;
    let mut got_in = || -> Result<[Vec<String>; 2]> {
        round += 1;
        let mut sent = Vec::new();
        let mut send = |from: &Attacker, what: String, frame: Vec<u8>| {
            sent.push(what);
            from.send(&frame)
        };
        let mut dress = lan.dress();
        for tags in 0..5 {
            let what = format!("IPv6 behind {tags} tags, {round};");
            let frame = dress.ipv6(&six(ip(LAN)?, HOST, &what)?);
            send(&lan, what, frame)?;
            let what = format!("IPv4 behind {tags} tags, {round};");
            let ends = [2, 1].map(|last| end([198, 18, 1, last], 8080));
            let frame = dress.ipv4(&Packet::udp(ends[0], ends[1], what.as_bytes()));
            send(&lan, what, frame)?;
            dress = dress.priority(0);
        }
        let what = format!("a free address, {round};");
        let frame = lan.dress().ipv6(&six(ip("fd00:17::99")?, HOST, &what)?);
        send(&lan, what, frame)?;
        for last in [2, 3, 14, 15] {
            let what = format!("group address {last}, {round};");
            let dress = near.dress().to([1, 0x80, 0xc2, 0, 0, last]);
            send(
                &near,
                what.clone(),
                dress.ipv6(&six(ipv6(&far)?, "ff02::1", &what)?),
            )?;
        }
        sleep(SETTLED);
        let seen = |what: &str| watch.saw(|frame| frame.carries(what.as_bytes()));
        let (mut came, mut stayed) = (Vec::new(), Vec::new());
        for what in sent {
            if seen(&what)?.is_empty() {
                stayed.push(what);
            } else {
                came.push(what);
            }
        }
        Ok([came, stayed])
    };
    eventually(SOON, || {
        let [_, stayed] = got_in()?;
        ensure!(stayed.is_empty(), "no hole without an agent: {stayed:?}");
        Ok(())
    })?;
    let agent = site.agent(&["web", "sibling", "far"])?;
    let mut holds = || -> Result<()> {
        let [came, _] = got_in()?;
        ensure!(came.is_empty(), "got in: {came:?}");
        sibling.peer(&["udp", "[fd00:17::1]:8080", "x"])?;
        Ok(())
    };
    holds()?;
    drop(agent);
    holds().context("the agent is away")
}

#[test]
fn lists_change_while_a_connection_stands() -> Result<()> {
    let site = site("v6-change", with_proxies())?;
    publish(&site, "web", 8080, &[])?;
    let _agent = site.host.agent().config("")?.start()?;
    let at = format!("[{HOST}]:8080");
    let mut held = site.lan().spawn_peer(&["hold", "1", &at])?;
    held.line("open 1", SOON)?;
    site.host
        .configure("[port.\"8080/tcp\"]\ningress-deny = [\"fd00:18::2\", \"fd00:18::3\"]\n")?;
    eventually(SOON, || {
        let refused = site.lan().peer(&["get", &at, "--timeout", "300"]);
        ensure!(refused.is_err(), "a new connection");
        Ok(())
    })?;
    held.tell("")?;
    let line = held.line("", Duration::from_secs(1));
    ensure!(line.is_err(), "the old one: {line:?}");
    Ok(())
}

#[test]
fn docker_proxy_waits_for_its_lists() -> Result<()> {
    let site = site("v6-race", Docker::replace_with_shim())?;
    let refused = publish(&site, "early", 8080, &[ALLOW_ONE]);
    let refused = format!("{:#}", refused.err().context("it starts without an agent")?);
    ensure!(refused.contains("no agent answers"), "{refused}");
    site.host.container("early").remove()?;
    let mut agent = site.host.agent().start()?;
    publish(&site, "web", 8080, &[ALLOW_ONE])?;
    // Somebody who is not in the list asks all the time, through restarts of container and agent.
    let (bind, at) = (format!("[{OTHER}]:0"), format!("[{HOST}]:8080"));
    let asks = || {
        let client = ["get", &at, "--bind", &bind, "--timeout", "20"];
        site.lan().peer(&client).is_ok()
    };
    let served_for = |time| {
        let end = Instant::now() + time;
        let mut served = 0;
        while Instant::now() < end {
            served += usize::from(asks());
        }
        served
    };
    let web = site.host.container("web");
    for round in 0..3 {
        let served = scope(|scope| -> Result<usize> {
            let polls = scope.spawn(|| served_for(Duration::from_secs(4)));
            if round == 1 {
                agent.kill()?;
                agent = site.host.agent().start()?;
            }
            web.docker("restart")?;
            polls.join().map_err(|_| anyhow!("a poll panicked"))
        })?;
        ensure!(served == 0, "served {served} times in round {round}");
        is_let_in(site.lan(), LAN, HOST, 8080)?;
    }
    // An agent that is busy is waited for.
    web.docker("stop")?;
    agent.signal(Signal::STOP)?;
    let served = scope(|scope| -> Result<usize> {
        let starts = scope.spawn(|| web.docker("start"));
        let mut served = served_for(Duration::from_secs(2));
        agent.signal(Signal::CONT)?;
        served += served_for(Duration::from_secs(2));
        starts.join().map_err(|_| anyhow!("docker panicked"))??;
        Ok(served)
    })?;
    ensure!(served == 0, "served {served} times beside a busy agent");
    is_let_in(site.lan(), LAN, HOST, 8080)?;
    site.host.container("web").remove()?;
    // Without a list a port is served as soon as Docker lists it, and free for others afterwards.
    publish(&site, "open", 8080, &[])?;
    is_let_in(site.lan(), OTHER, HOST, 8080)?;
    site.host.container("open").remove()?;
    let _server = serve(&site.host, 8080)?;
    is_let_in(site.lan(), OTHER, HOST, 8080)
}

/// How many datagrams the host's sockets have got by IPv6.
pub(super) fn datagrams(space: &Space) -> Result<u64> {
    let counters = space.cmd(&["cat", "/proc/net/snmp6"])?;
    let mut lines = counters.lines().filter_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        (name == "Udp6InDatagrams").then(|| count.trim().parse().ok())?
    });
    lines.next().context("no counter")
}

#[test]
fn host_ipv6_sources_are_not_forgeable() -> Result<()> {
    let site = Site::new("v6-sources", Docker::replace())?;
    let web = site.run("web", "bridge")?;
    let _server = serve(&site.host, 9)?;
    let mallory = Attacker::new(site.lan(), &site.host.lan_device(), site.host.mac("up0")?)?;
    let own = link_local(site.host.mac("up0")?);
    let forged = [ip(HOST)?, ip("fd00:17::1")?, own, ipv6(&web)?];
    // The kernel itself keeps these out.
    let impossible = [ip("::1")?, ip("ff02::1")?];
    let send = |sources: &[Ipv6Addr]| -> Result<u64> {
        let before = datagrams(&site.host)?;
        for &source in sources {
            for to in [ip(HOST)?, own, ip("ff02::1")?] {
                let packet = Packet6::udp((source, 7), (to, 9), b"forged");
                mallory.send(&mallory.dress().ipv6(&packet))?;
            }
        }
        sleep(Duration::from_millis(200));
        Ok(datagrams(&site.host)? - before)
    };
    let honest = [ip(LAN)?];
    ensure!(send(&honest)? >= 2, "the server gets what is honest");
    for source in forged {
        ensure!(
            send(&[source])? >= 2,
            "no hole for {source} without an agent"
        );
    }
    let agent = site.agent(&["web"])?;
    ensure!(send(&honest)? >= 2);
    ensure!(send(&forged)? == 0 && send(&impossible)? == 0);
    ensure!(site.count("spoofed-source")? >= 18);
    // An address that somebody on the LAN has already is found out.
    let device = site.host.lan_device();
    site.lan()
        .ip(&format!("address add fd00:18::77/64 dev {device} nodad"))?;
    let finds_out = |address: &str| {
        site.host.ip(&format!("address add {address}/64 dev up0"))?;
        eventually(SOON, || {
            let failed = site.host.ip("-6 address show dev up0 dadfailed")?;
            ensure!(failed.contains(address), "no duplicate of {address}");
            Ok(())
        })
    };
    finds_out("fd00:18::77")?;
    drop(agent);
    ensure!(send(&forged)? == 0, "the agent is away");
    Ok(())
}

#[test]
fn allowed_sources_hold_for_ipv6() -> Result<()> {
    let site = Site::new("v6-allowed", Docker::replace())?;
    let label = "--label=forwarder.allowed-sources=fd00:77::/64,10.77.0.0/24";
    let run = |name: &str, options: &[&str]| site.host.run(name, options, &Peer::serve(80));
    let vpn = run("vpn", &[label])?;
    let plain = run("plain", &[])?;
    let _server = serve(&site.host, 80)?;
    let mut ways = Vec::new();
    for (container, own, range) in [
        (&vpn, "fd00:77::1", "fd00:77::/64"),
        (&plain, "fd00:78::1", "fd00:78::/64"),
    ] {
        let space = container.space()?;
        space.ip("link set lo up")?;
        space.ip(&format!("address add {own}/128 dev lo nodad"))?;
        let by = ipv6(container)?;
        site.host.ip(&format!("-6 route add {range} via {by}"))?;
        ways.push((space, own));
    }
    let reaches = |(space, own): &(Space, &str)| -> Result<()> {
        let (bind, own) = (format!("[{own}]:0"), format!("[{own}]:80"));
        let timeout = ["--timeout", "500"];
        space.peer(
            &[
                &["get", &format!("[{HOST}]:80"), "--bind", &bind][..],
                &timeout,
            ]
            .concat(),
        )?;
        site.host.peer(&[&["get", &own][..], &timeout].concat())?;
        Ok(())
    };
    for way in &ways {
        eventually(SOON, || reaches(way)).context("without an agent each does")?;
    }
    let agent = site.agent(&["vpn", "plain"])?;
    eventually(SOON, || reaches(&ways[0]))?;
    let refused = reaches(&ways[1]).err().context("without a label")?;
    ensure!(format!("{refused:#}").contains("imed out") || site.count("foreign-source")? > 0);
    drop(agent);
    reaches(&ways[0]).context("the agent is away")?;
    ensure!(reaches(&ways[1]).is_err(), "the agent is away");
    Ok(())
}
