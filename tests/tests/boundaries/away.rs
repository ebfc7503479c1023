// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is made while no agent lives: networks, containers of a network without inter-container
//! communication, and devices by which clients come. No program is on any of it.

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Container, Docker, Host, Lab, Netns, Peer, Space, eventually, serve, veth};

use crate::SOON;
use crate::ipv6::{Site, ipv6, is_closed, link_local, reaches};
use crate::lists6::with_proxies;

/// A machine behind a NIC that is plugged in while no agent lives, and the host's address there.
const PLUGGED: &str = "198.18.9.2";
const AT_PLUGGED: &str = "198.18.9.1";
const AT_PLUGGED6: &str = "fd00:9::1";

/// Whether anything of a client that asks by TCP and UDP is answered.
fn is_answered(from: &Space, to: &str) -> bool {
    let asks = |words: &[&str]| from.peer(&[words, &["--timeout=400"]].concat()).is_ok();
    asks(&["get", to]) || asks(&["udp", to, "x"])
}

/// Whether a server's port 80 answers a client.
fn meets(from: &Container, to: &Container) -> Result<bool> {
    Ok(is_answered(&from.space()?, &format!("{}:80", to.ip()?)))
}

fn run(host: &Host, name: &str, options: &[&str]) -> Result<Container> {
    host.run(name, options, &Peer::serve(80))
}

/// A network of each name, with a server of the same name.
fn networks(host: &Host, names: [&str; 2]) -> Result<[Container; 2]> {
    for name in names {
        host.docker(&["network", "create", name])?;
    }
    let [first, second] = names.map(|name| run(host, name, &["--network", name]));
    Ok([first?, second?])
}

/// Plugs a NIC into a host, with a machine behind it.
fn plug(lab: &Lab, host: &Host) -> Result<Netns> {
    let machine = lab.netns("plugged")?;
    veth(
        (host, "late0", &format!("{AT_PLUGGED}/24")),
        (&machine, "eth0", &format!("{PLUGGED}/24")),
    )?;
    machine.ip(&format!("route add default via {AT_PLUGGED}"))?;
    host.ip(&format!("address add {AT_PLUGGED6}/64 dev late0 nodad"))?;
    machine.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")?;
    machine.ip("address add fd00:9::2/64 dev eth0 nodad")?;
    Ok(machine)
}

/// The networks do not reach each other, and are in order within.
fn keep_apart(host: &Host, [first, second]: &[Container; 2]) -> Result<()> {
    let in_second = second.space()?.capture("eth0")?;
    ensure!(!meets(first, second)?, "first, second");
    let heard = in_second.lines(&format!("ip and src host {}", first.ip()?))?;
    ensure!(heard.is_empty(), "second hears {heard:?}");
    ensure!(!meets(second, first)?, "second, first");
    let sibling = run(host, "sibling", &["--network", first.name()])?;
    ensure!(meets(&sibling, first)?, "siblings");
    sibling.remove()
}

#[test]
fn stock_keeps_networks_apart() -> Result<()> {
    let lab = Lab::new("away-apart-stock")?;
    let host = lab.host(Docker::stock())?;
    let both = networks(&host, ["first", "second"])?;
    keep_apart(&host, &both)
}

/// A network that is made while no agent lives reaches no other such network, nor a NIC that was
/// plugged in then, nor do they reach it.
#[test]
fn networks_made_without_agent_stay_apart() -> Result<()> {
    let lab = Lab::new("away-apart")?;
    let host = lab.host(Docker::replace())?;
    let mut agent = host.agent().start()?;
    agent.kill()?;
    let both = networks(&host, ["first", "second"])?;
    keep_apart(&host, &both)?;
    let machine = plug(&lab, &host)?;
    let _server = serve(&machine, 80)?;
    let [first, _] = &both;
    let inwards = is_answered(&machine, &format!("{}:80", first.ip()?));
    ensure!(!inwards, "the plugged machine enters");
    let at_machine = machine.capture("eth0")?;
    ensure!(!is_answered(&first.space()?, &format!("{PLUGGED}:80")));
    let left = at_machine.lines(&format!("src host {}", first.ip()?))?;
    ensure!(left.is_empty(), "untranslated: {left:?}");

    let _agent = host.agent().start()?;
    host.settle("first")?;
    keep_apart(&host, &both)?;
    let to = format!("{PLUGGED}:80");
    eventually(SOON, || first.peer(&["get", &to]).map(drop))
}

/// Whether our rules between unseen devices are there.
fn has_rules(host: &Host, family: &str) -> Result<()> {
    let rules = host.cmd(&["nft", "list", "ruleset"])?;
    let table = format!("table {family} forwarder {{");
    let own = rules.split(&table).nth(1);
    ensure!(
        own.is_some_and(|own| own.contains("drop comment \"forwarder\"")),
        "no {table}: {rules}"
    );
    Ok(())
}

/// Whoever loads his own rules takes ours away, and they come back; a cleanup leaves none.
#[test]
fn rules_for_unseen_devices_are_restored() -> Result<()> {
    let lab = Lab::new("away-flush")?;
    let host = lab.host(Docker::replace())?;
    host.docker(&APART)?;
    let agent = host.agent().start()?;
    let complete = || has_rules(&host, "inet").and_then(|()| has_rules(&host, "bridge"));
    eventually(SOON, complete)?;
    for _ in 0..2 {
        host.cmd(&["nft", "flush", "ruleset"])?;
        eventually(SOON, complete)?;
    }
    host.docker(&["network", "rm", "apart"])?;
    eventually(SOON, || {
        ensure!(has_rules(&host, "bridge").is_err(), "nobody is kept apart");
        has_rules(&host, "inet")
    })?;
    let doctor = host.forwarder(&["doctor"])?.stdout;
    ensure!(!doctor.contains("forwarder forward"), "{doctor}");
    ensure!(!doctor.contains("while no agent runs"), "{doctor}");
    drop(agent);
    host.cli(&["cleanup"])?;
    let left = host.cmd(&["nft", "list", "ruleset"])?;
    ensure!(!left.contains("forwarder"), "{left}");
    Ok(())
}

const APART: [&str; 4] = [
    "network",
    "create",
    "--opt=com.docker.network.bridge.enable_icc=false",
    "apart",
];

fn run_apart(host: &Host, name: &str) -> Result<Container> {
    run(host, name, &["--network=apart"])
}

/// Two containers that are made while no agent lives do not reach each other on a network without
/// inter-container communication; everything else they reach as always.
#[test]
fn newcomers_keep_icc_false() -> Result<()> {
    let lab = Lab::new("away-newcomers")?;
    let host = lab.host(Docker::replace())?;
    let _server = serve(lab.lan(), 7000)?;
    host.docker(&APART)?;
    host.docker(&["network", "create", "together"])?;
    let mut agent = host.agent().start()?;
    let old = run_apart(&host, "old")?;
    host.settle("old")?;
    agent.kill()?;
    let [first, second] = [run_apart(&host, "first")?, run_apart(&host, "second")?];
    let apart = || -> Result<()> {
        for (from, to) in [(&first, &second), (&second, &first), (&first, &old)] {
            ensure!(!meets(from, to)?, "{} reaches {}", from.name(), to.name());
        }
        Ok(())
    };
    apart()?;
    let [third, fourth] = ["third", "fourth"].map(|name| run(&host, name, &["--network=together"]));
    ensure!(meets(&third?, &fourth?)?, "a network with ICC");
    others_bridges_are_open(&lab, &host)?;
    first.peer(&["get", "198.18.1.2:7000"])?;
    host.peer(&["get", &format!("{}:80", first.ip()?)])?;
    let _agent = host.agent().start()?;
    host.settle("first")?;
    host.settle("second")?;
    apart()
}

/// What others put on bridges of their own while no agent lives is not our business.
fn others_bridges_are_open(lab: &Lab, host: &Host) -> Result<()> {
    host.ip("link add theirs type bridge")?;
    host.ip("link set theirs up")?;
    let mut machines = Vec::new();
    for number in 1..=2 {
        let machine = lab.netns(&format!("vm{number}"))?;
        let device = format!("vm{number}");
        veth(
            (host, &device, &format!("198.18.7{number}.1/24")),
            (&machine, "eth0", &format!("198.18.80.{number}/24")),
        )?;
        host.ip(&format!("link set {device} master theirs"))?;
        machines.push(machine);
    }
    let _server = serve(&machines[1], 80)?;
    ensure!(
        is_answered(&machines[0], "198.18.80.2:80"),
        "others' bridge"
    );
    Ok(())
}

/// The same by IPv6: by global addresses and by link-local ones.
#[test]
fn newcomers_keep_icc_false_for_ipv6() -> Result<()> {
    let site = Site::new("away-newcomers6", Docker::replace())?;
    site.network("apart", 1, &[APART[2]])?;
    let mut agent = site.agent(&[])?;
    agent.kill()?;
    let [first, second] = [site.run("first", "apart")?, site.run("second", "apart")?];
    let local = link_local(second.space()?.mac("eth0")?);
    let from = first.space()?;
    let index = from.ip("-o link show dev eth0")?;
    let index = index.split(':').next().context("no index")?.to_owned();
    let by_link = format!("[{local}%{index}]:80");
    let closed = || -> Result<()> {
        is_closed(&from, ipv6(&second)?)?;
        ensure!(!is_answered(&from, &by_link), "by {by_link}");
        Ok(())
    };
    closed()?;
    reaches_gateway(&site, &from)?;
    let agent = site.agent(&["first", "second"])?;
    closed()?;
    drop(agent);
    // The control: without us, the bridge switches all of it.
    site.host.cli(&["cleanup"])?;
    eventually(SOON, || reaches(&from, ipv6(&second)?))?;
    ensure!(is_answered(&from, &by_link), "not by {by_link}");
    Ok(())
}

fn reaches_gateway(site: &Site, from: &Space) -> Result<()> {
    let _server = serve(&site.host, 80)?;
    eventually(SOON, || reaches(from, "fd00:11::1".parse()?))
}

/// Two ports on all addresses of the host: `web` for the LAN's client only, `open` for everybody.
fn publish(host: &Host) -> Result<()> {
    for (name, port, label) in [
        ("web", 8080, "allow=198.18.1.2,fd00:18::2"),
        ("open", 8081, "deny=192.0.2.1"),
    ] {
        let ports = [format!("{port}:80"), format!("{port}:80/udp")];
        let label = format!("forwarder.ingress.{label}");
        let words = ["-p", &ports[0], "-p", &ports[1], "--label", &label];
        run(host, name, &words)?;
    }
    Ok(())
}

/// The addresses of the host at which somebody asks.
fn at(addresses: &[&str], port: u16) -> Vec<String> {
    let one = |address: &&str| {
        if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        }
    };
    addresses.iter().map(one).collect()
}

fn all_answer(from: &Space, to: &[String], expected: bool) -> Result<()> {
    for to in to {
        let answered = is_answered(from, to);
        ensure!(
            answered == expected,
            "{} asks {to}: {answered}",
            from.name()
        );
    }
    Ok(())
}

/// The control: stock has no lists, and exempts what comes from a network's bridge from its rules for
/// published ports, so that docker-proxy gets it.
#[test]
fn stock_proxy_serves_every_network() -> Result<()> {
    let lab = Lab::new("away-ports-stock")?;
    let host = lab.host(Docker::stock())?;
    publish(&host)?;
    host.docker(&["network", "create", "--subnet=172.30.0.0/16", "late"])?;
    let late = run(&host, "late", &["--network=late"])?;
    let ports = at(&["172.30.0.1", "172.17.0.1", "198.18.1.1"], 8080);
    all_answer(&late.space()?, &ports, true)
}

/// docker-proxy serves no client that comes by a device that no agent has seen; services of the
/// host serve it.
#[test]
fn unseen_device_reaches_no_published_port() -> Result<()> {
    let lab = Lab::new("away-ports")?;
    let host = lab.host(with_proxies())?;
    host.ip("address add fd00:18::1/64 dev up0 nodad")?;
    let mut agent: Agent = host.agent().start()?;
    publish(&host)?;
    host.settle("web")?;
    host.settle("open")?;
    let _service = serve(&host, 9000)?;
    agent.kill()?;

    let own = ["198.18.1.1", "fd00:18::1", "127.0.0.1", "::1"];
    let create = ["--ipv6", "--subnet=172.30.0.0/16", "--subnet=fd00:30::/64"];
    host.docker(&[&["network", "create"], &create[..], &["late"]].concat())?;
    let late = run(&host, "late", &["--network=late"])?.space()?;
    let machine = plug(&lab, &host)?;
    let by_late = ["172.30.0.1", "fd00:30::1", "198.18.1.1", "fd00:18::1"];
    let by_machine = [AT_PLUGGED, AT_PLUGGED6, "198.18.1.1"];
    for port in [8080, 8081] {
        all_answer(&late, &at(&by_late, port), false)?;
        all_answer(&machine, &at(&by_machine, port), false)?;
    }
    all_answer(&late, &at(&by_late, 9000), true)?;
    all_answer(&machine, &at(&by_machine, 9000), true)?;
    // The host asks itself, also at addresses that no agent has seen.
    let seen_and_not = [&own[..], &[AT_PLUGGED, AT_PLUGGED6, "172.30.0.1"]].concat();
    for port in [8080, 8081, 9000] {
        all_answer(&host, &at(&seen_and_not, port), true)?;
    }
    // Who comes by a device with hooks is served by the lists.
    all_answer(lab.lan(), &at(&["198.18.1.1"], 8080), true)?;

    let _agent = host.agent().start()?;
    host.settle("late")?;
    let open = at(&[AT_PLUGGED, AT_PLUGGED6], 8081);
    eventually(SOON, || all_answer(&machine, &open, true))?;
    all_answer(&machine, &at(&by_machine, 8080), false)?;
    all_answer(&late, &at(&by_late, 8080), false)
}
