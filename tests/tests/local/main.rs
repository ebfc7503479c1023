// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local access: processes of the host reach published ports at every address of the host's,
//! without a proxy and without a packet rewritten.

mod end;
mod life;
mod reach;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Space};

const SOON: Duration = Duration::from_secs(5);
const WEB: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

/// Where the peer runs as a client.
type Client<'a> = &'a dyn Fn(&[&str]) -> Result<String>;

/// Every way to ask leads to a container that sees `gateway`, and the client sees what it asked.
fn reaches(client: Client<'_>, to: &str, gateway: &str) -> Result<()> {
    connects(client, to, gateway)?;
    let output = client(&["sendto", to, "hello"]).context("unconnected UDP")?;
    let seen = output.strip_prefix(&format!("{to} {gateway}:"));
    ensure!(
        seen.is_some_and(|seen| seen.ends_with(" hello")),
        "asked {to}, answered by {output}"
    );
    Ok(())
}

/// The same of the ways that connect.
fn connects(client: Client<'_>, to: &str, gateway: &str) -> Result<()> {
    let seen = client(&["get", to]).context("TCP")?;
    let sees_gateway = |seen: &str| seen.starts_with(&format!("{gateway}:"));
    ensure!(sees_gateway(&seen), "{to} is served {seen}");
    let seen = client(&["udp", to, "hello"]).context("connected UDP")?;
    ensure!(
        sees_gateway(&seen) && seen.ends_with(" hello"),
        "{to} answers {seen}"
    );
    for transport in ["tcp", "udp"] {
        let name = client(&["name", transport, to]).context("a peer's name")?;
        ensure!(name == to, "connected to {to}, told {name}");
    }
    Ok(())
}

/// A connection to `to` from a source port of its own ends in this container and in no other one.
fn reaches_only(from: &Space, to: &str, server: &Container, others: &[&Container]) -> Result<()> {
    let seen = from.peer(&["get", to])?;
    let logged = |container: &Container| -> Result<bool> {
        let logs = container.logs()?;
        Ok(logs.lines().any(|line| line == format!("tcp {seen}")))
    };
    ensure!(logged(server)?, "{to} is not served by {}", server.name());
    for other in others {
        ensure!(!logged(other)?, "{to} is served by {}", other.name());
    }
    Ok(())
}

/// What a client says that is not served.
fn refused(client: Client<'_>, to: &str) -> Result<()> {
    for verb in [&["get", to][..], &["udp", to, "x"]] {
        let error = client(verb).err();
        let error = error.with_context(|| format!("{to} is served: {}", verb[0]))?;
        let error = format!("{error:#}");
        ensure!(error.contains("refused"), "{to}: {error}");
    }
    Ok(())
}
