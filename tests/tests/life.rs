// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's life and death: traffic goes on throughout, a new agent takes over what it finds,
//! and a clean-up leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forwarder_common::abi::{LAYOUT, name};
use harness::{
    Agent, Container, Docker, Host, Lab, Peer, Pinned, Process, difference, eventually,
    forwarder_bin, soaked,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// The LAN's own server, for connections outwards.
const OUTSIDE: &str = "198.18.1.2:7000";
/// The published port.
const PUBLISHED: &str = "198.18.1.1:8080";

/// A host with a server published as 8080, a client container, and a server in the LAN.
struct Site {
    lab: Lab,
    host: Host,
    inside: Container,
    _outside: Process,
}

impl Site {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::replace())?;
        host.run(
            "web",
            &["-p", "8080:80", "-p", "8080:80/udp"],
            &Peer::serve(80),
        )?;
        let inside = host.run("inside", &[], &Peer::idle())?;
        let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
        outside.line("serving", SOON)?;
        Ok(Self {
            lab,
            host,
            inside,
            _outside: outside,
        })
    }

    /// New flows of every kind, inwards and outwards.
    fn new_flows_work(&self) -> Result<()> {
        let lan = self.lab.lan();
        lan.peer(&["get", PUBLISHED]).context("inwards, TCP")?;
        lan.peer(&["udp", PUBLISHED, "x"]).context("inwards, UDP")?;
        let seen = self
            .inside
            .peer(&["get", OUTSIDE])
            .context("outwards, TCP")?;
        ensure!(seen.starts_with("198.18.1.1:"), "the LAN sees {seen}");
        self.inside
            .peer(&["udp", OUTSIDE, "x"])
            .context("outwards, UDP")?;
        self.inside
            .peer(&["ping", "198.18.1.2"])
            .context("outwards, ICMP")?;
        Ok(())
    }

    /// Connections that stay: a hundred inwards, twenty outwards, and a download.
    fn held(&self) -> Result<Held> {
        let inner = self.inside.space()?;
        let mut held = Held {
            inward: self.lab.lan().spawn_peer(&["hold", "100", PUBLISHED])?,
            outward: inner.spawn_peer(&["hold", "20", OUTSIDE])?,
            download: self
                .lab
                .lan()
                .spawn_peer(&["fetch", PUBLISHED, BYTES, "--rate", RATE])?,
        };
        held.inward.line("open 100", SOON)?;
        held.outward.line("open 20", SOON)?;
        held.download.line("at ", SOON)?;
        Ok(held)
    }
}

/// Enough for twenty seconds: a busy machine must not be late for what happens meanwhile.
const BYTES: &str = "80000000";
const RATE: &str = "4000000";

struct Held {
    inward: Process,
    outward: Process,
    download: Process,
}

impl Held {
    fn all_live(&mut self) -> Result<()> {
        for (process, alive) in [
            (&mut self.inward, "alive 100"),
            (&mut self.outward, "alive 20"),
        ] {
            process.tell("")?;
            process.line("alive", SOON * 2).and_then(|line| {
                ensure!(line == alive, "{line}, not {alive}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn downloads_on(&mut self) -> Result<()> {
        ensure!(
            self.download.ended()?.is_none(),
            "the download is over too early for this test"
        );
        self.download.line("at ", SOON).map(drop)
    }
}

/// Live flows: packets by protocol and originator.
fn flows(host: &Host) -> Result<BTreeMap<String, u64>> {
    let all = host.json("flows")?;
    let row = |flow: &Value| {
        let from = &flow["original"];
        let name = format!(
            "{} {}:{} > {}:{} as {}",
            flow["proto"], from["src"], from["sport"], from["dst"], from["dport"], flow["reply"]
        );
        Some((name, flow["packets"].as_u64()?))
    };
    all.as_array()
        .context("no list of flows")?
        .iter()
        .map(|flow| row(flow).context("no flow"))
        .collect()
}

fn tcp_flows(host: &Host) -> Result<BTreeMap<String, u64>> {
    let mut all = flows(host)?;
    all.retain(|name, _| name.contains("tcp"));
    Ok(all)
}

/// The same maps and links.
fn assert_taken_over(before: &Pinned, after: &Pinned) {
    assert_eq!(before.maps, after.maps, "maps are taken over");
    assert_eq!(before.links, after.links, "links are taken over");
}

/// The same programs on devices, without the verifier: both agents are of one build.
fn assert_kept(before: &Pinned, after: &Pinned) {
    assert_taken_over(before, after);
    for name in before.links.keys() {
        assert_eq!(before.programs[name], after.programs[name], "{name}");
    }
}

/// Other programs.
fn assert_replaced(before: &Pinned, after: &Pinned) {
    assert_taken_over(before, after);
    let same: Vec<_> = before
        .programs
        .iter()
        .filter(|(name, id)| after.programs.get(*name) == Some(id))
        .collect();
    assert!(
        same.is_empty(),
        "still an earlier agent's programs: {same:?}"
    );
}

fn start(host: &Host) -> Result<Agent> {
    host.agent().start()
}

/// How long a start takes; nothing of it is left.
fn start_takes(host: &Host) -> Result<Duration> {
    let begun = Instant::now();
    let mut agent = start(host)?;
    let whole = begun.elapsed();
    agent.kill()?;
    host.cli(&["cleanup"])?;
    Ok(whole)
}

/// Traffic goes on while the agent is dead, and the next one takes over.
#[test]
fn traffic_survives_the_agents_death() -> Result<()> {
    let site = Site::new("life")?;
    let host = &site.host;
    let mut agent = start(host)?;
    site.new_flows_work()?;
    let mut held = site.held()?;
    let first = host.pinned()?;
    assert!(
        first.maps.len() >= 15 && first.links.len() >= 6,
        "{first:?}"
    );

    agent.kill()?;
    held.downloads_on()?;
    held.all_live()?;
    site.new_flows_work().context("with the agent killed")?;
    assert_eq!(host.pinned()?, first, "pins stay as they are");
    let before = tcp_flows(host)?;

    let mut agent = start(host)?;
    let second = host.pinned()?;
    assert_kept(&first, &second);
    held.downloads_on()?;
    held.all_live()?;
    let after = tcp_flows(host)?;
    for (flow, packets) in &before {
        assert!(
            after.get(flow).is_some_and(|now| now >= packets),
            "{flow} with {packets} packets is lost"
        );
    }
    assert!(before.len() >= 121, "{} flows", before.len());
    site.new_flows_work().context("with the new agent")?;

    assert!(agent.stop()?.success());
    held.downloads_on()?;
    held.all_live()?;
    site.new_flows_work().context("with the agent stopped")?;
    assert_eq!(
        host.pinned()?,
        second,
        "SIGTERM leaves the pins as they are"
    );
    // Without their messages the programs are others.
    let _agent = host.agent().arg("--log=info,programs=off").start()?;
    assert_replaced(&second, &host.pinned()?);
    assert_eq!(
        held.download.line("done", SOON * 4)?,
        format!("done {BYTES}")
    );
    held.all_live()
}

/// An agent does not use pinned programs whose maps are not the pinned ones, as a cleanup that was
/// killed may leave them.
#[test]
fn programs_without_their_maps_are_replaced() -> Result<()> {
    let site = Site::new("mapless")?;
    let host = &site.host;
    start(host)?.kill()?;
    let first = host.pinned()?;
    let maps = host.bpffs_dir().join(format!("v{LAYOUT}/maps"));
    fs::remove_file(maps.join(name::PUBLISHED))?;
    let _agent = start(host)?;
    site.new_flows_work()?;
    let second = host.pinned()?;
    for link in first.links.keys() {
        assert_ne!(first.programs[link], second.programs[link], "{link}");
    }
    Ok(())
}

#[test]
fn traffic_works_while_the_agent_stays_dead() -> Result<()> {
    let site = Site::new("dead")?;
    let host = &site.host;
    // In a soak more flows end than there is room for: what is over makes room without an agent.
    let mut agent = host.agent().arg("--flows=8192").start()?;
    let mut held = site.held()?;
    agent.kill()?;
    let end = Instant::now() + soaked(Duration::from_secs(5), Duration::from_secs(600));
    let mut rounds = 0;
    while Instant::now() < end {
        site.new_flows_work()?;
        held.all_live()?;
        rounds += 1;
    }
    println!("{rounds} rounds of five new flows each, without an agent");
    let _agent = host.agent().arg("--flows=8192").start()?;
    site.new_flows_work()?;
    held.all_live()
}

/// An agent that is killed at any moment of its start is no obstacle to the next.
#[test]
fn agent_killed_while_starting_blocks_no_other() -> Result<()> {
    let site = Site::new("kills")?;
    let host = &site.host;
    let mut whole = start_takes(host)?;

    let mut held = None;
    for n in 0..100_u32 {
        // The first ten begin from nothing, the others take over, which takes less time.
        if n == 10 {
            start(host)?.kill()?;
            let begun = Instant::now();
            let mut agent = start(host)?;
            whole = begun.elapsed();
            agent.kill()?;
            held = Some(site.held()?);
        }
        let mut agent = host.agent().quiet().spawn()?;
        sleep(whole * (n % 10) / 9);
        agent.kill()?;
        if n % 4 == 3 && n < 10 {
            host.cli(&["cleanup"])?;
            assert!(
                !host.bpffs_dir().exists() && !host.state_dir().exists(),
                "left after kill {n}"
            );
        }
        if let Some(held) = &mut held {
            held.all_live().with_context(|| format!("after kill {n}"))?;
        }
    }
    let _agent = start(host)?;
    site.new_flows_work()?;
    let pinned = host.pinned()?;
    // Uplink, bridge, two veths: two programs each, and one where fragments go round; as after a start
    // without kills.
    assert_eq!(pinned.links.len(), 9, "{pinned:?}");
    held.context("never held")?.all_live()
}

/// There is one agent per network namespace, however its directories are named.
#[test]
fn one_agent_runs_per_namespace() -> Result<()> {
    let lab = Lab::new("two-agents")?;
    let (first, second) = (lab.host(Docker::replace())?, lab.host(Docker::replace())?);
    for host in [&first, &second] {
        host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    }
    let _agent = start(&first)?;
    let pinned = first.pinned()?;
    for suffix in ["", "-apart"] {
        let asked = Instant::now();
        let refused = first.agent().apart(suffix).finish()?;
        assert!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
        assert!(
            !refused.status.success() && refused.stdout.is_empty(),
            "{refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("another agent"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(first.pinned()?, pinned);

    let mut other = start(&second)?;
    for (host, peer) in [(&first, "198.18.2.1:8080"), (&second, "198.18.1.1:8080")] {
        let seen = host.container("web").peer(&["get", peer])?;
        assert!(seen.starts_with(&format!("{}:", host.address())), "{seen}");
    }
    other.kill()?;
    second.cli(&["cleanup"])?;
    assert_eq!(first.pinned()?, pinned, "the neighbour's clean-up");
    lab.lan().peer(&["get", PUBLISHED])?;
    assert!(
        lab.lan()
            .peer(&["get", "198.18.2.1:8080", "--timeout=300"])
            .is_err()
    );
    Ok(())
}

/// Cleanup leaves the host as it was before `run`.
#[test]
fn cleanup_restores_the_host() -> Result<()> {
    let site = Site::new("cleanup")?;
    let host = &site.host;
    // XDP sees checksums as a device delivers them: finished.
    site.lab.lan().ethtool(&host.lan_device(), "tx off")?;
    let web = host.container("web").space()?;
    let containers = [&web, &site.inside.space()?];
    let before = host.state(&containers)?;
    let is_as_before = |pinned: &Pinned, how: &str| -> Result<()> {
        let after = host.state(&containers)?;
        assert!(before == after, "{how}:\n{}", difference(&before, &after));
        // The kernel frees programs and maps a moment after their last user.
        eventually(SOON, || pinned.are_gone()).context(how.to_owned())
    };
    for (how, options) in [
        ("SIGTERM", "--xdp=off"),
        ("SIGKILL", "--xdp=native"),
        ("alive", "--xdp=generic"),
    ] {
        let mut agent = host.agent().arg(options).start()?;
        site.new_flows_work()?;
        let pinned = host.pinned()?;
        assert!(pinned.links.len() >= 8, "{pinned:?}");
        assert_ne!(
            host.state(&containers)?,
            before,
            "the comparison sees an agent"
        );
        match how {
            "SIGTERM" => assert!(agent.stop()?.success()),
            "SIGKILL" => agent.kill()?,
            _ => {
                let refused = host.forwarder(&["cleanup"])?;
                assert!(!refused.status.success(), "{refused:?}");
                assert_eq!(host.pinned()?, pinned);
                site.new_flows_work()?;
                host.cli(&["cleanup", "--force"])?;
                assert!(agent.ended()?.is_some(), "the agent goes on");
                is_as_before(&pinned, how)?;
                continue;
            }
        }
        host.cli(&["cleanup"])?;
        is_as_before(&pinned, how)?;
    }
    host.cli(&["cleanup"]).context("with nothing to do")?;
    Ok(())
}

/// Cleanup after a kill at any moment leaves the host as it was.
#[test]
fn cleanup_after_any_kill_restores_the_host() -> Result<()> {
    let site = Site::new("uninstall")?;
    let host = &site.host;
    let whole = start_takes(host)?;
    let before = host.state(&[])?;
    let kills = soaked(12, 50);
    for n in 0..kills {
        let mut agent = host.agent().quiet().spawn()?;
        sleep(whole * n / (kills - 1));
        agent.kill()?;
        host.cli(&["cleanup"])?;
        let after = host.state(&[])?;
        assert!(
            before == after,
            "kill {n}:\n{}",
            difference(&before, &after)
        );
    }
    Ok(())
}

/// Pins of another layout are refused in one line and removed by cleanup.
#[test]
fn pins_of_another_layout_need_cleanup() -> Result<()> {
    let lab = Lab::new("layout")?;
    let host = lab.host(Docker::replace())?;
    fs::create_dir_all(host.bpffs_dir().join("v999/maps"))?;
    let refused = host.agent().finish()?;
    assert!(!refused.status.success());
    assert!(
        refused.stderr.contains("v999") && refused.stderr.contains("cleanup"),
        "{}",
        refused.stderr
    );
    assert!(host.pinned()?.maps.is_empty());
    host.cli(&["cleanup"])?;
    assert!(!host.bpffs_dir().exists());
    start(&host).map(drop)
}

/// The kernel's switch of expedited grace periods, which is the whole machine's.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

fn is_expedited() -> Result<bool> {
    Ok(fs::read_to_string(SWITCH)?.trim() != "0")
}

/// Starts the process that turns the switch on for an agent; waits until it is on. Another test's
/// agent may have it on for a moment.
fn expedite() -> Result<Child> {
    eventually(SOON, || {
        ensure!(!is_expedited()?, "the switch is on");
        let mut command = Command::new(forwarder_bin()?);
        command.arg("expedite");
        let mut helper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = [0];
        let told = helper.stdout.as_mut().context("no output")?;
        told.read_exact(&mut line)
            .context("the switch is not turned on")?;
        Ok(helper)
    })
}

/// The machine's grace periods are as before when the agent for which they are expedited has ended,
/// whatever ends it.
#[test]
fn expedited_periods_end_with_the_agent() -> Result<()> {
    let is_off = || {
        eventually(SOON, || {
            ensure!(!is_expedited()?, "grace periods are still expedited");
            Ok(())
        })
    };
    // Its own limit, where nobody ends it.
    let mut helper = expedite()?;
    ensure!(is_expedited()?, "the switch is off");
    let ended = eventually(SOON, || helper.try_wait()?.context("it goes on"))?;
    ensure!(ended.success() && !is_expedited()?, "{ended}");

    // The end of an agent is the end of the input. What asks the agent to stop changes nothing.
    let mut helper = expedite()?;
    let pid = Pid::from_child(&helper);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(pid, signal)?;
    }
    drop(helper.stdin.take());
    let ended = helper.wait()?;
    ensure!(ended.success() && !is_expedited()?, "{ended}");

    // If both are killed at once, the next agent sees to it, or cleanup.
    let lab = Lab::new("expedite")?;
    let host = lab.host(Docker::replace())?;
    let leave_on = || {
        let mut helper = expedite()?;
        helper.kill()?;
        helper.wait().map(drop)?;
        ensure!(is_expedited()?, "the switch is off");
        anyhow::Ok(())
    };
    leave_on()?;
    let mut agent = start(&host)?;
    is_off()?;
    agent.kill()?;
    leave_on()?;
    host.cli(&["cleanup"])?;
    is_off()
}
