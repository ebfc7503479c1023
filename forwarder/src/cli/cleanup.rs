// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder cleanup`: removes all of the forwarder's state from the kernel, also after an agent
//! was killed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::output;
use crate::config::Config;
use crate::control::{self, AskError, Verb};
use crate::datapath;
use crate::lock::{Lock, LockError};
use crate::sys::remove;
use crate::trusted;

/// The maximum time an agent may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Stop the agent first if one runs
    #[arg(long)]
    force: bool,
}

pub(super) fn cleanup(config: &Config, args: &Args) -> Result<()> {
    let socket = control::socket(&config.state_dir);
    let answers = !matches!(
        control::ask(&socket, Verb::Status),
        Err(AskError::Absent { .. })
    );
    // The lock is held to the end, so that no agent starts in the meantime.
    let _lock = match Lock::acquire() {
        Ok(_) if answers => bail!(
            "the agent at {} runs in another network namespace: run `forwarder cleanup` in that \
             namespace",
            socket.display()
        ),
        Err(LockError::Held(pid)) if args.force && answers => stop(pid)?,
        Err(held @ LockError::Held(_)) if args.force => {
            let socket = socket.display();
            bail!("{held} but does not answer at {socket}: give its --state-dir, or stop it first")
        }
        Err(held @ LockError::Held(_)) => bail!("{held}: stop it first, or use cleanup --force"),
        other => other?,
    };
    let dirs = [&config.bpffs_dir, &config.state_dir];
    if !datapath::is_there(&config.bpffs_dir, &config.state_dir)? {
        return output::text("nothing to clean up\n");
    }
    // A directory that others can write to does not say reliably what is to be removed.
    for dir in dirs {
        trusted::is_there_with_all(dir)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context("cannot start")?
        .block_on(datapath::remove_all(&config.bpffs_dir, &config.state_dir))?;
    for file in [socket.with_extension("new"), socket] {
        remove::file(&file)?;
    }
    for dir in dirs {
        remove::dir(dir)?;
    }
    output::text("removed: all programs, maps, pins and files of the forwarder\n")
}

/// Stops the agent and takes its lock. An agent that continued would restore everything.
fn stop(pid: Option<i32>) -> Result<Lock> {
    let held = LockError::Held(pid);
    // The process must still be the one that took the lock: its id may have been reused.
    let process = pid.and_then(Pid::from_raw).filter(|pid| {
        fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_pid()))
            .is_ok_and(|name| name.starts_with("forwarder"))
    });
    let Some(process) = process else {
        bail!("{held}, and its process id is unknown: stop it first");
    };
    kill_process(process, Signal::TERM).with_context(|| held.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Lock::acquire() {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).context("the agent does not stop"),
        }
    }
}
