// SPDX-License-Identifier: MIT OR Apache-2.0
//! dockerd's side: the descriptors that it hands on, its word of success, and its own docker-proxy.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::args::Args;

/// Where dockerd waits for `0\n`, or `1\n` and why not.
const REPORT: RawFd = 3;
/// The bound socket that Docker 28 and later hand on.
const LISTENER: RawFd = 4;

/// Names Docker's own proxy.
const DOCKER_PROXY: &str = "FORWARDER_DOCKER_PROXY";
/// Where packages put it, beside `PATH`.
const FOLDERS: [&str; 6] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/libexec/docker",
    "/usr/lib/docker",
    "/usr/local/libexec/docker",
];

/// Who started us, until it has heard how it went.
pub(crate) struct Dockerd(Option<File>);

impl Dockerd {
    /// Nobody, when a person starts us.
    pub(crate) fn inherited() -> Self {
        Self(inherit(REPORT).ok().map(File::from))
    }

    /// The container may start.
    pub(crate) fn started(&mut self) {
        self.report("0\n");
    }

    /// It may not.
    pub(crate) fn failed(&mut self, why: &str) {
        self.report(&format!("1\n{why}"));
    }

    fn report(&mut self, word: &str) {
        if let Some(mut pipe) = self.0.take() {
            // It reads as long as it lives; when it does not, SIGTERM says so.
            let _ = pipe.write_all(word.as_bytes());
            close(REPORT);
        }
    }
}

/// The socket that dockerd handed on, for as long as it is held.
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

/// A descriptor of ours by number, as one that closes itself.
fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    if own.as_raw_fd() == number {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

/// Closes the original of what was [inherited](inherit).
fn close(number: RawFd) {
    // Nothing else here knows the number.
    let _ = nix::unistd::close(number);
}

/// Becomes Docker's own proxy; returns only to say why not.
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
        // We may be installed under that name.
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
