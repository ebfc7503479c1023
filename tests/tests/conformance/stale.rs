// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP is never stale: what goes on sending reaches whoever has the port now, as itself.

use std::fs::read_to_string;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Peer, eventually};

use crate::SOON;
use crate::site::Site;

/// What is promised is at once; a machine that others use as well gets three seconds.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Between two datagrams.
const PAUSE: Duration = Duration::from_millis(2);
/// The flooding client.
const CLIENT: &str = "198.18.1.2:40000";

/// Nothing remembers a flow of a container that was removed.
///
/// Case 32, `TestConntrackFlowsLeak`.
#[test]
fn removed_container_leaves_no_flow() -> Result<()> {
    let site = Site::ours("c32-leak")?;
    let about = |text: &str| text.contains("8080");
    let flows = || Ok::<_, anyhow::Error>(site.host.json("flows")?.to_string());
    for round in 0..3 {
        let web = site.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
        for _ in 0..3 {
            let seen = site
                .lan()
                .peer(&["udp", "198.18.1.1:8080", "x", "--bind", CLIENT])?;
            assert_eq!(seen, format!("{CLIENT} x"), "round {round}");
        }
        ensure!(about(&flows()?), "no flow to forget");
        web.remove()?;
        eventually(SOON, || {
            ensure!(!about(&flows()?), "{}", flows()?);
            Ok(())
        })?;
        let kernels = site.host.cmd(&["conntrack", "-L"])?;
        ensure!(!about(&kernels), "{kernels}");
    }
    Ok(())
}

/// Who the server's log says has come since it was started last.
fn callers(web: &Container) -> Result<Vec<String>> {
    let logs = web.logs()?;
    let life = logs.rsplit("serving").next().unwrap_or_default();
    let callers = life.lines().filter_map(|line| line.strip_prefix("udp "));
    Ok(callers.map(str::to_owned).collect())
}

/// The flood reaches the server as the client, at once, and nobody else does.
fn is_heard(web: &Container, what: &str) -> Result<()> {
    eventually(AT_ONCE, || {
        ensure!(callers(web)?.len() > 10, "{:?}", callers(web)?);
        Ok(())
    })
    .with_context(|| format!("{what}: the server hears nothing"))?;
    let callers = callers(web)?;
    ensure!(
        callers.iter().all(|caller| caller == CLIENT),
        "{what}: it hears {callers:?}"
    );
    Ok(())
}

/// Sends to two ports of the host's, from before the server is until after it has moved from the
/// first to the second.
pub(crate) fn a_flood_reaches_each_next_server(site: &Site) -> Result<()> {
    let socket = site.lan().enter(|| UdpSocket::bind(CLIENT))??;
    let over = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for port in [9000, 9001] {
                    // A closed port's answer shows as an error of the next call.
                    let _ = socket.send_to(b"flood", ("198.18.1.1", port));
                }
                sleep(PAUSE);
            }
        });
        let result = servers_come_and_go(site);
        over.store(true, Ordering::Relaxed);
        result
    })
}

fn servers_come_and_go(site: &Site) -> Result<()> {
    // The kernel's own tracking, where there is one, has seen the flood by now.
    eventually(SOON, || {
        let counters = site
            .host
            .enter(|| read_to_string("/proc/thread-self/net/snmp"))??;
        let row = counters
            .lines()
            .filter(|line| line.starts_with("Udp:"))
            .nth(1);
        let no_port = row.and_then(|row| row.split(' ').nth(2)?.parse::<u64>().ok());
        ensure!(
            no_port > Some(20),
            "the host has not seen the flood: {row:?}"
        );
        Ok(())
    })?;
    let web = site
        .host
        .run("web", &["-p", "9000:80/udp"], &Peer::serve(80))?;
    is_heard(&web, "begun before the container")?;
    for round in 1..=2 {
        web.docker("restart")?;
        web.log_line("serving")?;
        is_heard(&web, &format!("after restart {round}"))?;
    }
    web.remove()?;
    let web = site
        .host
        .run("web", &["-p", "9001:80/udp"], &Peer::serve(80))?;
    is_heard(&web, "moved to another host port")?;
    web.remove()?;
    let web = site
        .host
        .run("next", &["-p", "9000:80/udp"], &Peer::serve(80))?;
    is_heard(&web, "another container at the first port")
}

/// A flood from before the start reaches each next server, which sees the client's address.
///
/// Case 33, the repro of moby's pull request 44742 and of issue 53384.
#[test]
fn earlier_flood_reaches_each_next_server() -> Result<()> {
    a_flood_reaches_each_next_server(&Site::ours("c33-flood")?)
}
