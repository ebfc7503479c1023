// SPDX-License-Identifier: MIT OR Apache-2.0
//! Published ports by the shim: dockerd goes on only when the mapping stands, and neither its death
//! nor the agent's opens a gap.

mod agent;
mod daemon;
mod program;
mod start;

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Peer, Running, Scene};

/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(5);
/// Both protocols on one port.
const BOTH: [&str; 4] = ["-p", "0.0.0.0:8080:80", "-p", "0.0.0.0:8080:80/udp"];

/// A host whose dockerd starts our shims, and its agent.
fn scene(label: &str) -> Result<Scene> {
    let lab = Lab::new(label)?;
    let host = lab.host(Docker::replace_with_shim())?;
    let agent = host.agent().start()?;
    Ok(Scene { agent, host, lab })
}

/// The published ports as the kernel has them by the agent's word, `HOST:PORT/PROTO`.
fn ports(host: &Host) -> Result<Vec<String>> {
    let rows = host.json("ports")?;
    let rows = rows.as_array().context("no list of ports")?;
    let text = |row: &serde_json::Value| {
        let field = |name: &str| row[name].as_str().map(str::to_owned);
        let port = row["host_port"].as_u64()?;
        Some(format!("{}:{port}/{}", field("host_ip")?, field("proto")?))
    };
    rows.iter()
        .map(|row| text(row).with_context(|| format!("no port: {row}")))
        .collect()
}

fn shims(host: &Host) -> Result<Vec<Running>> {
    Running::named("forwarder-proxy", host)
}

/// Whether a program of the host's could take the port.
fn is_free(host: &Host, port: u16) -> Result<bool> {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    host.enter(|| TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok())
}

/// Whether a program of the host's is refused the port, TCP and UDP.
fn is_reserved(host: &Host, port: u16) -> Result<bool> {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    host.enter(|| TcpListener::bind(any).is_err() && UdpSocket::bind(any).is_err())
}

/// New connections and datagrams from the LAN reach the container with the client's address.
fn is_served(lab: &Lab) -> Result<()> {
    for (verb, more) in [("get", None), ("udp", Some("x"))] {
        let words = [verb, "198.18.1.1:8080"].into_iter().chain(more);
        let words: Vec<_> = words.chain(["--timeout=1000"]).collect();
        let seen = lab.lan().peer(&words)?;
        ensure!(seen.starts_with("198.18.1.2:"), "{verb} shows {seen}");
    }
    Ok(())
}

fn run(host: &Host, name: &str, more: &[&str]) -> Result<()> {
    host.run(name, &[&BOTH, more].concat(), &Peer::serve(80))
        .map(drop)
}
