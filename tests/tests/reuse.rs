//! An address, a port, a name that passes from one container to the next: no packet of an old flow
//! reaches the new one.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Craft, Docker, Host, Lab, PacketSocket, Peer, Space, eventually, holds};

const SOON: Duration = Duration::from_secs(5);
const CONVERGED: Duration = Duration::from_secs(3);
const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// The network whose first address is passed on.
const ADDRESS: [&str; 2] = ["--network=fixed", "--ip=172.30.0.10"];

fn host(lab: &Lab) -> Result<Host> {
    let host = lab.host(Docker::replace())?;
    host.docker(&["network", "create", "--subnet=172.30.0.0/16", "fixed"])?;
    Ok(host)
}

/// Sends frames in turn, about a thousand in a second, until it is told to stop.
fn spray<'scope>(
    scope: &'scope Scope<'scope, '_>,
    lan: &'scope Space,
    frames: &'scope [Vec<u8>],
    over: &'scope AtomicBool,
    sent: &'scope AtomicU64,
) -> ScopedJoinHandle<'scope, Result<()>> {
    scope.spawn(move || {
        lan.enter(|| {
            let socket = PacketSocket::open("h1")?;
            while !over.load(Ordering::Relaxed) {
                frames.iter().try_for_each(|frame| socket.send(frame))?;
                sent.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(1));
            }
            Ok(())
        })?
    })
}

/// Ends the flood also when a test panics under it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while the LAN sends these frames over and over.
fn under_spray(
    lab: &Lab,
    frames: &[Vec<u8>],
    work: impl FnOnce(&AtomicU64) -> Result<()>,
) -> Result<()> {
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let sprayed = std::thread::scope(|scope| {
        let sprayer = spray(scope, lab.lan(), frames, &over, &sent);
        let ends = Over(&over);
        work(&sent)?;
        drop(ends);
        sprayer
            .join()
            .map_err(|_| anyhow::anyhow!("the flood broke"))
    });
    sprayed?
}

fn frames_to(lab: &Lab, host: &Host, flows: &[(u16, u16)]) -> Result<Vec<Vec<u8>>> {
    let macs = [host.mac("up0")?, lab.lan().mac("h1")?];
    let frame = |&(from, to): &(u16, u16)| Craft::new(macs, (LAN, from), (HOST, to)).udp(b"old");
    Ok(flows.iter().map(frame).collect())
}

/// What reached a server by UDP from the LAN.
fn heard(host: &Host, name: &str) -> Result<usize> {
    let logs = host.container(name).logs()?;
    Ok(logs
        .lines()
        .filter(|line| line.starts_with("udp 198.18.1.2:"))
        .count())
}

/// Waits until some more has been sent, all of it after now.
fn some_more(sent: &AtomicU64) -> Result<()> {
    let now = sent.load(Ordering::Relaxed);
    eventually(SOON, || {
        ensure!(
            sent.load(Ordering::Relaxed) > now + 300,
            "the flood is stuck"
        );
        Ok(())
    })
}

#[test]
fn a_new_container_with_the_same_address_gets_nothing_of_the_old_ones_flows() -> Result<()> {
    let lab = Lab::new("same-address")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let old = host.run("old", &options, &Peer::serve(80))?;
    // Flows inwards to the published port, and outwards from a port that the next one serves too.
    eventually(CONVERGED, || {
        lab.lan()
            .peer(&["udp", "198.18.1.1:9000", "x", "--bind=198.18.1.2:40000"])
    })?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7777"])?;
    outside.line("serving", SOON)?;
    let space = old.space()?;
    assert_eq!(
        space.peer(&["udp", "198.18.1.2:7777", "x", "--bind=172.30.0.10:5555"])?,
        "198.18.1.1:5555 x"
    );
    let frames = frames_to(&lab, &host, &[(40_000, 9000), (7777, 5555)])?;
    under_spray(&lab, &frames, |sent| {
        eventually(SOON, || {
            ensure!(heard(&host, "old")? > 50, "the old one hears nothing");
            Ok(())
        })?;
        let counter = space.capture("eth0")?;
        some_more(sent)?;
        let replies = counter
            .lines("udp and src port 7777 and dst port 5555")?
            .len();
        assert!(replies > 50, "replies reach the old one: {replies}");
        drop(counter);
        old.remove()?;
        host.run(
            "new",
            &ADDRESS,
            &Peer::program(&["/peer", "serve", "80", "5555"]),
        )?;
        host.container("new").log_line("serving 5555")?;
        some_more(sent)?;
        holds(Duration::from_secs(1), || {
            let heard = heard(&host, "new")?;
            ensure!(heard == 0, "{heard} datagrams of old flows");
            Ok(())
        })
    })?;
    // It is there and hears who means it.
    let new = host.container("new").ip()?;
    assert_eq!(new.to_string(), "172.30.0.10");
    host.peer(&["udp", "172.30.0.10:80", "x"]).map(drop)
}

#[test]
fn what_waits_for_an_addresss_owner_does_not_reach_the_next_one() -> Result<()> {
    let lab = Lab::new("waiting")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    // Somebody else, so that the bridge keeps its carrier.
    host.run("other", &["--network=fixed"], &Peer::idle())?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let old = host.run("old", &options, &Peer::serve(80))?;
    eventually(CONVERGED, || {
        lab.lan().peer(&["udp", "198.18.1.1:9000", "x"])
    })?;

    // It answers nobody any more, so that what the kernel is to deliver waits for its address.
    let id = host.docker(&["network", "inspect", "-f", "{{.Id}}", "fixed"])?;
    let bridge = format!("br-{}", &id[..12]);
    host.sysctl(&format!("net/ipv4/neigh/{bridge}/mcast_solicit"), "100")?;
    old.space()?.ip("link set eth0 arp off")?;
    host.ip(&format!("neigh flush dev {bridge}"))?;
    let macs = [host.mac("up0")?, lab.lan().mac("h1")?];
    let with_options = Craft {
        options: vec![1, 1, 1, 0],
        ..Craft::new(macs, (LAN, 40_000), (HOST, 9000))
    };
    let waiting = with_options.udp(b"waiting");
    lab.lan().send_frames("h1", &vec![waiting; 5])?;
    eventually(SOON, || {
        let entries = host.ip(&format!("neigh show dev {bridge}"))?;
        ensure!(entries.contains("172.30.0.10 INCOMPLETE"), "{entries}");
        Ok(())
    })?;

    old.remove()?;
    let new = host.run("new", &ADDRESS, &Peer::serve(80))?;
    // Whoever is delivered to now comes after what waited.
    host.peer(&["udp", "172.30.0.10:80", "x"])?;
    new.log_line("udp 172.30.0.1:")?;
    assert_eq!(heard(&host, "new")?, 0, "{}", new.logs()?);
    Ok(())
}

#[test]
fn a_container_that_is_restarted_gets_only_what_is_published_again() -> Result<()> {
    let lab = Lab::new("restarted")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let options = [&ADDRESS[..], &["-p", "9000:80/udp"]].concat();
    let web = host.run(
        "web",
        &options,
        &Peer::program(&["/peer", "serve", "80", "5555"]),
    )?;
    web.log_line("serving 5555")?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7777"])?;
    outside.line("serving", SOON)?;
    eventually(CONVERGED, || {
        lab.lan().peer(&["udp", "198.18.1.1:9000", "x"])
    })?;
    // From a port next to the served one: the answers go to nobody, but a capture sees them.
    let space = web.space()?;
    space.peer(&["udp", "198.18.1.2:7777", "x", "--bind=172.30.0.10:5556"])?;
    let replies = frames_to(&lab, &host, &[(7777, 5556)])?;
    under_spray(&lab, &replies, |sent| {
        let counter = space.capture("eth0")?;
        some_more(sent)?;
        assert!(counter.lines("udp and dst port 5556")?.len() > 50);
        drop(counter);
        web.docker("restart")?;
        let counter = web.space()?.capture("eth0")?;
        some_more(sent)?;
        let late = counter.lines("udp and dst port 5556")?.len();
        assert_eq!(late, 0, "answers to the one before");
        Ok(())
    })?;
    eventually(CONVERGED, || {
        lab.lan()
            .peer(&["udp", "198.18.1.1:9000", "x", "--timeout=300"])
    })?;
    Ok(())
}

#[test]
fn a_port_that_moves_to_another_container_moves_at_once_and_wholly() -> Result<()> {
    let lab = Lab::new("moved")?;
    let host = host(&lab)?;
    let _agent = host.agent().start()?;
    let ports = ["-p", "9000:80/udp", "-p", "8080:80"];
    let elsewhere = ["--network=fixed", "--ip=172.30.0.20"];
    let first = host.run("first", &[&ADDRESS[..], &ports].concat(), &Peer::serve(80))?;
    let frames = frames_to(&lab, &host, &[(40_000, 9000)])?;
    under_spray(&lab, &frames, |sent| {
        eventually(SOON, || {
            ensure!(heard(&host, "first")? > 50, "the first hears nothing");
            Ok(())
        })?;
        first.docker("stop")?;
        let second = host.run(
            "second",
            &[&elsewhere[..], &ports].concat(),
            &Peer::serve(80),
        )?;
        let begun = Instant::now();
        eventually(CONVERGED, || {
            ensure!(heard(&host, "second")? > 0, "the second hears nothing");
            Ok(())
        })?;
        println!(
            "the port has moved after {:?} (promised: 1s)",
            begun.elapsed()
        );
        lab.lan().peer(&["get", "198.18.1.1:8080"])?;
        second.log_line("tcp 198.18.1.2:")?;

        // The first comes back at its address, without ports.
        first.remove()?;
        host.run("first", &ADDRESS, &Peer::serve(80))?;
        let before = heard(&host, "second")?;
        some_more(sent)?;
        assert_eq!(heard(&host, "first")?, 0);
        assert!(heard(&host, "second")? > before + 100);
        Ok(())
    })
    .context("under a flood from one client port")
}
