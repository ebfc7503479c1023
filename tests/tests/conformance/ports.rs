// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of port numbers: taken, given back, drawn, failed, and repaired.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forwarder_common::abi::{LAYOUT, name};
use harness::{Container, Host, IMAGE, Peer, eventually, finish};
use serde_json::Value;

use crate::SOON;
use crate::ask::{reaches, seen_as};
use crate::site::Site;

/// The agent compares the kernel with what it should hold at least this often.
const RESYNC: Duration = Duration::from_secs(15);

/// The rows of `forwarder ports`.
fn rows(host: &Host) -> Result<Vec<Value>> {
    let rows = host.json("ports")?;
    rows.as_array().context("a list of ports").cloned()
}

/// A container that is made anew on its port serves at once in spite of TIME_WAIT.
///
/// Case 12, `TestRestartUserlandProxyUnder2MSL`: the same client port, too, whose last connection
/// is in TIME_WAIT.
#[test]
fn recreated_container_serves_despite_time_wait() -> Result<()> {
    let site = Site::ours("c12-time-wait")?;
    let ask = ["get", "198.18.1.1:8080", "--bind", "198.18.1.2:40000"];
    for round in 0..3 {
        let web = site.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
        for _ in 0..3 {
            let seen = site.lan().peer(&ask).with_context(|| format!("{round}"))?;
            assert_eq!(seen, "198.18.1.2:40000");
        }
        web.remove()?;
    }
    Ok(())
}

/// Drawn ports of one container differ, and each leads to its own container port.
///
/// Case 20, `TestMixAnyWithSpecificHostAddrs`, its IPv4 part.
#[test]
fn drawn_ports_differ_and_lead_to_their_own() -> Result<()> {
    let site = Site::ours("c20-drawn")?;
    let options = ["-p", "80", "-p", "198.18.1.1::81", "-p", "127.0.0.1::82"];
    let program = Peer::program(&["/peer", "serve", "80", "81", "82"]);
    let web = site.run("web", &options, &program)?;
    web.log_line("serving 82")?;
    let rows = rows(&site.host)?;
    let mut drawn = Vec::new();
    for (container, host_ip) in [(80, "0.0.0.0"), (81, "198.18.1.1"), (82, "127.0.0.1")] {
        let row = rows.iter().find(|row| row["container_port"] == container);
        let row = row.with_context(|| format!("{container} is not published: {rows:?}"))?;
        ensure!(row["host_ip"] == host_ip, "{row}");
        let port = row["host_port"].as_u64().context("a port")?;
        let shown = site.host.docker(&["port", "web", &container.to_string()])?;
        ensure!(
            shown
                .lines()
                .any(|line| line == format!("{host_ip}:{port}")),
            "Docker says {shown} of {row}"
        );
        drawn.push(port);
        if container != 82 {
            let inside = web.space()?.capture("eth0")?;
            site.lan().peer(&["get", &format!("198.18.1.1:{port}")])?;
            ensure!(!inside.lines(&format!("dst port {container}"))?.is_empty());
        }
    }
    // Two specific addresses may have one number: that of any address is nobody else's.
    ensure!(!drawn[1..].contains(&drawn[0]), "{drawn:?}");
    Ok(())
}

/// A start that fails because of a taken port leaves no entry, and leaves the port to its owner.
///
/// Case 35, `TestPublishedPortAlreadyInUse`, `TestRunPortInUse`, `TestRunAllocatePortInReservedRange`.
#[test]
fn taken_port_fails_the_start_without_trace() -> Result<()> {
    let site = Site::ours("c35-taken")?;
    let run = |name: &str, port: &str| site.run(name, &["-p", port], &Peer::serve(80));
    run("owner", "8080:80")?;
    let before = rows(&site.host)?;
    // Not even the ports that were free stay behind.
    let two = [
        "run", "-d", "--name", "late", "-p", "8081:80", "-p", "8080:80",
    ];
    let late = site
        .host
        .docker(&[&two[..], &[IMAGE, "/peer", "serve", "80"]].concat());
    ensure!(late.is_err(), "two on one port: {late:?}");
    let taken_by_host = site
        .host
        .enter(|| std::net::TcpListener::bind("0.0.0.0:8082"))??;
    let other = ["run", "-d", "--name", "later", "-p", "8082:80", IMAGE];
    let other = site
        .host
        .docker(&[&other[..], &["/peer", "serve", "80"]].concat());
    ensure!(other.is_err(), "a port of the host's: {other:?}");
    eventually(SOON, || {
        let after = rows(&site.host)?;
        ensure!(before == after, "{after:?}, not {before:?}");
        Ok(())
    })?;
    site.lan().peer(&["get", "198.18.1.1:8080"])?;
    // What is given back can be taken.
    drop(taken_by_host);
    run("next", "8082:80")?;
    site.host.container("owner").remove()?;
    run("heir", "8080:80")?;
    // Beside a drawn port the next one can be asked for.
    run("drawn", "80")?;
    let port = site.host.docker(&["port", "drawn", "80"])?;
    let port: u16 = port
        .lines()
        .next()
        .and_then(|line| line.rsplit_once(':'))
        .context("no port is drawn")?
        .1
        .parse()?;
    run("beside", &format!("{}:80", port + 1))?;
    for port in [8080, 8082, port, port + 1] {
        site.lan().peer(&["get", &format!("198.18.1.1:{port}")])?;
    }
    Ok(())
}

/// The pinned map of published ports.
fn published_map(host: &Host) -> Result<PathBuf> {
    let map = host
        .bpffs_dir()
        .join(format!("v{LAYOUT}/maps"))
        .join(name::PUBLISHED);
    ensure!(map.exists(), "no pinned map of published ports");
    Ok(map)
}

/// Deletes all entries of a pinned map and says how many there were.
fn empty(map: &PathBuf) -> Result<usize> {
    let bpftool = |words: &[&str], key: &[String]| {
        let mut command = Command::new("bpftool");
        command.args(words).arg(map);
        if !key.is_empty() {
            command.args(["key", "hex"]).args(key);
        }
        finish(&mut command)?.success()
    };
    let entries: Vec<Value> =
        serde_json::from_str(&bpftool(&["-j", "map", "dump", "pinned"], &[])?)?;
    for entry in &entries {
        let key = entry["key"].as_array().context("no raw key")?;
        let bytes: Vec<_> = key
            .iter()
            .filter_map(|byte| Some(byte.as_str()?.trim_start_matches("0x").to_owned()))
            .collect();
        bpftool(&["map", "delete", "pinned"], &bytes)?;
    }
    Ok(entries.len())
}

/// An entry that is deleted by hand keeps nobody from the port and comes back.
///
/// Case 36, `TestRunDeallocatePortOnMissingIptablesRule`.
#[test]
fn deleted_entry_blocks_no_port_and_comes_back() -> Result<()> {
    let site = Site::ours("c36-deleted")?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let run = || -> Result<Container> { site.run("web", &ports, &Peer::serve(80)) };
    let reached = || reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2");
    let web = run()?;
    reached()?;
    let map = published_map(&site.host)?;
    ensure!(empty(&map)? == 2, "not two entries");
    web.remove()?;
    run()?;
    eventually(SOON, reached)?;
    // Without any event, too.
    ensure!(empty(&map)? == 2, "not two entries");
    eventually(RESYNC, || seen_as(site.lan(), "198.18.1.1:8080")).map(drop)
}
