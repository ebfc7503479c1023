// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network namespaces: creating, entering, connecting and deleting them.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::capture::Capture;
use crate::image::peer_bin;
use crate::packet::PacketSocket;
use crate::process::{Finished, Process, finish, succeed};
use crate::teardown;

/// Where `ip netns` keeps its namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A network namespace to work in; somebody else owns it.
#[derive(Debug, Clone)]
pub struct Space {
    name: String,
    path: PathBuf,
    scratch: PathBuf,
}

impl Space {
    pub(crate) fn new(name: &str, path: PathBuf, scratch: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path,
            scratch: scratch.to_owned(),
        }
    }

    /// Returns its name in messages; for a namespace of ours also the name that `ip -n` accepts.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file that stands for it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder for logs and captures.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns a command that will run inside. `/sys` and the mounts stay those outside, unlike
    /// with `ip netns exec`, so that dockerd finds its cgroups.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg(program);
        command
    }

    /// Runs a program inside to its end, whatever its exit status.
    ///
    /// # Errors
    /// It cannot be started or hangs.
    pub fn output(&self, argv: &[&str]) -> Result<Finished> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        finish(self.command(program).args(arguments))
    }

    /// Runs a program inside that must succeed, and returns its output.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn cmd(&self, argv: &[&str]) -> Result<String> {
        let done = self.output(argv).and_then(Finished::success);
        done.with_context(|| format!("in {}: {}", self.name, argv.join(" ")))
    }

    /// Runs `ip WORDS` inside, as in `lan.ip("address add 198.18.1.9/24 dev h1")`.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn ip(&self, words: &str) -> Result<String> {
        let argv: Vec<_> = std::iter::once("ip")
            .chain(words.split_whitespace())
            .collect();
        self.cmd(&argv)
    }

    /// Switches features of a device, as in `lan.ethtool("h1", "tx off gro on")`.
    ///
    /// # Errors
    /// `ethtool` refuses.
    pub fn ethtool(&self, device: &str, features: &str) -> Result<()> {
        let argv: Vec<_> = ["ethtool", "-K", device]
            .into_iter()
            .chain(features.split(' '))
            .collect();
        self.cmd(&argv).map(drop)
    }

    /// Sets a value in `/proc/sys`, as in `lan.sysctl("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// There is no such key or the value is refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} to {value} in {}", self.name))
    }

    /// Runs the static peer inside as a client, and returns what it printed.
    ///
    /// # Errors
    /// It fails (no answer, a refused connection…); the error shows its output.
    pub fn peer(&self, arguments: &[&str]) -> Result<String> {
        let program = peer_bin()?;
        self.cmd(
            &[
                &[program.to_str().context("PEER_BIN is not UTF-8")?],
                arguments,
            ]
            .concat(),
        )
    }

    /// Starts the static peer inside and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_peer(&self, arguments: &[&str]) -> Result<Process> {
        let program = peer_bin()?;
        let mut command = self.command(program.to_str().context("PEER_BIN is not UTF-8")?);
        Process::spawn(
            &format!("peer {}", arguments.join(" ")),
            command.args(arguments),
            &self.log_of("peer"),
        )
    }

    /// Returns the log file for programs of a kind that run inside.
    pub(crate) fn log_of(&self, kind: &str) -> PathBuf {
        self.scratch.join(format!("{}-{kind}.log", self.name))
    }

    /// Runs a closure on a thread inside: sockets that it opens belong to the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered. A panic of the closure continues in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(&self.path).with_context(|| format!("no namespace {}", self.name))?;
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<_, rustix::io::Errno>(work())
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
            .with_context(|| format!("cannot enter {}: run as root", self.name))
    }

    /// Starts to capture what a device inside sends and receives.
    ///
    /// # Errors
    /// There is no such device.
    pub fn capture(&self, device: &str) -> Result<Capture> {
        Capture::start(self, device)
    }

    /// Sends one frame, link header included, out of a device inside.
    ///
    /// # Errors
    /// There is no such device or it does not accept the frame.
    pub fn send_frame(&self, device: &str, frame: &[u8]) -> Result<()> {
        self.enter(|| PacketSocket::open(device)?.send(frame))?
    }

    /// Sends many frames in order out of a device inside.
    ///
    /// # Errors
    /// As [`Self::send_frame`].
    pub fn send_frames(&self, device: &str, frames: &[Vec<u8>]) -> Result<()> {
        self.enter(|| {
            let socket = PacketSocket::open(device)?;
            frames.iter().try_for_each(|frame| socket.send(frame))
        })?
    }

    /// Returns the hardware address of a device inside.
    ///
    /// # Errors
    /// There is no such device.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let text = self.ip(&format!("-br link show dev {device}"))?;
        let bytes = text.split_whitespace().nth(2).map(|mac| {
            mac.split(':')
                .map(|byte| u8::from_str_radix(byte, 16))
                .collect::<Result<Vec<_>, _>>()
        });
        let bytes = bytes.with_context(|| format!("{device} has no hardware address"))??;
        bytes
            .try_into()
            .map_err(|_| anyhow!("{device} is no Ethernet device: {text}"))
    }
}

/// A network namespace of ours. When it is dropped, its processes are killed and it is deleted.
#[derive(Debug)]
pub struct Netns(Space);

impl Netns {
    pub(crate) fn create(name: &str, scratch: &Path) -> Result<Self> {
        // The first `ip netns add` on a machine mounts the directory; two at once would mount it
        // twice.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        succeed(Command::new("ip").args(["netns", "add", name]))
            .context("cannot make a network namespace: is iproute2 installed?")?;
        drop(guard);
        let netns = Self(Space::new(name, Path::new(NETNS_DIR).join(name), scratch));
        netns.ip("link set lo up")?;
        Ok(netns)
    }
}

impl Deref for Netns {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.0
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        teardown::remove_netns(self.name());
    }
}

/// Connects two named namespaces by a veth pair, with a device name and an address with prefix
/// length at each end, and brings both ends up. The MTU is 1500.
///
/// # Errors
/// A name is taken.
pub fn veth(a: (&Space, &str, &str), b: (&Space, &str, &str)) -> Result<()> {
    let peer = format!("peer name {} netns {}", b.1, b.0.name());
    a.0.ip(&format!(
        "link add {} mtu 1500 type veth {peer} mtu 1500",
        a.1
    ))?;
    for (space, device, address) in [a, b] {
        space.ip(&format!("address add {address} dev {device}"))?;
        space.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}
