// SPDX-License-Identifier: MIT OR Apache-2.0
//! dockerd is restarted, killed and reloaded, and firewalls are flushed, twenty times: what is published is
//! served again at once, and what keeps strangers out of containers is never away.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Flood, Host, Lab, Packet, Peer, eventually};

/// As long as a container may take to be started again, on a machine that others use as well.
const CONVERGED: Duration = Duration::from_secs(20);
const TIMES: usize = 20;
const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// What strangers send, and nobody else does.
const STRANGE: &[u8] = b"from a stranger";

/// The published port leads where Docker says, and works.
fn is_published(lab: &Lab, host: &Host) -> Result<()> {
    let seen = lab
        .lan()
        .peer(&["get", "198.18.1.1:8080", "--timeout=1000"])?;
    ensure!(seen.starts_with("198.18.1.2:"), "seen as {seen}");
    let rows = host.json("ports")?;
    let row = rows.as_array().and_then(|rows| rows.first());
    let to = &row.context("nothing is published")?["container_ip"];
    let docker = host.container("web").ip()?.to_string();
    ensure!(*to == docker, "to {to}, but Docker says {docker}");
    Ok(())
}

fn survives(label: &str, docker: Docker) -> Result<()> {
    let lab = Lab::new(label)?;
    let host = lab.host(docker)?;
    let _agent = host.agent().start()?;
    let options = ["--restart=always", "-p", "8080:80", "-p", "8080:80/udp"];
    let web = host.run("web", &options, &Peer::serve(80))?;
    eventually(CONVERGED, || is_published(&lab, &host))?;

    // Straight to the container, whose address a stranger may guess, and to whatever is next to it.
    let macs = (host.mac("up0")?, lab.lan().mac("h1")?);
    let own: Ipv4Addr = web.ip()?.to_string().parse()?;
    let direct = |port| {
        let (from, to) = (SocketAddrV4::new(LAN, 40_000), SocketAddrV4::new(own, port));
        Packet::udp(from, to, STRANGE).frame(macs.0, macs.1)
    };
    let bridge = host.capture("docker0")?;
    let flood = Flood::start(lab.lan(), "h1", vec![direct(80), direct(81)])?;
    for n in 0..TIMES {
        match n % 4 {
            0 => host.restart_docker()?,
            1 => {
                host.kill_docker()?;
                host.start_docker()?;
            }
            2 => host.reload_docker()?,
            _ => {
                host.cmd(&["nft", "flush", "ruleset"])?;
                host.cmd(&["iptables", "-F"])?;
            }
        }
        flood.more(20)?;
        eventually(CONVERGED, || is_published(&lab, &host)).with_context(|| format!("time {n}"))?;
    }
    flood.more(100)?;
    let came = bridge.count(|frame| frame.carries(STRANGE))?;
    ensure!(came == 0, "{came} of a stranger's packets passed");
    let heard = web
        .logs()?
        .lines()
        .filter(|line| line.starts_with("udp "))
        .count();
    ensure!(heard == 0, "{heard} of a stranger's packets were heard");
    // It would have been heard by the published port.
    lab.lan().peer(&["udp", "198.18.1.1:8080", "x"])?;
    web.log_line("udp 198.18.1.2:").map(drop)
}

/// A daemon that takes its containers along leaves no gap.
#[test]
fn daemon_restart_with_containers_has_no_gap() -> Result<()> {
    survives("daemons", Docker::replace())
}

/// A daemon that leaves its containers running leaves no gap.
#[test]
fn daemon_restart_with_live_restore_has_no_gap() -> Result<()> {
    survives("daemons-live", Docker::replace().arg("--live-restore"))
}
