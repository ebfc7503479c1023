// SPDX-License-Identifier: MIT OR Apache-2.0
//! One real dockerd, with its own containerd, inside a network namespace.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::Signal;

use crate::check::{eventually, tail};
use crate::image::built;
use crate::netns::Space;
use crate::process::{Process, finish};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);

/// Returns the shim's binary: `FORWARDER_PROXY_BIN`, or the one that `cargo xtask build` made.
///
/// # Errors
/// There is none.
pub fn forwarder_proxy_bin() -> Result<PathBuf> {
    built("FORWARDER_PROXY_BIN", "release/forwarder-proxy")
}

/// Returns the state directory of a host's agent, by the host's folder.
pub(crate) fn state_dir(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// The options of a host's dockerd.
#[derive(Debug, Clone, Default)]
pub struct Docker {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// An existing bridge for the default network: its name and its address.
    bridge: Option<(String, String)>,
    shim: bool,
}

impl Docker {
    /// Docker's defaults: iptables rules and one docker-proxy per port.
    #[must_use]
    pub fn stock() -> Self {
        Self::default()
    }

    /// The forwarder's minimum: no iptables rules, no docker-proxy.
    #[must_use]
    pub fn replace() -> Self {
        Self::stock()
            .arg("--iptables=false")
            .arg("--ip6tables=false")
            .arg("--userland-proxy=false")
    }

    /// The forwarder's recommendation: no iptables rules, and its shim for each published port.
    #[must_use]
    pub fn replace_with_shim() -> Self {
        Self {
            shim: true,
            ..Self::stock()
                .arg("--iptables=false")
                .arg("--ip6tables=false")
                .arg("--userland-proxy=true")
        }
    }

    /// Sets a variable of dockerd's environment, which dockerd passes to shims.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the default network on a bridge that exists before it.
    #[must_use]
    pub fn on_bridge(mut self, name: &str, address: &str) -> Self {
        self.bridge = Some((name.to_owned(), address.to_owned()));
        self.arg(format!("--bridge={name}"))
    }

    /// Adds a flag.
    #[must_use]
    pub fn arg(mut self, flag: impl Into<String>) -> Self {
        self.arguments.push(flag.into());
        self
    }
}

/// The docker command line of one host.
#[derive(Debug, Clone)]
pub struct DockerCli {
    socket: PathBuf,
}

impl DockerCli {
    /// Returns the daemon's address, as `docker -H` and the forwarder's `--docker` accept it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Runs a docker command that must succeed, and returns its output.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn cmd(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        command.arg("-H").arg(self.address()).args(arguments);
        finish(&mut command)?
            .success()
            .with_context(|| format!("docker {}", arguments.join(" ")))
    }

    /// Returns both output streams of a docker command, standard output first (as for `docker
    /// logs`).
    pub(crate) fn both(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        let done = finish(command.arg("-H").arg(self.address()).args(arguments))?;
        Ok(done.stdout + &done.stderr)
    }

    fn answers(&self) -> Result<()> {
        let mut socket = UnixStream::connect(&self.socket)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 200 "), "dockerd answers {answer:?}");
        Ok(())
    }
}

/// The daemon pair. It keeps its data when it stops; the owner of the folder removes it.
pub(crate) struct Dockerd {
    space: Space,
    folder: PathBuf,
    options: Docker,
    containerd: Option<Process>,
    daemon: Option<Process>,
}

impl Dockerd {
    pub(crate) fn new(space: &Space, folder: &Path, options: Docker) -> Self {
        let (space, folder) = (space.clone(), folder.to_owned());
        Self {
            space,
            folder,
            options,
            containerd: None,
            daemon: None,
        }
    }

    pub(crate) fn cli(&self) -> DockerCli {
        DockerCli {
            socket: self.folder.join("docker.sock"),
        }
    }

    /// Starts the daemons that do not run and waits until dockerd answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        // libnetwork and the plugin search need it, whatever --exec-root says.
        fs::create_dir_all("/var/run/docker")?;
        if let Some((name, address)) = &self.options.bridge
            && self.space.ip(&format!("link show {name}")).is_err()
        {
            self.space.ip(&format!("link add {name} type bridge"))?;
            self.space
                .ip(&format!("address add {address} dev {name}"))?;
            self.space.ip(&format!("link set {name} up"))?;
        }
        let log = self.folder.join("dockerd.log");
        if self.containerd.is_none() {
            self.containerd = Some(self.start_containerd()?);
        }
        let mut command = self.space.command("dockerd");
        command
            .arg("--containerd")
            .arg(self.containerd_socket())
            .arg("--data-root")
            .arg(self.folder.join("data"))
            .arg("--exec-root")
            .arg(self.folder.join("exec"))
            .arg("--pidfile")
            .arg(self.folder.join("docker.pid"))
            .args(["-H", &self.cli().address()])
            // vfs needs no mounts, and is the fastest driver for an image of this size.
            .args(["--storage-driver=vfs", "--shutdown-timeout=5"])
            .args(&self.options.arguments);
        if self.options.shim {
            let flag = format!("--userland-proxy-path={}", forwarder_proxy_bin()?.display());
            command
                .arg(flag)
                .env("FORWARDER_STATE_DIR", state_dir(&self.folder));
        }
        let variables = &self.options.variables;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut daemon = Process::spawn("dockerd", &mut command, &log)?;
        let up = eventually(START, || match daemon.ended()? {
            // Another attempt is useless: a daemon that answers now is not ours.
            Some(status) => Ok(Err(anyhow!("dockerd ended: {status}"))),
            None => self.cli().answers().map(Ok),
        });
        up.and_then(|up| up)
            .with_context(|| format!("dockerd does not start:\n{}", tail(&log, 15)))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stops the daemon (SIGTERM), which stops the containers unless `--live-restore`.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.stop(STOP).map(drop)
    }

    /// Makes the daemon read its configuration again (SIGHUP).
    pub(crate) fn reload(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("dockerd does not run")?;
        daemon.signal(Signal::HUP)
    }

    /// Kills the daemon (SIGKILL). The containers continue.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.daemon
            .take()
            .map_or(Ok(()), |mut daemon| daemon.kill())
    }

    fn containerd_socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Starts a separate containerd. Without it, dockerd would use the machine's if there is one,
    /// and all hosts of all labs would share it.
    fn start_containerd(&self) -> Result<Process> {
        let socket = self.containerd_socket();
        let below = |name: &str| self.folder.join("containerd").join(name);
        let plugins = ["grpc.v1.cri", "snapshotter.v1.aufs", "snapshotter.v1.btrfs"];
        let plugins = plugins
            .map(|plugin| format!("\"io.containerd.{plugin}\""))
            .join(", ");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{plugins}]\n\
             [grpc]\naddress = {socket:?}\n",
            below("root"),
            below("state"),
        );
        let file = self.folder.join("containerd.toml");
        fs::write(&file, config)?;
        let log = self.folder.join("containerd.log");
        let mut command = self.space.command("containerd");
        let containerd = Process::spawn("containerd", command.arg("--config").arg(file), &log)?;
        eventually(START, || Ok(UnixStream::connect(&socket)?))
            .with_context(|| format!("containerd does not start:\n{}", tail(&log, 15)))?;
        Ok(containerd)
    }
}
