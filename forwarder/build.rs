// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies the compiled BPF object to where the agent embeds it from. A build without the object fails,
//! unless it is only for the compiler's or the unit tests' sake.
use std::{env, fs, io, path::PathBuf};

/// Names the object to embed; `cargo xtask build` sets it.
const OBJECT: &str = "FORWARDER_BPF_OBJECT";

/// If set, an agent without programs may be built: to check types, or to run unit tests.
const SKIP: &str = "FORWARDER_SKIP_EBPF";

fn main() -> io::Result<()> {
    let named = env::var_os(OBJECT).map(PathBuf::from);
    let object = match &named {
        Some(path) => path.clone(),
        None => directory("CARGO_MANIFEST_DIR")?.join("../target/bpf/forwarder-ebpf.o"),
    };
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-env-changed={SKIP}");
    println!("cargo::rerun-if-changed={}", object.display());

    let may_skip = named.is_none() && env::var_os(SKIP).is_some();
    let bytes = match fs::read(&object) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_skip => Vec::new(),
        Err(error) => {
            println!(
                "cargo::error=no BPF object to embed ({}: {error}): run `cargo xtask build`, which \
                 compiles it first; to only check types or run unit tests, set {SKIP}=1",
                object.display()
            );
            return Ok(());
        }
        Ok(bytes) => bytes,
    };
    fs::write(directory("OUT_DIR")?.join("forwarder-ebpf.o"), bytes)
}

/// A directory that cargo names to every build script.
fn directory(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{variable} is not set: build this with cargo")))
}
