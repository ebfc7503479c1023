// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sources of updates: Docker's socket, the kernel's netlink and the configuration file, each a
//! task that ends only by a fatal error; and the shims that dockerd starts, one conversation each.
mod bounded;
pub(crate) mod claim;
pub(crate) mod connections;
mod dial;
pub mod docker;
mod inspect;
pub(crate) mod lines;
pub mod netlink;
pub(crate) mod others;
pub mod reverse_path;
mod routes;
mod rules;
pub mod shim;
mod terms;

use std::sync::Arc;

use anyhow::Result;
use forwarder_state::host_state::Update;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::config::{Config, Source};

/// Starts every source. They stop when `updates` or `configs` is closed or the set is dropped.
///
/// `docker` is the daemon's address (`unix:///…`), `source` where the configuration comes from. A
/// task that ends with an error names a cause that waiting does not repair (an unreadable socket, a
/// daemon that is too old). The agent should end with it.
pub fn spawn(
    docker: String,
    source: Source,
    updates: mpsc::Sender<Update>,
    configs: mpsc::Sender<Config>,
) -> JoinSet<Result<()>> {
    let mut tasks = JoinSet::new();
    let subscribed = Arc::new(Notify::new());
    let (renumber, more) = (subscribed.clone(), updates.clone());
    let of_others = updates.clone();
    tasks.spawn(async move { others::watch(&of_others).await });
    tasks.spawn(async move { netlink::watch(&subscribed, &updates).await });
    tasks.spawn(async move { rules::watch(&source, &configs).await });
    tasks.spawn(async move { docker::watch(&docker, &renumber, &more).await });
    tasks
}
