//! The one CPU on which clients, servers and all that they set off run, in every arm alike.
//!
//! So a figure is what the packets' way costs, and repeats. Over several CPUs it depends on where
//! the scheduler puts an end this time; and on a virtual machine, waking a CPU that sleeps costs
//! more than any path.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The number of the CPU: the first that this process may use.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn number() -> Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    first.context("no CPU is allowed")
}

/// Keeps the calling thread on it.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn keep() -> Result<()> {
    let mut only = CpuSet::new();
    only.set(number()?);
    sched_setaffinity(None, &only).context("cannot stay on a CPU")
}
