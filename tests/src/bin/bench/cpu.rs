// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which CPU does what, in every arm alike.
//!
//! Clients, servers and all that they set off share one. So a figure is what the packets' way
//! costs, and repeats: over several CPUs it depends on where the scheduler puts an end this time;
//! and on a virtual machine, waking a CPU that sleeps costs more than any path.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One of the CPUs that this process may use; on a machine with one, both are the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cpu {
    /// The first: for everything but the other's task.
    Work,
    /// The last: for whoever reads a flood from its socket, which the flood does not wait for.
    Reader,
}

impl Cpu {
    /// Its number.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn number(self) -> Result<usize> {
        let allowed = sched_getaffinity(None)?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let cpu = match self {
            Self::Work => cpus.next(),
            Self::Reader => cpus.next_back(),
        };
        cpu.context("no CPU is allowed")
    }

    /// Keeps the calling thread on it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn keep(self) -> Result<()> {
        let mut only = CpuSet::new();
        only.set(self.number()?);
        sched_setaffinity(None, &only).context("cannot stay on a CPU")
    }
}
