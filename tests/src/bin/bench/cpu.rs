// SPDX-License-Identifier: MIT OR Apache-2.0
//! The assignment of CPUs, the same in every arm.
//!
//! Clients, servers and everything they trigger share one CPU. Then a figure is the cost of the
//! packets' path, and it repeats. Over several CPUs it would depend on where the scheduler places
//! an end; and on a virtual machine, waking a sleeping CPU costs more than any path.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One of the CPUs that this process may use. On a machine with one CPU, both are the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cpu {
    /// The first CPU: for everything except the reader's task.
    Work,
    /// The last CPU: for the reader of a flood from its socket, so that the flood does not wait for
    /// it.
    Reader,
}

impl Cpu {
    /// Returns the CPU's number.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn number(self) -> Result<usize> {
        let allowed = sched_getaffinity(None)?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let cpu = match self {
            Self::Work => cpus.next(),
            Self::Reader => cpus.next_back(),
        };
        cpu.context("no CPU is allowed")
    }

    /// Pins the calling thread to it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn keep(self) -> Result<()> {
        let mut only = CpuSet::new();
        only.set(self.number()?);
        sched_setaffinity(None, &only).context("cannot stay on a CPU")
    }
}
