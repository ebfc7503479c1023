// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's tasks: `cargo xtask setup | build | run | test | differential | bench | fuzz |
//! mutants | lint`, one file each.
//!
//! A task starts other programs (cargo, apt-get, our own binaries) and compiles nothing itself.
//! Each task first does what it needs: `run`, `test` and `bench` call [`build`], and [`build`]
//! calls [`setup`], which finds or installs the compilers of the BPF object ([`toolchain`] chooses
//! among the installed ones).
//!
//! - [`mod@test`] runs every tier of tests and adds up their results ([`totals`]); [`vm`] is the
//!   tier that boots other kernels ([`kernels`]).
//! - [`differential`], [`mod@bench`], [`fuzz`] and [`mutants`] are the longer runs.
//! - [`lint`] checks what needs no test: licences, names of tests, [`layers`], [`dependencies`],
//!   format, clippy, documentation.
//! - [`workspace`] asks cargo where things lie, [`apt`] installs Debian's packages, [`step`] shows
//!   a long step, and [`beside`] runs one task on the CPU time that another one leaves.
mod apt;
mod bench;
mod beside;
mod build;
mod dependencies;
mod differential;
mod fuzz;
mod kernels;
mod layers;
mod lint;
mod mutants;
mod run;
mod setup;
mod step;
mod test;
mod toolchain;
mod totals;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The project's tasks. Each one first does what it needs: `run`, `test` and `bench` build, `build`
/// sets up.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install the compilers of the BPF object, and name them
    Setup,
    /// Compile the BPF object and the release binaries that embed it
    Build,
    /// Build, then run the forwarder on this host's Docker, or in a sandbox
    Run(run::Args),
    /// Run all tests, or those of one tier
    Test(test::Args),
    /// Build, then play random traces on a stock Docker host and on ours, and compare
    Differential(differential::Args),
    /// Build, then measure against a stock Docker host and a bare veth
    Bench(bench::Args),
    /// Run the fuzzers of the packet logic and of the agent's plans
    Fuzz(fuzz::Args),
    /// Break the datapath on purpose, one fault at a time: the tests must notice
    Mutants(mutants::Args),
    /// Check licences, names of tests, format, clippy and documentation
    Lint,
}

fn main() -> ExitCode {
    let done = Workspace::load().and_then(|workspace| match Cli::parse().task {
        Task::Setup => setup::ensure(&workspace).map(|_| ExitCode::SUCCESS),
        Task::Build => build::build(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Run(args) => run::run(&workspace, &args),
        Task::Test(args) => Ok(test::run(&workspace, &args)),
        Task::Differential(args) => differential::run(&workspace, &args),
        Task::Bench(args) => bench::run(&workspace, &args),
        Task::Fuzz(args) => fuzz::run(&workspace, &args).map(|()| ExitCode::SUCCESS),
        Task::Mutants(args) => mutants::run(&workspace, &args),
        Task::Lint => lint::run(&workspace).map(|()| ExitCode::SUCCESS),
    });
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
