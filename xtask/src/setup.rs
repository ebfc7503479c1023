// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: finds or installs the compilers of the BPF object.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    step::step,
    toolchain::{Choice, Installed, Linker, Machine, Pins, Toolchain, choose},
    workspace::{Workspace, find_program},
};

/// The name of the linker's binary.
const LINKER: &str = "bpf-linker";

/// Finds the toolchain, installs what is missing of it, and prints which it is.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Toolchain> {
    let pins = Pins::read(&workspace.root)?;
    let machine = Machine {
        rustup: rustup_toolchains(),
        path_linker: path_linker(),
        has_apt: apt::is_there(),
    };
    let toolchain = match choose(&machine, &pins) {
        Choice::Rustup(Installed { name, sysroot, .. }, Linker { path, .. }) => {
            Toolchain::new(format!("rustup's {name}"), &sysroot, path)
        }
        Choice::Debian => debian(&pins, &workspace.target.join("toolchain"))?,
        Choice::Nothing => bail!(pins.advice()),
    };
    eprintln!("eBPF toolchain: {toolchain}");
    Ok(toolchain)
}

/// Installs Debian's compiler, and builds a linker in `folder` with the same LLVM.
fn debian(pins: &Pins, folder: &Path) -> Result<Toolchain> {
    let packages: Vec<_> = pins.debian.iter().map(String::as_str).collect();
    apt::install(&apt::missing(&packages)).with_context(|| pins.advice())?;

    let linker = folder.join("bin").join(LINKER);
    let toolchain = Toolchain::new("Debian's rustc".to_owned(), Path::new("/usr"), linker);
    let found = version(&toolchain.rustc).context("Debian's rustc does not run")?;
    if found != pins.rustc {
        let pinned = &pins.rustc;
        eprintln!(
            "warning: Debian has rustc {found} by now, not {pinned}: tests of budgets may fail"
        );
    }
    if version(&toolchain.linker).as_deref() != Some(pins.bpf_linker.as_str()) {
        let mut install = toolchain.cargo();
        install
            .args([
                "install",
                LINKER,
                "--version",
                &pins.bpf_linker,
                "--locked",
                "--force",
            ])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{}", pins.llvm),
            ])
            .arg("--root")
            .arg(folder)
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{}", pins.llvm));
        step(&format!("build {LINKER} {}", pins.bpf_linker), install)?;
    }
    Ok(toolchain)
}

/// Returns rustup's toolchains; none without rustup. Listing them downloads nothing.
fn rustup_toolchains() -> Vec<Installed> {
    let listing = output(Command::new("rustup").args(["toolchain", "list", "--verbose"]));
    listing.lines().filter_map(parse_toolchain).collect()
}

/// Parses `NAME (active, default) /path/of/sysroot`; the parenthesis may be missing.
fn parse_toolchain(line: &str) -> Option<Installed> {
    let (name, rest) = line.split_once(char::is_whitespace)?;
    let sysroot = PathBuf::from(&rest[rest.find('/')?..]);
    let has_sources = sysroot
        .join("lib/rustlib/src/rust/library/Cargo.lock")
        .is_file();
    Some(Installed {
        name: name.to_owned(),
        sysroot,
        has_sources,
    })
}

fn path_linker() -> Option<Linker> {
    let path = find_program(LINKER)?;
    let version = version(&path)?;
    Some(Linker { path, version })
}

/// Returns the version of the compiler or linker at `path`; none if it does not run.
fn version(path: &Path) -> Option<String> {
    let text = output(Command::new(path).arg("--version"));
    text.split_whitespace().nth(1).map(str::to_owned)
}

/// Returns what a command writes to stdout; nothing if it cannot be started.
fn output(command: &mut Command) -> String {
    command
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustup_list_is_parsed() {
        let line = "stable-x86_64-unknown-linux-gnu (active, default) /nowhere/stable";
        let expected = Installed {
            name: "stable-x86_64-unknown-linux-gnu".into(),
            sysroot: "/nowhere/stable".into(),
            has_sources: false,
        };
        assert_eq!(parse_toolchain(line), Some(expected));
        let plain = parse_toolchain("nightly-x86_64-unknown-linux-gnu\t/nowhere/nightly");
        assert_eq!(
            plain.map(|installed| installed.sysroot),
            Some("/nowhere/nightly".into())
        );
        assert_eq!(parse_toolchain("no installed toolchains"), None);
    }
}
