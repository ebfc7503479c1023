// SPDX-License-Identifier: MIT OR Apache-2.0
//! One real dockerd, with a containerd of its own, inside a network namespace.

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

/// The shim: `FORWARDER_PROXY_BIN`, or what `cargo xtask build` made.
///
/// # Errors
/// When there is none.
pub fn forwarder_proxy_bin() -> Result<PathBuf> {
    built("FORWARDER_PROXY_BIN", "release/forwarder-proxy")
}

/// Where a host's agent has its state, by the host's folder.
pub(crate) fn state_dir(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// How a host's dockerd is started.
#[derive(Debug, Clone, Default)]
pub struct Docker {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// A bridge that somebody made for the default network: its name and its address.
    bridge: Option<(String, String)>,
    shim: bool,
}

impl Docker {
    /// As Docker comes: iptables rules and one docker-proxy per port.
    #[must_use]
    pub fn stock() -> Self {
        Self::default()
    }

    /// As the forwarder wants it: no iptables rules, no docker-proxy.
    #[must_use]
    pub fn replace() -> Self {
        Self::stock()
            .arg("--iptables=false")
            .arg("--ip6tables=false")
            .arg("--userland-proxy=false")
    }

    /// As the forwarder wants it best: no iptables rules, and its shim for each published port.
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

    /// A variable of dockerd's environment, which it hands on to shims.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its default network on a bridge that is there before it.
    #[must_use]
    pub fn on_bridge(mut self, name: &str, address: &str) -> Self {
        self.bridge = Some((name.to_owned(), address.to_owned()));
        self.arg(format!("--bridge={name}"))
    }

    /// One more flag.
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
    /// The daemon's address, as `docker -H` and the forwarder's `--docker` take it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Runs a docker command that has to succeed, and hands back its output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn cmd(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        command.arg("-H").arg(self.address()).args(arguments);
        finish(&mut command)?
            .success()
            .with_context(|| format!("docker {}", arguments.join(" ")))
    }

    /// Both output streams of a docker command, standard output first (as for `docker logs`).
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

/// The daemon pair. It keeps its data over stops; whoever owns the folder removes it.
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

    /// Starts what does not run and waits until the daemon answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        // libnetwork and the plugin search want it, whatever --exec-root says.
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
            // No mounts, and for an image of this size the fastest.
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
            // Not worth another try: whoever answers now is not ours.
            Some(status) => Ok(Err(anyhow!("dockerd ended: {status}"))),
            None => self.cli().answers().map(Ok),
        });
        up.and_then(|up| up)
            .with_context(|| format!("dockerd does not start:\n{}", tail(&log, 15)))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Asks the daemon to end (SIGTERM), which stops the containers unless `--live-restore`.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.stop(STOP).map(drop)
    }

    /// Asks the daemon to read its configuration again (SIGHUP).
    pub(crate) fn reload(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("dockerd does not run")?;
        daemon.signal(Signal::HUP)
    }

    /// Kills the daemon (SIGKILL): the containers go on.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.daemon
            .take()
            .map_or(Ok(()), |mut daemon| daemon.kill())
    }

    fn containerd_socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Without one of its own, dockerd would take the machine's when there is one, and all hosts
    /// of all labs would share it.
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
