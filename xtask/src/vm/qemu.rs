// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU: this machine's own, or else Debian's, unpacked in `target` and not installed. An
//! installation could remove tools of another version.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{apt, workspace::find_program};

const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";

/// Where libraries are in a root.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Where firmware is in a root.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// An emulator that can be started.
pub(super) struct Qemu {
    /// The root that it was unpacked in.
    root: Option<PathBuf>,
}

impl Qemu {
    /// Finds it, or unpacks it in a folder.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        if find_program(PROGRAM).is_some() {
            return Ok(Self { root: None });
        }
        let root = folder.join("qemu");
        if !root.join("usr/bin").join(PROGRAM).exists() {
            apt::unpack(PACKAGE, &root)?;
        }
        Ok(Self { root: Some(root) })
    }

    /// Starts it through another program, whose last argument it is.
    pub(super) fn run_by(&self, mut wrapper: Command) -> Command {
        let Some(root) = &self.root else {
            wrapper.arg(PROGRAM);
            return wrapper;
        };
        let libraries = env::join_paths(LIBRARIES.map(|folder| root.join(folder)));
        wrapper
            .arg("env")
            .arg(format!(
                "LD_LIBRARY_PATH={}",
                libraries.unwrap_or_default().to_string_lossy()
            ))
            .arg(root.join("usr/bin").join(PROGRAM));
        for folder in FIRMWARE {
            wrapper.arg("-L").arg(root.join(folder));
        }
        wrapper
    }
}
