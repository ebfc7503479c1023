// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Docker host: a namespace, its uplink to the LAN, its own dockerd, and the agent's folders.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use crate::agent::{AgentBuilder, forwarder_bin};
use crate::check::eventually;
use crate::container::{Container, Peer};
use crate::dockerd::{Docker, DockerCli, Dockerd, state_dir};
use crate::image::IMAGE;
use crate::lab::Site;
use crate::netns::{Netns, Space, veth};
use crate::process::{Finished, Process, finish};
use crate::teardown;

/// A host's device to the LAN.
const UPLINK: &str = "up0";
/// How long the agent may take to notice a change.
const SOON: Duration = Duration::from_secs(5);

/// A Docker host. It dereferences to its namespace, a [`Space`]. When it is dropped, all of it is
/// removed, including its containers.
pub struct Host {
    number: u8,
    netns: Netns,
    folder: PathBuf,
    dockerd: Mutex<Dockerd>,
    // Keeps the lab's folder, which contains this host's folder.
    _site: Arc<Site>,
}

impl Host {
    /// Starts host number N of a lab: 198.18.N.1/24, with the LAN's 198.18.N.2 as gateway.
    pub(crate) fn start(
        site: &Arc<Site>,
        lan: &Space,
        number: u8,
        options: Docker,
    ) -> Result<Self> {
        let archive = site.image()?;
        let folder = site.folder().join(format!("h{number}"));
        std::fs::create_dir(&folder)?;
        let netns = site.netns(&format!("h{number}"), &folder)?;
        let dockerd = Mutex::new(Dockerd::new(&netns, &folder, options));
        let host = Self {
            number,
            netns,
            folder,
            dockerd,
            _site: Arc::clone(site),
        };
        let (here, there) = (host.address(), host.gateway());
        veth(
            (&host, UPLINK, &format!("{here}/24")),
            (lan, &host.lan_device(), &format!("{there}/24")),
        )?;
        host.ip(&format!("route add default via {there}"))?;
        host.mount_bpffs()?;
        host.start_docker()?;
        let archive = archive
            .to_str()
            .context("the temporary folder's path is not UTF-8")?;
        host.docker(&["import", archive, IMAGE])?;
        Ok(host)
    }

    /// Mounts a separate BPF file system for the host: with it all pins are removed.
    fn mount_bpffs(&self) -> Result<()> {
        let point = self.folder.join("bpf");
        std::fs::create_dir(&point)?;
        mount(
            "bpf",
            &point,
            "bpf",
            MountFlags::NOSUID | MountFlags::NODEV,
            None,
        )
        .with_context(|| format!("cannot mount a bpffs on {}", point.display()))
    }

    /// Returns its address on the LAN, 198.18.N.1.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// Returns the LAN's address next to it, 198.18.N.2.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// Returns its device to the LAN.
    #[must_use]
    pub fn uplink(&self) -> &'static str {
        UPLINK
    }

    /// Returns the other end of its uplink, a device of the LAN.
    #[must_use]
    pub fn lan_device(&self) -> String {
        format!("h{}", self.number)
    }

    /// Returns the directory of the pins of an agent with the usual folders.
    #[must_use]
    pub fn bpffs_dir(&self) -> PathBuf {
        self.folder.join("bpf/forwarder")
    }

    /// Returns the state directory of an agent with the usual folders.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.folder)
    }

    /// Replaces the configuration file (TOML) atomically.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configure(&self, text: &str) -> Result<PathBuf> {
        let file = self.scratch().join("forwarder.toml");
        let draft = file.with_extension("new");
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &file))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Returns its docker command line.
    #[must_use]
    pub fn docker_cli(&self) -> DockerCli {
        self.dockerd().cli()
    }

    /// Runs a docker command that must succeed.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.docker_cli().cmd(arguments)
    }

    /// Runs `docker run -d --name NAME OPTIONS peer …`; waits until a [server](Peer::serve) serves.
    ///
    /// # Errors
    /// docker refuses or the server does not start.
    pub fn run(&self, name: &str, options: &[&str], program: &Peer) -> Result<Container> {
        let container = self.container(name);
        container.run(options, program)?;
        Ok(container)
    }

    /// Returns the handle of a container that exists or will exist.
    #[must_use]
    pub fn container(&self, name: &str) -> Container {
        Container::named(name, self.docker_cli(), self.folder.clone())
    }

    /// Runs `docker exec` with a program of the image in a container.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn exec(&self, container: &str, argv: &[&str]) -> Result<String> {
        self.container(container).exec(argv)
    }

    /// Starts a stopped or killed dockerd with the data that it left.
    ///
    /// # Errors
    /// It does not start; the error shows its log.
    pub fn start_docker(&self) -> Result<()> {
        self.dockerd().start()
    }

    /// Stops dockerd (SIGTERM).
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_docker(&self) -> Result<()> {
        self.dockerd().stop()
    }

    /// Makes dockerd read its configuration again (SIGHUP).
    ///
    /// # Errors
    /// It does not run.
    pub fn reload_docker(&self) -> Result<()> {
        self.dockerd().reload()
    }

    /// Kills dockerd (SIGKILL). The containers continue.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_docker(&self) -> Result<()> {
        self.dockerd().kill()
    }

    /// Stops and starts dockerd.
    ///
    /// # Errors
    /// As [`Self::stop_docker`] and [`Self::start_docker`].
    pub fn restart_docker(&self) -> Result<()> {
        self.stop_docker()?;
        self.start_docker()
    }

    /// Returns an agent for this host, to be started.
    pub fn agent(&self) -> AgentBuilder<'_> {
        AgentBuilder::new(self)
    }

    /// Runs `forwarder VERB…` with this host's folders, whatever its exit status.
    ///
    /// # Errors
    /// There is no binary or it hangs.
    pub fn forwarder(&self, arguments: &[&str]) -> Result<Finished> {
        finish(
            self.forwarder_command(&forwarder_bin()?)?
                .args(arguments)
                .args(self.folders("")),
        )
    }

    /// Runs `forwarder VERB…`, which must succeed, and returns its output.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let done = self.forwarder(arguments).and_then(Finished::success);
        done.with_context(|| format!("forwarder {}", arguments.join(" ")))
    }

    /// Starts `forwarder VERB…`, for a verb that runs until it is told to end.
    ///
    /// # Errors
    /// There is no binary or it cannot be started.
    pub fn spawn_forwarder(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.forwarder_command(&forwarder_bin()?)?;
        command.args(arguments).args(self.folders(""));
        let log = self.scratch().join("forwarder.log");
        Process::spawn(
            &format!("forwarder {}", arguments.join(" ")),
            &mut command,
            &log,
        )
    }

    /// Runs `forwarder VERB -o json` and parses its output.
    ///
    /// # Errors
    /// It fails or its standard output is not JSON.
    pub fn json(&self, verb: &str) -> Result<Value> {
        let text = self.cli(&[verb, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("forwarder {verb} -o json: {text}"))
    }

    /// Waits until the agent has a container's veths; it had the container's ports before.
    ///
    /// # Errors
    /// It does not notice.
    pub fn settle(&self, container: &str) -> Result<()> {
        eventually(SOON, || {
            let rows = self.json("endpoints")?;
            let rows = rows.as_array().context("a list of endpoints")?;
            let mut own = rows
                .iter()
                .filter(|row| row["container"] == container)
                .peekable();
            ensure!(own.peek().is_some(), "the agent does not know {container}");
            ensure!(
                own.all(|row| row["hooked"] == true),
                "{container} is not hooked: {rows:?}"
            );
            Ok(())
        })
    }

    /// Returns `forwarder VERB…` on this host as a line for a person's shell.
    ///
    /// # Errors
    /// There is no binary.
    pub fn forwarder_line(&self, arguments: &[&str]) -> Result<String> {
        let enter = format!("nsenter --net={}", self.path().display());
        let (binary, words) = (forwarder_bin()?, arguments.join(" "));
        Ok(format!(
            "{enter} {} {words} {}",
            binary.display(),
            self.folders("").join(" ")
        ))
    }

    /// Returns a forwarder command inside, without any settings of the caller.
    pub(crate) fn forwarder_command(&self, binary: &Path) -> Result<Command> {
        let mut command = self.command(binary.to_str().context("FORWARDER_BIN is not UTF-8")?);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("FORWARDER_") || name_text.starts_with("DOCKER_") {
                command.env_remove(&name);
            }
        }
        Ok(command)
    }

    /// Returns the forwarder's flags for this host; a suffix gives another agent its own folders.
    pub(crate) fn folders(&self, suffix: &str) -> [String; 6] {
        let below = |name: &str| {
            self.folder
                .join(format!("{name}{suffix}"))
                .display()
                .to_string()
        };
        let flag = |name: &str| format!("--{name}");
        [
            flag("docker"),
            self.docker_cli().address(),
            flag("state-dir"),
            below("run"),
            flag("bpffs-dir"),
            below("bpf/forwarder"),
        ]
    }

    fn dockerd(&self) -> MutexGuard<'_, Dockerd> {
        self.dockerd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Host {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.netns
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        teardown::remove_host(self.netns.name(), &self.folder);
    }
}
