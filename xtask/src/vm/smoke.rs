// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test --tier vm --smoke`: a Docker host on another kernel, with the forwarder on it.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Machine, NEEDS, Qemu, boot, initramfs, show};
use crate::{
    apt,
    build::{self, TESTS},
    kernels::Kernel,
    test::prepare,
    totals::Totals,
    workspace::{Workspace, find_program},
};

/// The tests that run there: published ports, masquerade, echo, hairpin and cleanup, by clsact
/// filters, which every kernel has.
const TEST: &str = "clsact";

/// The oldest supported kernel.
const KERNEL: &str = "6.1";

/// The limit is minutes, because Docker starts slowly there.
const SMOKE: Machine = Machine {
    mebibytes: 4096,
    processors: 2,
    seconds: 1800,
};

/// The programs that the tests and Docker start.
const PROGRAMS: [&str; 13] = [
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "docker",
    "ip",
    "tc",
    "nsenter",
    "bpftool",
    "nft",
    "iptables",
    "iptables-save",
    "ethtool",
];

/// The parts of the kernel's modules that a Docker host loads.
const MODULES: [&str; 4] = ["net", "lib", "crypto", "arch"];

/// Boots the kernels one after another, each as a Docker host, and runs the tests there.
pub(crate) fn smoke(
    workspace: &Workspace,
    kernels: &[String],
    filter: Option<&str>,
) -> Result<Totals> {
    prepare(workspace)?;
    apt::ensure(&NEEDS)?;
    let folder = workspace.target.join("vm");
    let kernels = if kernels.is_empty() {
        &[KERNEL.to_owned()][..]
    } else {
        kernels
    };
    let test = test_binary(workspace)?;
    let qemu = Qemu::find(&folder)?;
    let mut totals = Totals::default();
    for kernel in Kernel::fetch(&folder, kernels)? {
        let mut files = placed(workspace, test.clone())?;
        files.extend(kernel.modules(&MODULES)?);
        let root = folder.join("smoke.cpio");
        initramfs::write(&root, &files)?;
        let report = boot(
            &qemu,
            &kernel.image,
            &root,
            &SMOKE,
            filter.unwrap_or_default(),
        );
        totals += show(&kernel, report);
    }
    Ok(totals)
}

/// Returns every file of the root except the kernel's modules.
fn placed(workspace: &Workspace, test: PathBuf) -> Result<Vec<initramfs::Placed>> {
    let script = workspace.root.join("xtask/src/vm/smoke.sh");
    let busybox = PathBuf::from("/bin/busybox");
    let own = |place: &str, path: PathBuf| (place.to_owned(), path);
    let mut files = vec![
        own("init", script),
        own("bin/busybox", busybox.clone()),
        own("bin/sh", busybox.clone()),
        own("sbin/modprobe", busybox),
        own("opt/tests", test),
        own("opt/peer", workspace.peer()),
        own("opt/forwarder", workspace.release("forwarder")),
        own("opt/forwarder-proxy", workspace.release(build::SHIM)),
    ];
    for name in PROGRAMS {
        let path = find_program(name).with_context(|| format!("{name} is not installed"))?;
        files.push((format!("usr/sbin/{name}"), path));
    }
    let mut libraries = BTreeSet::new();
    for (_, path) in &files {
        libraries.extend(libraries_of(path)?);
    }
    let place = |path: PathBuf| Some((path.to_str()?.strip_prefix('/')?.to_owned(), path));
    files.extend(libraries.into_iter().filter_map(place));
    Ok(files)
}

/// Returns the shared libraries of a program, including the loader; none if it is static.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    let words = listing.split_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

/// Builds the tests, and returns their path.
fn test_binary(workspace: &Workspace) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--release", "-p", TESTS, "--test", TEST]);
    cargo.args(["--no-run", "--message-format=json"]);
    let output = build::with_artifacts(cargo, workspace).output()?;
    ensure!(
        output.status.success(),
        "the tests {TEST} do not compile: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .rfind(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with(TEST))
        })
        .with_context(|| format!("cargo names no binary of the tests {TEST}"))
}
