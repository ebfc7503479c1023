// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the agent and its callers find each other.

use std::path::{Path, PathBuf};

/// The file name of the shim's program.
pub const SHIM: &str = "forwarder-proxy";

/// The agent's state directory, unless it is told otherwise.
pub const STATE_DIR: &str = "/run/forwarder";

/// The environment variable that names another state directory. dockerd passes it to the shims.
pub const STATE_DIR_VARIABLE: &str = "FORWARDER_STATE_DIR";

/// Returns the path of the agent's socket in a state directory.
#[must_use]
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("forwarder.sock")
}

/// Returns the state directory that the environment names, or the default. An empty variable counts
/// as absent.
#[must_use]
pub fn state_dir() -> PathBuf {
    let named = std::env::var_os(STATE_DIR_VARIABLE).filter(|dir| !dir.is_empty());
    named.map_or_else(|| STATE_DIR.into(), PathBuf::from)
}
