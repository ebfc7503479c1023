// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask differential`: plays random traces through a stock Docker host and through ours,
//! and compares them.
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::{
    build::{self, TESTS},
    test::prepare,
    workspace::Workspace,
};

/// The test, and its only function that plays.
const TEST: [&str; 2] = ["differential", "arms_agree_but_for_known_differences"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds; from 500 on, list entries that matched nothing fail the run
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first one
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Continue after an unexplained difference, and list all at the end
    #[arg(long)]
    survey: bool,
}

/// Plays the seeds.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    prepare(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--release", "-p", TESTS, "--test", TEST[0]]);
    cargo.args(["--", "--nocapture", "--exact", TEST[1]]);
    cargo.env("DIFFERENTIAL_SEEDS", args.seeds.to_string());
    cargo.env("DIFFERENTIAL_SEED", args.seed.to_string());
    if args.survey {
        cargo.env("DIFFERENTIAL_SURVEY", "1");
    }
    let status = build::with_artifacts(cargo, workspace).status()?;
    ensure!(status.success(), "the arms differ: see above");
    Ok(ExitCode::SUCCESS)
}
