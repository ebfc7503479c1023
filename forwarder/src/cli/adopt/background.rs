// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent in the background: the same program with `run` and the same settings, in a session of
//! its own, with a log file in place of a terminal.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::config::{Config, Source};
use crate::sys::remove;
use crate::{logging, trusted};

/// The time limit for an agent to become ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// The interval at which the log is read.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the log of an agent in the background.
pub(in crate::cli) fn log_file(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.log")
}

/// An agent that was started and is not ready yet.
pub(super) struct Background {
    child: Child,
    log: PathBuf,
    /// Where this agent's part of the log begins.
    begin: u64,
}

impl Background {
    /// Starts an agent with the settings of this process.
    pub(super) fn start(config: &Config, source: &Source) -> Result<Self> {
        trusted::make(&config.state_dir)?;
        let log = log_file(&config.state_dir);
        set_aside(&log)?;
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(&log);
        let file = file.with_context(|| format!("cannot open the log {}", log.display()))?;
        let begin = file.metadata().map_or(0, |data| data.len());
        let errors = file.try_clone().context("cannot open the log twice")?;
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--background")
            .args(source.flags()?)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        let child = command.spawn().context("cannot start the agent")?;
        Ok(Self { child, log, begin })
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the agent's line `ready`. An agent that does not get there leaves nothing behind.
    pub(super) fn wait_until_ready(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().context("cannot watch the agent")?;
            let log = self.read_log()?;
            if log.lines().any(|line| line.starts_with("ready: ")) {
                return Ok(());
            }
            if ended.is_some() {
                let why = last_error(&log);
                self.remove_log()?;
                bail!("the agent ended before it was ready: {why}");
            }
            if Instant::now() > deadline {
                self.stop()?;
                let why = last_error(&log);
                bail!(
                    "the agent was not ready within {} s: {why}",
                    PATIENCE.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Stops an agent, which then removes what it has set up.
    fn stop(&mut self) -> Result<()> {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, Signal::TERM).context("cannot stop the agent")?;
        }
        self.child.wait().context("cannot wait for the agent")?;
        self.remove_log()
    }

    fn read_log(&self) -> Result<String> {
        let read = || {
            let mut file = File::open(&self.log)?;
            // A log that has reached its bound has begun anew.
            let is_whole = file.metadata()?.len() >= self.begin;
            file.seek(SeekFrom::Start(if is_whole { self.begin } else { 0 }))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
        };
        read().with_context(|| format!("cannot read the log {}", self.log.display()))
    }

    /// Removes the log, unless an earlier agent has written to it, and the folder if it is empty.
    fn remove_log(&self) -> Result<()> {
        if self.begin > 0 {
            return Ok(());
        }
        remove::file(&self.log)?;
        if let Some(dir) = self.log.parent() {
            // Pins of an earlier agent may need what else is in there.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// Renames a long log of earlier agents, so that it does not grow without end.
fn set_aside(log: &Path) -> Result<()> {
    let length = fs::metadata(log).map_or(0, |data| data.len());
    if length <= logging::FILE {
        return Ok(());
    }
    let cannot = || format!("cannot rename the log {}", log.display());
    fs::rename(log, logging::earlier(log)).with_context(cannot)
}

/// Returns the line of a log that says why the agent ended.
fn last_error(log: &str) -> String {
    let mut lines = log.lines().rev().filter(|line| !line.trim().is_empty());
    let error = lines.clone().find_map(own_error);
    let error = error.or_else(|| lines.next().map(str::to_owned));
    error.unwrap_or_else(|| "its log is empty".to_owned())
}

/// Returns the error by which an agent ends, in either form of its log.
fn own_error(line: &str) -> Option<String> {
    if let Some(error) = line.strip_prefix("forwarder: ") {
        return Some(error.to_owned());
    }
    let event: Value = serde_json::from_str(line).ok()?;
    let message = event["message"].as_str()?;
    (event["level"] == "ERROR").then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_error_is_the_programs_own() {
        let log = "2026 WARN a\nforwarder: it fails: so\n2026 WARN b\n";
        assert_eq!(last_error(log), "it fails: so");
        let log = "{\"level\":\"ERROR\",\"message\":\"it fails\"}\n\
                   {\"level\":\"WARN\",\"message\":\"b\"}\n";
        assert_eq!(last_error(log), "it fails");
        assert_eq!(last_error("one\n\n"), "one");
        assert_eq!(last_error(""), "its log is empty");
    }
}
