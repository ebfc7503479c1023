// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarder's agent on a test host: started, watched, stopped or killed.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::check::tail;
use crate::host::Host;
use crate::image::built;
use crate::netns::Space;
use crate::process::{Finished, Process, finish};

/// The time limit from the start to the line `ready`.
const READY: Duration = Duration::from_secs(30);
/// The time limit from SIGTERM to the end.
const STOP: Duration = Duration::from_secs(10);

/// Returns the forwarder's binary: `FORWARDER_BIN`, or the one that `cargo xtask build` made.
///
/// # Errors
/// There is none.
pub fn forwarder_bin() -> Result<PathBuf> {
    built("FORWARDER_BIN", "release/forwarder")
}

/// An agent to be started on a host, with that host's Docker and folders.
#[must_use]
pub struct AgentBuilder<'host> {
    host: &'host Host,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    binary: Option<PathBuf>,
    suffix: String,
    quiet: bool,
    deaf: bool,
    dropped: Option<String>,
}

impl<'host> AgentBuilder<'host> {
    pub(crate) fn new(host: &'host Host) -> Self {
        Self {
            host,
            arguments: Vec::new(),
            variables: Vec::new(),
            binary: None,
            suffix: String::new(),
            quiet: false,
            deaf: false,
            dropped: None,
        }
    }

    /// Adds an argument after `run`.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Writes a configuration file with this text (TOML), which replaces the host's earlier one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn config(self, text: &str) -> Result<Self> {
        let file = self.host.configure(text)?;
        Ok(self.arg(format!("--config={}", file.display())))
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Uses another build than [`forwarder_bin`].
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Gives it state and pins in folders apart from those of the host's other agents.
    pub fn apart(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// Gives it a Docker that never answers. The agent does not become ready: start it with
    /// [`Self::spawn`].
    pub fn without_docker(mut self) -> Self {
        self.deaf = true;
        self
    }

    /// Drops these capabilities, as in `-perfmon,-sys_admin`.
    pub fn dropping(mut self, capabilities: &str) -> Self {
        self.dropped = Some(capabilities.to_owned());
        self
    }

    /// Suppresses the end of its log when it is dropped.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Starts it and waits for its line `ready`.
    ///
    /// # Errors
    /// It ends before, or the line does not come; the error shows the end of its log.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.ready()?;
        Ok(agent)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> Result<Agent> {
        let log = self.host.scratch().join("agent.log");
        let space: &Space = self.host;
        let what = format!("forwarder on {}", space.name());
        let process = Process::spawn(&what, &mut self.command()?, &log)?;
        Ok(Agent {
            process,
            log,
            quiet: self.quiet,
        })
    }

    /// Runs it to its end, for an agent that is expected to refuse.
    ///
    /// # Errors
    /// It cannot be started, or does not end (then it is killed).
    pub fn finish(self) -> Result<Finished> {
        finish(&mut self.command()?)
    }

    fn command(&self) -> Result<std::process::Command> {
        let binary = self.binary.clone().map_or_else(forwarder_bin, Ok)?;
        let mut command = match &self.dropped {
            None => self.host.forwarder_command(&binary)?,
            Some(capabilities) => {
                let mut command = self.host.forwarder_command(Path::new("setpriv"))?;
                command
                    .arg(format!("--bounding-set={capabilities}"))
                    .arg(binary);
                command
            }
        };
        let mut folders = self.host.folders(&self.suffix);
        if self.deaf {
            folders[1] = "unix:///nowhere/docker.sock".into();
        }
        command.arg("run").args(folders).args(&self.arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// A running agent. When it is dropped, it is killed and the end of its log is printed: a test's
/// output is shown only if the test fails.
pub struct Agent {
    process: Process,
    log: PathBuf,
    quiet: bool,
}

impl Agent {
    /// Waits for the line that begins with `ready`, and returns it.
    ///
    /// # Errors
    /// The agent ends first, or the line does not come.
    pub fn ready(&mut self) -> Result<String> {
        self.process
            .line("ready", READY)
            .context("the agent does not become ready")
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns what it, and earlier agents of this host, wrote to standard error.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns its exit status, if it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Stops it (SIGTERM) and waits.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(STOP)
    }

    /// Sends a signal, such as SIGSTOP and SIGCONT to suspend it for some time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !self.quiet {
            eprintln!("the agent's log ends so:\n{}", tail(&self.log, 40));
        }
    }
}
