// SPDX-License-Identifier: MIT OR Apache-2.0
//! The workspace as cargo sees it: paths, buildable packages, and cargo itself.
use std::{
    env,
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build::{self, SHIM};

/// The variable with the path of the BPF object, for `forwarder/build.rs`, which embeds it, and for
/// the tests, which load it.
const OBJECT_VARIABLE: &str = "FORWARDER_BPF_OBJECT";
/// The variable with the path of the tests' own BPF object.
const TESTS_OBJECT_VARIABLE: &str = "FORWARDER_TESTS_BPF_OBJECT";

/// What `cargo metadata` reports about this workspace.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    /// The folder of the root manifest.
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    /// The build folder, wherever the user's configuration puts it.
    #[serde(rename = "target_directory")]
    pub(crate) target: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Workspace {
    /// Asks cargo about the workspace that this binary belongs to.
    pub(crate) fn load() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = cargo(here)
            .args(["metadata", "--no-deps", "--format-version=1"])
            .output()
            .context("cannot start cargo: put it on PATH")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata gave something unreadable")
    }

    /// The cargo that compiled this binary, to be run in the workspace's root. It may build an agent
    /// without programs, unless the object is named (see `forwarder/build.rs`).
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo(&self.root);
        command
            .env("CARGO_TARGET_DIR", &self.target)
            .env("FORWARDER_SKIP_EBPF", "1");
        command
    }

    /// Returns where `cargo build --release` puts a binary.
    pub(crate) fn release(&self, binary: &str) -> PathBuf {
        self.target.join("release").join(binary)
    }

    /// Returns the path of the BPF object.
    pub(crate) fn object(&self) -> PathBuf {
        self.target.join("bpf/forwarder-ebpf.o")
    }

    /// Returns the path of the tests' helper, which runs inside containers and is therefore static.
    pub(crate) fn peer(&self) -> PathBuf {
        self.target.join("static/peer")
    }

    /// Returns the path of the only process of the tests' virtual machines, static as well.
    pub(crate) fn verifier(&self) -> PathBuf {
        self.target.join("static/verifier")
    }

    /// Returns the environment for the forwarder's build script and the programs of `tests/`.
    pub(crate) fn artifacts(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("FORWARDER_BIN", self.release("forwarder")),
            ("FORWARDER_PROXY_BIN", self.release(SHIM)),
            ("PEER_BIN", self.peer()),
            (OBJECT_VARIABLE, self.object()),
            (TESTS_OBJECT_VARIABLE, build::tests_object(self)),
        ]
    }

    /// Whether a package has a binary of that name.
    pub(crate) fn has_binary(&self, package: &str, binary: &str) -> bool {
        self.targets(package, "bin").any(|name| name == binary)
    }

    /// Returns the integration tests of a package.
    pub(crate) fn integration_tests(&self, package: &str) -> Vec<&str> {
        self.targets(package, "test").collect()
    }

    fn targets<'a>(&'a self, package: &str, kind: &str) -> impl Iterator<Item = &'a str> {
        self.packages
            .iter()
            .filter(move |candidate| candidate.name == package)
            .flat_map(|package| &package.targets)
            .filter(move |target| target.kind.iter().any(|candidate| candidate == kind))
            .map(|target| target.name.as_str())
    }
}

/// Removes the variables that the outer cargo set for the package `xtask`: build scripts that watch
/// such a variable would run again without need.
pub(crate) fn forget_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
}

/// Finds a program on `PATH`, or in the folders that an unprivileged `PATH` often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Whether this process may install packages and load programs.
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self")
        .metadata()
        .is_ok_and(|owner| owner.uid() == 0)
}

/// Fails with one clear line unless root runs this; `what` names the task.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !is_root() {
        bail!("{what} needs root: it loads BPF programs and installs what is missing");
    }
    Ok(())
}

/// Returns the cargo that compiled this binary, to be run in `folder`.
pub(crate) fn cargo(folder: &Path) -> Command {
    let cargo = env::var_os("CARGO");
    let mut command = Command::new(cargo.as_deref().unwrap_or(OsStr::new("cargo")));
    command.current_dir(folder);
    forget_package(&mut command);
    command
}
