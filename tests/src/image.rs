// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one image of all containers: the static peer and a static busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::succeed;

/// The image's name on every host.
pub const IMAGE: &str = "peer";

/// The applets that tests call inside containers.
const APPLETS: [&str; 12] = [
    "sh", "cat", "ls", "ip", "ping", "nc", "sleep", "kill", "ps", "echo", "true", "sysctl",
];

/// Returns the file that an environment variable names, or its default in the workspace's target
/// folder.
pub(crate) fn built(variable: &str, below_target: &str) -> Result<PathBuf> {
    let default = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(below_target)
    };
    let path = std::env::var_os(variable).map_or_else(default, PathBuf::from);
    ensure!(
        path.is_file(),
        "{} does not exist: run `cargo xtask build`, or let {variable} name the binary",
        path.display()
    );
    Ok(fs::canonicalize(path)?)
}

/// Returns the static peer: `PEER_BIN`, or the one that `cargo xtask build` made.
///
/// # Errors
/// There is none.
pub fn peer_bin() -> Result<PathBuf> {
    built("PEER_BIN", "static/peer")
}

/// Packs the image into a folder and returns the archive, for `docker import`.
pub(crate) fn pack(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("image");
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(peer_bin()?, root.join("peer"))?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is not installed")?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet))?;
    }
    let archive = folder.join("image.tar");
    succeed(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )?;
    Ok(archive)
}
