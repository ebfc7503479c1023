// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask lint`: format, clippy and documentation, each without a warning.
use anyhow::Result;

use crate::{step::step, workspace::Workspace};

/// A check that passes or fails as a whole.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
}

/// The formatter agrees with every file.
pub(crate) const FORMAT: Check = Check {
    name: "fmt",
    arguments: &["fmt", "--all", "--check"],
};

/// Clippy has nothing to say about any target.
pub(crate) const CLIPPY: Check = Check {
    name: "clippy",
    arguments: &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
};

/// Documentation builds, with every link leading somewhere.
pub(crate) const DOC: Check = Check {
    name: "doc",
    arguments: &["doc", "--workspace", "--no-deps"],
};

impl Check {
    /// Runs it as a step; an error if it finds anything.
    pub(crate) fn run(&self, workspace: &Workspace) -> Result<()> {
        let mut cargo = workspace.cargo();
        cargo
            .args(self.arguments)
            .env("RUSTDOCFLAGS", "-D warnings");
        step(self.name, cargo)
    }
}

/// Runs every check, up to the first that fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    [FORMAT, CLIPPY, DOC]
        .iter()
        .try_for_each(|check| check.run(workspace))
}
