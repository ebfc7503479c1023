// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask fuzz`: runs the fuzzers of `tests/fuzz`, built with coverage, under libFuzzer.
use std::{
    fs,
    num::NonZero,
    path::PathBuf,
    process::{Command, Stdio},
    thread::available_parallelism,
};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    apt::{self, Need},
    build::host_triple,
    step::step,
    totals::Totals,
    workspace::Workspace,
};

/// libFuzzer is C++.
const NEEDS: [Need; 1] = [Need::program("g++", "g++")];
const PACKAGE: &str = "forwarder-fuzz";
/// The coverage that libFuzzer needs (the flags of cargo-fuzz, without sanitizers).
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which fuzzer; all of them in turn if none is named
    #[arg(value_enum)]
    target: Option<Target>,
    /// For how long each of them tries inputs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Any bytes as a frame
    Parse,
    /// Any packets at any hooks
    Pipeline,
    /// The agent's plans from any state to any other
    Plan,
}

impl Target {
    /// Its name on the command line, and its binary's.
    const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Pipeline => "pipeline",
            Self::Plan => "plan",
        }
    }
}

const ALL: [Target; 3] = [Target::Parse, Target::Pipeline, Target::Plan];

/// Runs the fuzzers. It is an error if one of them finds something, which is kept beside its
/// corpus.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let fuzzers = Fuzzers::build(workspace)?;
    let chosen = args.target.map_or(ALL.to_vec(), |target| vec![target]);
    let mut each = chosen.into_iter();
    each.try_for_each(|target| fuzzers.run(target, args.seconds))
}

/// Runs each fuzzer for this number of seconds, one on each processor, as part of every test run:
/// one test per fuzzer.
pub(crate) fn run_some(workspace: &Workspace, seconds: u32) -> Result<Totals> {
    let fuzzers = Fuzzers::build(workspace)?;
    let mut totals = Totals::default();
    let at_once = available_parallelism().map_or(1, NonZero::get);
    for targets in ALL.chunks(at_once) {
        let start = |target: &Target| {
            let mut fuzzer = fuzzers.command(*target, seconds)?;
            fuzzer.stdout(Stdio::null()).stderr(Stdio::piped());
            Ok(fuzzer.spawn()?)
        };
        let started = targets.iter().map(start).collect::<Result<Vec<_>>>()?;
        for (target, fuzzer) in targets.iter().zip(started) {
            let output = fuzzer.wait_with_output()?;
            if output.status.success() {
                totals.passed += 1;
            } else {
                let text = String::from_utf8_lossy(&output.stderr);
                eprintln!("xtask: fuzz {}: {}\n{text}", target.name(), output.status);
                totals.failed += 1;
            }
        }
    }
    Ok(totals)
}

/// The fuzzers, built.
struct Fuzzers {
    folder: PathBuf,
    triple: String,
    /// Earlier findings, in a folder per fuzzer: they are tried before anything else.
    found: PathBuf,
}

impl Fuzzers {
    fn build(workspace: &Workspace) -> Result<Self> {
        apt::ensure(&NEEDS)?;
        let fuzzers = Self {
            folder: workspace.target.join("fuzz"),
            triple: host_triple(workspace)?,
            found: workspace.root.join("tests/fuzz/corpus"),
        };
        let mut cargo = workspace.cargo();
        cargo
            .args(["build", "--profile", "fuzz", "-p", PACKAGE, "--bins"])
            // With an explicit target, the flags do not apply to build scripts and macros.
            .args(["--target", &fuzzers.triple])
            .env("CARGO_TARGET_DIR", &fuzzers.folder)
            .env("RUSTFLAGS", COVERAGE);
        step("compile the fuzzers", cargo)?;
        Ok(fuzzers)
    }

    fn run(&self, target: Target, seconds: u32) -> Result<()> {
        let fuzzer = self.command(target, seconds)?;
        step(&format!("fuzz {}", target.name()), fuzzer)
    }

    fn command(&self, target: Target, seconds: u32) -> Result<Command> {
        let name = target.name();
        let corpus = self.folder.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let program = self.folder.join(&self.triple).join("fuzz").join(name);
        let mut fuzzer = Command::new(program);
        fuzzer
            .arg(&corpus)
            .arg(self.found.join(name))
            .arg(format!("-max_total_time={seconds}"))
            // An input that takes longer counts as a hang.
            .arg("-timeout=10")
            .arg(format!("-artifact_prefix={}/found-", corpus.display()))
            .args(["-max_len=4096", "-len_control=20"])
            .args(["-verbosity=0", "-print_final_stats=1"]);
        Ok(fuzzer)
    }
}
