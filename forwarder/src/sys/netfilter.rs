// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing our own rules of netfilter, by the programs nft and iptables. They outlive the agent.

use std::io::Write as _;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use forwarder_common::mark::UNTRACKED_BITS;
use forwarder_state::others::netfilter::{OurTable, TABLE};
use forwarder_state::own_rules::{Apart, Rules};

use super::process::program;

/// Whether nft is installed, which all tables need but *untracked*: iptables serves there too.
#[must_use]
pub(crate) fn has_nft() -> bool {
    program("nft").is_some()
}

/// Whether a program is installed that can add a rule that exempts from connection tracking.
#[must_use]
pub(crate) fn can_untrack() -> bool {
    has_nft() || program("iptables").is_some()
}

/// Returns why the kernel would refuse the tables that need nft, one line each. Changes nothing.
#[must_use]
pub(crate) fn refused() -> Vec<String> {
    let rules = Rules {
        apart: Some(Apart {
            subnets6: [(Ipv6Addr::LOCALHOST, 128)].into(),
            ..Apart::default()
        }),
        ..Rules::default()
    };
    let Some(nft) = program("nft") else {
        return Vec::new();
    };
    let tables = [OurTable::Forwarded, OurTable::Bridged].into_iter();
    let refused = tables.filter_map(|table| {
        let content = rules.content(table)?;
        feed(&nft, &["-c", "-f", "-"], &script(table, Some(&content))).err()
    });
    refused.map(|error| format!("{error:#}")).collect()
}

/// How often a table was written or removed.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Returns how often this process has written or removed a table. Whoever reads the rules takes the
/// number first: if it has changed since, the rules may be older than the last write.
#[must_use]
pub(crate) fn writes() -> u64 {
    WRITES.load(Ordering::SeqCst)
}

/// Writes a table, or removes it.
///
/// # Errors
/// No program for that is installed, or it refuses.
pub(crate) fn put(table: OurTable, content: Option<&str>) -> Result<()> {
    WRITES.fetch_add(1, Ordering::SeqCst);
    if let Some(nft) = program("nft") {
        return feed(&nft, &["-f", "-"], &script(table, content));
    }
    ensure!(table == OurTable::Untracked, "nft is not installed");
    let Some(iptables) = program("iptables") else {
        bail!("neither nft nor iptables is installed")
    };
    let is_there = || iptables_rule(&iptables, "-C").is_ok();
    match content {
        Some(_) if is_there() => Ok(()),
        Some(_) => iptables_rule(&iptables, "-I"),
        None if is_there() => iptables_rule(&iptables, "-D"),
        None => Ok(()),
    }
}

/// Removes all of our tables.
pub(crate) fn remove() {
    for table in OurTable::ALL {
        let _ = put(table, None);
    }
}

/// Returns nft's script that replaces a table. The table is created first so that the deletion
/// always succeeds. nft applies the script as a whole or not at all.
fn script(table: OurTable, content: Option<&str>) -> String {
    let name = format!("{} {TABLE}", table.family());
    let content = content.map_or_else(String::new, |content| {
        format!("table {name} {{\n{content}}}\n")
    });
    format!("table {name} {{}}\ndelete table {name}\n{content}")
}

fn feed(nft: &Path, arguments: &[&str], script: &str) -> Result<()> {
    let mut command = Command::new(nft);
    command.args(arguments);
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().context("cannot run nft")?;
    let input = child.stdin.take().context("nft has no input")?;
    { input }
        .write_all(script.as_bytes())
        .context("nft does not read")?;
    let done = child.wait_with_output().context("nft does not end")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.status.success(),
        "nft: {}",
        said.lines().next().unwrap_or_default()
    );
    Ok(())
}

fn iptables_rule(iptables: &Path, verb: &str) -> Result<()> {
    let mut command = Command::new(iptables);
    command.args([
        "-w",
        "-t",
        "raw",
        verb,
        "PREROUTING",
        "-m",
        "mark",
        "--mark",
    ]);
    command.arg(format!("{UNTRACKED_BITS:#x}/{UNTRACKED_BITS:#x}"));
    command.args(["-m", "comment", "--comment", TABLE, "-j", "NOTRACK"]);
    let done = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run iptables")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.status.success(),
        "iptables: {}",
        said.lines().next().unwrap_or_default()
    );
    Ok(())
}
