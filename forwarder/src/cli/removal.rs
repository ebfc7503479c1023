// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the verbs that remove the forwarder have in common: no agent runs meanwhile, and nothing is
//! left afterwards.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::adopt::log_file;
use crate::config::Config;
use crate::control::{self, AskError, Verb};
use crate::datapath;
use crate::lock::{Lock, LockError};
use crate::sys::remove;
use crate::{logging, trusted};

/// The maximum time an agent may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether there is nothing of the forwarder's to remove.
pub(super) fn missing(config: &Config) -> Result<bool> {
    Ok(!datapath::is_there(&config.bpffs_dir, &config.state_dir)?)
}

/// A removal. No agent starts as long as it exists.
pub(super) struct Removal<'a> {
    config: &'a Config,
    _lock: Lock,
}

impl<'a> Removal<'a> {
    /// Takes the agent's lock for a verb. With `stops`, an agent that runs is stopped first.
    pub(super) fn begin(config: &'a Config, verb: Verb, stops: bool) -> Result<Self> {
        let name = match verb {
            Verb::Release => "release",
            _ => "cleanup",
        };
        let socket = control::socket(&config.state_dir);
        let answers = !matches!(
            control::ask(&socket, Verb::Status),
            Err(AskError::Absent { .. })
        );
        let lock = match Lock::acquire() {
            Ok(_) if answers => bail!(
                "the agent at {} runs in another network namespace: run `forwarder {name}` in that \
                 namespace",
                socket.display()
            ),
            Err(LockError::Held(pid)) if stops && answers => {
                // Only for the agent's log: whatever it answers, it is stopped.
                let _ = control::ask(&socket, verb);
                stop(pid)?
            }
            Err(held @ LockError::Held(_)) if stops => {
                let socket = socket.display();
                bail!(
                    "{held} but does not answer at {socket}: give its --state-dir, or stop it first"
                )
            }
            Err(held @ LockError::Held(_)) => {
                bail!("{held}: stop it first, or use {name} --force")
            }
            other => other?,
        };
        Ok(Self {
            config,
            _lock: lock,
        })
    }

    /// Checks that nobody else can write to the folders: what they contain is removed.
    pub(super) fn check(&self) -> Result<()> {
        for dir in self.dirs() {
            trusted::is_there_with_all(dir)?;
        }
        Ok(())
    }

    /// Removes everything: programs, maps, pins, rules, files and folders.
    pub(super) fn finish(&self) -> Result<()> {
        let [bpffs_dir, state_dir] = self.dirs();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .context("cannot start")?
            .block_on(datapath::remove_all(bpffs_dir, state_dir))?;
        let socket = control::socket(state_dir);
        let log = log_file(state_dir);
        let files = [
            socket.with_extension("new"),
            socket,
            logging::earlier(&log),
            log,
        ];
        for file in files {
            remove::file(&file)?;
        }
        for dir in self.dirs() {
            remove::dir(dir)?;
        }
        Ok(())
    }

    fn dirs(&self) -> [&Path; 2] {
        [&self.config.bpffs_dir, &self.config.state_dir]
    }
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
    // A process that is suspended ends only when it goes on.
    for signal in [Signal::TERM, Signal::CONT] {
        kill_process(process, signal).with_context(|| held.to_string())?;
    }
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
