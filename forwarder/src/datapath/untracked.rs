// SPDX-License-Identifier: MIT OR Apache-2.0
//! The notrack rule of netfilter: connection tracking ignores what the fast path passes to the
//! kernel.
//!
//! Such packets are half translated before the kernel's path and half after it. Connection tracking
//! would take the halves for two connections, and translations by other rules (`-j MASQUERADE`)
//! would change the packets in between. The rule is before connection tracking and after the
//! kernel's defragmentation. It matches only our marks, and does not itself switch on connection
//! tracking.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::sys::process::program;
use anyhow::{Context, Result, bail, ensure};
use forwarder_common::mark::OURS_ALONE;
use forwarder_state::others::netfilter::TABLE;

/// Whether a program is installed that can add the rule.
#[must_use]
pub fn is_possible() -> bool {
    program("nft").is_some() || program("iptables").is_some()
}

/// Adds the rule: with nft in a table of our own, otherwise with iptables. Does nothing if the rule
/// exists.
///
/// # Errors
/// Neither program is installed, or it refuses.
pub fn add() -> Result<()> {
    let mark = format!("{OURS_ALONE:#x}");
    if let Some(nft) = program("nft") {
        // The table is created first so that the deletion always succeeds. nft applies the script
        // as a whole or not at all.
        let script = format!(
            "table ip {TABLE} {{}}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n chain untracked {{\n  \
             type filter hook prerouting priority -300; policy accept;\n  \
             meta mark & {mark} == {mark} notrack comment \"{TABLE}\"\n }}\n}}\n"
        );
        return feed(&nft, &script);
    }
    let Some(iptables) = program("iptables") else {
        bail!("neither nft nor iptables is installed")
    };
    if iptables_rule(&iptables, "-C", &mark).is_ok() {
        return Ok(());
    }
    iptables_rule(&iptables, "-I", &mark)
}

/// Removes the rule. Does nothing if there is none.
pub fn remove() {
    if let Some(nft) = program("nft") {
        let _ = feed(
            &nft,
            &format!("table ip {TABLE} {{}}\ndelete table ip {TABLE}\n"),
        );
    } else if let Some(iptables) = program("iptables") {
        let _ = iptables_rule(&iptables, "-D", &format!("{OURS_ALONE:#x}"));
    }
}

fn feed(nft: &Path, script: &str) -> Result<()> {
    let mut command = Command::new(nft);
    command.args(["-f", "-"]);
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

fn iptables_rule(iptables: &Path, verb: &str, mark: &str) -> Result<()> {
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
    command.arg(format!("{mark}/{mark}"));
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
