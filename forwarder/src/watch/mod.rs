//! The sources of facts: Docker's socket and the kernel's netlink, each a task that ends only by a fatal error;
//! and the shims that dockerd starts, one conversation each.
mod dial;
pub mod docker;
mod ethtool;
mod inspect;
pub mod netlink;
pub mod sandbox;
pub mod shim;

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::world::Fact;

/// Starts every source. They stop when `facts` is closed or the set is dropped.
///
/// `docker` is the daemon's address (`unix:///…`). A task of the set that ends with an error names something that
/// no waiting repairs (an unreadable socket, a daemon that is too old): the agent should end with it.
pub fn spawn(docker: String, facts: mpsc::Sender<Fact>) -> JoinSet<Result<()>> {
    let mut tasks = JoinSet::new();
    let subscribed = Arc::new(Notify::new());
    let (renumber, more) = (subscribed.clone(), facts.clone());
    tasks.spawn(async move { netlink::watch(&subscribed, &facts).await });
    tasks.spawn(async move { docker::watch(&docker, &renumber, &more).await });
    tasks
}
