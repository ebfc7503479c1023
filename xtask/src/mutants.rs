// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask mutants`: breaks the datapath on purpose, one fault at a time; the tests must
//! notice.
//!
//! The faults (`tests/mutants.toml`) are planted in a copy of the sources: what is built from the
//! sources themselves never has one.
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    totals::Totals,
    workspace::{Workspace, cargo},
};

/// The package whose tests must notice the faults.
const LOGIC: &str = "forwarder-common";

/// The share of the faults that must be noticed, in percent.
const BAR: u64 = 95;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tests must notice
    #[arg(long, value_enum, default_value_t = Suite::Unit)]
    suite: Suite,
    /// Only this many: a hash of the sources chooses which, so that each version of them tries
    /// others
    #[arg(long, value_name = "N")]
    few: Option<usize>,
    /// Only faults whose name contains this
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The tests that need no privilege
    Unit,
    /// Stock Docker and ours side by side (root, Docker)
    Differential,
}

/// The list of faults.
#[derive(Deserialize)]
struct Faults {
    mutant: Vec<Fault>,
}

/// One fault: the text that it replaces occurs once in its file.
#[derive(Clone, Deserialize)]
struct Fault {
    name: String,
    file: PathBuf,
    find: String,
    replace: String,
}

impl Fault {
    /// Returns the file's text with the fault in it.
    fn planted(&self, text: &str) -> Result<String> {
        let places = text.matches(&self.find).count();
        ensure!(
            places == 1,
            "mutant {}: what it replaces stands {places} times in {} instead of once: bring \
             tests/mutants.toml up to date",
            self.name,
            self.file.display()
        );
        Ok(text.replacen(&self.find, &self.replace, 1))
    }

    /// Returns the names that a test file of the faulty module may have: the module's own, then
    /// those of the modules around it.
    fn modules(&self) -> impl Iterator<Item = &str> {
        let names = self.file.iter().rev();
        names.filter_map(|name| Path::new(name).file_stem()?.to_str())
    }
}

/// Plants the chosen faults; fails if fewer than [`BAR`] percent are noticed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let mut faults = read(&workspace.root)?;
    faults.retain(|fault| {
        let wanted = args.filter.as_deref();
        wanted.is_none_or(|wanted| fault.name.contains(wanted))
    });
    if let Some(few) = args.few {
        faults = rotated(&workspace.root, faults, few)?;
    }
    ensure!(!faults.is_empty(), "no fault has such a name");
    check(&workspace.root, &faults)?;
    let copy = Copy::make(workspace)?;
    ensure!(
        copy.passes(args.suite, None)?,
        "the tests fail without any fault: see to that first"
    );
    let totals = hunt(&copy, args.suite, &faults)?;
    println!("{} noticed, {} not", totals.passed, totals.failed);
    Ok(if is_enough(totals) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Plants some of the faults, in rotation: part of every test run, whose unit tests say that the
/// tests pass without any fault.
pub(crate) fn run_few(workspace: &Workspace, few: usize) -> Result<Totals> {
    let faults = rotated(&workspace.root, read(&workspace.root)?, few)?;
    check(&workspace.root, &faults)?;
    hunt(&Copy::make(workspace)?, Suite::Unit, &faults)
}

const fn is_enough(totals: Totals) -> bool {
    totals.passed * 100 >= (totals.passed + totals.failed) * BAR
}

fn read(root: &Path) -> Result<Vec<Fault>> {
    let path = root.join("tests/mutants.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let faults: Faults = toml::from_str(&text).context("tests/mutants.toml is unreadable")?;
    Ok(faults.mutant)
}

/// Checks that the faults fit the sources. The error names every fault that does not.
fn check(root: &Path, faults: &[Fault]) -> Result<()> {
    let misfits: Vec<String> = faults
        .iter()
        .filter_map(|fault| {
            let path = root.join(&fault.file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("mutant {}: no {}", fault.name, fault.file.display()));
            let error = text.and_then(|text| fault.planted(&text)).err()?;
            Some(format!("{error:#}"))
        })
        .collect();
    ensure!(misfits.is_empty(), "{}", misfits.join("\n"));
    Ok(())
}

/// Returns `few` of the faults, starting at a position that depends on the sources.
fn rotated(root: &Path, mut faults: Vec<Fault>, few: usize) -> Result<Vec<Fault>> {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for fault in &faults {
        for byte in fs::read(root.join(&fault.file))? {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let first = usize::try_from(sum % faults.len().max(1) as u64)?;
    faults.rotate_left(first);
    faults.truncate(few);
    Ok(faults)
}

/// Plants one fault after the other and prints which are noticed.
fn hunt(copy: &Copy, suite: Suite, faults: &[Fault]) -> Result<Totals> {
    let mut totals = Totals::default();
    for fault in faults {
        let path = copy.root.join(&fault.file);
        let sound = fs::read_to_string(&path)?;
        fs::write(&path, fault.planted(&sound)?)?;
        let passes = copy.passes_with(suite, fault);
        fs::write(&path, sound)?;
        if passes.with_context(|| format!("mutant {}", fault.name))? {
            println!("{}: NOT NOTICED", fault.name);
            totals.failed += 1;
        } else {
            println!("{}: noticed", fault.name);
            totals.passed += 1;
        }
    }
    Ok(totals)
}

/// A copy of the sources with its own build folder.
struct Copy {
    root: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn make(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("mutants");
        let copy = Self {
            root: folder.join("sources"),
            target: folder.join("target"),
        };
        let _ = fs::remove_dir_all(&copy.root);
        take_over(&workspace.root, &copy.root).context("cannot copy the sources")?;
        Ok(copy)
    }

    /// Whether a suite passes with a fault. The test file of the faulty module runs first.
    fn passes_with(&self, suite: Suite, fault: &Fault) -> Result<bool> {
        let own = fault
            .modules()
            .find(|test| self.root.join(format!("{LOGIC}/tests/{test}.rs")).exists());
        let nearby = matches!(suite, Suite::Unit) && own.is_some();
        Ok((!nearby || self.passes(suite, own)?) && self.passes(suite, None)?)
    }

    /// Whether a suite, or one test file of it, passes. A fault that does not compile says nothing
    /// about the tests.
    fn passes(&self, suite: Suite, file: Option<&str>) -> Result<bool> {
        let test = || {
            let mut cargo = self.cargo();
            cargo.args(["test", "-p", LOGIC]);
            cargo.args(file.iter().flat_map(|file| ["--test", file]));
            cargo
        };
        let mut build = test();
        build.arg("--no-run");
        ensure!(is_quiet(build)?, "does not compile");
        is_quiet(match suite {
            Suite::Unit => test(),
            Suite::Differential => {
                let mut cargo = self.cargo();
                cargo.args(["xtask", "test", "--tier", "host", "differential"]);
                cargo
            }
        })
    }

    fn cargo(&self) -> Command {
        let mut cargo = cargo(&self.root);
        cargo
            .env("CARGO_TARGET_DIR", &self.target)
            // Nobody debugs these binaries, and without debug info there is less to link.
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo
    }
}

/// Runs a command without its output; returns whether it succeeds.
fn is_quiet(mut command: Command) -> Result<bool> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().context("cannot start cargo")?;
    Ok(status.success())
}

/// Copies a folder, without build folders and git's.
fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let target = to.join(&name);
        if !kind.is_dir() {
            fs::copy(entry.path(), &target)?;
        } else if name != "target" && name != ".git" {
            take_over(&entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// Every fault fits the sources and has a name of its own.
    #[test]
    fn faults_fit_the_sources_and_have_unique_names() {
        let faults = read(&root()).unwrap();
        assert!(faults.len() >= 20);
        let mut names = std::collections::BTreeSet::new();
        // The message is shown as it is, without a backtrace.
        if let Err(error) = check(&root(), &faults) {
            panic!("{error:#}");
        }
        for fault in faults {
            assert_ne!(fault.find, fault.replace, "{}", fault.name);
            assert!(names.insert(fault.name.clone()), "{} twice", fault.name);
        }
    }

    #[test]
    fn fault_without_its_place_is_an_error() {
        let fault = Fault {
            name: "none".into(),
            file: "lib.rs".into(),
            find: "a".into(),
            replace: "b".into(),
        };
        assert_eq!(fault.planted("cat").unwrap(), "cbt");
        assert_eq!(fault.modules().next(), Some("lib"));
        assert!(fault.planted("dog").is_err() && fault.planted("banana").is_err());
    }

    #[test]
    fn module_is_tested_by_its_namesake() {
        let fault = Fault {
            name: "none".into(),
            file: "a/src/conntrack/window/inside.rs".into(),
            find: String::new(),
            replace: String::new(),
        };
        let names: Vec<_> = fault.modules().collect();
        assert_eq!(names[..3], ["inside", "window", "conntrack"]);
    }

    #[test]
    fn required_share_is_95_percent() {
        let of = |passed, failed| Totals {
            passed,
            failed,
            ignored: 0,
        };
        assert!(is_enough(of(19, 1)) && is_enough(of(20, 0)));
        assert!(!is_enough(of(18, 1)) && !is_enough(of(0, 1)));
    }
}
