// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: runs the forwarder on this host's Docker, or on a separate Docker in a
//! sandbox.
use std::{
    env,
    ffi::OsString,
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Need},
    build::{self, TESTS},
    workspace::{Workspace, require_root},
};

/// What the sandbox needs.
const NEEDS: [Need; 7] = [
    Need::program("docker.io", "dockerd"),
    Need::package("busybox-static"),
    Need::program("iproute2", "ip"),
    Need::program("iptables", "iptables"),
    Need::program("curl", "curl"),
    Need::program("tcpdump", "tcpdump"),
    Need::program("ethtool", "ethtool"),
];

/// Docker's default socket.
const DOCKER: &str = "/var/run/docker.sock";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show it on a separate Docker in a network namespace, and remove all of it afterwards
    #[arg(long)]
    sandbox: bool,
    /// With --sandbox: end after the demonstration, instead of at Ctrl-C
    #[arg(long, requires = "sandbox")]
    once: bool,
    /// Arguments for `forwarder run`
    #[arg(last = true, conflicts_with = "sandbox")]
    args: Vec<OsString>,
}

/// Replaces this process by the forwarder or its sandbox, so that signals reach it; returns only on
/// failure.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    require_root("run")?;
    if args.sandbox {
        sandbox(workspace, args.once)
    } else {
        host(workspace, &args.args)
    }
}

fn host(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    if !names_docker(args) && UnixStream::connect(DOCKER).is_err() {
        bail!(
            "no Docker answers at {DOCKER}: start it, name another one (-- --docker unix://PATH), \
             or see it on a Docker of its own: cargo xtask run --sandbox"
        );
    }
    build::build(workspace)?;
    eprintln!("» forwarder run");
    become_program(
        Command::new(workspace.release("forwarder"))
            .arg("run")
            .args(args)
            // The forwarder adds this to its error message if this host's Docker is not suitable.
            .env(
                "FORWARDER_HINT",
                "on a Docker of its own: cargo xtask run --sandbox",
            ),
    )
}

fn sandbox(workspace: &Workspace, once: bool) -> Result<ExitCode> {
    apt::ensure(&NEEDS)?;
    build::build(workspace)?;
    build::release(workspace, TESTS, "forwarder-sandbox")?;
    let mut sandbox = build::with_artifacts(
        Command::new(workspace.release("forwarder-sandbox")),
        workspace,
    );
    become_program(sandbox.args(once.then_some("--once")))
}

/// Whether the user names a Docker, by flag, environment or file. Then the forwarder reads the
/// setting and judges the answer.
fn names_docker(args: &[OsString]) -> bool {
    Path::new("/etc/forwarder/forwarder.toml").exists()
        || ["DOCKER_HOST", "FORWARDER_DOCKER", "FORWARDER_CONFIG"]
            .iter()
            .any(|name| env::var_os(name).is_some())
        || args.iter().any(|arg| {
            let arg = arg.to_string_lossy();
            let flag = arg.split_once('=').map_or(&*arg, |(flag, _)| flag);
            ["--docker", "--config"].contains(&flag)
        })
}

/// Replaces this process; returns only on failure.
pub(crate) fn become_program(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_docker_is_left_to_the_forwarder() {
        let named =
            |args: &[&str]| names_docker(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(named(&[
            "--log",
            "debug",
            "--docker",
            "unix:///run/other.sock"
        ]));
        assert!(named(&["--docker=unix:///run/other.sock"]));
        assert!(named(&["--config=other.toml"]));
    }
}
