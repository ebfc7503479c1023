// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: runs every tier of tests and prints their totals. In a complete run the
//! unprivileged tiers use the CPU time that the privileged ones leave, because those wait for
//! daemons and containers.
use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    thread::available_parallelism,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    apt::{self, Need},
    beside::Beside,
    build::{self, TESTS},
    dependencies, fuzz, layers,
    lint::{self, CLIPPY, Check, DOC, FORMAT},
    mutants,
    totals::Totals,
    vm,
    workspace::{Workspace, require_root},
};

/// What the privileged tiers need.
const NEEDS: [Need; 13] = [
    Need::program("docker.io", "dockerd"),
    Need::package("busybox-static"),
    Need::program("iproute2", "ip"),
    Need::program("iptables", "iptables"),
    Need::program("nftables", "nft"),
    Need::program("tcpdump", "tcpdump"),
    Need::program("ethtool", "ethtool"),
    Need::program("bpftool", "bpftool"),
    Need::program("curl", "curl"),
    Need::program("socat", "socat"),
    Need::program("conntrack", "conntrack"),
    Need::program("ipset", "ipset"),
    Need::program("ufw", "ufw"),
];

/// The integration tests of the program tier, by prefix of their names; all others are host tests.
const PROGRAM_TESTS: [&str; 3] = ["program", "parity", "budget"];

/// The number of faults that each run plants; `cargo xtask mutants` plants all.
const MUTANTS: usize = 2;

/// The number of seconds that each fuzzer tries inputs; `cargo xtask fuzz` tries for longer.
const FUZZ_SECONDS: u32 = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tier to run; may be given several times
    #[arg(long, value_enum, default_value = "all")]
    tier: Vec<Tier>,
    /// Which kernels the vm tier boots: `newest`, or the beginning of a version of Debian's, such
    /// as 6.12; may be given several times [default: 6.1 and newest]
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// In the vm tier, boot a Docker host on kernel 6.1 (or on those of --kernel) instead, with the
    /// forwarder attached by clsact filters
    #[arg(long)]
    smoke: bool,
    /// Long versions of tests: minutes without an agent, a thousand containers
    #[arg(long)]
    soak: bool,
    /// Only tests whose name contains this, and no format, clippy or documentation check
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Format, clippy, documentation, the tests that need no privilege
    Unit,
    /// A few faults that the tests have to notice, and a few seconds of each fuzzer
    Search,
    /// Loaded programs, run on test frames (root)
    Program,
    /// Loaded programs, verified by Debian's oldest and newest kernel in virtual machines
    Vm,
    /// Docker hosts in network namespaces (root, Docker)
    Host,
    /// Everything
    All,
}

impl Tier {
    fn includes(self, tier: Self) -> bool {
        self == Self::All || self == tier
    }
}

impl Args {
    fn includes(&self, tier: Tier) -> bool {
        self.tier.iter().any(|one| one.includes(tier))
    }
}

/// The totals of every runner so far, in order.
struct Report(Vec<(&'static str, Totals)>);

impl Report {
    /// Runs one runner. If it fails, the next one still runs.
    fn run(&mut self, name: &'static str, runner: impl FnOnce() -> Result<Totals>) {
        println!("== {name}");
        let totals = runner().unwrap_or_else(|error| {
            eprintln!("xtask: {error:#}");
            Totals::ONE_FAILED
        });
        self.0.push((name, totals));
    }

    /// Prints one line per runner, and the sum as the last line.
    fn close(&self) -> ExitCode {
        println!("== totals");
        for (name, totals) in &self.0 {
            println!("{name}: {totals}, {} ignored", totals.ignored);
        }
        let sum = self
            .0
            .iter()
            .fold(Totals::default(), |sum, (_, totals)| sum + *totals);
        println!("{sum}");
        if sum.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs the tiers; success only if nothing failed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> ExitCode {
    let filter = args.filter.as_deref();
    let mut report = Report(Vec::new());
    let whole = args.tier.contains(&Tier::All) && filter.is_none();
    if args.includes(Tier::Unit) && !whole {
        unprivileged(workspace, filter, &mut report);
    }
    if args.tier.contains(&Tier::Search) {
        match filter {
            None => search(workspace, &mut report),
            Some(_) => report.run("search", || bail!("this tier has no tests with names")),
        }
    }
    if args.includes(Tier::Program) || args.includes(Tier::Host) {
        privileged(workspace, args, whole, &mut report);
    }
    // A test's name is not a program's name, so a filter skips this tier unless it was requested.
    if args.tier.contains(&Tier::Vm) || whole {
        let run = if args.smoke { vm::smoke } else { vm::run };
        report.run("vm", || run(workspace, &args.kernel, filter));
    }
    report.close()
}

fn unprivileged(workspace: &Workspace, filter: Option<&str>, report: &mut Report) {
    let check = |report: &mut Report, check: &Check| {
        // A check is no test: it counts when it fails, and adds nothing when it passes.
        report.run(check.name, || {
            check.run(workspace).map(|()| Totals::default())
        });
    };
    if filter.is_none() {
        report.run("licences", || {
            lint::licences(&workspace.root).map(|()| Totals::default())
        });
        report.run("test names", || {
            lint::test_names(&workspace.root).map(|()| Totals::default())
        });
        report.run("layers", || {
            layers::check(&workspace.root).map(|()| Totals::default())
        });
        report.run("dependencies", || {
            dependencies::check(workspace).map(|()| Totals::default())
        });
        check(report, &FORMAT);
        check(report, &CLIPPY);
    }
    report.run("unit", || {
        let mut cargo = workspace.cargo();
        cargo.args([
            "test",
            "--no-fail-fast",
            "-p",
            "forwarder-common",
            "-p",
            "forwarder-state",
            "-p",
            "forwarder-protocol",
            "-p",
            "forwarder",
            "-p",
            "forwarder-proxy",
            "-p",
            "forwarder-testkit",
            "-p",
            "xtask",
        ]);
        cargo.args(filter);
        watch(cargo)
    });
    if filter.is_none() {
        check(report, &DOC);
    }
}

/// Looks for what the tests do not notice, and for inputs that nobody thought of.
fn search(workspace: &Workspace, report: &mut Report) {
    report.run("mutants", || mutants::run_few(workspace, MUTANTS));
    report.run("fuzz", || fuzz::run_some(workspace, FUZZ_SECONDS));
}

/// Runs the privileged tiers, and in a complete run the unprivileged one beside them.
fn privileged(workspace: &Workspace, args: &Args, whole: bool, report: &mut Report) {
    let prepared = prepare(workspace);
    if prepared.is_err() {
        report.run("prepare", || prepared.map(|()| Totals::default()));
        if whole {
            unprivileged(workspace, None, report);
            search(workspace, report);
        }
        return;
    }
    let beside = ["test", "--tier=unit", "--tier=search"];
    let unit = whole.then(|| Beside::start(workspace, &beside));
    let tests = workspace.integration_tests(TESTS);
    let is_program = |test: &&str| PROGRAM_TESTS.iter().any(|prefix| test.starts_with(prefix));
    let (program, host): (Vec<_>, Vec<_>) = tests.into_iter().partition(is_program);
    if args.includes(Tier::Program) && !program.is_empty() {
        report.run("program", || {
            watch(test_command(workspace, select(&program), args))
        });
    }
    if args.includes(Tier::Host) {
        report.run("host", || {
            // The harness has its own tests beside the integration tests.
            let selection = ["--lib", "--bins"].into_iter().chain(select(&host));
            watch(test_command(workspace, selection, args))
        });
    }
    if let Some(unit) = unit {
        report.run("unprivileged", || unit?.finish(&mut io::stdout()));
    }
}

/// Installs and builds what the privileged tiers start.
pub(crate) fn prepare(workspace: &Workspace) -> Result<()> {
    require_root("the program and host tier")?;
    apt::ensure(&NEEDS)?;
    build::build(workspace)
}

/// Returns cargo's arguments that select integration tests.
fn select<'a>(tests: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    tests.iter().flat_map(|test| ["--test", test])
}

fn test_command<'a>(
    workspace: &Workspace,
    selection: impl IntoIterator<Item = &'a str>,
    args: &Args,
) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--release", "--no-fail-fast", "-p", TESTS]);
    cargo.args(selection);
    // A host test is a dockerd and its containers: it waits half of its time for them, but many at
    // once only wait for each other.
    let threads = available_parallelism().map_or(1, |cores| (cores.get() + 1).min(4));
    cargo
        .args(&args.filter)
        .args(["--", "--test-threads"])
        .arg(threads.to_string());
    if args.soak {
        cargo.env("FORWARDER_TESTS_SOAK", "1");
    }
    build::with_artifacts(cargo, workspace)
}

/// Runs a test command, shows its output as it comes, and adds up its results.
fn watch(cargo: Command) -> Result<Totals> {
    sum(cargo, &mut io::stdout())
}

fn sum(mut cargo: Command, shown: &mut impl Write) -> Result<Totals> {
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut totals = Totals::default();
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.context("cannot read what cargo test prints")?;
        if let Some(result) = Totals::parse(&String::from_utf8_lossy(&line)) {
            totals += result;
        }
        line.push(b'\n');
        shown.write_all(&line)?;
    }
    let status = child.wait()?;
    if !status.success() && totals.failed == 0 {
        totals += Totals::ONE_FAILED;
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Totals {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        // The output does not go to stdout, because what appears there counts in the run that this
        // test is part of.
        sum(command, &mut io::sink()).unwrap()
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let result = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured";
        let expected = Totals {
            passed: 4,
            failed: 0,
            ignored: 2,
        };
        assert_eq!(
            shell(&format!("echo '{result}'; echo noise; echo '{result}'")),
            expected
        );
    }

    /// A runner that ends without a result counts as failed.
    #[test]
    fn runner_without_a_result_counts_as_failed() {
        assert_eq!(shell("exit 101"), Totals::ONE_FAILED);
        let failed = "test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(shell(&format!("echo '{failed}'; exit 101")).failed, 3);
    }

    #[test]
    fn tiers_include_each_other_as_their_help_says() {
        assert!(Tier::All.includes(Tier::Host) && Tier::All.includes(Tier::Unit));
        assert!(Tier::Host.includes(Tier::Host) && !Tier::Host.includes(Tier::Program));
        assert!(Tier::All.includes(Tier::Vm) && !Tier::Vm.includes(Tier::Host));
    }
}
