// SPDX-License-Identifier: MIT OR Apache-2.0
//! `ready` means ready: a start is one step, what cannot protect does not get ready and leaves
//! nothing, and what is shown is what the kernel has.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forwarder_common::abi::{LAYOUT, name};
use harness::{Docker, Finished, Host, Lab, Peer, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// Within which the agent compares everything.
const COMPARED: Duration = Duration::from_secs(15);
/// What its log says if it finds a difference.
const CHANGED: &str = "somebody has changed what the agent applied";
/// The published port.
const PUBLISHED: &str = "198.18.1.1:8080";

/// A host with a server published as 8080.
fn site(label: &str) -> Result<(Lab, Host)> {
    let lab = Lab::new(label)?;
    let host = lab.host(Docker::replace())?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    Ok((lab, host))
}

/// Nothing of the forwarder's is in the kernel or the file system.
fn is_clean(host: &Host) -> Result<()> {
    ensure!(!host.bpffs_dir().exists(), "pins are left");
    ensure!(!host.state_dir().exists(), "the state directory is left");
    let links = host.ip("-o link show")?;
    ensure!(!links.contains("forwarder0"), "a device is left: {links}");
    Ok(())
}

/// A refusal: status 1, no `ready`, and a last line that names all of this.
fn refuses(finished: &Finished, words: &[&str]) -> Result<()> {
    ensure!(finished.status.code() == Some(1), "{finished:?}");
    ensure!(finished.stdout.is_empty(), "it says {}", finished.stdout);
    let last = finished.stderr.lines().last().unwrap_or_default();
    let missing = words.iter().find(|word| !last.contains(**word));
    ensure!(missing.is_none(), "no {missing:?} in: {last}");
    Ok(())
}

#[test]
fn agent_without_perfmon_is_not_ready() -> Result<()> {
    let (_lab, host) = site("ready-perfmon")?;
    let refused = host.agent().dropping("-perfmon,-sys_admin").finish()?;
    refuses(&refused, &["CAP_PERFMON"])?;
    ensure!(refused.stderr.lines().count() == 1, "{}", refused.stderr);
    is_clean(&host)
}

/// A filter of another kind that has taken the place of ours on the way out of a device.
fn take_the_place(host: &Host, device: &str) -> Result<()> {
    host.cmd(&["tc", "qdisc", "add", "dev", device, "clsact"])?;
    let words = "protocol all prio 49152 u32 match u32 0 0 classid 1:1";
    let mut filter = vec!["tc", "filter", "add", "dev", device, "egress"];
    filter.extend(words.split(' '));
    host.cmd(&filter).map(drop)
}

#[test]
fn agent_with_a_refused_hook_is_not_ready() -> Result<()> {
    let (lab, host) = site("ready-hook")?;
    let uplink = host.uplink();
    let clsact = || host.agent().arg("--attach=clsact");
    take_the_place(&host, uplink)?;
    refuses(&clsact().finish()?, &["cannot become ready", "OutsideOut"])?;
    is_clean(&host)?;
    let ingress = host.cmd(&["tc", "filter", "show", "dev", uplink, "ingress"])?;
    ensure!(ingress.is_empty(), "a filter is left: {ingress}");

    // Where an earlier agent's programs are armed, they go on.
    host.cmd(&["tc", "qdisc", "del", "dev", uplink, "clsact"])?;
    clsact().start()?.kill()?;
    lab.lan().peer(&["get", PUBLISHED])?;
    host.ip("link add late type veth peer name etal")?;
    host.ip("link set late up")?;
    take_the_place(&host, "late")?;
    refuses(&clsact().finish()?, &["cannot become ready", "OutsideOut"])?;
    lab.lan().peer(&["get", PUBLISHED]).map(drop)
}

#[test]
fn stop_during_the_first_start_leaves_nothing() -> Result<()> {
    let (_lab, host) = site("ready-stop")?;
    let begun = Instant::now();
    host.agent().start()?.stop()?;
    let whole = begun.elapsed();
    host.cli(&["cleanup"])?;
    for n in 1..8 {
        let mut agent = host.agent().quiet().spawn()?;
        sleep(whole * n / 10);
        let asked = Instant::now();
        let status = agent.stop()?;
        ensure!(status.success(), "stopped at {n}: {status}");
        ensure!(asked.elapsed() < SOON, "after {:?}", asked.elapsed());
        // A start that was complete by then stays.
        if host.bpffs_dir().exists() {
            host.cli(&["cleanup"])?;
        }
        is_clean(&host).with_context(|| format!("stopped at {n}"))?;
    }
    Ok(())
}

/// Whether the LAN reaches a port within some milliseconds.
fn answers(lab: &Lab, port: usize, timeout: u32) -> bool {
    let target = format!("198.18.1.1:{port}");
    let timeout = format!("--timeout={timeout}");
    lab.lan().peer(&["get", &target, &timeout]).is_ok()
}

/// What a guard drops of a half-known host: none of it is the poller's own.
const GUARDS: [&str; 6] = [
    "spoofed-source",
    "foreign-source",
    "untranslated",
    "unknown-network",
    "device-unknown",
    "no-endpoint",
];

/// Packets that a guard dropped, by reason.
fn drops(host: &Host) -> Result<Vec<String>> {
    let status = host.json("status")?;
    let reasons = status["reasons"].as_object().context("no reasons")?;
    let dropped = reasons
        .iter()
        .filter(|(name, _)| GUARDS.contains(&name.as_str()));
    Ok(dropped
        .map(|(name, count)| format!("{name} {count}"))
        .collect())
}

#[test]
fn first_start_is_one_step() -> Result<()> {
    const CONTAINERS: usize = 20;
    let lab = Lab::new("ready-step")?;
    let host = lab.host(Docker::replace())?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
    outside.line("serving", SOON)?;
    let talk = "/peer serve 80 & while :; do /peer udp 198.18.1.2:7000 x --timeout=50; done";
    for n in 0..CONTAINERS {
        let port = format!("{}:80", 9000 + n);
        let program = Peer::program(&["sh", "-c", talk]);
        host.run(&format!("talker{n}"), &["-p", &port], &program)?;
    }
    let mut agent = host.agent().spawn()?;
    // Who reaches one of them reaches all.
    eventually(SOON * 6, || {
        ensure!(answers(&lab, 9000, 700), "not yet");
        Ok(())
    })?;
    for n in 0..CONTAINERS {
        ensure!(
            answers(&lab, 9000 + n, 10_000),
            "talker{n} is not there when talker0 is"
        );
    }
    agent.ready()?;
    // What came too early for a hook would have been dropped by one, and sent again.
    let dropped = drops(&host)?;
    ensure!(dropped.is_empty(), "packets were dropped: {dropped:?}");
    Ok(())
}

#[test]
fn restart_storm_keeps_the_guard() -> Result<()> {
    let (lab, host) = site("ready-storm")?;
    let direct = format!("{}:80", host.container("web").ip()?);
    let route = format!("route add 172.17.0.0/16 via {}", host.address());
    lab.lan().ip(&route)?;
    let mut agent = host.agent().start()?;
    for n in 0..12_u64 {
        if n % 3 == 0 {
            agent.kill()?;
            agent = host.agent().quiet().spawn()?;
        }
        let entered = lab.lan().peer(&["get", &direct, "--timeout=200"]);
        ensure!(entered.is_err(), "round {n}: the LAN reaches {direct}");
        lab.lan()
            .peer(&["get", PUBLISHED, "--timeout=3000"])
            .with_context(|| format!("round {n}"))?;
    }
    Ok(())
}

/// The programs that the status names on a device.
fn shown(host: &Host, device: &str) -> Result<Vec<String>> {
    let status = host.json("status")?;
    let programs = status["hooks"][device].as_array().cloned();
    let names = programs.unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect())
}

#[test]
fn status_shows_what_is_attached() -> Result<()> {
    let (lab, host) = site("ready-status")?;
    let uplink = host.uplink();
    let mut agent = host.agent().start()?;
    ensure!(shown(&host, uplink)?.contains(&"outside_in".to_owned()));
    agent.kill()?;
    let links = host.ip("-o link show")?;
    let line = links
        .lines()
        .find(|line| line.contains(&format!(" {uplink}")));
    let index = line
        .and_then(|line| line.split(':').next())
        .context("no uplink")?;
    let pin = host
        .bpffs_dir()
        .join(format!("v{LAYOUT}/links/{index}-outside_in"));
    let pin = pin.to_str().context("no UTF-8")?;
    host.cmd(&["bpftool", "link", "detach", "pinned", pin])?;
    let left = shown(&host, uplink)?;
    ensure!(
        !left.contains(&"outside_in".to_owned()) && left.contains(&"outside_out".to_owned()),
        "shown: {left:?}"
    );
    let _agent = host.agent().start()?;
    ensure!(shown(&host, uplink)?.contains(&"outside_in".to_owned()));
    lab.lan().peer(&["get", PUBLISHED]).map(drop)
}

/// What somebody else removes from the kernel is back after the agent's next comparison of
/// everything, whether it is a row or a program.
#[test]
fn foreign_changes_are_undone() -> Result<()> {
    let (lab, host) = site("ready-undone")?;
    let agent = host.agent().start()?;
    let get = || lab.lan().peer(&["get", PUBLISHED, "--timeout=1000"]);
    get()?;
    let pins = host.bpffs_dir().join(format!("v{LAYOUT}"));
    let map = pins.join("maps").join(name::PUBLISHED);
    let map = map.to_str().context("no UTF-8")?;
    // Any address, 8080, TCP.
    let key = "key hex 00 00 00 00 1f 90 06 00".split(' ');
    let delete: Vec<_> = ["bpftool", "map", "delete", "pinned", map]
        .into_iter()
        .chain(key)
        .collect();
    host.cmd(&delete)?;
    ensure!(get().is_err(), "the row is still there");
    let uplink = host.uplink();
    let index = host.ip(&format!("-o link show dev {uplink}"))?;
    let index = index.split(':').next().context("no uplink")?;
    let pin = pins.join(format!("links/{index}-outside_out"));
    let pin = pin.to_str().context("no UTF-8")?;
    host.cmd(&["bpftool", "link", "detach", "pinned", pin])?;
    eventually(COMPARED, get)?;
    let is_back = || {
        let there = shown(&host, uplink)?;
        let program = "outside_out".to_owned();
        ensure!(there.contains(&program), "{there:?}");
        Ok(())
    };
    eventually(COMPARED, is_back)?;
    ensure!(agent.log().contains(CHANGED), "the log does not say so");
    Ok(())
}
