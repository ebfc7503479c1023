// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask build`: builds the BPF object, the release binaries that embed it, and what the
//! tests need.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{setup, step::step, toolchain::Toolchain, workspace::Workspace};

/// The package that holds the test harness and its binaries.
pub(crate) const TESTS: &str = "forwarder-tests";

/// The shim that dockerd starts per published port: package and binary.
pub(crate) const SHIM: &str = "forwarder-proxy";

/// The package of the product's BPF programs, and that of the bench's own.
const PROGRAMS: &str = "forwarder-ebpf";
const TEST_PROGRAMS: &str = "forwarder-tests-ebpf";

const BPF_TARGET: &str = "bpfel-unknown-none";

/// Flags for every crate of the BPF object.
const BPF_FLAGS: [&str; 4] = [
    // BTF is made from debug info; without it maps and programs have no types.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Without this, each small `memset` and `memmove` is a call, which takes a frame of 32 bytes on
    // kernel 6.1.
    "-Clink-arg=--disable-expand-memcpy-in-order",
    // The kernel's third instruction set (5.12): 32-bit registers, and atomic operations that
    // return the old value (compare-and-swap, fetch-and-add), which v1 and v2 lack.
    "-Ctarget-cpu=v3",
];

/// Builds everything that the other tasks start.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::ensure(workspace)?;
    object(workspace, &toolchain, PROGRAMS, &workspace.object())?;
    release(workspace, "forwarder", "forwarder")?;
    static_binary(workspace, SHIM, SHIM, "tiny", &workspace.release(SHIM))?;
    // A source tree without the tests, such as a package of the product, still builds.
    if workspace.has_binary(TESTS, "peer") {
        // Containers of the tests contain nothing else, not even a C library.
        static_binary(workspace, TESTS, "peer", "release", &workspace.peer())?;
    }
    if workspace.has_binary(TEST_PROGRAMS, TEST_PROGRAMS) {
        object(
            workspace,
            &toolchain,
            TEST_PROGRAMS,
            &tests_object(workspace),
        )?;
    }
    Ok(())
}

/// Builds the object that a virtual machine's kernel verifies, and the static binary that runs the
/// verification. Returns both paths.
pub(crate) fn verifier(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    let toolchain = setup::ensure(workspace)?;
    let (programs, verifier) = (workspace.object(), workspace.verifier());
    object(workspace, &toolchain, PROGRAMS, &programs)?;
    static_binary(workspace, TESTS, "verifier", "release", &verifier)?;
    Ok([programs, verifier])
}

/// Builds a release binary that embeds the BPF object.
pub(crate) fn release(workspace: &Workspace, package: &str, binary: &str) -> Result<()> {
    if !workspace.has_binary(package, binary) {
        bail!("this tree has no {binary} (a binary of {package})");
    }
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", package, "--bin", binary]);
    step(
        &format!("compile {binary}"),
        with_artifacts(cargo, workspace),
    )
}

/// Sets the environment that tells a command where the built programs are.
pub(crate) fn with_artifacts(mut command: Command, workspace: &Workspace) -> Command {
    command.envs(workspace.artifacts());
    command
}

/// Returns the path of the BPF object of the tests and the bench.
pub(crate) fn tests_object(workspace: &Workspace) -> PathBuf {
    workspace
        .target
        .join("bpf")
        .join(TEST_PROGRAMS)
        .with_extension("o")
}

fn object(workspace: &Workspace, toolchain: &Toolchain, package: &str, place: &Path) -> Result<()> {
    // It has its own target folder: artefacts of another compiler would evict the host's.
    let folder = workspace.target.join("bpf");
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(&workspace.root)
        .args(["build", "--package", package, "--release"])
        .args(["-Zbuild-std=core", "--target", BPF_TARGET, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", BPF_FLAGS.join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        // The workspace's release profile is made for the host.
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    step(&format!("compile the BPF object of {package}"), cargo)?;
    publish(
        &folder.join(BPF_TARGET).join("release").join(package),
        place,
    )
}

/// Builds a binary that needs no shared library, with a profile of the root manifest.
fn static_binary(
    workspace: &Workspace,
    package: &str,
    binary: &str,
    profile: &str,
    place: &Path,
) -> Result<()> {
    let folder = workspace.target.join("static");
    let host = host_triple(workspace)?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--package", package, "--bin", binary])
        .args(["--profile", profile, "--target", &host, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    step(&format!("compile the static {binary}"), cargo)?;
    publish(&folder.join(&host).join(profile).join(binary), place)
}

/// Copies a built file to where others look for it. An unchanged file is not written, because cargo
/// compares times and would embed it again.
fn publish(built: &Path, place: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("cargo left no {}", built.display()))?;
    if fs::read(place).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    // The file is renamed into place: a running program cannot be written to, but it can be
    // replaced.
    let draft = place.with_extension("new");
    fs::copy(built, &draft)
        .and_then(|_| fs::rename(&draft, place))
        .with_context(|| format!("cannot write {}", place.display()))
}

/// Returns the compiler's default target.
pub(crate) fn host_triple(workspace: &Workspace) -> Result<String> {
    let output = workspace
        .cargo()
        .arg("-vV")
        .output()
        .context("cannot run cargo -vV")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("cargo -vV names no host")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agent's build script, compiled alone: a build of the agent would take minutes.
    struct Script(PathBuf);

    impl Script {
        fn compile() -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-script-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../forwarder/build.rs");
            let compiled = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
                .args(["--edition=2024", "-Cdebuginfo=0", "-o"])
                .arg(folder.join("script"))
                .arg(source)
                .status();
            assert!(compiled.unwrap().success());
            Self(folder)
        }

        /// What it tells cargo of errors, in an environment with nothing but these variables and
        /// cargo's own.
        fn errors(&self, variables: &[(&str, &Path)]) -> Vec<String> {
            let output = Command::new(self.0.join("script"))
                .env_clear()
                .env("CARGO_MANIFEST_DIR", self.0.join("forwarder"))
                .env("OUT_DIR", &self.0)
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let lines = String::from_utf8(output.stdout).unwrap();
            let errors = lines
                .lines()
                .filter_map(|line| line.strip_prefix("cargo::error="));
            errors.map(str::to_owned).collect()
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A plain `cargo build` without the BPF object fails with one line, which says what to run.
    #[test]
    fn build_without_the_object_says_what_to_run() {
        let script = Script::compile();
        let embedded = script.0.join("forwarder-ebpf.o");
        let [error] = &script.errors(&[])[..] else {
            panic!("not one line")
        };
        assert!(error.starts_with("no BPF object to embed ("), "{error}");
        assert!(error.contains("run `cargo xtask build`"), "{error}");
        assert!(!embedded.exists(), "an agent without programs");

        // A named object must be there, whatever is allowed otherwise.
        let skip = ("FORWARDER_SKIP_EBPF", Path::new("1"));
        let named = script.0.join("named.o");
        let object = ("FORWARDER_BPF_OBJECT", &*named);
        assert_eq!(script.errors(&[skip, object]).len(), 1);
        fs::write(&named, "programs").unwrap();
        assert_eq!(script.errors(&[object]), [""; 0]);
        assert_eq!(fs::read(&embedded).unwrap(), b"programs");
        assert_eq!(script.errors(&[skip]), [""; 0]);
        assert_eq!(fs::read(&embedded).unwrap(), b"");
    }
}
