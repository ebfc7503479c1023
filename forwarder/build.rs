// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lays the compiled BPF object where the agent embeds it from; an empty file if there is none yet.
use std::{env, fs, io, path::PathBuf};

/// Names the object to embed; `cargo xtask build` sets it.
const OBJECT: &str = "FORWARDER_BPF_OBJECT";

fn main() -> io::Result<()> {
    let object = match env::var_os(OBJECT) {
        Some(path) => PathBuf::from(path),
        None => directory("CARGO_MANIFEST_DIR")?.join("../target/bpf/forwarder-ebpf.o"),
    };
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed={}", object.display());

    // Without an object the crate still compiles, so that its unit tests need no eBPF toolchain;
    // the agent says at run time what is missing.
    let bytes = match fs::read(&object) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    fs::write(directory("OUT_DIR")?.join("forwarder-ebpf.o"), bytes)
}

/// A directory that cargo names to every build script.
fn directory(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{variable} is not set: build this with cargo")))
}
