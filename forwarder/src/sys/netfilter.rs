// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing our own rules of netfilter, by the programs nft and iptables. They outlive the agent.

use std::io::Write as _;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use forwarder_common::mark::UNTRACKED_BITS;
use forwarder_state::others::forward_chains::{ForwardChain, forward_chains};
use forwarder_state::others::netfilter::{OurTable, TABLE};
use forwarder_state::own_rules::{Apart, Rules};

use super::firewall;
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

/// Removes all of our tables and rules.
pub(crate) fn remove() {
    for table in OurTable::ALL {
        let _ = put(table, None);
    }
    let chains = forward_chains(&firewall::read());
    for chain in chains.iter().filter(|chain| chain.has_ours) {
        let _ = refuse_in(chain);
    }
}

/// Makes a chain accept what the fast path hands on, before its other rules.
///
/// # Errors
/// The program of the chain is not installed, or it refuses.
pub(crate) fn accept_in(chain: &ForwardChain) -> Result<()> {
    WRITES.fetch_add(1, Ordering::SeqCst);
    let ForwardChain {
        tool,
        family,
        table,
        name,
        has_ours,
        ..
    } = chain;
    if *tool != "nft" {
        let iptables = program(tool).with_context(|| format!("{tool} is not installed"))?;
        if *has_ours {
            run(&iptables, &accepting(name, "-D"))?;
        }
        return run(&iptables, &accepting(name, "-I"));
    }
    if *has_ours {
        refuse_in(chain)?;
    }
    let nft = program("nft").context("nft is not installed")?;
    let mark = format!("meta mark & {UNTRACKED_BITS:#x} == {UNTRACKED_BITS:#x}");
    let rule = format!("insert rule {family} {table} {name} {mark} accept comment \"{TABLE}\"\n");
    feed(&nft, &["-f", "-"], &rule)
}

/// Removes our rule from a chain.
///
/// # Errors
/// The program of the chain is not installed, or it refuses.
pub(crate) fn refuse_in(chain: &ForwardChain) -> Result<()> {
    WRITES.fetch_add(1, Ordering::SeqCst);
    let ForwardChain {
        tool,
        family,
        table,
        name,
        ..
    } = chain;
    let path = program(tool).with_context(|| format!("{tool} is not installed"))?;
    if *tool != "nft" {
        return run(&path, &accepting(name, "-D"));
    }
    let listed = Command::new(&path)
        .args(["-a", "list", "chain", family, table, name])
        .output()
        .context("cannot run nft")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let ours = format!("comment \"{TABLE}\" # handle ");
    let handles = listed.lines().filter_map(|line| line.split(&ours).nth(1));
    let deletion = |handle| format!("delete rule {family} {table} {name} handle {handle}\n");
    feed(
        &path,
        &["-f", "-"],
        &handles.map(deletion).collect::<String>(),
    )
}

/// Returns the arguments of iptables for the rule that accepts what the fast path hands on.
fn accepting(chain: &str, verb: &str) -> Vec<String> {
    let mark = format!("{UNTRACKED_BITS:#x}/{UNTRACKED_BITS:#x}");
    let words = [
        "-w",
        "-t",
        "filter",
        verb,
        chain,
        "-m",
        "mark",
        "--mark",
        &mark,
        "-m",
        "comment",
        "--comment",
        TABLE,
        "-j",
        "ACCEPT",
    ];
    words.map(str::to_owned).into()
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
    let mark = format!("{UNTRACKED_BITS:#x}/{UNTRACKED_BITS:#x}");
    let words = [
        "-w",
        "-t",
        "raw",
        verb,
        "PREROUTING",
        "-m",
        "mark",
        "--mark",
        &mark,
        "-m",
        "comment",
        "--comment",
        TABLE,
        "-j",
        "NOTRACK",
    ];
    run(iptables, &words.map(str::to_owned))
}

fn run(iptables: &Path, arguments: &[String]) -> Result<()> {
    let mut command = Command::new(iptables);
    let done = command
        .args(arguments)
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
