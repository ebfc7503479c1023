// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection to dockerd: the descriptors that it passes, the report of success, and Docker's
//! own docker-proxy.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::args::Args;

/// The descriptor on which dockerd waits for `0\n`, or `1\n` and an error message.
const REPORT: RawFd = 3;
/// The descriptor of the bound socket that Docker 28 and later pass.
const LISTENER: RawFd = 4;

/// The variable that names Docker's own proxy.
const DOCKER_PROXY: &str = "FORWARDER_DOCKER_PROXY";
/// The directories where packages install it, in addition to `PATH`.
const FOLDERS: [&str; 6] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/libexec/docker",
    "/usr/lib/docker",
    "/usr/local/libexec/docker",
];

/// The process that started the shim, until it has received the report.
pub(crate) struct Dockerd(Option<File>);

impl Dockerd {
    /// Takes over the report's descriptor; there is none if a person starts the shim.
    pub(crate) fn inherited() -> Self {
        Self(inherit(REPORT).ok().map(File::from))
    }

    /// Reports success: the container may start.
    pub(crate) fn started(&mut self) {
        self.report("0\n");
    }

    /// Reports failure: the container must not start.
    pub(crate) fn failed(&mut self, why: &str) {
        self.report(&format!("1\n{why}"));
    }

    fn report(&mut self, word: &str) {
        if let Some(mut pipe) = self.0.take() {
            // dockerd reads as long as it lives; its death is reported by SIGTERM.
            let _ = pipe.write_all(word.as_bytes());
            close(REPORT);
        }
    }
}

/// The socket that dockerd passed, until it is dropped.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    pub(crate) fn inherited() -> io::Result<Self> {
        inherit(LISTENER).map(Self)
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.0
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        close(LISTENER);
    }
}

/// Takes over a descriptor of this process by number, as one that closes itself.
fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    if own.as_raw_fd() == number {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

/// Closes the original of an [inherited](inherit) descriptor.
fn close(number: RawFd) {
    // No other code here uses the number.
    let _ = nix::unistd::close(number);
}

/// Replaces this process by Docker's own proxy. Returns only on failure, with the reason.
pub(crate) fn become_docker_proxy(args: &Args) -> String {
    match docker_proxy() {
        Ok(path) => {
            let error = Command::new(&path)
                .arg0("docker-proxy")
                .args(&args.raw)
                .exec();
            format!("cannot start {}: {error}", path.display())
        }
        Err(why) => format!("{args} is a port for Docker's own docker-proxy, {why}"),
    }
}

fn docker_proxy() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(DOCKER_PROXY).map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            let path = path.display();
            Err(format!("but {path} ({DOCKER_PROXY}) does not exist"))
        };
    }
    let own = fs::metadata("/proc/self/exe").map(|file| (file.dev(), file.ino()));
    let other = |path: &PathBuf| {
        // The shim may be installed under that name.
        fs::metadata(path).is_ok_and(|file| {
            file.is_file() && own.as_ref().ok() != Some(&(file.dev(), file.ino()))
        })
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(FOLDERS.iter().map(|folder| Path::new(folder).to_owned()))
        .map(|folder| folder.join("docker-proxy"))
        .find(other)
        .ok_or_else(|| {
            format!(
                "which is not installed: publish on an IPv4 address, or let {DOCKER_PROXY} name it"
            )
        })
}
