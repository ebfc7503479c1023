// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarder's agent on a host: started, watched, stopped or killed.

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

/// From the start to the line `ready`.
const READY: Duration = Duration::from_secs(30);
/// From SIGTERM to the end.
const STOP: Duration = Duration::from_secs(10);

/// The forwarder: `FORWARDER_BIN`, or what `cargo xtask build` made.
///
/// # Errors
/// When there is none.
pub fn forwarder_bin() -> Result<PathBuf> {
    built("FORWARDER_BIN", "release/forwarder")
}

/// An agent about to be started on a host, with that host's Docker and folders.
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

    /// One more argument after `run`.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A configuration file with this text (TOML), in the place of the host's earlier ones.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn config(self, text: &str) -> Result<Self> {
        let file = self.host.configure(text)?;
        Ok(self.arg(format!("--config={}", file.display())))
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another build than [`forwarder_bin`].
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// State and pins in folders apart from those of the host's other agents.
    pub fn apart(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// With a Docker that never answers. It does not get ready: [`Self::spawn`] it.
    pub fn without_docker(mut self) -> Self {
        self.deaf = true;
        self
    }

    /// Without these capabilities, as in `-perfmon,-sys_admin`.
    pub fn dropping(mut self, capabilities: &str) -> Self {
        self.dropped = Some(capabilities.to_owned());
        self
    }

    /// Does not show the end of its log when it is dropped.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Starts it and waits for its line `ready`.
    ///
    /// # Errors
    /// When it ends before, or the line does not come; the error shows the end of its log.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.ready()?;
        Ok(agent)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
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
    /// When it cannot be started, or does not end (it is killed then).
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

/// A running agent. Dropped, it is killed and the end of its log shown: a test's output is seen
/// only if the test fails.
pub struct Agent {
    process: Process,
    log: PathBuf,
    quiet: bool,
}

impl Agent {
    /// Waits for the line that begins `ready`, and hands it back.
    ///
    /// # Errors
    /// When the agent ends first, or the line does not come.
    pub fn ready(&mut self) -> Result<String> {
        self.process
            .line("ready", READY)
            .context("the agent does not get ready")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it, and earlier agents of this host, wrote to standard error.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its exit status, when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Stops it in good order (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(STOP)
    }

    /// Sends a signal, as SIGSTOP and SIGCONT to make it deaf for a while.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// When the kernel refuses.
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
