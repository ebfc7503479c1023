//! Which CPU does what: the same in every arm, so that no scheduler's whim is measured.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One of the CPUs that this process may use; on a machine with one, both are the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cpu {
    First,
    Last,
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
            Self::First => cpus.next(),
            Self::Last => cpus.next_back(),
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
