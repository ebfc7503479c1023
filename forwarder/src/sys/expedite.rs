// SPDX-License-Identifier: MIT OR Apache-2.0
//! Expedited grace periods of RCU, for as long as many programs are attached.
//!
//! The kernel waits for a grace period whenever a program is attached by tcx
//! (`tcx_link_prog_attach`), and holds the lock of all network devices meanwhile: two ticks of its
//! clock on an idle machine, more on a busy one. Hundreds of programs are seconds. An expedited
//! grace period takes microseconds.
//!
//! The kernel's switch, `/sys/kernel/rcu_expedited`, is the whole machine's. It must not stay on, so
//! a process of its own (`forwarder expedite`) turns it on, and off when its standard input ends:
//! when the agent has done, or has been killed. The value that it writes says whose it is. If both
//! processes are killed at once, the next agent or `forwarder cleanup` finds that value and turns
//! the switch off.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The verb of the command line that runs [`serve`].
pub(crate) const VERB: &str = "expedite";

/// The switch: any number but 0 expedites.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// With a number but 0, an administrator forbids to expedite.
const FORBIDDEN: &str = "/sys/kernel/rcu_normal";
/// The forwarder's number in the switch. Administrators write 1.
const OURS: i32 = 0x6677_6472;
/// The program of the calling process, even if its file was replaced.
const SELF: &str = "/proc/self/exe";
/// The longest time that the switch is on.
const LIMIT: Duration = Duration::from_secs(2);

/// Grace periods are expedited as long as it exists, and for [`LIMIT`] at most.
#[derive(Debug)]
pub(crate) struct Expedited {
    server: Child,
}

impl Expedited {
    /// Turns the switch on; none if it cannot be, must not be, or is on already. Then programs are
    /// attached more slowly, and nothing else changes.
    pub(crate) fn begin() -> Option<Self> {
        let begun = Self::start();
        if let Err(error) = &begun {
            tracing::debug!("grace periods are not expedited: {error:#}");
        }
        begun.ok()
    }

    fn start() -> Result<Self> {
        ensure!(read(SWITCH)? == 0, "{SWITCH} is on already");
        ensure!(read(FORBIDDEN)? == 0, "{FORBIDDEN} forbids it");
        let server = Command::new(SELF)
            .arg(VERB)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the process that turns it on")?;
        let mut on = Self { server };
        let mut output = on.server.stdout.take().context("it has no output")?;
        ensure!(within_limit(&output)?, "the switch is still off");
        output.read_exact(&mut [0]).context("the switch is off")?;
        Ok(on)
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let ended = self.server.wait();
        if !ended.is_ok_and(|status| status.success()) {
            turn_off();
        }
    }
}

/// Turns the switch on until standard input ends.
///
/// # Errors
/// The switch cannot be turned on, or is on.
pub(crate) fn serve() -> Result<()> {
    // Whoever ends the agent may signal all processes of its group.
    SigSet::all()
        .thread_block()
        .context("cannot block the signals")?;
    ensure!(read(SWITCH)? == 0, "{SWITCH} is on already");
    write(OURS)?;
    let told = tell();
    let waited = within_limit(std::io::stdin());
    turn_off();
    told?;
    waited.map(drop)
}

/// Says that the switch is on.
fn tell() -> Result<()> {
    let mut output = std::io::stdout();
    let told = output.write_all(b"\n").and_then(|()| output.flush());
    told.context("nobody waits")
}

/// Turns the switch off if processes that were killed have left it on.
pub(crate) async fn restore() {
    if !is_ours() {
        return;
    }
    // It may be on for another agent.
    tokio::time::sleep(LIMIT).await;
    if is_ours() {
        tracing::info!("turning off {SWITCH}, which an agent that was killed has left on");
        turn_off();
    }
}

fn is_ours() -> bool {
    read(SWITCH).is_ok_and(|value| value == OURS)
}

/// Turns the switch off, unless somebody else has changed it.
fn turn_off() {
    if is_ours()
        && let Err(error) = write(0)
    {
        tracing::warn!("{error:#}: write 0 to it");
    }
}

fn read(path: &str) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let number = text.trim().parse();
    number.with_context(|| format!("{path} has no number"))
}

fn write(value: i32) -> Result<()> {
    fs::write(SWITCH, value.to_string()).with_context(|| format!("cannot change {SWITCH}"))
}

/// Waits for input or its end; returns whether it came within the limit.
fn within_limit(input: impl AsFd) -> Result<bool> {
    let limit = Timespec::try_from(LIMIT).context("no time")?;
    let mut inputs = [PollFd::new(&input, PollFlags::IN)];
    let ready = poll(&mut inputs, Some(&limit)).context("cannot wait")?;
    Ok(ready > 0)
}
