// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running container, and the programs in it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::check::eventually;
use crate::dockerd::DockerCli;
use crate::image::IMAGE;
use crate::netns::Space;

/// How long a container's program may take to become ready.
const START: Duration = Duration::from_secs(10);
/// The line that the peer's server prints once it listens.
const SERVING: &str = "serving";

/// The program of a container made from the [image](crate::IMAGE).
#[derive(Debug, Clone)]
pub struct Peer {
    argv: Vec<String>,
    serves: bool,
}

impl Peer {
    /// The peer's server on a port, TCP and UDP: HTTP that answers with the client's address, an
    /// echo, a source of bytes (see `peer help`). It logs each client's address.
    #[must_use]
    pub fn serve(port: u16) -> Self {
        Self {
            serves: true,
            ..Self::program(&["/peer", "serve", &port.to_string()])
        }
    }

    /// A program that only waits: a container for [`Container::exec`] and [`Container::peer`].
    #[must_use]
    pub fn idle() -> Self {
        Self::program(&["/peer", "wait"])
    }

    /// Any program of the image: `/peer`, or one of busybox's.
    #[must_use]
    pub fn program(argv: &[&str]) -> Self {
        Self {
            argv: argv.iter().map(ToString::to_string).collect(),
            serves: false,
        }
    }
}

/// A container. The handle is a name: dropping it leaves the container on its host.
#[derive(Debug, Clone)]
pub struct Container {
    name: String,
    docker: DockerCli,
    scratch: PathBuf,
}

impl Container {
    pub(crate) fn named(name: &str, docker: DockerCli, scratch: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            docker,
            scratch,
        }
    }

    /// Runs `docker run -d`, then waits until a server serves.
    pub(crate) fn run(&self, options: &[&str], peer: &Peer) -> Result<()> {
        let argv: Vec<_> = peer.argv.iter().map(String::as_str).collect();
        let fixed = ["run", "-d", "--name", &self.name];
        self.docker
            .cmd(&[&fixed, options, &[IMAGE], &argv].concat())?;
        if peer.serves {
            self.log_line(SERVING)?;
        }
        Ok(())
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `docker inspect --format`.
    ///
    /// # Errors
    /// There is no such container or the template is wrong.
    pub fn inspect(&self, format: &str) -> Result<String> {
        self.docker
            .cmd(&["inspect", "--format", format, &self.name])
    }

    /// Returns its address on its (first) network.
    ///
    /// # Errors
    /// It is not running, or has no network.
    pub fn ip(&self) -> Result<IpAddr> {
        let all = self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}")?;
        let first = all.split_whitespace().next();
        let first = first.with_context(|| format!("{} has no address", self.name))?;
        first
            .parse()
            .with_context(|| format!("docker says address {first:?}"))
    }

    /// Returns the process id of its first process, seen from outside.
    ///
    /// # Errors
    /// It is not running.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.inspect("{{.State.Pid}}")?.parse()?;
        ensure!(pid != 0, "{} does not run", self.name);
        Ok(pid)
    }

    /// Returns its network namespace, for this machine's own tools (`ip`, captures, raw frames).
    ///
    /// # Errors
    /// It is not running.
    pub fn space(&self) -> Result<Space> {
        let path = format!("/proc/{}/ns/net", self.pid()?);
        Ok(Space::new(&self.name, path.into(), &self.scratch))
    }

    /// Runs `docker exec` with a program of the image.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        self.docker
            .cmd(&[&["exec", self.name.as_str()], argv].concat())
    }

    /// Runs the peer in it as a client, and returns what it printed.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn peer(&self, arguments: &[&str]) -> Result<String> {
        self.exec(&[&["/peer"], arguments].concat())
    }

    /// Returns what its program has printed so far.
    ///
    /// # Errors
    /// There is no such container.
    pub fn logs(&self) -> Result<String> {
        self.docker.both(&["logs", &self.name])
    }

    /// Waits until its program has printed a line with this beginning, and returns the line.
    ///
    /// # Errors
    /// It does not within ten seconds; the error shows what it printed.
    pub fn log_line(&self, beginning: &str) -> Result<String> {
        eventually(START, || {
            let logs = self.logs()?;
            let line = logs
                .lines()
                .find(|line| line.starts_with(beginning))
                .map(str::to_owned);
            line.with_context(|| {
                format!("{} has not printed “{beginning}…”, but: {logs}", self.name)
            })
        })
    }

    /// Runs `docker VERB NAME`, as in `web.docker("restart")`.
    ///
    /// # Errors
    /// docker refuses.
    pub fn docker(&self, verb: &str) -> Result<()> {
        self.docker.cmd(&[verb, &self.name]).map(drop)
    }

    /// Runs `docker rm -f`.
    ///
    /// # Errors
    /// docker refuses.
    pub fn remove(&self) -> Result<()> {
        self.docker.cmd(&["rm", "-f", &self.name]).map(drop)
    }
}
