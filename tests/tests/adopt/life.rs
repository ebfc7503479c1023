// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent comes, goes, dies and hangs on a stock host under traffic; containers and networks
//! come and go on top of it.

use std::net::Ipv4Addr;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Host, Peer, eventually, soaked};
use rustix::process::Signal;

use crate::{OUTSIDE, PUBLISHED, SOON, Stock};

/// The length of a download that runs while the host changes hands, and its rate.
const BYTES: &str = "400000000";
const RATE: &str = "--rate=100000000";
/// A silence in milliseconds that a lost segment does not end: a SYN is sent again after a second.
pub(crate) const UNBROKEN: u64 = 900;

/// Waits for the end of a released agent.
pub(crate) fn ends(agent: &mut Agent) -> Result<()> {
    eventually(SOON, || {
        agent.ended()?.context("the agent goes on").map(drop)
    })
}

pub(crate) fn release(host: &Host) -> Result<()> {
    host.cli(&["release"]).map(drop)
}

/// Nothing is lost, however often the host changes hands.
#[test]
fn adopt_and_release_repeat() -> Result<()> {
    let stock = Stock::new("again")?;
    let before = stock.rules()?;
    let traffic = stock.traffic()?;
    let times = soaked(5, 20);
    for _ in 0..times {
        let mut agent = stock.host.agent().quiet().start()?;
        sleep(Duration::from_millis(200));
        release(&stock.host)?;
        ends(&mut agent)?;
    }
    traffic.check_after(2 * times, UNBROKEN)?;
    let after = stock.rules()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

/// An agent that is killed leaves everything in place, for the next one or for `release`, also in
/// the middle of a handover.
#[test]
fn killed_agent_breaks_nothing() -> Result<()> {
    let stock = Stock::new("killed")?;
    let host = &stock.host;
    let older = stock.traffic()?;
    let mut agent = host.agent().quiet().config("")?.start()?;
    let newer = stock.traffic()?;
    for delay in [0, 150, 220, 300] {
        let mode = if delay % 20 == 0 { "off" } else { "own" };
        host.configure(&format!("[network.app]\nmode = \"{mode}\"\n"))?;
        sleep(Duration::from_millis(delay));
        agent.kill()?;
        sleep(Duration::from_millis(300));
        agent = host.agent().quiet().config("")?.start()?;
    }
    agent.kill()?;
    release(host)?;
    release(host)?;
    sleep(Duration::from_millis(300));
    newer.check_after(6, UNBROKEN)?;
    older.check_after(6, UNBROKEN)
}

/// `release` does not wait for an agent that hangs, and takes nothing from a download.
#[test]
fn frozen_agent_is_released() -> Result<()> {
    let stock = Stock::new("frozen")?;
    let host = &stock.host;
    let mut agent = host.agent().quiet().start()?;
    let inner = stock.inside.space()?;
    let mut inward = stock
        .lab
        .lan()
        .spawn_peer(&["fetch", PUBLISHED, BYTES, RATE])?;
    let mut outward = inner.spawn_peer(&["fetch", OUTSIDE, BYTES, RATE])?;
    for process in [&mut inward, &mut outward] {
        process.line("at ", SOON)?;
    }
    let traffic = stock.traffic()?;
    agent.signal(Signal::STOP)?;
    release(host)?;
    ends(&mut agent)?;
    traffic.check_after(1, UNBROKEN)?;
    for process in [&mut inward, &mut outward] {
        process.line("done ", SOON * 4)?;
    }
    Ok(())
}

/// Whatever Docker does on an adopted host, it does as before.
#[test]
fn docker_goes_on_as_before() -> Result<()> {
    let stock = Stock::new("goeson")?;
    let (host, lan) = (&stock.host, stock.lab.lan());
    let _agent = host.agent().start()?;
    let traffic = stock.traffic()?;
    let asks = |port: u16| lan.peer(&["get", &format!("198.18.1.1:{port}"), "--timeout=300"]);
    let serves = |port: u16| {
        eventually(SOON, || {
            let answer = asks(port)?;
            ensure!(answer.starts_with("198.18.1.2:"), "{answer}");
            Ok(())
        })
        .with_context(|| format!("port {port}"))
    };
    host.docker(&["network", "create", "late"])?;
    let options = ["--network=late", "-p=8090:80", "-p=8090:80/udp"];
    let late = host.run("late", &options, &Peer::serve(80))?;
    serves(8090)?;
    lan.peer(&["udp", "198.18.1.1:8090", "x"])?;
    late.space()?.peer(&["get", OUTSIDE])?;
    late.docker("restart")?;
    serves(8090)?;
    late.docker("stop")?;
    ensure!(asks(8090).is_err(), "a stopped container serves");
    late.docker("start")?;
    serves(8090)?;
    host.docker(&["network", "connect", "db", "late"])?;
    let store = format!("{}:90", host.container("store").ip()?);
    eventually(SOON, || {
        late.space()?.peer(&["get", &store, "--timeout=300"])
    })?;
    host.docker(&["network", "disconnect", "db", "late"])?;
    let answer = late.space()?.peer(&["get", &store, "--timeout=300"]);
    ensure!(answer.is_err(), "it still reaches the network: {answer:?}");
    late.remove()?;
    host.docker(&["network", "rm", "late"])?;
    // The next container gets the port, and perhaps the address.
    host.run("next", &["-p=8090:80"], &Peer::serve(80))?;
    serves(8090)?;
    traffic.check()
}

/// An agent's first start on a host with many containers, and its next one with pins.
#[test]
fn start_among_many_containers() -> Result<()> {
    let stock = Stock::new("many")?;
    let host = &stock.host;
    let number = soaked(6, 200);
    let names: Vec<_> = (0..number).map(|n| format!("many{n}")).collect();
    for some in names.chunks(8) {
        thread::scope(|scope| {
            let run = |name: &'_ String| host.run(name, &["--network=db"], &Peer::idle()).map(drop);
            let running: Vec<_> = some
                .iter()
                .map(|name| scope.spawn(move || run(name)))
                .collect();
            let done = running
                .into_iter()
                .map(|one| one.join().ok().context("panicked")?);
            done.collect::<Result<()>>()
        })?;
    }
    let traffic = stock.traffic()?;
    for what in ["first", "next"] {
        let since = Instant::now();
        let mut agent = host.agent().quiet().arg("--log=debug").start()?;
        println!(
            "{number} containers, {what} start: ready after {:?}",
            since.elapsed()
        );
        agent.kill()?;
    }
    release(host)?;
    traffic.check_after(2, UNBROKEN)
}

/// Connections of the kernel cost an idle agent little.
#[test]
fn idle_agent_keeps_many_connections() -> Result<()> {
    let stock = Stock::new("idle")?;
    let host = &stock.host;
    let number = soaked(2000, 50_000);
    let to = stock.inside.ip()?;
    let line = |n: u32| {
        let from = Ipv4Addr::from_bits(0xcb00_7100 + (n >> 14));
        let port = 1024 + (n & 0x3fff);
        format!("-I -p udp -s {from} -d {to} --sport {port} --dport 7 -t 600\n")
    };
    let file = std::env::temp_dir().join(format!("adopt-idle-{}", std::process::id()));
    std::fs::write(&file, (0..number).map(line).collect::<String>())?;
    let loaded = host.cmd(&["conntrack", "-R", &file.display().to_string()]);
    std::fs::remove_file(&file)?;
    loaded?;
    let since = Instant::now();
    let agent = host.agent().quiet().start()?;
    println!("{number} connections: ready after {:?}", since.elapsed());
    let stat = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
        let words: Vec<_> = stat.split_whitespace().collect();
        Ok(words[13].parse::<u64>()? + words[14].parse::<u64>()?)
    };
    let before = stat()?;
    sleep(Duration::from_secs(soaked(2, 30)));
    let ticks = stat()? - before;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let rss = status.lines().find(|line| line.starts_with("VmRSS"));
    println!("{ticks} ticks of 10 ms, {rss:?}");
    Ok(())
}
