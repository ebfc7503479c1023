// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: measures the forwarder against a stock Docker host and a bare veth.
use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    apt::{self, Need},
    build::{self, TESTS},
    run::become_program,
    workspace::{Workspace, require_root},
};

/// What the measured hosts and the load generators need.
const NEEDS: [Need; 9] = [
    Need::program("docker.io", "dockerd"),
    Need::package("busybox-static"),
    Need::program("iproute2", "ip"),
    Need::program("iptables", "iptables"),
    Need::program("ethtool", "ethtool"),
    Need::program("sockperf", "sockperf"),
    Need::program("wrk", "wrk"),
    Need::program("nginx-light", "nginx"),
    Need::program("iperf3", "iperf3"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the arms are measured in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// An older build of the forwarder, measured as one more arm
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a target is missed
    #[arg(long)]
    check: bool,
    /// More for the bench itself: see `cargo xtask bench -- --help`
    #[arg(last = true, value_name = "ARGS")]
    rest: Vec<OsString>,
}

/// Replaces this process by the bench; returns only on failure.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    require_root("bench")?;
    apt::ensure(&NEEDS)?;
    build::build(workspace)?;
    build::release(workspace, TESTS, "forwarder-bench")?;

    let mut bench = build::with_artifacts(
        Command::new(workspace.release("forwarder-bench")),
        workspace,
    );
    bench.arg("--rounds").arg(args.rounds.to_string());
    if args.check {
        bench.arg("--check");
    }
    for (flag, value) in [("--against", &args.against), ("--json", &args.json)] {
        if let Some(value) = value {
            bench.arg(flag).arg(value);
        }
    }
    bench.args(&args.rest);
    become_program(&mut bench)
}
